"""Are the bands that are to be treated alike treated alike?

The gap of a slice is the largest mean loss of a band less the smallest. It must keep the declared
limit, and not be wider than the champion's beyond chance: 95 % intervals by the bootstrap, rows
drawn anew within each band, the same for both models (Efron and Tibshirani 1993, percentile). What
exceeds the limit by no more than chance explains is "cannot tell".
"""

from __future__ import annotations

import numpy as np

from mlops.improve.gates.evidence import Bands, Evidence, Outcome, Verdict
from mlops.improve.intervals import FEWEST_ROWS

NAME = "fair between bands"
UNKNOWN_BLOCKS = False
"""A use case without such slices, or with few rows in them, is not kept from its first champion."""
DRAWS = 1_000


def check(evidence: Evidence) -> Verdict:
    slices = [bands for bands in evidence.bands if bands.largest_gap is not None]
    if not slices:
        return Verdict(NAME, "cannot tell", "no slice is declared to be treated alike", {})
    if not np.isfinite(evidence.losses).all():
        return Verdict(NAME, "fail", "some rows get no finite number", {})
    answers = [_compare(bands, evidence) for bands in slices]
    worst = max((outcome for outcome, *_ in answers), key=("pass", "cannot tell", "fail").index)
    numbers = {name: value for *_, found in answers for name, value in found.items()}
    return Verdict(NAME, worst, "; ".join(says for _, says, _ in answers), numbers)


def _compare(bands: Bands, evidence: Evidence) -> tuple[Outcome, str, dict[str, float]]:
    rows = [np.flatnonzero(bands.of_row == number) for number in range(len(bands.names))]
    rows = [one for one in rows if len(one) >= FEWEST_ROWS]
    if len(rows) < 2:
        return "cannot tell", f"{bands.name}: fewer than two bands have {FEWEST_ROWS} rows", {}
    gap, gaps = _gaps(evidence.losses, rows)
    low, limit = float(np.quantile(gaps, 0.025)), bands.largest_gap or 0.0
    says = f"{bands.name}: gap {gap:.4g}, allowed {limit:.4g}"
    numbers = {f"gap of {bands.name}": gap, f"low of {bands.name}": low, "allowed": limit}
    if low > limit:
        return "fail", says, numbers
    known = evidence.champion_losses
    if known is not None and np.isfinite(known).all():
        champion_gap, champion_gaps = _gaps(known, rows)
        wider = float(np.quantile(gaps - champion_gaps, 0.025))
        says += f", {evidence.champion} {champion_gap:.4g}"
        numbers |= {f"champion's gap of {bands.name}": champion_gap, "wider by at least": wider}
        if wider > 0:
            return "fail", f"{says}: wider beyond chance", numbers
    return "cannot tell" if gap > limit else "pass", says, numbers


def _gaps(losses: np.ndarray, rows: list[np.ndarray]) -> tuple[float, np.ndarray]:
    """Return the gap, and those of `DRAWS` bootstrap samples, the same for any losses."""
    rng = np.random.default_rng(0)
    means = np.array([losses[one].mean() for one in rows])
    drawn = np.stack(
        [losses[rng.choice(one, (DRAWS, len(one)))].mean(axis=1) for one in rows], axis=1
    )
    return float(np.ptp(means)), np.ptp(drawn, axis=1)

"""Did any part of the rows get worse beyond chance, though the whole may not have?

The paired differences in loss within each band of each declared slice, with intervals that hold
for all bands together (95 %, Bonferroni). It fails when the whole interval of some band says
"worse". Bands of fewer than 30 rows are not asked; a slice of which none is asked tells nothing.
"""

from __future__ import annotations

import numpy as np

from mlops.improve.gates.evidence import Evidence, Verdict
from mlops.improve.intervals import FEWEST_ROWS, interval

NAME = "no slice got worse"
UNKNOWN_BLOCKS = False
"""As with the whole of the rows: a first champion has nothing to be compared with."""


def check(evidence: Evidence) -> Verdict:
    if evidence.champion_losses is None:
        return Verdict(NAME, "cannot tell", f"nothing to compare with: {evidence.champion}", {})
    differences = evidence.losses - evidence.champion_losses
    if not np.isfinite(differences).all():
        return Verdict(NAME, "fail", "some rows get no finite number", {})
    parts, too_few = {}, 0
    for bands in evidence.bands:
        for number, name in enumerate(bands.names):
            part = differences[bands.of_row == number]
            if len(part) >= FEWEST_ROWS:
                parts[f"{bands.name} {name}"] = part
            else:
                too_few += 1
    if not parts:
        says = f"no declared band has {FEWEST_ROWS} rows" if too_few else "no slice is declared"
        return Verdict(NAME, "cannot tell", says, {"bands": 0, "too few rows": too_few})
    found = {name: interval(part, questions=len(parts)) for name, part in parts.items()}
    worst = max(found, key=lambda name: found[name].low)
    mean, low, high = found[worst]
    worse = [name for name, one in found.items() if one.low > 0]
    asked = f"{len(parts)} bands asked" + f", {too_few} have too few rows" * bool(too_few)
    return Verdict(
        NAME,
        "fail" if worse else "pass",
        f"worst in {worst}: mean loss {mean:+.4g} against {evidence.champion}, interval {low:+.4g} "
        f"to {high:+.4g}; " + (f"worse: {', '.join(worse)}" if worse else asked),
        {
            "bands": len(parts),
            "too few rows": too_few,
            **{f"difference in {name}": one.mean for name, one in found.items()},
            **{f"low in {name}": one.low for name, one in found.items()},
        },
    )

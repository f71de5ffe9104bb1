"""Does the model keep its head when fields drift?

The same test rows are answered with one field at a time moved by a tenth of its spread in
training, down and up, and with the field of every tenth row taken from another row. Answers must
stay bounded, and losses must not be more than half as large again as the champion's, beyond
chance: better models lean more on what they know, so some loss is granted. Intervals hold for all
changes together (95 %, Bonferroni).
"""

from __future__ import annotations

import numpy as np

from mlops.improve.gates.evidence import Evidence, Verdict
from mlops.improve.intervals import FEWEST_ROWS, interval

NAME = "withstands drift"
UNKNOWN_BLOCKS = False
"""Answers are bounded or not, which it always tells; a first champion has no other to equal."""
GRANTED = 1.5


def check(evidence: Evidence) -> Verdict:
    low, high = evidence.answers_allowed
    for change, both in evidence.perturbed.items():
        least, most = both.answers
        if not (low <= least and most <= high):  # NaN is not within
            says = (
                f"{change}: answers from {least:.4g} to {most:.4g}, allowed {low:.4g} to {high:.4g}"
            )
            finite = {"least": least, "greatest": most} if np.isfinite([least, most]).all() else {}
            return Verdict(NAME, "fail", says, {**finite, "allowed low": low, "allowed high": high})
    compared = {
        change: both.losses - GRANTED * both.champion
        for change, both in evidence.perturbed.items()
        if both.champion is not None and len(both.losses) >= FEWEST_ROWS
    }
    if not compared:
        says = f"answers bounded under {len(evidence.perturbed)} changes; nothing to compare with"
        return Verdict(NAME, "cannot tell", f"{says}: {evidence.champion}", {})
    found = {name: interval(part, questions=len(compared)) for name, part in compared.items()}
    worst = max(found, key=lambda name: found[name].low)
    both = evidence.perturbed[worst]
    assert both.champion is not None
    mine, other = float(both.losses.mean()), float(both.champion.mean())
    return Verdict(
        NAME,
        "fail" if found[worst].low > 0 else "pass",
        f"worst of {len(found)} changes, {worst}: mean loss {mine:.4g}, {evidence.champion} "
        f"{other:.4g}, granted {GRANTED:g} times that",
        {"changes": len(found), "loss": mine, "champion's": other, "low": found[worst].low},
    )

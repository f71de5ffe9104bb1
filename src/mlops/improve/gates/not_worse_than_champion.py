"""Is the model worse than the champion on the same rows, beyond what chance explains?

The mean of the paired differences in loss, with a 95 % interval (paired z interval, central limit
theorem). It fails only when the whole interval says "worse", or when the model gives no number for
some row: a tie is called a tie.
"""

from __future__ import annotations

import numpy as np

from mlops.improve.gates.evidence import Evidence, Verdict
from mlops.improve.intervals import FEWEST_ROWS, interval

NAME = "not worse than the champion"
UNKNOWN_BLOCKS = False
"""The first champion has nothing to be compared with, nor has one that learnt from other data."""


def check(evidence: Evidence) -> Verdict:
    if evidence.champion_losses is None:
        return Verdict(NAME, "cannot tell", f"nothing to compare with: {evidence.champion}", {})
    unanswered = int(np.sum(~np.isfinite(evidence.losses)))
    if unanswered:
        return Verdict(
            NAME,
            "fail",
            f"the model gives no finite number for {unanswered} of {len(evidence.losses)} rows",
            {"rows": len(evidence.losses), "unanswered": unanswered},
        )
    if not np.isfinite(evidence.champion_losses).all():
        says = f"{evidence.champion} gives no finite number for some rows"
        return Verdict(NAME, "cannot tell", says, {})
    differences = evidence.losses - evidence.champion_losses
    if len(differences) < FEWEST_ROWS:
        return Verdict(
            NAME,
            "cannot tell",
            f"{len(differences)} rows are too few for an interval ({FEWEST_ROWS} needed)",
            {"rows": len(differences)},
        )
    mean, low, high = interval(differences)
    if low > 0:
        comparison = "worse"
    elif high < 0:
        comparison = "better"
    else:
        comparison = "a tie"
    return Verdict(
        NAME,
        "fail" if low > 0 else "pass",
        f"mean loss {mean:+.4g} against {evidence.champion}, 95 % interval "
        f"{low:+.4g} to {high:+.4g}: {comparison}",
        {"difference": mean, "low": low, "high": high, "rows": len(differences)},
    )

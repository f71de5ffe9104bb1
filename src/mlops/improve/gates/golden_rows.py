"""Does the bundle still give the answers that were sealed with it?"""

from __future__ import annotations

from mlops.improve.gates.evidence import Evidence, Verdict

NAME = "reproduces its golden rows"
UNKNOWN_BLOCKS = True
"""It can always tell; a bundle that is off is not even opened."""
TOLERANCE = 1e-9


def check(evidence: Evidence) -> Verdict:
    return answer(evidence.golden_difference)


def answer(difference: float) -> Verdict:
    """Judge by the largest difference between the sealed answers and those of now."""
    return Verdict(
        NAME,
        "pass" if difference <= TOLERANCE else "fail",
        f"largest difference {difference:.3g}, allowed {TOLERANCE:.0e}",
        {"difference": difference, "allowed": TOLERANCE},
    )

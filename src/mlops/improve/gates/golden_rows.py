"""Does the bundle still give the answers that were sealed with it?"""

from __future__ import annotations

from mlops.improve.gates.evidence import Evidence, Verdict

NAME = "reproduces its golden rows"
TOLERANCE = 1e-9


def check(evidence: Evidence) -> Verdict:
    passed = evidence.golden_difference <= TOLERANCE
    return Verdict(
        NAME,
        "pass" if passed else "fail",
        f"largest difference {evidence.golden_difference:.3g}, allowed {TOLERANCE:.0e}",
        {"difference": evidence.golden_difference, "allowed": TOLERANCE},
    )

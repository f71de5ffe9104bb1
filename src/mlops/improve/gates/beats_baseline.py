"""Does the model know more than the mean of the target, or its largest class?"""

from __future__ import annotations

from mlops.improve.gates.evidence import Evidence, Verdict

NAME = "beats the baseline"
UNKNOWN_BLOCKS = True
"""It can always tell."""


def check(evidence: Evidence) -> Verdict:
    passed = evidence.score > evidence.baseline_score
    return Verdict(
        NAME,
        "pass" if passed else "fail",
        f"{evidence.metric} {evidence.score:.4f}, "
        f"a model that ignores its inputs {evidence.baseline_score:.4f}",
        {"score": evidence.score, "baseline": evidence.baseline_score},
    )

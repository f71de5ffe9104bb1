"""Gates: one file each, each answering pass, fail or cannot tell, with its numbers.

A gate is a module with `NAME` and `check(evidence) -> Verdict`; listing it here puts it to work.
"""

from __future__ import annotations

from mlops.improve.gates import beats_baseline, golden_rows, not_worse_than_champion
from mlops.improve.gates.evidence import Evidence, Verdict

__all__ = ["GATES", "Evidence", "Verdict", "check_all"]

GATES = (golden_rows, beats_baseline, not_worse_than_champion)


def check_all(evidence: Evidence) -> list[Verdict]:
    """Ask every gate, in order."""
    return [gate.check(evidence) for gate in GATES]

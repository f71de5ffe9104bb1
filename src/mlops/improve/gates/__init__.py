"""Gates: one file each, each answering pass, fail or cannot tell, with its numbers.

A gate is a module with `NAME`, `check(evidence) -> Verdict` and `UNKNOWN_BLOCKS`, which says
whether its "cannot tell" keeps a version out; listing it here puts it to work.
"""

from __future__ import annotations

import dataclasses
import math

from mlops.improve.gates import (
    beats_baseline,
    fairness,
    golden_rows,
    no_slice_worse,
    not_worse_than_champion,
    parity,
    same_signature,
    within_budget,
    withstands_drift,
)
from mlops.improve.gates.evidence import Evidence, Verdict

__all__ = ["GATES", "Evidence", "Verdict", "check_all"]

GATES = (
    golden_rows,
    parity,
    same_signature,
    within_budget,
    beats_baseline,
    not_worse_than_champion,
    no_slice_worse,
    fairness,
    withstands_drift,
)


def check_all(evidence: Evidence) -> list[Verdict]:
    """Ask every gate, in order. What is no number is left to the words: JSON has none for it."""
    verdicts = [(gate, gate.check(evidence)) for gate in GATES]
    return [
        dataclasses.replace(
            one,
            numbers={name: value for name, value in one.numbers.items() if math.isfinite(value)},
            blocks=one.outcome == "fail" or (one.outcome != "pass" and gate.UNKNOWN_BLOCKS),
        )
        for gate, one in verdicts
    ]

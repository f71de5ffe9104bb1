"""Is the model small and fast enough to be served?

The bytes of its graph and the median time of one row in it, against what the use case grants.
Where the champion is over that too, on a slow machine, it must not be half as much again.
"""

from __future__ import annotations

from mlops.improve.gates.evidence import Evidence, Verdict

NAME = "size and latency"
UNKNOWN_BLOCKS = True
"""It can always tell."""
GRANTED = 1.5


def check(evidence: Evidence) -> Verdict:
    cost, champion, budget = evidence.cost, evidence.champion_cost, evidence.budget
    size, time = budget.bytes, budget.microseconds
    if champion is not None:
        size = max(size, int(GRANTED * champion.bytes))
        time = max(time, GRANTED * champion.microseconds)
    says = (
        f"{cost.bytes / 1e6:.3g} MB, allowed {size / 1e6:.3g}; "
        f"{cost.microseconds:.3g} µs a row, allowed {time:.4g}"
    )
    if champion is not None:
        says += (
            f"; {cost.bytes / champion.bytes:.3g} and "
            f"{cost.microseconds / champion.microseconds:.3g} times {evidence.champion}"
        )
    return Verdict(
        NAME,
        "pass" if cost.bytes <= size and cost.microseconds <= time else "fail",
        says,
        {
            "bytes": cost.bytes,
            "allowed bytes": size,
            "microseconds": cost.microseconds,
            "allowed microseconds": time,
        },
    )

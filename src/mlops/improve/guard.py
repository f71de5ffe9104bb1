"""Guard: is the new champion worse than the version before it, beyond chance? Numbers in, findings
out.

    errors       runs of its model that failed, where the version before answered the same rows
    latency      rounds in which one row took it longer, against the version before at that moment
    golden rows  answers to its golden rows, by the way of a request: chance has no part in them
    quality      losses on the same rows, truth by truth (`sequential.paired`)

Each compares under the same conditions: what comes over both versions, be it a request that no
model can answer, a machine under load or a world that has changed, is held against neither. It
would also be of no use to go back because of it.

Errors and latency count events, in looks that never end and may find a fault that begins late. So
they are judged by an e-detector (Shin, Ramdas and Rinaldo 2023, "E-detectors: a nonparametric
framework for sequential change detection"): the evidence of each look multiplies that before it,
which is never taken for less than 1. While no more than the allowed share of events is bad, the
chance that it ever reaches `CERTAIN` within T looks is at most T / `CERTAIN`: with one look a
second, six in ten thousand in a week.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mlops import clock
from mlops.improve import sequential
from mlops.improve.decisions import Decision
from mlops.records import Finding, Verdict

KIND = "guard"
"""The kind of its findings, and in the ledger the rule, and who decides."""
ERRORS, LATENCY, GOLDEN, QUALITY = CAUSES = ("errors", "latency", "golden rows", "quality")

CERTAIN = 1e9
ALLOWED_ERRORS = 0.01
"""Share of runs that may fail. At `CERTAIN`, five on end are told of."""
EITHER = 0.5
"""Of rounds that one of two equal models wins clearly, each wins half, however noisy the clock."""
TIMES_SLOWER = 3.0
QUALITY_ALPHA = 0.001
"""Chance of ever calling a champion worse that is as good, truths being looked at one by one."""
WORSE_BY = 0.05
"""What it has to be worse by, as a share of the other's loss: less is not worth going back."""
DAY = 86_400.0
PLACES = (0.01, 0.04, 0.1, 0.3, 0.6, 0.95)
"""What the share of bad events may be instead, between the allowed one and 1."""


def rolled_back(decisions: Sequence[Decision], version: int) -> Decision | None:
    """Return the last decision by which a server went back from a version by itself."""
    found = [
        one
        for one in decisions
        if (one.action, one.rule, one.previous) == ("rollback", KIND, version)
    ]
    return found[-1] if found else None


class Probation(NamedTuple):
    """Since when a champion is watched, as the ledger has it, and until when, in unix seconds."""

    since: str
    until: float


def probation(decisions: Sequence[Decision], days: float) -> Probation | None:
    """Return the probation of the champion, given the decisions about its use case.

    None if no promotion made it champion: a rollback begins none.
    """
    changes = [one for one in decisions if one.action in ("promote", "rollback")]
    if not changes or changes[-1].action == "rollback":
        return None
    since = changes[-1].decided_utc
    return Probation(since, clock.seconds_of(since) + days * DAY)


class Evidence:
    """Evidence that more than the `allowed` share of events is bad, from some moment on.

    The mean of likelihood ratios against `PLACES`: for each of them a supermartingale under any
    share up to the allowed one, and so their mean.
    """

    def __init__(self, allowed: float) -> None:
        shares = allowed + (1 - allowed) * np.array(PLACES)
        self._bad = np.log(shares / allowed)
        self._good = np.log((1 - shares) / (1 - allowed))
        self._logarithms = np.zeros(len(PLACES))

    def add(self, bad: int, events: int) -> None:
        """Take in what one look has seen: `bad` of so many `events`."""
        if events:
            before = np.maximum(self._logarithms, 0.0)
            self._logarithms = before + bad * self._bad + (events - bad) * self._good

    @property
    def value(self) -> float:
        """What `CERTAIN` is the limit of; at most e^600."""
        return float(np.mean(np.exp(np.minimum(self._logarithms, 600.0))))


def errors(evidence: Evidence, failed: int, runs: int, last: str = "") -> Finding:
    """Judge `failed` of all `runs` of the model so far; `last` says what the last one met."""
    met = f", the last with {last}" if last else ""
    says = f"{failed:,} of {runs:,} runs of the model failed{met}; {ALLOWED_ERRORS:.0%} may"
    numbers = {"failed": failed, "runs": runs, "allowed": ALLOWED_ERRORS}
    return _by_evidence(ERRORS, evidence, runs, says, numbers)


def is_slower(seconds: float, than: float, budget: float) -> bool:
    """Whether a row took longer than it may: `TIMES_SLOWER` the other's time, and the budget."""
    return seconds > max(TIMES_SLOWER * than, budget)


def latency(
    evidence: Evidence, times: Sequence[tuple[float, float]], budget: float, rounds: int
) -> Finding:
    """Judge by rounds in which both models answered the same row, one right after the other.

    `times` are the newest: seconds of the champion, and of the version before. The evidence is of
    rounds in which either was slower (`is_slower`).
    """
    if not times:
        says = "no row was answered by both versions yet"
        return Finding(KIND, LATENCY, "cannot tell", says, {"rounds": 0})
    mine, before = (float(np.median(column)) for column in zip(*times, strict=True))
    says = (
        f"one row takes {1e3 * mine:.3g} ms, the version before {1e3 * before:.3g} ms at the same "
        f"time; up to {1e3 * max(TIMES_SLOWER * before, budget):.3g} ms is no reason"
    )
    numbers = {"rounds": rounds, "seconds": mine, "seconds_before": before, "budget": budget}
    return _by_evidence(LATENCY, evidence, rounds, says, numbers)


def golden_rows(trouble: str) -> Finding:
    """Judge by what was wrong with the answers to the golden rows; empty if nothing was."""
    says = trouble or "answered as they were sealed"
    return Finding(KIND, GOLDEN, "alarm" if trouble else "ok", says, {})


def quality(losses: np.ndarray, before: np.ndarray) -> Finding:
    """Judge losses of both versions on the same rows, shape (n,), in the order of their truths."""
    n = len(losses)
    numbers = {"truths": n, "alpha": QUALITY_ALPHA}
    differ = int(np.count_nonzero(losses != before))
    if differ < sequential.FIRST_LOOK:
        says = (
            f"{n:,} truths, on {differ} of which the losses differ: too few to tell "
            f"({sequential.FIRST_LOOK} needed)"
        )
        return Finding(KIND, QUALITY, "cannot tell", says, numbers)
    found = sequential.paired(losses - before, alpha=QUALITY_ALPHA)
    mean, low, high = (float(part[-1]) for part in found)
    granted = WORSE_BY * float(before.mean())
    worse = low > granted
    says = (
        f"mean loss {losses.mean():.4g}, of the version before {before.mean():.4g}, over {n:,} "
        f"truths: {mean:+.4g} ({low:+.4g} to {high:+.4g}), "
        f"{'' if worse else 'not '}above {granted:+.2g} beyond chance"
    )
    numbers |= {
        "loss": float(losses.mean()),
        "loss_before": float(before.mean()),
        "low": low,
        "high": high,
        "granted": granted,
    }
    return Finding(KIND, QUALITY, "alarm" if worse else "ok", says, numbers)


def _by_evidence(
    cause: str, evidence: Evidence, events: int, says: str, numbers: dict[str, float]
) -> Finding:
    value = evidence.value
    verdict: Verdict = "cannot tell" if not events else "alarm" if value >= CERTAIN else "ok"
    weighed = f"evidence 10^{math.log10(max(value, 1e-99)):.1f} of 10^{math.log10(CERTAIN):.0f}"
    numbers |= {"evidence": value, "limit": CERTAIN}
    return Finding(KIND, cause, verdict, f"{says} ({weighed})", numbers)

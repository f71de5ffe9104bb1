"""Policies: rules by which a version becomes champion, each one function of what was known then.

The rule of the house is `gates`; `mlops what-if` replays the ledger under any of them. A policy is
a function from `Case` to `Answer`, listed in `POLICIES`. It answers "cannot tell" where the ledger
kept no evidence of these two models against each other; that is never passed over.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from mlops.errors import UsageError

BASELINE, CHAMPION = "beats the baseline", "not worse than the champion"
ALONE = ("reproduces its golden rows", "serves what was measured", BASELINE)
"""Gates whose answer is the same whoever is champion."""
SLOW_DAYS = 7.0

Verdicts = Sequence[Mapping[str, Any]]
Moment = Literal["registered", "asked", "tried"]
"""When a policy is asked: a version was registered, somebody asked to promote it, or its
experiment ended."""


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """A version that might become champion, beside who would be champion at that moment.

    `verdicts` are what the gates said of the two; None if nobody has held them against each
    other. `alone` are those that hold whoever is champion. `trial` is what an experiment with the
    two said, "" if there was none. `days` are those since the champion took over: infinite without
    one, and nan where that cannot be told.
    """

    version: int
    champion: int | None
    verdicts: Verdicts | None
    alone: Verdicts
    forced: bool
    score: float | None
    champion_score: float | None
    trial: str
    days: float


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    outcome: Literal["promote", "keep", "cannot tell"]
    says: str


@dataclasses.dataclass(frozen=True, slots=True)
class Policy:
    """A rule with its name, what it says in words, and the moments at which it decides."""

    name: str
    says: str
    decide: Callable[[Case], Answer]
    moments: tuple[Moment, ...] = ("asked",)


def gates(case: Case) -> Answer:
    """As the house does it: every gate that can tell must let it pass, and nobody overrules one."""
    blocking = [one for one in case.verdicts or case.alone if blocks(one)]
    if blocking:
        return Answer("keep", "; ".join(f"{one['gate']}: {one['says']}" for one in blocking))
    if not case.verdicts:
        return Answer("cannot tell", f"the gates never held it against {_called(case.champion)}")
    return Answer("promote", "every gate that could tell let it pass")


def strict(case: Case) -> Answer:
    """A gate that cannot tell keeps it out too, once there is a champion to lose."""
    answer = gates(case)
    if answer.outcome != "promote" or case.champion is None:
        return answer
    unsure = [str(one["gate"]) for one in case.verdicts or () if one["outcome"] != "pass"]
    return Answer("keep", f"cannot tell: {', '.join(unsure)}") if unsure else answer


def no_force(case: Case) -> Answer:
    """A promotion that was forced does not happen."""
    return Answer("keep", "it was forced") if case.forced else gates(case)


def newest(case: Case) -> Answer:
    """Every version is champion as soon as it is registered."""
    if case.champion is not None and case.version < case.champion:
        return Answer("keep", f"{_called(case.champion)} is newer")
    return Answer("promote", "it is the newest")


def higher_score(case: Case) -> Answer:
    """The higher score on test rows wins, or an equal one, whatever chance has to do with it."""
    if case.champion is None:
        return Answer("promote", "there was no champion")
    if case.score is None or case.champion_score is None:
        which = case.version if case.score is None else case.champion
        return Answer("cannot tell", f"no score of version {which} was kept")
    says = f"{case.score:.4f}, {_called(case.champion)} has {case.champion_score:.4f}"
    return Answer("promote" if case.score >= case.champion_score else "keep", says)


def proven(case: Case) -> Answer:
    """A tie changes nothing: it must be better beyond chance, on test rows or in an experiment."""
    answer = gates(case)
    if answer.outcome != "promote" or case.champion is None:
        return answer
    if case.trial == "better":
        return Answer("promote", "its experiment said: better")
    for one in case.verdicts or ():
        if one["gate"] == CHAMPION and "high" in one["numbers"]:
            is_better = one["numbers"]["high"] < 0
            return Answer("promote" if is_better else "keep", str(one["says"]))
    return Answer("keep", f"nothing shows that it is better than {_called(case.champion)}")


def tried(case: Case) -> Answer:
    """Only a version whose experiment said "better" replaces a champion."""
    answer = gates(case)
    if answer.outcome != "promote" or case.champion is None:
        return answer
    if case.trial == "better":
        return Answer("promote", "its experiment said: better")
    return Answer(
        "keep", f"its experiment said: {case.trial}" if case.trial else "it was not tried"
    )


def slower(case: Case) -> Answer:
    """A champion stays for seven days at least, unless it is rolled back."""
    answer = gates(case)
    if answer.outcome != "promote" or case.days >= SLOW_DAYS:
        return answer
    if math.isnan(case.days):
        return Answer(
            "cannot tell", f"since when {_called(case.champion)} was champion is not known"
        )
    return Answer("keep", f"{_called(case.champion)} had been champion for {case.days:.1f} days")


POLICIES = (
    Policy("gates", "the rule as it is, which nobody overrules", gates),
    Policy("strict", "a gate that cannot tell keeps a version out too", strict),
    Policy("no-force", "forced promotions do not happen", no_force),
    Policy("newest", "every version at once", newest, ("registered", "asked")),
    Policy("higher-score", "the higher score on test rows, chance or not", higher_score),
    Policy("proven", "better beyond chance, not merely no worse", proven, ("asked", "tried")),
    Policy("tried", "only what an experiment called better", tried, ("asked", "tried")),
    Policy("slower", f"as gates, and a champion stays for {SLOW_DAYS:g} days", slower),
)


def find(name: str) -> Policy:
    """Return a policy by its name. Raises `UsageError` that lists those that there are."""
    for policy in POLICIES:
        if policy.name == name:
            return policy
    known = ", ".join(one.name for one in POLICIES)
    raise UsageError(f"there is no policy {name!r}", f"take one of {known}")


def blocks(verdict: Mapping[str, Any]) -> bool:
    """Whether a verdict keeps a version out; the oldest lines of a ledger do not say so."""
    return bool(verdict.get("blocks", verdict["outcome"] == "fail"))


def score_of(verdicts: Verdicts) -> float | None:
    """Return the score on test rows that the gates were shown, if they were."""
    for one in verdicts:
        if one["gate"] == BASELINE and math.isfinite(one["numbers"].get("score", math.nan)):
            return float(one["numbers"]["score"])
    return None


def _called(champion: int | None) -> str:
    return "no champion" if champion is None else f"version {champion}"

"""Hindsight: the ledger's history once more, decided by another policy.

Each line is weighed by what the ledger kept of it. Where another version would have been champion,
the gates may never have held the two against each other: then it cannot be told what the policy
would have done, and from there on either may have been champion. Both are carried on, until a
decision comes out the same for each. A rollback happens to a champion that the policy had too.
"""

from __future__ import annotations

import dataclasses
import datetime
import math
from collections.abc import Callable, Sequence
from typing import Literal

from mlops.improve import policies
from mlops.improve.decisions import Decision
from mlops.improve.policies import Answer, Case, Moment, Policy, Verdicts

Held = Callable[[int, int | None], Verdicts | None]
"""What the gates say of a version against another, or against none; None if nobody knows."""
Champions = tuple[int | None, ...]
"""Who may have been champion: one, or several where that cannot be told. None: nobody yet."""
Would = Literal["promoted", "kept", "rolled back", "nothing", "cannot tell"]

TRIALS = ("better", "worse", "cannot tell yet", "cannot tell")
DAY = datetime.timedelta(days=1)
NOBODY: Champions = (None,)


@dataclasses.dataclass(frozen=True, slots=True)
class Weighed:
    """A line of the ledger, and what the policy would have done. `says` is why.

    `differs` is whether that is something else; None if it cannot be told.
    """

    line: int
    decided_utc: str
    version: int
    was: str
    would: Would
    differs: bool | None
    says: str


@dataclasses.dataclass(frozen=True, slots=True)
class Stretch:
    """A time in which neither champion changed. `until` is None for the one that lasts.

    `would` are all who may have been champion under the policy.
    """

    since: str
    until: str | None
    was: int | None
    would: tuple[int | None, ...]

    @property
    def differs(self) -> bool:
        return self.would != (self.was,)


@dataclasses.dataclass(frozen=True, slots=True)
class Hindsight:
    """What the policy would have decided, line by line, and who would have been champion when."""

    weighed: tuple[Weighed, ...]
    stretches: tuple[Stretch, ...]


def replay(
    decisions: Sequence[Decision], policy: Policy, held: Held = lambda version, champion: None
) -> Hindsight:
    """Decide the lines about one use case once more, oldest first.

    `held` is asked where no line has the gates' evidence of two versions against each other.
    """
    known, reign = _Known(decisions, held), _Reign()
    champion: int | None = None
    weighed, changes = [], []
    for one in decisions:
        before = (champion, reign.now)
        if one.action in ("promote", "rollback"):
            champion = one.version
        row = _weigh(one, policy, known, reign)
        if row is not None:
            weighed.append(row)
        if (champion, reign.now) != before:
            changes.append((one.decided_utc, champion, reign.now))
    ends = [*(since for since, _, _ in changes[1:]), None][: len(changes)]
    return Hindsight(
        tuple(weighed),
        tuple(
            Stretch(since, until, was, would)
            for (since, was, would), until in zip(changes, ends, strict=True)
        ),
    )


class _Reign:
    """Who would be champion, and who before, for going back: a stack.

    Where it cannot be told, all who may be stand in one place of it, in the order in which they
    may have followed each other. None that may be is ever left out.
    """

    def __init__(self) -> None:
        self._stack = [NOBODY]
        self._all: dict[int | None, None] = {}
        self._in_order = True
        self.since: str | None = None
        """When the champion took over; None where that cannot be told."""

    @property
    def now(self) -> Champions:
        return self._stack[-1]

    def take(self, version: int, moment: str) -> None:
        self._stack.append((version,))
        self._changed(moment)

    def may_take(self, version: int) -> None:
        self._stack[-1] = (*(one for one in self.now if one != version), version)
        self._changed(None)

    def go_back(self, version: int | None, moment: str) -> Would:
        """Undo the reign of `version`, if it reigns and somebody did before."""
        others = tuple(one for one in self.now if one != version)
        before = () if len(self._stack) < 2 or self._stack[-2] == NOBODY else self._stack[-2]
        if version not in self.now or not (others or before):
            return "nothing"
        if not others:
            self._stack.pop()
            self._changed(moment)
            return "rolled back"
        if not self._in_order:
            others = tuple(one for one in self._all if one != version)
        elif version == self.now[0]:
            others = tuple(dict.fromkeys((*before, *others)))
        if version == next(iter(self._all)):  # where it has none before it, it stays
            others = (version, *others)
        self._in_order = False
        self._stack[-1] = others
        self._changed(None)
        return "cannot tell"

    def _changed(self, moment: str | None) -> None:
        self.since = moment if len(self.now) == 1 else None
        self._all |= dict.fromkeys(one for one in self.now if one is not None)


class _Known:
    """What the ledger kept of each version, alone and against others; what a trial said of two."""

    def __init__(self, decisions: Sequence[Decision], held: Held) -> None:
        self._held = held
        self._pairs: dict[tuple[int, int | None], Verdicts] = {}
        self._alone: dict[int, Verdicts] = {}
        self.trials: dict[tuple[int, int | None], str] = {}
        """Grows as the lines are gone through: what was not known yet decides nothing."""
        for one in decisions:
            if one.action in ("promote", "keep") and (found := _verdicts(one)):
                self._pairs[one.version, one.previous] = found
                self._alone[one.version] = found

    def case(self, one: Decision, champion: int | None, since: str | None) -> Case:
        """Return what is to be decided of a line, if `champion` was so since then."""
        version = one.version
        own = _verdicts(one) if one.previous == champion else ()
        verdicts = own or self._pairs.get((version, champion)) or self._held(version, champion)
        alone = verdicts or self._alone.get(version) or ()
        days = math.inf if champion is None else math.nan
        if champion is not None and since:
            days = (_moment(one.decided_utc) - _moment(since)) / DAY
        return Case(
            version=version,
            champion=champion,
            verdicts=verdicts,
            alone=[verdict for verdict in alone if verdict["gate"] in policies.ALONE],
            forced=one.rule == "force",
            score=self._score(version),
            champion_score=None if champion is None else self._score(champion),
            trial=self.trials.get((version, champion), ""),
            days=days,
        )

    def _score(self, version: int) -> float | None:
        return policies.score_of(self._alone.get(version) or self._held(version, None) or ())


def _weigh(one: Decision, policy: Policy, known: _Known, reign: _Reign) -> Weighed | None:
    """Decide one line, and change who is champion; None for a line that asks nothing."""
    if one.action == "rollback":
        return _rolled_back(one, reign)
    if trial := _trial(one):
        known.trials[one.version, one.previous] = trial
    moment = _moment_of(one, trial)
    if moment is None or moment not in policy.moments:
        return None
    was = {"registered": "registered", "tried": "its experiment ended"}.get(
        moment, "promoted" if one.action == "promote" else "kept"
    )
    answers = [
        policy.decide(known.case(one, champion, reign.since))
        for champion in reign.now
        if champion != one.version
    ]
    would, says = _together(one.version, answers)
    differs: bool | None = bool(answers) and (would == "promoted") != (was == "promoted")
    if would == "promoted":
        reign.take(one.version, one.decided_utc)
    elif would == "cannot tell":
        reign.may_take(one.version)
        differs = None
    return Weighed(one.id, one.decided_utc, one.version, was, would, differs, says)


def _together(version: int, answers: Sequence[Answer]) -> tuple[Would, str]:
    """Return what happens whoever of these was champion, and why."""
    if not answers:
        return "nothing", f"version {version} was champion already"
    outcomes = {answer.outcome for answer in answers}
    says = "; ".join(dict.fromkeys(answer.says for answer in answers))
    if outcomes == {"promote"}:
        return "promoted", says
    if outcomes == {"keep"}:
        return "kept", says
    return "cannot tell", says


def _rolled_back(one: Decision, reign: _Reign) -> Weighed:
    """Go back if the policy had the same champion; where it may have had, it may have gone back."""
    was_there = one.previous in reign.now
    would = reign.go_back(one.previous, one.decided_utc)
    now = f"version {' or '.join(map(str, reign.now))}"
    if would == "nothing" and not was_there:
        says = f"version {one.previous} was not champion: there was nothing to go back from"
    elif would == "nothing":
        says = f"nobody was champion before version {one.previous}"
    else:
        says = f"to {now}: {one.reason}"
    differs = None if would == "cannot tell" else reign.now != (one.version,)
    return Weighed(one.id, one.decided_utc, one.version, "rolled back", would, differs, says)


def _moment_of(one: Decision, trial: str) -> Moment | None:
    if one.action in ("promote", "keep"):
        return "asked"
    if one.action == "train":
        return "registered"
    return "tried" if one.action == "end" and trial else None


def _verdicts(one: Decision) -> Verdicts:
    return [item for item in one.evidence if "gate" in item and "outcome" in item]


def _trial(one: Decision) -> str:
    """Return what an experiment said, of the line that ended it or promoted by it."""
    for item in one.evidence:
        if "gate" not in item and item.get("verdict") in TRIALS:
            return str(item["verdict"])
    return ""


def _moment(text: str) -> datetime.datetime:
    moment = datetime.datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)

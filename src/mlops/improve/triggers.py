"""Triggers: whether a use case should be trained again, and why; decided from what is known.

A trigger is a function from `Known` to a `Reason` or None, listed in `TRIGGERS` in the order in
which they are asked; the first reason is the reason. What a monitor cannot tell is none: only an
alarm is. After a training that ran to its end nothing is a reason for `pause_days`, so that one
lasting alarm does not train for ever; one that died is taken up at once, `MOST_DEATHS` times in a
row.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mlops.records import Finding
from mlops.usecase import Retraining

MOST_DEATHS = 3
DAY = datetime.timedelta(days=1)


@dataclasses.dataclass(frozen=True, slots=True)
class Reason:
    """Why to train: the trigger's name, one sentence, and the numbers that it rests on."""

    trigger: str
    says: str
    numbers: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class Known:
    """What is known of a use case at the moment `now`; moments are UTC, None if never.

    `trained` is when the champion was sealed, `promoted` when it became champion, `last_began`
    and `last_ended` when the last retraining did so. `new_rows` counts the rows at hand that no
    training has learnt from. `died` is the reason of a retraining that began and never ended, and
    `deaths` how many did so in a row.
    """

    now: datetime.datetime
    champion: int | None
    trained: datetime.datetime | None = None
    promoted: datetime.datetime | None = None
    findings: Sequence[Finding] = ()
    new_rows: int = 0
    last_began: datetime.datetime | None = None
    last_ended: datetime.datetime | None = None
    died: str = ""
    deaths: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """A reason to train, or None and what there is to say about that."""

    reason: Reason | None
    says: str


def ask(known: Known, rules: Retraining) -> Answer:
    """Return the first reason that there is, or why there is none."""
    if known.died and known.deaths < MOST_DEATHS:
        says = f"a retraining died before its end; its reason was: {known.died}"
        return _because(Reason("resume", says, {"deaths": known.deaths}))
    if known.last_began is not None:
        until = known.last_began + rules.pause_days * DAY
        if known.now < until:
            return Answer(
                None,
                f"the last retraining began {_moment(known.last_began)}, and nothing is a reason "
                f"until {_moment(until)} (RETRAIN_PAUSE_DAYS={rules.pause_days:g})",
            )
    for trigger in TRIGGERS:
        reason = trigger(known, rules)
        if reason is not None:
            return _because(reason)
    return Answer(None, _no_reason(known, rules))


def first(known: Known, rules: Retraining) -> Reason | None:
    """There is no champion yet."""
    if known.champion is not None:
        return None
    return Reason("first", "there is no champion yet")


def alarm(kind: str) -> Callable[[Known, Retraining], Reason | None]:
    """Return the trigger of one monitor: an alarm about the model that is champion now."""

    def trigger(known: Known, rules: Retraining) -> Reason | None:
        alarms = [
            found
            for found in known.findings
            if found.kind == kind and found.verdict == "alarm" and _about_champion(found, known)
        ]
        if not alarms:
            return None
        more = f"; and {len(alarms) - 1} more" if alarms[1:] else ""
        return Reason(
            kind,
            f"{alarms[0].subject}: {alarms[0].says}{more}",
            {"at": alarms[0].at, "subjects": [found.subject for found in alarms]},
        )

    return trigger


def new_truth(known: Known, rules: Retraining) -> Reason | None:
    """Much new truth is at hand."""
    if not rules.new_rows or known.new_rows < rules.new_rows:
        return None
    return Reason(
        "new truth",
        f"{known.new_rows:,} rows with their truth are new since the last training "
        f"({rules.new_rows:,} are enough)",
        {"rows": known.new_rows, "enough": rules.new_rows},
    )


def age(known: Known, rules: Retraining) -> Reason | None:
    """The champion is old, and was not looked at since."""
    looked_at = max((m for m in (known.trained, known.last_ended) if m), default=None)
    if not rules.max_age_days or looked_at is None:
        return None
    days = (known.now - looked_at) / DAY
    if days < rules.max_age_days:
        return None
    return Reason(
        "age",
        f"version {known.champion} was trained or last looked at {days:.3g} days ago "
        f"({rules.max_age_days:g} are allowed)",
        {"days": days, "allowed": rules.max_age_days},
    )


def schedule(known: Known, rules: Retraining) -> Reason | None:
    """It is trained so often, whatever happens."""
    began = max((m for m in (known.trained, known.last_began) if m), default=None)
    if not rules.every_days or began is None or known.now < began + rules.every_days * DAY:
        return None
    return Reason(
        "schedule",
        f"it is trained every {rules.every_days:g} days, and was last {_moment(began)}",
        {"days": (known.now - began) / DAY, "every": rules.every_days},
    )


TRIGGERS: tuple[Callable[[Known, Retraining], Reason | None], ...] = (
    first,
    alarm("drift"),
    alarm("quality"),
    new_truth,
    age,
    schedule,
)


def _because(reason: Reason) -> Answer:
    return Answer(reason, f"{reason.trigger}: {reason.says}")


def _about_champion(found: Finding, known: Known) -> bool:
    """Whether a finding is about the model that is champion now, and not about one before.

    It says so, or it was made since the promotion; one that says neither counts.
    """
    version = found.numbers.get("model_version")
    if version:
        return bool(version == known.champion)
    if known.promoted is None or not found.at:
        return True
    return datetime.datetime.fromisoformat(found.at) >= known.promoted


def _no_reason(known: Known, rules: Retraining) -> str:
    looked = [found for found in known.findings if _about_champion(found, known)]
    unsure = sum(found.verdict == "cannot tell" for found in looked)
    monitors = f"{len(looked)} findings, none an alarm" if looked else "no findings"
    if unsure:
        monitors += f" ({unsure} cannot tell)"
    parts = [f"{monitors}", f"{known.new_rows:,} new rows"]
    if rules.new_rows:
        parts[1] += f" of {rules.new_rows:,}"
    if known.trained and rules.max_age_days:
        days = (known.now - known.trained) / DAY
        parts.append(f"{days:.3g} days old of {rules.max_age_days:g}")
    return ", ".join(parts)


def _moment(moment: datetime.datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"

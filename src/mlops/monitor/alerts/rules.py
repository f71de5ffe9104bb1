"""The rules: what is known of a use case in, what is wrong with it out. Pure.

A rule reads a breach, no breach, or that it cannot tell; and always a sentence with its numbers.
`RULES` lists all of them; `step` turns a reading and what was before into what is now.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from mlops import clock
from mlops.records import Alert, Finding, Watched

FEWEST_REQUESTS = 20
"""Of fewer in the window no share is told, and no quantile: one error of two is no error rate."""
WATCHED = ("drift", "quality")
HOURS_UNWATCHED = 24
HOURS_TOLD = 24
"""How long an alert tells of a rollback, unless a new champion is guarded before."""
LARGEST_WAL = 1 << 30
"""Bytes of a write-ahead log that readers of minutes explain; beyond, one of them never ends."""
MOST_SAID = 3
LONGEST_GAP = 60.0
"""Seconds without a look, after which a breach has to show anew that it lasts."""
LONGEST_DOUBT = 900.0
"""Seconds after which an alert ends that nothing confirms or refutes any more."""


class Limits(NamedTuple):
    """Where the rules draw the line. 0 in the last two: never."""

    error_rate: float = 0.05
    p95_ms: float = 500.0
    disk_free: float = 0.05
    stale_days: float = 90.0
    silent_minutes: float = 0.0


class Known(NamedTuple):
    """What is known of a use case at one moment, `now` (unix seconds)."""

    now: float
    not_ready: str
    """Why it cannot answer; empty when it can."""
    traffic: Mapping[str, Any] | None
    """The numbers of one window, as `docs/metrics.md` lists them, and its `seconds`; None if they
    cannot be read."""
    log_failed: str | None
    """Why the log could not be written just now."""
    watched: Watched


class Reading(NamedTuple):
    """What a rule reads. `breached` is None when it cannot tell."""

    breached: bool | None
    says: str
    value: float | None = None
    limit: float | None = None


TOO_FEW = Reading(None, f"fewer than {FEWEST_REQUESTS} requests: too few to tell")


class Rule(NamedTuple):
    """One rule: its name, how bad a breach is, and how it reads."""

    name: str
    severity: str
    read: Callable[[Known, Limits], Reading]


def unavailable(known: Known, _: Limits) -> Reading:
    return Reading(bool(known.not_ready), known.not_ready or "requests are being answered")


def error_rate(known: Known, limits: Limits) -> Reading:
    """Requests answered with a status of 400 or more, of all in the window."""
    traffic = known.traffic
    if traffic is None or traffic["requests"] < FEWEST_REQUESTS:
        return TOO_FEW
    minutes = _minutes(traffic)
    by_status = ", ".join(
        f"{number} with {status}"
        for status, number in traffic["requests_by_status"].items()
        if int(status) >= 400
    )
    says = (
        f"{traffic['error_rate']:.1%} of {traffic['requests']:,} requests in {minutes} failed"
        f"{f' ({by_status})' if by_status else ''}; the limit is {limits.error_rate:.1%}"
    )
    breached = traffic["error_rate"] > limits.error_rate
    return Reading(breached, says, traffic["error_rate"], limits.error_rate)


def slow(known: Known, limits: Limits) -> Reading:
    """The response time that 95 % of the answers with status 200 did not exceed."""
    traffic = known.traffic
    if traffic is None or traffic["response_time_ms"]["measured"] < FEWEST_REQUESTS:
        return TOO_FEW
    times = traffic["response_time_ms"]
    minutes = _minutes(traffic)
    says = (
        f"95 % of {times['measured']:,} answers in {minutes} took up to {times['p95']:.0f} ms; "
        f"the limit is {limits.p95_ms:g} ms"
    )
    return Reading(times["p95"] > limits.p95_ms, says, times["p95"], limits.p95_ms)


def drift(known: Known, _: Limits) -> Reading:
    return _found(known.watched.findings, "drift", "drifted from what training saw")


def quality(known: Known, _: Limits) -> Reading:
    return _found(known.watched.findings, "quality", "worse than it was in training")


def rollback(known: Known, _: Limits) -> Reading:
    """What the guard of a new champion found: it went back, or would have if it could."""
    found = [one for one in known.watched.findings if one.kind == "guard"]
    alarms = [one for one in found if one.verdict == "alarm"]
    if not alarms:
        return Reading(False, "the guard of a new champion found nothing against it")
    hours = (known.now - clock.seconds_of(alarms[0].at)) / 3600
    says = "; ".join(f"{one.subject}: {one.says}" for one in alarms)
    return Reading(hours < HOURS_TOLD, says, len(alarms), 0)


def experiment(known: Known, _: Limits) -> Reading:
    """What is found of an open experiment: a verdict that cannot be told yet is no breach."""
    reading = _found(known.watched.findings, "experiment", "of the experiment ask for a decision")
    return reading if reading.breached else Reading(False, "no experiment asks for a decision")


def stale_model(known: Known, limits: Limits) -> Reading:
    """The time since the champion was registered."""
    since = known.watched.champion_registered
    if since is None or not limits.stale_days:
        return Reading(False, "no champion, or no limit to its age")
    days = (known.now - since) / 86_400
    says = f"the champion was trained {days:.1f} days ago; the limit is {limits.stale_days:g} days"
    return Reading(days > limits.stale_days, says, days, limits.stale_days)


def unwatched(known: Known, _: Limits) -> Reading:
    """The time since drift or quality was last looked at, while predictions went on."""
    last = known.watched.last_prediction
    looks = {one.kind: one.at for one in known.watched.findings if one.kind in WATCHED}
    if not looks or last is None:
        return Reading(None, "neither drift nor quality was ever looked at")
    kind, at = min(looks.items(), key=lambda look: look[1])
    hours = max(0.0, last - clock.seconds_of(at)) / 3600
    says = (
        f"{kind} was last looked at {hours:.1f} hours before the last prediction; "
        f"the limit is {HOURS_UNWATCHED} hours"
    )
    return Reading(hours > HOURS_UNWATCHED, says, hours, HOURS_UNWATCHED)


def silent(known: Known, limits: Limits) -> Reading:
    """The time since the last prediction was logged."""
    last = known.watched.last_prediction
    if last is None or not limits.silent_minutes:
        return Reading(False, "nothing was ever asked, or silence has no limit")
    minutes = (known.now - last) / 60
    says = f"no prediction for {minutes:.0f} minutes; the limit is {limits.silent_minutes:g}"
    return Reading(minutes > limits.silent_minutes, says, minutes, limits.silent_minutes)


def disk(known: Known, limits: Limits) -> Reading:
    """The free share of the disk that holds the prediction log."""
    free = known.watched.disk_free
    if free is None:
        return Reading(None, "the free space of the log's disk cannot be read")
    says = f"{free:.1%} of the log's disk is free; the limit is {limits.disk_free:.1%}"
    return Reading(free < limits.disk_free, says, free, limits.disk_free)


def wal(known: Known, _: Limits) -> Reading:
    """The write-ahead log of predictions.db: it grows for as long as one reader stays in it."""
    size = known.watched.log_wal_bytes
    if size is None:
        return Reading(None, "the size of the write-ahead log cannot be read")
    says = (
        f"the write-ahead log of predictions.db has {size / 1e6:,.0f} MB, the limit is "
        f"{LARGEST_WAL / 1e6:,.0f} MB: a process that reads the database and does not end keeps it "
        "from beginning anew; end that process"
    )
    return Reading(size > LARGEST_WAL, says, size, LARGEST_WAL)


def log_stopped(known: Known, _: Limits) -> Reading:
    """The log cannot be written, or its text file does not follow the database."""
    if known.log_failed:
        return Reading(True, "the prediction log cannot be written: nothing is answered")
    behind = known.watched.log_lines_behind
    if behind is None:
        return Reading(None, "the prediction log cannot be read")
    says = f"predictions.log lacks {behind:,} of the rows in predictions.db"
    return Reading(behind > 0, says, behind, 0)


RULES = (
    Rule("unavailable", "critical", unavailable),
    Rule("error_rate", "critical", error_rate),
    Rule("slow", "warning", slow),
    Rule("drift", "warning", drift),
    Rule("quality", "critical", quality),
    Rule("rollback", "critical", rollback),
    Rule("experiment", "warning", experiment),
    Rule("stale_model", "warning", stale_model),
    Rule("unwatched", "warning", unwatched),
    Rule("silent", "warning", silent),
    Rule("disk", "critical", disk),
    Rule("wal", "warning", wal),
    Rule("log_stopped", "critical", log_stopped),
)


def step(
    before: Alert | None, use_case: str, rule: Rule, reading: Reading, now: float, hold: float
) -> Alert | None:
    """Return the alert as it is after a reading, None if there is none.

    A breach opens it once it has lasted for `hold` seconds. It ends when there was no breach for
    `hold` seconds, or when nothing could be told for `LONGEST_DOUBT`.
    """
    if before is None or (before.opened is None and now - before.seen > LONGEST_GAP):
        before = Alert(0, use_case, rule.name, rule.severity, "", None, None, since=now, seen=now)
        if not reading.breached:
            return None
    if reading.breached:
        opened = before.opened or (now if now - before.since >= hold else None)
        return before._replace(
            says=reading.says,
            value=reading.value,
            limit=reading.limit,
            seen=now,
            opened=opened,
            calm_since=None,
        )
    if before.opened is None:
        return None
    calm_since = before.calm_since or now
    patience = LONGEST_DOUBT if reading.breached is None else hold
    if now - calm_since < patience:
        return before._replace(seen=now, calm_since=calm_since)
    return before._replace(
        says=reading.says, value=reading.value, seen=now, calm_since=calm_since, ended=now
    )


def _found(findings: Sequence[Finding], kind: str, what: str) -> Reading:
    """Read the findings of one kind: a single alarm is a breach."""
    mine = [one for one in findings if one.kind == kind]
    alarms = [one for one in mine if one.verdict == "alarm"]
    if alarms:
        shown = [f"{one.subject}: {one.says}" for one in alarms[:MOST_SAID]]
        rest = f" (and {len(alarms) - MOST_SAID} more)" if len(alarms) > MOST_SAID else ""
        says = f"{len(alarms)} of {len(mine)} {what}: {'; '.join(shown)}{rest}"
        return Reading(True, says, len(alarms), 0)
    told = [one for one in mine if one.verdict == "ok"]
    if not told:
        return Reading(None, f"nothing can be told about {kind} yet", None, 0)
    return Reading(False, f"none of {len(told)} {what}", 0, 0)


def _minutes(traffic: Mapping[str, Any]) -> str:
    seconds = traffic["seconds"]
    return f"{seconds / 60:g} minutes" if seconds >= 60 else f"{seconds:g} s"

"""Guard: whether a champion is on probation, and what the servers' guard has found of it."""

from __future__ import annotations

import contextlib
import dataclasses

from mlops import clock
from mlops.improve.guard import KIND, probation
from mlops.improve.ledger import Ledger
from mlops.loop.prediction_log import has_log, open_log
from mlops.records import Finding
from mlops.settings import Settings, read_settings
from mlops.usecases import find


@dataclasses.dataclass(frozen=True, slots=True)
class Guarded:
    """A champion, the version to go back to, and until when it is guarded (UTC; None: it is not).

    `found` is what a server found when it last wrote it down; that may be of the version before.
    """

    use_case: str
    version: int | None
    before: int | None
    until: str | None
    says: str
    found: tuple[Finding, ...]


def guard(name: str, *, settings: Settings | None = None) -> Guarded:
    """Return what is known of the guard of a use case. Raises `UsageError` for an unknown one."""
    settings = settings or read_settings()
    use_case = find(name)
    with Ledger(settings.state_database) as ledger:
        champion = ledger.champion(name)
        before = ledger.before(champion) if champion else None
        watched = probation(ledger.decisions(name), settings.rollback_watch_days)
    found: list[Finding] = []
    if has_log(use_case, settings):
        with contextlib.closing(open_log(use_case, settings)) as log:
            found = log.findings(KIND)
    until = None
    if champion is None:
        says = "there is no champion"
    elif not settings.rollback_watch_days:
        says = "the guard is off: ROLLBACK_WATCH_DAYS is 0"
    elif watched is None:
        says = f"version {champion.version} came back by a rollback, which begins no probation"
    elif watched.until < clock.unix():
        says = f"the probation of version {champion.version} ended {clock.iso(watched.until)}"
    else:
        until = clock.iso(watched.until)
        back = "has nothing to go back to" if before is None else f"goes back to version {before}"
        says = f"version {champion.version} is guarded until {until}, and {back}"
    version = champion.version if champion else None
    return Guarded(name, version, before, until, says, tuple(found))

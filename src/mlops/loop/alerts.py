"""Alerts: the server looks at each use case and tells its channels; the command lists and tests.

look   what is known → the rules → the book: alerts opened and ended
tell   messages that are due → the channels → the book: sent, or tried again later
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import apsw

from mlops import clock
from mlops.deploy.service import Service
from mlops.errors import LogUnavailableError, MlopsError, UsageError
from mlops.improve.ledger import Ledger
from mlops.monitor.alerts.book import AlertBook, Channel, Message
from mlops.monitor.alerts.channels import Note, parse_channels, send
from mlops.monitor.alerts.rules import RULES, Known, Limits
from mlops.monitor.log import PredictionLog
from mlops.records import Alert, Watched
from mlops.settings import Settings, read_settings
from mlops.usecases import USE_CASES, find

SECONDS_BETWEEN_CALLS = 1.0
SECONDS_BETWEEN_LOOKS = 5.0
KINDS = {"critical": "failure", "warning": "warning"}

log = logging.getLogger("uvicorn.error")


class _Served(NamedTuple):
    service: Service
    log: PredictionLog


class Lookout:
    """What one server process does about alerts; any number of them share one book.

    Its methods may be called from any thread. Raises `UsageError` for an `ALERT_URLS` that holds
    what is no address, and `MlopsError` if book or state database cannot be opened.
    """

    def __init__(
        self, services: Sequence[Service], logs: Sequence[PredictionLog], settings: Settings
    ) -> None:
        self._served = {
            service.use_case.name: _Served(service, its)
            for service, its in zip(services, logs, strict=True)
        }
        self._settings = settings
        self._limits = limits(settings)
        self._channels = parse_channels(settings.alert_urls)
        self._last_ids: dict[str, int] = {}
        self._lock = threading.Lock()
        self._ledger = Ledger(settings.state_database)
        self._book = self._kept = AlertBook(settings.alert_database)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._leave_memory()
            self._kept.close()
            self._ledger.close()

    async def keep_looking(self) -> None:
        """Look at each use case every few seconds, as long as no other process just did."""
        while True:
            await asyncio.sleep(clock.pause(SECONDS_BETWEEN_CALLS))
            for name in self._served:
                try:
                    await asyncio.to_thread(self.look, name)
                except Exception:
                    log.exception("%s: could not look for alerts", name)

    async def keep_telling(self) -> None:
        """Send messages that are due."""
        while self._channels:
            await asyncio.sleep(clock.pause(SECONDS_BETWEEN_CALLS))
            try:
                await self.tell()
            except Exception:
                log.exception("could not send alerts")

    def look(self, name: str) -> None:
        """Let the alerts of a use case follow what is known of it now, if it is due.

        Goes on in memory while the book cannot be written: a full disk is what alerts are for.
        """
        with self._lock:
            self._leave_memory()
        try:
            self._look(name)
        except apsw.BusyError as error:
            # The book can be written, by another process just now. Memory would part from it.
            log.warning("%s: alerts are looked at later: alerts.db: %s", name, error)
        except apsw.Error as error:
            with self._lock:
                self._go_to_memory(error)
            self._look(name)

    def _look(self, name: str) -> None:
        now, hold = clock.unix(), self._settings.alert_hold_seconds
        with self._lock:
            if not self._book.due(name, now, min(SECONDS_BETWEEN_LOOKS, max(1.0, hold))):
                return
        known = self._known(name, now)
        readings = {rule.name: rule.read(known, self._limits) for rule in RULES}
        with self._lock:
            changed = self._book.take(name, readings, now, hold, self._channels)
        for alert in changed:
            state = "ended" if alert.ended else "started"
            log.warning("%s: alert %s %s: %s", name, alert.rule, state, alert.says)

    def _go_to_memory(self, error: apsw.Error) -> None:
        if self._book is not self._kept:
            raise error
        log.error("alerts are kept in memory, for alerts.db cannot be written: %s", error)
        memory = AlertBook(None)
        # First all that can still be read: what could not be would be lost when it is copied back.
        memory.copy(self._kept)
        self._book = memory

    def _leave_memory(self) -> None:
        if self._book is self._kept:
            return
        try:
            self._kept.copy(self._book)
        except apsw.Error:
            return  # not yet
        log.warning("alerts are kept in alerts.db again")
        self._book.close()
        self._book = self._kept

    async def tell(self) -> None:
        """Send the messages that are due, and write down what became of each."""
        messages = await asyncio.to_thread(self._claim)
        if not messages:
            return
        urls = {channel.key: channel for channel in self._channels}

        async def told(number: int, error: str | None) -> None:
            message = messages[number]
            if error:
                log.error("alert to %s not sent: %s", urls[message.channel].name, error)
            await asyncio.to_thread(self._settle, message, error)

        await send([note(one, urls[one.channel]) for one in messages], told)

    def watched(self, name: str) -> Watched:
        """Return what is known of a use case beside its traffic."""
        its = self._served[name].log
        with self._lock:
            champion = self._ledger.champion(name)
            active = self._book.active(name)
        try:
            last = next((clock.seconds_of(row.timestamp) for row in its.rows(1)), None)
            behind, findings = its.lines_behind(), tuple(its.findings())
        except LogUnavailableError:
            last, behind, findings = None, None, ()
        return Watched(
            disk_free=free_share(its.path.parent),
            log_lines_behind=behind,
            last_prediction=last,
            champion_registered=clock.seconds_of(champion.registered_utc) if champion else None,
            findings=findings,
            active={rule.name: rule.name in active for rule in RULES},
            log_wal_bytes=file_size(its.path.with_name(f"{its.path.name}-wal")),
        )

    def listed(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the alerts of these use cases, as `/alerts` shows them.

        Raises `MlopsError` if they cannot be read.
        """
        try:
            with self._lock:
                return listing(self._book, names, self._channels)
        except apsw.Error as error:
            raise MlopsError(f"alerts.db cannot be read: {error}") from error

    def _known(self, name: str, now: float) -> Known:
        service, its = self._served[name]
        failed = self._log_failure(name)
        try:
            traffic = its.traffic(self._settings.alert_window_seconds, now)
        except LogUnavailableError as error:
            failed, traffic = error.message, None
        not_ready = "" if its.failed else service.not_ready()
        return Known(now, not_ready, traffic, failed, self.watched(name))

    def _log_failure(self, name: str) -> str | None:
        """Return why the log cannot be written; one that has just grown need not be tried."""
        its = self._served[name].log
        try:
            last_id = next((row.id for row in its.rows(1)), 0)
            if last_id == self._last_ids.get(name):
                its.probe()
        except LogUnavailableError as error:
            return error.message
        self._last_ids[name] = last_id
        return None

    def _claim(self) -> list[Message]:
        with self._lock:
            return self._book.claim(clock.unix(), self._channels)

    def _settle(self, message: Message, error: str | None) -> None:
        with self._lock:
            self._book.settle(message, error, clock.unix())


def alerts(name: str | None = None, *, settings: Settings | None = None) -> dict[str, Any]:
    """Return open alerts, and those that ended lately, as the book has them.

    Raises `UsageError` for an unknown use case.
    """
    settings = settings or read_settings()
    names = [find(name).name] if name else list(USE_CASES)
    channels = parse_channels(settings.alert_urls)
    if not settings.alert_database.exists():
        return {"open": [], "ended": [], "channels": [], "checked": None}
    with AlertBook(settings.alert_database) as book:
        return listing(book, names, channels)


def try_channels(*, settings: Settings | None = None) -> list[dict[str, Any]]:
    """Send a test to each channel; return name and error of each, None where it was taken.

    Raises `UsageError` if there are none, or what is none.
    """
    channels = parse_channels((settings or read_settings()).alert_urls)
    if not channels:
        raise UsageError(
            "no channel is configured", "set ALERT_URLS, say, to json://127.0.0.1:9000/hook"
        )
    says = "This is a test. Alerts of this installation arrive here."
    notes = [Note(one.url, "mlops: test", says, "info") for one in channels]
    errors = asyncio.run(send(notes))
    return [
        {"channel": channel.name, "error": error}
        for channel, error in zip(channels, errors, strict=True)
    ]


def limits(settings: Settings) -> Limits:
    return Limits(
        settings.alert_error_rate,
        settings.alert_p95_ms,
        settings.alert_disk_free,
        settings.alert_stale_days,
        settings.alert_silent_minutes,
    )


def listing(book: AlertBook, names: Sequence[str], channels: Sequence[Channel]) -> dict[str, Any]:
    """Return the alerts of these use cases as JSON has them, newest first."""
    now = clock.unix()
    opened, ended = book.alerts(names, now)
    known = {channel.key: channel.name for channel in channels}
    looks = [look for name in names if (look := book.next_look(name))]
    return {
        "open": [_shown(one, book, known) for one in reversed(opened)],
        "ended": [_shown(one, book, known) for one in reversed(ended)],
        "channels": [_channel(one, book) for one in channels],
        "checked": clock.iso(min(max(looks), now)) if looks else None,
    }


def note(message: Message, channel: Channel) -> Note:
    """Return what a channel is told."""
    alert, ended = message.alert, message.event == "ended"
    what = f"{alert.use_case}: {alert.rule.replace('_', ' ')}"
    span = f"From {clock.iso(alert.since)}" + (
        f" to {clock.iso(alert.ended)}" if alert.ended else ""
    )
    return Note(
        channel.url,
        f"{'Ended' if ended else alert.severity.capitalize()}: {what}",
        f"{message.says}.\n{span} (UTC). All alerts: mlops alerts",
        "success" if ended else KINDS[alert.severity],
    )


def file_size(path: Path) -> int | None:
    """Return the size of a file in bytes; None if that cannot be read."""
    try:
        return path.stat().st_size
    except OSError:
        return None


def free_share(folder: Path) -> float | None:
    """Return the free share of the disk that a folder is on; None if that cannot be read."""
    try:
        space = shutil.disk_usage(folder)
    except OSError:
        return None
    return space.free / space.total if space.total else None


def _shown(alert: Alert, book: AlertBook, known: Mapping[str, str]) -> dict[str, Any]:
    return {
        "use_case": alert.use_case,
        "rule": alert.rule,
        "severity": alert.severity,
        "says": alert.says,
        "value": alert.value,
        "limit": alert.limit,
        "since": clock.iso(alert.since),
        "until": clock.iso(alert.ended) if alert.ended else None,
        "notified": [
            {
                "channel": known.get(one["channel"], "one that is no longer configured"),
                "event": one["event"],
                "sent": clock.iso(one["sent"]) if one["sent"] else None,
                "attempts": one["attempts"],
                "error": one["error"],
            }
            for one in book.messages(alert.id)
        ],
    }


def _channel(channel: Channel, book: AlertBook) -> dict[str, Any]:
    waiting, error = book.failing(channel)
    return {"channel": channel.name, "waiting": waiting, "error": error}

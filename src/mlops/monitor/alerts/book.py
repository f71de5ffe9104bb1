"""The alert book: the state of every alert, and of every message about one; `alerts.db`.

Several server processes keep it together, and any of them may be killed:

    due      of all processes one looks at a use case at a time: the first to move its next look
    take     one transaction: alerts opened and ended, and the messages that say so
    claim    hands out messages that are due, for `LEASE` seconds; then they are due again
    settle   a message was sent, or is tried again later

So each start and each end makes one message a channel, whoever sees it. A message is sent until a
channel takes it, and twice only if a process dies in the moment between sending and writing that
down. The message of an end waits for that of its start.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import apsw

from mlops.database import Database, connect, may_be_written, migrate, transaction
from mlops.errors import MlopsError
from mlops.monitor.alerts.rules import RULES, Reading, step
from mlops.records import Alert

LEASE = 30.0
"""Seconds in which whoever claimed a message has to settle it: more than sending may take."""
FIRST_RETRY, LONGEST_RETRY = 1.0, 600.0
SECONDS_UNTIL_GIVEN_UP = 86_400.0
DAYS_SHOWN = 7
MESSAGES_AT_ONCE = 20

FIELDS = ("id", *Alert._fields[1:6], "bound", *Alert._fields[7:])
SELECT = f"SELECT {', '.join(FIELDS)} FROM alerts "  # noqa: S608  constants

# Times are unix seconds: they are compared and added here, and nobody reads them in this file.
MIGRATIONS = (
    (
        "m001_alerts",
        (
            """CREATE TABLE alerts(
                id INTEGER PRIMARY KEY AUTOINCREMENT, use_case TEXT NOT NULL, rule TEXT NOT NULL,
                severity TEXT NOT NULL, says TEXT NOT NULL, value REAL, bound REAL,
                since REAL NOT NULL, seen REAL NOT NULL, opened REAL, calm_since REAL,
                ended REAL)""",
            """CREATE UNIQUE INDEX alerts_one_of_each ON alerts(use_case, rule)
                WHERE ended IS NULL""",
            """CREATE TABLE messages(
                alert INTEGER NOT NULL REFERENCES alerts(id), event TEXT NOT NULL,
                channel TEXT NOT NULL, says TEXT NOT NULL, made REAL NOT NULL, due REAL NOT NULL,
                attempts INTEGER NOT NULL, sent REAL, error TEXT,
                PRIMARY KEY (alert, event, channel)) WITHOUT ROWID""",
            "CREATE INDEX messages_unsent ON messages(due) WHERE sent IS NULL",
            "CREATE TABLE looks(use_case TEXT PRIMARY KEY, next REAL NOT NULL) WITHOUT ROWID",
        ),
    ),
)


class Channel(NamedTuple):
    """Where messages go. `url` holds secrets; `name` and `key` give none away."""

    name: str
    url: str

    @property
    def key(self) -> str:
        """What the book knows the channel by, however many stand before it in the setting."""
        return hashlib.sha256(self.url.encode()).hexdigest()[:16]


class Message(NamedTuple):
    """One message that is to be sent: to a channel, that an alert "started" or "ended"."""

    alert: Alert
    event: str
    channel: str
    says: str
    """What there was to say at that moment."""
    attempts: int


class AlertBook(Database):
    """The book at `path`, open; in memory, if that is None. One thread at a time.

    Raises `MlopsError` if it cannot be opened, `DataError` if a newer version made it. Its methods
    raise `apsw.Error` when it cannot be read or written any more.
    """

    def __init__(self, path: Path | None) -> None:
        try:
            self._database = (
                connect(path, synchronous="NORMAL", read_only=not may_be_written(path))
                if path
                else apsw.Connection(":memory:")
            )
            migrate(self._database, MIGRATIONS)
        except apsw.Error as error:
            raise MlopsError(
                f"the alert book {path} cannot be used: {error}",
                "end what keeps it locked, or move it away: a new one is begun",
            ) from error

    def copy(self, other: AlertBook) -> None:
        """Make this book hold what the other holds, and nothing else. All or nothing."""
        with self._database.backup("main", other._database, "main") as copying:
            copying.step()

    def due(self, use_case: str, now: float, every: float) -> bool:
        """Whether the caller is to look at a use case now; then nobody else is, for `every` s."""
        # Only read at first: most calls find that it is not due, and need not write that down.
        known = self.next_look(use_case)
        # A clock that was set back must not keep everybody from looking.
        if known is not None and now < known <= now + every:
            return False
        with transaction(self._database):
            self._database.execute(
                """INSERT INTO looks VALUES (:use_case, :next) ON CONFLICT DO UPDATE
                    SET next = :next WHERE next <= :now OR next > :next""",
                {"use_case": use_case, "now": now, "next": now + every},
            )
            return self._database.changes() == 1

    def take(
        self,
        use_case: str,
        readings: Mapping[str, Reading],
        now: float,
        hold: float,
        channels: Sequence[Channel],
    ) -> list[Alert]:
        """Let the alerts of a use case follow the `readings` of their rules, by name.

        Return those that opened or ended, each with a message to every channel. All or nothing.
        """
        changed = []
        with transaction(self._database):
            before = {
                one.rule: one for one in self._alerts("use_case = ? AND ended IS NULL", use_case)
            }
            for rule in RULES:
                old = before.get(rule.name)
                new = step(old, use_case, rule, readings[rule.name], now, hold)
                if new is None:
                    if old:
                        self._database.execute("DELETE FROM alerts WHERE id = ?", (old.id,))
                    continue
                kept = self._keep(new)
                event = "started" if kept.opened == now else "ended" if kept.ended else None
                if event:
                    changed.append(kept)
                    for channel in channels:
                        self._database.execute(
                            "INSERT INTO messages VALUES (?, ?, ?, ?, ?, ?, 0, NULL, NULL)",
                            (kept.id, event, channel.key, kept.says, now, now),
                        )
        return changed

    def claim(self, now: float, channels: Iterable[Channel]) -> list[Message]:
        """Return messages to these channels that are due; the caller settles each."""
        waiting = "SELECT 1 FROM messages WHERE sent IS NULL AND due <= ? LIMIT 1"
        if not self._database.execute(waiting, (now,)).fetchone():
            return []
        with transaction(self._database):
            rows: list[Any] = self._database.execute(
                f"""SELECT alert, event, channel, says, attempts FROM messages AS mine
                WHERE sent IS NULL AND due <= :now AND made > :now - {SECONDS_UNTIL_GIVEN_UP}
                    AND channel IN ({", ".join(f"'{one.key}'" for one in channels)})
                    AND (event = 'started' OR NOT EXISTS (
                        SELECT 1 FROM messages WHERE alert = mine.alert AND event = 'started'
                            AND channel = mine.channel AND sent IS NULL
                            AND made > :now - {SECONDS_UNTIL_GIVEN_UP}))
                ORDER BY made, event DESC LIMIT {MESSAGES_AT_ONCE}""",  # noqa: S608  digests
                {"now": now},
            ).fetchall()
            messages = []
            for alert, event, channel, says, attempts in rows:
                self._database.execute(
                    """UPDATE messages SET due = ?, attempts = attempts + 1
                        WHERE alert = ? AND event = ? AND channel = ?""",
                    (now + LEASE, alert, event, channel),
                )
                [found] = self._alerts("id = ?", alert)
                messages.append(Message(found, event, channel, says, attempts + 1))
        return messages

    def settle(self, message: Message, error: str | None, now: float) -> None:
        """Write down that a message was sent, or why not, and when to try again."""
        retry = min(LONGEST_RETRY, FIRST_RETRY * 2 ** (message.attempts - 1))
        with transaction(self._database):
            self._database.execute(
                """UPDATE messages SET sent = ?, error = ?, due = ?
                    WHERE alert = ? AND event = ? AND channel = ?""",
                (
                    None if error else now,
                    error,
                    now + retry,
                    *(message.alert.id, message.event, message.channel),
                ),
            )

    def alerts(self, use_cases: Sequence[str], now: float) -> tuple[list[Alert], list[Alert]]:
        """Return the open alerts, and those that ended in the last `DAYS_SHOWN` days."""
        since = now - DAYS_SHOWN * 86_400
        found = self._alerts("opened IS NOT NULL AND ifnull(ended, ?) >= ?", now, since)
        mine = [one for one in found if one.use_case in use_cases]
        return [one for one in mine if not one.ended], [one for one in mine if one.ended]

    def active(self, use_case: str) -> set[str]:
        """Return the names of the rules whose alerts are open."""
        where = "use_case = ? AND opened IS NOT NULL AND ended IS NULL"
        return {one.rule for one in self._alerts(where, use_case)}

    def messages(self, alert: int) -> list[dict[str, Any]]:
        """Return what became of the messages about an alert."""
        columns = ("event", "channel", "attempts", "sent", "error")
        rows = self._database.execute(
            f"SELECT {', '.join(columns)} FROM messages WHERE alert = ? ORDER BY made",  # noqa: S608
            (alert,),
        )
        return [dict(zip(columns, row, strict=True)) for row in rows]

    def failing(self, channel: Channel) -> tuple[int, str | None]:
        """Return how many messages wait for a channel, and why the last try of one failed."""
        row = self._database.execute(
            """SELECT count(*), max(error) FROM messages
                WHERE channel = ? AND sent IS NULL AND attempts > 0""",
            (channel.key,),
        ).fetchone()
        return row or (0, None)

    def next_look(self, use_case: str) -> float | None:
        """Return when a use case is looked at next; in the past if nobody looks any more."""
        # Read to the end: a statement that is still open would keep the state that it saw, and
        # whoever begins to write after another process did would be told "database is locked".
        found: list[Any] = self._database.execute(
            "SELECT next FROM looks WHERE use_case = ?", (use_case,)
        ).fetchall()
        return found[0][0] if found else None

    def _alerts(self, where: str, *bindings: Any) -> list[Alert]:
        rows = self._database.execute(f"{SELECT} WHERE {where} ORDER BY id", bindings)
        return [Alert(*row) for row in rows]

    def _keep(self, alert: Alert) -> Alert:
        places = ", ".join("?" * len(FIELDS))
        self._database.execute(
            f"REPLACE INTO alerts({', '.join(FIELDS)}) VALUES ({places})",  # noqa: S608  constants
            (alert.id or None, *alert[1:]),
        )
        return alert._replace(id=alert.id or self._database.last_insert_rowid())

"""The counts as they are kept: tables beside the rows, written in the rows' own transaction.

So the counts equal the rows whatever happens, with any number of processes. Response times are
known only after the answer has gone out, and come with a later commit, within a second: a
process that is killed may take the last second of them with it, but never a count.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import apsw
import numpy as np

from mlops import clock
from mlops.monitor import counts
from mlops.records import Failure, Submission, Timing

SCHEMA = """
ALTER TABLE failures ADD COLUMN model_version INTEGER NOT NULL DEFAULT 0;
CREATE TABLE counts(
    width INTEGER NOT NULL, start INTEGER NOT NULL, model_version INTEGER NOT NULL,
    status INTEGER NOT NULL, requests INTEGER NOT NULL, logged INTEGER NOT NULL,
    warned INTEGER NOT NULL, last_timestamp TEXT NOT NULL,
    PRIMARY KEY (width, start, model_version, status)) WITHOUT ROWID;
CREATE TABLE durations(
    width INTEGER NOT NULL, start INTEGER NOT NULL, model_version INTEGER NOT NULL,
    status INTEGER NOT NULL, seconds REAL NOT NULL, histogram BLOB NOT NULL,
    PRIMARY KEY (width, start, model_version, status)) WITHOUT ROWID;
CREATE TABLE clients(
    model_version INTEGER NOT NULL, register INTEGER NOT NULL, rank INTEGER NOT NULL,
    last_seen INTEGER NOT NULL, PRIMARY KEY (model_version, register, rank)) WITHOUT ROWID;
CREATE TABLE busiest_hours(
    model_version INTEGER PRIMARY KEY, start INTEGER NOT NULL, requests INTEGER NOT NULL);
CREATE TABLE versions(model_version INTEGER PRIMARY KEY, first_id INTEGER NOT NULL);
"""

ADD = """
INSERT INTO counts VALUES (?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET
    requests = requests + excluded.requests, logged = logged + excluded.logged,
    warned = warned + excluded.warned, last_timestamp = max(last_timestamp, excluded.last_timestamp)
"""
ADD_CLIENT = """
INSERT INTO clients VALUES (?, ?, ?, ?)
ON CONFLICT DO UPDATE SET last_seen = max(last_seen, excluded.last_seen)
"""
MERGE = """
INSERT INTO counts
SELECT :into, start - start % :into, model_version, status, sum(requests), sum(logged), sum(warned),
    max(last_timestamp)
FROM counts WHERE width = :width AND start < :before GROUP BY 2, 3, 4
ON CONFLICT DO UPDATE SET
    requests = requests + excluded.requests, logged = logged + excluded.logged,
    warned = warned + excluded.warned, last_timestamp = max(last_timestamp, excluded.last_timestamp)
"""
# Of hours that are about to be lost in their day. Version -1 stands for all versions together.
NOTE_BUSIEST = """
INSERT INTO busiest_hours
SELECT {version}, start, sum(requests) AS requests
FROM counts WHERE width = :width AND start < :before GROUP BY 1, 2 ORDER BY requests
ON CONFLICT DO UPDATE SET start = excluded.start,
    requests = excluded.requests + iif(start = excluded.start, requests, 0)
    WHERE excluded.requests > requests OR start = excluded.start
"""
ALL_VERSIONS = -1
# A mark that a greater one of the same register has followed can never again be the greatest.
FORGET_SURPASSED = """
DELETE FROM clients WHERE EXISTS (
    SELECT 1 FROM clients AS greater
    WHERE greater.model_version = clients.model_version AND greater.register = clients.register
        AND greater.rank > clients.rank AND greater.last_seen >= clients.last_seen)
"""

# What an older version of this table layout counted only in all is counted once more, by time.
WIDTH_OF = f"""CASE WHEN abs(:now - unixepoch(timestamp)) < {counts.MERGES[0][2]} THEN 1
    WHEN abs(:now - unixepoch(timestamp)) < {counts.MERGES[1][2]} THEN 60 ELSE 3600 END"""
COUNT_HISTORY = (
    """
    INSERT INTO counts
    SELECT {width} AS wide, unixepoch(timestamp) - unixepoch(timestamp) % {width}, model_version,
        200, sum(item = 0), count(*), sum(ifnull(warnings, '[]') != '[]'), max(timestamp)
    FROM "{table}" GROUP BY 1, 2, 3
    """,
    """
    INSERT INTO counts
    SELECT {width} AS wide, unixepoch(timestamp) - unixepoch(timestamp) % {width}, model_version,
        status, count(*), count(*), 0, max(timestamp)
    FROM failures GROUP BY 1, 2, 3, 4
    """,
    """
    INSERT INTO versions SELECT model_version, first_id FROM totals
    """,
)
CLIENTS_OF_HISTORY = """
SELECT model_version, client, unixepoch(max(timestamp)) FROM "{table}"
WHERE client IS NOT NULL GROUP BY 1, 2
UNION ALL SELECT 0, client, unixepoch(max(timestamp)) FROM failures
WHERE client IS NOT NULL GROUP BY 1, 2
"""


def migrate(connection: apsw.Connection, table: str) -> None:
    """Make the tables and count what was logged before, once; drop the totals of old."""
    connection.execute(SCHEMA)
    now = {"now": int(clock.unix())}
    for statement in COUNT_HISTORY:
        sql = statement.format(width=WIDTH_OF, table=table)
        connection.execute(sql, now if ":now" in sql else ())
    add_clients(connection, connection.execute(CLIENTS_OF_HISTORY.format(table=table)).fetchall())
    merge(connection, now["now"])
    connection.execute("DROP TABLE totals; DROP TABLE failure_totals")


def add_clients(connection: apsw.Connection, seen: Iterable[tuple[Any, ...]]) -> None:
    """Note that each of these (version, client, unix second) was there."""
    for version, client, second in seen:
        register, rank = counts.register_and_rank(client)
        connection.execute(ADD_CLIENT, (version, register, rank, second))


def merge(connection: apsw.Connection, now: int) -> None:
    """Add buckets that have aged to wider ones, and forget marks of clients that say no more."""
    for width, into, kept in counts.MERGES:
        before = (now - kept) // into * into
        bounds = {"width": width, "into": into, "before": before}
        if into > counts.HOUR:
            for version in ("model_version", ALL_VERSIONS):
                connection.execute(
                    NOTE_BUSIEST.format(version=version), {"width": width, "before": before}
                )
        connection.execute(MERGE, bounds)
        connection.execute("DELETE FROM counts WHERE width = ? AND start < ?", (width, before))
        _merge_durations(connection, width, into, before)
    connection.execute(FORGET_SURPASSED)


def add_timings(connection: apsw.Connection, timings: Sequence[Timing], now: int) -> None:
    """Add response times to this second, and count the answers that could not be logged."""
    times: dict[tuple[int, int, bool], list[float]] = defaultdict(list)
    for version, status, seconds, logged in timings:
        times[version, status, logged].append(seconds)
    for (version, status, logged), measured in times.items():
        key = (counts.SECOND, now, version, status)
        _add_durations(connection, key, sum(measured), counts.histogram(measured))
        if not logged:
            connection.execute(ADD, (*key, len(measured), 0, 0, ""))


def _add_durations(
    connection: apsw.Connection,
    key: tuple[int, int, int, int],
    seconds: float,
    histogram: np.ndarray,
) -> None:
    there = connection.execute(
        "SELECT seconds, histogram FROM durations "
        "WHERE width = ? AND start = ? AND model_version = ? AND status = ?",
        key,
    ).fetchone()
    if there:
        seconds += there[0]
        histogram = histogram + counts.unpack([there[1]])[0]
    connection.execute(
        "REPLACE INTO durations VALUES (?, ?, ?, ?, ?, ?)",
        (*key, seconds, counts.pack(histogram)),
    )


def _merge_durations(connection: apsw.Connection, width: int, into: int, before: int) -> None:
    aged: dict[tuple[int, int, int, int], list[tuple[float, bytes]]] = defaultdict(list)
    rows: list[Any] = connection.execute(
        "DELETE FROM durations WHERE width = ? AND start < ? "
        "RETURNING start, model_version, status, seconds, histogram",
        (width, before),
    ).fetchall()
    for start, version, status, seconds, histogram in rows:
        aged[into, start - start % into, version, status].append((seconds, histogram))
    for key, parts in aged.items():
        histograms = counts.unpack([histogram for _, histogram in parts])
        seconds = sum(seconds for seconds, _ in parts)
        _add_durations(connection, key, seconds, histograms.sum(axis=0, dtype="int64"))


class Counter:
    """Adds to the counts what one `append` logs. Not thread-safe: used under the log's lock.

    It remembers what it need not write again; after a transaction that failed, `forget`.
    """

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self._merge_at = 0
        self.forget()

    def forget(self) -> None:
        """Trust nothing that was written: it may have been rolled back."""
        self._versions: set[int] = set()
        self._hour = ""
        self._seen: dict[tuple[int, str], int] = {}

    def add(
        self,
        submissions: Sequence[Submission],
        first_id: int,
        resent: Sequence[int],
        failures: Sequence[Failure],
        timings: Sequence[Timing],
    ) -> None:
        """Count new submissions (their rows got ids from `first_id` on) and all the rest.

        `resent` holds the model version of each submission answered with an earlier one's rows.
        """
        now = int(clock.unix())
        counted: dict[tuple[str, int, int], list[int]] = {}
        clients: set[tuple[int, str]] = set()
        self._count_answers(submissions, first_id, counted, clients)
        for failure in failures:
            key = failure.timestamp, failure.model_version, failure.status
            count = counted.setdefault(key, [0, 0, 0])
            count[0] += 1
            count[1] += 1
            if failure.client is not None:
                clients.add((failure.model_version, failure.client))

        for (stamp, version, status), count in counted.items():
            second = counts.unix_second(stamp)
            width = counts.width_at(now - second)
            self._connection.execute(
                ADD, (width, second - second % width, version, status, *count, stamp)
            )
        for version in resent:
            self._connection.execute(ADD, (counts.SECOND, now, version, 200, 1, 0, 0, ""))
        if clients:
            self._add_clients(clients, now)
        if timings:
            add_timings(self._connection, timings, now)
        if now >= self._merge_at:
            merge(self._connection, now)
            self._merge_at = now + counts.MINUTE

    def _count_answers(
        self,
        submissions: Sequence[Submission],
        first_id: int,
        counted: dict[tuple[str, int, int], list[int]],
        clients: set[tuple[int, str]],
    ) -> None:
        stamp, version, count = "", 0, [0, 0, 0]
        for submission in submissions:
            rows = submission.rows
            first = rows[0]
            # The rows of a group share one text object: most of the time nothing is compared.
            if first.timestamp is not stamp or first.model_version != version:
                stamp, version = first.timestamp, first.model_version
                count = counted.setdefault((stamp, version, 200), [0, 0, 0])
                self._note_first(version, stamp, first_id)
            count[0] += 1
            count[1] += len(rows)
            first_id += len(rows)
            for row in rows:
                if row.warnings is not None and row.warnings != "[]":
                    count[2] += 1
            if first.client is not None:
                clients.add((version, first.client))

    def _note_first(self, version: int, stamp: str, number: int) -> None:
        """Note where the rows of an hour and of a version begin, so that reading can stop there."""
        if stamp[:13] > self._hour:
            self._hour = stamp[:13]
            self._connection.execute(
                "INSERT OR IGNORE INTO hours VALUES (?, ?)", (self._hour, number)
            )
        if version not in self._versions:
            self._versions.add(version)
            self._connection.execute(
                "INSERT OR IGNORE INTO versions VALUES (?, ?)", (version, number)
            )

    def _add_clients(self, clients: set[tuple[int, str]], now: int) -> None:
        if len(self._seen) > 2 * counts.REGISTERS:
            self._seen.clear()
        new = [(*one, now) for one in clients if self._seen.get(one) != now]
        add_clients(self._connection, new)
        for version, client, _ in new:
            self._seen[version, client] = now

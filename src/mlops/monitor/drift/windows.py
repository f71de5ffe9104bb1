"""Windows of live traffic, as they are kept: counts by bundle and hour, beside the rows.

A follower reads the rows after the last one that was counted, counts them without holding any lock,
and writes counts and the new last id in one transaction, if nobody else has done it meanwhile. So
each row is counted once, whoever is killed when and however many follow; and a request that is
being answered pays nothing but a share of a processor, some microseconds a row.

Ids rise in the order in which rows are committed, so none comes late behind the last one.
"""

from __future__ import annotations

import datetime
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

from mlops.database import connect, transaction
from mlops.monitor.drift.profile import Counts, Profile

SCHEMA = """
CREATE TABLE drift_windows(
    bundle TEXT NOT NULL, start INTEGER NOT NULL, rows INTEGER NOT NULL, counts BLOB NOT NULL,
    PRIMARY KEY (bundle, start)) WITHOUT ROWID;
CREATE TABLE drift_counted(
    only INTEGER PRIMARY KEY CHECK (only = 1), last_id INTEGER NOT NULL);
INSERT INTO drift_counted VALUES (1, 0);
"""
HOUR = 3600
PAGE_ROWS = 5_000
KEPT_SECONDS = 400 * 24 * HOUR

Rows = Sequence[tuple[str, Any]]
Count = Callable[[Rows], Counts]
"""Counts rows: (inputs as JSON text, prediction)."""


class Windows:
    """The counted windows of one log. For one thread at a time; close it."""

    def __init__(self, path: Path, table: str) -> None:
        """Open those in the database at `path`, which a `PredictionLog` has made.

        Raises `apsw.Error`.
        """
        self._connection = connect(path, synchronous="NORMAL")
        self._rows_after = f"""SELECT id, timestamp, inputs, prediction, bundle FROM "{table}"
            WHERE id > ? ORDER BY id LIMIT {PAGE_ROWS}"""  # noqa: S608  a declared name

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    def follow(self, of_bundle: Callable[[str], tuple[Profile, Count] | None]) -> int:
        """Count the next page of rows; return how many there were, 0 when all are counted.

        `of_bundle` gives the profile of a bundle and what counts rows by it; None for a bundle
        that has none: its rows are passed over. Raises `apsw.Error`.
        """
        [(before,)] = self._connection.execute("SELECT last_id FROM drift_counted")
        page: list[Any] = self._connection.execute(self._rows_after, (before,)).fetchall()
        if not page:
            return 0
        parts: dict[tuple[str, str], list[tuple[str, Any]]] = defaultdict(list)
        for _, timestamp, inputs, prediction, bundle in page:
            parts[bundle, timestamp[:13]].append((inputs, prediction))
        counted = []
        for (bundle, hour), rows in parts.items():
            if known := of_bundle(bundle):
                profile, count = known
                counted.append((bundle, _unix(hour), profile, count(rows)))
        with transaction(self._connection):
            self._connection.execute(
                "UPDATE drift_counted SET last_id = ? WHERE last_id = ?", (page[-1][0], before)
            )
            if self._connection.changes():  # else somebody else has counted them
                for bundle, start, profile, counts in counted:
                    self._add(bundle, start, profile, counts)
        return len(page)

    def read(self, bundle: str, profile: Profile, since: float) -> Counts:
        """Return what was counted for a bundle in the hours that end after `since` (unix seconds).

        Raises `apsw.Error`, and `DataError` if it was counted by another profile.
        """
        total = profile.nothing()
        sql = "SELECT rows, counts FROM drift_windows WHERE bundle = ? AND start > ?"
        for rows, packed in self._connection.execute(sql, (bundle, int(since) - HOUR)):
            total += profile.unpack(rows, packed)
        return total

    def counted_to(self) -> int:
        """Return the id of the last row that was counted."""
        [(last_id,)] = self._connection.execute("SELECT last_id FROM drift_counted")
        return int(last_id)

    def _add(self, bundle: str, start: int, profile: Profile, counts: Counts) -> None:
        there = self._connection.execute(
            "SELECT rows, counts FROM drift_windows WHERE bundle = ? AND start = ?", (bundle, start)
        ).fetchone()
        if there:
            counts += profile.unpack(*there)
        else:  # a new hour: time to forget the oldest
            self._connection.execute(
                "DELETE FROM drift_windows WHERE start < ?", (start - KEPT_SECONDS,)
            )
        self._connection.execute(
            "REPLACE INTO drift_windows VALUES (?, ?, ?, ?)",
            (bundle, start, counts.rows, counts.pack()),
        )


def _unix(hour: str) -> int:
    """Return the unix second at which an hour like "2026-11-25T17" begins."""
    return int(datetime.datetime.fromisoformat(f"{hour}:00+00:00").timestamp())

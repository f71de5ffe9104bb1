"""Windows of live traffic, as they are kept: counts by bundle and hour, beside the rows.

A follower reads the rows after the last one that was counted, counts them without holding any lock,
and writes counts and the new last id in one transaction, if nobody else has done it meanwhile. So
each row is counted once, whoever is killed when and however many follow; and a request that is
being answered pays nothing but a share of a processor, some microseconds a row. Whoever answers in
the same process waits for the interpreter's lock meanwhile: so a page is read in small parts.

Ids rise in the order in which rows are committed, so none comes late behind the last one.
"""

from __future__ import annotations

import datetime
import itertools
import operator
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlops.database import Database, connect, transaction
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
PAGE_ROWS, PART_ROWS = 5_000, 500
KEPT_SECONDS = 400 * 24 * HOUR
BUNDLE_AND_HOUR = operator.itemgetter(3, 4)
"""Of a row that was read: id, inputs, prediction, bundle, hour."""

Read = Callable[[Sequence[str], Sequence[Any]], np.ndarray]
"""Makes of rows' inputs, as JSON text, and predictions the columns that a profile counts."""


class Windows(Database):
    """The counted windows of one log. For one thread at a time; close it."""

    def __init__(self, path: Path, table: str) -> None:
        """Open those in the database at `path`, which a `PredictionLog` has made.

        Raises `apsw.Error`.
        """
        self._database = connect(path, synchronous="NORMAL")
        self._rows_after = f"""
            SELECT id, inputs, prediction, bundle, substr(timestamp, 1, 13) FROM "{table}"
            WHERE id > ? ORDER BY id LIMIT {PART_ROWS}"""  # noqa: S608  a declared name

    def follow(
        self, of_bundle: Callable[[str], tuple[Profile, Read] | None], *, rest: float = 0.0
    ) -> int:
        """Count the next page of rows; return how many there were, 0 when all are counted.

        `of_bundle` gives the profile of a bundle and what reads rows for it; None for a bundle
        that has none: its rows are passed over. After each part of a page it rests for so many
        seconds, for others to have their turn. Raises `apsw.Error`.
        """
        [(before,)] = self._database.execute("SELECT last_id FROM drift_counted")
        read: dict[tuple[str, str], list[np.ndarray]] = defaultdict(list)
        profiles: dict[str, Profile] = {}
        number, last = 0, before
        while number < PAGE_ROWS:
            rows: list[Any] = self._database.execute(self._rows_after, (last,)).fetchall()
            if not rows:
                break
            number, last = number + len(rows), rows[-1][0]
            rows.sort(key=BUNDLE_AND_HOUR)
            for (bundle, hour), part in itertools.groupby(rows, BUNDLE_AND_HOUR):
                if known := of_bundle(bundle):
                    profiles[bundle], reader = known
                    _, inputs, predictions, *_ = zip(*part, strict=True)
                    read[bundle, hour].append(reader(inputs, predictions))
            time.sleep(rest)
        if not number:
            return 0
        counted = [
            (bundle, _unix(hour), profiles[bundle], profiles[bundle].count(np.concatenate(parts)))
            for (bundle, hour), parts in read.items()
        ]
        with transaction(self._database):
            self._database.execute(
                "UPDATE drift_counted SET last_id = ? WHERE last_id = ?", (last, before)
            )
            if self._database.changes():  # else somebody else has counted them
                for bundle, start, profile, counts in counted:
                    self._add(bundle, start, profile, counts)
        return number

    def read(self, bundle: str, profile: Profile, since: float) -> Counts:
        """Return what was counted for a bundle in the hours that end after `since` (unix seconds).

        Raises `apsw.Error`, and `DataError` if it was counted by another profile.
        """
        total = profile.nothing()
        sql = "SELECT rows, counts FROM drift_windows WHERE bundle = ? AND start > ?"
        for rows, packed in self._database.execute(sql, (bundle, int(since) - HOUR)):
            total += profile.unpack(rows, packed)
        return total

    def counted_to(self) -> int:
        """Return the id of the last row that was counted."""
        [(last_id,)] = self._database.execute("SELECT last_id FROM drift_counted")
        return int(last_id)

    def _add(self, bundle: str, start: int, profile: Profile, counts: Counts) -> None:
        there = self._database.execute(
            "SELECT rows, counts FROM drift_windows WHERE bundle = ? AND start = ?", (bundle, start)
        ).fetchone()
        if there:
            counts += profile.unpack(*there)
        else:  # a new hour: time to forget the oldest
            self._database.execute(
                "DELETE FROM drift_windows WHERE start < ?", (start - KEPT_SECONDS,)
            )
        self._database.execute(
            "REPLACE INTO drift_windows VALUES (?, ?, ?, ?)",
            (bundle, start, counts.rows, counts.pack()),
        )


def _unix(hour: str) -> int:
    """Return the unix second at which an hour like "2026-11-25T17" begins."""
    return int(datetime.datetime.fromisoformat(f"{hour}:00+00:00").timestamp())

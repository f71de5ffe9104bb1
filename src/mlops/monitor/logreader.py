"""The reading side of a prediction log: rows, counts, truths and findings, as of the last commit.

Each read takes a connection of its own out of those that are idle, so that it waits neither for a
writer nor for another reader, in whatever thread it is made.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import apsw

from mlops import clock
from mlops.database import connect
from mlops.errors import LogUnavailableError
from mlops.monitor import findings, metrics, search, truths
from mlops.monitor.quality import Actual, Sums
from mlops.records import Failure, Finding, Metrics, Prediction, Totals

PAGE_ROWS = 5_000
FIELDS = Prediction._fields
FAILURE_FIELDS = Failure._fields
FIXES: dict[type[Exception], str] = {
    apsw.FullError: "free some disk space; nothing needs to be restarted",
    apsw.BusyError: "end the process that keeps it locked",
    apsw.CorruptError: "restore it from a copy",
    apsw.NotADBError: "move that file away",
    FileNotFoundError: "put it back, or restart to begin a new one",
}


class LogReader:
    """What the log at `path` holds, its rows in `table`, a name that `PredictionLog` has checked.

    Threads may share it. Everything raises `LogUnavailableError` if the log cannot be read.
    """

    def __init__(self, path: Path, table: str) -> None:
        self.path = path
        self._table = table
        self._select = f'SELECT {", ".join(FIELDS)} FROM "{table}"'  # noqa: S608
        # Idle ones. A thread that finds none opens another: apsw refuses to share one at a time.
        self._readers: list[apsw.Connection] = []

    def rows(
        self, last: int = 20, *, version: int | None = None, since: str | None = None
    ) -> list[Prediction]:
        """Return the `last` predictions, newest last.

        `version` keeps those of one model version; `since`, those with this timestamp or a later.
        """
        # Where to stop looking is known without an index: ids rise, so all rows of a version lie
        # after its first one, and all rows since an hour after the first of it or a later one.
        conditions = "true"
        if version is not None:
            conditions += """ AND model_version = :version
                AND id >= (SELECT first_id FROM versions WHERE model_version = :version)"""
        if since is not None:
            conditions += """ AND timestamp >= :since
                AND id >= (SELECT min(first_id) FROM hours WHERE hour >= substr(:since, 1, 13))"""
        read = self._read(
            f"{self._select} WHERE {conditions} ORDER BY id DESC LIMIT :last",
            {"version": version, "since": since, "last": last},
        )
        return [Prediction(*row) for row in reversed(read)]

    def find(self, prediction_id: str) -> Prediction | None:
        """Return the prediction of that id, or None."""
        read = self._read(f"{self._select} WHERE prediction_id = ?", (prediction_id,))
        return Prediction(*read[0]) if read else None

    def find_all(self, prediction_ids: Sequence[str]) -> dict[str, Prediction]:
        """Return the predictions that are there among those of these ids, by id."""
        read = self._read(
            f"{self._select} WHERE prediction_id IN (SELECT value FROM json_each(?))",  # noqa: S608
            (json.dumps(prediction_ids),),
        )
        found = (Prediction(*row) for row in read)
        return {row.prediction_id: row for row in found}

    def failures(self, last: int = 20) -> list[Failure]:
        """Return the `last` failed requests, newest last."""
        read = self._read(
            f"SELECT {', '.join(FAILURE_FIELDS)} FROM failures ORDER BY id DESC LIMIT ?",  # noqa: S608
            (last,),
        )
        return [Failure(*row) for row in reversed(read)]

    def pages(
        self,
        since: str | None = None,
        until: str | None = None,
        *,
        advance: Callable[[float], None] = lambda share: None,
    ) -> Iterator[list[Prediction]]:
        """Yield the predictions from `since` on and before `until`, in order of id, in pages.

        Each page is read on its own, and what is logged meanwhile is left out. `advance` is told
        what share is done.
        """
        [(first, last)] = self._read(
            f"""SELECT ifnull(min(id), 1) - 1, ifnull(max(id), 0) FROM "{self._table}" """  # noqa: S608
        )
        if since is not None:
            known = "SELECT min(first_id) - 1 FROM hours WHERE hour >= substr(?, 1, 13)"
            [(start,)] = self._read(known, (since,))
            first = max(first, last if start is None else start)
        for start in range(first, last, PAGE_ROWS):
            read = self._read(
                f"{self._select} WHERE id > ? AND id <= ? "
                "AND timestamp >= ? AND timestamp < ? ORDER BY id",
                (start, min(start + PAGE_ROWS, last), since or "", until or "~"),
            )
            if read:
                yield [Prediction(*row) for row in read]
            advance(min(1, (start + PAGE_ROWS - first) / (last - first)))

    def truths(self, since: str | None = None) -> Iterator[tuple[str, float | str]]:
        """Yield the inputs (JSON) and the actual value of each prediction whose truth has come.

        In order of id, of predictions from `since` on.
        """
        for page in self.pages(since):
            ids = json.dumps([row.prediction_id for row in page])
            read = self._read(
                """SELECT prediction_id, actual FROM truths
                WHERE prediction_id IN (SELECT value FROM json_each(?))""",
                (ids,),
            )
            actual = dict(read)
            for row in page:
                if row.prediction_id in actual:
                    yield row.inputs, actual[row.prediction_id]

    def search(self, query: search.Query) -> search.Found:
        """Return the newest predictions that fit, of a bounded stretch of the log."""
        with self._reading() as connection:
            return search.search(connection, self._table, query)

    def span(self, version: int) -> tuple[str, str] | None:
        """Return when a version made its first and its last prediction, or None if it made none.

        As it was counted, so rows are not looked through and may have been pruned. Of a first row
        that was, the hour is known (the day, if that is more than 35 days ago).
        """
        [(first, since, last)] = self._read(
            f"""SELECT (SELECT timestamp FROM {self._table} WHERE id =
                    (SELECT first_id FROM versions WHERE model_version = :version)),
                min(start), max(last_timestamp)
            FROM counts WHERE model_version = :version AND status = 200 AND logged""",  # noqa: S608
            {"version": version},
        )
        return (first or clock.iso(since), last) if last else None

    def totals(self) -> Totals:
        """Return the totals as of the last commit, in the time of a few lookups."""
        with self._reading() as connection:
            return metrics.totals(connection)

    def metrics(self, now: float | None = None) -> Metrics:
        """Return the metrics as of the last commit; `now` in unix seconds, unless it is now."""
        with self._reading() as connection:
            connection.execute("BEGIN")  # all of it from one state
            try:
                return metrics.read(connection, now)
            finally:
                connection.execute("COMMIT")

    def traffic(self, seconds: int, now: float) -> dict[str, Any]:
        """Return the traffic of the last `seconds` before `now`, as of the last commit."""
        with self._reading() as connection:
            return metrics.traffic(connection, seconds, now)

    def minutes(self) -> list[dict[str, Any]]:
        """Return the traffic of each minute of the last hour: see `metrics.minutes`."""
        with self._reading() as connection:
            return metrics.minutes(connection)

    def predictions(self, since: int, until: int) -> int:
        """Return how many predictions were made in that time, as they were counted."""
        [(number,)] = self._read(
            """SELECT ifnull(sum(logged), 0) FROM counts
            WHERE status = 200 AND start >= ? AND start < ?""",
            (since, until),
        )
        return int(number)

    def quality(self, since: int, until: int, step: int = 3600) -> list[Sums]:
        """Return the sums of quality of the hours from `since` on and before `until`.

        In unix seconds; an hour is that of the prediction, however late its truth came. `step`
        seconds are added up to one.
        """
        with self._reading() as connection:
            return truths.read(connection, since, until, step)

    def newest_quality(self, version: int, of_slice: str, number: int) -> list[Sums]:
        """Return the newest sums of quality of a version in a slice, at most so many, by time."""
        with self._reading() as connection:
            return truths.newest(connection, version, of_slice, number)

    def known_truths(self, prediction_ids: Sequence[str]) -> dict[str, Actual]:
        """Return the truths that are known of these predictions, by id."""
        with self._reading() as connection:
            return truths.known(connection, prediction_ids)

    def truths_of(
        self, version: int, since: str, received: str, limit: int = 2_000
    ) -> list[tuple[Prediction, Actual, str]]:
        """Return predictions of a version, each with its truth and when that came, by that moment.

        Those made from `since` on whose truth came at `received` or later, the first so many. What
        it takes depends on how many truths there are, not on how many predictions.
        """
        # Ids begin with their time. CROSS: all truths since are gone through, not all predictions.
        first = f"{int(1000 * clock.seconds_of(since)):012x}"
        read = self._read(
            f"""SELECT {", ".join(FIELDS)}, actual, received_utc
            FROM truths CROSS JOIN "{self._table}" USING (prediction_id)
            WHERE prediction_id >= :first AND received_utc >= :received
                AND model_version = :version AND timestamp >= :since
            ORDER BY received_utc, prediction_id LIMIT :limit""",  # noqa: S608
            {
                "first": f"{first[:8]}-{first[8:]}",
                "received": received,
                "version": version,
                "since": since,
                "limit": limit,
            },
        )
        return [(Prediction(*row[:-2]), row[-2], row[-1]) for row in read]

    def findings(self, kind: str | None = None) -> list[Finding]:
        """Return what the last look of each monitor found, or of the one of that `kind`."""
        with self._reading() as connection:
            return findings.latest(connection, kind)

    def _read(self, sql: str, bindings: apsw.Bindings = ()) -> list[tuple[Any, ...]]:
        with self._reading() as reader:
            return reader.execute(sql, bindings).fetchall()

    @contextlib.contextmanager
    def _reading(self) -> Iterator[apsw.Connection]:
        """Lend a connection for reading. Raises `LogUnavailableError` for what fails with it."""
        try:
            try:
                reader = self._readers.pop()
            except IndexError:
                reader = connect(self.path, read_only=True)
            yield reader
        except apsw.Error as error:
            raise self._unavailable(error) from error
        self._readers.append(reader)

    def _unavailable(self, error: apsw.Error | OSError) -> LogUnavailableError:
        return LogUnavailableError(
            f"the prediction log {self.path} cannot be used: {type(error).__name__}: {error}",
            FIXES.get(type(error), "make its folder readable and writable for this user"),
        )

"""The prediction log: what was asked and answered, and what was refused.

One SQLite database per use case, `<folder>/predictions.db`, is the truth; the text file beside it
follows (`logfile.py`). The server collects all requests that are waiting and hands them over
together, so that one synced commit pays for many:

    append   one transaction: rows, refused requests, counts
    sync     waits until the disk has what was appended, if power cuts matter
    follow   then, when the answers have gone out, the text file gets its lines
    metrics  read from the counts (`buckets.py`), never from rows: right after a restart, and with
             several servers
    rows, find, failures, totals   read on connections of their own (`logreader.py`)
    attach   the actual values of predictions, when they arrive (`truths.py`)

Nothing is answered that is not in the log. When the disk is full, `append` raises, `failed` says
why, and the first `append` or `probe` that succeeds clears it; nothing needs to be reopened.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import re
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import apsw

from mlops import clock
from mlops.database import (
    BUSY_TIMEOUT_MS,
    Migration,
    connect,
    insert,
    insert_columns,
    migrate,
    transaction,
)
from mlops.errors import (
    DataError,
    IdempotencyConflictError,
    LogBusyError,
    LogUnavailableError,
    UsageError,
)
from mlops.monitor import buckets, findings, pruning, truths
from mlops.monitor.checkpoints import Checkpoints
from mlops.monitor.disk import Disk
from mlops.monitor.drift import windows
from mlops.monitor.logfile import LogFile
from mlops.monitor.logreader import FAILURE_FIELDS, FIELDS, LogReader
from mlops.monitor.quality import Actual
from mlops.records import (
    Attached,
    Failure,
    Finding,
    Prediction,
    Submission,
    Timing,
    from_columns,
)

if TYPE_CHECKING:
    from mlops.settings import Durability

# A column is named like the field it holds; `id`, the last field, is given by the database.
COLUMNS = (*FIELDS[:-1], "idempotency_key", "item")

FAILURES = f"failures({', '.join(FAILURE_FIELDS)})"

# `prediction` has no type, so that it stays what it was: 4.0 does not become 4, nor "4" a number.
# A prediction_id should begin with the time, as UUIDv7 does: it then goes to the end of its index.
# Random ones each change another page, and `append` takes twice as long.
SCHEMA = """
CREATE TABLE "{table}"(
    id INTEGER PRIMARY KEY AUTOINCREMENT, timestamp TEXT NOT NULL, inputs TEXT NOT NULL,
    prediction NOT NULL, prediction_id TEXT NOT NULL, model_version INTEGER NOT NULL,
    bundle TEXT NOT NULL, probabilities TEXT, warnings TEXT, client TEXT,
    idempotency_key TEXT, item INTEGER NOT NULL);
CREATE UNIQUE INDEX {table}_prediction_id ON "{table}"(prediction_id);
CREATE UNIQUE INDEX {table}_idempotency_key ON "{table}"(idempotency_key, item)
    WHERE idempotency_key IS NOT NULL;
CREATE TABLE totals(
    model_version INTEGER PRIMARY KEY, predictions INTEGER NOT NULL, warned INTEGER NOT NULL,
    last_timestamp TEXT NOT NULL, first_id INTEGER NOT NULL);
CREATE TABLE hours(hour TEXT PRIMARY KEY, first_id INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE failures(
    id INTEGER PRIMARY KEY AUTOINCREMENT, timestamp TEXT NOT NULL, path TEXT NOT NULL,
    status INTEGER NOT NULL, detail TEXT NOT NULL, body TEXT NOT NULL, client TEXT);
CREATE TABLE failure_totals(
    status INTEGER PRIMARY KEY, failures INTEGER NOT NULL, last_timestamp TEXT NOT NULL);
CREATE TABLE probe(id INTEGER PRIMARY KEY, probed_utc TEXT NOT NULL, room BLOB);
"""
TRUTHS_PER_COMMIT = 1_000
BUSY_SLEEP_SECONDS = 0.0005
IMPATIENT_SLEEP_SECONDS = 0.00005
IMPATIENT_TRIES = 5
SECONDS_TO_FOLLOW = 0.5
Answer = tuple[Prediction, ...] | IdempotencyConflictError


class PredictionLog(LogReader):
    """The log in `folder`, its rows in `table`. Threads and processes may share it.

    `failed` is the reason why the last write failed, `file_behind` why the text file lacks rows;
    both are None when all is well.

    A text file of `largest_file` bytes is full, and the newest `keep_files` of those stay; 0 sets
    no limit.

    Raises `UsageError` for a table name that is not lower-case letters, digits and underscores,
    `DataError` if the folder holds the log of another table or of a newer version, and
    `LogUnavailableError` if the database cannot be opened. A text file that cannot be written is
    no error, here and later: it is completed when it can be.
    """

    def __init__(
        self,
        folder: Path,
        table: str,
        durability: Durability,
        *,
        largest_file: int = 0,
        keep_files: int = 0,
    ) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", table):
            raise UsageError(f"{table!r} cannot name a table", "use a-z, 0-9 and _, a letter first")
        super().__init__(folder / "predictions.db", table)
        self.failed: str | None = None
        self.file_behind: str | None = None
        self._lock = threading.Lock()
        self._durable = durability == "power"
        self._name = str(self.path)
        self._patient = True
        self._closed = False
        self._checkpoints = Checkpoints(self.path)
        try:
            # Commits never sync, `sync` does: then one wait for the disk serves many commits, and
            # the next commits are made meanwhile.
            self._writer = connect(self.path, synchronous="NORMAL")
            self._inode = self.path.stat().st_ino
            self._writer.set_busy_handler(self._on_busy)
            migrate(self._writer, _migrations(table))
            self._disk = Disk(f"{self._name}-wal", int(str(self._writer.pragma("page_size"))))
            self._writer.set_wal_hook(self._on_commit)
        except (apsw.Error, OSError) as error:
            raise self._unavailable(error) from error
        if not self._writer.table_exists("main", table):
            raise DataError(f"{self.path} holds no table {table}", "give each log its own folder")
        self._counter = buckets.Counter(self._writer)
        self._file = LogFile(
            folder / "predictions.log", self._rows_after, largest=largest_file, keep=keep_files
        )
        self._unwritten: list[Prediction] = []
        places = ", ".join("?" * len(COLUMNS))
        self._insert_one = f'INSERT INTO "{table}"({", ".join(COLUMNS)}) VALUES ({places})'  # noqa: S608
        while not self._follow():
            pass

    def append(
        self,
        submissions: Sequence[Submission],
        failures: Sequence[Failure] = (),
        timings: Sequence[Timing] = (),
        *,
        wait: bool = True,
    ) -> list[Answer]:
        """Commit all of these together; return, for each submission, its rows with their ids.

        They survive the death of this process. That they survive a power cut too, `sync` ensures.

        A submission whose key is in the log already, or came earlier in this call, is not logged
        again. With the same inputs in the same order it is answered with the rows of the first;
        with others its place in the result holds an `IdempotencyConflictError`, not raised.
        `timings` are those of answers that have gone out since: they are counted. Without `wait`
        the text file is left to `follow`: no answer waits for it.

        Raises `LogUnavailableError` if the commit failed, and without `wait` `LogBusyError` if
        somebody else is writing; then nothing of the call is in the log.
        """
        if not submissions and not failures and not timings:
            return []
        if not self._lock.acquire(blocking=wait):
            raise LogBusyError(f"the prediction log {self.path} is being written", "wait for it")
        try:
            with self._writing(wait=wait) as connection:
                places, fresh = self._sort_out(submissions)
                rows = self._insert(fresh)
                if failures:
                    insert(connection, FAILURES, failures)
                resent = _resent(places, fresh) if len(fresh) < len(places) else ()
                first_id = rows[0].id if rows else 0
                self._counter.add(fresh, first_id, resent, failures, timings)
            self._unwritten += rows
            if wait:
                self._follow()
            elif self._durable:
                self._disk.begin()
        finally:
            self._lock.release()
        answers: list[Answer] = _handed_out(rows, fresh)
        if len(fresh) == len(places):
            return answers
        return [answers[place] if isinstance(place, int) else place for place in places]

    def attach(self, pairs: Sequence[tuple[str, Actual]], measure: truths.Measure) -> Attached:
        """Attach actual values to prediction ids; return what became of each, when it is durable.

        `measure` says what rows and their truths add to the sums of quality. Each truth counts
        once, whoever sends it how often. Many take several commits, so that predictions need not
        wait for all of them. Raises `LogUnavailableError`: some may be attached, send all again.
        """
        done = Attached(0, 0, (), ())
        for start in range(0, len(pairs), TRUTHS_PER_COMMIT):
            some = pairs[start : start + TRUTHS_PER_COMMIT]
            rows = self.find_all([prediction_id for prediction_id, _ in some])
            with self._lock, self._writing() as connection:
                now = truths.attach(connection, rows, some, measure)
            done = Attached(
                done.attached + now.attached,
                done.already + now.already,
                done.unknown + now.unknown,
                done.conflicts + now.conflicts,
            )
        self.sync()
        return done

    def sync(self) -> None:
        """Wait until the disk has all that was appended, if the log promises that: else return.

        Raises `LogUnavailableError` if the disk cannot take it. What was appended is then in the
        log all the same, but may not outlive a power cut.
        """
        if not self._durable:
            return
        try:
            self._disk.sync()
        except OSError as error:
            raise self._failing(error) from error

    def probe(self) -> None:
        """Make one small durable write. Raises `LogUnavailableError` if that cannot be done.

        After a failure it asks for the room of many rows: that the disk has a last free block
        would not mean that requests can be answered again.
        """
        now = clock.stamp()
        room = 64 * 1024 if self.failed else 0
        with self._lock:
            with self._writing() as connection:
                connection.execute("REPLACE INTO probe VALUES (1, ?, zeroblob(?))", (now, room))
            self.sync()

    def record_findings(self, found: Sequence[Finding]) -> None:
        """Keep what a monitor found as its latest look. Raises `LogUnavailableError`."""
        with self._lock, self._writing() as connection:
            findings.record(connection, found, clock.utc())

    def lines_behind(self) -> int:
        """Return how many rows the text file lacks. It is given a moment to follow a commit."""
        last: int
        [(last,)] = self._read(f'SELECT ifnull(max(id), 0) FROM "{self._table}"')  # noqa: S608
        deadline = time.monotonic() + SECONDS_TO_FOLLOW
        while (behind := last - self._file.last_id()) > 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        return max(0, behind)

    def prune(self, *, before: str | None = None, largest: int | None = None) -> int:
        """Delete some of the oldest rows, refused requests too; return how many: see `pruning.py`.

        Those with a timestamp earlier than `before`, and as long as the database holds more than
        `largest` bytes. Call it until it returns 0: between calls others can write. The newest row
        stays, whatever its age, for the text file is recognised by it. What was counted stays
        counted. Space goes back to the disk, if the database was made by this version or later;
        else new rows use it. In the end full text files go of which no row is left.

        Raises `LogUnavailableError` if it cannot be done.
        """
        with self._lock, self._writing() as connection:
            deleted = pruning.prune(connection, self._table, before, largest)
        more = not deleted
        while more:
            with self._lock, self._writing() as connection:
                more = pruning.give_back(connection)
        if not deleted:
            [(oldest,)] = self._read(f'SELECT ifnull(min(id), 0) FROM "{self._table}"')  # noqa: S608
            try:
                self._file.forget_before(oldest)
            except OSError as error:  # no reason to answer nobody, as a failed write would be
                raise self._unavailable(error) from error
        return deleted

    def close(self) -> None:
        """Move what was written into the main database file, and let go of it. Raises nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            while (self.file_behind or self._unwritten) and not self._follow():
                pass
            self._checkpoints.close()
            while self._readers:
                self._readers.pop().close()
            # A checkpoint that fails costs nothing: the rows are safe beside the main file.
            with contextlib.suppress(apsw.Error):
                self._writer.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
            self._writer.close()
            self._disk.close()
            self._file.close()

    def _sort_out(
        self, submissions: Sequence[Submission]
    ) -> tuple[list[int | Answer], list[Submission]]:
        """Tell what is new; return each submission's answer, or its place among the new ones."""
        if not [key for _, key in submissions if key is not None]:  # a third of all()'s time
            return [*range(len(submissions))], [*submissions]
        places: list[int | Answer] = []
        fresh: list[Submission] = []
        firsts: dict[str, int | tuple[Prediction, ...]] = {}
        for submission in submissions:
            key = submission.key
            if key is None:
                first: int | tuple[Prediction, ...] = len(fresh)
            elif key in firsts:
                first = firsts[key]
            else:
                first = firsts[key] = self._logged_under(key) or len(fresh)
            if first == len(fresh):
                fresh.append(submission)

            rows = fresh[first].rows if isinstance(first, int) else first
            if rows is submission.rows or (
                [row.inputs for row in rows] == [row.inputs for row in submission.rows]
            ):
                places.append(first)
            else:
                places.append(
                    IdempotencyConflictError(
                        f"the idempotency key {key!r} came before, with other inputs",
                        "send the same inputs again, or a new key",
                    )
                )
        return places, fresh

    def _logged_under(self, key: str) -> tuple[Prediction, ...]:
        sql = f"{self._select} WHERE idempotency_key = ? ORDER BY item"
        return tuple(Prediction(*row) for row in self._writer.execute(sql, (key,)))

    def _insert(self, submissions: Sequence[Submission]) -> list[Prediction]:
        """Insert all rows; return them with their ids."""
        if not submissions:
            return []
        each, keys = zip(*submissions, strict=True)
        rows: list[Prediction] = list(itertools.chain.from_iterable(each))
        if len(rows) == 1:  # all that an idle server does: a third of the time
            [row] = rows
            self._writer.execute(self._insert_one, (*row[:-1], *keys, 0))
            return [row._replace(id=self._writer.last_insert_rowid())]
        # Turned into columns and back: no row costs a call of its own.
        columns = list(zip(*rows, strict=True))[:-1]
        items: Sequence[int] = (0,) * len(rows)
        if len(rows) > len(submissions):
            keys = tuple(one.key for one in submissions for _ in one.rows)
            items = [item for one in submissions for item in range(len(one.rows))]
        named = dict(zip(COLUMNS, (*columns, keys, items), strict=True))
        insert_columns(self._writer, self._table, named)
        # We hold the write lock and AUTOINCREMENT counts up by one: the ids end at the last one.
        last = self._writer.last_insert_rowid()
        ids = range(last - len(rows) + 1, last + 1)
        return from_columns((*columns, ids))

    def _rows_after(self, number: int, limit: int) -> list[Prediction]:
        sql = f"{self._select} WHERE id > ? ORDER BY id LIMIT ?"
        return [Prediction(*row) for row in self._writer.execute(sql, (number, limit))]

    def catch_up(self) -> None:
        """Let the text file have what it lacks: other processes may have held its lock."""
        if self.file_behind:
            with self._lock:
                while not self._follow():
                    pass

    def follow(self) -> bool:
        """Write the lines that `append` left; return False if some are still to be written.

        Waits for nobody. What the file lacks after an accident comes with it, a part at a time.
        """
        if not self._lock.acquire(blocking=False):
            return False
        try:
            return self._follow(wait=False)
        finally:
            self._lock.release()

    def _follow(self, *, wait: bool = True) -> bool:
        """Let the text file follow; return False when there is more to write, and it can be."""
        rows, self._unwritten = self._unwritten, []
        try:
            done = self._file.follow(rows, wait=wait)
        except BlockingIOError:
            done = False
        except Exception as error:  # noqa: BLE001  the rows are committed: their answers must go out
            self.file_behind = f"{self._file.path}: {error}"
            return True
        self.file_behind = None if done else f"{self._file.path}: being completed"
        return done

    @contextlib.contextmanager
    def _writing(self, *, wait: bool = True) -> Iterator[apsw.Connection]:
        self._patient = wait
        try:
            with transaction(self._writer):
                # SQLite would go on writing to a deleted file, and everything be lost at its end.
                if os.stat(self._name).st_ino != self._inode:  # noqa: PTH116  each microsecond counts
                    raise FileNotFoundError("another file has taken its place")
                yield self._writer
        except (apsw.Error, OSError) as error:
            if isinstance(error, apsw.BusyError) and not wait:
                raise LogBusyError(str(error)) from error
            self._counter.forget()
            raise self._failing(error) from error
        self.failed = None

    def _on_busy(self, tries: int) -> bool:
        """Whether SQLite shall try again to get the lock that another process holds.

        Its own way is to sleep for up to 100 ms between tries; a commit takes some hundred
        microseconds, so even those who would not wait try for about as long.
        """
        if self._patient:
            time.sleep(BUSY_SLEEP_SECONDS)
            return tries * BUSY_SLEEP_SECONDS < BUSY_TIMEOUT_MS / 1e3
        time.sleep(IMPATIENT_SLEEP_SECONDS)
        return tries < IMPATIENT_TRIES

    def _on_commit(self, _: apsw.Connection, __: str, pages: int) -> int:
        self._disk.pages = pages
        self._checkpoints.committed(pages)
        return apsw.SQLITE_OK

    def _failing(self, error: apsw.Error | OSError) -> LogUnavailableError:
        """Remember why the last write failed, and return it as an error."""
        unavailable = self._unavailable(error)
        self.failed = unavailable.message
        return unavailable


def _migrations(table: str) -> list[Migration]:
    return [
        ("m001_log", [SCHEMA.format(table=table)]),
        ("m002_counts", functools.partial(buckets.migrate, table=table)),
        ("m003_drift_windows", [windows.SCHEMA, findings.SCHEMA]),
        ("m004_truths", [truths.SCHEMA]),
    ]


def _handed_out(rows: Sequence[Prediction], submissions: Sequence[Submission]) -> list[Answer]:
    """Hand each submission its own rows."""
    if len(rows) == len(submissions):  # one each
        return [*zip(rows, strict=True)]
    numbered = iter(rows)
    return [tuple(itertools.islice(numbered, len(one.rows))) for one in submissions]


def _resent(places: Sequence[int | Answer], fresh: Sequence[Submission]) -> list[int]:
    """Return the model version of each submission that was answered with the rows of another."""
    answered = [
        fresh[place].rows[0].model_version if isinstance(place, int) else place[0].model_version
        for place in places
        if not isinstance(place, IdempotencyConflictError)
    ]
    for submission in fresh:
        answered.remove(submission.rows[0].model_version)
    return answered

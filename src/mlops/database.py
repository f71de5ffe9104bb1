"""SQLite as every database of this project is opened: one file, many processes, synced commits.

A database is a file in write-ahead-log mode: readers see the last commit and never wait, writers
take turns for up to ten seconds. Its schema is the sum of named migrations, each applied once.

SQLite before 3.51.3 could corrupt such a file when one connection wrote while another restarted
the write-ahead log (the "WAL-reset" bug), and Python's own `sqlite3` may be linked to one. So
`apsw` is used, which brings its own SQLite (3.54 in its wheel), and `connect` checks the version.
For the same reason, and because POSIX drops a process's locks on a file when *any* of its handles
is closed, never open one of these files with `sqlite3` inside a process that has it open here.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import itertools
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, Self

import apsw

from mlops.errors import DataError, MlopsError

OLDEST_SAFE_SQLITE = (3, 51, 3)
BUSY_TIMEOUT_MS = 10_000
CHECKPOINT_PAGES = 4_000
"""16 MB of log between two checkpoints, each some milliseconds that one commit waits."""
LARGEST_EMPTY_LOG = 32 * 1024 * 1024
"""Bytes of a write-ahead log that stay on the disk to be written over, when it begins anew."""
ROWS_PER_STATEMENT = 250

Migration = tuple[str, Sequence[str] | Callable[[apsw.Connection], object]]


class Database:
    """A database that stays open until it is closed, or its `with` block ends.

    Whoever derives from it opens `_database`.
    """

    _database: apsw.Connection

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._database.close()


def connect(
    path: Path, *, synchronous: Literal["FULL", "NORMAL"] = "FULL", read_only: bool = False
) -> apsw.Connection:
    """Open the database at `path`, and make it and its folder if they are missing.

    With `synchronous` "FULL" a commit survives a power cut; with "NORMAL" it survives the death
    of the process only, and is several times faster. `read_only` makes nothing, not even a file;
    a database in a folder that cannot be written is then taken as it is, unless a writer has it
    open: a change that somebody else makes to it later is not seen.

    Raises `apsw.Error` or `OSError` if it cannot be opened, `MlopsError` if SQLite is too old or
    the file system has no write-ahead log.
    """
    version = apsw.sqlite_lib_version()
    if tuple(int(part) for part in version.split(".")) < OLDEST_SAFE_SQLITE:
        raise MlopsError(
            f"SQLite {version} can corrupt a database that two connections write",
            "install apsw 3.51.3 or newer from its wheel",
        )
    if read_only:
        name, flags = str(path), apsw.SQLITE_OPEN_READONLY
        if not may_be_written(path) and not path.with_name(f"{path.name}-wal").exists():
            # Without this promise SQLite would insist on making its shared memory beside the file.
            name, flags = f"{path.absolute().as_uri()}?immutable=1", flags | apsw.SQLITE_OPEN_URI
        connection = apsw.Connection(name, flags=flags)
        connection.set_busy_timeout(BUSY_TIMEOUT_MS)
        return connection

    new_folders = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    new_file = not path.exists()
    connection = apsw.Connection(str(path))
    connection.set_busy_timeout(BUSY_TIMEOUT_MS)
    if new_file:
        # Before anything else is written: only so can space be given back without a long lock.
        connection.pragma("auto_vacuum", "INCREMENTAL")
    if _use_write_ahead_log(connection) != "wal":
        raise MlopsError(
            f"{path} lies on a file system without shared memory",
            "keep it on a local disk",
        )
    connection.pragma("synchronous", synchronous)
    connection.wal_autocheckpoint(CHECKPOINT_PAGES)
    connection.pragma("journal_size_limit", LARGEST_EMPTY_LOG)
    # A synced file is lost all the same while its name is only in memory.
    for changed in [path.parent] * new_file + [folder.parent for folder in new_folders]:
        _sync_folder(changed)
    return connection


def may_be_written(path: Path) -> bool:
    """Whether the database can be written, or made: not if it is sealed into an image, say."""
    return not path.exists() or os.access(path.parent, os.W_OK)


@contextlib.contextmanager
def transaction(connection: apsw.Connection) -> Iterator[None]:
    """Take the write lock, run the block, commit; on any error roll everything back and raise it.

    The lock is taken first, so what the block reads stays true until it has written. Raises
    `apsw.BusyError` if another process keeps the lock past the busy timeout.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # SQLite may have rolled back by itself already, and the first error is the one to show.
        with contextlib.suppress(apsw.Error):
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        raise


def migrate(connection: apsw.Connection, migrations: Sequence[Migration]) -> None:
    """Apply, in order, those `migrations` that the database does not hold yet: all or none.

    A migration is a name and its SQL statements, or a callable that is given the connection. Its
    name is recorded in the transaction that applies it, so that each runs once even if several
    processes open a new database together. Never rename or edit a published one: append another.

    A connection that is read-only must hold them all already.

    Raises `DataError` if the database holds a migration unknown to this code or lacks one that
    cannot be applied, and whatever a failing step raises, with the step's name as a note.
    """
    if connection.readonly("main"):
        _check_migrated(connection, migrations)
        return
    with transaction(connection):
        connection.execute(
            "CREATE TABLE IF NOT EXISTS schema_migrations"
            "(name TEXT PRIMARY KEY, applied_utc TEXT NOT NULL)"
        )
        applied = _applied(connection, migrations)
        for name, step in migrations:
            if name in applied:
                continue
            try:
                if callable(step):
                    step(connection)
                else:
                    for statement in step:
                        connection.execute(statement)
            except Exception as error:
                error.add_note(f"in migration {name} of {connection.filename}")
                raise
            connection.execute(
                "INSERT INTO schema_migrations VALUES (?, ?)",
                (name, datetime.datetime.now(datetime.UTC).isoformat()),
            )


def _applied(connection: apsw.Connection, migrations: Sequence[Migration]) -> set[str]:
    applied = {name for (name,) in connection.execute("SELECT name FROM schema_migrations")}
    if unknown := applied - {name for name, _ in migrations}:
        raise DataError(
            f"{connection.filename} was made by a newer version: "
            f"it holds {', '.join(sorted(unknown))}",
            "run the version that made it, or newer",
        )
    return applied


def _check_migrated(connection: apsw.Connection, migrations: Sequence[Migration]) -> None:
    applied = _applied(connection, migrations)
    if missing := [name for name, _ in migrations if name not in applied]:
        raise DataError(
            f"{connection.filename} was made by an older version and cannot be written: "
            f"it lacks {', '.join(missing)}",
            "make its folder writable once, or build the image again",
        )


def insert(
    connection: apsw.Connection,
    into: str,
    rows: Sequence[tuple[apsw.SQLiteValue, ...]],
) -> None:
    """Insert `rows`, all of one length, `into` something like "table(column, column)".

    One statement takes many rows. `executemany` lets go of the interpreter's lock once a row, and
    each time another busy thread may keep it for 5 ms: 500 rows a second instead of 100,000.
    """
    for start in range(0, len(rows), ROWS_PER_STATEMENT):
        block = rows[start : start + ROWS_PER_STATEMENT]
        places = f"({','.join('?' * len(block[0]))})"
        connection.execute(
            f"INSERT INTO {into} VALUES {','.join([places] * len(block))}",  # noqa: S608  names only
            tuple(itertools.chain.from_iterable(block)),
        )


def insert_columns(
    connection: apsw.Connection,
    table: str,
    columns: Mapping[str, Sequence[apsw.SQLiteValue]],
) -> None:
    """Insert rows, given as columns of one length, at least 1, each of values of one type.

    A column that holds one value throughout is bound once: that saves a quarter of the time.
    """
    number = len(next(iter(columns.values())))
    same = tuple([one[0] is one[-1] and one.count(one[0]) == number for one in columns.values()])
    shared = [values[0] for values in itertools.compress(columns.values(), same)]
    others = [values for values, one in zip(columns.values(), same, strict=True) if not one]
    width = len(others)
    flat: list[apsw.SQLiteValue] = [None] * (number * width)  # row after row, but filled by column
    for place, values in enumerate(others):
        flat[place::width] = values
    for start in range(0, number, ROWS_PER_STATEMENT):
        rows = min(ROWS_PER_STATEMENT, number - start)
        connection.execute(
            _insertion(table, tuple(columns), same, rows),
            (*shared, *flat[start * width : (start + rows) * width]),
        )


@functools.lru_cache(maxsize=256)
def _insertion(table: str, names: tuple[str, ...], same: tuple[bool, ...], rows: int) -> str:
    """Return the statement: first, in each row, the numbered places of what all rows share."""
    shared = list(itertools.compress(names, same))
    others = [name for name in names if name not in shared]
    places = [f"?{number}" for number in range(1, len(shared) + 1)] + ["?"] * len(others)
    values = ",".join([f"({','.join(places)})"] * rows)
    return f'INSERT INTO "{table}"({",".join(shared + others)}) VALUES {values}'  # noqa: S608


def _use_write_ahead_log(connection: apsw.Connection) -> object:
    deadline = time.monotonic() + BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            return connection.pragma("journal_mode", "wal")
        except apsw.BusyError:
            # When another process makes this change at the same moment, SQLite does not wait.
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

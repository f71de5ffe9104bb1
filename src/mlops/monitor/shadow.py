"""The shadow's own file, `<log folder>/shadow.db`: what a challenger would have answered.

Beside the prediction log, not in it: who writes here never holds the lock that requests wait for.
The log is read on a connection of its own, in pages, row after row behind the last one shadowed.
What is worked out of a page and the number of its last row are one transaction, made only if
nobody else has done that page meanwhile: each logged row is shadowed once, whoever is killed when.

Ids rise in the order in which rows are committed, so none comes late behind the last one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import apsw

from mlops import clock
from mlops.database import Database, Migration, connect, insert, migrate, transaction
from mlops.monitor import findings
from mlops.records import Finding, Prediction

FILE = "shadow.db"
COLUMNS = Prediction._fields
PRUNED_ROWS = 5_000

MIGRATIONS: tuple[Migration, ...] = (
    (
        "m001_shadow",
        (
            # `prediction` has no type, as in the log; it is null where the challenger failed.
            """CREATE TABLE shadowed(
                experiment INTEGER NOT NULL, log_id INTEGER NOT NULL, prediction,
                probabilities TEXT, PRIMARY KEY (experiment, log_id)) WITHOUT ROWID""",
            """CREATE TABLE progress(
                experiment INTEGER PRIMARY KEY, shadowed_id INTEGER NOT NULL,
                judged_id INTEGER NOT NULL, trial TEXT NOT NULL, trouble TEXT NOT NULL)""",
            """CREATE TABLE seen(
                experiment INTEGER NOT NULL, unit TEXT NOT NULL,
                PRIMARY KEY (experiment, unit)) WITHOUT ROWID""",
            """CREATE TABLE totals(
                experiment INTEGER NOT NULL, unit TEXT NOT NULL, arm TEXT NOT NULL,
                weight REAL NOT NULL, loss REAL NOT NULL,
                PRIMARY KEY (experiment, unit, arm)) WITHOUT ROWID""",
        ),
    ),
)


class Shadowed(NamedTuple):
    """What the challenger answers to a logged row, as the log has it; None where it failed."""

    log_id: int
    prediction: float | str | None
    probabilities: str | None


class Progress(NamedTuple):
    """How far an experiment has come: the last row shadowed, the last judged, and its trial.

    `trial` is what the judge keeps; `trouble` says why the challenger cannot answer, or nothing.
    """

    shadowed_id: int
    judged_id: int
    trial: Mapping[str, Any]
    trouble: str = ""


class Settled(NamedTuple):
    """A logged row whose truth has come in time, or will not any more: then `actual` is None."""

    row: Prediction
    actual: float | str | None


class ShadowStore(Database):
    """The shadow of one prediction log. For one thread at a time; close it.

    Raises `apsw.Error` throughout, if one of the databases cannot be used.
    """

    def __init__(self, log: Path, table: str) -> None:
        """Open that beside the database at `log`, which a `PredictionLog` has made."""
        self._log = connect(log, synchronous="NORMAL")
        self._database = connect(log.with_name(FILE), synchronous="NORMAL")
        migrate(self._database, MIGRATIONS)
        self._table = table

    def close(self) -> None:
        self._log.close()
        super().close()

    # -- the log ----------------------------------------------------------------------------------

    def rows_after(self, log_id: int, limit: int) -> list[Prediction]:
        """Return the next page of the log."""
        sql = f'SELECT {", ".join(COLUMNS)} FROM "{self._table}" WHERE id > ? ORDER BY id LIMIT ?'  # noqa: S608
        return [Prediction(*row) for row in self._log.execute(sql, (log_id, limit))]

    def last_id(self) -> int:
        return _last_id(self._log, self._table)

    def settled(
        self,
        after: int,
        until: int,
        limit: int,
        seconds: float,
        compared: Callable[[Prediction], bool],
    ) -> list[Settled]:
        """Return the rows after `after`, up to `until` and up to the first that is not settled.

        A row is settled when its truth has come, or is `seconds` late; a truth that came later than
        that counts as none, whenever one looks. One that is not `compared` waits for none. At most
        `limit` rows.
        """
        columns = ", ".join(f"r.{name}" for name in COLUMNS)
        sql = f"""SELECT t.actual, t.received_utc, {columns} FROM "{self._table}" AS r
            LEFT JOIN truths AS t USING (prediction_id)
            WHERE r.id > ? AND r.id <= ? ORDER BY r.id LIMIT ?"""  # noqa: S608  names only
        now = clock.unix()
        found: list[Settled] = []
        # One row after the other: the first that is not settled is the last that is read.
        for actual, received, *values in self._log.execute(sql, (after, until, limit)):
            row = Prediction(*values)
            late = clock.seconds_of(row.timestamp) + seconds
            if actual is None and now <= late and compared(row):
                break
            in_time = actual is not None and clock.seconds_of(received) <= late
            found.append(Settled(row, actual if in_time else None))
        return found

    def record_findings(self, found: Sequence[Finding]) -> None:
        """Keep findings in the log: a short write there, made seldom."""
        with transaction(self._log):
            findings.record(self._log, found, clock.utc())

    def last_findings(self, kind: str) -> list[Finding]:
        return findings.latest(self._log, kind)

    # -- the shadow -------------------------------------------------------------------------------

    def begin(self, experiment: int, started_utc: str, trial: Mapping[str, Any]) -> Progress:
        """Return how far an experiment has come; one that is new begins where it started."""
        if (there := read_progress(self._database, experiment)) is not None:
            return there
        hour = "(SELECT min(first_id) FROM hours WHERE hour >= substr(:since, 1, 13))"
        sql = f"""SELECT min(id) - 1 FROM "{self._table}"
            WHERE id >= ifnull({hour}, 1) AND timestamp >= :since"""  # noqa: S608  names only
        [(before,)] = self._log.execute(sql, {"since": started_utc})
        start = self.last_id() if before is None else before
        with transaction(self._database):
            self._database.execute(
                "INSERT INTO progress VALUES (?, ?, ?, ?, '') ON CONFLICT DO NOTHING",
                (experiment, start, start, json.dumps(trial, allow_nan=False)),
            )
        there = read_progress(self._database, experiment)
        assert there is not None
        return there

    def keep(
        self,
        experiment: int,
        before: Progress,
        now: Progress,
        *,
        shadowed: Sequence[Shadowed] = (),
        seen: Sequence[str] = (),
        totals: Mapping[tuple[str, str], tuple[float, float]] | None = None,
    ) -> bool:
        """Keep what a page made: False, and nothing is, if somebody has gone on from `before`.

        `shadowed` are the challenger's answers, `seen` clients that came for the first time, and
        `totals` those of clients, by client and arm, that changed.
        """
        trial = json.dumps(now.trial, allow_nan=False)
        with transaction(self._database):
            self._database.execute(
                "UPDATE progress SET shadowed_id = ?, judged_id = ?, trial = ?, trouble = ?"
                " WHERE experiment = ? AND shadowed_id = ? AND judged_id = ?",
                (*now[:2], trial, now.trouble, experiment, *before[:2]),
            )
            if not self._database.changes():
                return False
            insert(self._database, "shadowed", [(experiment, *row) for row in shadowed])
            insert(self._database, "seen", [(experiment, unit) for unit in seen])
            self._database.executemany(
                "INSERT OR REPLACE INTO totals VALUES (?, ?, ?, ?, ?)",
                [(experiment, *key, *value) for key, value in (totals or {}).items()],
            )
        return True

    def shadowed(self, experiment: int, after: int, until: int) -> dict[int, Shadowed]:
        """Return what was answered to the rows after `after` up to `until`, by their ids."""
        sql = """SELECT log_id, prediction, probabilities FROM shadowed
            WHERE experiment = ? AND log_id > ? AND log_id <= ?"""
        found = self._database.execute(sql, (experiment, after, until))
        return {row[0]: Shadowed(*row) for row in found}

    def unseen(self, experiment: int, units: Iterable[str]) -> set[str]:
        """Return those clients that were not seen before."""
        asked = set(units)
        sql = """SELECT unit FROM seen
            WHERE experiment = ? AND unit IN (SELECT value FROM json_each(?))"""
        found = self._database.execute(sql, (experiment, json.dumps(sorted(asked))))
        return asked - {str(unit) for (unit,) in found}

    def totals(
        self, experiment: int, units: Iterable[str]
    ) -> dict[tuple[str, str], tuple[float, float]]:
        """Return the totals of these clients, by client and arm."""
        sql = """SELECT unit, arm, weight, loss FROM totals
            WHERE experiment = ? AND unit IN (SELECT value FROM json_each(?))"""
        found: Any = self._database.execute(sql, (experiment, json.dumps(sorted(set(units)))))
        return {(unit, arm): (weight, loss) for unit, arm, weight, loss in found}

    def prune(self, experiment: int | None) -> int:
        """Forget some of what no longer serves; return how many rows that were.

        What was answered to rows that the log has deleted, and who was who in experiments other
        than the open one: their judgement stays.
        """
        first: Any = self._log.execute(f'SELECT min(id) FROM "{self._table}"').fetchall()  # noqa: S608
        with transaction(self._database):
            gone = 0
            for table, key, where, value in (
                ("shadowed", "experiment, log_id", "log_id < ?", first[0][0] or 0),
                ("seen", "experiment, unit", "experiment != ?", experiment or 0),
                ("totals", "experiment, unit, arm", "experiment != ?", experiment or 0),
            ):
                self._database.execute(
                    f"""DELETE FROM {table} WHERE ({key}) IN
                        (SELECT {key} FROM {table} WHERE {where} LIMIT {PRUNED_ROWS})""",  # noqa: S608
                    (value,),
                )
                gone += self._database.changes()
        return gone


def look(log: Path, table: str, experiment: int) -> tuple[Progress, int] | None:
    """Return how far an experiment has come and how many rows it is behind; None: not begun.

    Makes nothing, and may be called from any process. Raises `apsw.Error`.
    """
    path = log.with_name(FILE)
    if not path.exists():
        return None
    database, rows = connect(path, read_only=True), connect(log, read_only=True)
    try:
        if not database.table_exists("main", "progress"):
            return None  # it is being made
        progress = read_progress(database, experiment)
        return progress and (progress, _last_id(rows, table) - progress.shadowed_id)
    finally:
        database.close()
        rows.close()


def read_progress(database: apsw.Connection, experiment: int) -> Progress | None:
    """Return how far an experiment has come, or None if it has not begun."""
    sql = "SELECT shadowed_id, judged_id, trial, trouble FROM progress WHERE experiment = ?"
    for shadowed, judged, trial, trouble in database.execute(sql, (experiment,)):
        return Progress(int(shadowed), int(judged), json.loads(str(trial)), str(trouble))
    return None


def _last_id(log: apsw.Connection, table: str) -> int:
    [(last,)] = log.execute(f'SELECT ifnull(max(id), 0) FROM "{table}"')  # noqa: S608
    return int(last)

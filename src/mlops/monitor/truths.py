"""Truths: the actual values of predictions, attached once, late, in any order.

A truth and what it adds to the sums of quality are written in one transaction, so sums and truths
agree whatever happens, with any number of processes. A truth that came before is told from one
that contradicts it: the first stays.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import apsw
import numpy as np

from mlops import clock
from mlops.database import insert
from mlops.monitor.quality import COLUMNS, Actual, Key, Sums
from mlops.records import Attached, Conflict, Prediction

# `actual` has no type, like the prediction that it belongs to.
SCHEMA = """
CREATE TABLE truths(
    prediction_id TEXT PRIMARY KEY, actual NOT NULL, received_utc TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE quality(
    hour INTEGER NOT NULL, model_version INTEGER NOT NULL, slice TEXT NOT NULL, band TEXT NOT NULL,
    actual TEXT NOT NULL, predicted TEXT NOT NULL,
    rows REAL NOT NULL, loss REAL NOT NULL, loss2 REAL NOT NULL, absolute REAL NOT NULL,
    y REAL NOT NULL, y2 REAL NOT NULL, y3 REAL NOT NULL, y4 REAL NOT NULL,
    loss_y REAL NOT NULL, loss_y2 REAL NOT NULL,
    PRIMARY KEY (hour, model_version, slice, band, actual, predicted)) WITHOUT ROWID;
"""
ADD = f"""
INSERT INTO quality VALUES ({", ".join("?" * (len(Key._fields) + len(COLUMNS)))})
ON CONFLICT DO UPDATE SET {", ".join(f"{name} = {name} + excluded.{name}" for name in COLUMNS)}
"""  # noqa: S608  names of ours
READ = f"""
SELECT hour - hour % :step AS start, {", ".join(Key._fields[1:])},
    {", ".join(f"sum({name})" for name in COLUMNS)}
FROM quality WHERE hour >= :since AND hour < :until
GROUP BY start, {", ".join(Key._fields[1:])} ORDER BY start
"""  # noqa: S608  names of ours

NEWEST = f"""
SELECT {", ".join((*Key._fields, *COLUMNS))} FROM quality
WHERE model_version = ? AND slice = ? ORDER BY hour DESC LIMIT ?
"""  # noqa: S608  names of ours

Measure = Callable[[Sequence[Prediction], Sequence[Actual]], Sequence[Sums]]


def attach(
    connection: apsw.Connection,
    rows: Mapping[str, Prediction],
    truths: Sequence[tuple[str, Actual]],
    measure: Measure,
) -> Attached:
    """Write those truths that are new, with what they add; say what became of the others.

    `rows` are the logged predictions among them, by id. Within a transaction of the caller's.
    """
    there_already = known(connection, [prediction_id for prediction_id, _ in truths])
    fresh: dict[str, Actual] = {}
    already, unknown, conflicts = 0, [], []
    for prediction_id, actual in truths:
        there = there_already.get(prediction_id, fresh.get(prediction_id))
        if there is not None:
            if there == actual:
                already += 1
            else:
                conflicts.append(Conflict(prediction_id, there, actual))
        elif prediction_id in rows:
            fresh[prediction_id] = actual
        else:
            unknown.append(prediction_id)
    if fresh:
        now = clock.stamp()
        insert(connection, "truths", [(*pair, now) for pair in sorted(fresh.items())])
        added = measure([rows[one] for one in fresh], list(fresh.values()))
        connection.executemany(ADD, [(*key, *values.tolist()) for key, values in added])
    return Attached(len(fresh), already, tuple(unknown), tuple(conflicts))


def forget(connection: apsw.Connection, prediction_ids: Sequence[str]) -> None:
    """Delete the truths of predictions that were deleted. What they added to the sums stays."""
    connection.execute(
        "DELETE FROM truths WHERE prediction_id IN (SELECT value FROM json_each(?))",
        (json.dumps(prediction_ids),),
    )


def read(connection: apsw.Connection, since: int, until: int, step: int) -> list[Sums]:
    """Return the sums of the hours that begin from `since` on and before `until`, by time.

    `step` seconds are added up to one: an hour, or a number of hours. All are unix seconds.
    """
    bindings = {"since": since, "until": until, "step": step}
    return [_sums(row) for row in connection.execute(READ, bindings)]


def newest(connection: apsw.Connection, version: int, of_slice: str, number: int) -> list[Sums]:
    """Return the newest sums of a version in a slice, at most so many, by time."""
    rows = connection.execute(NEWEST, (version, of_slice, number)).fetchall()
    return [_sums(row) for row in reversed(rows)]


def _sums(row: Sequence[Any]) -> Sums:
    width = len(Key._fields)
    return Sums(Key(*row[:width]), np.array(row[width:], dtype=float))


def known(connection: apsw.Connection, prediction_ids: Sequence[str]) -> dict[str, Actual]:
    """Return the truths that are there of these predictions, by id."""
    sql = """SELECT prediction_id, actual FROM truths
        WHERE prediction_id IN (SELECT value FROM json_each(?))"""
    rows: list[Any] = connection.execute(sql, (json.dumps(prediction_ids),)).fetchall()
    return dict(rows)

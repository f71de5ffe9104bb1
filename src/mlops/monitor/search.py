"""Search the log from its newest row backwards, a bounded stretch at a time.

However long the log is, one call examines at most `MOST_EXAMINED` rows and says where it stopped;
with that as `before`, the next call goes on. Bounds of time and version are found by what the log
keeps beside its rows (where an hour and a version begin), not by looking.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import apsw

from mlops.records import Prediction

MOST_EXAMINED = 20_000
"""Some 20 ms. A log of 10^7 rows is searched through in 500 calls, and nobody waits for one."""

ID = Prediction._fields.index("id")
CONDITIONS = """
    (:version IS NULL OR model_version = :version)
    AND (:since IS NULL OR timestamp >= :since) AND (:until IS NULL OR timestamp < :until)
    AND (:told IS NULL OR (actual IS NOT NULL) = :told)
    AND (:warned IS NULL OR (ifnull(warnings, '[]') != '[]') = :warned)
    AND (:low IS NULL OR (typeof(prediction) != 'text' AND prediction >= :low))
    AND (:high IS NULL OR (typeof(prediction) != 'text' AND prediction <= :high))
    AND (:search = '' OR instr(lower(prediction_id || ' ' || inputs || ' ' || prediction || ' ' ||
        ifnull(warnings, '')), lower(:search)))
"""


class Query(NamedTuple):
    """What to find; all that is given must be true of a row.

    `search` is a part of the id, inputs, prediction or warnings, in any case. Timestamps as the log
    writes them: from `since` on, before `until`. `low` and `high` bound a prediction that is a
    number; `told` keeps those whose truth has come, or has not. `before` is the id to begin below:
    where an earlier call stopped.
    """

    search: str = ""
    since: str | None = None
    until: str | None = None
    version: int | None = None
    warned: bool | None = None
    told: bool | None = None
    low: float | None = None
    high: float | None = None
    before: int | None = None
    limit: int = 50


class Found(NamedTuple):
    """The rows, newest first, how many ids were examined, and where to go on; None: at the end.

    `actual` has the truth of each row, None where it has not come.
    """

    rows: list[Prediction]
    actual: list[float | str | None]
    examined: int
    before: int | None


def search(connection: apsw.Connection, table: str, query: Query) -> Found:
    """Return the newest rows of `table` that fit, of those that one call may examine."""
    columns = ", ".join(f"{table}.{name}" for name in Prediction._fields)
    truth = f"(SELECT actual FROM truths WHERE prediction_id = {table}.prediction_id) AS actual"  # noqa: S608
    select = f"SELECT {columns}, {truth} FROM {table}"  # noqa: S608  a constant
    by_id = connection.execute(f"{select} WHERE prediction_id = ?", (query.search.strip(),))
    if there := by_id.fetchall():
        return _found(there, 1, None)
    bounds = query._asdict()
    bounding: list[Any] = connection.execute(
        f"""SELECT
            max(ifnull((SELECT min(id) FROM {table}), 1),
                CASE WHEN :since IS NULL THEN 0 ELSE ifnull(
                    (SELECT min(first_id) FROM hours WHERE hour >= substr(:since, 1, 13)),
                    (SELECT ifnull(max(id), 0) + 1 FROM {table})) END,
                CASE WHEN :version IS NULL THEN 0 ELSE ifnull(
                    (SELECT first_id FROM versions WHERE model_version = :version),
                    (SELECT ifnull(max(id), 0) + 1 FROM {table})) END),
            min(ifnull((SELECT max(id) FROM {table}), 0),
                CASE WHEN :until IS NULL THEN 9e18 ELSE ifnull(
                    (SELECT min(first_id) - 1 FROM hours WHERE hour > substr(:until, 1, 13)), 9e18)
                END,
                ifnull(:before - 1, 9e18))""",  # noqa: S608  a constant
        bounds,
    ).fetchall()
    [(first, top)] = bounding
    bottom = max(first, top - MOST_EXAMINED + 1)
    fitting: list[Any] = connection.execute(
        f"{select} WHERE id BETWEEN :bottom AND :top AND {CONDITIONS} "
        "ORDER BY id DESC LIMIT :limit",
        {**bounds, "bottom": bottom, "top": top},
    ).fetchall()
    reached = fitting[-1][ID] if len(fitting) == query.limit else bottom
    return _found(fitting, max(0, top - reached + 1), reached if reached > first else None)


def _found(selected: list[Any], examined: int, before: int | None) -> Found:
    rows = [Prediction(*row[:-1]) for row in selected]
    return Found(rows, [row[-1] for row in selected], examined, before)

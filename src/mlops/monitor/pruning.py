"""What is too old, or too much, leaves the log: a little at a time, so that nobody waits for long.

What was counted stays counted: only rows, refused requests and truths go.
"""

from __future__ import annotations

import apsw

from mlops.monitor import truths

PRUNED_ROWS = 500
PAGES_GIVEN_BACK = 256


def prune(connection: apsw.Connection, table: str, before: str | None, largest: int | None) -> int:
    """Delete up to `PRUNED_ROWS` of the oldest rows of each kind; return how many were.

    Those with a timestamp earlier than `before`, and as long as the database holds more than
    `largest` bytes. The newest row stays, whatever its age.
    """
    tables = (table, "failures")
    deleted = 0
    if before is not None:
        deleted = sum(_delete_oldest(connection, table, one, before) for one in tables)
    if not deleted and largest is not None and _used_bytes(connection) > largest:
        # Of both tables, that which has the older row.
        oldest = sorted(
            (str(stamp), one)
            for one in tables
            for (stamp,) in connection.execute(
                f'SELECT timestamp FROM "{one}" ORDER BY id LIMIT 1'  # noqa: S608
            ).fetchall()
        )
        for _, one in oldest:
            deleted = deleted or _delete_oldest(connection, table, one, "~")
    return deleted


def give_back(connection: apsw.Connection) -> bool:
    """Shorten the file by some of its free pages; return whether there may be more to give."""
    free = _number(connection, "freelist_count")
    if not free:
        return False
    connection.execute(f"PRAGMA incremental_vacuum({PAGES_GIVEN_BACK})").fetchall()
    return _number(connection, "freelist_count") < free


def _delete_oldest(connection: apsw.Connection, rows: str, table: str, before: str) -> int:
    named = "prediction_id" if table == rows else "NULL"
    deleted = connection.execute(
        f"""DELETE FROM "{table}" WHERE timestamp < ?
            AND id < (SELECT max(id) FROM "{table}")
            AND id IN (SELECT id FROM "{table}" ORDER BY id LIMIT ?)
            RETURNING {named}""",  # noqa: S608
        (before, PRUNED_ROWS),
    ).fetchall()
    if deleted and table == rows:
        truths.forget(connection, [str(prediction_id) for (prediction_id,) in deleted])
    return len(deleted)


def _used_bytes(connection: apsw.Connection) -> int:
    free, pages = _number(connection, "freelist_count"), _number(connection, "page_count")
    return (pages - free) * _number(connection, "page_size")


def _number(connection: apsw.Connection, pragma: str) -> int:
    return int(str(connection.pragma(pragma)))

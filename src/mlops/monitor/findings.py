"""Findings as they are kept: each time a monitor looked, all that it found, in one transaction.

The newest look of a kind is what holds now; older ones are its history, kept for ninety days.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Sequence
from typing import Any

import apsw

from mlops.database import insert
from mlops.records import Finding

SCHEMA = """
CREATE TABLE findings(
    id INTEGER PRIMARY KEY AUTOINCREMENT, at TEXT NOT NULL, kind TEXT NOT NULL,
    subject TEXT NOT NULL, verdict TEXT NOT NULL, says TEXT NOT NULL, numbers TEXT NOT NULL);
CREATE INDEX findings_by_kind ON findings(kind, at);
"""
COLUMNS = "kind, subject, verdict, says, numbers, at"
KEPT = datetime.timedelta(days=90)


def of_version(version: int | None, found: Iterable[Finding]) -> list[Finding]:
    """Return findings that say in their numbers which model version they are about; 0 is none."""
    return [one._replace(numbers={"model_version": version or 0, **one.numbers}) for one in found]


def record(
    connection: apsw.Connection, findings: Sequence[Finding], now: datetime.datetime
) -> None:
    """Add all that a look found at the moment `now` (UTC); call it in a transaction."""
    at = now.isoformat(timespec="microseconds")
    before = (now - KEPT).isoformat(timespec="microseconds")
    rows = [
        (*one[:4], json.dumps(one.numbers, allow_nan=False, ensure_ascii=False), at)
        for one in findings
    ]
    for kind in {one.kind for one in findings}:
        # Of two looks at one moment (a clock can be set) the later one holds.
        connection.execute(
            "DELETE FROM findings WHERE kind = ? AND (at < ? OR at = ?)", (kind, before, at)
        )
    insert(connection, f"findings({COLUMNS})", rows)


def latest(connection: apsw.Connection, kind: str | None = None) -> list[Finding]:
    """Return what the last look of each kind found, or that of one `kind`, in recorded order."""
    return _read(
        connection.execute(
            f"""SELECT {COLUMNS} FROM findings AS one
            WHERE (:kind IS NULL OR kind = :kind)
                AND at = (SELECT max(at) FROM findings WHERE kind = one.kind)
            ORDER BY id""",  # noqa: S608  names only
            {"kind": kind},
        )
    )


def history(connection: apsw.Connection, kind: str, since: str) -> list[Finding]:
    """Return all that the looks of one kind found at `since` or later, oldest first."""
    return _read(
        connection.execute(
            f"SELECT {COLUMNS} FROM findings WHERE kind = ? AND at >= ? ORDER BY id",  # noqa: S608
            (kind, since),
        )
    )


def _read(rows: Iterable[tuple[Any, ...]]) -> list[Finding]:
    return [
        Finding(kind, subject, verdict, says, json.loads(numbers), at)
        for kind, subject, verdict, says, numbers, at in rows
    ]

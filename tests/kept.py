"""What a prediction log holds, read as anybody would: with `sqlite3` and line by line."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from conftest import strict_json

from mlops.monitor.logfile import LogFile


def query(home: Path, sql: str, use_case: str = "housing") -> list[dict[str, Any]]:
    """Run SQL on a use case's log. `{table}` stands for its table."""
    table = f"{use_case}logs"
    with contextlib.closing(sqlite3.connect(home / table / "predictions.db", timeout=10)) as log:
        log.row_factory = sqlite3.Row
        return [dict(row) for row in log.execute(sql.format(table=table))]


def rows(home: Path, use_case: str = "housing") -> list[dict[str, Any]]:
    return query(home, 'SELECT * FROM "{table}" ORDER BY id', use_case)


def lines(home: Path, use_case: str = "housing") -> Iterator[dict[str, Any]]:
    """Yield the lines of the log file, the full ones first; a torn or garbled one is an error.

    A server that runs is given a moment: the file follows when answers have gone out.
    """
    folder = home / f"{use_case}logs"
    [newest] = query(home, 'SELECT ifnull(max(id), 0) AS id FROM "{table}"', use_case)
    file_of_log = LogFile(folder / "predictions.log", lambda *_: ())
    deadline = time.monotonic() + 2
    while file_of_log.last_id() < newest["id"] and time.monotonic() < deadline:
        time.sleep(0.005)
    for file in (*sorted(folder.glob("predictions.log.0*")), folder / "predictions.log"):
        with file.open("rb") as content:
            for line in content:
                assert line.endswith(b"\n"), f"torn: {line[-200:]!r}"
                yield strict_json(line)


def check_whole(home: Path, use_case: str = "housing") -> list[dict[str, Any]]:
    """Check that file and database hold the same rows in the same order, each once; return them."""
    kept = rows(home, use_case)
    assert [row["id"] for row in kept] == list(range(1, len(kept) + 1))
    assert len({row["prediction_id"] for row in kept}) == len(kept)
    for row, line in zip(kept, lines(home, use_case), strict=True):
        assert line["id"] == row["id"]
        assert line["prediction_id"] == row["prediction_id"]
        assert line["inputs"] == json.loads(row["inputs"])
        assert line["prediction"] == row["prediction"]
        assert line["warnings"] == json.loads(row["warnings"] or "[]")
        assert line["model_version"] == row["model_version"]
    return kept


def check_metrics(metrics: dict[str, Any], home: Path, use_case: str = "housing") -> None:
    """Check that what a server counts is what its log holds."""
    [found] = query(
        home,
        "SELECT count(*) AS n, max(timestamp) AS last, "
        "sum(ifnull(warnings, '[]') != '[]') AS warned FROM \"{table}\"",
        use_case,
    )
    refused = query(
        home,
        "SELECT status, count(*) AS n, max(timestamp) AS last FROM failures GROUP BY status",
        use_case,
    )
    versions = query(
        home, 'SELECT model_version, count(*) AS n FROM "{table}" GROUP BY 1', use_case
    )
    assert metrics["total_predictions"] == found["n"]
    assert metrics["predictions_with_warnings"] == (found["warned"] or 0)
    by_version = {str(row["model_version"]): row["n"] for row in versions}
    assert metrics["predictions_by_version"] == by_version
    assert metrics["failed_requests"] == sum(row["n"] for row in refused)
    by_status = {str(row["status"]): row["n"] for row in refused}
    assert metrics["failed_requests_by_status"] == by_status
    last = max([found["last"] or "", *(row["last"] for row in refused)])
    assert metrics["last_updated"] == (last or None)

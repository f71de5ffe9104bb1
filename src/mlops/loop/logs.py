"""Read the prediction log."""

from __future__ import annotations

import contextlib
import datetime
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlops.errors import NotTrainedError, UsageError
from mlops.loop.lineage import shown
from mlops.loop.prediction_log import SECONDS_BETWEEN_STEPS, days_ago, has_log, open_log
from mlops.loop.report import Report, Silent
from mlops.monitor.export import writer_for
from mlops.monitor.log import PredictionLog
from mlops.settings import Settings, read_settings
from mlops.usecases import USE_CASES, find

AGES = {"d": 1.0, "h": 1 / 24, "m": 1 / 1440}
SIZES = {"gb": 1e9, "mb": 1e6, "kb": 1e3}


def logs(
    name: str, *, last: int = 20, failures: bool = False, settings: Settings | None = None
) -> list[dict[str, Any]]:
    """Return the last logged predictions of a use case, or its failed requests, oldest first."""
    settings = settings or read_settings()
    with contextlib.closing(open_existing(name, settings)) as log:
        if failures:
            return [
                {
                    "timestamp": failure.timestamp,
                    "status": failure.status,
                    "path": failure.path,
                    "detail": json.loads(failure.detail)["detail"],
                    "body": failure.body,
                    "client": failure.client,
                    "model_version": failure.model_version or None,
                }
                for failure in log.failures(last)
            ]
        return [
            {
                "id": row.id,
                "timestamp": row.timestamp,  # before the id: the order that readers know
                **shown(row),
                "client": row.client,
            }
            for row in log.rows(last)
        ]


def export(
    name: str | None,
    to: Path,
    *,
    since: str | None = None,
    until: str | None = None,
    settings: Settings | None = None,
    report: Report | None = None,
) -> dict[str, Any]:
    """Write the predictions logged from `since` on and before `until` to a file, whole or not.

    They are those of the first use case that has a log, unless one is named, as of the server's
    paths those at the root are.
    Its ending says the format: `.parquet`, `.csv` or `.jsonl`. A server may go on answering.

    Raises `UsageError` for a moment or an ending that is none, `NotTrainedError` without a log.
    """
    from mlops.build.data import write_whole  # needs pandas, which a server can do without

    settings, report = settings or read_settings(), report or Silent()
    write = writer_for(to)
    if name is None:
        name = next(
            (one for one in USE_CASES if has_log(find(one), settings)), next(iter(USE_CASES))
        )
    bounds = [None if text is None else moment(text) for text in (since, until)]
    with (
        contextlib.closing(open_existing(name, settings)) as log,
        report.steps(name, 100) as advance,
    ):
        done = 0

        def step(share: float) -> None:
            nonlocal done
            while done < 100 * share:
                done += 1
                advance("exporting")

        rows = 0

        def fill(unfinished: Path) -> None:
            nonlocal rows
            rows = write(unfinished, log.pages(*bounds, advance=step), find(name).fields)

        write_whole(to, fill)
    return {"use_case": name, "path": str(to), "rows": rows}


def prune(
    name: str,
    *,
    older_than: str | None = None,
    larger_than: str | None = None,
    settings: Settings | None = None,
) -> dict[str, Any]:
    """Delete logged rows that are older ("90d"), or the oldest of a log that is larger ("2GB").

    In small steps, so that a server goes on answering. What was counted stays counted. Raises
    `UsageError` for an age or a size that is none.
    """
    if older_than is None and larger_than is None:
        raise UsageError(
            "nothing says what to delete", "give --older-than 90d or --larger-than 2GB"
        )
    age = None if older_than is None else _number(older_than, AGES, "an age", "90d")
    size = None if larger_than is None else _number(larger_than, SIZES, "a size", "2GB")
    deleted = 0
    with contextlib.closing(open_existing(name, settings or read_settings())) as log:
        before = None if age is None else days_ago(age)
        largest = None if size is None else int(size)
        while step := log.prune(before=before, largest=largest):
            deleted += step
            time.sleep(SECONDS_BETWEEN_STEPS / 5)  # others want to write too
        return {"use_case": name, "deleted": deleted, "bytes": log.path.stat().st_size}


def open_existing(name: str, settings: Settings) -> PredictionLog:
    """Open the log of a use case. Raises `NotTrainedError` if nothing was ever logged."""
    use_case = find(name)
    if not has_log(use_case, settings):
        raise NotTrainedError(
            f"{name} has answered nothing here yet", f"start it with: mlops up {name}"
        )
    return open_log(use_case, settings)


def moment(text: str) -> str:
    """Return a date or time as the log writes it; without a zone it is UTC."""
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(
            f"{text!r} is no date or time", "write, say, 2026-11-01 or 2026-11-01T12:30"
        ) from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)
    return moment.astimezone(datetime.UTC).isoformat(timespec="microseconds")


def _number(text: str, units: Mapping[str, float], what: str, example: str) -> float:
    for unit, factor in units.items():
        with contextlib.suppress(ValueError):
            if text.lower().endswith(unit) and 0 < (number := float(text[: -len(unit)])) < 1e12:
                return number * factor
    raise UsageError(f"{text!r} is not {what}", f"write, say, {example} ({', '.join(units)})")

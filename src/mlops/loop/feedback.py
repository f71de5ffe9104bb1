"""Truth and performance: actual values from a file, attached page by page, and what they say."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlops.deploy.feedback import ITEM, actual_value
from mlops.errors import DataError, NotTrainedError
from mlops.loop.performance import WINDOW, look, measure_of
from mlops.loop.report import Report, Silent
from mlops.loop.serve import has_log, open_log
from mlops.settings import Settings, read_settings
from mlops.usecase import UseCase
from mlops.usecases import find

PAGE = 5_000
"""Lines that are attached in one transaction."""

Line = tuple[int, str, str]


def feedback(
    name: str,
    path: Path,
    *,
    settings: Settings | None = None,
    report: Report | None = None,
) -> dict[str, Any]:
    """Attach the truths of a CSV file with the columns prediction_id and actual.

    Every line stands for itself. Those that are not attached are named by their number, with the
    reason, in `left`; once that is mended, the whole file can be given again.

    Raises `DataError` if the file is no such table, `NotTrainedError` without a log.
    """
    settings, report = settings or read_settings(), report or Silent()
    use_case = find(name)
    _check_log(use_case, settings)
    result: dict[str, Any] = {"use_case": name, "path": str(path), "lines": 0}
    result |= {"attached": 0, "already": 0, "left": []}
    measure = measure_of(use_case, settings)
    pages = -(-_count(path) // PAGE)
    with (
        contextlib.closing(open_log(use_case, settings)) as log,
        report.steps(f"{name}: truths", pages) as advance,
    ):
        for page in _pages(path):
            advance(f"from line {page[0][0]:,}")
            result["lines"] += len(page)
            pairs, numbers, left = _read(use_case, page)
            attached = log.attach(pairs, measure)
            result["attached"] += attached.attached
            result["already"] += attached.already
            unknown = set(attached.unknown)
            contradicted = {(one.prediction_id, one.sent): one for one in attached.conflicts}
            for number, pair in zip(numbers, pairs, strict=True):
                if pair[0] in unknown:
                    left.append(_left(number, pair[0], "unknown", "is not in the log"))
                elif conflict := contradicted.get(pair):
                    says = f"has the truth {conflict.attached!r} already, and it stays"
                    left.append(_left(number, pair[0], "conflict", says))
            result["left"] += sorted(left, key=lambda one: one["line"])
    return result


def performance(
    name: str,
    window: str = WINDOW,
    version: int | None = None,
    *,
    settings: Settings | None = None,
) -> dict[str, Any]:
    """Return the performance of a version, the champion unless told, over a window ("24h", "7d").

    Raises `UsageError` for a window that is none, `NotTrainedError` without log or champion.
    """
    settings = settings or read_settings()
    use_case = find(name)
    _check_log(use_case, settings)
    with contextlib.closing(open_log(use_case, settings)) as log:
        return look(use_case, log, settings, window, version)


def _check_log(use_case: UseCase, settings: Settings) -> None:
    if not has_log(use_case, settings):
        raise NotTrainedError(
            f"{use_case.name} has answered nothing here yet",
            f"start it with: mlops up {use_case.name}",
        )


def _read(
    use_case: UseCase, page: list[Line]
) -> tuple[list[tuple[str, float | str]], list[int], list[dict[str, Any]]]:
    """Return pairs to attach, the lines that they are from, and what is wrong with others."""
    pairs, numbers, left = [], [], []
    for number, prediction_id, text in page:
        try:
            value = _value(use_case, text)
        except ValueError as error:
            left.append(_left(number, prediction_id, "invalid", str(error)))
            continue
        if not prediction_id:
            left.append(_left(number, "", "invalid", "has no prediction_id"))
        else:
            pairs.append((prediction_id, value))
            numbers.append(number)
    return pairs, numbers, left


def _value(use_case: UseCase, text: str) -> float | str:
    sent: float | str = text
    if text not in use_case.target.labels:
        with contextlib.suppress(ValueError):
            sent = float(text)
    try:
        return actual_value(use_case, sent)
    except ValueError as error:
        raise ValueError(f"actual {error}, got {text[:60]!r}") from None


def _left(line: int, prediction_id: str, kind: str, says: str) -> dict[str, Any]:
    return {"line": line, "prediction_id": prediction_id, "kind": kind, "says": says}


def _count(path: Path) -> int:
    with _reading(path) as lines:
        return sum(1 for _ in lines)


def _pages(path: Path) -> Iterator[list[Line]]:
    page: list[Line] = []
    with _reading(path) as lines:
        for line in lines:
            page.append(line)
            if len(page) == PAGE:
                yield page
                page = []
    if page:
        yield page


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[Iterator[Line]]:
    """Lend the lines of a file: number, prediction_id, actual. Raises `DataError`."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield _lines(path, csv.reader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is no CSV file: {error}", "save it as UTF-8 text") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", "name a CSV file") from None


def _lines(path: Path, reader: Any) -> Iterator[Line]:
    header = [cell.strip() for cell in next(reader, [])]
    if missing := [name for name in ITEM if name not in header]:
        raise DataError(
            f"{path} lacks the column {missing[0]}",
            f"its first line must name {' and '.join(ITEM)}",
        )
    places = [header.index(name) for name in ITEM]
    for row in reader:
        if row:
            prediction_id, actual = (row[at].strip() if at < len(row) else "" for at in places)
            yield reader.line_num, prediction_id, actual

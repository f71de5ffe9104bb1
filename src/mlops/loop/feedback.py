"""Truth and performance: actual values from a file, attached page by page, and what they say."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mlops.deploy.feedback import ITEM, actual_value
from mlops.errors import DataError, NotTrainedError
from mlops.loop.performance import WINDOW, look, measure_of
from mlops.loop.prediction_log import has_log, open_log
from mlops.loop.report import Report, Silent
from mlops.monitor.log import PredictionLog
from mlops.monitor.truths import Measure
from mlops.settings import Settings, read_settings
from mlops.usecase import UseCase
from mlops.usecases import USE_CASES, find

PAGE = 5_000
"""Lines that are attached in one transaction."""

Line = tuple[int, str, str]


class _Open(NamedTuple):
    """A use case whose log is open for truths."""

    use_case: UseCase
    log: PredictionLog
    measure: Measure


def feedback(
    name: str | None,
    path: Path,
    *,
    settings: Settings | None = None,
    report: Report | None = None,
) -> dict[str, Any]:
    """Attach the truths of a CSV file with the columns prediction_id and actual.

    They are those of one use case, or without a name each of the one whose prediction it is of.
    Every line stands for itself. Those that are not attached are named by their number, with the
    reason, in `left`; once that is mended, the whole file can be given again.

    Raises `DataError` if the file is no such table, `NotTrainedError` without a log.
    """
    settings, report = settings or read_settings(), report or Silent()
    use_cases = (
        [find(name)] if name else [one for one in USE_CASES.values() if has_log(one, settings)]
    )
    if not use_cases:
        raise NotTrainedError("nothing was answered here yet", "start it with: mlops up")
    for use_case in use_cases:
        _check_log(use_case, settings)
    result: dict[str, Any] = {"use_case": name, "path": str(path), "lines": 0}
    result |= {"attached": 0, "already": 0, "left": []}
    pages = -(-_count(path) // PAGE)
    with contextlib.ExitStack() as stack, report.steps("truths", pages) as advance:
        there = [
            _Open(
                one,
                stack.enter_context(contextlib.closing(open_log(one, settings))),
                measure_of(one, settings),
            )
            for one in use_cases
        ]
        for page in _pages(path):
            advance(f"from line {page[0][0]:,}")
            result["lines"] += len(page)
            left = []
            for place, lines in _shares(there, page):
                left += _attach(place, lines, result)
            result["left"] += sorted(left, key=lambda one: one["line"])
    return result


def _shares(there: Sequence[_Open], page: list[Line]) -> Iterator[tuple[_Open | None, list[Line]]]:
    """Yield each use case with its lines; last, with none, those that nobody knows."""
    if len(there) == 1:
        yield there[0], page
        return
    for one in there:
        known = set(one.log.find_all([prediction_id for _, prediction_id, _ in page]))
        yield one, [line for line in page if line[1] in known]
        page = [line for line in page if line[1] not in known]
    yield None, page


def _attach(place: _Open | None, lines: list[Line], result: dict[str, Any]) -> list[dict[str, Any]]:
    """Attach lines and count them; return those that are left over."""
    if place is None:
        return [_left(number, one, "unknown", "is in no log") for number, one, _ in lines]
    pairs, numbers, left = _read(place.use_case, lines)
    attached = place.log.attach(pairs, place.measure)
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
    return left


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

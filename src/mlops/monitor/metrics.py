"""Metrics: the kept counts, read for the last minute, hour and day, and for all time.

`docs/metrics.md` says what each number means. Nothing here looks at a logged row: the time this
takes depends on how many buckets are kept (`counts.MERGES`), not on how much was logged.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import apsw
import numpy as np

from mlops import clock
from mlops.monitor import counts
from mlops.monitor.buckets import ALL_VERSIONS
from mlops.records import Metrics, Series, Totals

IN_WINDOW = "start + width > :since"


class _Sum(NamedTuple):
    version: int
    status: int
    requests: int
    logged: int
    warned: int
    last_timestamp: str
    start: int


class _Duration(NamedTuple):
    version: int
    status: int
    end: int
    seconds: float
    histogram: bytes


def totals(connection: apsw.Connection) -> Totals:
    """Return what was ever logged, as it was counted."""
    return _totals(_sums(connection, 0))


def read(connection: apsw.Connection, now: float | None = None) -> Metrics:
    """Return all metrics as of `now` (unix seconds; the clock's, unless told).

    The connection should be in a transaction, so that all of it is of one state.
    """
    now = int(clock.unix() if now is None else now)
    durations = [
        _Duration(*row)
        for row in connection.execute(
            "SELECT model_version, status, start + width, seconds, histogram FROM durations"
        )
    ]
    ever = _sums(connection, 0)
    windows = {}
    for name, seconds in counts.WINDOWS.items():
        since = 0 if seconds is None else now - seconds
        sums = ever if seconds is None else _sums(connection, since)
        length = seconds or max(1, now - min((one.start for one in ever), default=now))
        windows[name] = _window(
            since,
            length,
            sums,
            [one for one in durations if one.end > since],
            _clients(connection, since),
            _peaks(connection, since, ever=seconds is None),
        )
    return Metrics(_totals(ever), windows, _series(ever, durations))


def traffic(connection: apsw.Connection, seconds: int, now: float) -> dict[str, Any]:
    """Return the numbers of the last `seconds` for all versions, but neither clients nor peaks.

    The window begins with a whole bucket: up to two minutes back it is exact to the second.
    """
    since = int(now) - seconds
    durations = [
        _Duration(*row)
        for row in connection.execute(
            f"""SELECT model_version, status, start + width, seconds, histogram FROM durations
            WHERE {IN_WINDOW}""",  # noqa: S608  a constant
            {"since": since},
        )
    ]
    return _window(since, seconds, _sums(connection, since), durations, {}, {})


def minutes(
    connection: apsw.Connection, now: float | None = None, back: int = 60
) -> list[dict[str, Any]]:
    """Return the traffic of each of the last `back` whole minutes, oldest first, in one read.

    A minute has its `start` (UTC), `requests`, `errors` (status 400 and more) and, of answers with
    status 200, `p50` and `p95` in ms; None without any.
    """
    end = int(clock.unix() if now is None else now) // counts.MINUTE * counts.MINUTE
    since = {"since": end - back * counts.MINUTE, "end": end, "minute": counts.MINUTE}
    within = "WHERE width <= :minute AND start >= :since AND start < :end"
    requests: dict[int, list[int]] = {}
    for start, asked, errors in connection.execute(
        f"""SELECT start - start % :minute, sum(requests), sum(iif(status >= 400, requests, 0))
        FROM counts {within} GROUP BY 1""",  # noqa: S608  a constant
        since,
    ):
        requests[start] = [asked, errors]
    measured: dict[int, list[bytes]] = defaultdict(list)
    for start, histogram in connection.execute(
        f"SELECT start - start % :minute, histogram FROM durations {within} AND status = 200",  # noqa: S608
        since,
    ):
        measured[start].append(histogram)
    found = []
    for start in range(end - back * counts.MINUTE, end, counts.MINUTE):
        asked, errors = requests.get(start, (0, 0))
        histogram = counts.unpack(measured[start]).sum(axis=0, dtype=np.int64)
        times = {name: counts.quantile(histogram, at) for name, at in (("p50", 0.5), ("p95", 0.95))}
        found.append(
            {
                "start": clock.iso(start),
                "requests": asked,
                "errors": errors,
                **{name: None if s is None else 1000 * s for name, s in times.items()},
            }
        )
    return found


def _totals(sums: Iterable[_Sum]) -> Totals:
    by_version: dict[int, int] = defaultdict(int)
    failed: dict[int, int] = defaultdict(int)
    warned, last = 0, ""
    for one in sums:
        if one.status != 200:
            failed[one.status] += one.logged
        else:
            by_version[one.version] += one.logged
            warned += one.warned
        last = max(last, one.last_timestamp)
    return Totals(
        total_predictions=sum(by_version.values()),
        by_version={key: number for key, number in by_version.items() if number},
        warned=warned,
        failed_requests={key: number for key, number in failed.items() if number},
        last_updated=last or None,
    )


def _series(sums: Iterable[_Sum], durations: Iterable[_Duration]) -> tuple[Series, ...]:
    measured: dict[tuple[int, int], list[_Duration]] = defaultdict(list)
    for one in durations:
        measured[one.version, one.status].append(one)
    return tuple(
        Series(
            model_version=one.version,
            status=one.status,
            requests=one.requests,
            predictions=one.logged if one.status == 200 else 0,
            warned=one.warned,
            last_timestamp=one.last_timestamp,
            response_seconds=sum(part.seconds for part in measured[one.version, one.status]),
            responses=counts.cumulative(_histogram(measured[one.version, one.status])),
        )
        for one in sums
    )


def _window(
    since: int,
    length: int,
    sums: list[_Sum],
    durations: list[_Duration],
    clients: Mapping[int, int],
    peaks: Mapping[int, dict[str, Any]],
) -> dict[str, Any]:
    """Return the numbers of one window for all versions, and under `by_version` for each."""

    def numbers(version: int) -> dict[str, Any]:
        mine = [one for one in sums if version in {ALL_VERSIONS, one.version}]
        requests = sum(one.requests for one in mine)
        errors = sum(one.requests for one in mine if one.status >= 400)
        faults = sum(one.requests for one in mine if one.status >= 500)
        predictions = sum(one.logged for one in mine if one.status == 200)
        answered = [
            one for one in durations if one.status == 200 and version in {ALL_VERSIONS, one.version}
        ]
        by_status: dict[str, int] = defaultdict(int)
        for one in mine:
            by_status[str(one.status)] += one.requests
        return {
            "requests": requests,
            "requests_by_status": dict(sorted(by_status.items())),
            "predictions": predictions,
            "predictions_with_warnings": sum(one.warned for one in mine),
            "errors": errors,
            "error_rate": errors / requests if requests else None,
            "server_error_rate": faults / requests if requests else None,
            "requests_per_second": requests / length,
            "predictions_per_second": predictions / length,
            "response_time_ms": _response_times(answered),
            "unique_users": clients.get(version, 0),
            "peak_hour": peaks.get(version),
        }

    versions = sorted({one.version for one in sums if one.version})
    return {
        "seconds": length,
        "since": clock.iso(since) if since else None,
        **numbers(ALL_VERSIONS),
        "by_version": {str(version): numbers(version) for version in versions},
    }


def _response_times(durations: list[_Duration]) -> dict[str, Any]:
    histogram = _histogram(durations)
    measured = int(histogram.sum())
    times: dict[str, Any] = {"measured": measured, "mean": None}
    if measured:
        times["mean"] = 1000 * sum(one.seconds for one in durations) / measured
    for name, share in (("p50", 0.50), ("p95", 0.95), ("p99", 0.99)):
        seconds = counts.quantile(histogram, share)
        times[name] = None if seconds is None else 1000 * seconds
    return times


def _histogram(durations: Iterable[_Duration]) -> np.ndarray:
    stored = counts.unpack([one.histogram for one in durations])
    total: np.ndarray = stored.sum(axis=0, dtype=np.int64)
    return total


def _sums(connection: apsw.Connection, since: int) -> list[_Sum]:
    sql = f"""
        SELECT model_version, status, sum(requests), sum(logged), sum(warned), max(last_timestamp),
            min(start)
        FROM counts WHERE {IN_WINDOW} GROUP BY 1, 2"""  # noqa: S608  a constant
    return [_Sum(*row) for row in connection.execute(sql, {"since": since})]


def _clients(connection: apsw.Connection, since: int) -> dict[int, int]:
    """Return the estimated number of clients seen, by version and for all together."""
    sql = """
        SELECT model_version, rank, count(*) FROM (
            SELECT model_version, register, max(rank) AS rank FROM clients
            WHERE last_seen >= :since GROUP BY 1, 2) GROUP BY 1, 2
        UNION ALL SELECT :all, rank, count(*) FROM (
            SELECT register, max(rank) AS rank FROM clients
            WHERE last_seen >= :since GROUP BY 1) GROUP BY 2"""
    registers: dict[int, dict[int, int]] = defaultdict(dict)
    for version, rank, number in connection.execute(sql, {"since": since, "all": ALL_VERSIONS}):
        registers[version][rank] = number
    return {version: counts.unique(by_rank) for version, by_rank in registers.items()}


def _peaks(connection: apsw.Connection, since: int, *, ever: bool) -> dict[int, dict[str, Any]]:
    """Return the hour of the calendar, in UTC, with the most requests; by version, and of all."""
    by_hour: dict[tuple[int, int], int] = defaultdict(int)
    sql = f"""
        SELECT start - start % {counts.HOUR}, model_version, sum(requests) FROM counts
        WHERE {IN_WINDOW} AND width <= {counts.HOUR} GROUP BY 1, 2"""  # noqa: S608  constants
    for start, version, requests in connection.execute(sql, {"since": since}):
        by_hour[version, start] += requests
        by_hour[ALL_VERSIONS, start] += requests
    if ever:
        for version, start, requests in connection.execute("SELECT * FROM busiest_hours"):
            by_hour[version, start] += requests
    best: dict[int, tuple[int, int]] = {}
    for (version, start), requests in by_hour.items():
        best[version] = max(best.get(version, (0, 0)), (requests, -start))
    return {
        version: {"start": clock.iso(-start), "requests": requests}
        for version, (requests, start) in best.items()
        if requests
    }

"""Searching the log: what fits, newest first, never more than a stretch of it at a time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_log import failure, one, open_log

from mlops import clock
from mlops.monitor import metrics, search
from mlops.monitor.log import PredictionLog
from mlops.monitor.search import Query


def at(hour: int, minute: int = 0) -> str:
    return f"2026-03-01T{hour:02}:{minute:02}:00.000000+00:00"


@pytest.fixture
def log(tmp_path: Path) -> Iterator[PredictionLog]:
    """Rows 0 to 99, ten an hour from 8 o'clock on; the odd ones warn, version 2 from row 50 on."""
    log = open_log(tmp_path)
    log.append(
        [
            one(
                number,
                timestamp=at(8 + number // 10, number % 10),
                prediction=number / 10,
                warnings='["x = 9 is outside"]' if number % 2 else "[]",
                model_version=1 + number // 50,
            )
            for number in range(100)
        ]
    )
    yield log
    log.close()


def names(log: PredictionLog, **asked: object) -> list[int]:
    return [int(row.prediction_id[1:]) for row in log.search(Query(**asked)).rows]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"limit": 3}, [99, 98, 97]),
        ({"search": '"x":"4'}, [49, 48, 47, 46, 45, 44, 43, 42, 41, 40, 4]),
        ({"search": "OUTSIDE", "limit": 2}, [99, 97]),
        ({"search": "p42"}, [42]),
        ({"search": " p42 ", "warned": True}, [42]),
        ({"warned": False, "limit": 2}, [98, 96]),
        ({"version": 1, "limit": 2}, [49, 48]),
        ({"version": 3}, []),
        ({"low": 9.8}, [99, 98]),
        ({"high": 0.1}, [1, 0]),
        ({"low": 0.3, "high": 0.4, "warned": True}, [3]),
        ({"since": at(17, 8)}, [99, 98]),
        ({"since": at(23)}, []),
        ({"until": at(8, 2)}, [1, 0]),
        ({"since": at(9), "until": at(9, 2)}, [11, 10]),
        ({"search": "%"}, []),
        ({"search": "' OR 1=1 --"}, []),
    ],
)
def test_what_fits_is_found_newest_first(log, asked, expected):
    assert names(log, **asked) == expected


def test_a_search_goes_on_where_it_stopped_until_there_is_no_more(log):
    seen, before, calls = [], None, 0
    while True:
        found = log.search(Query(warned=True, limit=7, before=before))
        seen += [int(row.prediction_id[1:]) for row in found.rows]
        calls += 1
        before = found.before
        if before is None:
            break
    assert seen == list(range(99, 0, -2))
    assert calls == 8


def test_one_call_examines_no_more_than_a_stretch_and_says_where_it_stopped(log, monkeypatch):
    monkeypatch.setattr(search, "MOST_EXAMINED", 30)
    found = log.search(Query(search='"x":"3"'))
    assert found == ([], [], 30, 71)
    calls = 1
    while found.before is not None:
        found = log.search(Query(search='"x":"3"', before=found.before))
        calls += 1
    assert [row.prediction_id for row in found.rows] == ["p3"]
    assert calls == 4


def test_bounds_of_time_and_version_are_found_without_looking(log, monkeypatch):
    monkeypatch.setattr(search, "MOST_EXAMINED", 30)
    early = log.search(Query(until=at(8, 5)))
    assert [row.prediction_id for row in early.rows] == ["p4", "p3", "p2", "p1", "p0"]
    assert early.examined <= 10
    late = log.search(Query(since=at(17, 9)))
    assert (late.examined, late.before) == (10, None)


def test_the_truth_stands_beside_its_prediction_and_can_be_asked_for(log):
    log.attach([("p7", 0.9), ("p3", 0.1)], measure=lambda rows, actual: [])
    found = log.search(Query(told=True))
    assert [row.prediction_id for row in found.rows] == ["p7", "p3"]
    assert found.actual == [0.9, 0.1]
    assert 7 not in names(log, told=False)
    assert log.search(Query(search="p7")).actual == [0.9]
    assert log.search(Query(search="p8")).actual == [None]


def test_an_empty_log_and_a_pruned_one_are_searched_to_their_end(tmp_path, log):
    empty = open_log(tmp_path / "empty")
    assert empty.search(Query()) == ([], [], 0, None)
    empty.close()
    log.prune(before=at(17, 8))
    found = log.search(Query())
    assert [row.prediction_id for row in found.rows] == ["p99", "p98"]
    assert found.before is None


def test_minutes_have_their_requests_errors_and_times_and_end_with_the_last_whole_one(tmp_path):
    now = int(time.time())
    minute = now // 60 * 60 - 180
    log = open_log(tmp_path)
    moment = clock.iso(minute + 5).replace("+00:00", ".000000+00:00")
    refused = failure()._replace(timestamp=moment)
    log.append([one(number, timestamp=moment) for number in range(4)], [refused])
    log.append([one("this minute", timestamp=clock.stamp())], timings=[(1, 200, 0.02, True)] * 3)
    minutes = log.minutes()
    assert len(minutes) == 60
    [busy] = [each for each in minutes if each["requests"]]
    assert (busy["start"], busy["requests"], busy["errors"]) == (clock.iso(minute), 5, 1)
    assert busy["p95"] is None
    with log._reading() as connection:
        later = metrics.minutes(connection, now + 60)
    assert sum(each["requests"] for each in later) == 6
    [timed] = [each for each in later if each["p95"]]
    assert timed["p95"] == pytest.approx(20, rel=0.05)
    log.close()

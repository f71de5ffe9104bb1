"""Does it cost more to log a row, or to read the metrics, when the log is long?

From mark to mark the rows are spread over a day and two minutes, by a clock that is set: a commit
each minute of the day and each second of the rest, so that all marks have as many buckets of time
behind them, and differ in nothing but the number of rows. At each mark the cost of groups of 16,
as they come from 16 connections, and of a reading of the metrics is measured, in processor time of
this process.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import numpy as np

from benchmarks.results import Found, Line, Row
from mlops import clock
from mlops.deploy.predictor import new_ids
from mlops.monitor.log import PredictionLog
from mlops.records import Prediction, Submission

GROUP, GROUPS = 16, 400
STEPS = [60] * 1_500 + [1] * 120
"""Seconds between two commits."""
READINGS = 15
INPUTS = '{"total_rooms":880.0,"total_bedrooms":129.0,"population":322.0,"households":126.0}'
ROW = Line("a row logged, last mark against the first", most=1.5)
METRICS = Line("a reading of `/metrics`, last mark against the first", most=1.5)
LINES = (ROW, METRICS)


def run(home: Path, rows: int = 1_000_000) -> Found:
    """Measure at 10^4 rows, at each power of ten after it, and at `rows`."""
    marks = [mark for power in range(4, 9) if (mark := 10**power) < rows] + [rows]
    seen: list[tuple[float, float]] = []
    notes = []
    now = time.time() - sum(STEPS) * len(marks)
    clock.set_to(home / "clock", now)
    clock.follow(home / "clock")
    log = PredictionLog(home, "growthlogs", "crash", largest_file=100 * 2**20, keep_files=2)
    try:
        number = 0
        for mark in marks:
            sizes = np.diff(np.linspace(number, mark, len(STEPS) + 1).astype(int)).tolist()
            for seconds, size in zip(STEPS, sizes, strict=True):
                now += seconds
                clock.set_to(home / "clock", now)
                log.append([Submission(_predictions(size))])
            seen.append((_row(log), _reading(log)))
            number = mark + GROUP * GROUPS
            row, reading = seen[-1]
            notes.append(f"{mark:,} rows: {row:.1f} µs a row, {reading:.2f} ms for the metrics")
            print(notes[-1], flush=True)
    finally:
        log.close()
        clock._kept = None
    (row, reading), (last_row, last_reading) = seen[0], seen[-1]
    found = (
        Row(ROW, f"{row:.1f} µs", f"{last_row:.1f} µs", last_row / row),
        Row(METRICS, f"{reading:.2f} ms", f"{last_reading:.2f} ms", last_reading / reading),
    )
    return Found(found, notes)


def _row(log: PredictionLog) -> float:
    """Return what a row costs in a group of 16, in microseconds: the median of many groups."""
    times = []
    for _ in range(GROUPS):
        group = [Submission((one,)) for one in _predictions(GROUP)]
        started = time.process_time()
        log.append(group)
        times.append(time.process_time() - started)
    return 1e6 * statistics.median(times) / GROUP


def _reading(log: PredictionLog) -> float:
    times = []
    for _ in range(READINGS):
        started = time.process_time()
        log.metrics()
        times.append(time.process_time() - started)
    return 1e3 * statistics.median(times)


def _predictions(number: int) -> tuple[Prediction, ...]:
    now = clock.stamp()
    plain = Prediction("", now, INPUTS, 2.5, None, None, 1, "b" * 64)
    return tuple(plain._replace(prediction_id=name) for name in new_ids(number))

"""Does it cost more to log a row, or to read the metrics, when the log is long?

Not part of a plain `make bench`: `make bench ARGS=growth`, or `ARGS="growth 10000000"` for ten
million rows.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

from mlops.deploy.predictor import new_id, utc_now
from mlops.monitor.log import PredictionLog
from mlops.records import Prediction, Submission

GROUP = 64
INPUTS = '{"x":1.0,"y":2.0,"z":3.0}'


def run(rows: int = 1_000_000) -> None:
    """Print what a row and a reading of the metrics cost from 10^5 rows on, up to `rows`."""
    print(f"\nGrowth: groups of {GROUP} up to {rows:,} logged rows")
    print(f"{'rows':>12}{'µs a row':>12}{'metrics, ms':>14}")
    marks = [mark for mark in (10**power for power in range(5, 9)) if mark <= rows]
    first: tuple[float, float] | None = None
    with tempfile.TemporaryDirectory() as folder:
        log = PredictionLog(Path(folder), "growthlogs", "crash")
        number = 0
        for mark in marks:
            times: list[float] = []
            while number < mark:
                group = [_submission() for _ in range(GROUP)]
                started = time.process_time()
                log.append(group)
                times.append(time.process_time() - started)
                number += GROUP
            row = 1e6 * statistics.median(times[-1000:]) / GROUP
            reading = 1e3 * statistics.median(_reading(log) for _ in range(9))
            first = first or (row, reading)
            print(f"{number:>12,}{row:>12.2f}{reading:>14.2f}")
        log.close()
    if first:
        print(f"ratio, last to first: a row {row / first[0]:.2f}, metrics {reading / first[1]:.2f}")


def _reading(log: PredictionLog) -> float:
    started = time.process_time()
    log.metrics()
    return time.process_time() - started


def _submission() -> Submission:
    plain = Prediction(new_id(), utc_now(), INPUTS, 2.5, None, None, 1, "b" * 64)
    return Submission((plain,))

"""A server with a planted fault, to show that a test would find it: `python faulty.py FAULT ...`.

answer-first   answers go out 30 ms before they are committed
forget-keys    idempotency keys are ignored, and answers go out 30 ms after they are committed
torn-lines     each second line of the log file is written without its end
"""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

from mlops.cli import main
from mlops.deploy import service
from mlops.monitor import logfile
from mlops.monitor.log import PredictionLog

DELAY = 0.03


def answer_first() -> None:
    append = PredictionLog.append

    def answer_now(
        self: PredictionLog,
        submissions: Any,
        failures: Any = (),
        timings: Any = (),
        *,
        wait: bool = True,
    ) -> list[Any]:
        threading.Timer(DELAY, append, (self, submissions, failures, timings)).start()
        return [submission.rows for submission in submissions]

    PredictionLog.append = answer_now  # type: ignore[method-assign,assignment]


def forget_keys() -> None:
    append = PredictionLog.append

    def slowly(self: PredictionLog, *arguments: Any, **options: Any) -> list[Any]:
        done = append(self, *arguments, **options)
        time.sleep(DELAY)
        return done

    service._key = lambda headers: None
    PredictionLog.append = slowly  # type: ignore[method-assign]


def torn_lines() -> None:
    as_line = logfile.as_line
    logfile.as_line = lambda row: as_line(row)[: -20 if row.id % 2 else None]


if __name__ == "__main__":
    fault, *arguments = sys.argv[1:]
    {"answer-first": answer_first, "forget-keys": forget_keys, "torn-lines": torn_lines}[fault]()
    main(arguments)

"""A server with a planted fault, to show that a test would find it: `python faulty.py FAULT ...`.

answer-first   answers go out 30 ms before they are committed
end-at-once    the same with 200 ms, and SIGTERM ends it on the spot
forget-keys    idempotency keys are ignored
torn-lines     each second line of the log file is written without its end
wrong-version  each seventh answer says that another version gave it
switch-late    it says that it has taken up what was decided, and does so three seconds later
ask-registry   it asks the model registry before it begins
keep-requests  of each group of requests it keeps 20 kB for ever
keep-files     with each model that begins to answer a file stays open
count-anew     it counts what was predicted since it began, not all that is logged
no-patience    the log does not wait for others that write to it
slow-health    health has to wait its turn for more than half a second
never-replace  workers that die or hang are left alone
slow-model     no fault: a model that needs 2 ms a row, so that 500 requests a second are too many
no-limit       the same, and nobody is refused, however many wait
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import threading
import time
import urllib.request
from typing import Any

import uvicorn

from mlops.cli import main
from mlops.deploy import service
from mlops.deploy.predictor import Champion
from mlops.deploy.protocol import Protocol
from mlops.loop.follow import Follower, Wanted
from mlops.loop.workers import Supervisor
from mlops.monitor import logfile
from mlops.monitor.log import PredictionLog

DELAY = 0.03
SECONDS_A_ROW = 0.002


def answer_first(delay: float = DELAY) -> None:
    append = PredictionLog.append

    def answer_now(
        self: PredictionLog,
        submissions: Any,
        failures: Any = (),
        timings: Any = (),
        *,
        wait: bool = True,
    ) -> list[Any]:
        threading.Timer(delay, append, (self, submissions, failures, timings)).start()
        return [submission.rows for submission in submissions]

    PredictionLog.append = answer_now  # type: ignore[method-assign,assignment]


def end_at_once() -> None:
    answer_first(0.2)
    uvicorn.Server.handle_exit = lambda *_: os._exit(0)  # type: ignore[method-assign]


def forget_keys() -> None:
    sender = service.sender
    service.sender = lambda headers: sender(headers)._replace(key=None)


def torn_lines() -> None:
    as_line = logfile.as_line
    logfile.as_line = lambda row: as_line(row)[: -20 if row.id % 2 else None]


def wrong_version() -> None:
    predict, number = Champion.predict, itertools.count(1)

    def predict_wrongly(self: Champion, *arguments: Any) -> list[Any]:
        rows = predict(self, *arguments)
        return [
            row._replace(model_version=3 - row.model_version) if next(number) % 7 == 0 else row
            for row in rows
        ]

    Champion.predict = predict_wrongly  # type: ignore[method-assign,assignment]


def switch_late() -> None:
    take = Follower._take

    def late(self: Follower, found: Wanted) -> None:
        self._tell()
        time.sleep(3)
        take(self, found)

    Follower._take = late  # type: ignore[method-assign]


def ask_registry() -> None:
    with contextlib.suppress(OSError):
        urllib.request.urlopen(os.environ["MODEL_REGISTRY_URI"] + "/champion", timeout=5)


def keep_requests() -> None:
    append, kept = PredictionLog.append, []

    def keep(self: PredictionLog, *arguments: Any, **options: Any) -> list[Any]:
        kept.append(os.urandom(20_000))
        return append(self, *arguments, **options)

    PredictionLog.append = keep  # type: ignore[method-assign]


def keep_files() -> None:
    swap, kept = service.Service.swap, []

    def keep(self: service.Service, *arguments: Any) -> None:
        kept.append(os.open(os.devnull, os.O_RDONLY))
        swap(self, *arguments)

    service.Service.swap = keep  # type: ignore[method-assign]


def count_anew() -> None:
    metrics, before = PredictionLog.metrics, {}

    def since(self: PredictionLog, *arguments: Any) -> Any:
        now = metrics(self, *arguments)
        first = before.setdefault(self.path, now.totals.total_predictions)
        totals = now.totals._replace(total_predictions=now.totals.total_predictions - first)
        return now._replace(totals=totals)

    PredictionLog.metrics = since  # type: ignore[method-assign]


def no_patience() -> None:
    PredictionLog._on_busy = lambda self, tries: False  # type: ignore[method-assign]


def slow_health() -> None:
    not_ready = service.Service.not_ready

    def slowly(self: service.Service) -> str:
        time.sleep(0.6)
        return not_ready(self)

    service.Service.not_ready = slowly  # type: ignore[method-assign]


def never_replace() -> None:
    Supervisor._replace = lambda self: None  # type: ignore[method-assign]


def slow_model() -> None:
    predict = Champion.predict

    def slowly(self: Champion, rows: Any, *others: Any) -> Any:
        time.sleep(SECONDS_A_ROW * len(rows))
        return predict(self, rows, *others)

    Champion.predict = slowly  # type: ignore[method-assign]


def no_limit() -> None:
    slow_model()
    Protocol.too_many_wait = lambda self: False  # type: ignore[method-assign]


if __name__ == "__main__":
    fault, *arguments = sys.argv[1:]
    globals()[fault.replace("-", "_")]()
    main(arguments)

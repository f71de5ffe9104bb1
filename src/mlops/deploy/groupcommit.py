"""Group commit: all requests that are waiting are predicted in one call and logged in one commit.

A request never waits for company. The first one to arrive takes along those that came in the same
turn of the event loop; while a commit is under way the next group gathers. With 64 connections
that is one synced commit for 64 answers.

Small groups are worked off on the event loop when the log does not sync (`crash` durability):
handing them to a thread would cost more than the work. Everything else goes to one thread, so a
slow disk holds up answers but not health checks.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from mlops.deploy.predictor import Champion
from mlops.errors import IdempotencyConflictError, MlopsError, NotTrainedError
from mlops.records import Failure, Prediction, Submission

INLINE_ROWS = 256

Logged = tuple[Prediction, ...]


class Log(Protocol):
    """What serving needs of the prediction log."""

    def append(
        self, submissions: Sequence[Submission], failures: Sequence[Failure] = ()
    ) -> Sequence[Logged | IdempotencyConflictError]: ...


@dataclasses.dataclass(slots=True)
class _Waiting:
    rows: list[Sequence[float]]
    inputs: list[str]
    key: str | None
    client: str | None
    done: asyncio.Future[Logged]


class GroupCommit:
    """Predicts and records; answers only what has been committed."""

    def __init__(self, log: Log, *, synced: bool) -> None:
        self.champion: Champion | None = None
        self._log = log
        self._synced = synced
        self._waiting: list[_Waiting] = []
        self._failures: list[tuple[Failure, asyncio.Future[None]]] = []
        self._scheduled = False
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="predict-and-log")

    def predict(
        self,
        rows: list[Sequence[float]],
        inputs: list[str],
        key: str | None,
        client: str | None,
    ) -> asyncio.Future[Logged]:
        """Predict rows and log them, all or none; the future gives the committed predictions.

        It raises `NotTrainedError`, `LogUnavailableError` or `IdempotencyConflictError`.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Logged] = loop.create_future()
        self._waiting.append(_Waiting(rows, inputs, key, client, done))
        self._schedule(loop)
        return done

    def record(self, failure: Failure) -> asyncio.Future[None]:
        """Log a failed request with the next group."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        self._failures.append((failure, done))
        self._schedule(loop)
        return done

    async def close(self) -> None:
        """Wait for the commit under way. Requests must have been drained before."""
        await asyncio.to_thread(self._thread.shutdown)

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._scheduled:
            self._scheduled = True
            loop.call_soon(self._start, loop)

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take everything that waits and work it off."""
        waiting, self._waiting = self._waiting, []
        failures, self._failures = self._failures, []
        champion = self.champion
        if self._synced or sum(len(one.rows) for one in waiting) > INLINE_ROWS:
            work = loop.run_in_executor(self._thread, self._work, champion, waiting, failures)
            work.add_done_callback(lambda done: self._finish(loop, waiting, failures, done))
            return
        done: asyncio.Future[list[Logged | MlopsError]] = loop.create_future()
        try:
            done.set_result(self._work(champion, waiting, failures))
        except Exception as error:  # noqa: BLE001  # handed to every request that waits
            done.set_exception(error)
        self._finish(loop, waiting, failures, done)

    def _work(
        self,
        champion: Champion | None,
        waiting: list[_Waiting],
        failures: list[tuple[Failure, asyncio.Future[None]]],
    ) -> list[Logged | MlopsError]:
        submissions = _predict_together(champion, waiting) if champion and waiting else []
        logged = self._log.append(submissions, [failure for failure, _ in failures])
        if champion is None:
            return [NotTrainedError("no model answers yet")] * len(waiting)
        return list(logged)

    def _finish(
        self,
        loop: asyncio.AbstractEventLoop,
        waiting: list[_Waiting],
        failures: list[tuple[Failure, asyncio.Future[None]]],
        done: asyncio.Future[list[Logged | MlopsError]],
    ) -> None:
        self._scheduled = False
        if self._waiting or self._failures:
            self._schedule(loop)
        error = done.exception()
        results = [error] * len(waiting) if error else done.result()
        for one, result in zip(waiting, results, strict=True):
            if one.done.done():  # its client has gone; the row is in the log all the same
                continue
            if isinstance(result, BaseException):
                one.done.set_exception(result)
            else:
                one.done.set_result(result)
        for _, recorded in failures:
            if recorded.done():
                continue
            if error:
                recorded.set_exception(error)
            else:
                recorded.set_result(None)


def _predict_together(champion: Champion, waiting: list[_Waiting]) -> list[Submission]:
    """Run the model once over all rows; hand each request its own."""
    if len(waiting) == 1:
        one = waiting[0]
        predictions = champion.predict(one.rows, one.inputs, [one.client] * len(one.rows))
        return [Submission(tuple(predictions), one.key)]
    predictions = champion.predict(
        [row for one in waiting for row in one.rows],
        [text for one in waiting for text in one.inputs],
        [one.client for one in waiting for _ in one.rows],
    )
    submissions = []
    start = 0
    for one in waiting:
        end = start + len(one.rows)
        submissions.append(Submission(tuple(predictions[start:end]), one.key))
        start = end
    return submissions

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
import contextlib
import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from mlops.deploy.predictor import Champion
from mlops.errors import IdempotencyConflictError, MlopsError, NotTrainedError
from mlops.records import Failure, Prediction, Submission, Timing

INLINE_ROWS = 256
SECONDS_BETWEEN_TIMINGS = 1.0
MOST_TIMINGS = 100_000
"""What is kept, at most, of answers that went out while the log could not be written."""

Logged = tuple[Prediction, ...]


class Log(Protocol):
    """What serving needs of the prediction log."""

    def append(
        self,
        submissions: Sequence[Submission],
        failures: Sequence[Failure] = (),
        timings: Sequence[Timing] = (),
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
        self._timings: list[Timing] = []
        self._timer: asyncio.TimerHandle | None = None
        self._timings_due = False
        # Who waits for the timings at hand to be logged, and for those being logged, if any are.
        self._flushes: list[asyncio.Future[None]] = []
        self._flushing: list[asyncio.Future[None]] | None = None
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

    def rows_waiting(self) -> int:
        """Return how many rows the next group has."""
        return sum(len(one.rows) for one in self._waiting)

    def record(self, failure: Failure) -> asyncio.Future[None]:
        """Log a failed request with the next group."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        self._failures.append((failure, done))
        self._schedule(loop)
        return done

    def observe(self, timing: Timing) -> None:
        """Have the log count, within a second, an answer that has just gone out.

        Its time is known only after its own commit, so it goes with a later group, or alone.
        """
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(SECONDS_BETWEEN_TIMINGS, self._flush, loop)
        self._timings.append(timing)

    def flush(self) -> asyncio.Future[None]:
        """Have the log count what was observed, now; the future is done when that was tried."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        if self._timings:
            self._flushes.append(done)
            self._flush(loop)
        elif self._flushing is not None:
            self._flushing.append(done)
        else:
            done.set_result(None)
        return done

    async def close(self) -> None:
        """Wait for the commit under way, and log the last timings. Requests were drained before."""
        if self._timer:
            self._timer.cancel()
        if self._timings:
            with contextlib.suppress(MlopsError):
                await asyncio.wrap_future(
                    self._thread.submit(self._log.append, (), (), self._timings)
                )
        await asyncio.to_thread(self._thread.shutdown)

    def _flush(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timings_due = True
        self._schedule(loop)

    def _take_timings(self) -> list[Timing]:
        if not self._timings_due:
            return []
        self._timings_due = False
        if self._timer:
            self._timer.cancel()
            self._timer = None
        timings, self._timings = self._timings, []
        if timings:
            self._flushing, self._flushes = self._flushes, []
        return timings

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._scheduled:
            self._scheduled = True
            loop.call_soon(self._start, loop)

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take everything that waits and work it off."""
        waiting, self._waiting = self._waiting, []
        failures, self._failures = self._failures, []
        timings = self._take_timings()
        champion = self.champion
        if self._synced or sum(len(one.rows) for one in waiting) > INLINE_ROWS:
            work = loop.run_in_executor(
                self._thread, self._work, champion, waiting, failures, timings
            )
            work.add_done_callback(
                lambda done: self._finish(loop, waiting, failures, timings, done)
            )
            return
        done: asyncio.Future[list[Logged | MlopsError]] = loop.create_future()
        try:
            done.set_result(self._work(champion, waiting, failures, timings))
        except Exception as error:  # noqa: BLE001  # handed to every request that waits
            done.set_exception(error)
        self._finish(loop, waiting, failures, timings, done)

    def _work(
        self,
        champion: Champion | None,
        waiting: list[_Waiting],
        failures: list[tuple[Failure, asyncio.Future[None]]],
        timings: list[Timing],
    ) -> list[Logged | MlopsError]:
        submissions = _predict_together(champion, waiting) if champion and waiting else []
        logged = self._log.append(submissions, [failure for failure, _ in failures], timings)
        if champion is None:
            return [NotTrainedError("no model answers yet")] * len(waiting)
        return list(logged)

    def _finish(
        self,
        loop: asyncio.AbstractEventLoop,
        waiting: list[_Waiting],
        failures: list[tuple[Failure, asyncio.Future[None]]],
        timings: list[Timing],
        done: asyncio.Future[list[Logged | MlopsError]],
    ) -> None:
        self._scheduled = False
        if self._waiting or self._failures or self._timings_due:
            self._schedule(loop)
        error = done.exception()
        if timings:
            self._timings_done(timings if error else [])
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

    def _timings_done(self, unwritten: list[Timing]) -> None:
        """Keep what the log did not take for a later group, but not without bound."""
        self._timings[:0] = unwritten[: max(0, MOST_TIMINGS - len(self._timings))]
        flushing, self._flushing = self._flushing or [], None
        for done in flushing:
            if not done.done():
                done.set_result(None)


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

"""Group commit: all requests that are waiting are predicted in one call and logged in one commit.

A request never waits for company. The first one to arrive takes along those that came in the same
turn of the event loop; while the loop works off that group the next one gathers. With 64
connections that is one commit for up to 64 answers.

A group is committed on the event loop, which takes a fraction of a millisecond: to hand it to a
thread would cost more than the work. What could take longer goes to a thread, so that it holds up
answers but neither health checks nor refusals: a large group, one for which the model was too slow
last time, a log that another process has locked, and the wait for a slow disk (`syncing.py`). With
`synced`, answers wait until the disk has them; while a slow one writes, further groups are
committed, and the next sync is for all of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol

from mlops.deploy.lineup import Lineup, OnFailure, Request
from mlops.deploy.syncing import Syncing
from mlops.deploy.turns import Turns
from mlops.errors import IdempotencyConflictError, LogBusyError, MlopsError, NotTrainedError
from mlops.records import Failure, Prediction, Submission, Timing

INLINE_ROWS = 256
INLINE_SECONDS = 0.02
SECONDS_BETWEEN_TIMINGS = 1.0
SECONDS_BETWEEN_LINES = 0.01
"""The log's text file follows so soon: no answer waits for it, and one write serves many groups."""
MOST_TIMINGS = 100_000
"""What is kept, at most, of answers that went out while the log could not be written."""

Logged = tuple[Prediction, ...]
Results = Sequence[Logged | BaseException]
Predicted = Sequence[Submission | Exception]


class Log(Protocol):
    """What serving needs of the prediction log."""

    def append(
        self,
        submissions: Sequence[Submission],
        failures: Sequence[Failure] = (),
        timings: Sequence[Timing] = (),
        *,
        wait: bool = True,
    ) -> Sequence[Logged | IdempotencyConflictError]: ...

    def sync(self) -> None: ...

    def follow(self) -> bool: ...


class _Group(NamedTuple):
    lineup: Lineup | None
    waiting: list[Request]
    failures: list[Failure]
    recorded: list[Callable[[bool], None]]
    timings: list[Timing]
    flushed: list[asyncio.Future[None]]
    rows: int

    @classmethod
    def new(cls) -> _Group:
        return cls(None, [], [], [], [], [], 0)


class GroupCommit:
    """Predicts and records; answers only what has been committed.

    `on_failure` is told of each run that fails, also where another model answers in its place; on
    the event loop or in a thread.
    """

    def __init__(self, log: Log, *, synced: bool, on_failure: OnFailure) -> None:
        self.lineup: Lineup | None = None
        self.runs: Counter[int] = Counter()
        """How often each version has answered a group of rows, since this began."""
        self._on_failure = on_failure
        self._log = log
        self._synced = synced
        self._next = _Group.new()
        self._timings: list[Timing] = []
        self._timer: asyncio.TimerHandle | None = None
        self._timings_due = False
        self._lines: asyncio.TimerHandle | None = None
        self._committing = False
        self._seconds_a_row = 0.0
        self.turns = Turns()
        self._unsynced: list[tuple[_Group, Results]] = []
        self._syncing = False
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="predict-and-log")
        self._disk = Syncing(log)

    def predict(self, request: Request) -> None:
        """Predict its rows and log them, all or none, then let it finish.

        It finishes with an error, if there is one: `NotTrainedError`, `LogUnavailableError`,
        `IdempotencyConflictError`, or whatever a broken model raised.
        """
        self._next.waiting.append(request)
        if not self._committing:  # asked here too: most of those who wait need nothing more
            self._schedule()

    def rows_waiting(self) -> int:
        """Return how many rows the next group has."""
        return sum(len(one.rows) for one in self._next.waiting)

    def record(self, failure: Failure, finish: Callable[[bool], None]) -> None:
        """Log a failed request with the next group, then call `finish`: is it logged or not?"""
        self._next.failures.append(failure)
        self._next.recorded.append(finish)
        self._schedule()

    def observe(self, timing: Timing) -> None:
        """Have the log count, within a second, an answer that has just gone out.

        Its time is known only after its own commit, so it goes with a later group, or alone.
        """
        self._timings.append(timing)
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(SECONDS_BETWEEN_TIMINGS, self._timings_are_due)

    def flush(self) -> asyncio.Future[None]:
        """Have the log count what was observed, now; the future is done when that was tried."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._next.flushed.append(done)
        self._timings_are_due()
        return done

    def settle(self) -> asyncio.Future[None]:
        """Return a future that is done when all that was asked so far is answered."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def settled(_: bool) -> None:
            if not done.done():
                done.set_result(None)

        # Groups are answered in turn, so the next one's answers are after those of all before.
        self._next.recorded.append(settled)
        self._schedule()
        return done

    async def close(self) -> None:
        """Wait until all that was asked is answered. New requests must not come any more."""
        while self._committing or self._syncing or self.turns:
            await asyncio.sleep(0.005)
        for timer in (self._timer, self._lines):
            if timer:
                timer.cancel()
        with contextlib.suppress(MlopsError):
            await asyncio.to_thread(self._log.append, (), (), self._timings)
        self._thread.shutdown()
        self._disk.close()

    def _timings_are_due(self) -> None:
        self._timings_due = True
        self._schedule()

    def _schedule(self) -> None:
        if not self._committing:
            self._committing = True
            asyncio.get_running_loop().call_soon(self._start)

    def _start(self) -> None:
        """Take everything that waits and work it off."""
        rows = self.rows_waiting()
        group, self._next = self._next._replace(lineup=self.lineup, rows=rows), _Group.new()
        if self._timings_due:
            group = group._replace(timings=self._take_timings())
        if rows > INLINE_ROWS or rows * self._seconds_a_row > INLINE_SECONDS:
            self._in_thread(group, lambda: self._append(group, self._predict(group)))
            return
        try:
            predicted = self._predict(group)
            try:
                logged = self._append(group, predicted, wait=False)
            except LogBusyError:
                self._in_thread(group, lambda: self._append(group, predicted))
                return
        except Exception as error:  # noqa: BLE001  # handed to every request that waits
            self._committed(group, error)
        else:
            self._committed(group, logged)
            if self._lines is None and logged:
                self._follow_soon()

    def _follow_soon(self) -> None:
        loop = asyncio.get_running_loop()
        self._lines = loop.call_later(SECONDS_BETWEEN_LINES, self._follow)

    def _follow(self) -> None:
        self._lines = None
        if not self._log.follow():
            self._follow_soon()

    def _predict(self, group: _Group) -> Predicted:
        if group.lineup is None or not group.rows:
            return []
        started = time.perf_counter()
        predicted = group.lineup.answer(group.waiting, self._on_failure, self.runs)
        self._seconds_a_row = (time.perf_counter() - started) / group.rows
        return predicted

    def _append(self, group: _Group, predicted: Predicted, *, wait: bool = True) -> Results:
        submissions = [one for one in predicted if isinstance(one, Submission)]
        logged = self._log.append(submissions, group.failures, group.timings, wait=wait)
        if len(submissions) == len(predicted):
            return logged
        each = iter(logged)
        return [next(each) if isinstance(one, Submission) else one for one in predicted]

    def _take_timings(self) -> list[Timing]:
        self._timings_due = False
        if self._timer:
            self._timer.cancel()
            self._timer = None
        timings, self._timings = self._timings, []
        return timings

    def _in_thread(self, group: _Group, commit: Callable[[], Results]) -> None:
        def done(work: asyncio.Future[Results]) -> None:
            self._committed(group, work.exception() or work.result())

        asyncio.get_running_loop().run_in_executor(self._thread, commit).add_done_callback(done)

    def _committed(self, group: _Group, results: Results | BaseException) -> None:
        """Let the next group begin; answer this one, when it is on the disk if it has to be."""
        self._committing = False
        if self._next.waiting or self._next.recorded or self._timings_due:
            self._schedule()
        if isinstance(results, BaseException):  # the timings may go with a later group
            self._timings[:0] = group.timings[: max(0, MOST_TIMINGS - len(self._timings))]
        for flushed in group.flushed:
            if not flushed.done():
                flushed.set_result(None)
        answers = group.waiting or group.recorded
        if self._synced and answers and not isinstance(results, BaseException):
            self._unsynced.append((group, results))
            self._sync()
        else:
            self._answer(group, results)

    def _sync(self) -> None:
        """Wait until the disk has all groups committed so far, then answer them."""
        if self._syncing or not self._unsynced:
            return
        self._syncing = True
        groups, self._unsynced = self._unsynced, []

        def done(error: Exception | None) -> None:
            self._syncing = False
            self._sync()
            for group, results in groups:
                self._answer(group, error or results)

        self._disk.begin(done)

    def _answer(self, group: _Group, results: Results | BaseException) -> None:
        """Let each request finish; those of a large group in turns (`turns.py`)."""
        logged = not isinstance(results, BaseException)
        if group.lineup is None and logged:
            results = NotTrainedError("no model answers yet")
        if isinstance(results, BaseException):
            results = [results] * len(group.waiting)
        # Groups are answered in turn: also a small one, if some of a large one wait to be written.
        at_once = group.rows <= INLINE_ROWS and not self.turns
        for one, result in zip(group.waiting, results, strict=True):
            if at_once:
                one.finish(result)
            else:
                self.turns.do(functools.partial(one.finish, result))
        for finish in group.recorded:
            if at_once:
                finish(logged)
            else:
                self.turns.do(functools.partial(finish, logged))

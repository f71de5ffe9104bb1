"""Waiting for the disk: in a thread, and for a moment on the event loop too.

To be told through the event loop that a thread has finished costs several wake-ups: with a disk
that syncs in 0.1 ms, more than the sync. Meanwhile half of the connections would be answered and
ask again, so that groups become small and each costs as much as a large one. So the loop waits with
the thread, for `PATIENCE` at the most; a disk that took longer last time is not waited for at all,
and one that hangs holds up neither health checks nor refusals.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

PATIENCE = 0.002
"""Seconds for which nobody else is served."""


class Log(Protocol):
    def sync(self) -> None: ...


class Syncing:
    """Calls `log.sync`, which may block, one call at a time."""

    def __init__(self, log: Log) -> None:
        self._log = log
        # Each lock is let go of by one thread and taken by the other: the cheapest hand-over.
        self._asked, self._finished = threading.Lock(), threading.Lock()
        self._asked.acquire()
        self._finished.acquire()
        self._error: Exception | None = None
        self._seconds = 0.0
        self._closed = False
        self._thread: threading.Thread | None = None
        self._late = ThreadPoolExecutor(max_workers=1, thread_name_prefix="late-sync")

    def begin(self, done: Callable[[Exception | None], None]) -> None:
        """Sync, then call `done` with the error, if there is one: now, or from the event loop.

        Not to be called again before that.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="sync", daemon=True)
            self._thread.start()
        self._asked.release()
        if self._seconds < PATIENCE and self._finished.acquire(timeout=PATIENCE):
            done(self._error)
            return
        loop = asyncio.get_running_loop()
        later = loop.run_in_executor(self._late, self._finished.acquire)
        later.add_done_callback(lambda _: done(self._error))

    def close(self) -> None:
        """End the thread. Nothing may be under way."""
        self._late.shutdown()
        self._closed = True
        if self._thread:
            self._asked.release()
            self._thread.join()

    def _work(self) -> None:
        while True:
            self._asked.acquire()
            if self._closed:
                return
            started = time.perf_counter()
            try:
                self._log.sync()
                self._error = None
            except Exception as error:  # noqa: BLE001  # handed to all who wait for it
                self._error = error
            self._seconds = time.perf_counter() - started
            self._finished.release()

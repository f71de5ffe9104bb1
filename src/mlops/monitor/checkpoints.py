"""Checkpoints: what was committed goes into the main file, and the write-ahead log begins anew.

SQLite writes that log from its start again as soon as all of it was moved and nobody reads from
it. Readers that overlap leave no such moment: each began while there was something to move, so that
the log would grow for as long as they come. Once it is large, writers are therefore kept waiting
until those who read now have ended. Who begins meanwhile reads the end of the log, and a moment
later the main file alone, and is in nobody's way.

A reader that stays for minutes is not waited for: writers go on, and the log grows until it ends.
"""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

import apsw

from mlops.database import CHECKPOINT_PAGES, connect

LARGE_PAGES = 2 * CHECKPOINT_PAGES
"""Without readers in its way the log begins anew at half of that."""
SHORTEST_PAUSE, LONGEST_PAUSE = 0.02, 3.0
"""Seconds for which writers may be kept waiting for readers: as a rule, and of a large log. One who
begins to read again at once is waited for twice."""
TIMES_WITHOUT_PAUSE = 4
"""For so many times as long as they have waited, writers do not wait again."""
SECONDS_BETWEEN_TRIES = 0.0005


class Checkpoints:
    """Those of the database at `path`, each in a thread, for it waits for the disk several times.

    Raises nothing: one that fails is made up for by the next, and commits are safe where they are.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = threading.Thread()
        self._closed = False
        self._pages, self._large = 0, LARGE_PAGES
        self._last = self._no_pause_until = time.monotonic()

    def committed(self, pages: int) -> None:
        """Learn from a commit how many pages the log has; begin to move them, if many are new.

        To be called by one thread at a time.
        """
        now = time.monotonic()
        if pages < self._pages:  # it began anew, whichever process had the others wait
            self._pages, self._large = 0, LARGE_PAGES
            waited = min(now - self._last, LONGEST_PAUSE)
            self._no_pause_until = now + TIMES_WITHOUT_PAUSE * waited
        self._last = now
        if pages - self._pages >= CHECKPOINT_PAGES and not self._thread.is_alive():
            before, self._pages = self._pages, pages
            self._thread = threading.Thread(
                target=self._checkpoint, args=(before, pages), name="checkpoint"
            )
            # Where no thread is to be had, there will be a next time.
            with contextlib.suppress(RuntimeError):
                self._thread.start()

    def close(self) -> None:
        """End the one that is under way; it waits for readers no longer."""
        self._closed = True
        if self._thread.is_alive():
            self._thread.join()

    def _checkpoint(self, before: int, pages: int) -> None:
        """Move the log's `pages`; it had `before` the last time.

        The first step lets others write; what they wrote meanwhile is little, and moved while
        they wait.
        """
        with (
            contextlib.suppress(apsw.Error),
            contextlib.closing(connect(self._path)) as connection,
            contextlib.closing(connect(self._path, read_only=True)) as newcomer,
        ):
            _, moved = connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
            # Who has read since the last time would not end now either.
            brief = moved > before
            if brief and pages >= self._large and time.monotonic() > self._no_pause_until:
                self._large = 2 * pages  # the next time, should it not begin anew now
                mode, pause = apsw.SQLITE_CHECKPOINT_RESTART, LONGEST_PAUSE
            else:
                mode, pause = apsw.SQLITE_CHECKPOINT_FULL, SHORTEST_PAUSE
            until = time.monotonic() + pause

            def on_busy(_: int) -> bool:
                # Readers share the place of one that sees the same. They now find one that sees
                # the end of the log, and do not begin at the place that is waited for, for ever.
                newcomer.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchall()
                time.sleep(SECONDS_BETWEEN_TRIES)
                return time.monotonic() < until and not self._closed

            connection.set_busy_handler(on_busy)
            connection.wal_checkpoint(mode=mode)

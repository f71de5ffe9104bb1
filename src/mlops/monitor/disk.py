"""The disk under a write-ahead log: it begins with what was committed, and has it all in the end.

SQLite reads such a log up to its first incomplete frame, so it is enough that the file is on the
disk. POSIX locks, which closing a descriptor would drop, are held on the other files of the
database, and this descriptor stays open besides.
"""

from __future__ import annotations

import ctypes
import functools
import os
import time
from collections.abc import Callable
from pathlib import Path

HEAD_BYTES, FRAME_HEAD_BYTES = 32, 24
"""Of a write-ahead log, and of each page in it (https://www.sqlite.org/fileformat.html#walformat)."""
QUICK_SECONDS = 0.002
STALE_SECONDS = 0.1
SYNC_FILE_RANGE_WRITE = 2


class Disk:
    """Syncs the file at `path`, in pages of `page_size` bytes. Raises `OSError` if it is not there.

    `pages` is how many of it were committed, by whomever; to be set after each commit.
    """

    def __init__(self, path: Path | str, page_size: int) -> None:
        self.pages = 0
        self._frame = page_size + FRAME_HEAD_BYTES
        self._begun = 0
        self._quick_until = 0.0
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def begin(self) -> None:
        """Have the disk begin with what was committed, and wait for nothing.

        It then works while a thread is woken to `sync`. A disk that was not quick just now is left
        alone: were it to hang with all its queue full, this might wait after all. One that begins
        to hang is met by this once: the `sync` that follows tells, before it is over.
        """
        if time.monotonic() > self._quick_until:
            return
        first = self._begun if self._begun < self.pages else 0  # it began again at its start
        self._begun = self.pages
        start = HEAD_BYTES + first * self._frame
        begin_writing(self._descriptor, start, (self.pages - first) * self._frame)

    def sync(self) -> None:
        """Wait until the disk has all that was committed. Raises `OSError` if it cannot take it."""
        self._quick_until = 0.0  # while it is at work too, and if it fails
        started = time.monotonic()
        os.fdatasync(self._descriptor)
        ended = time.monotonic()
        if ended - started < QUICK_SECONDS:
            self._quick_until = ended + STALE_SECONDS

    def close(self) -> None:
        os.close(self._descriptor)


def begin_writing(descriptor: int, start: int, length: int) -> None:
    """Have the system begin to write these bytes of a file, if it can: see sync_file_range(2)."""
    _sync_file_range()(descriptor, start, length, SYNC_FILE_RANGE_WRITE)


@functools.cache
def _sync_file_range() -> Callable[[int, int, int, int], object]:
    call = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if call is None:
        return lambda *_: None
    call.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    found: Callable[[int, int, int, int], object] = call
    return found

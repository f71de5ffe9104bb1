"""The prediction log as text: one JSON object a line, for `tail -f` and for tools that read files.

The database is the truth and this file follows it. Its lines are the database's rows in the order
of their ids, each once: at any moment a first part of the table, behind by no more than what was
committed in the last hundredth of a second. Nothing is remembered that the file does not say
itself: the id in its last whole line tells which row comes next, and a lock on the file (`flock`)
makes several processes take turns. So every accident has one remedy, applied when the file is next
written:

=============================================  ====================================================
a line torn by a crash, or garbage after it    cut off
rows missing, because a process died           read from the database
the file was deleted or moved                  written anew, from the row after the last full file
no line in it belongs to the database          moved aside, never overwritten, and written anew
=============================================  ====================================================

A file that has grown to a given size is renamed after the id in its last line
(`predictions.log.000000012345`) under that same lock, and the next one goes on after it: together
they hold each line once, however many processes write.

The file is not synced to disk: after a power cut it is mended like after any other crash.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import orjson

from mlops.records import Prediction

ROWS_PER_STEP = 1_000
TAIL_BYTES = 1 << 16
SECONDS_TO_TRY = 0.002
FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC


class LogFile:
    """The file at `path`, which follows the rows that `rows_after(id, limit)` reads.

    `rows_after` returns committed rows with a greater id, in order of id, at most `limit`.
    A file of `largest` bytes is full and is renamed (0: never); the newest `keep` of those stay
    (0: all). Not thread-safe: the log calls it under its own lock.
    """

    def __init__(
        self,
        path: Path,
        rows_after: Callable[[int, int], Sequence[Prediction]],
        *,
        largest: int = 0,
        keep: int = 0,
    ) -> None:
        self.path = path
        self._largest = largest
        self._keep = keep
        self._rows_after = rows_after
        # Inode and size as this process left the file, and the id in its last line. While they
        # are the same nobody else has written, and the tail need not be read.
        self._left = (0, 0, 0)
        self._name = str(path)
        self._descriptor: int | None = None

    def follow(self, committed: Sequence[Prediction] = (), *, wait: bool = True) -> bool:
        """Write the rows that the file lacks; return whether it now holds all of them.

        `committed` is what the caller committed last: written as it is if the file ends just before
        it, and no row of others lies within. Otherwise one step of up to `ROWS_PER_STEP` rows is
        read from the database, so that no request waits for the whole file to be written anew;
        False means, call again.

        Raises `OSError` if the file cannot be read or written; it is then as it was before.
        Without `wait` that is a `BlockingIOError` if another process is writing.
        """
        while True:
            with self._locked(wait=wait) as descriptor:
                end = self._find_end(descriptor)
                if end is None:
                    self._move_aside()
                    continue
                size, last_id = end
                from_memory = bool(committed) and (
                    committed[0].id == last_id + 1 and committed[-1].id == last_id + len(committed)
                )
                rows = committed if from_memory else self._rows_after(last_id, ROWS_PER_STEP)
                if rows:
                    size += _append(descriptor, size, b"".join(map(as_line, rows)))
                    last_id = rows[-1].id
                self._left = (os.fstat(descriptor).st_ino, size, last_id)
                if rows and self._largest and size >= self._largest:
                    self._rotate(last_id)
                return from_memory or len(rows) < ROWS_PER_STEP

    def last_id(self) -> int:
        """Return the id in the last line of the file, or of the newest full one, else 0.

        It takes no lock: asked while somebody writes, it is that of a line before.
        """
        with contextlib.suppress(OSError):  # none there, or no file at all
            descriptor = os.open(self._name, os.O_RDONLY | os.O_CLOEXEC)
            try:
                found = _last_line(descriptor, os.fstat(descriptor).st_size)
            finally:
                os.close(descriptor)
            if found and found[1]:
                return found[1]
        full = self.full()
        return int(full[-1].suffix[1:]) if full else 0

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = None

    @contextlib.contextmanager
    def _locked(self, *, wait: bool) -> Iterator[int]:
        """Hold the lock of the file that the path names, made if missing."""
        while True:
            if self._descriptor is None:
                self._descriptor = os.open(self._name, FLAGS, 0o640)
            self._lock(self._descriptor, wait=wait)
            try:
                if self._is_named(self._descriptor):
                    yield self._descriptor
                    return
            finally:
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            self.close()

    def _lock(self, descriptor: int, *, wait: bool) -> None:
        """Take the file's lock. Without `wait`, try for as long as a commit's lines take."""
        if wait:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            return
        deadline = time.monotonic() + SECONDS_TO_TRY
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(SECONDS_TO_TRY / 20)
            else:
                return

    def _is_named(self, descriptor: int) -> bool:
        """Whether the path still names this file: it may have moved since it was opened."""
        try:
            named = os.stat(self._name)  # noqa: PTH116  each microsecond counts
        except FileNotFoundError:
            return False
        opened = os.fstat(descriptor)
        return (named.st_ino, named.st_dev) == (opened.st_ino, opened.st_dev)

    def _find_end(self, descriptor: int) -> tuple[int, int] | None:
        """Cut off what is torn; return the file's size and last id, or None if it is not ours."""
        status = os.fstat(descriptor)
        inode, size, last_id = self._left
        if (status.st_ino, status.st_size) == (inode, size):
            return size, last_id
        found = _last_line(descriptor, status.st_size)
        if found is None:
            return None
        size, last_id, prediction_id = found
        if not last_id:
            last_id = self._end_of_full()
        elif not self._is_ours(last_id, prediction_id):
            return None
        if size < status.st_size:
            os.ftruncate(descriptor, size)
        return size, last_id

    def _is_ours(self, last_id: int, prediction_id: str) -> bool:
        row = next(iter(self._rows_after(last_id - 1, 1)), None)
        return row is not None and (row.id, row.prediction_id) == (last_id, prediction_id)

    def full(self) -> list[Path]:
        """Return the full files, oldest first."""
        found = self.path.parent.glob(f"{self.path.name}.*")
        names = [path for path in found if re.fullmatch(r"\.\d{12,}", path.suffix)]
        return sorted(names, key=lambda path: int(path.suffix[1:]))

    def forget_before(self, oldest: int) -> None:
        """Delete the full files that hold no row from `oldest` on: nobody writes to them any more.

        Several processes may do so at once. Raises `OSError`.
        """
        for path in self.full():
            if int(path.suffix[1:]) < oldest:
                path.unlink(missing_ok=True)

    def _end_of_full(self) -> int:
        """Return the id in the last line of the newest full file; 0 if it is not of this log."""
        for path in reversed(self.full()):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                found = _last_line(descriptor, os.fstat(descriptor).st_size)
            finally:
                os.close(descriptor)
            if found and found[1] and self._is_ours(*found[1:]):
                return found[1]
        return 0

    def _rotate(self, last_id: int) -> None:
        self.path.rename(self.path.with_name(f"{self.path.name}.{last_id:012}"))
        for path in self.full()[: -self._keep] if self._keep else ():
            path.unlink(missing_ok=True)

    def _move_aside(self) -> None:
        now = datetime.datetime.now(datetime.UTC)
        self.path.rename(self.path.with_name(f"{self.path.name}.aside-{now:%Y%m%dT%H%M%S.%fZ}"))


def as_line(row: Prediction) -> bytes:
    """Return `row` as one line of JSON, newline included."""
    name, stamp, inputs, value, probabilities, warnings, version, bundle, _, number = row
    more = f'"probabilities":{probabilities},' if probabilities else ""
    return (
        f'{{"id":{number},"timestamp":"{stamp}","prediction_id":"{name}","inputs":{inputs},'
        f'"prediction":{orjson.dumps(value).decode()},{more}"warnings":{warnings or "[]"},'
        f'"model_version":{version},"bundle":"{bundle}"}}\n'
    ).encode()


def _append(descriptor: int, size: int, data: bytes) -> int:
    """Append all of `data` to a file of `size`, or nothing; return its length."""
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    except OSError:
        with contextlib.suppress(OSError):  # else it is a torn line, which the next step cuts off
            os.ftruncate(descriptor, size)
        raise
    return len(data)


def _last_line(descriptor: int, size: int) -> tuple[int, int, str] | None:
    """Find the last whole line that is an entry; return where it ends, its id and prediction_id.

    (0, 0, "") if the file has no whole line at all; None if it has, and none of them is an entry.
    """
    window = TAIL_BYTES
    while True:
        start = max(0, size - window)
        block = os.pread(descriptor, size - start, start)
        end = block.rfind(b"\n") + 1
        if start == end == 0:
            return 0, 0, ""
        while end:
            begin = block.rfind(b"\n", 0, end - 1) + 1
            # A line that began before the window is no JSON, and is found whole in a larger one.
            with contextlib.suppress(ValueError, TypeError, KeyError):
                entry = orjson.loads(block[begin:end])
                return start + end, int(entry["id"]), str(entry["prediction_id"])
            end = begin
        if start == 0:
            return None
        window *= 16

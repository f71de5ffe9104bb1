"""Alone: one process at a time at the same work, and a second one is told by whom it is done.

The lock is the kernel's (`flock`), so it ends with its holder, however that ends. What the file
says is for people: who holds it, or who died with it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from mlops import clock
from mlops.errors import BusyError


@contextlib.contextmanager
def alone_at(path: Path, what: str) -> Iterator[None]:
    """Hold the lock in the file `path` for the block. Raises `BusyError` if somebody else does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(
                f"{what} already, {_holder(path)}",
                "wait for it to end, and try again if there is still a reason",
            ) from None
        file.truncate(0)
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since_utc": clock.stamp()}
        file.write(json.dumps(holder) + "\n")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        pid, host, since = holder["pid"], holder["host"], holder["since_utc"]
    except (ValueError, KeyError, TypeError):  # it is being written
        return "by another process, since this moment"
    return f"by process {pid} on {host}, since {since[:19]} UTC"


class Lock:
    """A lock on a file: one process has it, until it gives it back or dies."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def taken(self) -> bool:
        """Whether this process has it now; it is taken if nobody else has it."""
        if self._descriptor is None:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(descriptor)
                return False
            self._descriptor = descriptor
        return True

    @property
    def descriptor(self) -> int:
        """That of the file, for a child that shall hold the lock too."""
        if self._descriptor is None:
            raise RuntimeError("the lock is not taken")
        return self._descriptor

    def give_back(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

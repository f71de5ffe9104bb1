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

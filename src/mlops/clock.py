"""The clock by which everything is stamped, counted and due.

It is the machine's, unless `follow` names a file in which somebody else keeps the time: `mlops
story` lets months pass in a minute, over several processes, that way. How long things take is
measured by `time.perf_counter` and `time.monotonic` all the same.
"""

from __future__ import annotations

import datetime
import functools
import mmap
import struct
import time
from pathlib import Path

from mlops.errors import UsageError

SECONDS = struct.Struct("<d")

_kept: mmap.mmap | None = None


def unix() -> float:
    """Return the time as unix seconds."""
    found: float = time.time() if _kept is None else SECONDS.unpack_from(_kept)[0]
    return found


def utc() -> datetime.datetime:
    """Return the time in UTC."""
    return datetime.datetime.fromtimestamp(unix(), datetime.UTC)


def stamp() -> str:
    """Return the time as ISO 8601 in UTC, always 32 characters."""
    seconds, microseconds = divmod(round(unix() * 1_000_000), 1_000_000)
    return f"{_to_the_second(seconds)}.{microseconds:06}+00:00"


@functools.lru_cache(maxsize=1)
def _to_the_second(seconds: int) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat()[:19]


def seconds_of(timestamp: str) -> float:
    """Return an ISO 8601 timestamp as unix seconds."""
    return datetime.datetime.fromisoformat(timestamp).timestamp()


def iso(seconds: float) -> str:
    """Return unix seconds as ISO 8601 in UTC, to the second."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")


def pause(seconds: float) -> float:
    """Return how long to wait before looking again: less where a story lets time fly."""
    return seconds if _kept is None else seconds / 30


def follow(path: Path) -> None:
    """Take the time from a file from now on, which holds unix seconds as 8 bytes (`set_to`).

    Raises `UsageError` if there is no such file.
    """
    global _kept  # noqa: PLW0603  a process has one clock
    try:
        with path.open("rb") as file:
            _kept = mmap.mmap(file.fileno(), SECONDS.size, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"MLOPS_STORY_CLOCK names {path}, which holds no time: {error}",
            "unset it: it is for mlops story alone",
        ) from None


def set_to(path: Path, seconds: float) -> None:
    """Set the clock that lies in a file, made if need be: all who follow it see it at once."""
    with path.open("r+b" if path.exists() else "w+b", buffering=0) as file:
        file.write(SECONDS.pack(seconds))

"""Who serves, and how much of what was decided it has taken up, so that a promotion can wait.

Each server process has, for each use case, a file in `models/serving/`: what it has taken up, up to
which line of the ledger. It holds the file's lock (flock(2)) as long as it lives, in whatever
container that shares the folder. A file that nobody holds is that of a process which was killed:
who finds it removes it.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson

SECONDS_TO_SWITCH = 10.0
SECONDS_BETWEEN_LOOKS = 0.02
LARGEST = 16_384


class Presence:
    """That this process serves a use case, for all to see until it ends or `close` is called.

    Made before the ledger is read for the first time: who is not seen by a promotion will read what
    it wrote. Raises `OSError` if the folder cannot be written.
    """

    def __init__(self, folder: Path, use_case: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{use_case}.{os.getpid()}.{secrets.token_hex(4)}"
        hidden = folder / f".{name}"  # nobody may see it before it is locked
        self._descriptor = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        self._said = b""
        self.tell(0, None, "")
        self._path = hidden.rename(folder / name)

    def tell(self, line: int, version: int | None, trouble: str) -> None:
        """Say up to which line of the ledger this is up to date, who answers, and what is amiss."""
        said = orjson.dumps(
            {"process": os.getpid(), "line": line, "version": version, "trouble": trouble[:2_000]}
        )
        if said != self._said:
            os.pwrite(self._descriptor, said, 0)
            os.ftruncate(self._descriptor, len(said))
            self._said = said

    def close(self) -> None:
        self._path.unlink(missing_ok=True)
        os.close(self._descriptor)


def wait(
    folder: Path, use_case: str, line: int, version: int, seconds: float = SECONDS_TO_SWITCH
) -> tuple[str, ...]:
    """Wait until all who serve a use case have taken up a line of the ledger: `version` answers.

    Returns, in words, which process has not after so many seconds, and which could not.
    """
    deadline = time.monotonic() + seconds
    while True:
        late, refused = [], []
        for one in _serving(folder, use_case):
            process = f"the server's process {one['process']}"
            if one["line"] < line:
                answers = f"version {one['version']}" if one["version"] else "nobody"
                late.append(f"{process} has not switched in {seconds:g} s: {answers} answers there")
            elif one["trouble"] and one["version"] != version:
                refused.append(
                    f"{process} does not answer with version {version}: {one['trouble']}"
                )
        if not late or time.monotonic() > deadline:
            return (*late, *refused)
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _serving(folder: Path, use_case: str) -> Iterator[dict[str, Any]]:
    """Yield what each process that lives says of itself, and remove what others left."""
    for path in sorted(folder.glob(f"{use_case}.*")):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:  # it has just ended
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            try:
                yield orjson.loads(os.pread(descriptor, LARGEST, 0))
            except ValueError:  # it is just being written: the next look will tell
                yield {"process": path.name.split(".")[1], "line": -1, "version": None}
        else:
            with suppress(OSError):
                path.unlink(missing_ok=True)
        finally:
            os.close(descriptor)

"""What a harness is given: a trained project to copy, a size, a seed; and what it gives back."""

from __future__ import annotations

import dataclasses
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Self

from conftest import Server, copy_project, start_server

from mlops.improve.ledger import Ledger

ROOT = Path(__file__).parents[2]
FAULTY = ROOT / "tests" / "faulty.py"


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """What a harness saw: in words, whether the "must" holds, and how much it tried.

    `goal` is whether the goal's limit holds too, where that is a stricter one than the must's.
    """

    says: str
    holds: bool
    size: str
    goal: bool = True


class World:
    """Copies of a trained project, and servers over them that end with the `with` block.

    With a `fault` the servers have it planted (`tests/faulty.py` lists them).
    """

    def __init__(
        self, trained: Path, *, seed: int = 1, fault: str = "", deadline: float | None = None
    ) -> None:
        self.trained = trained
        self.seed = seed
        self.chance = random.Random(seed)
        self.fault = fault
        self.deadline = deadline
        self.out_of_time = False
        self._folders: list[Path] = []
        self._servers: list[Server] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            if server.process.poll() is None:
                server.kill()
        for folder in self._folders:
            shutil.rmtree(folder, ignore_errors=True)

    def folder(self) -> Path:
        folder = Path(tempfile.mkdtemp(prefix="reliability-"))
        self._folders.append(folder)
        return folder

    def home(self) -> Path:
        """Return a copy of the trained project: data, bundles and champions."""
        return copy_project(self.trained, self.folder() / "home")

    def start(self, home: Path, *use_cases: str, workers: int = 1, **more: Any) -> Server:
        """Start a server and wait until it is ready; `more` goes into its environment."""
        if self.fault:
            words = [sys.executable, str(FAULTY), self.fault, "serve", *use_cases]
            more["command"] = [*words, "--port", "{port}", "--workers", str(workers)]
        server = start_server(home, *use_cases, WORKERS=str(workers), **more)
        self._servers.append(server)
        return server

    def rounds(self, number: int) -> Iterator[int]:
        """Count up to `number`, or for as long as there is time; at least one round."""
        for turn in range(number):
            if turn and self.deadline is not None and time.monotonic() > self.deadline:
                self.out_of_time = True
                return
            yield turn


def champions(home: Path, use_case: str = "iris") -> dict[int, str]:
    """Return the bundle of each version."""
    with Ledger(home / "models" / "state.db") as ledger:
        return {version.version: version.bundle for version in ledger.versions(use_case)}


def promote(home: Path, number: int, use_case: str = "iris") -> None:
    """Make a version the champion, whatever the gates think of it."""
    with Ledger(home / "models" / "state.db") as ledger:
        champion = ledger.champion(use_case)
        ledger.promote(
            ledger.version(use_case, number),
            expected=champion.version if champion else None,
            reason="a test",
            evidence=[],
        )


def until(condition: Callable[[], Any], seconds: float = 30) -> float:
    """Wait for a condition; return the seconds that took. `AssertionError` if it never held."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() < started + seconds, f"this did not come to pass in {seconds} s"
        time.sleep(0.02)
    return time.monotonic() - started


def quantile(values: Iterable[float], share: float) -> float:
    """Return a quantile of measured values; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0

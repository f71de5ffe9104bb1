"""The event loop waits for the disk, but not long."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

from mlops.deploy.syncing import PATIENCE, Syncing


class Disk:
    """A log whose syncs wait for a gate."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.threads: set[str] = set()
        self.error: Exception | None = None

    def sync(self) -> None:
        self.threads.add(threading.current_thread().name)
        assert self.gate.wait(10)
        if self.error:
            raise self.error


def running(test: Callable[[Disk, Syncing, list[Exception | None]], object]) -> None:
    async def run() -> None:
        disk, told = Disk(), []  # type: ignore[var-annotated]
        syncing = Syncing(disk)
        await test(disk, syncing, told)  # type: ignore[misc]
        syncing.close()
        assert not [one for one in threading.enumerate() if "sync" in one.name]

    asyncio.run(run())


async def until_told(told: list[Exception | None], times: int) -> None:
    async with asyncio.timeout(10):
        while len(told) < times:
            await asyncio.sleep(0.001)


def test_a_sync_is_made_by_a_thread_and_told_with_its_error() -> None:
    async def test(disk: Disk, syncing: Syncing, told: list[Exception | None]) -> None:
        for number, error in enumerate((None, OSError("no space left"), None), start=1):
            disk.error = error
            syncing.begin(told.append)
            await until_told(told, number)
        assert [type(one) for one in told] == [type(None), OSError, type(None)]
        assert disk.threads == {"sync"}

    running(test)


def test_a_disk_that_hangs_holds_up_nobody_and_is_not_waited_for_until_it_is_fast_again() -> None:
    async def test(disk: Disk, syncing: Syncing, told: list[Exception | None]) -> None:
        for _ in range(2):
            disk.gate.clear()
            before = len(told)
            syncing.begin(told.append)
            assert len(told) == before
            await asyncio.sleep(2 * PATIENCE)
            disk.gate.set()
            await until_told(told, before + 1)
        # The loop does not even wait for a moment: the sync before was slow.
        started = time.thread_time()
        syncing.begin(told.append)
        assert len(told) == 2
        assert time.thread_time() - started < PATIENCE
        await until_told(told, 3)

    running(test)

"""R16: how long it takes until a worker that was killed or hangs has been replaced."""

from __future__ import annotations

import contextlib
import os
import signal
import time

import psutil
from test_workers import both_up, pids

from benchmarks.reliability.world import Found, World, until

LONGEST = 10.0


def replacements(world: World, number: int = 2) -> Found:
    """Stop and kill one of two workers in turn; measure until two answer again."""
    server = world.start(world.home(), "iris", workers=2)
    until(lambda: both_up(server))
    slowest, done, gone_for_good = {signal.SIGSTOP: 0.0, signal.SIGKILL: 0.0}, 0, 0
    for turn in world.rounds(number):
        kind = (signal.SIGSTOP, signal.SIGKILL)[turn % 2]
        gone = min(pids(server))
        started_before = server.printed().count("Application startup complete.")
        started = time.monotonic()
        os.kill(gone, kind)

        def full(gone: int = gone, before: int = started_before) -> bool:
            up = server.printed().count("Application startup complete.") > before
            now = pids(server)
            return up and len(now) == 2 and gone not in now and not psutil.pid_exists(gone)

        try:
            until(full, LONGEST)
        except AssertionError:
            gone_for_good += 1
            with contextlib.suppress(ProcessLookupError):
                os.kill(gone, signal.SIGKILL)  # one that hangs ends by nothing else
            break
        slowest[kind] = max(slowest[kind], time.monotonic() - started)
        done += 1
    return Found(
        f"{slowest[signal.SIGKILL]:.1f} s at most after a kill, "
        f"{slowest[signal.SIGSTOP]:.1f} s when it hung"
        + (f", {gone_for_good} never replaced" if gone_for_good else ""),
        not gone_for_good,
        f"{done} workers",
        goal=max(slowest.values()) <= 2,
    )

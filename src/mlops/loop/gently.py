"""Gently: this process takes what others leave, and keeps a core free for those who answer."""

from __future__ import annotations

import contextlib
import functools
import os
from pathlib import Path

import psutil

LOWEST = 19


def gently() -> None:
    """Give this process, all threads it has or will have, the lowest priority and a core less.

    Of processors, by `nice`, and of disks, as far as the system knows that. Priorities alone would
    not do: between sessions and containers the kernel shares processors whatever they are. Cannot
    be taken back.
    """
    cores = _cores()
    for thread in _threads():
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.setpriority(os.PRIO_PROCESS, thread, LOWEST)
            if cores:
                os.sched_setaffinity(thread, cores)
    if hasattr(psutil, "IOPRIO_CLASS_IDLE"):
        psutil.Process().ionice(psutil.IOPRIO_CLASS_IDLE)


@functools.cache
def _cores() -> list[int]:
    """Return the cores this process may keep: all but one of those it had when first asked."""
    return sorted(os.sched_getaffinity(0))[1:] if hasattr(os, "sched_setaffinity") else []


def _threads() -> list[int]:
    """Return the threads of this process: to Linux, priority and cores are a thread's own."""
    tasks = Path("/proc/self/task")
    return [int(task.name) for task in tasks.iterdir()] if tasks.exists() else [0]

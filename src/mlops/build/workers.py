"""Processes that score tasks for a search, and die with it.

Processes and not threads: what a fit warns of (no convergence) is read from a list that threads
share. Started afresh and not forked: a fork of a process in which OpenMP has run hangs.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, cast

from mlops.build.tuning import Outcome, Rows, Task
from mlops.errors import TrainingError
from mlops.usecase import UseCase

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


class Workers:
    """A team of processes. Ended, whatever they are at, by `close`.

    Each looks up the use case itself, by `find` and its name: a declaration may hold what cannot be
    sent to another process (a lambda).
    """

    def __init__(self, rows: Rows, count: int, find: Callable[[str], UseCase]) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipes: list[Connection] = []
        self.processes: list[BaseProcess] = []
        self.busy: set[int] = set()
        given = find, rows.use_case.name, rows.X, rows.y
        with _deaf_to_ctrl_c():
            for _ in range(count):
                ours, theirs = context.Pipe()
                process = context.Process(target=_work, args=(theirs, *given), daemon=True)
                process.start()
                theirs.close()  # so that its end, should it die, is the end of the pipe
                self.pipes.append(ours)
                self.processes.append(process)

    def idle(self) -> list[int]:
        return [number for number in range(len(self.pipes)) if number not in self.busy]

    def give(self, worker: int, task: Task) -> None:
        self.busy.add(worker)
        try:
            self.pipes[worker].send(task)
        except OSError:
            raise self._died(worker) from None

    def wait(self, seconds: float) -> list[tuple[int, Outcome]]:
        """Return what was finished. Raises `TrainingError` if a worker was ended from outside."""
        found = []
        for pipe in wait([self.pipes[number] for number in self.busy], timeout=seconds):
            worker = self.pipes.index(cast(Connection, pipe))
            try:
                found.append((worker, self.pipes[worker].recv()))
            except (EOFError, OSError):
                raise self._died(worker) from None
            self.busy.discard(worker)
        return found

    def close(self) -> None:
        for process in self.processes:
            process.kill()
        for process, pipe in zip(self.processes, self.pipes, strict=True):
            process.join()
            pipe.close()

    def _died(self, worker: int) -> TrainingError:
        process = self.processes[worker]
        process.join(1)
        return TrainingError(
            f"a process that scores trials ended with {process.exitcode}",
            "free memory or take fewer with --jobs, and run it again: finished trials are kept",
        )


def _work(
    tasks: Connection, find: Callable[[str], UseCase], name: str, X: pd.DataFrame, y: np.ndarray
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    rows = Rows(find(name), X, y)
    with contextlib.suppress(EOFError, OSError):
        while True:
            tasks.send(rows.score(tasks.recv()))


def _die_with_parent() -> None:
    """End with the search even if that was killed, and even in the middle of a long fit."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)


@contextlib.contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Ctrl-C reaches every process of the terminal; workers are deaf to it from their first line.

    A process that is started while the signal is ignored goes on ignoring it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)

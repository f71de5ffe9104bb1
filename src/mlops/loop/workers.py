"""Several worker processes behind one socket, and the supervisor that keeps them at full number.

The supervisor binds the socket and loads no model; each worker is a program of its own, started
anew (never forked from a process with threads), and accepts from that one socket. What they share
is on disk: the prediction log, the counts, the champion's name. So every worker answers with the
same champion and the same totals, and the death of one costs only the requests it had in hand:
connections that nobody has accepted yet wait for the others.

A worker that dies is replaced at once. One that hangs is found by its silence, for its event loop
beats several times a second, and is killed and replaced: after a second if it neither computes nor
waits for the disk, for then it waits for what will not come. A worker whose supervisor died drains
and ends by itself.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import uvicorn

from mlops.errors import ServiceError
from mlops.settings import Settings

SECONDS_OF_SILENCE = 3.0
"""More than the largest request keeps an event loop, and far less than a client waits."""
SECONDS_OF_SLEEP = 0.7
"""More than a worker with work waits for a processor that many share."""
SECONDS_TO_START = 60.0
SECONDS_BETWEEN_LOOKS = 0.05
SECONDS_WITHOUT_A_LOOK = 1.0
"""After more the supervisor itself was stopped (Ctrl-Z, a frozen machine): silence is no sign."""
SECONDS_BETWEEN_BEATS = 0.3
"""More than uvicorn lets pass between two, if nothing holds it up."""
DEATHS_AT_START = 3
"""So many workers in a row that never came up: it is not by chance, and nothing will mend it."""
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1"
)


class Worker:
    """One worker process, as the supervisor sees it."""

    def __init__(self, names: Sequence[str], settings: Settings, listening: socket.socket) -> None:
        self._beats, beat = os.pipe()
        os.set_blocking(self._beats, False)
        try:
            self.process = subprocess.Popen(  # noqa: S603  this very module
                [
                    *(sys.executable, "-m", __name__),
                    *(str(number) for number in (os.getpid(), listening.fileno(), beat)),
                    *names,
                ],
                env={
                    **os.environ,
                    **ONE_THREAD,
                    "MLOPS_HOME": str(settings.home),
                    "WORKERS": str(settings.workers),  # each has its share of the limits
                },
                pass_fds=(listening.fileno(), beat),
            )
        except OSError:
            self.close()
            raise
        finally:
            os.close(beat)
        self.up = False
        self._ticks = -1
        self.forgive()

    def forgive(self) -> None:
        """Let its silence begin now."""
        self._heard = self._ran = time.monotonic()

    def hangs(self) -> bool:
        """Listen for its beats; whether it has been silent for too long."""
        now = time.monotonic()
        if select.select([self._beats], [], [], 0)[0] and os.read(self._beats, 4096):
            self.up, self._heard = True, now
        silent = now - self._heard
        if not self.up:
            return silent > SECONDS_TO_START
        if silent < SECONDS_BETWEEN_BEATS:
            return False
        return silent > SECONDS_OF_SILENCE or self._sleeps(now) > SECONDS_OF_SLEEP

    def _sleeps(self, now: float) -> float:
        """Return for how many seconds of its silence it has neither computed nor used the disk."""
        used = _ticks(self.process.pid)
        if used is None or used != self._ticks or self._ran < self._heard:
            self._ticks, self._ran = -1 if used is None else used, now
        return now - self._ran

    def end(self, signal_number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal_number)

    def close(self) -> None:
        os.close(self._beats)


class Supervisor:
    """Keeps `settings.workers` running until SIGINT or SIGTERM, then lets them drain."""

    def __init__(self, names: Sequence[str], settings: Settings, listening: socket.socket) -> None:
        self._names = names
        self._settings = settings
        self._listening = listening
        self._workers: list[Worker] = []
        self._stopping = False
        self._deaths_at_start = 0
        self._looked = time.monotonic()
        self._refused: str | None = None

    def run(self, seconds_to_drain: float) -> None:
        """Raises `ServiceError` if workers cannot come up at all."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)
        try:
            while not self._stopping:
                self._replace()
                self._fill()
                time.sleep(SECONDS_BETWEEN_LOOKS)
        finally:
            self._end(seconds_to_drain)

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def _replace(self) -> None:
        """Let go of each worker that died or hangs."""
        now = time.monotonic()
        if now - self._looked > SECONDS_WITHOUT_A_LOOK:
            for worker in self._workers:
                worker.forgive()
        self._looked = now
        for worker in tuple(self._workers):
            if worker.process.poll() is None:
                if not worker.hangs():
                    self._deaths_at_start *= not worker.up
                    continue
                _say(f"worker {worker.process.pid} hangs, and is replaced")
                worker.end(signal.SIGKILL)
                worker.process.wait()
            else:
                _say(f"worker {worker.process.pid} died ({worker.process.returncode})")
            worker.hangs()  # hears what it had still said
            worker.close()
            self._workers.remove(worker)
            self._deaths_at_start += not worker.up
            if self._deaths_at_start >= DEATHS_AT_START * self._settings.workers:
                raise ServiceError(
                    "workers end as soon as they begin",
                    "see above what they say, or find out with: mlops serve --workers 1",
                )

    def _fill(self) -> None:
        """Start the workers that are missing; those the system refuses, at the next look."""
        try:
            while len(self._workers) < self._settings.workers:
                self._workers.append(Worker(self._names, self._settings, self._listening))
            self._refused = None
        except OSError as error:
            if self._refused != error.strerror:
                _say(f"a worker cannot be started yet: {error.strerror}")
            self._refused = error.strerror

    def _end(self, seconds_to_drain: float) -> None:
        deadline = time.monotonic() + seconds_to_drain
        for worker in self._workers:
            worker.end(signal.SIGTERM)
        for worker in self._workers:
            try:
                worker.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.end(signal.SIGKILL)
                worker.process.wait()


class WorkerServer(uvicorn.Server):
    """A server that shows its supervisor that it lives, and does not outlive it."""

    def __init__(self, config: uvicorn.Config, supervisor: int, beat: int) -> None:
        super().__init__(config)
        os.set_blocking(beat, False)
        self._beat = beat
        self._supervisor = supervisor

    async def on_tick(self, counter: int) -> bool:
        """Beat; uvicorn calls this from the event loop, ten times a second."""
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            os.write(self._beat, b".")
        orphaned = os.getppid() != self._supervisor
        return await super().on_tick(counter) or orphaned


def _ticks(process: int) -> int | None:
    """Return the processor time a process has used, in clock ticks of the system.

    None while it waits for the disk, and where there is no /proc to read (proc(5)).
    """
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return None
    state, *fields = stat.rpartition(")")[2].split()
    return None if state == "D" else int(fields[10]) + int(fields[11])


def _say(text: str) -> None:
    sys.stderr.write(f"WARNING:  {text}\n")
    sys.stderr.flush()


def main() -> None:
    """Be a worker: `python -m mlops.loop.workers SUPERVISOR LISTENING BEAT USE_CASE...`."""
    from mlops.loop.foreground import run_server
    from mlops.settings import read_settings

    supervisor, listening, beat = map(int, sys.argv[1:4])
    for passed_on in (listening, beat):
        # A child of the worker that outlives it would keep the port: uvloop closes none of these.
        os.set_inheritable(passed_on, False)
    with socket.socket(fileno=listening) as shared:
        run_server(
            sys.argv[4:],
            read_settings(),
            shared,
            lambda config: WorkerServer(config, supervisor, beat),
        )


if __name__ == "__main__":
    main()

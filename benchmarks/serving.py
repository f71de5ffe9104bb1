"""How much of a bare server's speed is left when every answer is validated and logged?

The same server program (uvicorn with uvloop and httptools) on one core, the load on the other:
once with a handler that reads the body and says hello, once with `POST /predict` of a champion of
500 trees, which validates, predicts, commits the row and answers. One request at a time is held
against a second bare handler too, which validates and predicts, but keeps nothing. All in turn,
several rounds; of each figure the median of the rounds, of each ratio the median of the rounds'
ratios, so that a moment in which the machine did something else weighs on both. How much is
answered is told for each second of processor time that the server took: its core is busy
throughout, and what else the machine does then is not counted against it.

`power` is held against the disk: while one sync is under way, no answer of its group can go out,
so c connections get at most c answers in the time of one fdatasync and of handling c requests,
which is what they take in `crash` mode in the same run, by the clock. The disk is asked in turn
too, in the way in which the log asks it: the write-ahead log is written over in place once it has
been through its first checkpoint, which a warm-up sees to. To lengthen a file costs more.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from benchmarks.results import Found, Line, Row
from mlops.package.bundle import open_bundle
from mlops.usecases.housing import HOUSING

SERVER_CORE, LOAD_CORE = 0, 1
CONNECTIONS = (1, 16, 64)
ROUNDS = 5
SECONDS = 2.0
BATCH_ROWS = 1_000
SYNCS = 60
BYTES_PER_SYNC = 45_320
"""What a group of 16 rows adds to the write-ahead log: eleven pages and their heads."""
EXAMPLE = next(iter(HOUSING.examples.values()))
BODY = json.dumps(EXAMPLE).encode()
BATCH_BODY = json.dumps({"instances": [EXAMPLE] * BATCH_ROWS}).encode()

IDLE = Line("crash, one at a time: time ÷ the bare server's", most=3)
HANDLER = Line("crash, one at a time: time ÷ a bare handler's that validates and predicts", most=3)
SPREAD = Line("crash, 16 connections: p99 ÷ p50", most=5)
CRASH = {
    16: Line("crash, 16 connections: answers ÷ the bare server's", least=0.40),
    64: Line("crash, 64 connections: answers ÷ the bare server's", least=0.50),
}
POWER = {
    connections: Line(f"power, {connections} at once: answers ÷ what the disk allows", least=0.70)
    for connections in CONNECTIONS
}
BATCH = Line(f"batches of {BATCH_ROWS:,}: rows ÷ those of ONNX Runtime alone", least=0.30)
LINES = (IDLE, HANDLER, CRASH[16], SPREAD, CRASH[64], BATCH, *POWER.values())

Loads = list[tuple[dict[str, Any], dict[str, Any]]]


def run(home: Path, _: int = 0) -> Found:
    """Measure a champion of 500 trees, on two cores."""
    subprocess.run([sys.executable, "-m", "benchmarks.five_hundred", str(home)], check=True)
    rows: list[Row] = []
    handled: dict[int, float] = {}
    with server(BARE, home, {}, "/") as bare:
        with server(OURS, home, {"PREDICTIONS_DURABILITY": "crash"}, READY) as ours:
            ours.load("/predict", BODY, 16, 1.0)  # warm
            for connections in CONNECTIONS:
                rounds = [_in_turn(bare, ours, connections) for _ in range(ROUNDS)]
                handled[connections] = connections / _median(rounds, 1, "per_second")
                rows += _against_bare(connections, rounds)
            with server(PREDICTING, home, {}, "/") as predicting:
                rows.insert(1, _against_handler(predicting, ours))
            rows.append(_batch(ours, home))
        with server(OURS, home, {"PREDICTIONS_DURABILITY": "power"}, READY) as ours:
            ours.load("/predict/batch", BATCH_BODY, 1, 3.0)  # past the first checkpoint
            rows += [_against_disk(ours, home, *one) for one in handled.items()]
    in_place, longer = fdatasync_seconds(home), fdatasync_seconds(home, in_place=False)
    note = (
        f"fdatasync of {BYTES_PER_SYNC // 1000} kB: {1e3 * in_place:.2f} ms over what was written "
        f"before, as the log's are, {1e3 * longer:.2f} ms where a file grows"
    )
    return Found(rows, [note])


BARE = [sys.executable, "-m", "uvicorn", "benchmarks.bare:app", "--no-access-log", "--port"]
PREDICTING = [*BARE[:3], "benchmarks.predicting:application", "--factory", *BARE[4:]]
OURS = [sys.executable, "-m", "mlops.cli", "serve", "housing", "--port"]
READY = "/health/ready"


@dataclasses.dataclass(frozen=True, slots=True)
class Server:
    """A server that answers, and with its children is held to one core."""

    process: subprocess.Popen[bytes]
    port: int

    def load(self, path: str, body: bytes, connections: int, seconds: float) -> dict[str, Any]:
        """Ask for some seconds; return what `benchmarks.load` measured and `per_busy_second`."""
        before = self.processor_seconds()
        found = load(self.port, path, body, connections, seconds)
        found["per_busy_second"] = found["requests"] / (self.processor_seconds() - before)
        return found

    def processor_seconds(self) -> float:
        """Return what the server and its children have taken so far."""
        leader = psutil.Process(self.process.pid)
        times = [one.cpu_times() for one in (leader, *leader.children(recursive=True))]
        return sum(one.user + one.system for one in times)


def _in_turn(bare: Server, ours: Server, connections: int) -> tuple[dict[str, Any], dict[str, Any]]:
    return (
        bare.load("/", BODY, connections, SECONDS),
        ours.load("/predict", BODY, connections, SECONDS),
    )


def _median(rounds: Loads, which: int, name: str) -> float:
    return statistics.median(one[which][name] for one in rounds)


def _against_bare(connections: int, rounds: Loads) -> list[Row]:
    bare, ours = (f"{_median(rounds, which, 'per_busy_second'):,.0f} /s" for which in (0, 1))
    p50, p99 = (1e3 * _median(rounds, 1, name) for name in ("p50", "p99"))
    if connections == 1:
        slower = statistics.median(b["p50"] / a["p50"] for a, b in rounds)
        return [Row(IDLE, bare, ours, slower, p50, p99)]
    ratio = statistics.median(b["per_busy_second"] / a["per_busy_second"] for a, b in rounds)
    rows = [Row(CRASH[connections], bare, ours, ratio, p50, p99)]
    if connections == 16:
        theirs, spread = (
            statistics.median(one[which]["p99"] / one[which]["p50"] for one in rounds)
            for which in (0, 1)
        )
        rows.append(Row(SPREAD, f"{theirs:.1f}", f"{spread:.1f}", spread, p50, p99))
    return rows


def _against_handler(handler: Server, ours: Server) -> Row:
    handler.load("/predict", BODY, 1, 1.0)  # warm
    rounds = [
        tuple(each.load("/predict", BODY, 1, SECONDS) for each in (handler, ours))
        for _ in range(ROUNDS)
    ]
    slower = statistics.median(b["p50"] / a["p50"] for a, b in rounds)
    theirs, answered = (f"{_median(rounds, which, 'per_busy_second'):,.0f} /s" for which in (0, 1))
    p50, p99 = (1e3 * _median(rounds, 1, name) for name in ("p50", "p99"))
    return Row(HANDLER, theirs, answered, slower, p50, p99)


def _against_disk(ours: Server, home: Path, connections: int, handled: float) -> Row:
    rounds = [
        (fdatasync_seconds(home), ours.load("/predict", BODY, connections, SECONDS))
        for _ in range(ROUNDS)
    ]
    allowed = [connections / (sync + handled) for sync, _ in rounds]
    found = [one["per_second"] for _, one in rounds]
    ratio = statistics.median(b / a for a, b in zip(allowed, found, strict=True))
    p50, p99 = (1e3 * statistics.median(one[name] for _, one in rounds) for name in ("p50", "p99"))
    limit, reached = (f"{statistics.median(each):,.0f} /s" for each in (allowed, found))
    return Row(POWER[connections], limit, reached, ratio, p50, p99)


def _batch(ours: Server, home: Path) -> Row:
    """Batches over HTTP and the same rows through ONNX Runtime alone, in turn, on one core."""
    before = _logged(ours.port)
    rounds = [
        (_onnx_rows_per_second(home), ours.load("/predict/batch", BATCH_BODY, 2, SECONDS))
        for _ in range(ROUNDS)
    ]
    answered = sum(one["requests"] for _, one in rounds) * BATCH_ROWS
    if _logged(ours.port) - before != answered:
        raise RuntimeError(f"{answered} rows were answered, {_logged(ours.port) - before} logged")
    alone = statistics.median(alone for alone, _ in rounds)
    found = [one["per_busy_second"] * BATCH_ROWS for _, one in rounds]
    ratio = statistics.median(rate / alone for rate, (alone, _) in zip(found, rounds, strict=True))
    p50, p99 = (1e3 * statistics.median(one[name] for _, one in rounds) for name in ("p50", "p99"))
    rates = (f"{rate:,.0f} rows/s" for rate in (alone, statistics.median(found)))
    return Row(BATCH, *rates, ratio, p50, p99)


def _logged(port: int) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as response:
        return int(json.load(response)["total_predictions"])


def _onnx_rows_per_second(home: Path) -> float:
    """Run the champion's graph on the server's core, which is idle now."""
    import numpy as np

    [path] = (path for path in (home / "models" / "bundles").iterdir() if len(path.name) == 64)
    model = open_bundle(path).model
    rows = np.array([[EXAMPLE[name] for name in HOUSING.fields]] * BATCH_ROWS)
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {SERVER_CORE})
    try:
        taken = []
        for _ in range(50):
            started = time.process_time()
            model.run(rows)
            taken.append(time.process_time() - started)
    finally:
        os.sched_setaffinity(0, cores)
    return BATCH_ROWS / statistics.median(taken)


def fdatasync_seconds(home: Path, *, in_place: bool = True) -> float:
    """Return how long the disk takes for what one group writes: the median of some.

    Over what a file holds already, or at its end.
    """
    path = home / "fdatasync"
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    try:
        if in_place:
            os.write(descriptor, b"-" * SYNCS * BYTES_PER_SYNC)
            os.fsync(descriptor)
            os.lseek(descriptor, 0, os.SEEK_SET)
        taken = []
        for _ in range(SYNCS):
            os.write(descriptor, b"x" * BYTES_PER_SYNC)
            started = time.perf_counter()
            os.fdatasync(descriptor)
            taken.append(time.perf_counter() - started)
    finally:
        os.close(descriptor)
        path.unlink()
    return statistics.median(taken)


@contextlib.contextmanager
def server(
    command: list[str], home: Path, environment: dict[str, str], ready: str
) -> Iterator[Server]:
    """Run a server on its core until the block ends."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with (home / "bench-server.log").open("ab") as output:
        process = subprocess.Popen(
            [*command, str(port)],
            env={**os.environ, "MLOPS_HOME": str(home), **environment},
            stdout=output,
            stderr=output,
            preexec_fn=lambda: os.sched_setaffinity(0, {SERVER_CORE}),
        )
    try:
        _wait(process, f"http://127.0.0.1:{port}{ready}")
        yield Server(process, port)
    finally:
        process.terminate()
        process.wait(timeout=30)


def _wait(process: subprocess.Popen[bytes], url: str) -> None:
    for _ in range(300):
        with contextlib.suppress(OSError):
            urllib.request.urlopen(url, timeout=1).close()
            return
        if process.poll() is not None:
            break
        time.sleep(0.1)
    raise RuntimeError(f"{url} does not answer")


def load(
    port: int, path: str, body: bytes, connections: int, seconds: float, *pace: float
) -> dict[str, Any]:
    """Load a server from the other core; `pace` is a rate and a seed, or nothing."""
    numbers = (str(number) for number in (connections, seconds, *pace))
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.load", str(port), path, *numbers],
        input=body,
        capture_output=True,
        check=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {LOAD_CORE}),
    )
    measured: dict[str, Any] = json.loads(done.stdout)
    return measured

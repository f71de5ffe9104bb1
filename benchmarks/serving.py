"""How much of a bare server's speed is left when every answer is validated and logged?

The same server program (uvicorn with uvloop and httptools) on one core, the load on the other:
once with a handler that reads the body and says hello, once with `POST /predict` of a champion of
500 trees, which validates, predicts, commits the row, writes the line and answers. Both in turn,
several rounds; of each figure the median of the rounds, of each ratio the median of the rounds'
ratios, so that a moment in which the machine did something else weighs on both.

`power` is held against the disk: while one sync is under way, no answer of its group can go out,
so c connections get at most c answers in the time of one fdatasync and of handling c requests,
which is what they take in `crash` mode in the same run. `idle` is one request at a time.
"""

from __future__ import annotations

import contextlib
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
from typing import Any, NamedTuple

from mlops.package.bundle import open_bundle
from mlops.usecases.housing import HOUSING

SERVER_CORE, LOAD_CORE = 0, 1
CONNECTIONS = (1, 16, 64)
ROUNDS = 5
SECONDS = 2.0
BATCH_ROWS = 1_000
SYNCS = 200
BYTES_PER_SYNC = 40_000
"""What a group of 16 rows adds to the write-ahead log, about ten pages."""
EXAMPLE = next(iter(HOUSING.examples.values()))


class Row(NamedTuple):
    """One line of the table; times in milliseconds."""

    what: str
    bare: float
    ours: float
    unit: str
    ratio: float
    target: str
    met: bool
    p50: float = 0.0
    p99: float = 0.0


def run(home: Path) -> list[Row]:
    """Measure, and print the table. `home` is an empty folder."""
    subprocess.run([sys.executable, "-m", "benchmarks.five_hundred", str(home)], check=True)
    rows = measure(home)
    print("\nServing, 500 trees, one core: validated, predicted, committed, logged")
    for line in table(rows):
        print(line)
    return rows


def table(rows: list[Row]) -> list[str]:
    """Return the lines of the table, as Markdown."""
    lines = [
        "| what | reference | ours | ratio | target | | p50 ms | p99 ms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        times = f"{row.p50:.2f} | {row.p99:.2f}" if row.p50 else " | "
        verdict = "met" if row.met else "**missed**"
        lines.append(
            f"| {row.what} | {row.bare:,.0f} {row.unit} | {row.ours:,.0f} {row.unit} "
            f"| {row.ratio:.2f} | {row.target} | {verdict} | {times} |"
        )
    return lines


def measure(home: Path) -> list[Row]:
    body = json.dumps(EXAMPLE).encode()
    bare = [sys.executable, "-m", "uvicorn", "benchmarks.bare:app", "--no-access-log", "--port"]
    ours = [sys.executable, "-m", "mlops.cli", "serve", "housing", "--port"]
    rows: list[Row] = []
    handled: dict[int, float] = {}
    sync = fdatasync_seconds(home)
    with _server(bare, home, {}, "/") as bare_port:
        for durability in ("crash", "power"):
            environment = {"PREDICTIONS_DURABILITY": durability}
            with _server(ours, home, environment, "/health/ready") as port:
                _load(port, "/predict", body, 16, 1.0)  # warm
                for connections in CONNECTIONS:
                    rounds = _rounds(bare_port, port, body, connections)
                    if durability == "crash":
                        handled[connections] = connections / _median(rounds, 1, "per_second")
                        rows += _against_bare(connections, rounds)
                    else:
                        rows.append(_against_disk(connections, rounds, sync, handled[connections]))
                if durability == "crash":
                    rows.append(_batch(port, home))
    return rows


def _rounds(
    bare_port: int, port: int, body: bytes, connections: int
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    return [
        (
            _load(bare_port, "/", body, connections, SECONDS),
            _load(port, "/predict", body, connections, SECONDS),
        )
        for _ in range(ROUNDS)
    ]


def _median(rounds: list[tuple[dict[str, Any], ...]], which: int, name: str) -> float:
    return statistics.median(one[which][name] for one in rounds)


def _against_bare(
    connections: int, rounds: list[tuple[dict[str, Any], dict[str, Any]]]
) -> list[Row]:
    bare, ours = (_median(rounds, which, "per_second") for which in (0, 1))
    p50, p99 = (_median(rounds, 1, name) * 1e3 for name in ("p50", "p99"))
    if connections == 1:
        times = statistics.median(b["p50"] / a["p50"] for a, b in rounds)
        idle = f"{times:.2f} × its time; at most 3"
        return [Row("crash, idle", bare, ours, "/s", 1 / times, idle, times <= 3, p50, p99)]
    least = {16: 0.40, 64: 0.50}[connections]
    ratio = statistics.median(b["per_second"] / a["per_second"] for a, b in rounds)
    what = f"crash, {connections} connections"
    found = [Row(what, bare, ours, "/s", ratio, f"≥ {least:.2f}", ratio >= least, p50, p99)]
    if connections == 16:
        spread = statistics.median(b["p99"] / b["p50"] for _, b in rounds)
        theirs = statistics.median(a["p99"] / a["p50"] for a, _ in rounds)
        target = f"p99 ≤ 5 × p50; the bare server's is {theirs:.1f} ×"
        found.append(
            Row("crash, 16: p99 ÷ p50", bare, ours, "/s", spread, target, spread <= 5, p50, p99)
        )
    return found


def _against_disk(
    connections: int,
    rounds: list[tuple[dict[str, Any], dict[str, Any]]],
    sync: float,
    handled: float,
) -> Row:
    limit = connections / (sync + handled)
    ours = _median(rounds, 1, "per_second")
    p50, p99 = (_median(rounds, 1, name) * 1e3 for name in ("p50", "p99"))
    what = f"power, {connections} at once; fdatasync {sync * 1e3:.2f} ms"
    ratio = ours / limit
    return Row(what, limit, ours, "/s", ratio, "≥ 0.70 of the disk", ratio >= 0.7, p50, p99)


def _batch(port: int, home: Path) -> Row:
    """Batches over HTTP against the same rows through ONNX Runtime alone, on the same core."""
    body = json.dumps({"instances": [EXAMPLE] * BATCH_ROWS}).encode()
    before = _logged(port)
    rounds = [_load(port, "/predict/batch", body, 1, SECONDS) for _ in range(ROUNDS)]
    answered = sum(one["requests"] for one in rounds) * BATCH_ROWS
    if _logged(port) - before != answered:
        raise RuntimeError(f"{answered} rows were answered, {_logged(port) - before} logged")
    ours = statistics.median(one["per_second"] for one in rounds) * BATCH_ROWS
    alone = _onnx_rows_per_second(home)
    p50, p99 = (statistics.median(one[name] for one in rounds) * 1e3 for name in ("p50", "p99"))
    what = f"batches of {BATCH_ROWS:,} rows, against ONNX Runtime alone"
    return Row(what, alone, ours, "rows/s", ours / alone, "≥ 0.30", ours / alone >= 0.3, p50, p99)


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
            started = time.perf_counter()
            model.run(rows)
            taken.append(time.perf_counter() - started)
    finally:
        os.sched_setaffinity(0, cores)
    return BATCH_ROWS / statistics.median(taken)


def fdatasync_seconds(home: Path) -> float:
    """Return how long the disk takes for what one group writes: the median of many."""
    path = home / "fdatasync"
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY, 0o600)
    try:
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
def _server(
    command: list[str], home: Path, environment: dict[str, str], ready: str
) -> Iterator[int]:
    """Run a server on its core until the block ends; give its port."""
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
        yield port
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


def _load(port: int, path: str, body: bytes, connections: int, seconds: float) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.load", str(port), path, str(connections), str(seconds)],
        input=body,
        capture_output=True,
        check=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {LOAD_CORE}),
    )
    measured: dict[str, Any] = json.loads(done.stdout)
    return measured

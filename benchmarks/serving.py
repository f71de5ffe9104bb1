"""How much of a bare server's throughput is left when every answer is validated and logged?

The same server program (uvicorn with uvloop and httptools) on one core, the load on the other:
once with a handler that says hello, once with `POST /predict` of the housing champion, which
validates, predicts, commits the row, writes the line and answers. Both in turn, several rounds;
the ratio of each round, and their median.
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
from typing import Any

from mlops.usecases.housing import HOUSING

SERVER_CORE, LOAD_CORE = 0, 1
CONNECTIONS = (1, 16, 64)
ROUNDS = 3
SECONDS = 2.0


def run(home: Path) -> None:
    """Print the table. `home` is a project folder with a housing champion."""
    body = json.dumps(next(iter(HOUSING.examples.values()))).encode()
    print("Serving: validated, predicted, committed, logged; against the same server's bare hello")
    print(
        f"{'durability':<11}{'connections':>12}{'bare/s':>9}{'ours/s':>9}{'ratio':>7}{'p50 ms':>8}"
        f"{'p99 ms':>8}"
    )
    bare = [sys.executable, "-m", "uvicorn", "benchmarks.bare:app", "--no-access-log", "--port"]
    ours = [sys.executable, "-m", "mlops.cli", "serve", "housing", "--port"]
    with _server(bare, home, {}, "/") as bare_port:
        for durability in ("crash", "power"):
            environment = {"PREDICTIONS_DURABILITY": durability}
            with _server(ours, home, environment, "/health/ready") as port:
                _load(port, "/predict", body, 16, 0.5)  # warm
                for connections in CONNECTIONS:
                    _print_row(durability, connections, bare_port, port, body)


def _print_row(durability: str, connections: int, bare_port: int, port: int, body: bytes) -> None:
    rounds = [
        (
            _load(bare_port, "/", body, connections, SECONDS),
            _load(port, "/predict", body, connections, SECONDS),
        )
        for _ in range(ROUNDS)
    ]
    bare = statistics.median(one["per_second"] for one, _ in rounds)
    ours = statistics.median(one["per_second"] for _, one in rounds)
    ratio = statistics.median(b["per_second"] / a["per_second"] for a, b in rounds)
    p50 = statistics.median(one["p50"] for _, one in rounds) * 1e3
    p99 = statistics.median(one["p99"] for _, one in rounds) * 1e3
    print(
        f"{durability:<11}{connections:>12}{bare:>9,.0f}{ours:>9,.0f}{ratio:>7.2f}"
        f"{p50:>8.2f}{p99:>8.2f}"
    )


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

"""Does retraining slow down the answers? p99 while it works, against p99 while it does not.

A real server answers a few connections while `mlops retrain housing` trains every candidate beside
it, on the same cores. Both are measured in turn: the retraining is stopped (SIGSTOP) for one round
and goes on (SIGCONT) for the next, so that whatever else the machine does weighs on both. Of each
pair of rounds the ratio, of all pairs the median; 2 is the most that it may be.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks import load
from benchmarks.results import Found, Line, Row
from mlops.usecases.housing import HOUSING

CONNECTIONS = 4
SECONDS = 1.0
PAIRS = 9
BESIDE = Line(f"p99 while it retrains ÷ alone, {CONNECTIONS} connections", most=2.0)
LINES = (BESIDE,)
EXAMPLE = json.dumps(next(iter(HOUSING.examples.values()))).encode()


class Measured(NamedTuple):
    """Medians over the pairs of rounds: p99 in seconds, and the ratio of the two in each pair."""

    alone: float
    beside: float
    ratio: float
    pairs: int


def run(home: Path, _: int = 0) -> Found:
    """Train a champion in `home`, an empty folder, then retrain it beside its server."""
    subprocess.run(
        [sys.executable, "-m", "mlops.cli", "train", "housing", "--promote"],
        env={**os.environ, "MLOPS_HOME": str(home)},
        check=True,
        capture_output=True,
    )
    found = measure(home)
    alone, beside = (f"{seconds * 1e3:.2f} ms" for seconds in (found.alone, found.beside))
    return Found([Row(BESIDE, alone, beside, found.ratio)], [f"{found.pairs} pairs of rounds."])


def measure(home: Path, pairs: int = PAIRS, seconds: float = SECONDS) -> Measured:
    """Measure up to so many pairs of rounds, as long as the retraining works."""
    request = load.post("/predict", EXAMPLE)
    rounds: list[tuple[float, float]] = []

    def p99() -> float:
        return load.run(port, request, connections=CONNECTIONS, seconds=seconds).p99

    with _server(home) as port, _retraining(home) as retraining:
        p99()  # warm
        while len(rounds) < pairs:
            retraining.send_signal(signal.SIGSTOP)
            alone = p99()
            retraining.send_signal(signal.SIGCONT)
            beside = p99()
            if retraining.poll() is not None:
                break
            rounds.append((alone, beside))
    if not rounds:
        raise RuntimeError("the retraining ended before it could be measured")
    return Measured(
        statistics.median(alone for alone, _ in rounds),
        statistics.median(beside for _, beside in rounds),
        statistics.median(beside / alone for alone, beside in rounds),
        len(rounds),
    )


@contextlib.contextmanager
def _retraining(home: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a retraining and wait until its work has begun; end it if it is not through."""
    process = subprocess.Popen(
        [sys.executable, "-m", "mlops.cli", "retrain", "housing", "--no-promote"],
        env={**os.environ, "MLOPS_HOME": str(home)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if "training …" in line:
                break
        yield process
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def _server(home: Path) -> Iterator[int]:
    with socket.socket() as probe:
        probe.bind((load.HOST, 0))
        port = int(probe.getsockname()[1])
    words = [sys.executable, "-m", "mlops.cli", "serve", "housing", "--port", str(port)]
    with (home / "bench-server.log").open("ab") as output:
        process = subprocess.Popen(
            words, env={**os.environ, "MLOPS_HOME": str(home)}, stdout=output, stderr=output
        )
    try:
        for _ in range(600):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://{load.HOST}:{port}/health/ready", timeout=1).close()
                break
            time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait(timeout=30)

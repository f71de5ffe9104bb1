"""What does a challenger in the shadow cost those who are answered?

A server on one core, a champion and a challenger of 500 trees each, and on the other core a load
that keeps the server's core half busy, at moments drawn by chance, whether answers are in or not.
(That is far less than half of the requests that it can answer: the more wait, the more are
answered together.) In turn, several rounds: with the challenger in the shadow, and with no
experiment. Of the p99 of both the ratio in each round, and the median of those.

The shadow is on the server's core, and keeps up: at the end of a round each row that was logged in
it must have its answer.
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from promotions import World, equal, world_in

from benchmarks.results import Found, Line, Row
from benchmarks.serving import BODY, OURS, READY, Server, load, server
from mlops.database import connect
from mlops.improve.ledger import Ledger
from mlops.loop.verdict import report
from mlops.usecases.housing import HOUSING

CONNECTIONS = 64
ROUNDS = 11
SECONDS = 4.0
SECONDS_TO_SETTLE = 60.0

SLOWER = Line("p99 on a core half busy: with a challenger in the shadow ÷ without", most=1.10)
LINES = (SLOWER,)

Pair = tuple[dict[str, Any], dict[str, Any]]


def run(home: Path, _: int = 0) -> Found:
    """Measure, on two cores."""
    subprocess.run([sys.executable, "-m", "benchmarks.five_hundred", str(home)], check=True)
    with pytest.MonkeyPatch.context() as patch:
        world = world_in(home, patch)
        challenger = world.register("housing", equal).version
    return measure(world, challenger, ROUNDS, SECONDS)


def measure(world: World, challenger: int, rounds: int, seconds: float) -> Found:
    """Serve the champion of a home folder, with a challenger and without in turn."""
    home = world.settings.home
    with server(OURS, home, {"PREDICTIONS_DURABILITY": "crash"}, READY) as ours:
        ours.load("/predict", BODY, 16, 1.0)  # warm
        capacity = statistics.median(
            ours.load("/predict", BODY, 16, seconds / 2)["per_second"] for _ in range(3)
        )
        asked = _half_busy(ours, capacity, seconds)
        found: list[Pair] = []
        rows, lags = 0, []
        for number in range(rounds):
            pace = asked, number
            alone = load(ours.port, "/predict", BODY, CONNECTIONS, seconds, *pace)
            _begin(world, challenger, ours)
            shadowed = load(ours.port, "/predict", BODY, CONNECTIONS, seconds, *pace)
            lags.append(report(HOUSING, world.settings)["rows_behind"])
            _until(lambda: report(HOUSING, world.settings)["rows_behind"] == 0)
            rows += _end(world, ours, shadowed["requests"])
            found.append((alone, shadowed))
    ratio = statistics.median(b["p99"] / a["p99"] for a, b in found)
    before, after = (1e3 * statistics.median(one[n]["p99"] for one in found) for n in (0, 1))
    p50 = 1e3 * statistics.median(one[1]["p50"] for one in found)
    notes = [
        f"{asked:,.0f} requests a second, which keep the server's core half busy (it answers "
        f"{capacity:,.0f} at most); {rounds} rounds of {seconds:g} s each way",
        f"all {rows:,} rows that were logged with a challenger in the shadow have its answer, "
        f"{statistics.median(lags):,.0f} of them (median) when the load had just ended",
    ]
    return Found([Row(SLOWER, f"{before:.2f} ms", f"{after:.2f} ms", ratio, p50, after)], notes)


def _half_busy(ours: Server, capacity: float, seconds: float) -> float:
    """Return how many requests a second take half of the time of the server's core."""
    asked = capacity / 4
    for number in range(3):
        before = ours.processor_seconds()
        load(ours.port, "/predict", BODY, CONNECTIONS, seconds, asked, number)
        asked *= 0.5 / ((ours.processor_seconds() - before) / seconds)
    return asked


def _begin(world: World, challenger: int, ours: Server) -> None:
    with Ledger(world.settings.state_database) as ledger:
        ledger.experiments.begin("housing", "shadow", challenger)
    _until(lambda: report(HOUSING, world.settings)["rows_behind"] == 0)
    time.sleep(0.5)


def _end(world: World, ours: Server, requests: int) -> int:
    """End the experiment; return how many rows were shadowed, which must be all."""
    with Ledger(world.settings.state_database) as ledger:
        experiment = ledger.experiments.open("housing")
        assert experiment is not None
        ledger.experiments.end(experiment.id, "stopped", "measured")
    path = world.settings.home / HOUSING.log_name / "shadow.db"
    with contextlib.closing(connect(path, read_only=True)) as connection:
        [(rows,)] = connection.execute(
            "SELECT count(*) FROM shadowed WHERE experiment = ?", (experiment.id,)
        )
    if rows != requests:
        raise RuntimeError(f"{requests} rows were logged, {rows} shadowed")
    _until(lambda: not psutil.Process(ours.process.pid).children(recursive=True))
    return int(rows)


def _until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS_TO_SETTLE
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError("the shadow does not come to an end")
        time.sleep(0.1)

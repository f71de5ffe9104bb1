"""R17: what a probe of health waits for while the server has more to do than it can."""

from __future__ import annotations

import threading
import time

from traffic import Traffic, post

from benchmarks.reliability.world import Found, World, quantile
from mlops.usecases.housing import HOUSING

CLIENTS = 64
ROWS = 200
HERTZ = 10
BATCHES_A_SECOND = 1_000
"""More than any server answers: there must be too much to do until the end."""


def probes(world: World, seconds: int = 5) -> Found:
    """Ask for readiness ten times a second while 64 connections send batches of 200 rows."""
    server = world.start(world.home(), "housing")
    house = dict(next(iter(HOUSING.examples.values())))
    batch = post("/predict/batch", {"instances": [house] * ROWS})
    traffic = Traffic(server.port, [batch] * BATCHES_A_SECOND * (seconds + 5))
    load = threading.Thread(target=traffic.run, args=(CLIENTS,))
    load.start()
    took, ill = [], 0
    try:
        time.sleep(0.5)
        for _ in world.rounds(HERTZ * seconds):
            started = time.monotonic()
            ill += server.request("/health/ready")[0] != 200
            took.append(time.monotonic() - started)
            time.sleep(max(0.0, 1 / HERTZ - took[-1]))
        idle = not load.is_alive()
    finally:
        traffic.stop()
        load.join()
    p99 = quantile(took, 0.99)
    answered = sum(reply is not None and reply.status == 200 for reply in traffic.replies)
    return Found(
        f"p50 {1e3 * quantile(took, 0.5):.0f} ms, p99 {1e3 * p99:.0f} ms, {ill} not ready",
        p99 <= 0.5 and not ill and not idle,
        f"{len(took)} probes beside {answered:,} batches of {ROWS}",
        goal=p99 <= 0.05,
    )

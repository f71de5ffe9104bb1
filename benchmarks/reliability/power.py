"""R2: each answer follows the sync of its row, and what that costs."""

from __future__ import annotations

import functools
import statistics
import time

from test_power import answered, find_strace, traced
from traffic import post, send

from benchmarks.reliability.world import Found, World
from mlops.usecases.housing import HOUSING

REQUEST = post("/predict", next(iter(HOUSING.examples.values())))
CONNECTIONS = 64
LOAD = 4_000
MOST_LOST = 0.4
"""Of the throughput, at the goal."""


def power_cut(world: World, rounds: int = 3) -> Found:
    """Watch the system calls of a server, then load one that syncs and one that does not in turn.

    Raises `OSError` without strace.
    """
    start = functools.partial(world.start, world.home())
    found = answered(traced(find_strace(), start, world.folder(), "power"))
    early = list(found.values()).count(False)
    servers = {
        durability: world.start(world.home(), "housing", PREDICTIONS_DURABILITY=durability)
        for durability in ("power", "crash")
    }
    rates: dict[str, list[float]] = {"power": [], "crash": []}
    for _ in world.rounds(rounds):
        for durability, server in servers.items():
            started = time.perf_counter()
            replies = send(server.port, [REQUEST] * LOAD, connections=CONNECTIONS)
            assert all(reply is not None and reply.status == 200 for reply in replies)
            rates[durability].append(LOAD / (time.perf_counter() - started))
    ratios = [a / b for a, b in zip(rates["power"], rates["crash"], strict=True)]
    lost = 1 - statistics.median(ratios)
    return Found(
        f"{early} answered before the sync of their row; {lost:.0%} of throughput lost",
        not early and bool(found),
        f"{len(found):,} answers traced, {2 * len(ratios)} loads of {LOAD:,} requests",
        goal=lost <= MOST_LOST,
    )

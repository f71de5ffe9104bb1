"""R14: three times as many requests as can be answered: how many are, how soon the rest hear."""

from __future__ import annotations

from test_overload import described, goodput, holds, overload, slow_server

from benchmarks.reliability.world import Found, World

MOST = 0.9, 0.02
"""The goal: goodput of the capacity, and seconds until a refusal (p99)."""


def three_times_too_many(world: World, rounds: int = 1) -> Found:
    """Overload servers with a slow model one after another; what is told is of the worst.

    Raises `AssertionError` if one does not hold.
    """
    worst, reached = (2.0, ""), True
    for _ in world.rounds(rounds):
        server = slow_server(world.home(), world.fault or "slow-model")
        try:
            capacity, load = overload(server.port)
        finally:
            server.kill()
        holds(capacity, load)
        share = goodput(capacity, load)
        reached &= share >= MOST[0] and load.p99(503) < MOST[1]
        worst = min(worst, (share, described(capacity, load)))
    return Found(worst[1], True, f"{rounds} times", goal=reached)

"""R11: requests made from the server's own document are answered as it says."""

from __future__ import annotations

from test_fuzz import fuzz

from benchmarks.reliability.world import Found, World


def fuzzed(world: World, requests: int = 2_000) -> Found:
    """Start servers and fuzz each with another seed, until so many requests were made.

    Raises `AssertionError` with what the tool says of an answer that is not as documented.
    """
    made = 0
    for turn in world.rounds(requests):
        seed = str(world.seed + turn)
        made += fuzz(world.trained, world.folder(), "--max-examples", "50", "--seed", seed)
        if made >= requests:
            break
    return Found("0 not as documented", made > 0, f"{made:,} requests")

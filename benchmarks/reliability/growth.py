"""R19: what a server keeps of each request: memory, descriptors, threads."""

from __future__ import annotations

import time

import psutil
from traffic import Traffic, post

from benchmarks.reliability.world import Found, World, promote, until
from mlops.usecases.iris import IRIS

FLOWER = dict(IRIS.examples["setosa"])
PART = 2_000
WARMING = 6
"""Parts before memory is looked at: after 12,000 requests every pool has had its largest use."""
LONG, SECONDS_TO_WARM = 100_000, 180.0
"""So many requests are a long run. Before one a server warms up until all that it does every minute
or two was done under load: after the first minute its memory grows by some 6 MB, once, which are
free again and used again (mallinfo2(3) shows as much in use before and after)."""
MOST_PER_MILLION, GOAL_PER_MILLION = 50e6, 5e6
NOISE = 4e6
"""Bytes by which memory varies between two looks whatever was sent: pages of the allocator."""


def growth(world: World, requests: int = 20_000) -> Found:
    """Send requests, 1 % of them wrong, and reload the model after each 2,000.

    Memory may grow by 50 MB per million requests (and 4 MB of noise), descriptors and threads by
    none. What a server takes to warm up comes first and is not counted.
    """
    home = world.home()
    server = world.start(home, "iris", PREDICTIONS_DURABILITY="crash", LOG_ROTATE_MB="1000")
    process = psutil.Process(server.process.pid)
    part = [post("/predict", FLOWER if n % 100 else {}) for n in range(PART)]

    def send(number: int) -> None:
        version = 1 + number % 2
        promote(home, version)
        until(lambda: server.request("/")[1]["model_version"] == version)
        replies = Traffic(server.port, part).run(16)
        bad = [reply for reply in replies if reply is None or reply.status not in {200, 422}]
        assert not bad, f"{len(bad)} failed"

    def look() -> tuple[int, int, int]:
        time.sleep(0.5)  # connections that we closed are closed there too
        return process.memory_info().rss, process.num_fds(), process.num_threads()

    warm = time.monotonic() + SECONDS_TO_WARM * (requests >= LONG)
    number = 0
    while number < WARMING or time.monotonic() < warm:
        number += 1
        send(number)
    first = look()
    sent = 0
    for turn in world.rounds(max(1, requests // PART)):
        send(number + turn + 1)
        sent += PART
    last = look()
    server.stop()
    memory, files, threads = (b - a for a, b in zip(first, last, strict=True))
    return Found(
        f"{memory / 1e6:+.1f} MB, {files:+} descriptors, {threads:+} threads",
        memory <= NOISE + MOST_PER_MILLION * sent / 1e6 and files <= 2 and threads <= 2,
        f"{sent:,} requests",
        goal=memory <= NOISE + GOAL_PER_MILLION * sent / 1e6 and files <= 0 and threads <= 0,
    )

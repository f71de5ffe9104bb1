"""R13: hundreds of slow clients beside normal traffic."""

from __future__ import annotations

import resource
import threading
import time
from typing import Any

import psutil
from test_limits import GOOD, SLOW, Raw, gone
from traffic import Traffic, send

from benchmarks.reliability.world import Found, World

LONGEST = 30.0


def slow_sockets(world: World, number: int = 600) -> Found:
    """Open so many connections that send or read slowly, each in one of the ways to be slow.

    Counted: seconds until all were closed, memory that the server took meanwhile, and errors of
    the eight clients beside them.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, number + 1_500)), hard))
    server = world.start(world.home())
    process = psutil.Process(server.process.pid)
    traffic = Traffic(server.port, [GOOD] * 300_000)
    answering = threading.Thread(target=traffic.run, args=(8,))
    slow: list[Raw] = []
    try:
        send(server.port, [GOOD] * 500, connections=16)
        before = process.memory_info().rss
        answering.start()
        starts = list(SLOW.values())
        slow += [Raw(server.port) for _ in range(number)]
        for place, raw in enumerate(slow):
            starts[place % len(starts)](raw)
        started, most = time.monotonic(), 0
        left: list[Any] = slow
        while left and time.monotonic() - started < LONGEST:
            most = max(most, process.memory_info().rss - before)
            left = [raw for raw in left if not gone(raw.socket)]
            time.sleep(0.1)
        took = time.monotonic() - started
    finally:
        traffic.stop()
        if answering.ident:
            answering.join(60)
        for raw in slow:
            raw.socket.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    replies = [traffic.replies[place] for place in traffic.sent]
    failed = sum(reply is None or reply.status != 200 for reply in replies)
    return Found(
        f"{len(left)} not closed, the rest in {took:.0f} s; {most / 1e6:.0f} MB more; "
        f"{failed} errors of others",
        not left and took < 25 and most < 50e6 and not failed and len(replies) > 100,
        f"{number} slow sockets beside {len(replies):,} requests",
        goal=took <= 15 and most < 20e6,
    )

"""R12: hostile requests, written by hand and generated, are refused in strict JSON, and soon."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import test_hostile as cases
from traffic import send_one

from benchmarks.reliability.world import Found, World
from mlops.usecases.housing import HOUSING
from mlops.usecases.iris import IRIS

SOON = 0.05
"""Seconds that one request may take, at the goal; to wait for a processor is not counted."""


class Timed(cases.Hot):
    """The hot path, which keeps how long each request took."""

    took: list[float]

    def ask(self, body: bytes, *, batch: bool) -> tuple[int, Any]:
        with timed(self.took):
            return super().ask(body, batch=batch)


@contextlib.contextmanager
def timed(took: list[float], *others: int) -> Iterator[None]:
    """Add the seconds of the block to `took`, less those when it could have run but others did.

    Such waits of this thread, and of the main threads of `others`, processes that it asks.
    """
    threads = ["thread-self", *map(str, others)]
    started, waited = time.perf_counter(), _waited(threads)
    try:
        yield
    finally:
        took.append(time.perf_counter() - started - (_waited(threads) - waited))


def _waited(threads: Sequence[str]) -> float:
    """Return the seconds that threads have waited for a processor: the second number of schedstat.

    0 where the system does not count them.
    """
    with contextlib.suppress(FileNotFoundError):
        return sum(
            int(Path(f"/proc/{one}/schedstat").read_text().split()[1]) / 1e9 for one in threads
        )
    return 0.0


def hostile(world: World, number: int = 1_000) -> Found:
    """Send all that were written by hand to a server, then generate the rest for its hot path.

    Raises `AssertionError` for one that is not refused as it should be, or wrongly refused.
    """
    server = world.start(world.home(), "housing")
    took: list[float] = []
    for case in cases.CASES.values():
        with timed(took, server.process.pid):
            reply = send_one(server.port, "/predict", case.body)
        cases.check_refusal(reply, case.field, case.words)
    assert server.request("/predict", cases.GOOD)[0] == 200
    left = max(2, number - len(took))
    for use_case in (HOUSING, IRIS):
        hot = Timed(use_case)
        hot.took = took

        @hypothesis.seed(world.seed)
        @hypothesis.settings(cases.SOME, max_examples=left // 2 + 1, derandomize=False)
        @hypothesis.given(body=cases.one_row(use_case).map(str.encode))
        def check(hot: cases.Hot, body: bytes) -> None:
            cases.check_against_the_documented_model(hot, body, batch=False)

        check(hot)
        hot.close()
    slow = sum(seconds >= SOON for seconds in took)
    return Found(
        f"0 answered wrongly; {1e3 * max(took):.0f} ms at most, {slow} took {1e3 * SOON:.0f} ms",
        True,
        f"{len(took):,} cases",
        goal=not slow,
    )

"""R12: hostile requests, written by hand and generated, are refused in strict JSON, and soon."""

from __future__ import annotations

import time
from typing import Any

import hypothesis
import test_hostile as cases
from traffic import send_one

from benchmarks.reliability.world import Found, World
from mlops.usecases.housing import HOUSING
from mlops.usecases.iris import IRIS

SOON = 0.05
"""Seconds that one request may take, at the goal."""


class Timed(cases.Hot):
    """The hot path, which keeps how long each request took."""

    took: list[float]

    def ask(self, body: bytes, *, batch: bool) -> tuple[int, Any]:
        started = time.perf_counter()
        try:
            return super().ask(body, batch=batch)
        finally:
            self.took.append(time.perf_counter() - started)


def hostile(world: World, number: int = 1_000) -> Found:
    """Send all that were written by hand to a server, then generate the rest for its hot path.

    Raises `AssertionError` for one that is not refused as it should be, or wrongly refused.
    """
    server = world.start(world.home(), "housing")
    took = []
    for case in cases.CASES.values():
        started = time.perf_counter()
        reply = send_one(server.port, "/predict", case.body)
        took.append(time.perf_counter() - started)
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

"""Many batches at once leave the event loop to others between their parts, and keep their order."""

from __future__ import annotations

import asyncio
import functools
import json
import time
from typing import Any

import pytest
import tiny

from mlops.deploy import turns
from mlops.deploy.groupcommit import INLINE_ROWS
from mlops.deploy.service import Reply, Service
from mlops.deploy.turns import SECONDS_A_TURN, Turns
from mlops.usecases.iris import IRIS

SETOSA = IRIS.examples["setosa"]
BATCH = json.dumps({"instances": [SETOSA] * (INLINE_ROWS + 1)}).encode()
ONE = json.dumps(SETOSA).encode()


def test_work_is_done_in_its_order_and_others_have_their_turn_in_between(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[Any] = []
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)

    def work(name: int, seconds: float) -> None:
        nonlocal now
        now += seconds
        done.append(name)

    async def run() -> None:
        each = Turns()
        for name in range(3):
            each.do(functools.partial(work, name, 2 * SECONDS_A_TURN))
        for name in range(3, 9):
            each.do(functools.partial(work, name, SECONDS_A_TURN / 2.5))
        while each:
            done.append("others")
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        each.do(functools.partial(work, 9, 0))

    asyncio.run(run())
    assert done == [0, "others", 1, "others", 2, "others", 3, 4, 5, "others", 6, 7, 8, 9]


def test_batches_that_come_together_are_read_and_answered_in_parts_and_in_their_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(turns, "SECONDS_A_TURN", 0)
    answered: list[tuple[str, int]] = []
    rounds = 0

    async def count() -> None:
        nonlocal rounds
        while True:
            rounds += 1
            await asyncio.sleep(0)

    async def run() -> None:
        service, log = Service(IRIS), tiny.ListLog()
        service.start(log, synced=False)
        service.swap(tiny.champion(IRIS))
        counting = asyncio.ensure_future(count())
        log.gate.clear()

        def answer(name: str, reply: Reply) -> None:
            assert reply.status == 200
            answered.append((name, rounds))

        for number in range(8):
            service.predict_batch(BATCH, [], "/", functools.partial(answer, f"batch {number}"))
        assert service._group.rows_waiting() < 3 * INLINE_ROWS, "not all are read at once"  # type: ignore[union-attr]
        for _ in range(40):
            await asyncio.sleep(0)
        service.predict(ONE, [], "/", functools.partial(answer, "one"))
        log.gate.set()
        await service.stop()  # waits for all of them
        counting.cancel()

    asyncio.run(run())
    assert [name for name, _ in answered] == [f"batch {n}" for n in range(8)] + ["one"]
    assert len({when for _, when in answered}) >= 6

"""Work of the event loop in pieces, so that whoever has little to ask is not kept waiting.

64 connections that each send a batch at once are 20 ms of reading, and their answers some more.
Done in one turn of the loop, a probe of health would wait for all of it, several times over.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

SECONDS_A_TURN = 0.002


class Turns:
    """Does work in the order in which it comes: at once, or when the event loop comes round again.

    What is begun in one turn may take `SECONDS_A_TURN` together; the rest waits for the next.
    """

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], object]] = deque()
        self._until = 0.0
        self._in_turn = False

    def __bool__(self) -> bool:
        """Whether work is waiting."""
        return bool(self._waiting)

    def do(self, work: Callable[[], object]) -> None:
        if self._in_turn and (self._waiting or time.perf_counter() > self._until):
            self._waiting.append(work)
            return
        if not self._in_turn:
            self._begin()
        work()

    def _begin(self) -> None:
        self._in_turn = True
        self._until = time.perf_counter() + SECONDS_A_TURN
        asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        self._in_turn = False
        if not self._waiting:
            return
        self._begin()
        self._waiting.popleft()()  # one at least, however long the turn has been
        while self._waiting and time.perf_counter() <= self._until:
            self._waiting.popleft()()

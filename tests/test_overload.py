"""Three times as many requests as can be answered: most of what can be is, the rest hears at once.

The load is open: a request is due at its time, whether or not others were answered, as it is with
many clients that know nothing of each other. To offer a fast server three times what it can do
takes more processors than it has. So its model is made slow, 2 ms a row: a fifth of the requests a
second, or less, and the same queue, refusals and clocks; what a refusal costs counts for less.
"""

from __future__ import annotations

import collections
import json
import selectors
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import Server, copy_project, start_server
from traffic import post

from mlops.deploy.limits import GROWTH, LEAST_WAITING, SECONDS_TO_WAIT, Room
from mlops.usecases.iris import IRIS

GOOD = post("/iris/predict", json.dumps(IRIS.examples["setosa"]).encode())
FAULTY = Path(__file__).with_name("faulty.py")
SECONDS = 6
SECONDS_OF_REST = 0.15
"""A client that was refused leaves us alone for so long; it was asked for a second."""


class Load(NamedTuple):
    took: dict[int, list[float]]
    """By status, how long each answer took, in seconds, rising."""
    offered: int
    unsent: int
    """How many had no connection to be sent on: their clients still waited."""
    unanswered: int

    def p99(self, status: int) -> float:
        times = self.took.get(status) or [0.0]
        return times[int(0.99 * (len(times) - 1))]


class Loader:
    """Sends prebuilt requests over many connections, and takes the time of each answer."""

    def __init__(self, port: int, connections: int) -> None:
        self.selector = selectors.DefaultSelector()
        self.idle = collections.deque(self._connect(port) for _ in range(connections))
        self.resting: collections.deque[tuple[float, socket.socket]] = collections.deque()
        self.sent: dict[socket.socket, float] = {}
        self.parts: dict[socket.socket, bytes] = collections.defaultdict(bytes)
        self.took: dict[int, list[float]] = collections.defaultdict(list)
        self.offered = self.unsent = 0

    def run(self, due: Callable[[float], float], seconds: float) -> Load:
        """Have as many requests offered after t seconds as `due(t)` says."""
        start = time.perf_counter()
        while (now := time.perf_counter() - start) < seconds:
            while self.offered < due(now):
                self._send()
            self._receive(0.001)
        end = time.perf_counter() + 10
        while self.sent and time.perf_counter() < end:
            self._receive(0.01)
        for key in list(self.selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self.selector.close()
        took = {status: sorted(times) for status, times in self.took.items()}
        return Load(took, self.offered, self.unsent, len(self.sent))

    def _connect(self, port: int) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.selector.register(connection, selectors.EVENT_READ)
        return connection

    def _send(self) -> None:
        self.offered += 1
        while self.resting and self.resting[0][0] < time.perf_counter():
            self.idle.append(self.resting.popleft()[1])
        if not self.idle:
            self.unsent += 1
            return
        connection = self.idle.popleft()
        self.sent[connection] = time.perf_counter()
        connection.send(GOOD)

    def _receive(self, wait: float) -> None:
        for key, _ in self.selector.select(wait):
            connection: socket.socket = key.fileobj  # type: ignore[assignment]
            part = connection.recv(1 << 16)
            now = time.perf_counter()
            assert part, "the server closed a connection"
            self.parts[connection] += part
            if _whole(self.parts[connection]):
                status = int(self.parts.pop(connection)[9:12])
                self.took[status].append(now - self.sent.pop(connection))
                if status == 200:
                    self.idle.append(connection)
                else:
                    self.resting.append((now + SECONDS_OF_REST, connection))


def _whole(answer: bytes) -> bool:
    head, blank, body = answer.partition(b"\r\n\r\n")
    return bool(blank) and len(body) >= int(head.partition(b"content-length: ")[2].split()[0])


def slow_server(home: Path, fault: str) -> Server:
    command = [sys.executable, str(FAULTY), fault, "serve", "iris", "housing", "--port", "{port}"]
    return start_server(home, command=command)


def overload(port: int) -> tuple[float, Load]:
    """Return how many requests a second it can answer, and what becomes of three times as many."""
    closed = Loader(port, 64)  # each sends its next when its answer is in
    closed.run(lambda _: closed.offered + len(closed.idle), 1)
    closed = Loader(port, 64)
    capacity = len(closed.run(lambda _: closed.offered + len(closed.idle), 3).took[200]) / 3
    return capacity, Loader(port, 900).run(lambda now: 3 * capacity * now, SECONDS)


def goodput(capacity: float, load: Load) -> float:
    return len(load.took.get(200, [])) / SECONDS / capacity


def described(capacity: float, load: Load) -> str:
    return (
        f"capacity {capacity:.0f}/s, offered {load.offered / SECONDS:.0f}/s, goodput "
        f"{goodput(capacity, load):.0%} (p99 {load.p99(200) * 1e3:.0f} ms), "
        f"{len(load.took.get(503, []))} refused (p99 {load.p99(503) * 1e3:.1f} ms), "
        f"{load.unsent} unsent, {load.unanswered} unanswered"
    )


def holds(capacity: float, load: Load) -> None:
    measured = described(capacity, load)
    assert set(load.took) == {200, 503}, measured
    assert load.unanswered == 0, measured
    assert load.unsent < load.offered / 100, f"the load was not what it should be: {measured}"
    assert goodput(capacity, load) >= 0.6, measured
    assert load.p99(503) < 0.2, measured
    assert load.p99(200) < 10 * SECONDS_TO_WAIT, measured


@pytest.mark.slow
def test_of_three_times_too_many_most_are_answered_and_the_rest_refused_at_once(
    trained: Path, tmp_path: Path
) -> None:
    server = slow_server(copy_project(trained, tmp_path / "home"), "slow-model")
    try:
        capacity, load = overload(server.port)
        holds(capacity, load)
        counted = server.request("/iris/metrics")[1]["windows"]["all"]["requests_by_status"]
        assert counted["503"] == len(load.took[503])
        assert server.request("/iris/metrics")[1]["failed_requests"] == 0, "none is in the log"
        assert server.stop() == 0
    finally:
        server.kill()


@pytest.mark.slow
def test_a_server_without_the_limit_does_not_pass_for_one_that_has_it(
    trained: Path, tmp_path: Path
) -> None:
    server = slow_server(copy_project(trained, tmp_path / "home"), "no-limit")
    try:
        capacity, load = overload(server.port)
        with pytest.raises(AssertionError, match=r"0 refused"):
            holds(capacity, load)
    finally:
        server.kill()


# How many may wait


class Queue:
    """A room with a clock that stands until it is moved on."""

    def __init__(self, most: int) -> None:
        self.now = 0.0
        self.room = Room(most)

    def answer(self, seconds: float, waiting: int) -> None:
        self.now += seconds
        self.room.answered(self.now - seconds, self.now, waiting)


def test_as_many_may_wait_as_are_answered_in_time() -> None:
    queue = Queue(1_000)
    queue.answer(1.0, 800)  # 800 wait for a second: 160 would wait for 0.2 s
    assert queue.room.size == pytest.approx(160)
    queue.answer(SECONDS_TO_WAIT, 160)
    assert queue.room.size == pytest.approx(160 + GROWTH)
    for _ in range(10_000):
        queue.answer(0.01, 160)
    assert queue.room.size == 1_000


def test_those_who_waited_together_cut_the_room_once() -> None:
    queue = Queue(1_000)
    queue.now = 1.0
    for _ in range(500):
        queue.room.answered(0.5, queue.now, 500)
    assert queue.room.size == pytest.approx(200)


def test_a_few_may_always_wait_however_long_it_takes() -> None:
    queue = Queue(1_000)
    queue.answer(9.0, LEAST_WAITING)
    assert queue.room.size == 1_000, "a stall while few wait says nothing about the queue"
    queue.answer(9.0, 300)
    assert queue.room.size == LEAST_WAITING
    small = Queue(4)
    small.answer(9.0, 5)
    assert small.room.size == 4

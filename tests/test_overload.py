"""Three times as many requests as can be answered: most of what can be is, the rest hears at once.

The load is open: a request is due at its time whether or not others were answered. It is sent on
an idle one of 900 connections; when none is idle, the client that would send it is still waiting.
"""

from __future__ import annotations

import collections
import json
import multiprocessing
import os
import selectors
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import copy_project, start_server
from traffic import Traffic, post

from mlops.usecases.iris import IRIS

FLOWER = json.dumps(IRIS.examples["setosa"]).encode()
GOOD = post("/iris/predict", FLOWER)
MOST_CONNECTIONS = 900


class OpenLoad:
    """Send requests at a rate for some seconds; note what came of each and how long it took."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.selector = selectors.DefaultSelector()
        self.idle: list[socket.socket] = []
        self.sent: dict[socket.socket, float] = {}
        self.took: dict[int, list[float]] = collections.defaultdict(list)
        self.parts: dict[socket.socket, bytes] = {}
        self.unsent = 0

    def run(self, rate: float, seconds: float) -> None:
        # Before the clock starts: how fast connections can be opened is the kernel's affair.
        for _ in range(MOST_CONNECTIONS):
            self.idle.append(self.connect())
            time.sleep(0.001)
        start = time.perf_counter()
        due = 0
        while (now := time.perf_counter()) - start < seconds:
            for _ in range(int((now - start) * rate) - due):
                self.send()
            due = int((now - start) * rate)
            self.receive(0.001)
        end = time.perf_counter() + 5
        while self.sent and time.perf_counter() < end:
            self.receive(0.01)

    def send(self) -> None:
        if not self.idle:
            self.unsent += 1
            return
        connection = self.idle.pop()
        self.sent[connection] = time.perf_counter()
        connection.send(GOOD)

    def connect(self) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.selector.register(connection, selectors.EVENT_READ)
        return connection

    def receive(self, wait: float) -> None:
        for key, _ in self.selector.select(wait):
            connection: Any = key.fileobj
            part = connection.recv(1 << 16)
            answer = self.parts.pop(connection, b"") + part
            if part and not whole(answer):
                self.parts[connection] = answer
                continue
            started = self.sent.pop(connection, None)
            if not part:
                self.selector.unregister(connection)
                connection.close()
                if connection in self.idle:
                    self.idle.remove(connection)
                self.idle.append(self.connect())
                continue
            if started is not None:
                self.took[int(answer[9:12])].append(time.perf_counter() - started)
            self.idle.append(connection)


def whole(answer: bytes) -> bool:
    head, blank, body = answer.partition(b"\r\n\r\n")
    return bool(blank) and len(body) >= int(head.partition(b"content-length: ")[2].split()[0])


def load(port: int, rate: float, seconds: float, result: Any) -> None:
    os.sched_setaffinity(0, {0})
    one = OpenLoad(port)
    one.run(rate, seconds)
    result.put((dict(one.took), len(one.sent), one.unsent))


@pytest.mark.slow
def test_of_three_times_too_many_most_are_answered_and_the_rest_refused_quickly(
    trained: Path, tmp_path: Path
) -> None:
    server = start_server(copy_project(trained, tmp_path / "home"), PREDICTIONS_DURABILITY="crash")
    try:
        os.sched_setaffinity(server.process.pid, {len(os.sched_getaffinity(0)) - 1})
        Traffic(server.port, [GOOD] * 1_000).run(64)
        started = time.perf_counter()
        Traffic(server.port, [GOOD] * 8_000).run(64)
        capacity = 8_000 / (time.perf_counter() - started)
        result: Any = multiprocessing.get_context("spawn").Queue()
        loader = multiprocessing.get_context("spawn").Process(
            target=load, args=(server.port, 3 * capacity, 8, result)
        )
        loader.start()
        took, unanswered, unsent = result.get(timeout=30)
        loader.join(30)
        goodput = len(took.get(200, [])) / 8 / capacity
        refusals = sorted(took.get(503, [0.0]))
        p99 = refusals[int(0.99 * (len(refusals) - 1))]
        measured = (
            f"capacity {capacity:.0f}/s, goodput {goodput:.0%}, {len(refusals)} refused, "
            f"p50 {refusals[len(refusals) // 2] * 1e3:.0f} ms, p99 {p99 * 1e3:.0f} ms, "
            f"{unanswered} unanswered, {unsent} not sent"
        )
        assert set(took) <= {200, 503}, measured
        assert unanswered == 0, measured
        assert goodput >= 0.6, measured
        assert p99 < 1, measured  # 0.2 s on a quiet machine
        assert server.process.poll() is None
    finally:
        server.kill()

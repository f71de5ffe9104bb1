"""R15: SIGTERM restarts under load, seen by clients that keep their connections."""

from __future__ import annotations

import select
import socket
import threading
import time

import kept
from conftest import free_port
from traffic import _parse, post

from benchmarks.reliability.world import Found, World
from mlops.usecases.iris import IRIS

REQUEST = post("/predict", dict(IRIS.examples["setosa"]))
CLIENTS = 8
SECONDS_OF_LOAD = 0.3


class Client:
    """A client with one kept-alive connection, which it opens again whenever it was closed."""

    def __init__(self, port: int, over: threading.Event) -> None:
        self.port = port
        self.over = over
        self.acked: list[str] = []
        self.refused = 0
        self.reset = 0
        self.connection: socket.socket | None = None

    def run(self) -> None:
        while not self.over.is_set():
            try:
                connection = self.connection = self.connection or self._connect()
            except OSError:
                time.sleep(0.02)  # nobody listens between two servers
                continue
            if select.select([connection], [], [], 0)[0]:  # closed while idle: not a failure
                self._close()
                continue
            self._ask(connection)
        self._close()

    def _connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def _ask(self, connection: socket.socket) -> None:
        received, reply = bytearray(), None
        try:
            connection.sendall(REQUEST)
            while reply is None and (part := connection.recv(1 << 16)):
                received += part
                reply = _parse(received)
        except OSError:
            pass
        if reply is None:
            self.reset += 1
            self._close()
        elif reply.status == 200:
            self.acked.append(reply.json["prediction_id"])
            if reply.headers.get("connection") == "close":
                self._close()
        else:
            self.refused += 1

    def _close(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None


def restarts(world: World, number: int = 5) -> Found:
    """End a server with SIGTERM under load and start the next one on its port.

    Counted: acknowledged ids without a row, connections reset with a request on them, and answers
    other than 200. What holds is that nothing acknowledged is lost.
    """
    home, port, over = world.home(), free_port(), threading.Event()
    server = world.start(home, "iris", port=port)
    clients = [Client(port, over) for _ in range(CLIENTS)]
    threads = [threading.Thread(target=client.run) for client in clients]
    for thread in threads:
        thread.start()
    codes, done = [], 0
    try:
        for _ in world.rounds(number):
            time.sleep(SECONDS_OF_LOAD)
            codes.append(server.stop())
            server = world.start(home, "iris", port=port)
            done += 1
        time.sleep(SECONDS_OF_LOAD)
    finally:
        over.set()
        for thread in threads:
            thread.join()
    server.stop()
    rows = {row["prediction_id"] for row in kept.rows(home, "iris")}
    acked = [one for client in clients for one in client.acked]
    lost = len(set(acked) - rows)
    reset = sum(client.reset for client in clients)
    refused = sum(client.refused for client in clients)
    return Found(
        f"{lost} acknowledged lost, {reset} reset, {refused} refused",
        not lost and len(acked) > 20 * done and not any(codes),
        f"{done} restarts, {len(acked):,} answers",
        goal=not reset,
    )

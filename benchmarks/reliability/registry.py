"""R18: a server starts while the registry refuses, hangs, errs or lies, and never asks it."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator

from benchmarks.reliability.world import Found, World

LIE = json.dumps(
    {"registered_model": {"aliases": [{"alias": "champion", "version": "999"}]}}
).encode()
WAYS = ("refuses", "hangs", "errs", "lies")


class Fake:
    """A registry that listens on a port of its own and counts who came."""

    def __init__(self, way: str) -> None:
        self.way = way
        self.asked = 0
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listening.getsockname()[1])
        self._open: list[socket.socket] = []
        if way == "refuses":
            self._listening.close()
        else:
            threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                self.asked += 1
                self._open.append(connection)
                if self.way == "hangs":
                    continue
                connection.recv(1 << 16)
                status = "200 OK" if self.way == "lies" else "500 Internal Server Error"
                head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n"
                connection.sendall(f"{head}Content-Length: {len(LIE)}\r\n\r\n".encode() + LIE)
                connection.close()

    def close(self) -> None:
        # A thread in accept() wakes when the socket is shut down, not when it is closed.
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for connection in self._open:
            connection.close()


@contextlib.contextmanager
def registry(way: str) -> Iterator[Fake]:
    fake = Fake(way)
    try:
        yield fake
    finally:
        fake.close()


def starts(world: World, rounds: int = 1, ways: tuple[str, ...] = WAYS) -> Found:
    """Start a server beside each fake; it must be ready within 10 s, from its own bundles.

    And must not ask: what is not asked can neither hang nor lie.
    """
    home = world.home()
    slowest, asked, wrong, done = 0.0, 0, 0, 0
    for _ in world.rounds(rounds):
        for way in ways:
            with registry(way) as fake:
                address = f"http://127.0.0.1:{fake.port}"
                started = time.monotonic()
                server = world.start(home, MLFLOW_TRACKING_URI=address, MODEL_REGISTRY_URI=address)
                slowest = max(slowest, time.monotonic() - started)
                health = server.request("/housing/health/ready")[1]
                wrong += health["model_version"] != 1
                server.stop()
                asked += fake.asked
                done += 1
    return Found(
        f"ready in {slowest:.1f} s at most; the registry was asked {asked} times; "
        f"{wrong} with another model",
        slowest <= 10 and not asked and not wrong,
        f"{done} starts",
        goal=slowest <= 3,
    )

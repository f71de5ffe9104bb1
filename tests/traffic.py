"""Many requests over many kept-alive connections, in one thread of raw sockets."""

from __future__ import annotations

import collections
import json
import selectors
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from conftest import strict_json

SECONDS_TO_ANSWER = 30


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return strict_json(self.body)


def post(path: str, body: Any, **headers: str) -> bytes:
    """Return the bytes of a POST request. Bytes are sent as they are, the rest as JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "Host: test", f"Content-Length: {len(content)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


def send(
    port: int,
    requests: Sequence[bytes],
    *,
    connections: int = 16,
    on_reply: Callable[[int, Reply], None] = lambda number, reply: None,
) -> list[Reply | None]:
    """Send all requests, each connection its next when its answer is in; return the replies.

    A reply counts when the whole of its body was read; then `on_reply` is called with its number.
    None stands for a request whose connection broke, or that was not sent because all had.
    """
    return Traffic(port, requests, on_reply).run(connections)


class Traffic:
    """The same, for a thread to run and another to stop."""

    def __init__(
        self,
        port: int,
        requests: Sequence[bytes],
        on_reply: Callable[[int, Reply], None] = lambda number, reply: None,
    ) -> None:
        self.port = port
        self.requests = requests
        self.on_reply = on_reply
        self.replies: list[Reply | None] = [None] * len(requests)
        self.sent: set[int] = set()
        self.waiting = collections.deque(range(len(requests)))
        self.under_way: dict[socket.socket, tuple[int, bytearray]] = {}
        self.selector = selectors.DefaultSelector()

    def run(self, connections: int) -> list[Reply | None]:
        connections = min(connections, len(self.requests))
        for connection in [_connect(self.port) for _ in range(connections)]:
            self.selector.register(connection, selectors.EVENT_READ)
            self._next(connection)
        while self.under_way:
            ready = self.selector.select(SECONDS_TO_ANSWER)
            assert ready, f"{len(self.under_way)} requests had no answer in time"
            for key, _ in ready:
                self._receive(key.fileobj)  # type: ignore[arg-type]
        self.selector.close()
        return self.replies

    def stop(self) -> None:
        """Send no more; those under way are awaited."""
        self.waiting.clear()

    def _next(self, connection: socket.socket) -> None:
        try:
            number = self.waiting.popleft()
        except IndexError:
            self._end(connection)
            return
        self.sent.add(number)
        self.under_way[connection] = number, bytearray()
        try:
            connection.sendall(self.requests[number])
        except OSError:
            self._end(connection)

    def _receive(self, connection: socket.socket) -> None:
        number, received = self.under_way[connection]
        try:
            part = connection.recv(1 << 18)
        except OSError:
            part = b""
        if not part:
            self._end(connection)
            return
        received += part
        reply = _parse(received)
        if reply is not None:
            self.replies[number] = reply
            self.on_reply(number, reply)
            self._next(connection)

    def _end(self, connection: socket.socket) -> None:
        self.under_way.pop(connection, None)
        self.selector.unregister(connection)
        connection.close()


def send_one(port: int, path: str, body: Any, headers: Mapping[str, str] | None = None) -> Reply:
    [reply] = send(port, [post(path, body, **(headers or {}))], connections=1)
    assert reply is not None, "the connection broke"
    return reply


def _connect(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=SECONDS_TO_ANSWER)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _parse(received: bytearray) -> Reply | None:
    end = received.find(b"\r\n\r\n")
    if end < 0:
        return None
    first, *lines = received[:end].decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    body = bytes(received[end + 4 :])
    if len(body) < int(headers["content-length"]):
        return None
    return Reply(int(first.split()[1]), headers, body)

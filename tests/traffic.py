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
    replies: list[Reply | None] = [None] * len(requests)
    waiting = collections.deque(range(len(requests)))
    selector = selectors.DefaultSelector()
    open_connections = [_connect(port) for _ in range(min(connections, len(requests)))]
    under_way: dict[socket.socket, int] = {}
    buffers: dict[socket.socket, bytearray] = {}

    def next_on(connection: socket.socket) -> None:
        if not waiting:
            end(connection)
            return
        under_way[connection] = number = waiting.popleft()
        buffers[connection] = bytearray()
        try:
            connection.sendall(requests[number])
        except OSError:
            end(connection)

    def end(connection: socket.socket) -> None:
        under_way.pop(connection, None)
        selector.unregister(connection)
        connection.close()

    for connection in open_connections:
        selector.register(connection, selectors.EVENT_READ)
    for connection in open_connections:
        next_on(connection)
    while under_way:
        ready = selector.select(SECONDS_TO_ANSWER)
        if not ready:
            raise AssertionError(f"{len(under_way)} requests had no answer in time")
        for key, _ in ready:
            connection = key.fileobj
            assert isinstance(connection, socket.socket)
            try:
                received = connection.recv(1 << 18)
            except OSError:
                received = b""
            if not received:
                end(connection)
                continue
            buffers[connection] += received
            reply = _parse(buffers[connection])
            if reply is not None:
                number = under_way[connection]
                replies[number] = reply
                on_reply(number, reply)
                next_on(connection)
    selector.close()
    return replies


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
    head = bytes(received[:end]).lower()
    length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0])
    body = bytes(received[end + 4 :])
    return Reply(int(head.split()[1]), body) if len(body) >= length else None

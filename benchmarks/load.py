"""An HTTP load: each connection sends the next request when its answer is in, or at a stated rate.

One process, one thread, raw sockets: on one core it asks for more than one core can serve. It
counts an answer when all of its body has arrived, and stops at the first that is not a 200.
Bounded in time, loopback only.
"""

from __future__ import annotations

import dataclasses
import selectors
import socket
import sys
import time
from collections import deque

import numpy as np

HOST = "127.0.0.1"


@dataclasses.dataclass(frozen=True, slots=True)
class Load:
    """What a load measured. Latencies are in seconds, from send to the last byte."""

    requests: int
    seconds: float
    p50: float
    p99: float

    @property
    def per_second(self) -> float:
        return self.requests / self.seconds


def post(path: str, body: bytes) -> bytes:
    """Return the bytes of a POST request with a JSON body, kept alive."""
    head = f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def run(port: int, request: bytes, *, connections: int, seconds: float) -> Load:
    """Load a server for some seconds and measure. Raises `RuntimeError` on any but a 200."""
    selector = selectors.DefaultSelector()
    sent: dict[int, float] = {}
    parts: dict[int, bytes] = {}
    latencies: list[float] = []
    for _ in range(connections):
        connection = socket.create_connection((HOST, port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        selector.register(connection, selectors.EVENT_READ)
    started = time.perf_counter()
    deadline = started + seconds
    for key in selector.get_map().values():
        sent[key.fd] = time.perf_counter()
        key.fileobj.send(request)  # type: ignore[union-attr]
    waiting = connections
    while waiting:
        for key, _ in selector.select(timeout=10):
            connection = key.fileobj  # type: ignore[assignment]
            answer = parts.pop(key.fd, b"") + connection.recv(65536)
            if not _whole(answer):
                parts[key.fd] = answer
                continue
            now = time.perf_counter()
            latencies.append(now - sent[key.fd])
            if now < deadline:
                sent[key.fd] = now
                connection.send(request)
            else:
                selector.unregister(connection)
                connection.close()
                waiting -= 1
    took = time.perf_counter() - started
    p50, p99 = np.percentile(latencies, [50, 99])
    return Load(len(latencies), took, float(p50), float(p99))


def paced(
    port: int, request: bytes, *, connections: int, seconds: float, rate: float, seed: int
) -> Load:
    """Send `rate` requests a second, at moments drawn by chance, whether answers are in or not.

    Who comes while every connection waits for its answer stands in a queue, and its latency counts
    from the moment at which it came. Raises `RuntimeError` on any but a 200.
    """
    rng = np.random.default_rng(seed)
    gaps = rng.exponential(1 / rate, int(2 * rate * seconds) + 100)
    selector = selectors.DefaultSelector()
    idle: deque[socket.socket] = deque()
    for _ in range(connections):
        connection = socket.create_connection((HOST, port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        selector.register(connection, selectors.EVENT_READ)
        idle.append(connection)
    started = time.perf_counter()
    comes = deque((started + moment) for moment in np.cumsum(gaps).tolist() if moment < seconds)
    came: dict[int, float] = {}
    parts: dict[int, bytes] = {}
    latencies: list[float] = []
    while comes or came:
        now = time.perf_counter()
        while comes and comes[0] <= now and idle:
            connection = idle.popleft()
            came[connection.fileno()] = comes.popleft()
            connection.send(request)
        # Not to sleep longer than the next one takes; a select may oversleep by some 50 µs.
        wait = max(0.0, comes[0] - now - 1e-4) if comes and idle else 10.0
        for key, _ in selector.select(wait):
            connection = key.fileobj  # type: ignore[assignment]
            answer = parts.pop(key.fd, b"") + connection.recv(65536)
            if not _whole(answer):
                parts[key.fd] = answer
                continue
            latencies.append(time.perf_counter() - came.pop(key.fd))
            idle.append(connection)
    took = time.perf_counter() - started
    for connection in idle:
        connection.close()
    selector.close()
    p50, p99 = np.percentile(latencies, [50, 99])
    return Load(len(latencies), took, float(p50), float(p99))


def _whole(answer: bytes) -> bool:
    head, blank, body = answer.partition(b"\r\n\r\n")
    if not answer:
        raise RuntimeError("the server closed a connection")
    if not blank:
        return False
    if not head.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(f"not a 200: {answer[:500]!r}")
    start = head.lower().index(b"content-length:") + 15
    end = head.find(b"\r\n", start)
    return len(body) >= int(head[start : end if end > 0 else None])


def main() -> None:
    """Run one load and print it as JSON: the load process of the benchmark."""
    import json

    port, path, connections, seconds, *pace = sys.argv[1:]
    request = post(path, sys.stdin.buffer.read())
    how = {"connections": int(connections), "seconds": float(seconds)}
    if pace:
        load = paced(int(port), request, **how, rate=float(pace[0]), seed=int(pace[1]))  # type: ignore[arg-type]
    else:
        load = run(int(port), request, **how)  # type: ignore[arg-type]
    print(json.dumps({**dataclasses.asdict(load), "per_second": load.per_second}))


if __name__ == "__main__":
    main()

"""Raw sockets that do not behave: each is ended in time, and normal traffic does not notice."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from conftest import Server, copy_project, start_server, strict_json
from traffic import Traffic, post, send

from mlops.deploy.limits import Limits
from mlops.loop.serve import limits
from mlops.settings import read_settings
from mlops.usecases.iris import IRIS

FLOWER = json.dumps(IRIS.examples["setosa"]).encode()
GOOD = post("/iris/predict", FLOWER)
SECONDS = 2


@pytest.fixture(scope="module")
def server(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = copy_project(trained, tmp_path_factory.mktemp("limits") / "home")
    small = {"SECONDS_TO_RECEIVE": str(SECONDS), "MAX_CONNECTIONS": "100", "LARGEST_BODY": "100000"}
    started = start_server(home, **small)
    yield started
    started.kill()


class Raw:
    """One connection: bytes in, and what comes until the server closes."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=SECONDS * 10)

    def send(self, content: bytes) -> None:
        with contextlib.suppress(OSError):
            self.socket.sendall(content)

    def end(self) -> bytes:
        """Return all that is sent before the server closes; fail if it does not."""
        received = b""
        with contextlib.suppress(ConnectionError):
            while part := self.socket.recv(1 << 16):
                received += part
        self.socket.close()
        return received


def ended(server: Server, *parts: bytes) -> tuple[int, bytes]:
    """Send something and return status and body of the first answer, once it is closed."""
    raw = Raw(server.port)
    for part in parts:
        raw.send(part)
    return parsed(raw.end())


def parsed(received: bytes) -> tuple[int, bytes]:
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 "), received[:200]
    assert b"server:" not in head.lower()
    return int(head.split()[1]), body


def still_well(server: Server) -> None:
    [reply] = send(server.port, [GOOD], connections=1)
    assert reply is not None
    assert reply.status == 200
    assert server.process.poll() is None


CHUNKED = b"POST /iris/predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
SMUGGLED = {
    "length and chunks": CHUNKED + b"Content-Length: 4\r\n\r\n0\r\n\r\nGET /x HTTP/1.1\r\n\r\n",
    "two lengths": b"POST /iris/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n"
    b"Content-Length: 9\r\n\r\n{}{}{}{}{}",
    "a list of lengths": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4, 4\r\n\r\n{}{}",
    "a negative length": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -4\r\n\r\n",
    "a length with a plus": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +4\r\n\r\n{}{}",
    "a length in hexadecimal": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0x4\r\n\r\n{}{}",
    "an endless length": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: "
    + b"9" * 30
    + b"\r\n\r\n",
    "another coding": b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunks twice": CHUNKED + b"Transfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "a blank before the colon": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length : 4\r\n\r\n{}{}",
    "a folded header": b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n c: d\r\n\r\n\0",
    "a chunk of no size": CHUNKED + b"\r\nzz\r\n{}\r\n0\r\n\r\n",
    "a chunk of a negative size": CHUNKED + b"\r\n-1\r\n{}\r\n0\r\n\r\n",
    "a chunk of an endless size": CHUNKED + b"\r\n" + b"f" * 40 + b"\r\n{}\r\n0\r\n\r\n",
    "NUL in a header": b"GET / HTTP/1.1\r\nHost: x\r\nA: b\0c\r\n\r\n",
    "a name that only we may use": b"GET / HTTP/1.1\r\nHost: x\r\n(api key): admin\r\n\r\n",
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/9": b"GET / HTTP/9.9\r\n\r\n",
    "a method of ours": b"\xff\xfe / HTTP/1.1\r\n\r\n",
}


@pytest.mark.parametrize("what", SMUGGLED)
def test_what_two_servers_could_read_differently_is_refused_and_the_connection_closed(
    what: str, server: Server
) -> None:
    raw = Raw(server.port)
    raw.send(SMUGGLED[what])
    received = raw.end()
    status, body = parsed(received)
    assert status in {400, 413, 422}, received[:300]
    assert received.count(b"HTTP/1.1 ") == 1, "what came after was taken for another request"
    if status == 400:
        assert strict_json(body)["detail"][0]["msg"] == "the request is not HTTP"
    still_well(server)


def test_headers_of_too_many_bytes_or_names_are_refused(server: Server) -> None:
    many = b"".join(b"x-%d: 1\r\n" % number for number in range(10_000))
    for head in (
        b"GET / HTTP/1.1\r\nHost: x\r\n" + many + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nx: " + b"y" * 500_000,
        b"GET /" + b"y" * 500_000,
    ):
        assert ended(server, head)[0] == 431
    still_well(server)


def test_a_body_without_an_end_is_cut_off_and_a_large_one_is_refused(server: Server) -> None:
    raw = Raw(server.port)
    raw.send(CHUNKED + b"\r\n")
    chunk = b"10000\r\n" + b" " * 65_536 + b"\r\n"
    for _ in range(200):
        raw.send(chunk)
    received = raw.end()
    assert not received or parsed(received)[0] == 413
    trailers = b"".join(b"x-%d: 1\r\n" % number for number in range(100_000))
    raw = Raw(server.port)
    raw.send(CHUNKED + b"\r\n2\r\n{}\r\n0\r\n" + trailers)
    raw.end()
    [reply] = send(server.port, [post("/iris/predict", b" " * 100_001)], connections=1)
    assert reply is not None
    assert (reply.status, "100,000 bytes" in reply.json["detail"][0]["msg"]) == (413, True)
    still_well(server)


def test_a_gzip_bomb_is_not_unpacked(server: Server) -> None:
    packer = zlib.compressobj(9, wbits=31)
    bomb = b"".join(packer.compress(b"0" * 1_000_000) for _ in range(50)) + packer.flush()
    for path in ("/iris/predict", "/v2/models/iris/infer"):
        content = post(path, bomb, Content_Encoding="gzip")
        started = time.perf_counter()
        [reply] = send(server.port, [content], connections=1)
        assert reply is not None
        assert reply.status in {400, 422}
        assert time.perf_counter() - started < 5


SLOW: dict[str, Callable[[Raw], None]] = {
    "says nothing": lambda raw: None,
    "sends blank lines": lambda raw: raw.send(b"\r\n"),
    "sends half a head": lambda raw: raw.send(b"POST /iris/predict HTTP/1.1\r\nHost:"),
    "sends half a body": lambda raw: raw.send(GOOD[:-5]),
    "sends no body": lambda raw: raw.send(GOOD[: GOOD.index(b"\r\n\r\n") + 4]),
    "sends half a chunk": lambda raw: raw.send(CHUNKED + b"\r\n5\r\n{}"),
    "sends half a body to nowhere": lambda raw: raw.send(post("/nowhere", b"12")[:-1]),
    "waits for 100 Continue and then": lambda raw: raw.send(
        CHUNKED + b"Expect: 100-continue\r\n\r\n"
    ),
}


@pytest.mark.parametrize("what", SLOW)
def test_a_client_that_takes_too_long_is_told_so_and_closed(what: str, server: Server) -> None:
    raw = Raw(server.port)
    started = time.monotonic()
    SLOW[what](raw)
    with contextlib.suppress(OSError):
        for byte in b"\r\n" * 3 if what == "sends blank lines" else b"":
            time.sleep(SECONDS / 4)
            raw.socket.send(bytes([byte]))
    received = raw.end()
    assert SECONDS - 1.5 < time.monotonic() - started < SECONDS * 8
    if what.startswith("sends half a body to nowhere"):
        assert parsed(received)[0] in {404, 408}
    elif what.startswith("sends") and "blank" not in what:
        assert parsed(received)[0] == 408
        assert b"retry-after" not in received
    else:
        assert b"200 OK" not in received
    still_well(server)


def test_a_client_that_does_not_read_its_answer_is_cut_off(server: Server) -> None:
    process = psutil.Process(server.process.pid)
    batch = json.dumps({"instances": [json.loads(FLOWER)] * 1_200}).encode()
    raw = Raw(server.port)
    raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.send(post("/iris/predict/batch", batch) * 40)
    deadline = time.monotonic() + SECONDS * 10
    mine = raw.socket.getsockname()[1]
    while any(one.raddr and one.raddr.port == mine for one in process.net_connections()):
        assert time.monotonic() < deadline, "it is still connected"
        time.sleep(0.2)
    raw.socket.close()
    still_well(server)


def test_one_connection_too_many_is_told_so_at_once_and_the_others_go_on(server: Server) -> None:
    idle = [Raw(server.port) for _ in range(100)]
    status, body = ended(server, GOOD)
    assert status == 503
    assert "try again" in strict_json(body)["detail"][0]["msg"]
    idle[0].send(GOOD)
    assert idle[0].socket.recv(1 << 16).startswith(b"HTTP/1.1 200")
    for one in idle:
        one.socket.close()
    deadline = time.monotonic() + 10
    while True:
        with contextlib.suppress(AssertionError):
            still_well(server)
            break
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_pipelined_requests_are_answered_in_order(server: Server) -> None:
    last = GOOD.replace(b"Host: test", b"Host: test\r\nConnection: close")
    raw = Raw(server.port)
    raw.send(GOOD * 5 + post("/iris/predict", b"{}") + GOOD * 5 + last)
    received = raw.end()
    statuses = [part[:3] for part in received.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [b"200"] * 5 + [b"422"] + [b"200"] * 6


def test_a_request_that_waits_for_100_continue_is_answered(server: Server) -> None:
    raw = Raw(server.port)
    head, _, body = GOOD.partition(b"\r\n\r\n")
    raw.send(head + b"\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n")
    assert raw.socket.recv(100).startswith(b"HTTP/1.1 100 ")
    raw.send(body)
    assert parsed(raw.end())[0] == 200


def test_too_many_that_wait_are_refused_at_once_and_health_is_not(
    trained: Path, tmp_path: Path
) -> None:
    home = copy_project(trained, tmp_path / "home")
    server = start_server(home, MAX_WAITING="4")
    try:
        replies = send(server.port, [GOOD] * 600, connections=100)
        statuses = [reply.status if reply else 0 for reply in replies]
        assert set(statuses) == {200, 503}
        refused = next(reply for reply in replies if reply and reply.status == 503)
        assert refused.headers["retry-after"] == "1"
        assert refused.json["detail"][0]["msg"] == "too many requests at once: try again"
        assert server.request("/health/ready")[0] == 200
        infer = post("/v2/models/iris/infer", {"inputs": []})
        replies = send(server.port, [infer] * 600, connections=100)
        refused = next(reply for reply in replies if reply and reply.status == 503)
        assert refused.headers["retry-after"] == "1"
        assert refused.json == {"error": "too many requests at once: try again"}
        logged = server.request("/iris/metrics")[1]["total_predictions"]
        assert logged == statuses.count(200)
    finally:
        server.kill()


def test_health_is_never_one_too_many_of_a_use_case_and_of_v2_neither(
    trained: Path, tmp_path: Path
) -> None:
    server = start_server(copy_project(trained, tmp_path / "home"), MAX_WAITING="1")
    batch = post("/iris/predict/batch", {"instances": [dict(IRIS.examples["setosa"])] * 2_000})
    traffic = Traffic(server.port, [batch] * 100_000)
    load = threading.Thread(target=traffic.run, args=(24,))
    load.start()
    try:
        paths = ("/iris/health/live", "/housing/health/ready", "/v2/health/live", "/health/ready")
        assert {server.request(path)[0] for path in paths * 10} == {200}
        # Else nothing was shown.
        assert {reply.status for reply in traffic.replies if reply} == {200, 503}
    finally:
        traffic.stop()
        load.join()
        server.kill()


def test_of_several_workers_each_has_its_share_of_the_limits() -> None:
    whole = read_settings(MAX_CONNECTIONS=1000, MAX_WAITING=10, LARGEST_BODY=5000)
    shared = read_settings(MAX_CONNECTIONS=1000, MAX_WAITING=10, LARGEST_BODY=5000, WORKERS=3)
    assert limits(whole) == Limits(connections=1000, waiting=10, body=5000)
    assert limits(shared) == Limits(connections=334, waiting=4, body=5000)


def gone(connection: socket.socket) -> bool:
    """Whether the other side has closed: reads what there is, and no more."""
    connection.setblocking(False)
    try:
        while connection.recv(1 << 16):
            pass
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True

"""The short way of a hot request: the same answers as uvicorn's and FastAPI's own way."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import tiny
import uvicorn
from conftest import strict_json
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from mlops.deploy import protocol
from mlops.deploy.limits import Limits, limited
from mlops.deploy.service import Service
from mlops.usecases.iris import IRIS

LIMITS = Limits(body=100_000)
BODY = json.dumps(IRIS.examples["setosa"]).encode()


class Server:
    def __init__(self, port: int, log: tiny.ListLog) -> None:
        self.port = port
        self.log = log

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def ask(self, *parts: bytes) -> tuple[int, dict[str, str], bytes]:
        reader, writer = await self.connect()
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.001)
        answer = await read(reader)
        writer.close()
        return answer


@contextlib.asynccontextmanager
async def serving(
    http: Callable[[Any], type[HttpToolsProtocol]], **settings: Any
) -> AsyncIterator[Server]:
    log = tiny.ListLog()
    service = Service(IRIS)
    app = tiny.app_over(service)
    app.limits = LIMITS
    service.start(log, synced=False)
    service.swap(tiny.champion(IRIS, 1))
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        config = uvicorn.Config(app, http=http(app), lifespan="off", log_level="error", **settings)
        server = uvicorn.Server(config)
        serving = asyncio.ensure_future(server.serve(sockets=[listening]))
        try:
            while not server.started:
                await asyncio.sleep(0.005)
            yield Server(listening.getsockname()[1], log)
        finally:
            server.should_exit = True
            await serving
            await service.stop()


def running(
    test: Callable[[Server], Awaitable[Any]],
    http: Any = lambda app: protocol.protocol_for(app, LIMITS),
    **settings: Any,
) -> Any:
    async def run() -> Any:
        async with serving(http, **settings) as server:
            return await asyncio.wait_for(test(server), 30)

    return asyncio.run(run())


async def read(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return int(first.split()[1]), headers, body


def post(body: bytes = BODY, *lines: str, path: str = "/predict", version: str = "1.1") -> bytes:
    head = [f"POST {path} HTTP/{version}", "Host: test", f"Content-Length: {len(body)}", *lines]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that will name the paths that go the short way."""
    paths = []
    begin = protocol._Exchange.begin

    def noted(self: protocol._Exchange) -> None:
        paths.append(self.route.path)
        begin(self)

    monkeypatch.setattr(protocol._Exchange, "begin", noted)
    return paths


REQUESTS = {
    "one": post(),
    "a batch": post(b'{"instances":[' + BODY + b"," + BODY + b"]}", path="/predict/batch"),
    "a wrong one": post(b'{"sepal_length": "wide"}'),
    "no JSON": post(b"{"),
    "nothing": post(b""),
    "too large": post(b" " * (LIMITS.body + 1)),
    "chunked": b"POST /predict HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n"
    + b"%x\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (20, BODY[:20], len(BODY) - 20, BODY[20:]),
    "with a query": post(path="/predict?x=1"),
    "to another path": post(path="/nowhere"),
    "by another method": b"GET /predict HTTP/1.1\r\nHost: test\r\n\r\n",
    "which closes": post(BODY, "Connection: close"),
    "of HTTP/1.0": post(version="1.0"),
    "with two lengths": post(BODY, f"Content-Length: {len(BODY) + 1}"),
    "with an upgrade": post(BODY, "Connection: upgrade", "Upgrade: websocket"),
}


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS.keys())
def test_the_short_way_answers_as_the_servers_own_way(request_: bytes) -> None:
    async def ask(server: Server) -> tuple[int, dict[str, str], Any, Any]:
        status, headers, body = await server.ask(request_)
        headers.pop("date", None)
        content = strict_json(body) if "json" in headers["content-type"] else body
        for answer in content.get("predictions", [content]) if isinstance(content, dict) else ():
            answer.pop("prediction_id", None)
        headers.pop("content-length")  # a float may be a digit shorter
        logged = [row.inputs for row in server.log.rows]
        return status, headers, content, (logged, [one.status for one in server.log.refused])

    ours = running(ask)
    assert ours == running(ask, http=lambda app: limited(LIMITS))
    assert ours[0] != 500


def test_only_plain_hot_requests_go_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = taken(monkeypatch)

    async def ask(server: Server) -> None:
        for request in (post(), post(path="/predict?x=1"), REQUESTS["a batch"]):
            assert (await server.ask(request))[0] == 200
        assert (await server.ask(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"))[0] == 200

    running(ask)
    assert paths == ["/predict", "/predict/batch"]


def test_a_request_may_arrive_byte_by_byte_and_another_after_it() -> None:
    async def ask(server: Server) -> None:
        reader, writer = await server.connect()
        for _ in range(2):
            for byte in post():
                writer.write(bytes([byte]))
                await writer.drain()
            assert (await read(reader))[0] == 200
        writer.write(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
        assert (await read(reader))[0] == 200
        writer.write(post())
        assert (await read(reader))[0] == 200
        writer.close()
        assert len(server.log.rows) == 3

    running(ask)


def test_pipelined_requests_are_answered_in_order() -> None:
    async def ask(server: Server) -> None:
        reader, writer = await server.connect()
        wanted = [{**IRIS.examples["setosa"], "sepal_length": n / 10} for n in range(10, 30)]
        requests = [post(json.dumps(instance).encode()) for instance in wanted]
        requests[7:7] = [b"GET /health/live HTTP/1.1\r\nHost: test\r\n\r\n"]
        requests[3:3] = [post(b"{}")]
        writer.write(b"".join(requests))
        answers = [await read(reader) for _ in requests]
        statuses = [status for status, *_ in answers]
        assert statuses == [200] * 3 + [422] + [200] * (len(requests) - 4)
        ids = [strict_json(body).get("prediction_id") for _, _, body in answers]
        logged = {row.prediction_id: json.loads(row.inputs) for row in server.log.rows}
        assert [logged[one] for one in ids if one] == wanted
        writer.close()

    running(ask)


def test_who_expects_a_100_gets_it() -> None:
    async def ask(server: Server) -> None:
        reader, writer = await server.connect()
        head, _, body = post(BODY, "Expect: 100-continue").partition(b"\r\n\r\n")
        writer.write(head + b"\r\n\r\n")
        assert (await read(reader))[0] == 100
        writer.write(body)
        assert (await read(reader))[0] == 200
        writer.close()

    running(ask)


def test_a_client_that_leaves_before_its_answer_is_logged_and_harms_nobody() -> None:
    async def ask(server: Server) -> None:
        server.log.gate.clear()
        _, writer = await server.connect()
        writer.write(post())
        await writer.drain()
        await asyncio.sleep(0.02)
        writer.transport.abort()
        await asyncio.sleep(0.02)
        server.log.gate.set()
        assert (await server.ask(post()))[0] == 200
        assert len(server.log.rows) == 2

    running(ask)


def test_an_idle_connection_is_closed_and_a_busy_one_is_not() -> None:
    async def ask(server: Server) -> None:
        reader, writer = await server.connect()
        server.log.gate.clear()
        writer.write(post())
        await asyncio.sleep(0.4)
        server.log.gate.set()
        assert (await read(reader))[0] == 200
        assert await reader.read() == b""
        writer.close()

    running(ask, timeout_keep_alive=0.2)


def test_a_defect_in_a_handler_costs_one_answer_and_not_the_connection(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def ask(server: Server) -> None:
        def broken(*_: Any, **__: Any) -> None:
            raise ZeroDivisionError

        append, server.log.append = server.log.append, broken  # type: ignore[method-assign,assignment]
        reader, writer = await server.connect()
        writer.write(post())
        status, _, body = await read(reader)
        assert status == 500
        assert b"ZeroDivision" not in body
        server.log.append = append  # type: ignore[method-assign]
        writer.write(post())
        assert (await read(reader))[0] == 200
        writer.close()

    running(ask)
    assert "ZeroDivisionError" in capsys.readouterr().err

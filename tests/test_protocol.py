"""The short way of a hot request: the same answers as uvicorn's and FastAPI's own way."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import tiny
import uvicorn
from conftest import strict_json
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from mlops.deploy import protocol
from mlops.deploy.app import App
from mlops.deploy.keys import Key, digest
from mlops.deploy.limits import Limits, limited
from mlops.deploy.service import Service
from mlops.usecases.iris import IRIS

LIMITS = Limits(body=100_000)
KEYS = [
    Key("shop", digest("mlk_shop"), "predict", None, "2026", None),
    Key("reader", digest("mlk_reader"), "read", None, "2026", None),
    Key("houses", digest("mlk_houses"), "predict", "housing", "2026", None),
]
BODY = json.dumps(IRIS.examples["setosa"]).encode()


class Server:
    def __init__(self, port: int, log: tiny.ListLog, app: App) -> None:
        self.port = port
        self.log = log
        self.app = app

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
            yield Server(listening.getsockname()[1], log, app)
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

    def noted(self: protocol._Exchange, body: bytes) -> None:
        paths.append(self.route.path)
        begin(self, body)

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


GUARDED = {
    "no key": post(),
    "a wrong key": post(BODY, "X-API-Key: mlk_wrong"),
    "another role": post(BODY, "X-API-Key: mlk_reader"),
    "another use case": post(BODY, "X-API-Key: mlk_houses"),
    "two keys": post(BODY, "X-API-Key: mlk_shop", "Authorization: Bearer mlk_reader"),
    "no key, and too large": post(b" " * (LIMITS.body + 1)),
    "no key, and closed": post(BODY, "Connection: close"),
    "a key": post(BODY, "Authorization: Bearer mlk_shop", "Idempotency-Key: 1"),
    "a key, and a wrong one": post(b"{}", "X-API-Key: mlk_shop"),
    "a batch that empties the bucket": post(
        b'{"instances":[' + b",".join([BODY] * 50) + b"]}",
        "X-API-Key: mlk_shop",
        path="/predict/batch",
    ),
    "one more": post(BODY, "X-API-Key: mlk_shop"),
    "another client": post(BODY, "X-API-Key: mlk_reader"),
}


def test_with_keys_and_a_rate_limit_both_ways_let_in_refuse_and_count_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def ask(server: Server) -> Any:
        server.app.access.take(KEYS)
        server.app.access.limit(20)
        answers = []
        for request_ in GUARDED.values():
            status, headers, body = await server.ask(request_)
            kept = {name: headers.get(name) for name in ("www-authenticate", "connection")}
            answers.append((status, kept, strict_json(body)["detail"] if status != 200 else ""))
        await server.app.models["iris"].metrics()
        return (
            answers,
            [(row.inputs, row.client is not None) for row in server.log.rows],
            [one.status for one in server.log.refused],
            sorted((status, logged) for _, status, _, logged in server.log.timings),
        )

    paths = taken(monkeypatch)
    ours = running(ask, proxy_headers=False)
    assert len(paths) == len(GUARDED), "all of them went the short way"
    assert ours == running(ask, http=lambda app: limited(LIMITS), proxy_headers=False)
    statuses = [status for status, *_ in ours[0]]
    assert statuses == [401, 401, 403, 403, 401, 401, 401, 200, 422, 200, 429, 403]
    assert [status for status, logged in ours[3] if not logged] == [401] * 5 + [403] * 3 + [429]


def test_a_server_that_believes_proxies_asks_them_who_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def ask(server: Server) -> list[int]:
        server.app.access.limit(1 / 60)
        return [
            (await server.ask(post(BODY, f"X-Forwarded-For: 10.0.0.{number}")))[0]
            for number in (1, 2, 1)
        ]

    paths = taken(monkeypatch)
    assert running(ask, proxy_headers=True, forwarded_allow_ips="127.0.0.1") == [200, 200, 429]
    assert not paths
    assert running(ask, proxy_headers=False) == [200, 429, 429]


def test_one_too_many_is_refused_before_its_body_is_read_and_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    infer = post(b"{}", path="/v2/models/iris/infer")

    async def ask(server: Server) -> None:
        server.log.gate.clear()
        reader, writer = await server.connect()
        writer.write(post())
        await asyncio.sleep(0.02)
        says = "too many requests at once: try again"
        for request_ in (post(b"no JSON"), post(b"{", "Connection: close")):
            status, headers, body = await server.ask(request_)
            assert (status, headers["retry-after"]) == (503, "1")
            assert strict_json(body)["detail"][0]["msg"] == says
        last = post(b"{}", "Connection: close", path="/v2/models/iris/infer")
        for request_ in (infer, last):
            status, headers, body = await server.ask(request_)
            assert (status, headers["retry-after"]) == (503, "1")
            assert strict_json(body) == {"error": says}
        assert (await server.ask(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"))[0] == 200
        assert (await server.ask(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"))[0] == 503
        server.log.gate.set()
        assert (await read(reader))[0] == 200
        writer.close()
        assert (await server.ask(post()))[0] == 200
        await server.app.models["iris"].metrics()
        counted = sorted(status for _, status, _, _ in server.log.timings)
        assert counted == [200, 200, 503, 503, 503, 503], "of metrics, nobody counts the refusals"

    running(ask, http=lambda app: protocol.protocol_for(app, Limits(waiting=1)))


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


def heads_read(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Return a list that will hold the path of each head that is read."""
    read_heads = []
    complete = protocol.Protocol.on_headers_complete

    def noted(self: protocol.Protocol) -> None:
        read_heads.append(self.url)
        complete(self)

    monkeypatch.setattr(protocol.Protocol, "on_headers_complete", noted)
    return read_heads


def test_a_head_that_comes_again_is_not_read_again_and_any_other_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heads = heads_read(monkeypatch)
    other = json.dumps(IRIS.examples["virginica"]).encode()
    assert len(other) == len(BODY)
    named = post(BODY, "X-Client-ID: 1")
    get = b"GET /health/live HTTP/1.1\r\nHost: test\r\n\r\n"
    sent = [
        post(),
        post(other),
        post(b"{}"),
        post(b"[]"),
        named,
        named,
        post(),
        get,
        post(),
        post(),
    ]

    async def ask(server: Server) -> None:
        reader, writer = await server.connect()
        statuses = []
        for request_ in sent:
            writer.write(request_)
            statuses.append((await read(reader))[0])
        writer.close()
        assert statuses == [200, 200, 422, 422, 200, 200, 200, 200, 200, 200]
        asked = [json.loads(row.inputs) for row in server.log.rows]
        assert asked[:2] == [IRIS.examples["setosa"], IRIS.examples["virginica"]]
        one = server.log.rows[2].client
        assert one is not None
        assert [row.client for row in server.log.rows] == [None, None, one, one, None, None, None]

    running(ask)
    # Not those of the second of each pair; after a GET nothing is known any more.
    assert heads == [b"/predict"] * 4 + [b"/health/live", b"/predict"]


def test_a_head_is_not_known_again_once_it_would_be_answered_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heads = heads_read(monkeypatch)

    async def ask(server: Server) -> None:
        reader, writer = await server.connect()
        writer.write(post() + post())  # the second begins while the first waits
        assert [(await read(reader))[0] for _ in range(2)] == [200, 200]
        writer.write(post()[:-1])
        await asyncio.sleep(0.01)
        writer.write(post()[-1:])  # in two pieces
        assert (await read(reader))[0] == 200
        assert len(heads) == 3
        for _ in range(2):
            writer.write(post())
            assert (await read(reader))[0] == 200
        assert len(heads) == 4
        server.app.access.take(KEYS)
        writer.write(post())
        assert (await read(reader))[0] == 401, "keys hold from the next request on"
        writer.close()
        assert len(heads) == 4

    running(ask, proxy_headers=False)


@pytest.mark.parametrize("seed", range(3))
def test_requests_on_one_connection_are_answered_as_by_the_servers_own_way(seed: int) -> None:
    closing = {"too large", "which closes", "of HTTP/1.0", "with two lengths", "with an upgrade"}
    chosen = random.Random(seed)
    kept = [request_ for name, request_ in REQUESTS.items() if name not in closing]
    sent = [one for _ in range(20) for one in [chosen.choice(kept)] * chosen.randint(1, 3)]
    cuts = [chosen.choice([0, 0, 0, chosen.randrange(len(one))]) for one in sent]

    async def ask(server: Server) -> Any:
        reader, writer = await server.connect()
        answers = []
        for request_, cut in zip(sent, cuts, strict=True):
            for part in filter(None, (request_[:cut], request_[cut:])):
                writer.write(part)
                await asyncio.sleep(0.001)
            status, headers, body = await read(reader)
            answers.append((status, headers.get("connection"), b"prediction_id" in body))
        writer.close()
        return answers, [row.inputs for row in server.log.rows]

    assert running(ask) == running(ask, http=lambda app: limited(LIMITS))


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

"""The short way of a hot request: from the bytes on the connection straight to its handler.

uvicorn makes a task, a scope and some messages of each request, as ASGI wants it; that costs more
than to validate, predict and log one. `Protocol` takes up a POST to a hot route itself, and calls
the same `HotRoute.begin` that the application calls. Everything else goes uvicorn's way and in by
the application's door: other routes, requests that are pipelined, that expect a 100 or an upgrade,
connections whose client does not read its answers, and, while there are keys or rate limits, all
requests to a server that believes proxies who asks. Both ways ask the same `Access`.

On a connection that is kept, the next request mostly has the head of the one before, byte by byte:
it is then not read again (`_Head`).

A request that is one too many is refused here before its body is looked at. How many may wait
follows from how long they wait (`limits.Room`).

One object is made per request; what uvicorn and `limits.py` look at between requests (`cycle`, the
keep-alive timer, the pipeline) is kept as they expect it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from mlops.deploy.app import App, HotRoute
from mlops.deploy.documented import headers_of
from mlops.deploy.limits import MOST_HEADERS, LimitedProtocol, Limits, Room
from mlops.deploy.service import Reply

LENGTH = b"content-length"
BLANK = b"\r\n\r\n"
LARGEST_KNOWN = 4096
"""Bytes of a head that are kept to know it again; a longer one is read each time."""


class _Head(NamedTuple):
    """A hot request's head as it was last read on a connection, to be known by its bytes."""

    data: bytes
    """All before the body, the empty line too."""
    length: int
    """That of the whole request, in bytes."""
    route: HotRoute
    headers: list[tuple[bytes, bytes]]


def protocol_for(app: App, limits: Limits) -> type[LimitedProtocol]:
    """Return the protocol class for uvicorn's `http` setting, bound to the hot routes of `app`."""
    routes = {path.encode(): route for path, route in app.hot.items()}
    answers = _Answers(Room(limits.waiting))
    shared = {"limits": limits, "routes": routes, "application": app, "answers": answers}
    return type("HotProtocol", (Protocol,), shared)


class Protocol(LimitedProtocol):
    """uvicorn's protocol with its limits, and with a short way to `routes`."""

    routes: Mapping[bytes, HotRoute]
    application: App
    answers: _Answers
    _hot: _Exchange | None = None
    _arriving = b""
    """What came last, if a request begins with it."""
    _known: _Head | None = None
    """Of the request before this, if the parser waits for one to begin."""

    def data_received(self, data: bytes) -> None:
        known = self._known
        if known and len(data) == known.length and data.startswith(known.data) and self._is_free():
            self._since = None  # the client waits for us
            exchange = _Exchange(self, known.route, known.headers, keep_alive=not self.last)
            self.cycle = exchange  # type: ignore[assignment]
            exchange.size = known.length - len(known.data)
            exchange.begin(data[len(known.data) :])
            return
        self._known = None
        self._arriving = b"" if self._in_message else data
        super().data_received(data)
        self._arriving = b""

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        self.expect_message()

    def on_headers_complete(self) -> None:
        route = self.routes.get(self.url)
        if (
            route is not None
            and self.parser.get_method() == b"POST"
            and len(self.headers) <= MOST_HEADERS
            and not self.expect_100_continue
            and not self.parser.should_upgrade()
            and self._is_free()
        ):
            self.expect_body()
            kept = self.parser.should_keep_alive() and self.parser.get_http_version() != "1.0"
            self._hot = _Exchange(self, route, self.headers, keep_alive=kept and not self.last)
            self.cycle = self._hot  # type: ignore[assignment]
        else:
            url, headers, expect = self.url, self.headers, self.expect_100_continue
            HttpToolsProtocol.on_message_begin(self)  # makes the scope
            self.url, self.expect_100_continue = url, expect
            self.headers += headers
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if self._hot is None:
            super().on_body(body)
        else:
            self._hot.take(body)

    def on_message_complete(self) -> None:
        if self._hot is None:
            super().on_message_complete()
        else:
            self.expect_nothing()
            exchange, self._hot = self._hot, None
            self._remember(exchange)
            exchange.begin(b"".join(exchange.parts))

    def _is_free(self) -> bool:
        """Whether a hot request can be taken up here: nothing is before it, nothing in its way."""
        return (
            (self.cycle is None or self.cycle.response_complete)
            and self.timeout_keep_alive_task is None
            and not self.flow.write_paused
            and not (self.application.access.on and self.config.proxy_headers)
        )

    def _remember(self, exchange: _Exchange) -> None:
        """Know this head again, if it came together with all of its body and nothing else.

        Then what follows it has the length that it states: a body in chunks is shorter than what
        was sent, and before a second request there is more.
        """
        arrived = self._arriving
        end = arrived.find(BLANK, 0, LARGEST_KNOWN) + len(BLANK)
        if exchange.keep_alive and end >= len(BLANK) and end + exchange.size == len(arrived):
            self._known = _Head(arrived[:end], len(arrived), exchange.route, exchange.headers)

    def too_many_wait(self) -> bool:
        return len(self.tasks) + self.answers.waiting >= self.answers.room.size

    def refuse(self, cycle: Any) -> None:
        if isinstance(cycle, _Exchange):
            cycle.route.service.count(503)
        else:
            self.application.count(cycle.scope, 503)
        super().refuse(cycle)


class _Exchange:
    """A hot request and its answer. Has of uvicorn's cycle what is looked at from outside."""

    __slots__ = (
        "arrived",
        "client",
        "disconnected",
        "headers",
        "keep_alive",
        "message_event",
        "parts",
        "protocol",
        "response_complete",
        "response_started",
        "route",
        "size",
    )

    def __init__(
        self,
        protocol: Protocol,
        route: HotRoute,
        headers: list[tuple[bytes, bytes]],
        *,
        keep_alive: bool,
    ) -> None:
        self.protocol = protocol
        self.route = route
        self.headers = headers
        self.parts: list[bytes] = []
        self.size = 0
        self.keep_alive = keep_alive
        self.response_started = self.response_complete = False
        self.disconnected = False
        self.message_event = NOBODY_WAITS
        self.arrived = 0.0
        self.client = ""

    def take(self, part: bytes) -> None:
        """Keep a part of the body; of one that is too large, only the first."""
        self.size += len(part)
        if self.size <= self.protocol.limits.body:
            self.parts.append(part)
        else:
            del self.parts[1:]

    def begin(self, body: bytes) -> None:
        protocol, route = self.protocol, self.route
        if protocol.too_many_wait():
            protocol.refuse(self)
            return
        if protocol.application.access.on:
            scope: dict[str, Any] = {
                "method": "POST",
                "headers": self.headers,
                "client": protocol.client,
            }
            self.client, refusal = route.admit(scope)
            self.headers = scope["headers"]
            if refusal:
                self._write(refusal)
                return
        protocol.answers.waiting += 1
        self.arrived = time.perf_counter()
        route.begin(body, self.size, self.headers, self.respond)

    def respond(self, reply: Reply) -> None:
        answers = self.protocol.answers
        now = time.perf_counter()
        answers.room.answered(self.arrived, now, answers.waiting)
        answers.waiting -= 1
        if self.client:
            self.protocol.application.access.charge(self.client, reply.rows)
        self._write(reply)
        self.route.service.observe(reply, now - self.arrived)

    def _write(self, reply: Reply) -> None:
        protocol = self.protocol
        self.response_started = self.response_complete = True
        if self.disconnected or protocol.transport.is_closing():
            return
        head = protocol.answers.head(reply, protocol.server_state.default_headers)
        end = b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n"
        protocol.transport.write(b"%b%d\r\n%b%b" % (head, len(reply.body), end, reply.body))
        if not self.keep_alive:
            protocol.transport.close()
        protocol.answered()


class _NobodyWaits:
    """In place of the event with which uvicorn wakes an application that waits for a message."""

    def set(self) -> None:
        """Wake nobody."""


NOBODY_WAITS = _NobodyWaits()


class _Answers:
    """What the connections of a server share: how many requests wait, and heads of answers.

    Heads, up to their length, are made once a second: uvicorn then sets the date.
    """

    def __init__(self, room: Room) -> None:
        self.room = room
        self.waiting = 0
        self._default: list[tuple[bytes, bytes]] = []
        self._heads: dict[int, bytes] = {}

    def head(self, reply: Reply, default: list[tuple[bytes, bytes]]) -> bytes:
        if default is not self._default:
            self._default, self._heads = default, {}
        head = self._heads.get(reply.status)
        if head is None:
            pairs = [*default, *(pair for pair in headers_of(reply) if pair[0] != LENGTH)]
            lines = b"".join(b"%b: %b\r\n" % pair for pair in pairs)
            head = STATUS_LINE[reply.status] + lines + LENGTH + b": "
            if not reply.headers:  # which are of this one alone
                self._heads[reply.status] = head
        return head

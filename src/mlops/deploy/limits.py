"""Limits on connections: how many, how long, how large, and when to say that it is too much.

uvicorn leaves these to a proxy in front: a client may take for ever to send its headers or body,
or to read its answer. The protocol here is uvicorn's own, and adds:

    a connection that is one too many, and a request when too many wait, get 503 with Retry-After
    a request becomes a task when all of it has arrived: a slow one costs a socket and no more
    a request that takes too long to arrive gets 408, an answer that nobody reads is given up
    a head of too many bytes or names gets 431, a body of twice what is allowed is cut off with 413

Time is counted by one timer a second for all connections, so that a request pays nothing for it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import http
import math
from typing import Any, ClassVar

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from mlops.deploy import problems

LARGEST_HEAD = 64 * 1024
MOST_HEADERS = 100
SPARE_CONNECTIONS = 200
"""So many more are let in to be told that there are too many; the next are cut off unheard."""
SECONDS_FOR_A_LAST_REQUEST = 0.5
"""For so long a server that ends listens to a client that has sent nothing: it may just do so."""
SECONDS_OF_DEAFNESS = 0.1
"""A client whose request was one too many is not listened to for so long, or twice as long: it
cannot hurry us."""
SECONDS_TO_WAIT = 0.2
"""No more requests may wait than are answered within so long."""
LEAST_WAITING = 100
"""So few may wait however long it takes: a disk that stalls for a moment makes no refusals."""
GROWTH = 0.1
SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)
"""Of every answer, unless it brings its own. Answers are somebody's data, and no pages."""
NEVER_TOO_MANY = ("/health/live", "/health/ready")
"""How the paths end that are answered all the same: of the server, of a use case, of `/v2`."""
SAYS = {
    400: "the request is not HTTP",
    408: "the request took too long to arrive",
    413: "the body is too large",
    431: "the headers are too many or too large",
    503: "too many requests at once: try again",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """What one server process lets happen at once. Times are in seconds, sizes in bytes."""

    connections: int = 1_000
    waiting: int = 1_000
    seconds: int = 10
    body: int = 16 * 1024 * 1024


class Room:
    """How many requests may wait at once: `most`, or as many as are answered within 0.2 s.

    Additive increase, multiplicative decrease (Chiu and Jain 1989). An answer that took too long
    cuts the room to what would have been in time by Little's law, once for all that waited with
    it; each answer in time makes a tenth more of a place. So a queue never holds much more than
    can be answered in time, on a fast machine and on a slow one.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.least = min(LEAST_WAITING, most)
        self.size = float(most)
        self._cut = -math.inf

    def answered(self, arrived: float, now: float, waiting: int) -> None:
        """Learn from an answer: when its request arrived, and how many wait, itself included.

        In seconds of one clock, whichever it is.
        """
        waited = now - arrived
        if waited <= SECONDS_TO_WAIT:
            if self.size < self.most:
                self.size = min(self.most, self.size + GROWTH)
        elif waiting > self.least and arrived > self._cut:
            self._cut = now
            self.size = max(self.least, min(self.size, waiting) * SECONDS_TO_WAIT / waited)


def _canned(status: int, *more: tuple[bytes, bytes], path: str = "") -> bytes:
    kind = http.HTTPStatus(status).phrase.lower().replace(" ", "_")
    body = problems.for_path(path, problems.problem(kind, SAYS[status]))
    length = (b"content-length", b"%d" % len(body))
    retry = (b"retry-after", problems.RETRY_AFTER_SECONDS.encode())
    headers = [(b"content-type", b"application/json"), length, *SECURITY_HEADERS, *more]
    headers += [retry] if status == 503 else []
    lines = b"".join(b"%b: %b\r\n" % pair for pair in headers)
    return STATUS_LINE[status] + lines + b"\r\n" + body


BUSY = _canned(503)
BUSY_V2 = _canned(503, path="/v2")
CLOSE = (b"connection", b"close")
LAST_WORDS = {status: _canned(status, CLOSE) for status in SAYS}
LAST_BUSY_V2 = _canned(503, CLOSE, path="/v2")


class _Watch:
    """The clock of a server: counts seconds, and looks at every connection at each."""

    def __init__(self, connections: set[Any]) -> None:
        self.now = 0
        self._connections = connections
        self._ticking = False
        self._deaf: list[FlowControl] = []
        self._still_deaf: list[FlowControl] = []

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._ticking:
            self._ticking = True
            loop.call_later(1, self._tick, loop)

    def deafen(self, flow: FlowControl, loop: asyncio.AbstractEventLoop) -> None:
        """Do not read from this connection for a while. One timer is for all of them."""
        if not self._deaf and not self._still_deaf:
            loop.call_later(SECONDS_OF_DEAFNESS, self._hear, loop)
        self._deaf.append(flow)

    def _hear(self, loop: asyncio.AbstractEventLoop) -> None:
        for flow in self._still_deaf:
            flow.resume_reading()
        self._still_deaf, self._deaf = self._deaf, []
        if self._still_deaf:
            loop.call_later(SECONDS_OF_DEAFNESS, self._hear, loop)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        self.now += 1
        for connection in tuple(self._connections):
            if isinstance(connection, LimitedProtocol):
                connection.look(self.now)
        self._ticking = False
        if self._connections:
            self.start(loop)


class LimitedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol with an end to everything."""

    limits: ClassVar[Limits]

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._one_too_many = False
        self._refusal = 400
        self._in_head = False
        self._in_message = False
        self._bytes = 0
        # Since when we wait for the client; None while it waits for us.
        self._since: int | None = None
        self._seconds_unread = 0
        self._held: Any = None
        self.last = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        surplus = len(self.connections) - self.limits.connections
        if surplus >= SPARE_CONNECTIONS:
            self.transport = transport
            transport.abort()
            return
        self._one_too_many = surplus >= 0
        super().connection_made(transport)
        state: Any = self.server_state
        if not hasattr(state, "watch"):
            state.watch = _Watch(self.connections)
        self._watch: _Watch = state.watch
        self._since = self._watch.now
        self._watch.start(self.loop)

    def data_received(self, data: bytes) -> None:
        if self._one_too_many:
            # Said only now: an answer that is sent before the request may be lost with it.
            self._end(503)
            return
        self._bytes += len(data)
        super().data_received(data)
        if self._in_head:
            if self._bytes > LARGEST_HEAD:
                self._end(431)
        elif self._bytes > 2 * self.limits.body + LARGEST_HEAD:
            self._end(413)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.expect_message()

    def expect_message(self) -> None:
        self._in_head = self._in_message = True
        self._since = self._watch.now
        self._bytes = 0

    def expect_body(self) -> None:
        self._in_head = False

    def expect_nothing(self) -> None:
        self._in_message = False
        self._since = None

    def on_headers_complete(self) -> None:
        self.expect_body()
        if len(self.headers) > MOST_HEADERS:
            self._refusal = 431
            raise ValueError  # the parser stops, and `send_400_response` is called
        super().on_headers_complete()
        if self.last:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        if self._held is None:
            super().on_body(body)
        elif len(self.cycle.body) <= self.limits.body:  # what is more only has to be noticed
            self.cycle.body += body

    def on_message_complete(self) -> None:
        self.expect_nothing()
        super().on_message_complete()
        held, self._held = self._held, None
        if held is not None:
            self._start_asgi_task(self.cycle, held)

    def shutdown(self) -> None:
        """Answer once more before the connection ends: a request may be under way already.

        That answer says that it is the last. Who sends nothing any more is not waited for.
        """
        self.last = True
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False
        elif not self._in_message:
            self.loop.call_later(SECONDS_FOR_A_LAST_REQUEST, self._close_if_idle)

    def _close_if_idle(self) -> None:
        if not self._in_message and (self.cycle is None or self.cycle.response_complete):
            self.transport.close()

    def on_response_complete(self) -> None:
        if not self._in_message:
            self._since = self._watch.now
        super().on_response_complete()

    def answered(self) -> None:
        """Note that an answer is out, and do what waited for it.

        That is uvicorn's `on_response_complete` without its timer, to make and to close which costs
        more than a refusal: the watch ends connections that stay idle.
        """
        if self.pipeline:
            self.on_response_complete()
        else:
            self.server_state.total_requests += 1
            if not self._in_message:
                self._since = self._watch.now

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        if cycle.more_body and not cycle.waiting_for_100_continue:
            self._held = app
        elif not self.too_many_wait() or cycle.scope["path"].endswith(NEVER_TOO_MANY):
            super()._start_asgi_task(cycle, app)
        else:
            self.refuse(cycle)

    def too_many_wait(self) -> bool:
        return len(self.tasks) >= self.limits.waiting

    def refuse(self, cycle: RequestResponseCycle) -> None:
        """Say that it is too much, at a fraction of what an answer costs."""
        about_v2 = self.url.startswith(b"/v2/")
        if not cycle.keep_alive:
            self._end(503, LAST_BUSY_V2 if about_v2 else LAST_WORDS[503])
            return
        cycle.response_started = cycle.response_complete = True
        self.transport.write(BUSY_V2 if about_v2 else BUSY)
        self.answered()
        self.flow.pause_reading()
        self._watch.deafen(self.flow, self.loop)

    def send_400_response(self, msg: str) -> None:
        self._end(self._refusal)

    def look(self, now: int) -> None:
        """End the connection if its client has taken too long, to send or to read."""
        unread = self.transport.get_write_buffer_size() > 0
        self._seconds_unread = self._seconds_unread + 1 if unread else 0
        if self._seconds_unread >= self.limits.seconds:
            self.transport.abort()
        elif self._since is not None and not self.flow.read_paused:
            waited = now - self._since
            if self._in_message:
                if waited >= self.limits.seconds:
                    self._end(408)
            elif waited >= self.limits.seconds or (
                self.cycle is not None and waited > self.timeout_keep_alive
            ):
                self.transport.close()

    def _end(self, status: int, words: bytes = b"") -> None:
        """Answer with an error and close, unless an answer is on its way already."""
        if self.transport.is_closing():
            return
        answering = self.cycle is not None and (
            self.cycle.response_started and not self.cycle.response_complete
        )
        if not answering:
            self.transport.write(words or LAST_WORDS[status])
        self._held = None
        if self.cycle is not None:
            # Its task, if it has one, is told as if the client had gone.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()


def limited(limits: Limits) -> type[LimitedProtocol]:
    """Return the protocol with these limits, for uvicorn's `http`."""
    return type("Limited", (LimitedProtocol,), {"limits": limits})

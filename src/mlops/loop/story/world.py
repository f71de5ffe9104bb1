"""Where a story takes place: a folder of its own, a real server over it, and the clock of both."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from mlops import clock
from mlops.errors import ServiceError
from mlops.loop.story.traffic import Ask
from mlops.settings import Settings

CONNECTIONS = 8
SECONDS_TO_START = 60
SECONDS_TO_ANSWER = 30
SECONDS_OF_A_VERB = 300
COMMAND = (sys.executable, "-m", "mlops.cli")
IDLE_SECONDS = 3
"""A connection that did nothing for longer may have been closed by the server."""
SETTINGS = {field.validation_alias for field in Settings.model_fields.values()}
"""Those of whoever tells the story are none of its business."""


class Answered(NamedTuple):
    """A request that was answered: when by the clock, by whom asked, and what came back."""

    at: float
    ask: Ask
    status: int
    body: dict[str, Any]


class World:
    """A server process over `home`, started and killed at will; `now` is what its clock shows.

    `command` runs the project's verbs; the server is one of them.

    Messages that its alerts send are in `heard`, oldest first.
    """

    def __init__(
        self, use_case: str, home: Path, begins: float, command: Sequence[str], **more: str
    ) -> None:
        self.use_case = use_case
        self.home = home
        self.now = begins
        self.heard: list[dict[str, Any]] = []
        self._clock = home / "clock"
        clock.set_to(self._clock, begins)
        self._command = command
        self._listener = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _listener(self.heard))
        threading.Thread(target=self._listener.serve_forever, daemon=True).start()
        self._environment = {
            **{key: value for key, value in os.environ.items() if key not in SETTINGS},
            "MLOPS_HOME": str(home),
            "MLOPS_STORY_CLOCK": str(self._clock),
            "PREDICTIONS_DURABILITY": "crash",
            "ALERT_URLS": f"json://127.0.0.1:{self._listener.server_port}/",
            **more,
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0
        self._pool = ThreadPoolExecutor(CONNECTIONS)
        self._own = threading.local()
        self._connections: list[http.client.HTTPConnection] = []

    def start(self) -> float:
        """Start the server; return after how many seconds it was ready."""
        started = time.perf_counter()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        with (self.home / "server.log").open("ab") as output:
            self._process = subprocess.Popen(  # noqa: S603  our own command
                [*self._command, "serve", self.use_case, "--port", str(self._port)],
                cwd=self.home,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        while time.perf_counter() - started < SECONDS_TO_START:
            with contextlib.suppress(OSError):
                if self.get("/health/ready")[0] == 200:
                    return time.perf_counter() - started
            if self._process.poll() is not None:
                break
            time.sleep(0.05)
        raise ServiceError("the story's server did not start", f"see {self.home / 'server.log'}")

    def run(self, *words: str) -> tuple[int, Any]:
        """Run a verb of the command line here; return its exit code and what it prints as JSON.

        Raises `ServiceError` with what it complained of, if it prints none.
        """
        done = subprocess.run(  # noqa: S603  our own command
            [*self._command, *words, "--json"],
            cwd=self.home,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS_OF_A_VERB,
            check=False,
        )
        try:
            return done.returncode, json.loads(done.stdout)
        except ValueError:
            says = done.stderr.strip().rpartition("\n")[2]
            raise ServiceError(f"mlops {' '.join(words)}: {says}", "see above") from None

    def kill(self) -> None:
        """End the server as kill -9 does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(SECONDS_TO_ANSWER)
        self._hang_up()

    def close(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(SECONDS_TO_ANSWER)
            except subprocess.TimeoutExpired:
                self.kill()
        self._hang_up()
        self._pool.shutdown()
        self._listener.shutdown()
        self._listener.server_close()

    def pass_to(self, seconds: float) -> None:
        """Let time pass, to this moment (unix seconds)."""
        self.now = seconds
        clock.set_to(self._clock, seconds)

    def ask(self, asks: Iterable[Ask]) -> list[Answered]:
        """Send requests over a few connections, and wait for all answers."""
        return list(self._pool.map(self._predict, asks))

    def _predict(self, ask: Ask) -> Answered:
        status, body = self._post("/predict", ask.row, {"X-Client-ID": ask.user})
        return Answered(self.now, ask, status, body)

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        """Send one request of another kind; `body` is sent as JSON, bytes as they are."""
        return self._post(path, body, {})

    def get(self, path: str) -> tuple[int, Any]:
        request = urllib.request.Request(f"http://127.0.0.1:{self._port}{path}")
        try:
            with urllib.request.urlopen(request, timeout=SECONDS_TO_ANSWER) as response:  # noqa: S310
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def _hang_up(self) -> None:
        """Close all connections; the next request of each thread opens a new one."""
        self._own = threading.local()
        while self._connections:
            self._connections.pop().close()

    def _post(self, path: str, body: Any, headers: dict[str, str]) -> tuple[int, Any]:
        connection: http.client.HTTPConnection | None = getattr(self._own, "connection", None)
        now = time.monotonic()
        if connection is None or now - self._own.used > IDLE_SECONDS:
            connection = http.client.HTTPConnection(
                "127.0.0.1", self._port, timeout=SECONDS_TO_ANSWER
            )
            self._own.connection = connection
            self._connections.append(connection)
        self._own.used = now
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        try:
            connection.request("POST", path, data, {"content-type": "application/json", **headers})
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        except OSError:
            self._own.connection = None
            raise


def _listener(heard: list[dict[str, Any]]) -> type[http.server.BaseHTTPRequestHandler]:
    """Return a handler that keeps every message that is posted to it."""

    class Listener(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers.get("content-length", 0))
            heard.append(json.loads(self.rfile.read(length)))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Print nothing."""

    return Listener

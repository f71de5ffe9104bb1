"""Alerts of a real server: seen, listed, and told to a real webhook, once each way."""

from __future__ import annotations

import asyncio
import json
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import apsw
import pytest
from conftest import Server, free_port, mlops, run

from mlops.database import transaction
from mlops.deploy.service import Service
from mlops.loop.alerts import Lookout, alerts
from mlops.monitor.alerts.book import AlertBook
from mlops.monitor.alerts.channels import Note
from mlops.monitor.log import PredictionLog
from mlops.settings import read_settings
from mlops.usecases.iris import IRIS

SETOSA = IRIS.examples["setosa"]
FAST = {"ALERT_WINDOW_SECONDS": "10", "ALERT_HOLD_SECONDS": "1"}
SECONDS = 60


class Hook:
    """A webhook that keeps what it is told, in order. Told to be `down`, it answers 503."""

    def __init__(self, port: int = 0) -> None:
        told: list[dict[str, Any]] = []
        self.told, self.down, self.refused = told, False, 0
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                if hook.down:
                    hook.refused += 1
                else:
                    told.append(body)
                self.send_response(503 if hook.down else 200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Nothing is printed."""

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port = self._server.server_port
        self.url = f"json://127.0.0.1:{self.port}/hidden-path"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def titles(self) -> list[str]:
        return [one["title"] for one in self.told]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Mails(socketserver.StreamRequestHandler):
    """As much of SMTP as it takes to be handed a mail."""

    def handle(self) -> None:
        self.wfile.write(b"220 here\r\n")
        while line := self.rfile.readline().strip():
            if line.upper() == b"DATA":
                self.wfile.write(b"354 go on\r\n")
                mail = b"".join(iter(self.rfile.readline, b".\r\n"))
                self.server.mails.append(mail.decode())  # type: ignore[attr-defined]
            self.wfile.write(b"250 ok\r\n")
            if line.upper() == b"QUIT":
                return


@pytest.fixture
def mail_server() -> Iterator[Any]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Mails) as server:
        server.mails = []  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def hook() -> Iterator[Hook]:
    made = Hook()
    yield made
    made.close()


def until(condition: Callable[[], Any], what: str, seconds: float = SECONDS) -> Any:
    """Wait for it; return what came."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds} s: {what}")


def plant_errors(server: Server, number: int = 20, good: int = 5) -> None:
    for _ in range(good):
        assert server.request("/predict", SETOSA)[0] == 200
    for _ in range(number):
        assert server.request("/predict", {})[0] == 422


def ask_well(server: Server, path: str = "/predict") -> bool:
    """Ask for enough predictions that the share of errors can be told."""
    return all(server.request(path, SETOSA)[0] == 200 for _ in range(10))


def opened(server: Server) -> list[str]:
    return [one["rule"] for one in server.request("/alerts")[1]["open"]]


def test_errors_are_told_once_when_they_start_and_once_when_they_end(serve, hook, home):
    server = serve("iris", ALERT_URLS=hook.url, **FAST)
    assert server.request("/alerts")[1]["open"] == []
    plant_errors(server)
    until(lambda: hook.told, "a message of the start")
    [alert] = server.request("/alerts")[1]["open"]
    assert (alert["use_case"], alert["rule"], alert["until"]) == ("iris", "error_rate", None)
    assert alert["value"] == pytest.approx(0.8)
    assert "80.0% of 25 requests in 10 s failed (20 with 422); the limit is 5.0%" in alert["says"]
    listed = mlops("alerts", "--json", home=home, check=False)
    assert listed.returncode == 1
    assert json.loads(listed.stdout)["open"][0]["rule"] == "error_rate"

    until(lambda: ask_well(server) and len(hook.told) > 1, "a message of the end")
    time.sleep(2.5)  # two more looks
    assert hook.titles == ["Critical: iris: error rate", "Ended: iris: error rate"]
    assert [one["type"] for one in hook.told] == ["failure", "success"]
    assert "80.0% of 25 requests" in hook.told[0]["message"]
    answer = server.request("/alerts")[1]
    assert answer["open"] == []
    [alert] = answer["ended"]
    assert [(one["channel"], one["event"], one["error"]) for one in alert["notified"]] == [
        ("json", "started", None),
        ("json", "ended", None),
    ]
    assert all(one["sent"] for one in alert["notified"])
    assert "hidden-path" not in json.dumps(answer) + server.printed()
    shown = mlops("alerts", home=home)
    assert "open: none" in shown.stdout
    assert "iris error_rate" in shown.stdout


@pytest.mark.slow
def test_two_workers_a_kill_and_a_hook_that_is_down_make_one_message_each(serve, hook):
    hook.down = True
    options = {"ALERT_URLS": hook.url, "WORKERS": "2", **FAST, "ALERT_WINDOW_SECONDS": "30"}
    server = serve(**options)
    for _ in range(25):
        assert server.request("/iris/predict", {})[0] == 422
    until(lambda: hook.refused > 1, "a second attempt")
    [channel] = until(
        lambda: [one for one in server.request("/alerts")[1]["channels"] if one["error"]],
        "the channel is named as failing",
    )
    assert channel["waiting"] == 1
    server.kill()  # its workers follow it
    port = server.port
    hook.down = False
    server = serve(port=port, **options)
    until(lambda: hook.told, "the start, told after the restart")
    assert server.request("/iris/alerts")[1]["open"][0]["rule"] == "error_rate"
    assert server.request("/housing/alerts")[1]["open"] == []
    ended = "Ended: iris: error rate"
    until(lambda: ask_well(server, "/iris/predict") and ended in hook.titles, "the end")
    time.sleep(5)
    # The same flower over and over is drift too, which is another alert.
    about_errors = [title for title in hook.titles if title.endswith("error rate")]
    assert about_errors == ["Critical: iris: error rate", ended]


def test_a_log_that_stops_a_disk_that_is_full_and_an_old_champion_are_alerts(serve, hook, home):
    text = home / "irislogs" / "predictions.log"
    limits = {"ALERT_STALE_DAYS": "0.000001", "ALERT_DISK_FREE": "0.99999"}
    server = serve("iris", ALERT_URLS=hook.url, **limits, **FAST)
    assert server.request("/predict", SETOSA)[0] == 200
    text.unlink()
    text.mkdir()  # nobody, root included, can write to it as a file
    assert server.request("/predict", SETOSA)[0] == 200
    every = {"disk", "log_stopped", "stale_model"}
    until(lambda: set(opened(server)) == every, "all three are open")
    text.rmdir()
    until(lambda: set(opened(server)) == every - {"log_stopped"}, "the log has caught up by itself")
    assert len(text.read_text().splitlines()) == 2
    until(lambda: len(hook.told) == 4, "four messages")
    assert sorted(hook.titles) == [
        "Critical: iris: disk",
        "Critical: iris: log stopped",
        "Ended: iris: log stopped",
        "Warning: iris: stale model",
    ]


def test_each_channel_is_tried_and_the_one_that_fails_is_named(hook, mail_server, tmp_path):
    nobody = f"json://127.0.0.1:{free_port()}/hidden-path"
    port = mail_server.server_address[1]
    mail = f"mailto://127.0.0.1:{port}?from=mlops@example.com&to=team@example.com"
    urls = f"{hook.url},{nobody},nonsense://hidden-path,{mail}"
    done = mlops("alerts", "test", "--json", home=tmp_path, check=False, ALERT_URLS=urls)
    assert done.returncode == 1
    found = {one["channel"]: one["error"] for one in json.loads(done.stdout)}
    assert (found["json"], found["mailto"]) == (None, None)
    [letter] = mail_server.mails
    assert "Subject: mlops: test" in letter
    assert "Alerts of this installation arrive here." in letter
    assert "Connection error" in found["json 2"]
    assert "no address that apprise knows" in found["nonsense"]
    assert hook.titles == ["mlops: test"]
    assert "hidden-path" not in done.stdout + done.stderr

    done = mlops("alerts", "test", home=tmp_path, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "no channel is configured — set ALERT_URLS" in done.stderr


def test_a_server_says_at_its_start_that_an_address_is_none(home):
    done = run(
        *("python", "-m", "mlops.cli", "serve", "iris", "--port", str(free_port())),
        home=home,
        check=False,
        ALERT_URLS="hunter2",
    )
    assert done.returncode != 0
    assert "ALERT_URLS: number 1 is no address" in done.stderr
    assert "hunter2" not in done.stderr + done.stdout


def test_where_no_server_ran_nothing_is_open_and_it_says_so(tmp_path):
    done = mlops("alerts", home=tmp_path)
    assert "never checked: no server ran here" in done.stdout
    assert not (tmp_path / "alerts.db").exists()


def test_a_book_that_cannot_be_written_is_kept_in_memory_until_it_can(tmp_path):
    log = PredictionLog(tmp_path / "irislogs", "irislogs", "crash")
    settings = read_settings(MLOPS_HOME=tmp_path, ALERT_URLS="json://host", ALERT_HOLD_SECONDS=0)
    with Lookout([Service(IRIS)], [log], settings) as lookout:
        disk = lookout._kept._database
        disk.pragma("query_only", True)
        lookout.look("iris")  # nothing was trained: it is unavailable
        [alert] = lookout.listed(("iris",))["open"]
        assert (alert["rule"], len(alert["notified"])) == ("unavailable", 1)
        assert alerts(settings=settings)["open"] == []
        disk.pragma("query_only", False)
        time.sleep(1)  # the next look
        lookout.look("iris")
        assert alerts(settings=settings)["open"] == lookout.listed(("iris",))["open"] == [alert]
    log.close()


def test_a_book_that_another_process_writes_is_left_to_it_and_looked_at_later(tmp_path):
    log = PredictionLog(tmp_path / "irislogs", "irislogs", "crash")
    settings = read_settings(MLOPS_HOME=tmp_path, ALERT_HOLD_SECONDS=0)
    with (
        Lookout([Service(IRIS)], [log], settings) as lookout,
        AlertBook(settings.alert_database) as other,
    ):
        lookout._kept._database.set_busy_timeout(0)
        with transaction(other._database):
            lookout.look("iris")
        assert lookout.listed(("iris",))["open"] == []
        lookout.look("iris")
        assert len(alerts(settings=settings)["open"]) == 1
    log.close()


def test_what_one_channel_took_is_written_down_while_another_hangs(hook, tmp_path):
    log = PredictionLog(tmp_path / "irislogs", "irislogs", "crash")
    with socket.create_server(("127.0.0.1", 0)) as never_answers:
        hangs = f"json://127.0.0.1:{never_answers.getsockname()[1]}"
        settings = read_settings(
            MLOPS_HOME=tmp_path, ALERT_HOLD_SECONDS=0, ALERT_URLS=f"{hook.url},{hangs}"
        )

        async def stop_in_between(lookout: Lookout) -> None:
            telling = asyncio.create_task(lookout.tell())
            await asyncio.to_thread(until, lambda: hook.told, "the first channel took it")
            await asyncio.sleep(0.5)
            assert not telling.done()
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)

        with Lookout([Service(IRIS)], [log], settings) as lookout:
            lookout.look("iris")
            asyncio.run(stop_in_between(lookout))
            [alert] = lookout.listed(("iris",))["open"]
        assert {one["channel"]: one["sent"] is not None for one in alert["notified"]} == {
            "json": True,
            "json 2": False,
        }
    log.close()


def test_a_copy_that_fails_leaves_the_book_as_it_was(tmp_path, monkeypatch):
    log = PredictionLog(tmp_path / "irislogs", "irislogs", "crash")
    settings = read_settings(MLOPS_HOME=tmp_path, ALERT_URLS="json://host", ALERT_HOLD_SECONDS=0)
    with Lookout([Service(IRIS)], [log], settings) as lookout:
        lookout.look("iris")
        before = alerts(settings=settings)["open"]
        assert len(before) == 1

        def fail(*_: object) -> None:
            raise apsw.IOError

        with monkeypatch.context() as broken:
            broken.setattr(AlertBook, "due", fail)
            broken.setattr(AlertBook, "copy", fail)
            with pytest.raises(apsw.IOError):
                lookout.look("iris")
        lookout.look("iris")
        assert alerts(settings=settings)["open"] == before
    log.close()


def test_what_sends_ends_with_the_process_that_would_write_it_down():
    with socket.create_server(("127.0.0.1", 0)) as never_answers:
        note = Note(f"json://127.0.0.1:{never_answers.getsockname()[1]}", "title", "body", "info")
        sending = subprocess.Popen(
            [sys.executable, "-m", "mlops.monitor.alerts.channels"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        sending.stdin.write(f"{json.dumps([note])}\n".encode())
        sending.stdin.flush()
        with never_answers.accept()[0]:
            assert sending.communicate(timeout=30) == (b"", None)  # closes its standard input
        assert sending.returncode == 1


def test_the_size_of_the_write_ahead_log_is_watched(tmp_path):
    log = PredictionLog(tmp_path / "irislogs", "irislogs", "crash")
    with Lookout([Service(IRIS)], [log], read_settings(MLOPS_HOME=tmp_path)) as lookout:
        log.probe()
        wal = log.path.with_name("predictions.db-wal")
        assert lookout.watched("iris").log_wal_bytes == wal.stat().st_size > 4_096
    log.close()

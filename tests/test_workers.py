"""Several workers behind one port: one log, one count, one champion, and always at full number."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import kept
import psutil
import pytest
from conftest import Server, free_port, mlops
from traffic import post, send

from mlops.errors import ServiceError
from mlops.loop.foreground import _bound
from mlops.loop.workers import SECONDS_OF_SILENCE, Supervisor, Worker
from mlops.settings import read_settings
from mlops.usecases.housing import HOUSING

Serve = Callable[..., Server]
BODY = next(iter(HOUSING.examples.values()))


def workers(server: Server) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(server.process.pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):  # a zombie too
            if "mlops.loop.workers" in child.cmdline():
                found.append(child)
    return found


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "this did not come to pass"
        time.sleep(0.05)


def pids(server: Server) -> set[int]:
    return {one.pid for one in workers(server)}


def inherited(pid: int) -> list[str]:
    """The open files of a process that a child of its own would have too (proc(5))."""
    found = []
    for file in Path(f"/proc/{pid}/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it was closed meanwhile
            flags = dict(line.split(":") for line in file.read_text().splitlines()[:2])["flags"]
            if not int(flags, 8) & os.O_CLOEXEC:
                found.append(file.name)
    return found


def both_up(server: Server, *, not_among: frozenset[int] = frozenset()) -> bool:
    """Whether two workers answer: each has its own log open, and takes connections."""
    now = pids(server)
    started = server.printed().count("Application startup complete.")
    return len(now) == 2 and not now & not_among and started >= 2 + len(not_among)


def test_workers_share_one_log_one_count_and_one_champion_and_a_killed_one_is_replaced(
    serve: Serve, home: Path
) -> None:
    server = serve("housing", WORKERS="2")
    until(lambda: both_up(server))
    first = pids(server)
    killed = min(first)
    for worker in workers(server):
        assert worker.environ()["OMP_NUM_THREADS"] == "1"
        assert set(inherited(worker.pid)) <= {"0", "1", "2"}, "a child would keep the port"

    def kill(number: int, _: object) -> None:
        if number == 150:
            os.kill(killed, signal.SIGKILL)

    requests = [post("/predict", BODY, Idempotency_Key=f"request {n}") for n in range(400)]
    replies = send(server.port, requests, connections=16, on_reply=kill)
    unanswered = [request for request, reply in zip(requests, replies, strict=True) if not reply]
    assert len(unanswered) < 400
    if unanswered:
        replies += send(server.port, unanswered, connections=4)
    answered = [reply for reply in replies if reply]
    assert [reply.status for reply in answered] == [200] * 400
    until(lambda: both_up(server, not_among=frozenset({killed})))
    assert server.request("/health/ready")[0] == 200

    ids = {reply.json["prediction_id"] for reply in answered}
    assert {row["prediction_id"] for row in kept.check_whole(home)} == ids
    assert len(ids) == 400
    for _ in range(6):  # some to each worker
        kept.check_metrics(server.request("/metrics")[1], home)

    assert server.stop() == 0
    assert not [pid for pid in first if psutil.pid_exists(pid)]


def test_workers_end_with_their_supervisor_even_if_it_is_killed(serve: Serve, home: Path) -> None:
    server = serve("iris", "--workers", "2")
    until(lambda: both_up(server))
    shares = {one.environ()["WORKERS"] for one in workers(server)}
    assert shares == {"2"}, "each knows of how many it is one, for its share of the limits"
    left = pids(server)
    server.kill()
    until(lambda: not any(psutil.pid_exists(pid) for pid in left))


def test_workers_that_cannot_begin_are_one_clear_end_and_no_endless_tries(home: Path) -> None:
    (home / "irislogs").mkdir(exist_ok=True)
    (home / "irislogs" / "predictions.db").write_text("this is no database" * 1000)
    port = str(free_port())
    ended = mlops("serve", "iris", "--workers", "2", "--port", port, home=home, check=False)
    assert ended.returncode == 1
    assert ended.stderr.rstrip().splitlines()[-1].startswith("mlops: workers end as soon as")


def watched(script: str) -> Worker:
    """A worker that was up and says nothing more, as its supervisor sees it."""
    worker = Worker.__new__(Worker)
    worker._beats, _ = os.pipe()
    worker.process = subprocess.Popen([sys.executable, "-c", script])
    worker.up, worker._ticks = True, -1
    worker._heard = worker._ran = time.monotonic()
    return worker


def test_one_that_sleeps_hangs_after_a_second_and_one_that_computes_may_go_on_for_longer() -> None:
    asleep, busy = watched("import time; time.sleep(60)"), watched("while True: pass")
    try:
        time.sleep(0.5)  # both have begun
        asleep._heard = busy._heard = time.monotonic()
        until(asleep.hangs, SECONDS_OF_SILENCE - 0.3)
        assert not busy.hangs()
        until(busy.hangs, 2 * SECONDS_OF_SILENCE)
    finally:
        for one in (asleep, busy):
            one.process.kill()
            one.process.wait()
            one.close()


def test_a_supervisor_that_was_stopped_itself_does_not_take_that_for_silence() -> None:
    supervisor = Supervisor((), read_settings(WORKERS=1), socket.socket())
    worker = watched("import time; time.sleep(60)")
    supervisor._workers.append(worker)
    try:
        supervisor._looked = worker._heard = worker._ran = time.monotonic() - 60
        supervisor._replace()
        assert worker.process.poll() is None
        worker._heard = worker._ran = time.monotonic() - 60
        supervisor._replace()
        assert worker.process.poll() == -signal.SIGKILL
    finally:
        supervisor._listening.close()
        worker.process.kill()
        worker.process.wait()


def test_a_worker_the_system_refuses_to_start_is_told_of_once_and_tried_again(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    opened = psutil.Process().num_fds()
    with socket.socket() as listening:
        supervisor = Supervisor(("iris",), read_settings(WORKERS=1), listening)
        with monkeypatch.context() as patched:
            patched.setattr(subprocess, "Popen", refuse)
            for _ in range(3):
                supervisor._replace()
                supervisor._fill()
        assert capfd.readouterr().err.count("a worker cannot be started yet: Resource") == 1
        supervisor._fill()
        (worker,) = supervisor._workers
        supervisor._end(0)
        worker.close()
    assert psutil.Process().num_fds() == opened


def test_of_two_servers_that_start_together_on_one_port_the_second_says_that_it_is_taken() -> None:
    settings = read_settings(HOST="127.0.0.1", PORT=free_port())
    with _bound(settings), pytest.raises(ServiceError, match="cannot be used: Address already"):
        _bound(settings)

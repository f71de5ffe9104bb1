"""Several workers behind one port: one log, one count, one champion, and always at full number."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import kept
import psutil
from conftest import Server, free_port, mlops
from traffic import post, send

from mlops.loop.workers import SECONDS_OF_SILENCE, Worker
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

"""R23: the metrics are what the log holds, and never go back."""

from __future__ import annotations

import os
import signal
import threading
import time

import kept
import psutil
from traffic import Traffic, post

from benchmarks.reliability.world import Found, World
from mlops.usecases.iris import IRIS

FLOWER = dict(IRIS.examples["setosa"])
PART = 300


def metrics_and_log(world: World, rounds: int = 4) -> Found:
    """Load two workers, kill one or restart all at random, and compare counts with rows.

    While requests run, `/metrics` is asked again and again: a count must never be less than one
    seen before. When all is answered, counts must equal rows.
    """
    home = world.home()
    decreases, differences, seen, asked, done = 0, 0, 0, 0, 0
    workers = 1 if world.fault else 2  # workers are programs of their own, without the fault
    server = world.start(home, "iris", workers=workers)
    part = [post("/predict", FLOWER if n % 20 else {}) for n in range(PART)]
    for turn in world.rounds(rounds):
        traffic = Traffic(server.port, part)
        load = threading.Thread(target=traffic.run, args=(8,))
        load.start()
        for look in range(6):
            try:
                now = server.request("/metrics")[1]["total_predictions"]
            except OSError:
                continue  # the worker that was asked was killed
            asked += 1
            decreases += now < seen
            seen = max(now, seen)
            if look == 2 and turn % 2 == 0:
                kill_one(server.process.pid, world.chance.random())
            time.sleep(0.02)
        load.join()
        if turn % 2:
            end = server.stop if turn % 4 == 1 else server.kill
            end()
            until_gone(home)
            server = world.start(home, "iris", workers=workers)
        for _ in range(4):  # some to each worker
            metrics = server.request("/metrics")[1]
            asked += 1
            decreases += metrics["total_predictions"] < seen
            seen = max(seen, metrics["total_predictions"])
        try:
            kept.check_metrics(metrics, home, "iris")
        except AssertionError:
            differences += 1
        done += 1
    kept.check_whole(home, "iris")
    return Found(
        f"{differences} differences, {decreases} decreases",
        not differences and not decreases,
        f"{done} kills or restarts, {seen:,} rows, {asked} looks",
    )


def kill_one(supervisor: int, chance: float) -> None:
    workers = [one for one in psutil.Process(supervisor).children() if "python" in one.name()]
    if workers:
        os.kill(workers[int(chance * len(workers))].pid, signal.SIGKILL)


def until_gone(home: object, seconds: float = 20) -> None:
    """Wait for workers whose supervisor was killed: they drain and end by themselves."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        left = [
            one
            for one in psutil.process_iter(["cmdline", "environ"])
            if "mlops.loop.workers" in (one.info["cmdline"] or ())
            and (one.info["environ"] or {}).get("MLOPS_HOME") == str(home)
        ]
        if not left:
            return
        time.sleep(0.05)
    raise AssertionError("workers outlived their supervisor")

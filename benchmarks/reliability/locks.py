"""R5: several writers, a long reader, a backup and a training: nothing is locked, nothing lost."""

from __future__ import annotations

import contextlib
import functools
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import kept
from conftest import mlops
from traffic import Reply, Traffic, post

from benchmarks.reliability.world import Found, World
from mlops.usecases.iris import IRIS

FLOWER = dict(IRIS.examples["setosa"])
CLIENTS = 64
SERVERS = 2
MOST_MB = 64
"""Of write-ahead log, at the goal."""


def locked_or_lost(world: World, requests: int = 20_000) -> Found:
    """Let two servers of two workers write one log for 64 clients, while others use it too.

    A reader holds a snapshot for a second at a time, a backup is made again and again, and a
    training runs. Counted are requests without a 200, acknowledged ids without a row, and copies
    that SQLite finds unsound.
    """
    home = world.home()
    workers = 1 if world.fault else 2
    servers = [world.start(home, "iris", workers=workers) for _ in range(SERVERS)]
    share = max(1, requests // SERVERS)
    traffics = [Traffic(server.port, [post("/predict", FLOWER)] * share) for server in servers]
    acked: set[str] = set()
    for one in traffics:
        one.on_reply = functools.partial(_keep, acked, one)
    log, wal = home / "irislogs" / "predictions.db-wal", 0.0
    loads = [threading.Thread(target=one.run, args=(CLIENTS // SERVERS,)) for one in traffics]
    with _company(home) as unsound:
        for load in loads:
            load.start()
        for load in loads:
            while load.is_alive():
                load.join(0.2)
                wal = max(wal, log.stat().st_size / 1e6)
                if not list(world.rounds(2))[1:]:  # out of time
                    for traffic in traffics:
                        traffic.stop()
    sent = sum(len(one.sent) for one in traffics)
    for server in servers:
        server.stop()
    rows = {row["prediction_id"] for row in kept.check_whole(home, "iris")}
    failed, lost = sent - len(acked), len(acked - rows)
    return Found(
        f"{failed} not answered, {lost} lost, {len(unsound)} unsound backups; "
        f"WAL {wal:.0f} MB at most",
        not failed and not lost and not unsound,
        f"{sent:,} requests, {SERVERS * workers} writers",
        goal=wal <= MOST_MB,
    )


def _keep(acked: set[str], traffic: Traffic, number: int, reply: Reply) -> None:
    """Keep the id of an answer, and of a million answers no more."""
    if reply.status == 200:
        acked.add(reply.json["prediction_id"])
    traffic.replies[number] = None


@contextlib.contextmanager
def _company(home: Path) -> Iterator[list[str]]:
    """Read, back up and train for as long as the block runs; yield what was wrong with backups."""
    over, unsound = threading.Event(), list[str]()
    path = home / "irislogs" / "predictions.db"

    def read() -> None:
        with contextlib.closing(sqlite3.connect(path)) as log:
            while not over.is_set():
                log.execute("BEGIN")
                log.execute("SELECT count(*) FROM irislogs").fetchall()
                over.wait(1)
                log.execute("COMMIT")

    def back_up() -> None:
        while not over.is_set():
            with (
                contextlib.closing(sqlite3.connect(path)) as log,
                contextlib.closing(sqlite3.connect(home / "backup.db")) as copy,
            ):
                log.backup(copy)
                [(says,)] = copy.execute("PRAGMA quick_check").fetchall()
                if says != "ok":
                    unsound.append(says)
            over.wait(0.5)

    def train() -> None:
        mlops("train", "iris", home=home, check=False, timeout=300)

    threads = [threading.Thread(target=one) for one in (read, back_up, train)]
    for thread in threads:
        thread.start()
    try:
        yield unsound
    finally:
        over.set()
        for thread in threads:
            thread.join()

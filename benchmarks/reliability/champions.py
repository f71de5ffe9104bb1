"""R7, R8, R10: promotions under load, how long an old version goes on, and who wins."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import kept
import numpy as np
from traffic import Reply, Traffic, post

from benchmarks.reliability.world import Found, World, champions, promote, until
from mlops.improve.ledger import Ledger, Version
from mlops.loop import presence
from mlops.package.bundle import open_bundle
from mlops.usecases.iris import IRIS

PROMOTE_MINE = """
import sys, time
from pathlib import Path
from mlops.errors import ChampionMovedError
from mlops.improve.ledger import Ledger

folder, me, rounds, fault = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
with Ledger(folder / "state.db") as ledger:
    for turn in range(rounds):
        mine = ledger.version("housing", 100 * (turn + 1) + me)
        champion = ledger.champion("housing").version
        (folder / f"ready-{turn}-{me}").touch()
        while not (folder / f"go-{turn}").exists():
            time.sleep(0.0005)
        try:
            while True:
                if fault:  # whoever is champion by now
                    champion = ledger.champion("housing").version
                try:
                    ledger.promote(mine, expected=champion, reason=f"turn {turn}", evidence=[])
                    break
                except ChampionMovedError:
                    if not fault:
                        raise
            (folder / f"won-{turn}-{me}").touch()
        except ChampionMovedError:
            (folder / f"lost-{turn}-{me}").touch()
"""
PROMOTERS = 8
QUIET = 0.7
"""Seconds without an answer of the old version after which all workers have switched: they look
twice a second."""
LONGEST = 5.0


def concurrent_promotions(world: World, rounds: int = 20) -> Found:
    """R10. Let eight processes behind a barrier promote theirs "if the champion is still X".

    Exactly one may win each round, be champion, and be in the list of decisions once. Each round an
    experiment tries out one of the eight: it must be over, and promoted only if that one won.
    """
    folder = world.folder()
    with Ledger(folder / "state.db") as ledger:
        ledger.register(_version(1))
        for turn in range(rounds):
            for me in range(PROMOTERS):
                ledger.register(_version(100 * (turn + 1) + me))
        ledger.promote(_version(1), expected=None, reason="first", evidence=[])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROMOTE_MINE, folder, str(me), str(rounds), world.fault]
        )
        for me in range(PROMOTERS)
    ]
    champion, wrong, done = 1, 0, 0
    try:
        for turn in world.rounds(rounds):
            _wait_for(folder, f"ready-{turn}-*", PROMOTERS)
            with Ledger(folder / "state.db") as ledger:
                ledger.experiments.begin("housing", "ab", 100 * (turn + 1), share=0.5)
            (folder / f"go-{turn}").touch()
            _wait_for(folder, f"*-{turn}-*", 2 * PROMOTERS)
            won = [int(path.name.rpartition("-")[2]) for path in folder.glob(f"won-{turn}-*")]
            with Ledger(folder / "state.db") as ledger:
                decided = [d for d in ledger.decisions("housing") if d.reason == f"turn {turn}"]
                now = ledger.champion("housing")
                tried = ledger.experiments.all("housing")
                whole = ledger.verify().whole
            assert now is not None
            right = (
                len(won) == len(decided) == 1
                and decided[0].previous == champion
                and now.version == decided[0].version == 100 * (turn + 1) + won[0]
                and [one.outcome for one in tried[turn:]] == ["stopped" if won[0] else "promoted"]
                and whole
            )
            wrong += not right
            champion, done = now.version, turn + 1
    finally:
        for process in processes:
            if done < rounds:
                process.kill()
            process.wait(30)
    return Found(f"{wrong} rounds without exactly one winner", not wrong, f"{done} rounds")


def _version(number: int) -> Version:
    return Version("housing", number, f"{number:064x}", "Tree", f"run-{number}", "2026-01-01")


def _wait_for(folder: Path, pattern: str, count: int) -> None:
    until(lambda: len(list(folder.glob(pattern))) >= count, 60)


def promotions(
    world: World, number: int = 5, *, workers: int = 1, connections: int = 8
) -> tuple[Found, Found]:
    """R7 and R8. Promote one and the other of two models under load, over kept-alive connections.

    Before every second promotion an A/B gives the one to come half of the requests, which the
    promotion ends.

    Failed: no 200. Mixed: the version returned or logged does not give the value returned. Stale:
    seconds for which answers of the old version were still arriving after a promotion returned.
    """
    home = world.home()
    server = world.start(home, "iris", workers=workers)
    names = champions(home)
    models = {n: open_bundle(home / "models" / "bundles" / name).model for n, name in names.items()}
    chance = np.random.default_rng(world.seed)
    flowers = np.round(chance.uniform([4.5, 2, 1, 0.1], [7.5, 4.5, 6.5, 2.5], (500, 4)), 3)
    requests = [
        post("/predict", dict(zip(IRIS.fields, row, strict=True))) for row in flowers.tolist()
    ]
    last: dict[int, float] = {}

    def note(_: int, reply: Reply) -> None:
        if reply.status == 200:
            last[reply.json["model_version"]] = time.monotonic()

    traffic = Traffic(server.port, requests * (200 + 40 * number), note)
    load = threading.Thread(target=traffic.run, args=(connections,))
    load.start()
    stale, done, now = [0.0], 0, 1
    try:
        until(lambda: 1 in last)
        for _ in world.rounds(number):
            before, now = now, 3 - now
            if done % 2:
                _try_out(home, now, last)
            promote(home, now)
            _wait_for_servers(home, now)
            returned = time.monotonic()
            while time.monotonic() - max(last.get(before, 0), returned) < QUIET:
                if time.monotonic() - returned > LONGEST:
                    break
                time.sleep(0.02)
            stale.append(last.get(before, 0) - returned)
            done += 1
    finally:
        traffic.stop()
        load.join()
    failed = sum(
        traffic.replies[n] is None or traffic.replies[n].status != 200  # type: ignore[union-attr]
        for n in traffic.sent
    )
    logged = {row["prediction_id"]: row for row in kept.check_whole(home, "iris")}
    offline = {n: model.run(flowers).probabilities for n, model in models.items()}
    answers = [
        (n % 500, reply.json)
        for n, reply in enumerate(traffic.replies)
        if reply is not None and reply.status == 200
    ]
    mixed = sum(
        _mixed(answer, logged.get(answer["prediction_id"]), names, offline, place)
        for place, answer in answers
    )
    each = {n: sum(answer["model_version"] == n for _, answer in answers) for n in names}
    size = f"{done} promotions, {len(traffic.sent):,} requests, {workers} workers"
    said = f"{failed} failed, {mixed} mixed"
    told = not np.allclose(offline[1], offline[2]) and min(each.values()) > 100
    if not told:
        said += f"; too few of each version to tell: {each}"
    return (
        Found(said, told and not failed + mixed, size),
        Found(f"{max(stale):.2f} s at most", max(stale) <= 2, size, goal=max(stale) < 0.005),
    )


def _wait_for_servers(home: Path, version: int) -> None:
    """As `mlops promote` does, whose gates would refuse these models."""
    with Ledger(home / "models" / "state.db") as ledger:
        line = ledger.last_line()
    if late := presence.wait(home / "models" / "serving", "iris", line, version):
        raise RuntimeError("; ".join(late))


def _try_out(home: Path, challenger: int, last: dict[int, float]) -> None:
    """Begin an A/B; return when its challenger answers."""
    begun = time.monotonic()
    with Ledger(home / "models" / "state.db") as ledger:
        ledger.experiments.begin("iris", "ab", challenger, share=0.5)
    until(lambda: last.get(challenger, 0) > begun)


def _mixed(
    answer: dict[str, Any], row: Any, names: dict[int, str], offline: dict[int, Any], place: int
) -> bool:
    version = answer["model_version"]
    served = np.array(list(answer["probabilities"].values()))
    return (
        row is None
        or (row["model_version"], row["bundle"]) != (version, names[version])
        or json.loads(row["probabilities"]) != answer["probabilities"]
        or float(np.abs(served - offline[version][place]).max()) > 1e-12
    )

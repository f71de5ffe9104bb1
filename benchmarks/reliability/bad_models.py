"""Ten bad models on purpose: what stops each, how many callers it touches, and for how long.

Each is a real graph, honest but for one fault, and is offered with `mlops promote` while callers
ask a real server for predictions. Those that no gate can know to be bad become champion, and it is
the guard that has to find them. A caller is touched who was answered by the bad version, however
good the answer was, or by the version before in its place, or not at all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import planted
import pytest
from conftest import Server, copy_project, start_server, train_project
from promotions import World, world_in

from benchmarks.results import ROOT
from mlops import clock
from mlops.errors import BundleError, GateError
from mlops.improve.ledger import Version
from mlops.usecases.housing import HOUSING

PAGE = ROOT / "docs" / "improving.md"
BEGIN, END = (
    '<!-- measured: make bench ARGS="bad-models --write" -->\n',
    "<!-- end of measured -->\n",
)
COLUMNS = (
    "model",
    "stopped by",
    "asked meanwhile",
    "answered by it",
    "answered in its place",
    "without an answer",
    "found after",
    "old version back after",
)
CALLERS = 4
SECONDS_BETWEEN_REQUESTS = 0.01
SECONDS_BETWEEN_TRUTHS = 0.2
CALM = 40
"""Answers on end by the version before that show that it is back."""
PATIENCE = 60.0


class Bad(NamedTuple):
    """A bad model.

    `cut` damages its file; `force`: a person overrules the gates that would refuse it; `blind`: no
    truths are known.
    """

    name: str
    wire: planted.Wire
    change: planted.Change | None = None
    cut: bool = False
    force: bool = False
    blind: bool = False


MODELS = (
    Bad("answers the same to everybody", planted.constant),
    Bad("a tenth too low", planted.a_tenth_too_low),
    Bad("slow", planted.slow),
    Bad("does not know its golden rows", planted.as_it_is, planted.forgetful),
    Bad("its file is cut off", planted.as_it_is, planted.another, cut=True),
    Bad("raises for places off the map", planted.raises_elsewhere),
    Bad("no number for places off the map", planted.no_number_elsewhere),
    Bad("slow for places off the map", planted.slow_elsewhere),
    Bad("1 too high for places off the map", planted.errs_elsewhere),
    Bad("gambles; forced in by hand, no truths", planted.gambles, force=True, blind=True),
)


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one. `found` and `back` are seconds, None where it never answered.

    `found` is from the first caller touched to the decision to go back, `back` from there to the
    last one.
    """

    name: str
    stopped_by: str
    asked: int = 0
    by_it: int = 0
    in_its_place: int = 0
    unanswered: int = 0
    found: float | None = None
    back: float | None = None

    @property
    def touched(self) -> int:
        return self.by_it + self.in_its_place + self.unanswered

    def cells(self) -> tuple[str, ...]:
        counts = (self.asked, self.by_it, self.in_its_place, self.unanswered)
        times = ("" if one is None else f"{one:.1f} s" for one in (self.found, self.back))
        return (self.name, self.stopped_by or "**nothing**", *(f"{n:,}" for n in counts), *times)


class Reply(NamedTuple):
    """What a caller got; `instead` if another model answered where the champion failed."""

    at: float
    status: int
    version: int
    instead: bool


class Callers:
    """Ask the server for houses off the map until the `with` block ends, and send the truths."""

    def __init__(self, server: Server) -> None:
        self.replies: list[Reply] = []
        self.tells = True
        self._server = server
        self._ending = threading.Event()
        rows, self._actual = planted.held_out()
        table = rows.to_numpy(dtype=float).copy()
        table[:, [planted.LATITUDE, planted.LONGITUDE]] += 0.003
        self._bodies = [
            json.dumps(dict(zip(HOUSING.fields, row, strict=True))).encode()
            for row in table.tolist()
        ]
        self._numbers = itertools.count()
        self._truths: list[dict[str, Any]] = []
        work = [*[self._ask] * CALLERS, self._tell]
        self._threads = [threading.Thread(target=one) for one in work]

    def __enter__(self) -> Callers:
        for one in self._threads:
            one.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        for one in self._threads:
            one.join()

    def _ask(self) -> None:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self._server.port)) as line:
            while not self._ending.wait(SECONDS_BETWEEN_REQUESTS):
                number = next(self._numbers) % len(self._bodies)
                line.request("POST", "/predict", self._bodies[number])
                answer = line.getresponse()
                said = json.loads(answer.read())
                good = answer.status == 200
                version = said["model_version"] if good else 0
                instead = good and any("could not answer" in one for one in said["warnings"])
                self.replies.append(Reply(time.time(), answer.status, version, instead))
                if good and self.tells:
                    actual = float(self._actual[number])
                    self._truths.append({"prediction_id": said["prediction_id"], "actual": actual})

    def _tell(self) -> None:
        while not self._ending.wait(SECONDS_BETWEEN_TRUTHS):
            some, self._truths = self._truths, []
            if some:
                status, said = self._server.request("/feedback", {"items": some})
                assert status == 200, said


def measure(
    trained: Path,
    folder: Path,
    models: Sequence[Bad] = MODELS,
    *,
    patience: float = PATIENCE,
    on_outcome: Callable[[Outcome], None] = lambda outcome: None,
    **environment: str,
) -> list[Outcome]:
    """Offer each of the models to a server over a copy of the trained project."""
    home = copy_project(trained, folder / "home")
    outcomes = []
    with pytest.MonkeyPatch.context() as patch, _serving(home, **environment) as server:
        world = world_in(home, patch)
        with Callers(server) as callers:
            for model in models:
                outcomes.append(_offer(world, model, callers, patience))
                on_outcome(outcomes[-1])
    return outcomes


def _offer(world: World, model: Bad, callers: Callers, patience: float) -> Outcome:
    version = planted.plant(world, model.wire, model.change)
    if model.cut:
        path = world.settings.bundles / version.bundle / "model.onnx"
        path.write_bytes(path.read_bytes()[:-1000])
    callers.tells = not model.blind
    before, first = world.champion("housing"), len(callers.replies)

    def stopped(by: str) -> Outcome:
        return _counted(world, model, version, callers.replies[first:], by)

    try:
        world.promote("housing", version.version, force=model.force, reason="for the test")
    except BundleError:
        return stopped("the seal: its bundle is not opened")
    except GateError:
        refused = next(
            one["gate"]
            for one in world.decisions("housing")[-1].evidence
            if one["outcome"] == "fail"
        )
        return stopped(f"the gate: {refused}")
    ends = time.monotonic() + patience

    def is_back() -> bool:
        last = callers.replies[first:][-CALM:]
        return len(last) == CALM and {(200, before, False)} == {one[1:] for one in last}

    while time.monotonic() < ends:
        time.sleep(0.05)
        if world.champion("housing") == before and is_back():
            cause = world.decisions("housing")[-1].reason.partition(":")[0]
            return stopped(f"the guard: {cause}")
    outcome = stopped("")
    if world.champion("housing") != before:
        planted.back_to(world, before)
    return outcome


def _counted(
    world: World, model: Bad, version: Version, replies: Sequence[Reply], stopped_by: str
) -> Outcome:
    mine = [one for one in replies if one.version == version.version]
    instead = [one for one in replies if one.instead]
    none = [one for one in replies if one.status != 200]
    decided = [
        clock.seconds_of(one.decided_utc)
        for one in world.decisions("housing")
        if one.action == "rollback" and one.previous == version.version
    ]
    found = back = None
    touched = [one.at for one in (*mine, *instead, *none)]
    if decided and touched:
        found = decided[-1] - min(touched)
        back = max(0.0, max(touched) - decided[-1])
    counts = (len(replies), len(mine), len(instead), len(none))
    return Outcome(model.name, stopped_by, *counts, found, back)


@contextlib.contextmanager
def _serving(home: Path, **environment: str) -> Iterator[Server]:
    server = start_server(home, "housing", **environment)
    try:
        yield server
    finally:
        server.stop()


def table(outcomes: Sequence[Outcome]) -> str:
    rows = [COLUMNS, ("---",) * len(COLUMNS), *(one.cells() for one in outcomes)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows)


def run(home: Path, write: bool) -> None:
    """Train a project in `home`, offer all models, print the table and publish it if asked to."""
    trained = home / "trained"
    trained.mkdir()
    train_project(trained)
    outcomes = measure(trained, home, on_outcome=lambda one: print(*one.cells(), flush=True))
    text = table(outcomes)
    print(text)
    if write:
        document = PAGE.read_text()
        before, _, rest = document.partition(BEGIN)
        after = rest.partition(END)[2]
        PAGE.write_text(f"{before}{BEGIN}\n{text}\n\n{END}{after}")

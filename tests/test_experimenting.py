"""What a server does about an experiment: keeps one process at it, and does as its verdict says."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from conftest import Server
from experimental import asked, begin, drawn, logged, opened, register_off, shadowed, tell
from promotions import World, equal, no_better_than_the_baseline, world_in

from mlops import clock
from mlops.errors import ChampionMovedError, GateError
from mlops.improve.ledger import Ledger
from mlops.improve.running import Trial
from mlops.loop import experimenting
from mlops.loop.experimenting import Keeper
from mlops.loop.prediction_log import open_log
from mlops.loop.shadowing import Shadow
from mlops.loop.verdict import findings_of
from mlops.monitor.log import PredictionLog
from mlops.usecases.housing import HOUSING

EXAMPLE = next(iter(HOUSING.examples.values()))


@pytest.fixture
def world(home: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    (home / "housinglogs").mkdir()
    return world_in(home, monkeypatch)


@pytest.fixture
def log(world: World) -> Iterator[PredictionLog]:
    with contextlib.closing(open_log(HOUSING, world.settings)) as one:
        yield one


@pytest.fixture
def keeper(world: World, log: PredictionLog, monkeypatch: pytest.MonkeyPatch) -> Iterator[Keeper]:
    """One whose process the test plays itself."""
    monkeypatch.setattr(Keeper, "_start", lambda self: None)
    one = Keeper(HOUSING, log, world.settings)
    yield one
    one.close()


def until(condition: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def shadows(server: Server) -> list[psutil.Process]:
    """The processes that a server keeps at experiments."""
    found = []
    for child in psutil.Process(server.process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "mlops.loop.shadowing" in child.cmdline():
                found.append(child)
    return found


# --- one process, as long as there is an experiment


def test_servers_keep_one_process_at_an_experiment_whoever_dies(world, serve):
    world.register("housing", equal)
    one = serve("housing")
    assert one.request("/predict", EXAMPLE)[0] == 200
    assert shadows(one) == []
    begin(world, "shadow", 2)
    until(lambda: len(shadows(one)) == 1)
    other = serve("housing")
    for server in (one, other):
        assert server.request("/predict", EXAMPLE)[0] == 200
    until(lambda: asked(world)["rows_behind"] == 0 and len(shadowed(world)) == 2)
    [process] = shadows(one)
    assert shadows(other) == []

    process.send_signal(signal.SIGKILL)
    until(lambda: (found := shadows(one)) and found[0].pid != process.pid)
    [process] = shadows(one)
    one.kill()
    until(lambda: len(shadows(other)) == 1)
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    assert other.request("/predict", EXAMPLE)[0] == 200
    until(lambda: len(shadowed(world)) == 3)

    [process] = shadows(other)
    with Ledger(world.settings.state_database) as ledger:
        ledger.experiments.end(1, "stopped", "enough")
    until(lambda: not shadows(other))
    begin(world, "shadow", 2)
    until(lambda: len(shadows(other)) == 1)
    [process] = shadows(other)
    assert other.stop() == 0
    assert not process.is_running()


def test_who_answers_in_an_ab_is_who_is_judged(world, serve, monkeypatch):
    world.register("housing", equal)
    now = clock.unix()
    with monkeypatch.context() as patch:  # so that its share has long settled
        patch.setattr(clock, "unix", lambda: now - 60)
        begin(world, "ab", 2, share=0.5)
    server = serve("housing")
    until(lambda: server.request("/")[1]["share"] == 0.5)
    ids, versions = [], set()
    for client in range(60):
        name = {"x-client-id": f"client {client}"}
        status, answer = server.request("/predict", EXAMPLE, name)
        assert status == 200
        batch = {"instances": [EXAMPLE] * 2}
        status, answers = server.request("/predict/batch", batch, name)
        assert status == 200
        ids += [one["prediction_id"] for one in (answer, *answers["predictions"])]
        versions |= {answer["model_version"]}
        assert {one["model_version"] for one in answers["predictions"]} == {answer["model_version"]}
    assert versions == {1, 2}
    tell(world, ids)
    until(lambda: sum(arm["labels"] for arm in asked(world)["arms"].values()) == 180)
    found = asked(world)
    [seen] = found["sample_ratio"]["clients"]
    assert seen["champion"] + seen["challenger"] == 60
    assert seen["challenger"] * 3 == found["arms"]["challenger"]["labels"]
    assert (found["astray"], found["sample_ratio"]["verdict"]) == (0, "ok")
    [told] = server.request("/experiments")[1]["use_cases"]
    assert told["verdict"] == found["verdict"]


# --- as the verdict says


def decided(world: World, keeper: Keeper, *, off: float, auto: bool = True) -> None:
    """Let version 1 be held against a champion, by rows of which the truth is `off` from it."""
    begin(world, "shadow", 1, auto=auto)
    champion = world.champion("housing")
    tell(world, logged(world, drawn(world, 120), version=champion), off=off)
    with contextlib.closing(Shadow(HOUSING, world.settings)) as shadow:
        while shadow.step():
            pass
    for _ in range(2):
        decision = keeper.step()
        if decision is not None:
            asyncio.run(keeper.decide(decision, promote_in(world)))


def promote_in(world: World):
    async def promote(use_case: str, version: int, reason: str, *, over: int) -> object:
        return world.promote(use_case, version, reason=reason, over=over)

    return promote


def champion_off(world: World, by: float) -> None:
    world.promote("housing", register_off(world, by), force=True, reason="to be held against")


def test_a_challenger_that_is_better_goes_through_the_gates_with_its_verdict(world, keeper):
    champion_off(world, 1.0)
    decided(world, keeper, off=0.0)
    assert world.champion("housing") == 1
    assert opened(world) is None
    promotion, end = world.decisions("housing")[-2:]
    assert (promotion.action, promotion.rule, promotion.previous) == ("promote", "gates", 2)
    assert promotion.reason.startswith("experiment 1: better: mean loss -")
    assert promotion.evidence[-1]["verdict"] == "better"
    assert promotion.evidence[-1]["alpha"] == 0.05
    assert promotion.evidence[-1]["high"] < 0
    assert (end.action, end.evidence[0]["outcome"]) == ("end", "promoted")


def test_a_challenger_that_is_worse_is_kept_out(world, keeper):
    champion_off(world, 1.0)
    decided(world, keeper, off=1.0)
    assert world.champion("housing") == 2
    end = world.decisions("housing")[-1]
    assert (end.action, end.rule, end.decided_by) == ("end", "verdict", "experiment")
    assert end.reason.startswith("worse: mean loss +")
    assert (end.evidence[0]["outcome"], end.evidence[1]["verdict"]) == ("kept", "worse")


def test_a_better_challenger_that_a_gate_keeps_out_ends_the_experiment(world, keeper):
    world.register("housing", no_better_than_the_baseline)  # of version 1, which is then better
    champion_off(world, 1.0)
    begin(world, "shadow", 2, auto=True)
    tell(world, logged(world, drawn(world, 120), version=3))
    with contextlib.closing(Shadow(HOUSING, world.settings)) as shadow:
        while shadow.step():
            pass
    asyncio.run(keeper.decide(keeper.step(), promote_in(world)))
    assert world.champion("housing") == 3
    kept, end = world.decisions("housing")[-2:]
    assert (kept.action, end.action, end.evidence[0]["outcome"]) == ("keep", "end", "kept")
    assert "yet it was not promoted: housing version 2 was not promoted: " in end.reason
    assert keeper.step() is None


@pytest.mark.slow
def test_a_server_promotes_by_itself_what_its_shadow_finds_better(world, serve):
    champion_off(world, 1.0)
    begin(world, "shadow", 1, auto=True)
    server = serve("housing", ROLLBACK_WATCH_DAYS="0")  # the guard would be faster
    tell(world, logged(world, drawn(world, 120), version=2))
    until(lambda: server.request("/")[1]["model_version"] == 1, 120)
    promotion = next(one for one in world.decisions("housing")[::-1] if one.action == "promote")
    assert (promotion.version, promotion.previous) == (1, 2)
    assert promotion.evidence[-1]["verdict"] == "better"
    assert opened(world) is None
    until(lambda: not shadows(server))


def test_without_leave_a_verdict_waits_for_a_person(world, keeper):
    champion_off(world, 1.0)
    decided(world, keeper, off=0.0, auto=False)
    assert world.champion("housing") == 2
    assert asked(world)["verdict"]["outcome"] == "better"


def test_what_fails_for_another_reason_is_tried_again_later(world, keeper, monkeypatch):
    champion_off(world, 1.0)
    monkeypatch.setattr(experimenting, "log", experimenting.logging.getLogger("silent"))

    async def out_of_memory(*_: object, over: int) -> object:
        raise GateError("it was killed")

    monkeypatch.setattr("test_experimenting.promote_in", lambda _: out_of_memory)
    decided(world, keeper, off=0.0)
    assert opened(world) is not None
    assert keeper.step() is None  # not at once
    keeper._decided -= experimenting.SECONDS_BETWEEN_DECISIONS
    monkeypatch.undo()
    assert keeper.step() is not None


def test_a_promotion_over_another_champion_than_the_stated_one_is_refused(world):
    world.register("housing", equal)
    with pytest.raises(ChampionMovedError, match="version 1 is champion, not version 7"):
        world.promote("housing", 2, over=7)
    assert world.promote("housing", 2, over=1).changed


def test_an_alarm_of_an_experiment_ends_with_it(world, keeper, log):
    register_off(world, 0.5)
    experiment = begin(world, "ab", 2, share=0.5)
    trial = Trial.begin("ab", 0.05)
    trial.see(0, ["champion"] * 30, [0.5])
    log.record_findings(findings_of(experiment, trial, 0))
    keeper.step()
    assert [one.verdict for one in log.findings("experiment")] == ["cannot tell", "alarm"]
    with Ledger(world.settings.state_database) as ledger:
        ledger.experiments.end(experiment.id, "stopped", "enough")
    keeper.step()
    [over] = log.findings("experiment")
    assert (over.verdict, over.says) == ("ok", "no experiment is under way")
    keeper.step()
    assert log.findings("experiment") == [over]

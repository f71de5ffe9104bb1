"""The shadow: each logged row answered once by the challenger, and judged by truths in order."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import environment
from experimental import (
    asked,
    begin,
    drawn,
    logged,
    opened,
    register_off,
    shadowed,
    tell,
)
from promotions import World, equal, world_in

from benchmarks import shadow as bench
from mlops import cli, clock
from mlops.deploy.split import arm_of
from mlops.improve.ledger import Ledger
from mlops.loop import shadowing
from mlops.loop.prediction_log import open_log
from mlops.loop.shadowing import PAGE_ROWS, Shadow
from mlops.monitor.alerts.rules import RULES, Known, Limits
from mlops.package.bundle import open_bundle
from mlops.records import Watched
from mlops.usecases.housing import HOUSING

DAY = 86_400.0


@pytest.fixture
def world(home: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    (home / "housinglogs").mkdir()
    found = world_in(home, monkeypatch)
    open_log(HOUSING, found.settings).close()
    return found


@pytest.fixture
def shadow(world: World) -> Iterator[Shadow]:
    one = Shadow(HOUSING, world.settings)
    yield one
    one.close()


def run(shadow: Shadow) -> bool | None:
    """Do all that there is to do."""
    while more := shadow.step():
        pass
    return more


def breached(world: World) -> tuple[bool | None, str]:
    """What the alert rule of experiments reads now."""
    [rule] = [one for one in RULES if one.name == "experiment"]
    with contextlib.closing(open_log(HOUSING, world.settings)) as log:
        watched = Watched(None, None, None, None, tuple(log.findings()))
    reading = rule.read(Known(clock.unix(), "", None, None, watched), Limits())
    return reading.breached, reading.says


# --- each logged row once


def test_each_row_since_the_experiment_began_is_answered_by_the_challenger_once(world, shadow):
    rows = drawn(world, PAGE_ROWS + 30)
    logged(world, rows[:20], at=clock.unix() - 60)
    assert shadow.step() is None  # no experiment, nothing to do
    register_off(world, 1.0)
    experiment = begin(world, "shadow", 2)
    assert run(shadow) is False
    assert shadowed(world) == []
    logged(world, rows[20:])
    assert asked(world)["rows_behind"] == PAGE_ROWS + 10
    assert shadow.step() is True  # a page, no more
    assert asked(world)["rows_behind"] == 10
    run(shadow)
    assert asked(world)["rows_behind"] == 0
    with contextlib.closing(open_log(HOUSING, world.settings)) as log:
        there = [row for page in log.pages() for row in page][20:]
    fields = np.array([[row[name] for name in HOUSING.fields] for row in rows[20:]])
    answers = open_bundle(world.bundle("housing", 2)).model.run(fields).prediction
    expected = zip(there, answers.tolist(), strict=True)
    assert shadowed(world) == [(experiment.id, row.id, answer) for row, answer in expected]


def test_a_shadow_that_is_killed_again_and_again_leaves_no_row_out_and_does_none_twice(world):
    world.register("housing", equal)
    begin(world, "shadow", 2)
    rows, random_source = drawn(world, 6_000), random.Random(0)
    ids = logged(world, rows)
    tell(world, ids)
    for _ in range(4):
        behind, process = asked(world)["rows_behind"], start(world)
        deadline = time.monotonic() + 30
        while asked(world)["rows_behind"] == behind != 0:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(random_source.random() * 0.05)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    with contextlib.closing(Shadow(HOUSING, world.settings)) as shadow:
        run(shadow)
    found = shadowed(world)
    assert [log_id for _, log_id, _ in found] == list(range(1, 6_001))
    found = asked(world)
    assert found["verdict"]["labels"] == 6_000
    assert found["arms"]["challenger"]["labels"] == 6_000
    assert found["now"]["mean"] == 0  # it is the same model, digit by digit


def start(world: World) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "mlops.loop.shadowing", "housing"],
        env=environment(world.settings.home),
        stdin=subprocess.PIPE,
    )


def test_two_that_follow_at_once_do_no_page_twice(world, shadow):
    world.register("housing", equal)
    experiment = begin(world, "shadow", 2)
    logged(world, drawn(world, 40))
    with contextlib.closing(Shadow(HOUSING, world.settings)) as other:
        store, mine = shadow._store, other._store
        kept = store.keep

        def late(*arguments, **options):
            store.keep = kept
            assert other.step() is True  # somebody else does the page in between
            return kept(*arguments, **options)

        store.keep = late
        assert not shadow._shadow(experiment, shadow._progress(experiment))
        assert mine is not store
    assert len(shadowed(world)) == 40


def test_the_process_takes_what_others_leave_and_no_library_of_training(world):
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, mlops.loop.shadowing; print(*sys.modules)"],
        env=environment(world.settings.home),
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert not {"mlflow", "pandas", "sklearn", "scipy"} & set(loaded)
    world.register("housing", equal)
    begin(world, "shadow", 2)
    process = start(world)
    try:
        deadline = time.monotonic() + 30
        while asked(world)["rows_behind"] is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert os.getpriority(os.PRIO_PROCESS, process.pid) == 19
        assert os.sched_getscheduler(process.pid) == os.SCHED_IDLE
        assert process.stdin
        process.stdin.close()  # as when its server dies
        assert process.wait(10) == 0
    finally:
        process.kill()


def test_the_process_ends_well_when_its_experiment_is_over(world):
    world.register("housing", equal)
    begin(world, "shadow", 2)
    with Ledger(world.settings.state_database) as ledger:
        ledger.experiments.end(1, "stopped", "enough")
    process = start(world)
    try:
        assert process.wait(30) == 0  # while its server still holds the other end of its input
    finally:
        process.kill()
        process.communicate()


# --- truths, in order and in time


def test_a_better_challenger_is_told_once_truths_have_come_in_order(world, shadow):
    worse = register_off(world, 1.0)
    world.promote("housing", worse, force=True, reason="to be beaten")
    begin(world, "shadow", 1)
    ids = logged(world, drawn(world, 300), version=worse, at=clock.unix() + 1)
    run(shadow)
    assert asked(world)["verdict"]["outcome"] == "cannot tell yet"
    tell(world, ids[1:])  # the first is missing
    run(shadow)
    assert asked(world)["verdict"]["labels"] == 0
    tell(world, ids[:1])
    run(shadow)
    found = asked(world)
    assert found["verdict"]["outcome"] == "better"
    assert found["verdict"]["labels"] == 50  # the first look was enough
    assert found["arms"]["champion"]["labels"] == 300
    assert found["arms"]["champion"]["mean_loss"] > 1 > found["arms"]["challenger"]["mean_loss"]
    assert found["series"][-1]["high"] < 0
    assert breached(world)[0] is False
    with contextlib.closing(open_log(HOUSING, world.settings)) as log:
        [finding] = log.findings("experiment")
    assert (finding.subject, finding.verdict) == ("verdict", "ok")
    assert finding.says.startswith("version 1 against version 2: better: mean loss -")
    promotion = world.promote("housing", 1, force=True, reason="told")
    assert promotion.changed
    evidence = world.decisions("housing")[-2].evidence[-1]
    assert (evidence["verdict"], evidence["labels"]) == ("better", 50)
    assert opened(world) is None


def test_a_truth_that_never_comes_holds_up_for_the_stated_days_and_is_counted(
    world, shadow, monkeypatch
):
    world.register("housing", equal)
    now = clock.unix()
    monkeypatch.setattr(clock, "unix", lambda: now - 31 * DAY)
    begin(world, "shadow", 2)
    ids = logged(world, drawn(world, 100), at=now - 31 * DAY, seconds=DAY / 50)
    tell(world, ids[:10] + ids[11:40] + ids[41:])
    monkeypatch.setattr(clock, "unix", lambda: now - 5 * DAY)
    run(shadow)
    assert asked(world)["verdict"]["labels"] == 10
    monkeypatch.setattr(clock, "unix", lambda: now)
    tell(world, [ids[40]])  # more than 30 days late: of no other worth than if it had not come
    run(shadow)
    found = asked(world)
    assert (found["verdict"]["labels"], found["left_out"]) == (98, 2)
    assert "2.0% of the predictions had no truth in time" in found["verdict"]["says"]


def test_rows_that_others_answered_are_shadowed_and_not_compared(world, shadow):
    world.register("housing", equal)
    world.register("housing", lambda documents: documents["training"].update(candidate="Third"))
    begin(world, "shadow", 2)
    ids = logged(world, drawn(world, 60), version=[1, 1, 3] * 20)
    tell(world, ids)
    run(shadow)
    assert len(shadowed(world)) == 60
    assert asked(world)["arms"]["champion"]["labels"] == 40


def test_a_challenger_that_cannot_be_opened_is_told_of_and_taken_up_when_it_can(
    world, shadow, monkeypatch
):
    world.register("housing", equal)
    begin(world, "shadow", 2)
    ids = logged(world, drawn(world, 20))
    graph = world.bundle("housing", 2) / "model.onnx"
    content = graph.read_bytes()
    graph.write_bytes(content[:-1])
    assert run(shadow) is False
    found = asked(world)
    assert (found["rows_behind"], shadowed(world)) == (20, [])
    assert "version 2 cannot answer: " in found["trouble"]
    is_breached, says = breached(world)
    assert is_breached
    assert "version 2 cannot answer" in says
    graph.write_bytes(content)
    monkeypatch.setattr(shadow, "_try_again", 0.0)
    run(shadow)
    assert asked(world)["trouble"] == ""
    assert len(shadowed(world)) == len(ids)
    assert breached(world)[0] is not True


def test_a_row_that_the_challenger_fails_on_is_counted_and_does_not_stop_the_others(
    world, shadow, monkeypatch
):
    world.register("housing", equal)
    begin(world, "shadow", 2)
    rows = drawn(world, 60)
    tell(world, logged(world, rows))
    bundle = shadow._challenger(opened(world), shadow._store.begin(1, clock.stamp(), {}))
    shadow._store._database.execute("DELETE FROM progress")
    run_model, bad = bundle.model.run, rows[7]["median_income"]
    place = HOUSING.fields.index("median_income")

    class Picky:
        def run(self, fields: np.ndarray):
            if (fields[:, place] == bad).any():
                raise ValueError("not this one")
            return run_model(fields)

    monkeypatch.setattr(shadowing, "log", shadowing.logging.getLogger("silent"))
    shadow._bundle = 1, type("Bundle", (), {"model": Picky()})()
    run(shadow)
    failed = sum(row["median_income"] == bad for row in rows)
    found = asked(world)
    assert next(log_id for _, log_id, answer in shadowed(world) if answer is None) == 8
    assert (found["failed"], found["verdict"]["labels"]) == (failed, 60 - failed)


# --- two arms


def split_rows(world: World, experiment, number: int, share: float, *, of: int) -> list[str]:
    """Log rows of `of` clients, each answered by the arm that is its own."""
    names = [f"{client % of:016x}" for client in range(number)]
    weights = {"champion": 1 - share, "challenger": share}
    arms = {name: arm_of(name, weights, experiment.salt) for name in set(names)}
    versions = [2 if arms[name] == "challenger" else 1 for name in names]
    at = clock.unix() + shadowing.SETTLING_SECONDS
    return logged(world, drawn(world, number), version=versions, clients=names, at=at)


def test_an_ab_is_judged_by_clients_and_a_worse_arm_is_an_alarm(world, shadow):
    register_off(world, 0.5)
    experiment = begin(world, "ab", 2, share=0.5)
    logged(world, drawn(world, 30))  # before the share surely holds everywhere
    ids = split_rows(world, experiment, 1_500, 0.5, of=600)
    tell(world, ids)
    run(shadow)
    found = asked(world)
    assert shadowed(world) == []
    assert found["verdict"]["outcome"] == "worse", found["verdict"]
    assert found["sample_ratio"]["verdict"] == "ok"
    [seen] = found["sample_ratio"]["clients"]
    assert seen["champion"] + seen["challenger"] == 600
    assert abs(seen["champion"] - 300) < 60
    assert sum(found["arms"][arm]["labels"] for arm in ("champion", "challenger")) == 1_500
    assert found["astray"] == 0
    is_breached, says = breached(world)
    assert is_breached
    assert "version 2 against version 1: worse" in says


def test_clients_that_do_not_go_where_they_should_are_an_alarm_and_no_verdict(world, shadow):
    register_off(world, 0.5)
    begin(world, "ab", 2, share=0.5)
    names = [f"{client:016x}" for client in range(400)]
    at = clock.unix() + shadowing.SETTLING_SECONDS
    versions = [2 if client % 4 == 0 else 1 for client in range(400)]
    tell(world, logged(world, drawn(world, 400), version=versions, clients=names, at=at))
    run(shadow)
    found = asked(world)
    assert found["verdict"]["outcome"] == "cannot tell"
    assert "clients did not go where they should" in found["verdict"]["says"]
    assert found["sample_ratio"]["evidence"] > 1_000
    assert 120 < found["astray"] < 280
    is_breached, says = breached(world)
    assert is_breached
    assert "sample ratio: 100 clients" in says, "the first page is enough to tell"


def test_the_command_shows_what_an_experiment_has_found(world, shadow, monkeypatch, capfd):
    monkeypatch.setenv("MLOPS_HOME", str(world.settings.home))
    register_off(world, 0.5)
    assert "housing: no experiment is under way" in printed(capfd, "housing")
    experiment = begin(world, "ab", 2, share=0.25)
    assert "nobody is at it" in printed(capfd, "housing")
    tell(world, split_rows(world, experiment, 300, 0.25, of=100))
    run(shadow)
    text = printed(capfd, "housing")
    assert "version 2 against version 1, for 25% of the clients" in text
    assert "verdict  cannot tell yet" in text
    assert "0 of the log are still to be looked at" in text
    assert "to the challenger, at a share of 25%" in text
    with Ledger(world.settings.state_database) as ledger:
        ledger.experiments.end(experiment.id, "kept", "enough")
    housing, iris = json.loads(printed(capfd, "--json"))
    assert (iris["use_case"], iris["past"]) == ("iris", [])
    assert [one["outcome"] for one in housing["past"]] == ["kept"]
    assert "kept" in printed(capfd, "housing")


def printed(capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        cli.main(["experiment", "show", *arguments])
    assert ended.value.code == 0
    return capfd.readouterr().out


def test_when_an_experiment_is_over_its_clients_are_forgotten_and_its_judgement_stays(
    world, shadow
):
    register_off(world, 0.5)
    experiment = begin(world, "ab", 2, share=0.5)
    tell(world, split_rows(world, experiment, 200, 0.5, of=100))
    run(shadow)
    store = shadow._store
    assert store.totals(experiment.id, ["0" * 16])
    assert store.unseen(experiment.id, ["0" * 16]) == set()
    with Ledger(world.settings.state_database) as ledger:
        ledger.experiments.end(experiment.id, "stopped", "enough")
    assert shadow.step() is None
    assert store.unseen(experiment.id, ["0" * 16])
    assert not store.totals(experiment.id, ["0" * 16])
    assert store.begin(experiment.id, "", {}).judged_id == 200


def test_what_the_log_has_deleted_the_shadow_forgets(world, shadow):
    world.register("housing", equal)
    begin(world, "shadow", 2)
    logged(world, drawn(world, 700))
    run(shadow)
    with contextlib.closing(open_log(HOUSING, world.settings)) as log:
        assert log.prune(before="2999") == 500
    shadow._pruned_at = 0.0
    run(shadow)
    assert [log_id for _, log_id, _ in shadowed(world)] == list(range(501, 701))


# --- what it costs


@pytest.mark.slow
def test_a_challenger_in_the_shadow_hardly_delays_an_answer(world):
    world.register("housing", equal)
    found = bench.measure(world, 2, 3, 2.0)  # raises unless each row has been answered
    assert found.rows[0].ratio < 3  # wide: the machine does other things too

"""The guard: a new champion that is worse than the version before goes, and the ledger says why."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import mlops
from planted import a_tenth_too_low, held_out, plant
from promotions import World, equal, world_in

from benchmarks.reliability import bad_models
from mlops import clock
from mlops.deploy.predictor import Champion
from mlops.deploy.service import Service
from mlops.errors import GateError
from mlops.improve import guard
from mlops.improve.guard import CERTAIN, Evidence
from mlops.improve.ledger import Ledger, Version
from mlops.loop import guarding
from mlops.loop import promote as promoting
from mlops.loop.follow import open_champion, rehearse
from mlops.loop.guarding import Guard
from mlops.loop.performance import measure_of
from mlops.loop.prediction_log import open_log
from mlops.loop.serve import open_for_explaining
from mlops.monitor.alerts.rules import Known, Limits, rollback, unwatched
from mlops.records import Finding, Submission, Watched
from mlops.settings import Settings, read_settings
from mlops.usecases.housing import HOUSING

# --- what is judged


def after(evidence: Evidence, bad: int, events: int) -> Evidence:
    evidence.add(bad, events)
    return evidence


def until_certain(evidence: Evidence, bad: int = 1, events: int = 1) -> int:
    for looks in range(1, 10_000):
        evidence.add(bad, events)
        if evidence.value >= CERTAIN:
            return looks
    raise AssertionError("it never became certain")


def test_five_failures_on_end_are_certain_also_after_a_million_runs_that_did_not_fail():
    assert until_certain(Evidence(guard.ALLOWED_ERRORS)) == 5
    assert until_certain(after(Evidence(guard.ALLOWED_ERRORS), 0, 1_000_000)) == 5


def test_five_times_as_many_errors_as_are_allowed_are_found_within_a_few_hundred_runs():
    assert until_certain(Evidence(guard.ALLOWED_ERRORS), bad=1, events=20) < 30


@pytest.mark.parametrize("allowed", [guard.ALLOWED_ERRORS, guard.EITHER])
def test_as_much_as_is_allowed_is_never_certain_however_often_one_looks(allowed):
    chance = np.random.default_rng(0)
    for _ in range(40):
        evidence = Evidence(allowed)
        for bad in chance.binomial(20, allowed, size=1_000).tolist():
            evidence.add(bad, 20)
            assert evidence.value < CERTAIN


def raced(mine: Callable[[], float], other: Callable[[], float], looks: int) -> Evidence:
    evidence = Evidence(guard.EITHER)
    for _ in range(looks):
        a, b = mine(), other()
        slower, faster = guard.is_slower(a, b, 1e-3), guard.is_slower(b, a, 1e-3)
        evidence.add(int(slower), int(slower or faster))
    return evidence


def test_on_a_machine_so_busy_that_times_mean_little_an_equal_model_is_not_called_slower():
    chance = np.random.default_rng(1)

    def noisy(seconds: float) -> float:
        return float(seconds * chance.lognormal(0, 2))

    for _ in range(20):
        assert raced(lambda: noisy(2e-3), lambda: noisy(2e-3), looks=500).value < CERTAIN
    found = raced(lambda: noisy(2e-1), lambda: noisy(2e-3), looks=200)
    judged = guard.latency(found, [(0.2, 0.002)], 1e-3, 200)
    assert judged.verdict == "alarm"
    assert "one row takes 200 ms, the version before 2 ms at the same time" in judged.says


def test_a_slowness_that_is_within_the_budget_is_none():
    assert not guard.is_slower(9e-4, 1e-5, budget=1e-3)
    assert guard.is_slower(2e-3, 1e-5, budget=1e-3)
    assert not guard.is_slower(2e-3, 1e-3, budget=1e-3)


def judged(losses: np.ndarray, before: np.ndarray) -> str:
    return guard.quality(losses, before).verdict


def test_quality_is_held_against_the_version_before_on_the_same_rows():
    noise = np.random.default_rng(2).normal(size=(2, 2_000))
    before = noise[0] ** 2
    assert judged((noise[0] + 0.3 * noise[1] + 0.5) ** 2, before) == "alarm"
    assert judged((noise[0] + 0.01 * noise[1]) ** 2, before) == "ok"
    assert judged(before, before) == "cannot tell"  # they never differ
    # The world has changed: both are worse than they were, so to go back helps nobody.
    changed = (noise[0] + 5) ** 2
    assert judged((noise[0] + 5 + 0.01 * noise[1]) ** 2, changed) == "ok"
    # Worse without doubt, and by so little that it is not worth going back.
    assert judged(before * 1.02, before) == "ok"


def test_an_equal_model_is_called_worse_at_no_look_of_many():
    chance = np.random.default_rng(3)
    for _ in range(20):
        noise, mine, other = chance.normal(size=(3, 3_000))
        losses, before = (noise + 0.3 * mine) ** 2, (noise + 0.3 * other) ** 2
        for labels in range(100, 3_001, 100):
            assert judged(losses[:labels], before[:labels]) != "alarm"


# --- what is done


@pytest.fixture
def world(home: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return world_in(home, monkeypatch)


class Process:
    """What a server process has of the guard, without the server: each look is called for."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.service = Service(HOUSING)
        self.log = open_log(HOUSING, settings)
        self.service.start(self.log, synced=False)
        self.service.open = functools.partial(open_for_explaining, settings)
        self.guard = Guard(
            self.service, self.log, functools.partial(rehearse, self.service), settings
        )
        self.follow()

    def follow(self) -> Champion:
        with Ledger(self.settings.state_database) as ledger:
            version = ledger.champion("housing")
        champion = open_champion(HOUSING, version, self.settings)
        self.service.swap(champion)
        self.guard.look()
        return champion

    def fail(self, version: int, runs: int = 5) -> None:
        for _ in range(runs):
            self.guard.failed(version, ZeroDivisionError("as planted"), 1)
        self.guard.look()

    def found(self) -> dict[str, Finding]:
        return {one.subject: one for one in self.log.findings(guard.KIND)}

    def close(self) -> None:
        self.guard.close()
        self.log.close()


@pytest.fixture
def start(world: World) -> Iterator[Callable[..., Process]]:
    with contextlib.ExitStack() as stack:

        def begin(**settings: Any) -> Process:
            process = Process(read_settings(MLOPS_HOME=world.settings.home, **settings))
            stack.callback(process.close)
            return process

        yield begin


def force(world: World, version: Version, action: Any = "promote") -> None:
    """Make a version champion whatever the gates say, without their taking their time."""
    with Ledger(world.settings.state_database) as ledger:
        champion = ledger.champion("housing")
        ledger.promote(
            version, expected=champion.version, reason="forced", evidence=[], action=action
        )


def promoted(world: World) -> Version:
    version = world.register("housing", equal)
    force(world, version)
    return version


def test_a_champion_whose_model_fails_is_rolled_back_once_and_the_ledger_says_why(world, start):
    bad = promoted(world)
    process, other = start(), start()
    assert process.found()["errors"].verdict == "cannot tell"
    process.fail(bad.version, runs=4)
    assert world.champion("housing") == bad.version
    assert process.found()["errors"].verdict == "ok"
    process.fail(bad.version, runs=1)
    other.fail(bad.version)
    assert world.champion("housing") == 1
    *_, line = world.decisions("housing")
    assert (line.action, line.version, line.previous) == ("rollback", 1, bad.version)
    assert (line.rule, line.decided_by) == ("guard", "guard")
    assert line.reason.startswith("errors: 5 of 5 runs of the model failed, the last with ZeroDiv")
    [errors] = [one for one in line.evidence if one["subject"] == "errors"]
    assert errors["numbers"]["failed"] == 5
    assert errors["numbers"]["evidence"] >= errors["numbers"]["limit"] == CERTAIN
    assert sum(one.action == "rollback" for one in world.decisions("housing")) == 1

    told = process.found()["errors"]
    assert told.says.startswith(f"version {bad.version} was rolled back to version 1: 5 of 5 runs")
    assert told.numbers["rolled_back_to"] == 1
    reading = rollback(known(told), Limits())
    assert reading.breached
    assert "was rolled back to version 1" in reading.says


def known(*found: Finding, hours: float = 0) -> Known:
    now = clock.seconds_of(found[0].at) + 3600 * hours
    return Known(now, "", None, None, Watched(None, None, now, None, found))


def test_the_alert_of_a_rollback_ends_after_a_day_and_is_no_look_at_drift():
    found = Finding("guard", "errors", "alarm", "bad", {}, at="2026-11-01T00:00:00.000000+00:00")
    assert rollback(known(found, hours=23), Limits()).breached
    assert not rollback(known(found, hours=25), Limits()).breached
    assert not rollback(known(found._replace(verdict="ok")), Limits()).breached
    assert unwatched(known(found, hours=100), Limits()).breached is None


def test_what_was_rolled_back_is_promoted_again_by_hand_only(world, start):
    bad = promoted(world)
    start().fail(bad.version)
    assert world.champion("housing") == 1
    with pytest.raises(GateError, match=r"was rolled back by the guard on .*: errors: 5 of 5"):
        world.promote("housing", bad.version, automatic=True)
    assert world.champion("housing") == 1
    world.promote("housing", bad.version)
    assert world.champion("housing") == bad.version


def test_a_request_that_no_version_can_answer_is_held_against_none(world, start):
    version = promoted(world).version
    process = start()
    for _ in range(50):
        process.guard.failed(1, ZeroDivisionError(), 1)
        process.guard.failed(version, ZeroDivisionError(), 1)
    process.guard.look()
    assert world.champion("housing") == version


def test_the_first_champion_has_nothing_to_go_back_to_and_says_so(world, start):
    process = start()
    process.fail(1, runs=50)
    assert world.champion("housing") == 1
    found = process.found()
    assert found["errors"].verdict == "alarm"
    assert found["errors"].says.endswith("; there is no version before to go back to")
    assert found["quality"].verdict == "cannot tell"
    assert rollback(known(found["errors"]), Limits()).breached


def test_where_the_version_before_cannot_take_over_the_alarm_says_so(world, start):
    bad = promoted(world)
    (world.bundle("housing", 1) / "golden.json").write_bytes(b"{}")
    process = start()
    process.fail(bad.version)
    assert world.champion("housing") == bad.version
    assert "version 1 before it cannot be opened" in process.found()["errors"].says


def test_after_a_rollback_there_is_no_probation_and_so_no_to_and_fro(world, start):
    version = promoted(world)
    with Ledger(world.settings.state_database) as ledger:
        force(world, ledger.version("housing", 1), "rollback")
    assert ledger is not None
    process = start()
    process.fail(1, runs=50)
    assert world.champion("housing") == 1
    assert process.found() == {}
    assert version.version != 1


def test_a_champion_is_guarded_for_the_days_that_a_setting_gives_it(world, start):
    version = promoted(world).version
    start(ROLLBACK_WATCH_DAYS=1e-9).fail(version, runs=50)
    assert world.champion("housing") == version


def test_a_champion_that_does_not_know_its_golden_rows_any_more_is_rolled_back(world, start):
    promoted(world)
    process = start()
    assert process.found()["golden rows"].verdict == "ok"
    process.service.champion.bundle.golden["prediction"][0] += 1e-6
    process.guard._next_trial = 0
    process.guard.look()
    assert world.champion("housing") == 1
    assert "does not answer its golden rows" in world.decisions("housing")[-1].reason


def test_a_champion_that_takes_much_longer_is_rolled_back(world, start, monkeypatch):
    version = promoted(world).version
    process = start()
    assert process.found()["latency"].numbers["rounds"] == 1
    times = {1: 0.001, version: 0.02}
    monkeypatch.setattr(guarding, "_seconds", lambda champion, _: times[champion.version])
    process.guard._next_trial = 0
    process.guard.look()
    assert world.champion("housing") == 1
    reason = world.decisions("housing")[-1].reason
    assert reason.startswith("latency: one row takes 20 ms, the version before 1 ms at the same")


def answer(process: Process, rows: np.ndarray, truths: np.ndarray) -> None:
    """Let the champion answer rows, and let their truths come."""
    names = HOUSING.fields
    inputs = [
        "{"
        + ", ".join(f'"{name}": {value!r}' for name, value in zip(names, row, strict=True))
        + "}"
        for row in rows.tolist()
    ]
    predicted = process.service.champion.predict(rows, inputs, [None] * len(rows))
    process.log.append([Submission(tuple(predicted))])
    pairs = [
        (one.prediction_id, value) for one, value in zip(predicted, truths.tolist(), strict=True)
    ]
    process.log.attach(pairs, measure_of(HOUSING, process.settings))
    process.guard._next_trial = 0
    process.guard.look()


def test_a_champion_that_the_truths_speak_against_is_rolled_back(world, start):
    force(world, plant(world, a_tenth_too_low))
    rows, actual = held_out()
    process = start()
    for start_at in (0, 1000):  # what came in two looks is counted once
        part = slice(start_at, start_at + 1000)
        answer(process, rows.to_numpy(dtype=float)[part], actual[part])
    assert world.champion("housing") == 1
    reason = world.decisions("housing")[-1].reason
    assert reason.startswith("quality: mean loss ")
    assert " truths: +" in reason


def test_to_look_for_truths_is_to_go_through_truths_and_not_through_predictions(start, monkeypatch):
    log = start().log
    asked: list[Any] = []
    monkeypatch.setattr(log, "_read", lambda *query: asked.append(query) or [])
    log.truths_of(1, "2026-11-01T00:00:00.000000+00:00", "")
    monkeypatch.undo()
    [(sql, bindings)] = asked
    first, *_ = log._read(f"EXPLAIN QUERY PLAN {sql}", bindings)
    assert "SEARCH truths" in first[-1]


def test_a_world_that_has_changed_is_held_against_no_champion(world, start):
    bad = plant(world, a_tenth_too_low)
    force(world, bad)
    rows, actual = held_out()
    process = start()
    # When all houses are worth half, both are off, and the new one less.
    answer(process, rows.to_numpy(dtype=float)[:400], actual[:400] / 2)
    found = process.found()["quality"]
    assert (found.verdict, found.numbers["truths"]) == ("ok", 400)
    assert world.champion("housing") == bad.version


def test_the_registry_is_shown_the_champion_of_this_moment(world, monkeypatch):
    monkeypatch.setenv("MLOPS_HOME", str(world.settings.home))
    promoting.mirror_now("housing")
    assert world.mirrored == [("HousingPriceModel", 1)]


# --- with a server and callers


def named(words: str) -> bad_models.Bad:
    [found] = [bad for bad in bad_models.MODELS if words in bad.name]
    return found


def test_callers_of_a_real_server_get_the_old_version_back_and_are_told_why(trained, tmp_path):
    [outcome] = bad_models.measure(trained, tmp_path, [named("raises")])
    assert outcome.stopped_by == "the guard: errors"
    assert 0 < outcome.touched < outcome.asked
    assert outcome.unanswered == 0, "the version before answers instead"
    home = tmp_path / "home"
    told = mlops("why", "housing", "2", "--json", home=home).stdout
    assert "runs of the model failed, the last with InvalidArgument" in told
    shown = mlops("guard", "housing", home=home, check=False)
    assert shown.returncode == 1  # the last look found something
    assert "came back by a rollback, which begins no probation" in shown.stdout


def test_with_the_guard_off_nobody_stops_what_the_gates_cannot_see(trained, tmp_path):
    [outcome] = bad_models.measure(
        trained, tmp_path, [named("raises")], patience=1.5, ROLLBACK_WATCH_DAYS="0"
    )
    assert outcome.stopped_by == ""
    assert outcome.asked > 20
    assert outcome.unanswered == 0, "the version before answers in its place, for good"


@pytest.mark.slow
def test_each_of_ten_bad_models_is_refused_or_gone_two_seconds_after_it_was_found(
    trained, tmp_path
):
    outcomes = bad_models.measure(trained, tmp_path)
    assert len(outcomes) == 10
    for one in outcomes:
        assert one.stopped_by, one
        if one.found is None:
            assert one.touched == 0, one
        else:
            assert one.back < 2.0, one


def test_the_published_table_has_every_bad_model_and_what_stopped_it():
    published = bad_models.PAGE.read_text()
    _, _, rest = published.partition(bad_models.BEGIN)
    rows = [
        line.split("|")[1:-1] for line in rest.partition(bad_models.END)[0].splitlines() if line
    ]
    assert tuple(cell.strip() for cell in rows[0]) == bad_models.COLUMNS
    assert [row[0].strip() for row in rows[2:]] == [bad.name for bad in bad_models.MODELS]
    assert all(row[1].strip().startswith("the ") for row in rows[2:])

"""What a version has behind it: `gates`, `rollback`, `why` and `ledger`, as a person types them."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from conftest import typed
from promotions import World, equal, no_better_than_the_baseline, world_in

from mlops.errors import BundleError, ChampionMovedError, NotTrainedError, UsageError
from mlops.improve.decisions import KEPT
from mlops.improve.gates import GATES
from mlops.improve.ledger import Ledger
from mlops.loop import rollback as rolling
from mlops.loop.rollback import Rollback, rollback
from mlops.loop.why import why
from mlops.settings import read_settings


@pytest.fixture
def world(home: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return world_in(home, monkeypatch)


def back(world: World, reason: str = "a drill") -> Rollback:
    return rollback("housing", reason=reason, settings=world.settings)


def test_a_rollback_makes_the_champion_before_champion_again_and_says_why(world):
    version = world.register("housing", equal)
    world.promote("housing")
    result = back(world, "it misprices the coast")
    assert (result.version.version, result.previous) == (1, version.version)
    assert world.champion("housing") == 1
    assert world.mirrored[-1] == ("HousingPriceModel", 1)
    last = world.decisions("housing")[-1]
    assert (last.action, last.rule, last.reason) == (
        "rollback",
        "rollback",
        "it misprices the coast",
    )
    assert [v["outcome"] for v in last.evidence] == ["pass"]
    with pytest.raises(UsageError, match="no champion before version 1"):
        back(world)


def test_a_rollback_needs_a_reason_a_champion_and_a_bundle_that_opens(world, tmp_path):
    world.register("housing", equal)
    world.promote("housing")
    with pytest.raises(UsageError, match="needs a reason"):
        back(world, "  ")
    empty = read_settings(MLOPS_HOME=tmp_path / "empty")
    with pytest.raises(NotTrainedError, match="housing has no champion"):
        rollback("housing", reason="why not", settings=empty)
    (world.bundle("housing", 1) / "golden.json").write_bytes(b"{}")
    with pytest.raises(BundleError, match=r"golden\.json"):
        back(world)
    assert world.champion("housing") == 2


def test_a_rollback_that_comes_second_changes_nothing(world, monkeypatch):
    version = world.register("housing", equal)
    world.promote("housing")
    real = rolling.golden_difference

    def while_another_is_faster(bundle: Any) -> float:
        with Ledger(world.settings.state_database) as ledger:
            first = ledger.version("housing", 1)
            ledger.promote(first, expected=version.version, reason="faster", evidence=[])
        return real(bundle)

    monkeypatch.setattr(rolling, "golden_difference", while_another_is_faster)
    with pytest.raises(ChampionMovedError, match="version 1 became champion meanwhile"):
        back(world)
    assert world.decisions("housing")[-1].reason == "faster"


def test_the_champion_is_held_against_the_one_before_it_and_nothing_is_decided(world):
    assert world.gates("housing", 1).against is None
    version = world.register("housing", equal)
    world.promote("housing")
    before = world.decisions("housing")
    judged = world.gates("housing", version.version)
    assert (judged.against, judged.passes, len(judged.verdicts)) == (1, True, len(GATES))
    assert world.decisions("housing") == before


def test_why_tells_when_by_whom_over_whom_and_what_came_after(world):
    version = world.register("housing", equal)
    world.promote("housing", reason="spring cleaning")
    back(world, "it misprices the coast")
    story = why("housing", version.version, settings=world.settings)
    assert story.champion is False
    assert (story.rows_train, story.rows_test) == (16512, 4128)
    assert story.data_change == "no difference to those of version 1"
    (promoted,) = story.decisions
    assert (promoted.action, promoted.previous) == ("promote", 1)
    assert (promoted.rule, promoted.reason) == ("gates", "spring cleaning")
    assert len(promoted.evidence) == len(GATES)
    (reign,) = story.reigns
    assert reign.began == promoted
    assert (reign.ended.version, reign.ended.reason) == (1, "it misprices the coast")
    first = why("housing", 1, settings=world.settings)
    assert first.champion
    assert [one.ended is None for one in first.reigns] == [False, True]
    assert [one.action for one in first.decisions] == ["train", "promote", "rollback"]
    made = first.decisions[0].evidence[0]
    assert made["data_fingerprint"] == first.data_fingerprint
    assert made["bundle"] == first.version.bundle
    assert first.decisions[0].rule == "cross-validation"
    assert first.decisions[0].reason.startswith("best of 4 candidates: r2_score 0.83")


def test_why_says_what_is_not_known_of_a_version_whose_bundle_is_gone(world):
    version = world.register("housing", equal)
    (world.settings.bundles / version.bundle).rename(world.settings.home / "gone")
    story = why("housing", version.version, settings=world.settings)
    assert story.data_fingerprint is None
    assert story.data_change.startswith("not known: bundle")


# --- as typed


@pytest.fixture
def command(world, monkeypatch, capfd):
    monkeypatch.setenv("MLOPS_HOME", str(world.settings.home))
    return typed(capfd)


def test_gates_ends_with_1_for_a_version_that_is_kept_out(world, command):
    world.register("housing", no_better_than_the_baseline)
    code, printed = command("gates", "housing")
    assert code == 1
    assert "housing version 2, held against version 1: is kept out" in printed
    code, printed = command("gates", "housing", "1", "--json")
    assert (code, json.loads(printed)["passes"]) == (0, True)


def test_the_ledger_is_listed_and_told_for_people(world, command):
    world.register("housing", equal)
    world.promote("housing")
    code, printed = command("rollback", "housing", "--reason", "a drill")
    assert (code, printed) == (0, "housing: version 1 is champion again, not 2\n")
    listed = command("ledger", "housing")[1]
    assert "rollback" in listed
    assert "cross-validation" in listed
    told = command("why", "housing", "2")[1]
    assert "housing version 2, Planted: not champion" in told
    assert "promote over version 1 by " in told
    assert "replaced by version 1: a drill" in told
    assert told.count("pass  ") == len(GATES)
    assert json.loads(command("why", "housing", "2", "--json")[1])["champion"] is False
    lines = json.loads(command("ledger", "--json")[1])
    assert {one["use_case"] for one in lines} == {"housing", "iris"}


def test_an_experiment_and_an_alias_are_told_like_every_decision(world, command):
    version = world.register("housing", equal)
    with Ledger(world.settings.state_database) as ledger:
        begun = ledger.experiments.begin("housing", "ab", 2, share=0.1, reason="is it?", by="ann")
        ledger.experiments.end(begun.id, "kept", "it is not", rule="verdict")
        ledger.set_alias(version, "canary", reason="by name", by="bob")
    listed = command("ledger", "housing")[1]
    assert "is it?" in listed
    told = command("why", "housing", "2")[1]
    assert "ab over version 1 by ann: is it?" in told
    assert "end over version 1, rule: verdict: it is not" in told
    assert "alias by bob: by name" in told
    assert command("ledger", "verify")[0] == 0


def test_tampering_with_another_program_ends_verify_with_1_and_the_line(world, command):
    code, printed = command("ledger", "verify")
    assert code == 0
    head = printed.split()[-1]
    assert command("ledger", "verify", "--expect", head[:10])[0] == 0
    connection = sqlite3.connect(world.settings.state_database)
    connection.execute(f"DROP TRIGGER {next(iter(KEPT))}")
    connection.execute("UPDATE decisions SET reason = 'I said so' WHERE id = 2")
    connection.commit()
    connection.close()
    code, printed = command("ledger", "verify")
    assert (code, "was tampered with: line 2 is not what was written" in printed) == (1, True)
    code, printed = command("ledger", "verify", "--json")
    assert (code, json.loads(printed)["line"]) == (1, 2)

"""Promotions: what becomes of the gates' answers, and of what comes in between."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from promotions import (
    World,
    asked,
    equal,
    no_better_than_the_baseline,
    refusing,
    world_in,
)

from mlops.errors import BundleError, ChampionMovedError, GateError, UsageError
from mlops.improve.gates import (
    GATES,
    Evidence,
    Verdict,
    beats_baseline,
    not_worse_than_champion,
    parity,
)
from mlops.improve.ledger import Ledger
from mlops.loop import promote as promoting
from mlops.loop.promote import promote
from mlops.settings import read_settings


@pytest.fixture
def world(home: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return world_in(home, monkeypatch)


def of_other_data(documents: dict[str, Any]) -> None:
    documents["training"]["data_fingerprint"] = "another"


def of_other_test_rows(documents: dict[str, Any]) -> None:
    documents["training"]["held_out_fingerprint"] = "another"


def test_an_equal_version_is_promoted_as_a_tie_and_mirrored_and_written_down(world):
    version = world.register("housing", equal)
    result = world.promote("housing")
    assert (result.version.version, result.previous, result.changed) == (version.version, 1, True)
    assert [v.outcome for v in result.verdicts] == ["pass"] * len(GATES)
    compared = asked(result)
    assert "against version 1" in compared.says
    assert compared.says.endswith(": a tie")
    assert compared.numbers["rows"] == 4128
    assert world.champion("housing") == version.version
    assert world.mirrored == [("HousingPriceModel", version.version)]
    last = world.decisions("housing")[-1]
    assert (last.action, last.version, last.previous) == ("promote", version.version, 1)
    assert last.reason == "every gate let it pass"
    assert last.evidence == [dataclasses.asdict(v) for v in result.verdicts]


def test_a_refused_version_leaves_the_champion_and_a_decision_to_keep_it(world):
    version = world.register("housing", no_better_than_the_baseline)
    with pytest.raises(GateError) as caught:
        world.promote("housing")
    message = str(caught.value)
    assert f"version {version.version} was not promoted: serves what was measured: " in message
    assert "r2_score 0.8360 now, -0.5000 sealed; also: beats the baseline" in message
    assert f'overrule with: mlops promote housing {version.version} --force --reason "…"' in message
    assert world.champion("housing") == 1
    assert world.mirrored == []
    last = world.decisions("housing")[-1]
    assert (last.action, last.version, last.previous) == ("keep", version.version, 1)
    assert "beats the baseline: r2_score -0.5000" in last.reason
    assert (last.rule, bool(last.decided_by)) == ("gates", True)
    assert refusing(last) == [parity.NAME, beats_baseline.NAME]


def test_the_gates_can_be_overruled_with_a_reason_that_the_ledger_keeps(world):
    version = world.register("housing", no_better_than_the_baseline)
    for reason in ("", "  "):
        with pytest.raises(UsageError, match="needs a reason — say why with --reason"):
            world.promote("housing", force=True, reason=reason)
    assert world.champion("housing") == 1
    world.promote("housing", force=True, reason="a drill")
    assert world.champion("housing") == version.version
    last = world.decisions("housing")[-1]
    assert (last.action, last.reason, last.rule) == ("promote", "forced: a drill", "force")
    assert refusing(last) == [parity.NAME, beats_baseline.NAME]


@pytest.mark.parametrize("force", [False, True])
def test_a_corrupt_bundle_is_never_promoted(world, force):
    version = world.register("housing", equal)
    path = world.settings.bundles / version.bundle / "model.onnx"
    path.write_bytes(path.read_bytes()[:-1])
    before = world.decisions("housing")
    with pytest.raises(BundleError, match=r"model\.onnx does not have the digest"):
        world.promote("housing", force=force, reason="I insist")
    assert world.champion("housing") == 1
    assert world.decisions("housing") == before


def test_a_bundle_that_was_removed_is_not_promoted(world):
    version = world.register("housing", equal)
    (world.settings.bundles / version.bundle).rename(world.settings.home / "gone")
    with pytest.raises(BundleError, match=f"bundle {version.bundle[:12]} lacks manifest"):
        world.promote("housing", version.version)


@pytest.mark.parametrize("change", [of_other_data, of_other_test_rows])
def test_a_version_that_may_have_learnt_the_test_rows_is_not_compared_on_them(world, change):
    version = world.register("housing", change)
    verdict = asked(world.promote("housing"))
    assert version.version == world.champion("housing")
    assert "cannot tell: serves what was measured" in world.decisions("housing")[-1].reason
    assert verdict.outcome == "cannot tell"
    assert "version 1 learnt from other data, which may hold these test rows" in verdict.says


def test_after_the_data_file_was_changed_the_kept_table_tells_which_rows_are_new_to_both(world):
    world.register("housing", equal)
    path = world.settings.data / "housing.csv"
    header, *rows = path.read_text().splitlines()
    path.write_text("\n".join([header, *sorted(rows[1000:])]))
    assert asked(world.promote("housing")).numbers["rows"] == 4128


def test_without_the_kept_table_a_changed_data_file_proves_nothing(world):
    version = world.register("housing", equal)
    for path in (world.settings.data / "tables").iterdir():
        path.unlink()
    path = world.settings.data / "housing.csv"
    header, *rows = path.read_text().splitlines()
    path.write_text("\n".join([header, *sorted(rows)]))
    said = {v.gate: v.outcome for v in world.gates("housing", version.version).verdicts}
    assert said[not_worse_than_champion.NAME] == "cannot tell"


def test_a_champion_that_cannot_be_opened_keeps_nobody_out(world):
    world.register("housing", equal)
    (world.bundle("housing", 1) / "golden.json").write_bytes(b"{}")
    verdict = asked(world.promote("housing"))
    assert verdict.outcome == "cannot tell"
    assert "version 1 cannot be opened" in verdict.says
    assert "golden.json" in verdict.says
    assert world.champion("housing") == 2


def test_a_classifier_is_compared_by_its_wrong_classes(world):
    result = world.promote("iris", 2)
    numbers = asked(result).numbers
    assert (numbers["rows"], result.previous) == (30, 1)
    assert numbers["difference"] == pytest.approx(3 / 30)  # of 30 flowers, 3 more are wrong


def test_promoting_the_champion_again_changes_nothing_and_mends_the_mirror(world):
    before = world.decisions("housing")
    result = world.promote("housing", 1)
    assert (result.changed, result.previous) == (False, 1)
    assert world.decisions("housing") == before
    assert world.mirrored == [("HousingPriceModel", 1)]


def test_a_promotion_that_comes_second_is_refused(world, monkeypatch):
    version = world.register("housing", equal)
    real = promoting.check_all

    def while_another_is_faster(shown: Evidence) -> list[Verdict]:
        other = dataclasses.replace(version, version=99)
        with Ledger(world.settings.state_database) as ledger:
            ledger.register(other)
            ledger.promote(other, expected=1, reason="faster", evidence=[])
        return real(shown)

    monkeypatch.setattr(promoting, "check_all", while_another_is_faster)
    with pytest.raises(ChampionMovedError, match=r"version 99 became champion meanwhile"):
        world.promote("housing", version.version)
    assert world.champion("housing") == 99
    assert world.mirrored == []


def test_what_cannot_be_promoted_is_said_with_what_can(world, tmp_path):
    with pytest.raises(UsageError, match=r"housing has no version 7 \(registered: 1\)"):
        world.promote("housing", 7)
    empty = read_settings(MLOPS_HOME=tmp_path / "empty")
    with pytest.raises(UsageError, match="no registered version — train one with: mlops train"):
        promote("housing", settings=empty)
    with pytest.raises(UsageError, match=r"no use case 'boston' — declared are: housing, iris"):
        world.promote("boston")

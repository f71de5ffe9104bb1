"""Gates: pass, fail or cannot tell, each with its numbers; and what a promotion makes of them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlops.errors import BundleError, ChampionMovedError, GateError, UsageError
from mlops.improve.gates import (
    GATES,
    Evidence,
    Verdict,
    beats_baseline,
    check_all,
    golden_rows,
    not_worse_than_champion,
)
from mlops.improve.ledger import Ledger, Version
from mlops.loop import promote as promoting
from mlops.loop.promote import Promotion, promote
from mlops.package.bundle import seal
from mlops.settings import Settings, read_settings

RNG = np.random.default_rng(0)
SOUND = Evidence(
    metric="r2_score",
    score=0.8,
    baseline_score=0.0,
    golden_difference=0.0,
    losses=RNG.random(500),
    champion_losses=None,
    champion="no champion yet",
)


def evidence(**changes: Any) -> Evidence:
    return dataclasses.replace(SOUND, **changes)


def against(losses: Any, champion_losses: Any) -> Verdict:
    return not_worse_than_champion.check(
        evidence(
            losses=np.asarray(losses, dtype=float),
            champion_losses=np.asarray(champion_losses, dtype=float),
            champion="version 1",
        )
    )


def test_every_gate_is_asked_in_order_and_each_has_a_name_of_its_own():
    verdicts = check_all(SOUND)
    assert [v.gate for v in verdicts] == [gate.NAME for gate in GATES]
    assert len({gate.NAME for gate in GATES}) == len(GATES) == 3
    assert [v.outcome for v in verdicts] == ["pass", "pass", "cannot tell"]
    json.dumps([dataclasses.asdict(v) for v in verdicts], allow_nan=False)


# --- golden rows


@pytest.mark.parametrize(
    ("difference", "outcome"),
    [(0.0, "pass"), (1e-9, "pass"), (1.1e-9, "fail"), (0.5, "fail"), (np.nan, "fail")],
)
def test_golden_rows_are_reproduced_or_not(difference, outcome):
    verdict = golden_rows.check(evidence(golden_difference=difference))
    assert verdict.outcome == outcome
    assert f"largest difference {difference:.3g}, allowed 1e-09" in verdict.says


# --- baseline


@pytest.mark.parametrize(
    ("score", "outcome"),
    [(0.51, "pass"), (0.5, "fail"), (0.4, "fail"), (-3.0, "fail"), (np.nan, "fail")],
)
def test_a_model_must_know_more_than_the_baseline(score, outcome):
    verdict = beats_baseline.check(evidence(score=score, baseline_score=0.5))
    assert verdict.outcome == outcome
    assert verdict.says == f"r2_score {score:.4f}, a model that ignores its inputs 0.5000"


# --- champion


def test_without_a_champion_there_is_nothing_to_compare_with():
    verdict = not_worse_than_champion.check(SOUND)
    assert verdict.outcome == "cannot tell"
    assert verdict.says == "nothing to compare with: no champion yet"


def test_a_clearly_worse_model_fails_with_the_interval():
    champion = RNG.random(400)
    differences = RNG.normal(0.2, 1, 400)
    verdict = against(champion + differences, champion)
    half = 1.959963984540054 * differences.std(ddof=1) / 20
    assert verdict.outcome == "fail"
    assert verdict.numbers["difference"] == pytest.approx(differences.mean())
    assert verdict.numbers["low"] == pytest.approx(differences.mean() - half)
    assert verdict.numbers["high"] == pytest.approx(differences.mean() + half)
    assert verdict.numbers["rows"] == 400
    assert verdict.says.endswith(": worse")
    assert "against version 1, 95 % interval +" in verdict.says


def test_a_clearly_better_model_passes_and_is_called_better():
    champion = RNG.random(400)
    verdict = against(champion - RNG.normal(0.2, 1, 400), champion)
    assert (verdict.outcome, verdict.says.endswith(": better")) == ("pass", True)


@pytest.mark.parametrize("shift", [0.0, 0.05, -0.05])
def test_what_chance_explains_is_called_a_tie(shift):
    noise = RNG.normal(0, 1, 400)
    verdict = against(noise - noise.mean() + shift, np.zeros(400))
    assert (verdict.outcome, verdict.says.endswith(": a tie")) == ("pass", True)


def test_the_same_model_again_is_a_tie_and_a_constant_loss_is_worse():
    losses = RNG.random(100)
    assert against(losses, losses).says.endswith(": a tie")
    assert against(losses + 0.001, losses).outcome == "fail"


def test_pairs_count_a_small_difference_on_every_row_is_seen_through_large_losses():
    losses = RNG.random(1000) * 100
    assert against(losses + 0.01 * RNG.random(1000), losses).outcome == "fail"


def test_an_equal_model_is_refused_by_chance_one_time_in_forty():
    rng = np.random.default_rng(1)
    outcomes = [against(rng.normal(size=200), rng.normal(size=200)).outcome for _ in range(2000)]
    assert 0.015 < outcomes.count("fail") / 2000 < 0.035


def test_too_few_rows_cannot_tell():
    verdict = against(np.ones(29), np.zeros(29))
    assert (verdict.outcome, verdict.numbers) == ("cannot tell", {"rows": 29})
    assert verdict.says == "29 rows are too few for an interval (30 needed)"
    assert against(np.ones(30), np.zeros(30)).outcome == "fail"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_model_that_gives_no_number_for_a_row_never_passes(value):
    losses = RNG.random(100)
    losses[7] = value
    verdict = against(losses, np.ones(100))
    assert verdict.outcome == "fail"
    assert verdict.says == "the model gives no finite number for 1 of 100 rows"
    json.dumps(verdict.numbers, allow_nan=False)
    assert against(np.ones(100), losses).outcome == "cannot tell"


# --- promotions


@dataclasses.dataclass
class World:
    """A copy of the trained project; promotions in it are mirrored into a list, not to MLflow."""

    settings: Settings
    mirrored: list[tuple[str, int]]

    def promote(self, name: str, *arguments: Any, **options: Any) -> Promotion:
        return promote(name, *arguments, settings=self.settings, **options)

    def champion(self, name: str) -> int:
        with Ledger(self.settings.state_database) as ledger:
            return ledger.champion(name).version

    def decisions(self, name: str) -> list[Any]:
        with Ledger(self.settings.state_database) as ledger:
            return ledger.decisions(name)

    def bundle(self, name: str, number: int) -> Path:
        with Ledger(self.settings.state_database) as ledger:
            return self.settings.bundles / ledger.version(name, number).bundle

    def register(self, name: str, change: Callable[[dict[str, Any]], Any]) -> Version:
        """Seal the champion's bundle anew, with documents changed, as the newest version."""
        path = self.bundle(name, self.champion(name))
        documents = {
            document: json.loads((path / f"{document}.json").read_text())
            for document in ("signature", "reference", "golden", "metrics", "training")
        }
        change(documents)
        model = documents.pop("model", (path / "model.onnx").read_bytes())
        sealed = seal(
            self.settings.bundles,
            model=model,
            documents=documents,
            pipeline=b"",
            provenance={},
        )
        with Ledger(self.settings.state_database) as ledger:
            number = ledger.versions(name)[-1].version + 1
            version = Version(name, number, sealed, "Planted", "run", "2026-01-01")
            ledger.register(version)
        return version


@pytest.fixture
def world(home: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    mirrored: list[tuple[str, int]] = []
    monkeypatch.setattr(
        promoting, "mirror_champion", lambda _, model, version: mirrored.append((model, version))
    )
    return World(read_settings(MLOPS_HOME=home), mirrored)


def no_better_than_the_baseline(documents: dict[str, Any]) -> None:
    documents["metrics"]["scores"]["r2_score"] = -0.5


def equal(documents: dict[str, Any]) -> None:
    documents["training"]["candidate"] = "Planted"


def of_other_data(documents: dict[str, Any]) -> None:
    documents["training"]["data_fingerprint"] = "another"


def of_other_test_rows(documents: dict[str, Any]) -> None:
    documents["training"]["held_out_fingerprint"] = "another"


def test_an_equal_version_is_promoted_as_a_tie_and_mirrored_and_written_down(world):
    version = world.register("housing", equal)
    result = world.promote("housing")
    assert (result.version.version, result.previous, result.changed) == (version.version, 1, True)
    assert [v.outcome for v in result.verdicts] == ["pass"] * 3
    assert "against version 1" in result.verdicts[2].says
    assert result.verdicts[2].says.endswith(": a tie")
    assert result.verdicts[2].numbers["rows"] == 4128
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
    assert f"housing version {version.version} was not promoted: beats the baseline: " in message
    assert "r2_score -0.5000, a model that ignores its inputs -0.0002" in message
    assert f'overrule with: mlops promote housing {version.version} --force --reason "…"' in message
    assert world.champion("housing") == 1
    assert world.mirrored == []
    last = world.decisions("housing")[-1]
    assert (last.action, last.version, last.previous) == ("keep", version.version, 1)
    assert "r2_score -0.5000" in last.reason
    assert [v["outcome"] for v in last.evidence] == ["pass", "fail", "pass"]


def test_the_gates_can_be_overruled_with_a_reason_that_the_ledger_keeps(world):
    version = world.register("housing", no_better_than_the_baseline)
    for reason in ("", "  "):
        with pytest.raises(UsageError, match="needs a reason — say why with --reason"):
            world.promote("housing", force=True, reason=reason)
    assert world.champion("housing") == 1
    world.promote("housing", force=True, reason="a drill")
    assert world.champion("housing") == version.version
    last = world.decisions("housing")[-1]
    assert (last.action, last.reason) == ("promote", "forced: a drill")
    assert [v["outcome"] for v in last.evidence] == ["pass", "fail", "pass"]


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
    world.register("housing", change)
    verdict = world.promote("housing").verdicts[2]
    assert verdict.outcome == "cannot tell"
    assert "version 1 learnt from other data, which may hold these test rows" in verdict.says


def test_after_the_data_file_was_reordered_its_test_rows_prove_nothing(world):
    world.register("housing", equal)
    path = world.settings.data / "housing.csv"
    header, *rows = path.read_text().splitlines()
    path.write_text("\n".join([header, *sorted(rows)]))
    assert world.promote("housing").verdicts[2].outcome == "cannot tell"


def test_a_champion_that_cannot_be_opened_keeps_nobody_out(world):
    world.register("housing", equal)
    (world.bundle("housing", 1) / "golden.json").write_bytes(b"{}")
    verdict = world.promote("housing").verdicts[2]
    assert verdict.outcome == "cannot tell"
    assert "version 1 cannot be opened" in verdict.says
    assert "golden.json" in verdict.says
    assert world.champion("housing") == 2


def test_a_classifier_is_compared_by_its_wrong_classes(world):
    result = world.promote("iris", 2)
    numbers = result.verdicts[2].numbers
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

    def while_another_is_faster(asked: Evidence) -> list[Verdict]:
        other = dataclasses.replace(version, version=99)
        with Ledger(world.settings.state_database) as ledger:
            ledger.register(other)
            ledger.promote(other, expected=1, reason="faster", evidence=[])
        return real(asked)

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

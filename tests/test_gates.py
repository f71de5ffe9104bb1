"""Gates: pass, fail or cannot tell, each with its numbers."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from mlops.improve.gates import (
    GATES,
    Evidence,
    Verdict,
    beats_baseline,
    check_all,
    fairness,
    golden_rows,
    no_slice_worse,
    not_worse_than_champion,
    parity,
    same_signature,
    within_budget,
    withstands_drift,
)
from mlops.improve.gates.evidence import Bands, Cost, Paired, Proof

RNG = np.random.default_rng(0)
SIGNATURE = {
    "fields": [
        {"name": "latitude", "unit": "degrees north", "low": 32.0, "high": 42.5},
        {"name": "rooms", "unit": "rooms", "low": 1.0, "high": 1e6},
    ],
    "target": {"name": "price", "unit": "dollars", "labels": ("cheap", "dear")},
}
SOUND = Evidence(
    metric="r2_score",
    score=0.8,
    baseline_score=0.0,
    measured_score=0.8,
    golden_difference=0.0,
    proof=Proof(2500, 2500, 0.0),
    losses=RNG.random(500),
    champion_losses=None,
    champion="no champion yet",
    bands=(
        Bands("coast", ("near", "far"), np.arange(500) % 2, largest_gap=0.5),
        Bands("size", ("small", "large", "elsewhere"), np.arange(500) // 240),
    ),
    perturbed={"rooms moved": Paired(RNG.random(500), None, (0.0, 5.0))},
    answers_allowed=(-25.0, 30.0),
    cost=Cost(1_000_000, 20.0),
    champion_cost=None,
    budget=Cost(50_000_000, 1_000.0),
    signature=SIGNATURE,
    champion_signature=None,
    declared=SIGNATURE,
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
    assert len({gate.NAME for gate in GATES}) == len(GATES) == 9
    unknown = [v.gate for v in verdicts if v.outcome == "cannot tell"]
    assert unknown == [not_worse_than_champion.NAME, no_slice_worse.NAME, withstands_drift.NAME]
    assert {v.outcome for v in verdicts if v.gate not in unknown} == {"pass"}
    assert not any(v.blocks for v in verdicts)
    json.dumps([dataclasses.asdict(v) for v in verdicts], allow_nan=False)


def test_each_gate_says_whether_not_knowing_keeps_a_version_out(monkeypatch):
    def unknown(_: Evidence) -> Verdict:
        return Verdict(NAME, "cannot tell", "", {})

    NAME = "any"
    for gate in GATES:
        monkeypatch.setattr(gate, "check", unknown)
    blocking = {gate.NAME for gate, v in zip(GATES, check_all(SOUND), strict=True) if v.blocks}
    assert blocking == {
        golden_rows.NAME,
        same_signature.NAME,
        within_budget.NAME,
        beats_baseline.NAME,
    }


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


# --- parity


def test_a_sealed_proof_of_every_row_and_the_score_now_are_both_needed():
    assert parity.check(SOUND).outcome == "pass"
    off = parity.check(evidence(proof=Proof(2500, 2500, 2e-9)))
    assert (off.outcome, off.numbers["difference"]) == ("fail", 2e-9)
    assert parity.check(evidence(proof=Proof(2499, 2500, 0.0))).outcome == "fail"
    assert parity.check(evidence(proof=Proof(2500, 2500, np.nan))).outcome == "fail"
    none = parity.check(evidence(proof=Proof(None, 2500, 0.0)))
    assert (none.outcome, "train it again" in none.says) == ("fail", True)
    claimed = parity.check(evidence(score=0.9))
    assert (claimed.outcome, "0.8000 now, 0.9000 sealed" in claimed.says) == ("fail", True)


def test_a_score_on_other_data_is_not_measured_again_and_says_so():
    verdict = parity.check(evidence(measured_score=None))
    assert (verdict.outcome, "not measured again" in verdict.says) == ("cannot tell", True)


# --- slices


def slices(losses: Any, champion_losses: Any) -> Verdict:
    return no_slice_worse.check(
        evidence(losses=losses, champion_losses=champion_losses, champion="version 1")
    )


def test_a_band_that_got_worse_is_found_though_the_whole_got_better():
    champion = RNG.random(500) + 1
    losses = champion - 0.3
    losses[240:480] += 0.5 + 0.1 * RNG.random(240)  # the large ones
    assert against(losses, champion).outcome == "pass"
    verdict = slices(losses, champion)
    assert verdict.outcome == "fail"
    assert verdict.says.endswith("; worse: size large")
    assert verdict.numbers["difference in size large"] == pytest.approx(0.25, abs=0.02)
    assert (verdict.numbers["bands"], verdict.numbers["too few rows"]) == (4, 1)


def test_of_equal_models_some_band_is_called_worse_one_time_in_forty_at_most():
    rng = np.random.default_rng(2)
    outcomes = [slices(rng.normal(size=500), rng.normal(size=500)).outcome for _ in range(1500)]
    assert 0.005 < outcomes.count("fail") / 1500 < 0.035


def test_bands_without_rows_or_slices_tell_nothing():
    losses = RNG.random(500)
    few = evidence(losses=losses[:50], champion_losses=losses[:50])
    few = dataclasses.replace(few, bands=(Bands("size", ("a", "b"), np.arange(50) % 2),))
    assert no_slice_worse.check(few).says == "no declared band has 30 rows"
    none = no_slice_worse.check(dataclasses.replace(few, bands=()))
    assert (none.outcome, none.says) == ("cannot tell", "no slice is declared")
    losses = losses.copy()
    losses[3] = np.nan
    assert slices(losses, RNG.random(500)).outcome == "fail"


# --- fairness


def test_bands_to_be_treated_alike_keep_the_declared_gap():
    noise = 0.1 * RNG.random(500)
    apart = np.where(np.arange(500) % 2, 0.8, 0.0) + noise
    verdict = fairness.check(evidence(losses=apart))
    assert verdict.outcome == "fail"
    assert verdict.numbers["gap of coast"] == pytest.approx(0.8, abs=0.02)
    assert fairness.check(evidence(losses=noise)).outcome == "pass"


def test_a_gap_wider_than_the_champions_fails_within_the_limit_too():
    champion = RNG.random(500)
    wider = champion + np.where(np.arange(500) % 2, 0.2, 0.0)
    verdict = fairness.check(evidence(losses=wider, champion_losses=champion, champion="version 1"))
    assert (verdict.outcome, verdict.says.endswith("wider beyond chance")) == ("fail", True)
    same = fairness.check(evidence(losses=champion, champion_losses=champion))
    assert same.outcome == "pass"


def test_a_gap_over_the_limit_by_no_more_than_chance_is_not_told():
    noisy = np.where(np.arange(500) % 2, 0.55, 0.0) + RNG.normal(0, 2, 500) ** 2
    noisy[1::2] += 0.55 - (noisy[1::2].mean() - noisy[::2].mean())
    assert fairness.check(evidence(losses=noisy)).outcome == "cannot tell"
    assert fairness.check(evidence(bands=())).outcome == "cannot tell"
    assert fairness.check(evidence(losses=np.full(500, np.nan))).outcome == "fail"


# --- drift


def drifted(losses: Any, champion: Any, answers: tuple[float, float] = (0.0, 5.0)) -> Verdict:
    perturbed = {"rooms moved": Paired(np.asarray(losses), champion, answers)}
    return withstands_drift.check(evidence(perturbed=perturbed, champion="version 1"))


def test_a_model_whose_error_grows_more_than_half_as_much_again_fails():
    champion = RNG.random(500)
    assert drifted(champion * 1.45, champion).outcome == "pass"
    verdict = drifted(champion * 1.8, champion)
    assert (verdict.outcome, "rooms moved: mean loss" in verdict.says) == ("fail", True)


@pytest.mark.parametrize("answers", [(-26.0, 5.0), (0.0, 31.0), (np.nan, np.nan), (0.0, np.inf)])
def test_answers_that_run_away_fail_without_a_champion_too(answers):
    verdict = drifted(RNG.random(500), None, answers)
    assert verdict.outcome == "fail"
    assert "allowed -25 to 30" in verdict.says
    json.dumps(verdict.numbers, allow_nan=False)


# --- size and latency


def test_a_model_over_its_budget_fails_unless_the_champion_is_too():
    assert within_budget.check(SOUND).outcome == "pass"
    for cost in (Cost(51_000_000, 20.0), Cost(1_000_000, 1_001.0)):
        assert within_budget.check(evidence(cost=cost)).outcome == "fail"
        known = evidence(cost=cost, champion_cost=Cost(40_000_000, 700.0), champion="version 1")
        assert within_budget.check(known).outcome == "pass"
    assert "1 MB, allowed 50; 20 µs a row, allowed 1000" in within_budget.check(SOUND).says


# --- signature


def changed(part: str, **changes: Any) -> list[str]:
    new = json.loads(json.dumps(SIGNATURE))
    (new["target"] if part == "target" else new["fields"][0]).update(changes)
    return same_signature.breaks(SIGNATURE, new)


def test_what_a_client_would_stumble_over_is_named():
    assert changed("field") == []
    assert changed("field", low=31.0, high=43.0) == []
    assert changed("field", low=33.0) == ["latitude is narrower: 33 to 42.5, was 32 to 42.5"]
    assert changed("field", unit="radians") == ["latitude is in radians, was in degrees north"]
    assert changed("target", unit="euros") == ["the target's unit is euros, was dollars"]
    assert changed("target", labels=("dear", "cheap")) == [
        "the target's labels is dear, cheap, was cheap, dear"
    ]
    assert changed("field", name="lat") == [
        "the field latitude is gone",
        "the field lat is new, and required",
    ]

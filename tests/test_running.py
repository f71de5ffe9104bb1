"""A judgement in running sums: the same as over whole arrays, honest, and taken up again."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from mlops.improve import sequential
from mlops.improve.running import POINTS_GROW, Arms, Label, Paired, Trial
from mlops.improve.sequential import FIRST_LOOK, FIRST_LOOK_OF_ARM, paired, unpaired

RUNS, LABELS, PAGE = 200, 1000, 250
TOO_MANY = 19
"""Of 200 runs at 5 %, that many or more would be a one in 200 accident."""


def pairs(differences: np.ndarray) -> list[Label]:
    return [Label(60.0 * n, "", 1.0, 1.0 + d) for n, d in enumerate(differences.tolist())]


def arms(
    losses: np.ndarray, challenger: np.ndarray, clients: np.ndarray, share: float = 0.5
) -> list[Label]:
    return [
        Label(60.0 * n, str(client), None if other else loss, loss if other else None, share)
        for n, (loss, other, client) in enumerate(
            zip(losses.tolist(), challenger.tolist(), clients.tolist(), strict=True)
        )
    ]


def tried(labels: list[Label], mode: str = "shadow", alpha: float = 0.05) -> Trial:
    """Take labels as the shadow does: a page at a time, kept as JSON in between."""
    trial, totals = Trial.begin(mode, alpha), {}  # type: ignore[arg-type, var-annotated]
    for start in range(0, len(labels), PAGE):
        trial = Trial.of_json(json.loads(json.dumps(trial.as_json(), allow_nan=False)))
        trial.take(labels[start : start + PAGE], totals)
    return trial


def told(trials: list[Trial]) -> int:
    return sum(trial.decided is not None for trial in trials)


# --- the same as over whole arrays


def test_paired_sums_say_after_each_label_what_the_whole_array_says():
    values = np.random.default_rng(0).normal(3.0, 2.0, 700)
    sums, labels = Paired(), pairs(values)
    parts = [sums.add(labels[start : start + 130], {}, 0.05) for start in range(0, 700, 130)]
    for name in ("mean", "low", "high"):
        found = np.concatenate([getattr(part, name) for part in parts])
        assert np.allclose(found, getattr(paired(values), name), rtol=1e-9)


def test_arms_of_clients_with_one_label_each_say_what_the_whole_array_says():
    rng = np.random.default_rng(1)
    losses, challenger = rng.normal(50, 2, 1500) ** 2, rng.random(1500) < 0.5
    sums, totals, labels = Arms(), {}, arms(losses, challenger, np.arange(1500))
    parts = [sums.add(labels[start : start + 200], totals, 0.05) for start in range(0, 1500, 200)]
    whole = unpaired(losses, challenger)
    assert np.isfinite(whole.low).any()
    for name in ("mean", "low", "high"):
        found = np.concatenate([getattr(part, name) for part in parts])
        # Before both arms have a label, a mean is none.
        assert np.allclose(found[10:], getattr(whole, name)[10:], rtol=1e-6)
    assert sums.units == (int((~challenger).sum()), int(challenger.sum()))


def test_a_trial_that_is_kept_and_taken_up_again_goes_on_as_if_it_had_not_been():
    labels = pairs(np.random.default_rng(2).normal(-0.1, 1, 900))
    whole = Trial.begin("shadow", 0.05)
    whole.take(labels, {})
    parts = tried(labels)
    assert parts.decided is not None
    assert parts.decided == pytest.approx(whole.decided)
    assert [one.labels for one in parts.series] == [one.labels for one in whole.series]
    assert len(parts.series) < math.log(900, POINTS_GROW)


# --- honest, through all that a label goes through


def equal_pairs(seed: int) -> list[Label]:
    rng = np.random.default_rng(seed)
    noise = rng.standard_t(5, LABELS).clip(-5, 5)
    mine, other = (rng.normal(0, 0.3, LABELS).clip(-1, 1) for _ in range(2))
    return pairs((noise + mine) ** 2 - (noise + other) ** 2)


def equal_arms(seed: int) -> list[Label]:
    """Clients with a level of their own, of ten labels each: no independent draws."""
    rng = np.random.default_rng(seed)
    clients = rng.integers(0, LABELS // 2, 3 * LABELS)
    level, other = rng.exponential(1.0, LABELS // 2) ** 2, rng.random(LABELS // 2) < 0.5
    return arms(level[clients] * rng.chisquare(3, len(clients)), other[clients], clients)


def test_of_equal_models_few_trials_are_told_and_a_peeked_t_test_would_tell_most(monkeypatch):
    assert told([tried(equal_pairs(seed)) for seed in range(RUNS)]) < TOO_MANY
    monkeypatch.setattr(
        sequential, "boundary", lambda labels, alpha, tuned_for: 1.96 / np.sqrt(labels)
    )
    assert told([tried(equal_pairs(seed)) for seed in range(60)]) > 60 * 0.25


def test_labels_of_one_client_are_no_independent_draws():
    """To take them for such, one label as good as the next, tells of equal arms too often."""
    runs = [equal_arms(seed) for seed in range(60)]
    assert told([tried(labels, "ab") for labels in runs]) <= 7  # 5 % of 60, and chance
    apart = []
    for labels in runs:
        losses = np.array(
            [one.champion if one.challenger is None else one.challenger for one in labels]
        )
        found = unpaired(losses, np.array([one.challenger is not None for one in labels]))
        apart.append(((found.low > 0) | (found.high < 0)).any())
    assert sum(apart) > 7


def test_a_share_that_changes_does_not_mix_up_time_and_model():
    """Losses are doubled in the second half, when the challenger has nine clients of ten."""
    rng, n = np.random.default_rng(3), 4_000
    half = n // 2
    share = np.repeat([0.1, 0.9], half)
    losses = rng.exponential(1.0, n) * np.repeat([1.0, 2.0], half)
    other = rng.random(n) < share
    labels = [
        one._replace(share=float(at))
        for one, at in zip(arms(losses, other, np.arange(n)), share, strict=True)
    ]
    trial = tried(labels, "ab")
    assert trial.decided is None
    assert losses[other].mean() - losses[~other].mean() > 0.5  # which it is not taken for
    assert abs(trial.mean) < 0.2


# --- a verdict, and what it is taken with


def test_a_better_challenger_is_told_and_the_verdict_stays():
    rng = np.random.default_rng(4)
    gain = pairs(np.concatenate([rng.normal(-0.5, 1, 400), rng.normal(2, 1, 800)]))
    trial = tried(gain)
    assert trial.outcome == "better"
    assert trial.decides
    assert trial.decided["labels"] < 400
    assert trial.mean > 0  # though it is not what is known now
    assert trial.judgement().labels == trial.decided["labels"]
    assert "better: mean loss -" in trial.says


def test_a_better_arm_is_told():
    rng, n = np.random.default_rng(5), 3_000
    other = rng.random(n) < 0.3
    losses = rng.exponential(1.0, n) - 0.4 * other
    trial = tried(arms(losses, other, rng.integers(0, 2_000, n), 0.3), "ab")
    assert trial.outcome == "better"
    assert trial.counts == [int((~other).sum()), int(other.sum())]


def test_the_forecast_says_how_many_days_it_may_take_and_holds_roughly():
    values = np.random.default_rng(6).normal(-0.1, 1, 3_000)
    early = tried(pairs(values[:300])).judgement()
    assert early.outcome == "cannot tell yet"
    assert early.days == pytest.approx(early.more / (24 * 60), rel=0.02)  # a label a minute
    decided = tried(pairs(values)).decided["labels"]
    assert decided / 3 < early.labels + early.more < 3 * decided


def test_too_few_clients_are_told_of():
    rng = np.random.default_rng(7)
    clients = rng.integers(0, 30, 3_000)  # though they have a hundred labels each
    trial = tried(arms(rng.random(3_000), clients % 2 > 0, clients), "ab")
    assert trial.outcome == "cannot tell yet"
    assert f"(15 and 15 clients of the arms; {FIRST_LOOK_OF_ARM} of each are needed)" in trial.says
    assert trial.judgement().more >= 3_000 * 400 / 30 - 3_000
    few = tried(pairs(rng.random(FIRST_LOOK - 1) - 9))
    assert few.judgement().low == -math.inf
    assert "49 labels, too few to look at" in few.says
    assert "nothing points either way" not in few.says
    assert Trial.begin("ab", 0.05).judgement().days == math.inf


def test_a_sample_ratio_that_is_off_takes_the_verdict_away_for_good():
    rng = np.random.default_rng(8)
    trial = tried(pairs(rng.normal(-1, 1, 300)))
    trial.mode = "ab"
    trial.see(0, ["champion", "challenger"] * 100, [0.5])
    assert trial.outcome == "better"
    trial.see(1, ["champion"] * 60, [0.5, 0.5])
    assert trial.outcome == "cannot tell"
    assert not trial.decides
    assert "clients did not go where they should" in trial.says
    trial.see(1, ["challenger"] * 60, [0.5, 0.5])
    assert trial.outcome == "cannot tell"


def test_predictions_without_truth_are_told_of_and_many_keep_it_from_deciding():
    trial = tried(pairs(np.random.default_rng(9).normal(-1, 1, 300)))
    trial.left_out = 10
    assert trial.decides
    trial.left_out = 30
    assert "9.1% of the predictions had no truth in time" in trial.says
    assert trial.outcome == "better"
    assert not trial.decides
    trial.left_out, trial.failed = 0, 1
    assert not trial.decides

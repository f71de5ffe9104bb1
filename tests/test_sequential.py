"""Verdicts that may be looked at after every label: honest when equal, able when not."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks import sequential as simulated
from mlops.improve.sequential import (
    FIRST_LOOK,
    FIRST_LOOK_OF_ARM,
    boundary,
    bounded,
    complete,
    judge,
    labels_needed,
    paired,
    sample_ratio,
    unpaired,
)

RNG = np.random.default_rng(0)
RUNS, LABELS = 300, 1500


# --- honest, and able


@pytest.mark.parametrize("shape", simulated.SHAPES, ids=lambda shape: shape.name)
def test_of_equal_models_watched_after_every_label_few_get_a_verdict(shape):
    asymptotic = simulated.same_rows(shape, "asymptotic", 0.0, RUNS, LABELS)
    # Of 300 runs at 5 %, 25 or more would be a one in 200 accident.
    assert (asymptotic.better + asymptotic.worse) * RUNS < 25
    if shape.bounds:
        exact = simulated.same_rows(shape, "empirical Bernstein", 0.0, RUNS, LABELS)
        assert exact.better + exact.worse <= 0.05
    peeked = simulated.same_rows(shape, "peeked t-test", 0.0, RUNS, LABELS)
    assert peeked.better + peeked.worse > 0.25  # the fault that the others do not have


def test_a_better_challenger_is_found_and_sooner_the_better_it_is():
    squared = simulated.SHAPES[1]
    found = [simulated.same_rows(squared, "asymptotic", g, 100, LABELS) for g in (0.2, 0.5)]
    assert min(one.better for one in found) > 0.95
    assert found[1].delay < found[0].delay < LABELS / 2
    assert max(one.worse for one in found) < 0.03


@pytest.mark.parametrize("share", [0.5, 0.1])
def test_two_arms_are_compared_as_honestly(share):
    equal = simulated.two_arms(0.0, share, RUNS, 3 * LABELS)
    assert (equal.better + equal.worse) * RUNS < 25
    assert simulated.two_arms(0.5, share, 50, 3 * LABELS).better > 0.95


def test_truth_that_is_late_where_the_challenger_errs_misleads_only_those_who_do_not_wait():
    as_it_comes = simulated.delayed(False, 100, LABELS)
    assert as_it_comes.better > 0.8
    waiting = simulated.delayed(True, RUNS, LABELS)
    assert (waiting.better + waiting.worse) * RUNS < 25


def test_only_predictions_before_the_first_missing_truth_are_compared():
    assert complete(np.array([True, True, False, True])) == 2
    assert complete(np.array([False, True])) == 0
    assert complete(np.ones(3, bool)) == 3
    assert complete(np.array([], bool)) == 0


# --- the sequences


def test_the_boundary_is_the_one_of_the_mixture_martingale():
    # Crossing it means that exp(r S^2 / 2(nr + 1)) / sqrt(nr + 1) has reached 1 / alpha.
    alpha, labels = 0.05, 400
    logarithm = -2 * math.log(alpha)
    r = (logarithm + math.log(logarithm + 1)) / 1000
    total = labels * float(boundary(labels, alpha, 1000))
    reached = math.exp(r * total**2 / (2 * (labels * r + 1))) / math.sqrt(labels * r + 1)
    assert reached == pytest.approx(1 / alpha)


def test_a_sequence_is_wider_than_an_interval_and_closes_in():
    values = RNG.normal(0.3, 1, 4000)
    found = paired(values)
    assert np.isinf(found.low[: FIRST_LOOK - 1]).all()
    width = found.high - found.low
    assert (width[FIRST_LOOK:] > 2 * 1.96 / np.sqrt(np.arange(FIRST_LOOK, 4000)) * 0.8).all()
    assert width[-1] < width[FIRST_LOOK] / 4
    assert found.low[-1] < 0.3 < found.high[-1]
    assert found.mean == pytest.approx(np.cumsum(values) / np.arange(1, 4001))


def test_large_losses_do_not_cancel_the_spread():
    values = RNG.normal(0, 1, 500)
    near, far = paired(values), paired(values + 1e8)
    assert (far.high - far.low)[100:] == pytest.approx((near.high - near.low)[100:], rel=1e-3)


def test_equal_answers_are_no_labels_to_judge_by():
    values = np.zeros(5000)
    values[::100] = -1.0
    assert np.isinf(paired(values).low[: 100 * (FIRST_LOOK - 1)]).all()
    assert np.isfinite(paired(values).low[-1])


def test_two_arms_before_either_has_enough_say_nothing():
    challenger = np.zeros(2000, bool)
    challenger[:: 2000 // (FIRST_LOOK_OF_ARM - 1)] = True
    challenger[: challenger.sum() - FIRST_LOOK_OF_ARM + 1] = False
    assert np.isinf(unpaired(RNG.random(2000), challenger).high).all()
    half = np.arange(2000) % 2 == 0
    losses = RNG.random(2000)
    found = unpaired(losses - half, half)
    assert found.mean[-1] == pytest.approx(losses[half].mean() - 1 - losses[~half].mean())
    assert found.high[-1] < 0


def test_a_bounded_sequence_holds_from_the_first_label_on_and_within_the_bounds():
    found = bounded(RNG.beta(2, 5, 3000) * 4 - 1, -1.0, 3.0)
    mean = 2 / 7 * 4 - 1
    assert ((found.low <= mean) & (mean <= found.high)).all()
    assert found.low.min() >= -1
    assert found.high.max() <= 3
    assert found.high[-1] - found.low[-1] < 0.3


# --- what is said


def test_a_forecast_names_the_days_at_this_rate():
    values = RNG.normal(-0.1, 1, 300)
    values += -0.1 - values.mean()
    judged = judge(values, labels_per_day=20)
    assert judged.outcome == "cannot tell yet"
    needed = labels_needed(-0.1, float(np.std(values)))
    assert judged.more == needed - 300
    assert judged.days == pytest.approx(judged.more / 20)
    assert f"about {math.ceil(judged.days)} more days at this rate" in judged.says
    then = paired(np.resize(values, int(needed) + 300))
    assert then.high[-1] < 0  # and so it comes


def test_a_decided_comparison_says_which_way_and_an_even_one_that_nothing_points_either_way():
    assert judge(RNG.normal(-1, 1, 200), labels_per_day=1).says.startswith("better: mean loss -")
    assert judge(RNG.normal(1, 1, 200), labels_per_day=1).outcome == "worse"
    even = judge(np.tile([1.0, -1.0], 100), labels_per_day=1)
    assert (even.outcome, even.days) == ("cannot tell yet", math.inf)
    assert "nothing points either way" in even.says
    assert judge(np.array([]), labels_per_day=5).outcome == "cannot tell yet"
    assert judge(-np.ones(10), labels_per_day=5).more >= FIRST_LOOK - 10


# --- sample ratio


def test_a_ratio_that_is_as_meant_raises_no_alarm_and_another_does():
    half = {"a": 0.5, "b": 0.5}
    assert sample_ratio([{"a": 510, "b": 490}], [half]) < 1
    assert sample_ratio([{"a": 600, "b": 400}], [half]) > 1000
    alarms, _ = simulated.sample_ratio(0.5, RUNS, LABELS)
    assert alarms <= 2 / RUNS
    found, delay = simulated.sample_ratio(0.6, 100, LABELS)
    assert found > 0.95
    assert delay < LABELS


def test_the_closed_form_is_the_product_over_clients():
    ones = RNG.random(200) < 0.4
    evidence, seen = 1.0, {"a": 0, "b": 0}
    for one in ones:
        arm = "a" if one else "b"
        evidence *= (1 + seen[arm]) / (2 + sum(seen.values())) / {"a": 0.3, "b": 0.7}[arm]
        seen[arm] += 1
    assert sample_ratio([seen], [{"a": 3, "b": 7}]) == pytest.approx(evidence)


def test_weights_may_change_and_each_stretch_is_held_against_its_own():
    counts = [{"a": 900, "b": 100}, {"a": 500, "b": 500}]
    weights = [{"a": 9, "b": 1}, {"a": 1, "b": 1}]
    assert sample_ratio(counts, weights) < 1
    assert sample_ratio(counts, weights[::-1]) > 1000
    with pytest.raises(ValueError, match="an arm of no weight"):
        sample_ratio([{"a": 5, "c": 1}], [{"a": 1.0, "c": 0.0}])

"""Scores and their intervals from sums; degradation found beyond chance, and not within it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, fisher_exact
from sklearn.metrics import (
    accuracy_score,
    f1_score,
    mean_absolute_error,
    mean_squared_error,
    r2_score,
)

from mlops.monitor.degradation import degradation
from mlops.monitor.quality import ALL, Key, Sums, contributions, measure, scores, total
from mlops.records import Prediction
from mlops.usecases.housing import HOUSING
from mlops.usecases.iris import IRIS

LABELS = IRIS.target.labels


def of_numbers(predicted, actual, place=ALL) -> list[Sums]:
    added = contributions(np.array(predicted), np.array(actual), numbers=True)
    return [Sums(Key(0, 1, *place, "", ""), added.sum(axis=0))]


def of_classes(predicted, actual, place=ALL) -> list[Sums]:
    """Class numbers; one sum for each pair."""
    found = []
    for a, p in sorted(set(zip(actual, predicted, strict=True))):
        n = int(np.sum((np.array(actual) == a) & (np.array(predicted) == p)))
        values = np.zeros(10)
        values[:3] = n, n * (a != p), n * (a != p)
        found.append(Sums(Key(0, 1, *place, LABELS[a], LABELS[p]), values))
    return found


def noisy(n: int, seed: int, spread: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and actual values with long-tailed errors, as house prices have them."""
    chance = np.random.default_rng(seed)
    actual = chance.gamma(4, 0.5, n)
    return actual + spread * chance.standard_t(9, n) * (0.5 + actual / 4), actual


def test_scores_from_sums_are_those_of_scikit_learn():
    predicted, actual = noisy(500, 0)
    parts = [of_numbers(predicted[rows], actual[rows])[0] for rows in np.split(np.arange(500), 5)]
    found = scores(HOUSING, parts)
    assert found["mse"].value == pytest.approx(mean_squared_error(actual, predicted))
    assert found["rmse"].value == pytest.approx(mean_squared_error(actual, predicted) ** 0.5)
    assert found["mae"].value == pytest.approx(mean_absolute_error(actual, predicted))
    assert found["r2_score"].value == pytest.approx(r2_score(actual, predicted))


PAIRS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=60)


@settings(max_examples=60, deadline=None)
@given(PAIRS)
def test_scores_of_classes_from_sums_are_those_of_scikit_learn(pairs):
    actual, predicted = zip(*pairs, strict=True)
    found = scores(IRIS, of_classes(predicted, actual))
    assert found["accuracy"].value == pytest.approx(accuracy_score(actual, predicted))
    expected = f1_score(actual, predicted, average="macro", zero_division=0)
    assert found["f1_score"].value == pytest.approx(expected)


def test_the_interval_of_accuracy_is_wilsons():
    actual = [0] * 40
    found = scores(IRIS, of_classes([0] * 37 + [1] * 3, actual))["accuracy"]
    bounds = binomtest(37, 40).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((bounds.low, bounds.high))


def test_below_thirty_truths_there_is_no_interval():
    few = scores(HOUSING, of_numbers(*noisy(29, 0)))
    assert all(score.low is None and score.high is None for score in few.values())
    assert scores(HOUSING, of_numbers(*noisy(30, 0)))["mse"].low is not None


def test_r2_is_left_out_where_the_actual_values_do_not_differ():
    assert "r2_score" not in scores(HOUSING, of_numbers([1.0, 2.0] * 20, [3.0] * 40))
    assert scores(HOUSING, []) == {}


@pytest.mark.parametrize("name", ["mse", "mae", "r2_score"])
def test_intervals_of_numbers_hold_the_true_score_as_often_as_they_say(name):
    truth = scores(HOUSING, of_numbers(*noisy(2_000_000, 1)))[name].value
    intervals = [scores(HOUSING, of_numbers(*noisy(400, seed)))[name] for seed in range(1000)]
    held = np.mean([one.low <= truth <= one.high for one in intervals])
    assert 0.91 < held < 0.98


def test_the_interval_of_f1_holds_the_true_score_as_often_as_it_says():
    share = np.array([[0.3, 0.02, 0.01], [0.04, 0.25, 0.05], [0.0, 0.08, 0.25]])
    chance = np.random.default_rng(0)

    def sums(counts):
        return [
            Sums(Key(0, 1, *ALL, LABELS[a], LABELS[p]), np.r_[counts[a, p], np.zeros(9)])
            for a in range(3)
            for p in range(3)
        ]

    truth = scores(IRIS, sums(share * 1e9))["f1_score"].value
    drawn = [chance.multinomial(300, share.ravel()).reshape(3, 3) for _ in range(1000)]
    held = [s.low <= truth <= s.high for s in (scores(IRIS, sums(d))["f1_score"] for d in drawn)]
    assert 0.92 < np.mean(held) < 0.98


# --- degradation

TEST = of_numbers(*noisy(4000, 7))


def verdict(window, alpha=0.01, sealed=TEST, use_case=HOUSING):
    return degradation(use_case, sealed, window, alpha)[0]


def test_a_model_that_is_as_it_was_is_seldom_called_worse():
    looks = [verdict(of_numbers(*noisy(300, seed))).verdict for seed in range(100, 1100)]
    assert set(looks) <= {"ok", "alarm"}
    assert looks.count("alarm") <= 20  # of 1,000, of which 1 % may be


def test_a_planted_degradation_is_found_with_its_numbers():
    found = verdict(of_numbers(*noisy(300, 3, spread=0.8)))
    assert found.verdict == "alarm"
    assert found.numbers["loss"] > 2 * found.numbers["test_loss"]
    assert found.numbers["p"] < found.numbers["alpha"] == 0.01
    assert "r2_score" in found.says


def test_one_band_that_fell_is_found_while_all_rows_together_are_well():
    bay = ("region", "bay area")
    window = [*of_numbers(*noisy(5000, 4)), *of_numbers(*noisy(100, 5, spread=1.2), bay)]
    sealed = [*TEST, *of_numbers(*noisy(800, 6), bay)]
    everything, band = degradation(HOUSING, sealed, window, 0.01)
    assert everything.verdict == "ok"
    assert (band.subject, band.verdict) == ("region bay area", "alarm")
    assert band.numbers["alpha"] == 0.005


def test_too_few_truths_and_a_bundle_without_test_losses_cannot_tell():
    few = verdict(of_numbers(*noisy(29, 3, spread=9)))
    assert (few.verdict, few.numbers["rows"]) == ("cannot tell", 29)
    assert "too few" in few.says
    assert verdict([]).verdict == "cannot tell"
    old = verdict(of_numbers(*noisy(300, 3)), sealed=None)
    assert old.verdict == "cannot tell"
    assert "mlops train housing" in old.says
    new_band = degradation(HOUSING, TEST, of_numbers(*noisy(90, 1), ("region", "north")), 0.01)[1]
    assert "0 sealed test rows" in new_band.says


@pytest.mark.parametrize("wrong", [0, 1, 5, 12])
def test_classes_are_compared_by_fishers_exact_test(wrong):
    window = of_classes([1] * wrong + [0] * (40 - wrong), [0] * 40)
    sealed = of_classes([0] * 29 + [1], [0] * 30)
    found = verdict(window, sealed=sealed, use_case=IRIS)
    exact = fisher_exact([[wrong, 40 - wrong], [1, 29]], alternative="greater")
    assert found.numbers["p"] == pytest.approx(exact.pvalue)
    assert found.verdict == ("alarm" if exact.pvalue < 0.01 else "ok")


# --- slices


def test_the_bands_of_a_slice_are_the_first_whose_limits_a_row_keeps():
    region, income = HOUSING.slices
    assert region.band({"latitude": 37.8, "longitude": -122.3}) == "bay area"
    assert region.band({"latitude": 34.05, "longitude": -118.2}) == "los angeles"
    assert region.band({"latitude": 40.0, "longitude": -122.3}) == "north"
    assert region.band({"latitude": 33.0, "longitude": -117.1}) == "south"
    assert [income.band({"median_income": value}) for value in (2.49, 2.5, 5.0)] == [
        "low",
        "middle",
        "high",
    ]


@pytest.mark.parametrize("use_case", [HOUSING, IRIS], ids=lambda one: one.name)
def test_every_slice_speaks_of_fields_and_every_row_is_in_one_band_of_each(use_case):
    for one in use_case.slices:
        assert {field for limits in one.bands.values() for field in limits} <= set(use_case.fields)
    labels = use_case.target.labels
    rows = [
        Prediction(
            f"p{number}",
            "2026-03-01T12:00:00.000000+00:00",
            json.dumps({feature.name: feature.low + number for feature in use_case.features}),
            labels[0] if labels else 1.0,
            None,
            None,
            1,
            "b",
        )
        for number in range(9)
    ]
    sums = measure(use_case, rows, [labels[0] if labels else 2.0] * 9, lambda bundle, rows: None)
    for name in ("", *(one.name for one in use_case.slices)):
        assert total([one for one in sums if one.key.slice == name])[0] == 9

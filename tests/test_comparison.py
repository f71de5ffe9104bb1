"""Candidates beside each other: paired folds, the corrected interval, and ties called ties."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from mlops.build.comparison import compare, paired_interval
from mlops.loop.runs import standings
from mlops.usecases import USE_CASES

IRIS = USE_CASES["iris"]


def run(run_id: str, scores: list[float], start: int = 1, **more):
    return {
        "run_id": run_id,
        "candidate": more.pop("candidate", run_id),
        "status": more.pop("status", "FINISHED"),
        "start_time": start,
        "metrics": {"accuracy": 0.9},
        "tags": {"data_fingerprint": "a", "held_out_fingerprint": "b", **more},
        "commit": "c",
        "fold_scores": scores,
    }


def test_the_interval_is_that_of_nadeau_and_bengio_worked_by_hand():
    differences = [-0.01, -0.03, -0.02, -0.04, 0.0]
    mean, low, high = paired_interval([0.5 + d for d in differences], [0.5] * 5)
    # s² = 0.00025; (1/5 + 1/4) s² = 0.0001125; t(0.975, 4) = 2.776445
    assert mean == pytest.approx(-0.02)
    assert high - mean == pytest.approx(2.776445 * math.sqrt(0.0001125), rel=1e-6)
    assert mean - low == pytest.approx(high - mean)


def test_it_is_wider_than_the_plain_paired_interval_by_what_folds_share():
    random = np.random.default_rng(0)
    one, other = random.normal(size=(2, 5))
    _, low, high = paired_interval(list(one), list(other))
    plain = stats.ttest_rel(one, other).confidence_interval()
    assert (high - low) / (plain.high - plain.low) == pytest.approx(1.5)  # √(1 + 5/4)


def test_pairing_finds_what_spread_alone_would_hide():
    hard_and_easy_folds = [0.5, 0.9, 0.6, 0.8, 0.7]
    always_a_little_worse = [s - 0.01 + 0.001 * n for n, s in enumerate(hard_and_easy_folds)]
    found = compare({"a": hard_and_easy_folds, "b": always_a_little_worse})
    assert found["b"].std > 10 * abs(found["b"].difference)
    assert found["b"].verdict == "worse"


def test_a_tie_is_called_a_tie():
    found = compare({"a": [0.9, 0.8, 0.9, 0.8, 0.9], "b": [0.8, 0.9, 0.8, 0.9, 0.85]})
    assert (found["a"].verdict, found["b"].verdict) == ("best", "tie")
    assert found["b"].low < 0 < found["b"].high
    assert found["b"].difference == pytest.approx(-0.01)


def test_equals_tie_and_the_first_is_best():
    found = compare({"a": [0.9] * 5, "b": [0.9] * 5})
    assert [one.verdict for one in found.values()] == ["best", "tie"]


def test_one_fold_cannot_tell():
    found = compare({"a": [0.9], "b": [0.1]})
    assert found["b"].verdict == "cannot tell"
    assert math.isnan(found["b"].low)


def test_an_interval_covers_the_truth_about_as_often_as_it_says():
    """Equal candidates whose folds share noise as folds do: called worse seldom."""
    random = np.random.default_rng(1)
    called_worse = 0
    for _ in range(400):
        # Correlation n_test / n_train over itself plus one: what the correction assumes.
        shared = random.normal(size=1) * math.sqrt(0.2)
        differences = shared + random.normal(size=5) * math.sqrt(0.8)
        _, low, high = paired_interval(list(differences), [0.0] * 5)
        called_worse += not low <= 0 <= high
    assert called_worse / 400 == pytest.approx(0.05, abs=0.03)


def test_folds_of_different_numbers_are_not_compared():
    with pytest.raises(ValueError, match=r"longer|shorter"):
        compare({"a": [0.9, 0.8, 0.9], "b": [0.7, 0.8]})


# --- runs


def test_the_newest_run_of_each_candidate_stands_and_every_run_on_request():
    found = [
        run("old", [0.99] * 5, 1, candidate="x"),
        run("new", [0.7, 0.71, 0.7, 0.72, 0.7], 2, candidate="x"),
        run("other", [0.9, 0.91, 0.9, 0.92, 0.93], 1),
        run("broken", [], 3, candidate="x", status="FAILED"),
    ]
    assert [one["run_id"] for one in standings(IRIS, found, [])] == ["other", "new"]
    every = standings(IRIS, found, [], every=True)
    assert [one["run_id"] for one in every] == ["old", "other", "new", "broken"]
    assert [one["verdict"] for one in every] == ["best", "worse", "worse", "no folds"]


def test_runs_on_other_data_are_listed_but_not_compared():
    found = [
        run("a", [0.7] * 5, 3),
        run("b", [0.9] * 5, 2, data_fingerprint="older"),
        run("c", [0.9] * 5, 2, held_out_fingerprint="reordered"),
    ]
    listed = {one["run_id"]: one for one in standings(IRIS, found, [])}
    assert listed["a"]["verdict"] == "best"
    for other in ("b", "c"):
        assert listed[other]["verdict"] == "other data"
        assert listed[other]["difference"] is None

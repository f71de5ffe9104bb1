"""The estimate without truths: it follows the inputs, is graded by truths, and mutes itself."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mlops.build.risk import learn_cells
from mlops.monitor.estimate import (
    ROWS_OF_A_GRADE,
    cell_of,
    estimate,
    features,
    grades,
    measure_cells,
    standing,
)
from mlops.monitor.performance import Sealed, estimated
from mlops.monitor.quality import RISK, Key, Sums
from mlops.records import Prediction
from mlops.usecases.housing import HOUSING
from mlops.usecases.iris import IRIS

HOUR = 3600


def world(n, seed, *, low=0.0, high=1.0, shift=0.0):
    """Inputs of one column that says how uncertain a row is, and squared errors.

    `shift` is added to every error: the relation of inputs and truth has changed.
    """
    chance = np.random.default_rng(seed)
    x = chance.uniform(low, high, n)
    return x[:, None], (chance.normal(shift, 0.1 + x)) ** 2


def sealed_world(n=6000, seed=1):
    rows, losses = world(n, seed)
    tree, choosing = learn_cells(rows, losses)
    measuring = np.delete(np.arange(n), choosing)
    cells = cell_of(tree, rows[measuring])
    return {**tree, **measure_cells(cells, losses[measuring], len(tree["column"]), least=0)}


SEALED = sealed_world()


def truths(hour, rows, losses, sealed=SEALED):
    """What the log has kept when these truths have come."""
    cells = cell_of(sealed, rows)
    found = []
    for cell in np.unique(cells):
        values = np.zeros(10)
        here = losses[cells == cell]
        values[:3] = len(here), here.sum(), (here**2).sum()
        found.append(Sums(Key(hour * HOUR, 1, RISK, str(cell), "", ""), values))
    return found


def history(worlds):
    """Truths of one world each hour."""
    return [one for hour, drawn in enumerate(worlds, 1) for one in truths(hour, *drawn)]


def test_every_row_falls_into_the_leaf_that_scikit_learn_gives_it():
    from sklearn.tree import DecisionTreeRegressor

    chance = np.random.default_rng(0)
    rows = chance.normal(size=(3000, 4)).astype("float32").astype(float)
    losses = (rows[:, 0] > 0) * rows[:, 2] ** 2 + chance.random(3000)
    tree, choosing = learn_cells(rows, losses)
    assert len(choosing) == 1500
    again = DecisionTreeRegressor(max_leaf_nodes=24, min_samples_leaf=30, random_state=42)
    again.fit(rows[choosing], losses[choosing])
    assert (cell_of(tree, rows) == again.apply(rows)).all()


def test_cells_are_measured_on_rows_that_did_not_choose_them():
    """Pure noise: honest cells show no more spread of their means than chance gives."""
    chance = np.random.default_rng(3)
    rows, losses = chance.random((4000, 5)), chance.exponential(size=4000)
    tree, choosing = learn_cells(rows, losses)
    measuring = np.delete(np.arange(4000), choosing)

    def spread(those):
        cells = cell_of(tree, rows[those])
        found = measure_cells(cells, losses[those], len(tree["column"]), least=0)
        counts = np.bincount(cells, minlength=len(tree["column"]))
        means = np.array(found["loss"]) / found["rows"]
        overall = losses[those].mean()
        return np.mean(((means - overall) ** 2 * counts)[counts > 0])

    assert spread(measuring) < 2.5
    assert spread(choosing) > 4


def test_the_estimate_follows_the_inputs_where_they_go():
    easy = estimate(SEALED, cell_of(SEALED, world(500, 5, high=0.3)[0]))
    hard = estimate(SEALED, cell_of(SEALED, world(500, 5, low=0.7)[0]))
    for found, expected in ((easy, 0.07), (hard, 0.91)):  # means of (0.1 + x)^2
        assert abs(found.loss - expected) < 0.1 * expected
        assert found.low < expected < found.high


def test_its_interval_holds_what_is_found_as_often_as_it_says():
    held = []
    for seed in range(400):
        sealed = sealed_world(2000, 10_000 + seed)
        rows, losses = world(300, seed, low=0.2)
        found = estimate(sealed, cell_of(sealed, rows))
        held.append(found.low <= losses.mean() <= found.high)
    assert 0.91 < np.mean(held) < 0.985


def test_fewer_than_thirty_predictions_are_not_estimated():
    assert estimate(SEALED, cell_of(SEALED, world(29, 0)[0])) is None
    assert estimate(SEALED, cell_of(SEALED, world(30, 0)[0])).rows == 30


def test_without_drift_it_is_not_muted():
    muted = 0
    for seed in range(400):
        sums = history(world(150, 1000 * seed + hour) for hour in range(6))
        graded = standing(SEALED, sums)
        assert len(graded.grades) == 5
        muted += graded.muted
    assert muted <= 4  # of 400, of which 0.1 % may be


def test_nor_when_the_inputs_drift_and_their_truths_with_them():
    assert not standing(SEALED, history(world(300, hour, low=0.6) for hour in range(6))).muted


def test_a_planted_concept_drift_mutes_it_and_it_comes_back_when_it_is_right_again():
    well = [world(200, seed) for seed in range(5)]
    drifted = [world(200, 50 + seed, shift=0.8) for seed in range(5)]
    assert not standing(SEALED, history(well)).muted
    graded = standing(SEALED, history(well + drifted[:2]))
    assert graded.muted
    assert graded.z > 5
    assert graded.says.startswith("muted: its last 5 estimates, of 1,000 predictions")
    assert standing(SEALED, history(well + drifted)).muted
    assert not standing(SEALED, history(well + drifted + well)).muted


def test_it_is_graded_only_where_truths_have_come_and_hours_of_few_are_put_together():
    assert standing(SEALED, []).says.startswith("not graded yet")
    few = history(world(40, hour) for hour in range(6))
    found = grades(SEALED, few)
    assert [grade.rows for grade in found] == [120, 120]
    assert [grade.since for grade in found] == [HOUR, 4 * HOUR]
    assert min(grade.rows for grade in found) >= ROWS_OF_A_GRADE


def test_a_cell_that_never_erred_is_not_certain_never_to_err():
    cells, losses = np.repeat([1, 2], 50), np.zeros(100)
    sealed = {
        "column": [0, -1, -1],
        "threshold": [0.5, 0, 0],
        "left": [1, -1, -1],
        "right": [2, -1, -1],
        **measure_cells(cells, losses, 3, least=0.5),
    }
    found = estimate(sealed, cells)
    assert 0 < found.loss < 0.01
    assert found.high > found.loss


@pytest.mark.parametrize("use_case", [HOUSING, IRIS], ids=lambda one: one.name)
def test_cells_divide_fields_and_what_the_answer_says_of_itself(use_case):
    labels = use_case.target.labels
    stated = json.dumps({"setosa": 0.1, "versicolor": 0.7, "virginica": 0.2}) if labels else None
    row = Prediction(
        *("p1", "2026-03-01T12:00:00.000000+00:00"),
        json.dumps({name: float(place) for place, name in enumerate(use_case.fields)}),
        *("versicolor" if labels else 2.5, stated, None, 1, "b"),
    )
    found = features(use_case, [row])[0].tolist()
    assert found == [*map(float, range(len(use_case.fields))), 0.7 if labels else 2.5]


def test_a_bundle_sealed_before_estimates_says_what_to_do():
    found = estimated(HOUSING, None, [], [])
    assert found["state"] == "none"
    assert "mlops train housing" in found["says"]


def test_a_muted_estimate_gives_no_number():
    sums = history(world(200, seed, shift=0.8) for seed in range(3))
    found = estimated(HOUSING, Sealed((), SEALED), sums, [])
    assert (found["state"], found["scores"]) == ("muted", {})
    assert "its last 3 estimates" in found["says"]
    assert len(found["grades"]) == 3


@pytest.mark.slow
def test_on_the_real_table_the_figures_of_the_benchmark_hold(tmp_path):
    from benchmarks import quality as benchmark

    parts, model = benchmark.trained(tmp_path, "GradientBoosting")
    worlds = [benchmark.world(parts, model, seed) for seed in range(3)]
    for seed, one in enumerate(worlds):
        assert benchmark.alarms(one, 300, 0.001, 300, seed=seed) <= 0.01
        assert benchmark.alarms(one, 300, 0.001, 50, factor=0.7, seed=seed) == 1
        assert benchmark.coverage(one, 300, 200, one.every, seed) > 0.88
        assert not any(benchmark.muted(one, [1.0] * 10, 100, seed))
        assert benchmark.muted(one, [1.0] * 5 + [0.6] * 5, 300, seed)[-1]
    assert benchmark.cost(worlds[0], items=500) > 0

"""Features and estimators of our own: what they say, that they see no target of their own row, and
that the exported graph gives the same numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.ensemble import VotingRegressor
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import FeatureUnion, Pipeline
from sklearn.tree import DecisionTreeRegressor
from threadpoolctl import threadpool_limits

from mlops.build.pipeline import ModelInputs
from mlops.errors import TrainingError, UsageError
from mlops.estimators.distilled import Distilled
from mlops.estimators.features import Geography, Neighbours, Quotients, Regions
from mlops.estimators.kernel import Kernel, KernelRegressor
from mlops.estimators.nearby import map_of
from mlops.package.export import to_onnx
from mlops.package.features import AT_ONCE
from mlops.package.model import OnnxModel
from mlops.usecases.accurate_housing import COAST

INPUTS = ("income", "age", "rooms", "east", "north")
KM = (1.0, 1.0)


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    """Rows on a coarse grid, so that many lie in one place and many are as near as each other."""
    random = np.random.default_rng(5)
    about = random.uniform(0.5, 9, (400, 3))
    return np.hstack([about, random.integers(0, 12, (400, 2)) / 2.0])


@pytest.fixture(scope="module")
def target(rows) -> np.ndarray:
    noise = np.random.default_rng(6).normal(0, 0.1, len(rows))
    return rows[:, 0] * 0.4 + np.sin(rows[:, 3]) + rows[:, 4] / 4 + 3 + noise


def neighbours(counts: tuple[int, ...] = (1, 4, 8), **more: Any) -> Neighbours:
    return Neighbours(INPUTS, "east", "north", KM, ("age",), "income", "age", counts, **more)


def geography(**more: Any) -> Geography:
    given = {"turns": (30.0,), "towns": (("A", 1.0, 2.0),), "line": ((0.0, 0.0), (3.0, 4.0))}
    return Geography(INPUTS, "east", "north", 0.0, **{**given, **more})


def kernels(columns: tuple[str, ...] = INPUTS, sample: int = 300, **more: Any) -> KernelRegressor:
    parts = (
        Kernel(1.0, (("income", 2.0), ("east", 1.0), ("north", 1.0))),
        Kernel(0.3, (("east", 0.3), ("north", 0.3))),
    )
    return KernelRegressor(columns, parts, (("income", 0.3),), sample=sample, **more)


def graph_of(model: Any) -> OnnxModel:
    pipeline = Pipeline([("inputs", ModelInputs(INPUTS, INPUTS)), ("model", model)])
    return OnnxModel(to_onnx(pipeline, INPUTS))


def asked_of(rows: np.ndarray) -> np.ndarray:
    """The rows, and others: between them, far from all of them, and with zeros."""
    random = np.random.default_rng(7)
    between = rows + random.normal(0, 0.3, rows.shape)
    far = rows[:50] + np.array([0, 0, 0, 300.0, -200.0])
    nothing = rows[:50] * np.array([1, 1, 0, 1, 1])
    return np.abs(np.vstack([rows, between, far, nothing]))


# --- the graph

UNIONS = {
    "quotients": [("q", Quotients(INPUTS, (("income", "rooms"), ("age", "income"))))],
    "geography": [("g", geography())],
    "turned axes alone": [("g", geography(towns=(), line=()))],
    "neighbours": [("n", neighbours())],
    "regions": [("r", Regions(INPUTS, "east", "north", KM, "income"))],
    "all": [
        ("as they are", "passthrough"),
        ("q", Quotients(INPUTS, (("income", "rooms"),))),
        ("g", geography()),
        ("n", neighbours((1, 2, 32))),
    ],
}


@pytest.mark.parametrize("parts", UNIONS.values(), ids=UNIONS)
def test_the_graph_gives_the_features_to_the_last_bit(parts, rows, target):
    union = FeatureUnion(parts).fit(rows, target)
    asked = asked_of(rows)
    features = union.transform(asked)
    names = [name.split("__", 1)[1] for name in union.get_feature_names_out(INPUTS)]
    assert features.shape == (len(asked), len(names))
    assert np.isfinite(features).all()
    for number in range(features.shape[1]):
        # A tree that asks only about this feature, and about every value of it.
        tree = DecisionTreeRegressor(random_state=0).fit(
            np.where(np.arange(features.shape[1]) == number, features, 0.0)[: len(rows)],
            np.arange(len(rows), dtype=float),
        )
        graph = graph_of(Pipeline([("features", union), ("model", tree)]))
        found = graph.run(asked).prediction
        assert np.array_equal(found, tree.predict(features)), names[number]


def test_the_graph_gives_the_answers_of_an_ensemble_and_of_kernels(rows, target):
    parts = [("as they are", "passthrough"), ("n", neighbours())]
    members = [("tree", DecisionTreeRegressor(max_depth=6)), ("kernels", kernels())]
    model = Pipeline([("f", FeatureUnion(parts)), ("m", VotingRegressor(members, weights=[1, 3]))])
    # Kernels find their columns by name, so the ensemble's features are named first.
    wide = clone(model)
    names = (*INPUTS, *neighbours().get_feature_names_out())
    wide.set_params(m__kernels__columns=names).fit(rows, target)
    asked = asked_of(rows)
    graph = graph_of(wide)
    found = graph.run(asked).prediction
    assert np.abs(found - wide.predict(asked)).max() < 1e-10
    assert len(asked) > 2 * AT_ONCE  # it was answered in parts
    one_by_one = np.concatenate([graph.run(row[None]).prediction for row in asked])
    assert np.abs(one_by_one - found).max() < 1e-10


def test_what_has_no_export_is_refused_by_name(rows, target):
    union = FeatureUnion([("n", neighbours())], transformer_weights={"n": 2.0})
    model = Pipeline([("features", union), ("model", LinearRegression())]).fit(rows, target)
    with pytest.raises(UsageError, match="weights"):
        graph_of(model)


# --- neighbours


def by_hand(rows: np.ndarray, target: np.ndarray, row: np.ndarray, count: int) -> float:
    distance = np.hypot(rows[:, 3] - row[3], rows[:, 4] - row[4])
    nearest = np.argsort(distance, kind="stable")[:count]
    weight = 1 / (distance[nearest] + 0.5)
    return float((target[nearest] * weight).sum() / weight.sum())


def column(transformer: Neighbours, name: str) -> int:
    return transformer.get_feature_names_out().tolist().index(name)


def test_neighbours_are_those_that_a_search_of_all_rows_finds(rows, target):
    transformer = neighbours().fit(rows, target)
    asked = rows[:100] + np.array([0, 0, 0, 0.013, 0.029])  # nothing is as near as another
    found = transformer.transform(asked)[:, column(transformer, "target of 8 nearest")]
    expected = [by_hand(rows, target, row, 8) for row in asked]
    assert found == pytest.approx(expected, abs=1e-12)


def test_a_training_row_is_told_what_the_others_say(rows, target):
    transformer = neighbours()
    found = transformer.fit_transform(rows, target)[:, column(transformer, "target of 4 nearest")]
    for number in range(0, len(rows), 40):
        others = np.delete(np.arange(len(rows)), number)
        expected = by_hand(rows[others], target[others], rows[number], 4)
        assert found[number] == pytest.approx(expected, abs=1e-12)


def test_no_feature_of_a_training_row_hangs_on_its_own_target(rows, target):
    before = neighbours().fit_transform(rows, target)
    changed = target.copy()
    changed[17] *= 1e9
    after = neighbours().fit_transform(rows, changed)
    assert np.array_equal(before[17], after[17])
    assert not np.array_equal(before, after)  # its neighbours are told


def test_too_few_rows_for_so_many_neighbours(rows, target):
    with pytest.raises(TrainingError, match="8 rows have no 8 neighbours each"):
        neighbours().fit(rows[:8], target[:8])


def test_a_map_of_rows_in_one_place_ends(rows):
    places = np.repeat([[1.0, 2.0]], 50, axis=0)
    found = map_of(places, 10, crowd=4, sort=True)
    assert found.rows[found.region(np.array([[1.0, 2.0], [9.0, 9.0]]))].shape == (2, 10)


# --- geography


def test_kilometres_to_a_town_and_to_the_line():
    here = Geography(INPUTS, "east", "north", 35.0, (), (("Los Angeles", -118.2437, 34.0522),))
    san_francisco = np.array([[0, 0, 0, -122.4194, 37.7749]])
    assert here.transform(san_francisco)[0, -1] == pytest.approx(559, rel=0.02)  # on the sphere

    line = Geography(INPUTS, "east", "north", 0.0, (), line=((0.0, 0.0), (0.0, 1.0)))
    far = line.transform(np.array([[0, 0, 0, 2.0, 0.5], [0, 0, 0, 0.0, 2.0]]))[:, -1]
    assert far == pytest.approx([2 * 111.2, 111.2])


def test_the_coast_lies_where_the_coast_is():
    to_coast = Geography(INPUTS, "east", "north", 35.0, (), line=COAST)
    places = {"Santa Monica": (-118.50, 34.01), "Sacramento": (-121.49, 38.58)}
    rows = np.array([[0, 0, 0, *place] for place in places.values()])
    near, far = to_coast.transform(rows)[:, -1]
    assert near < 3
    assert 90 < far < 160


def test_turned_axes_keep_distances():
    turned = geography(turns=(45.0,), towns=(), line=())
    a, b = turned.transform(np.array([[0, 0, 0, 0.0, 0.0], [0, 0, 0, 1.0, 1.0]]))
    assert math.dist(a, b) == pytest.approx(111.2 * math.sqrt(2))


# --- kernels and distillation


def test_kernels_are_the_mean_of_a_gaussian_process(rows, target):
    model = kernels(sample=len(rows), noise=0.05).fit(rows, target)
    standard = model._standard(rows)
    covariance = model._covariance(standard)
    scaled = (target - target.mean()) / target.std()
    found = (model.predict(rows[:20] + 0.1) - target.mean()) / target.std()
    # `covariance` is from all rows to those that carry the answer, which are all in another order
    order = [int(np.flatnonzero((standard == row).all(axis=1))[0]) for row in model.rows_]
    weights = np.linalg.solve(covariance[:, np.argsort(order)] + 0.05 * np.eye(len(rows)), scaled)
    expected = model._covariance(model._standard(rows[:20] + 0.1))[:, np.argsort(order)] @ weights
    assert found == pytest.approx(expected, abs=1e-3)


def test_kernels_learn_what_a_line_cannot(rows, target):
    learnt, asked = rows[:300], rows[300:]
    error = np.abs(kernels().fit(learnt, target[:300]).predict(asked) - target[300:]).mean()
    line = LinearRegression().fit(learnt, target[:300]).predict(asked)
    assert error < 0.5 * np.abs(line - target[300:]).mean()


def test_answers_of_kernels_do_not_depend_on_the_number_of_threads():
    rows = np.random.default_rng(8).uniform(0.5, 9, (1600, len(INPUTS)))
    model = kernels(sample=1500).fit(rows, rows[:, 0])
    answers = []
    for threads in (1, 2):
        with threadpool_limits(threads, "blas"):
            answers.append(model.predict(rows))
    assert np.array_equal(*answers)  # else a student of it would be another model


def test_a_student_answers_nearly_as_its_teacher(rows, target):
    student = Pipeline(
        [("f", FeatureUnion([("as they are", "passthrough")])), ("m", DecisionTreeRegressor())]
    )
    model = Distilled(kernels(), student, copies=20).fit(rows, target)
    teacher = kernels().fit(rows, target).predict(rows)
    assert np.corrcoef(model.predict(rows), teacher)[0, 1] > 0.97
    asked = asked_of(rows)
    assert np.array_equal(graph_of(model).run(asked).prediction, model.predict(asked))


def test_made_rows_stay_within_what_training_saw_and_are_the_same_twice(rows):
    made = Distilled(None, None, copies=3)._made(rows)
    assert len(made) == 3 * len(rows)
    assert (made >= rows.min(axis=0)).all()
    assert (made <= rows.max(axis=0)).all()
    assert np.array_equal(made, Distilled(None, None, copies=3)._made(rows))
    assert not np.array_equal(made[: len(rows)], rows)

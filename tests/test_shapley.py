"""Shapley values are what they are defined to be: held against sums over every set."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from families import ENSEMBLES, REGRESSORS, family, fitted
from hypothesis import given, settings
from hypothesis import strategies as st
from lightgbm import LGBMRegressor
from sklearn.ensemble import RandomForestClassifier
from sklearn.tree import DecisionTreeRegressor

from mlops.package import shapley, trees
from mlops.package.shapley import TreeShapley, coalitions, cover, paths
from mlops.package.trees import Forest
from mlops.usecases.iris import IRIS

Game = Callable[[frozenset[int]], np.ndarray]


def by_definition(game: Game, players: int) -> np.ndarray:
    """Average over all orders, as Shapley wrote it: [outputs, players]."""
    total = 0.0
    for order in itertools.permutations(range(players)):
        known: frozenset[int] = frozenset()
        each = [None] * players
        for player in order:
            each[player] = game(known | {player}) - game(known)
            known |= {player}
        total = total + np.array(each).T
    return np.atleast_2d(total / math.factorial(players))


def path_dependent(forest: Forest, covered: np.ndarray, row: np.ndarray) -> Game:
    """The game of TreeSHAP, walked down the tree node by node: another way than by paths."""

    def answer(node: int, known: frozenset[int]) -> np.ndarray:
        if node < 0:
            return np.atleast_1d(forest.leaves[~node])
        left, right, asked = forest.left[node], forest.right[node], forest.feature[node]
        if asked in known:
            return answer(left if row[asked] <= forest.threshold[node] else right, known)
        if not covered[node]:
            return answer(left, known) * 0
        return (
            answer(left, known) * covered[left] + answer(right, known) * covered[right]
        ) / covered[node]

    def game(known: frozenset[int]) -> np.ndarray:
        total = np.sum([answer(root, known) for root in forest.roots], axis=0)
        return total if forest.boosted else total / len(forest.roots)

    return game


def explained(forest: Forest, covered: np.ndarray, row: np.ndarray) -> np.ndarray:
    return TreeShapley(paths(forest, covered, len(row)), len(row)).contributions(row)


def small(seed: int, depth: int, inputs: int = 4) -> tuple[Forest, np.ndarray, np.ndarray]:
    """A tree that asks few inputs often, on values with many ties; its training rows; and targets.

    The last input is never asked.
    """
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 4, (60, inputs)).astype(float)
    targets = rows[:, 0] * rows[:, 1] - rows[:, 0] ** 2 + rng.normal(size=60)
    model = DecisionTreeRegressor(max_depth=depth, random_state=seed)
    model.fit(rows[:, : inputs - 1], targets)
    return trees.read(model), rows, targets


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), depth=st.integers(1, 9))
def test_of_a_tree_they_are_the_average_over_all_orders(seed: int, depth: int) -> None:
    forest, rows, _ = small(seed, depth)
    covered = cover(forest, rows)
    # On a threshold itself, beside it, and where no training row is.
    asked = np.vstack([rows[:1], forest.threshold[:1].repeat(4)[None], rows[1:2] + 7])
    for row in asked:
        expected = by_definition(path_dependent(forest, covered, row), 4)
        np.testing.assert_allclose(explained(forest, covered, row), expected, atol=1e-12)


def test_an_input_that_is_asked_again_on_the_way_is_one_player() -> None:
    forest, rows, _ = small(3, 9)
    found = paths(forest, cover(forest, rows), 4)
    depth = np.log2(len(forest.leaves))
    assert len(found.feature) == 3 < depth + 1, "each input once, however often it is asked"
    assert (found.low < found.high).all()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_an_input_that_is_never_asked_contributes_nothing(seed: int) -> None:
    forest, rows, _ = small(seed, 5)
    covered = cover(forest, rows)
    for row in rows[:5]:
        assert explained(forest, covered, row)[0, 3] == 0.0


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), low=st.floats(-2, 2), high=st.floats(-2, 2))
def test_inputs_that_do_the_same_contribute_the_same(seed: int, low: float, high: float) -> None:
    """An OR of two inputs, as a tree, over rows that are the same with the two exchanged."""
    rng = np.random.default_rng(seed)
    half = rng.integers(0, 2, (30, 2)).astype(float)
    rows = np.vstack([half, half[:, ::-1]])
    forest = Forest(
        feature=np.array([0, 1]),
        threshold=np.array([0.5, 0.5]),
        left=np.array([1, ~0]),
        right=np.array([~2, ~1]),
        leaves=np.array([low, high, high]),
        roots=np.array([0]),
        tree=np.array([0, 0, 0]),
    )
    # Independent inputs, so that the tree's order of asking plays no part in the counts.
    rows = np.array(list(itertools.product([0.0, 1.0], repeat=2)) * len(rows))
    found = explained(forest, cover(forest, rows), np.array([1.0, 1.0]))[0]
    assert found[0] == pytest.approx(found[1], abs=1e-12)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_those_of_a_sum_of_trees_are_the_sum_of_theirs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(80, 3))
    model = LGBMRegressor(n_estimators=3, min_child_samples=5, n_jobs=1, verbose=-1)
    forest = trees.read(model.fit(rows, rows[:, 0] * rows[:, 1]))
    covered = cover(forest, rows)
    game = path_dependent(forest, covered, rows[0])
    np.testing.assert_allclose(
        explained(forest, covered, rows[0]), by_definition(game, 3), atol=1e-12
    )


@pytest.mark.parametrize("name", ["lightgbm", "lightgbm, scaled"])
def test_they_are_lightgbms_own(name: str) -> None:
    pipeline, rows, use_case = family("regression", name)
    inputs = pipeline[:-1].transform(rows)
    forest = trees.read(pipeline[-1])
    tree_shapley = TreeShapley(paths(forest, cover(forest, inputs), 8), 8)
    theirs = pipeline[-1].booster_.predict(inputs[:100], pred_contrib=True)
    ours = np.array([tree_shapley.contributions(row)[0] for row in inputs[:100]])
    np.testing.assert_allclose(ours, theirs[:, :-1], atol=1e-9)
    np.testing.assert_allclose(tree_shapley.base[0], theirs[0, -1], atol=1e-9)
    assert len(use_case.inputs) == 8


TREES = [
    name
    for name in REGRESSORS
    if ("tree" in name or "forest" in name or name == "histogram boosting")
    and not name.startswith(ENSEMBLES)
]


@pytest.mark.parametrize("name", TREES)
def test_they_add_up_from_the_mean_training_answer_to_the_answer(name: str) -> None:
    pipeline, rows, _ = family("regression", name)
    forest = trees.read(pipeline[-1])
    inputs = shapley.as_compared(forest, pipeline[:-1].transform(rows))
    tree_shapley = TreeShapley(paths(forest, cover(forest, inputs), 8), 8)
    assert tree_shapley.base[0] == pytest.approx(pipeline.predict(rows).mean(), abs=1e-9)
    for row, answer in zip(inputs[:20], pipeline.predict(rows[:20]), strict=True):
        total = tree_shapley.contributions(row).sum() + tree_shapley.base[0]
        assert total == pytest.approx(answer, abs=1e-9)


def test_a_forest_of_classes_shares_out_each_classs_probability() -> None:
    pipeline, rows = fitted(RandomForestClassifier(5, max_depth=3, random_state=1), IRIS)
    forest = trees.read(pipeline[-1])
    inputs = shapley.as_compared(forest, rows)
    covered = cover(forest, inputs)
    found = explained(forest, covered, inputs[60])
    expected = by_definition(path_dependent(forest, covered, inputs[60]), 4)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    np.testing.assert_allclose(found.sum(axis=0), 0, atol=1e-12)  # probabilities sum to 1


def test_counts_that_are_wrong_still_add_up_to_the_answer_and_are_seen_by_other_means() -> None:
    forest, rows, targets = small(5, 4)
    covered = cover(forest, rows)
    inner, leaf = covered.copy(), covered.copy()
    inner[forest.left[0]] += 10
    low, high = ~forest.leaves.argmin(), ~forest.leaves.argmax()
    leaf[[low, high]] += [-1, 1]
    right, *faulty = (TreeShapley(paths(forest, c, 4), 4) for c in (covered, inner, leaf))
    answer = right.contributions(rows[0]).sum() + right.base[0]
    for one in faulty:
        assert one.contributions(rows[0]).sum() + one.base[0] == pytest.approx(answer)
        assert abs(one.contributions(rows[0]) - right.contributions(rows[0])).max() > 0.001
    assert shapley.adds_up(forest, covered)
    assert not shapley.adds_up(forest, inner)
    assert right.base[0] == pytest.approx(targets.mean())
    assert abs(faulty[1].base[0] - targets.mean()) > 0.001


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), fields=st.integers(1, 5))
def test_of_any_model_they_are_the_average_over_all_orders(seed: int, fields: int) -> None:
    rng = np.random.default_rng(seed)
    background, row = rng.normal(size=(7, fields)), rng.normal(size=fields)
    weights = rng.normal(size=(fields, 2))

    def model(rows: np.ndarray) -> np.ndarray:
        return np.tanh(rows @ weights) * rows[:, :1]

    def game(known: frozenset[int]) -> np.ndarray:
        mask = np.isin(np.arange(fields), list(known))
        return model(np.where(mask, row, background)).mean(axis=0)

    np.testing.assert_allclose(
        coalitions(model, row, background), by_definition(game, fields), atol=1e-12
    )


def test_a_longer_path_than_any_other_loses_no_digits() -> None:
    """A chain of 30 questions about 30 inputs: sums over sets would have 2^30 terms."""
    number = 30
    forest = Forest(
        feature=np.arange(number),
        threshold=np.full(number, 0.5),
        left=np.array([*range(1, number), ~number]),
        right=np.array([~i for i in range(number)]),
        leaves=np.arange(number + 1.0),
        roots=np.array([0]),
        tree=np.zeros(number + 1, int),
    )
    rows = np.random.default_rng(0).random((5000, number)) * 0.55
    covered = cover(forest, rows)
    one = TreeShapley(paths(forest, covered, number), number)
    total = one.contributions(np.zeros(number)).sum() + one.base[0]
    assert total == pytest.approx(number, abs=1e-9)

"""Every estimator's graph answers as scikit-learn does, and a planted fault is caught."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from families import CANDIDATES, FAMILIES, candidate, family, fitted
from onnx import numpy_helper
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.tree import DecisionTreeClassifier

from mlops.errors import ParityError, UsageError
from mlops.package import parity as parity_module
from mlops.package import trees
from mlops.package.export import to_onnx
from mlops.package.model import OnnxModel
from mlops.package.parity import check_parity
from mlops.package.probes import on_thresholds
from mlops.usecase import UseCase
from mlops.usecases.housing import HOUSING
from mlops.usecases.iris import IRIS

ROUNDING = 2e-14  # sums added up in another order; of logarithms, exponentiated


def check(pipeline: Pipeline, rows: np.ndarray, use_case: UseCase) -> parity_module.Parity:
    model = OnnxModel(to_onnx(pipeline, use_case.fields))
    return check_parity(pipeline, model, rows, tolerance=ROUNDING)


@pytest.mark.parametrize(("kind", "name"), FAMILIES)
def test_every_estimator_is_exact_on_rows_and_on_thresholds(kind: str, name: str) -> None:
    pipeline, rows, use_case = family(kind, name)
    parity = check(pipeline, rows, use_case)
    assert parity.rows == len(rows)
    assert parity.ties == 0
    is_tree = any(word in name for word in ("tree", "forest", "boosting", "lightgbm"))
    assert (parity.threshold_rows > 0) == is_tree


@pytest.mark.parametrize(("use_case_name", "name"), CANDIDATES)
def test_every_candidate_of_every_use_case_is_exact(use_case_name: str, name: str) -> None:
    pipeline, rows, use_case = candidate(use_case_name, name)
    assert check(pipeline, rows, use_case).largest_difference <= ROUNDING


def test_a_scaler_dropped_is_caught() -> None:
    pipeline, rows, _ = candidate("housing", "LinearRegression")
    without = Pipeline([step for step in pipeline.steps if step[0] != "scale"])
    with pytest.raises(ParityError, match=r"total_rooms=.*longitude=.*prediction is .*difference"):
        check_parity(pipeline, OnnxModel(to_onnx(without, HOUSING.fields)), rows)


@pytest.fixture
def without_probes(monkeypatch: pytest.MonkeyPatch) -> Callable[..., parity_module.Parity]:
    """`check_parity` of the given rows alone."""

    def check(*args: Any) -> parity_module.Parity:
        with monkeypatch.context() as patch:
            patch.setattr(parity_module, "on_thresholds", lambda *args: iter(()))
            return check_parity(*args)

    return check


def test_a_missing_rounding_to_float32_is_caught_only_on_thresholds(
    without_probes: Callable[..., parity_module.Parity], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, rows, _ = candidate("housing", "DecisionTree")
    forest = trees.read(pipeline[-1])
    assert forest is not None
    assert forest.float32
    with monkeypatch.context() as patch:
        patch.setattr(trees, "read", lambda model: forest._replace(float32=False))
        model = OnnxModel(to_onnx(pipeline, HOUSING.fields))
    assert without_probes(pipeline, model, rows).largest_difference == 0
    with pytest.raises(ParityError):
        check_parity(pipeline, model, rows)


def altered(graph: bytes, attribute: str, change: Callable[[np.ndarray], np.ndarray]) -> bytes:
    """Change a tensor of the graph's TreeEnsemble."""
    model = onnx.load_from_string(graph)
    node = next(node for node in model.graph.node if node.op_type == "TreeEnsemble")
    tensor = next(found.t for found in node.attribute if found.name == attribute)
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor).copy())))
    return model.SerializeToString()


@pytest.mark.parametrize("name", ["DecisionTree", "GradientBoosting"])
def test_a_strict_comparison_is_caught_only_on_thresholds(
    name: str, without_probes: Callable[..., parity_module.Parity]
) -> None:
    pipeline, rows, _ = candidate("housing", name)
    graph = altered(to_onnx(pipeline, HOUSING.fields), "nodes_modes", lambda modes: modes + 1)
    assert without_probes(pipeline, OnnxModel(graph), rows).largest_difference == 0
    with pytest.raises(ParityError):
        check_parity(pipeline, OnnxModel(graph), rows)


def test_thresholds_rounded_to_float32_are_caught() -> None:
    pipeline, rows, _ = candidate("housing", "GradientBoosting")
    rounded = altered(
        to_onnx(pipeline, HOUSING.fields),
        "nodes_splits",
        lambda splits: splits.astype(np.float32).astype(float),
    )
    with pytest.raises(ParityError):
        check_parity(pipeline, OnnxModel(rounded), rows)


@pytest.mark.parametrize("leaf", [0, 100, -1])
def test_one_changed_leaf_of_a_forest_is_caught(leaf: int) -> None:
    pipeline, rows, _ = candidate("housing", "RandomForest")

    def change(weights: np.ndarray) -> np.ndarray:
        weights[leaf] += 1e-6
        return weights

    graph = altered(to_onnx(pipeline, HOUSING.fields), "leaf_weights", change)
    with pytest.raises(ParityError, match="1e-08"):
        check_parity(pipeline, OnnxModel(graph), rows)


def test_a_wrong_ratio_is_caught_and_named() -> None:
    pipeline, rows, _ = candidate("housing", "DecisionTree")
    mixed = pipeline[:-1].fit(rows)
    mixed.steps.append(pipeline.steps[-1])
    swapped = tuple(
        {"total_rooms": "total_bedrooms", "total_bedrooms": "total_rooms"}.get(field, field)
        for field in HOUSING.fields
    )
    with pytest.raises(ParityError, match="the rooms_per_household is"):
        check_parity(mixed, OnnxModel(to_onnx(mixed, swapped)), rows)


def test_probes_lie_exactly_on_every_threshold_and_beside_it() -> None:
    pipeline, rows, _ = candidate("housing", "DecisionTree")
    tree = pipeline[-1].tree_
    probes = np.concatenate(list(on_thresholds(pipeline, rows, 16)))
    inputs = pipeline[0].transform(probes)
    inner = np.flatnonzero(tree.children_left >= 0)
    assert len(probes) == 5 * len(inner)
    for feature, threshold in zip(tree.feature[inner], tree.threshold[inner], strict=True):
        column = inputs[:, feature]
        below, above = np.nextafter(threshold, [-np.inf, np.inf])
        assert {below, threshold, above} <= set(column)
        rounded = column.astype(np.float32).astype(float) == column
        near = np.abs(column - threshold) <= np.spacing(np.float32(abs(threshold)))
        assert len(set(column[near & rounded])) >= 2


def test_most_probes_have_an_answer_that_hangs_on_the_threshold() -> None:
    pipeline, rows, _ = candidate("housing", "GradientBoosting")
    probes = np.concatenate(list(on_thresholds(pipeline, rows, 10_000)))
    on_and_beside = pipeline.predict(probes).reshape(-1, 3)
    assert np.mean(np.ptp(on_and_beside, axis=1) > 0) > 0.8


def test_a_class_may_differ_where_two_are_equally_likely() -> None:
    # Scores of +1e-17 and -1e-17 give other classes, of the same probability, 1/2.
    pipeline, rows = fitted(LogisticRegression(), IRIS, np.arange(150) % 2)
    pipeline[-1].coef_[:] = 0
    pipeline[-1].intercept_[:] = 1e-17
    level = to_onnx(pipeline, IRIS.fields)
    pipeline[-1].intercept_[:] = -1e-17
    parity = check_parity(pipeline, OnnxModel(level), rows)
    assert parity.ties == len(rows)


def test_a_class_that_differs_is_named_by_its_label() -> None:
    pipeline, rows = fitted(DecisionTreeClassifier(max_depth=2, random_state=0), IRIS)
    graph = onnx.load_from_string(to_onnx(pipeline, IRIS.fields))
    graph.graph.node[-1].op_type = "ArgMin"
    model = OnnxModel(graph.SerializeToString())
    with pytest.raises(ParityError, match="class is virginica in scikit-learn and setosa in"):
        check_parity(pipeline, model, rows[rows[:, 2] > 5], labels=IRIS.target.labels)


def test_parity_of_no_rows_is_refused() -> None:
    pipeline, rows, _ = candidate("housing", "LinearRegression")
    with pytest.raises(UsageError, match="no rows"):
        check_parity(pipeline, OnnxModel(to_onnx(pipeline, HOUSING.fields)), rows[:0])

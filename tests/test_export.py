"""The exported graph: its form, its edges, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnx
import pytest
from families import CANDIDATES, FAMILIES, candidate, family, fitted, table
from lightgbm import LGBMClassifier, LGBMRegressor
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import (
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
    StackingRegressor,
    VotingClassifier,
    VotingRegressor,
)
from sklearn.linear_model import LinearRegression, PoissonRegressor, RidgeClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from mlops.build.pipeline import ModelInputs
from mlops.errors import BundleError, ParityError, UsageError
from mlops.package.export import to_onnx
from mlops.package.model import OnnxModel
from mlops.package.parity import check_parity
from mlops.usecase import Ratio
from mlops.usecases.housing import HOUSING
from mlops.usecases.iris import IRIS


def exported(pipeline: Pipeline, fields: tuple[str, ...]) -> OnnxModel:
    return OnnxModel(to_onnx(pipeline, fields))


@pytest.mark.parametrize(("kind", "name"), FAMILIES)
def test_the_same_pipeline_gives_the_same_bytes(kind: str, name: str) -> None:
    pipeline, _, use_case = family(kind, name)
    assert to_onnx(pipeline, use_case.fields) == to_onnx(pipeline, use_case.fields)


def test_a_pipeline_fitted_again_gives_the_same_bytes() -> None:
    first, second = (fitted(RandomForestClassifier(5, random_state=3), IRIS)[0] for _ in range(2))
    assert to_onnx(first, IRIS.fields) == to_onnx(second, IRIS.fields)


@pytest.mark.parametrize(("use_case_name", "name"), CANDIDATES)
def test_answers_have_the_declared_shapes_and_types(use_case_name: str, name: str) -> None:
    pipeline, rows, use_case = candidate(use_case_name, name)
    model = OnnxModel(to_onnx(pipeline, use_case.fields, use_case.target.labels))
    assert model.fields == use_case.fields
    assert model.inputs == use_case.input_names
    assert model.labels == use_case.target.labels
    for count in (0, 1, 7):
        inputs, prediction, probabilities = model.run(rows[:count])
        assert inputs.shape == (count, len(use_case.inputs))
        assert inputs.dtype == np.float64
        assert prediction.shape == (count,)
        if use_case.is_classification:
            assert prediction.dtype == np.int64
            assert probabilities is not None
            assert probabilities.dtype == np.float64
            assert probabilities.shape == (count, len(use_case.target.labels))
        else:
            assert prediction.dtype == np.float64
            assert probabilities is None


def test_a_zero_denominator_counts_as_one() -> None:
    pipeline, rows, _ = candidate("housing", "LinearRegression")
    rows = rows[:4].copy()
    rows[:, HOUSING.fields.index("households")] = [0.0, -0.0, 1e-300, -2.0]
    output = exported(pipeline, HOUSING.fields).run(rows)
    np.testing.assert_array_equal(output.inputs, pipeline[0].transform(rows))
    rooms = HOUSING.input_names.index("rooms_per_household")
    np.testing.assert_array_equal(output.inputs[:2, rooms], rows[:2, 0])


def test_fields_may_come_in_another_order_than_the_pipeline_has_them() -> None:
    pipeline, rows, _ = candidate("housing", "LinearRegression")
    model = exported(pipeline, HOUSING.fields[::-1])
    np.testing.assert_allclose(
        model.run(np.ascontiguousarray(rows[:, ::-1])).prediction, pipeline.predict(rows)
    )


@pytest.mark.parametrize(
    "estimator",
    [
        DecisionTreeRegressor(min_samples_leaf=1500),
        RandomForestRegressor(3, min_samples_leaf=1500, random_state=0),
        HistGradientBoostingRegressor(max_iter=2, min_samples_leaf=1500),
        LGBMRegressor(n_estimators=2, min_child_samples=1500, verbose=-1),
    ],
)
def test_a_tree_may_be_a_single_leaf(estimator: Any) -> None:
    pipeline, rows = fitted(estimator, HOUSING)
    assert np.ptp(pipeline.predict(rows)) == 0
    parity = check_parity(pipeline, exported(pipeline, HOUSING.fields), rows)
    assert parity.largest_difference < 1e-15
    assert parity.threshold_rows == 0


@pytest.mark.parametrize(
    "estimator",
    [
        DecisionTreeClassifier(min_samples_leaf=100),
        RandomForestClassifier(3, min_samples_leaf=100, random_state=0),
        HistGradientBoostingClassifier(max_iter=2, min_samples_leaf=100),
        LGBMClassifier(n_estimators=2, min_child_samples=100, verbose=-1),
    ],
)
def test_a_tree_of_a_classifier_may_be_a_single_leaf(estimator: Any) -> None:
    pipeline, rows = fitted(estimator, IRIS)
    model = exported(pipeline, IRIS.fields)
    np.testing.assert_allclose(
        model.run(rows).probabilities, pipeline.predict_proba(rows), rtol=1e-15
    )


def test_lightgbm_takes_tiny_inputs_for_zero_and_so_does_the_graph() -> None:
    # With zeros in a column, LightGBM splits at -1e-35, and takes an input of -1e-35 for 0.
    X = np.random.default_rng(0).integers(-2, 3, (500, 2)) * 1.0
    estimator = LGBMRegressor(n_estimators=5, verbose=-1)
    pipeline = Pipeline([("inputs", ModelInputs(("a", "b"), ("a", "b"))), ("model", estimator)])
    pipeline.fit(X, np.sign(X[:, 0]) + X[:, 1])
    tiny = float(np.float32(1e-35))
    edge = [s * v for s in (1, -1) for v in (0, 5e-324, 1e-36, tiny, np.nextafter(tiny, 1), 1e-34)]
    rows = np.array([[a, b] for a in edge for b in edge])
    output = exported(pipeline, ("a", "b")).run(rows)
    np.testing.assert_array_equal(output.prediction, pipeline.predict(rows))


def refused(pipeline: Pipeline, *labels: str) -> str:
    with pytest.raises(UsageError) as error:
        to_onnx(pipeline, HOUSING.fields, labels)
    return str(error.value)


@pytest.mark.parametrize(
    "estimator", [GradientBoostingRegressor(n_estimators=2), PoissonRegressor(max_iter=1000)]
)
def test_an_unknown_estimator_is_refused_by_name_with_those_supported(estimator: Any) -> None:
    message = refused(fitted(estimator, HOUSING, scaled=True)[0])
    assert type(estimator).__name__ in message
    assert "LGBMRegressor, LinearDiscriminantAnalysis, LinearModel" in message


def log_cosh(y: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.tanh(score - y), np.ones_like(score)


@pytest.mark.parametrize(
    ("estimator", "reason"),
    [
        (LGBMRegressor(objective=log_cosh), "objective"),
        (LGBMRegressor(reg_sqrt=True), "sqrt"),
        (LGBMRegressor(linear_tree=True), "linear leaves"),
        (LGBMRegressor(zero_as_missing=True), "zero_as_missing"),
        (LGBMRegressor(boosting_type="rf", bagging_freq=1, bagging_fraction=0.5), "rf"),
        (HistGradientBoostingRegressor(categorical_features=[1], max_iter=2), "categorical"),
    ],
)
def test_trees_that_ask_another_kind_of_question_are_refused(estimator: Any, reason: str) -> None:
    if isinstance(estimator, LGBMRegressor):
        estimator.set_params(n_estimators=2, verbose=-1)
    assert reason in refused(fitted(estimator, HOUSING)[0])


def test_categorical_splits_of_lightgbm_are_refused() -> None:
    pipeline, rows = fitted(LGBMRegressor(n_estimators=2, verbose=-1), HOUSING)
    pipeline.fit(rows, table(HOUSING)[1], model__categorical_feature=[0])
    assert "categorical" in refused(pipeline)


def test_what_cannot_be_the_same_in_a_graph_is_refused() -> None:
    rows, y = table(HOUSING)
    halves = np.where(y > 2, "dear", "cheap")
    assert "random" in refused(fitted(DummyClassifier(strategy="uniform"), HOUSING, halves)[0])
    assert "2 targets" in refused(fitted(DecisionTreeRegressor(), HOUSING, np.c_[y, y])[0])
    assert "LinearRegression" in refused(fitted(LinearRegression(), HOUSING, np.c_[y, y])[0])
    assert "RidgeClassifier" in refused(fitted(RidgeClassifier(), HOUSING, halves)[0])
    inputs, model = ModelInputs(HOUSING.fields, HOUSING.inputs), LinearRegression()
    steps: list[tuple[str, Any]] = [("inputs", inputs), ("scale", MinMaxScaler()), ("model", model)]
    assert "MinMaxScaler" in refused(Pipeline(steps).fit(rows, y))
    steps[1:2] = [("clip", MinMaxScaler())]
    assert "'clip'" in refused(Pipeline(steps).fit(rows, y))
    steps = [
        ("inputs", ModelInputs(("a", *HOUSING.fields[1:]), (Ratio("r", "a", "population", ""),)))
    ]
    assert "need a:" in refused(Pipeline([*steps, ("model", model)]).fit(rows, y))


def test_a_class_that_training_missed_is_refused() -> None:
    rows, y = table(IRIS)
    pipeline = Pipeline([("inputs", ModelInputs(IRIS.fields, IRIS.inputs))])
    pipeline.steps.append(("model", DecisionTreeClassifier()))
    pipeline.fit(rows[y != 1], y[y != 1])
    with pytest.raises(UsageError, match=r"knows the classes \[0, 2\]"):
        to_onnx(pipeline, IRIS.fields, IRIS.target.labels)


@pytest.mark.parametrize("graph", [b"", b"no graph", b"\x08\x0a" * 50])
def test_broken_bytes_are_a_broken_bundle(graph: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BundleError, match="seal the bundle again"):
        OnnxModel(graph)
    assert capfd.readouterr() == ("", "")


def test_a_foreign_graph_is_refused() -> None:
    pipeline, _, _ = candidate("housing", "LinearRegression")
    graph = onnx.load_from_string(to_onnx(pipeline, HOUSING.fields))
    del graph.metadata_props[:]
    with pytest.raises(BundleError):
        OnnxModel(graph.SerializeToString())


def test_threads_may_share_a_model() -> None:
    pipeline, rows, _ = candidate("housing", "GradientBoosting")
    model = exported(pipeline, HOUSING.fields)
    with ThreadPoolExecutor(4) as threads:
        alone = list(threads.map(lambda i: model.run(rows[i : i + 1]).prediction[0], range(2000)))
    np.testing.assert_array_equal(alone, model.run(rows).prediction)


def test_serving_imports_neither_training_nor_export() -> None:
    check = (
        "import sys, mlops.package.model; "
        "print(sorted({'onnx', 'sklearn', 'pandas', 'scipy', 'lightgbm'} & set(sys.modules)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, check=True, text=True
    )
    assert found.stdout.strip() == "[]"


def member(*estimators: Any) -> list[tuple[str, Any]]:
    return [(str(number), estimator) for number, estimator in enumerate(estimators)]


@pytest.mark.parametrize(
    ("estimator", "says"),
    [
        (
            StackingRegressor(member(LinearRegression()), DecisionTreeRegressor(max_depth=2)),
            "StackingRegressor with the final estimator DecisionTreeRegressor has no exact",
        ),
        (
            VotingRegressor(member(make_pipeline(MinMaxScaler(), LinearRegression()))),
            "MinMaxScaler has no exact ONNX export — use one of FeatureUnion, Geography",
        ),
        (
            VotingRegressor(member(GradientBoostingRegressor(n_estimators=2))),
            "GradientBoostingRegressor has no exact ONNX export",
        ),
    ],
)
def test_an_ensemble_is_refused_for_the_member_that_has_no_export(estimator: Any, says: str):
    pipeline, _ = fitted(estimator, HOUSING)
    assert says in refused(pipeline)


def test_votes_that_are_no_probabilities_are_refused() -> None:
    pipeline, _ = fitted(VotingClassifier(member(DecisionTreeClassifier())), IRIS)
    with pytest.raises(UsageError, match='use voting="soft"'):
        to_onnx(pipeline, IRIS.fields)


def test_a_scaler_behind_a_scaler_is_refused_before_anything_is_sealed() -> None:
    scaled = make_pipeline(StandardScaler(), DecisionTreeRegressor(max_depth=3))
    pipeline, rows = fitted(VotingRegressor(member(scaled)), HOUSING, scaled=True)
    with pytest.raises(UsageError, match="scale all members at once"):
        check_parity(pipeline, exported(pipeline, HOUSING.fields), rows)


def test_a_wrong_weight_in_an_exported_average_is_found_by_parity() -> None:
    estimator = VotingRegressor(
        member(LinearRegression(), DecisionTreeRegressor(max_depth=3)), weights=[1, 2]
    )
    pipeline, rows = fitted(estimator, HOUSING)
    graph = exported(pipeline, HOUSING.fields)
    pipeline[-1].weights = [1, 2.000001]
    with pytest.raises(ParityError):
        check_parity(pipeline, graph, rows)

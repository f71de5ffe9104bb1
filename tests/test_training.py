"""Training: whole pipelines, fitted on training rows only, compared by cross-validation."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from mlops.build.data import Split, split
from mlops.build.energy import Spent
from mlops.build.pipeline import ModelInputs, unfitted_pipeline
from mlops.build.profile import golden_rows, reference_profile, training_order, training_ranges
from mlops.build.training import Trained, baseline, scores, train_candidate, winner
from mlops.errors import TrainingError
from mlops.loop.recipe import libraries
from mlops.package.export import to_onnx
from mlops.package.model import OnnxModel
from mlops.package.parity import check_parity
from mlops.track import runs
from mlops.usecase import FOLDS, Candidate, Ratio, UseCase
from mlops.usecases import USE_CASES, housing

HOUSING, IRIS = USE_CASES["housing"], USE_CASES["iris"]


def in_one_thread(candidate: Candidate) -> Candidate:
    """The candidate as declared, but kind to a busy machine: threads would wait for each other."""

    def build(seed: int) -> Any:
        model = candidate.build(seed)
        if isinstance(getattr(model, "n_jobs", None), int):
            model.set_params(n_jobs=1)
        return model

    return dataclasses.replace(candidate, build=build)


EVERY_CANDIDATE = [
    pytest.param(use_case, in_one_thread(candidate), id=f"{use_case.name}-{candidate.name}")
    for use_case in USE_CASES.values()
    for candidate in use_case.candidates
]


@functools.cache
def whole(use_case_name: str) -> Split:
    use_case = USE_CASES[use_case_name]
    return split(use_case, use_case.load().table)


def small(use_case: UseCase) -> Split:
    """The split of the use case with at most 600 training rows."""
    parts = whole(use_case.name)
    return dataclasses.replace(
        parts,
        X_train=parts.X_train.head(600),
        y_train=parts.y_train[:600],
        X_test=parts.X_test.head(200),
        y_test=parts.y_test[:200],
    )


@functools.cache
def learnt(use_case_name: str, candidate_name: str) -> Trained:
    """A declared candidate, trained on the small split."""
    use_case = USE_CASES[use_case_name]
    candidate = in_one_thread(use_case.candidate(candidate_name))
    return train_candidate(use_case, candidate, small(use_case))


def graph(use_case: UseCase, trained: Trained) -> bytes:
    """Every fitted number of the pipeline, as bytes."""
    return to_onnx(trained.pipeline, use_case.fields, use_case.target.labels)


# --- what is expected on this data


def test_linear_regression_and_tree_reach_the_published_scores_on_this_split():
    parts = whole("housing")
    linear = train_candidate(HOUSING, HOUSING.candidate("LinearRegression"), parts)
    tree = train_candidate(HOUSING, HOUSING.candidate("DecisionTree"), parts)
    assert round(linear.metrics["r2_score"], 4) == 0.5758
    assert round(linear.metrics["mse"], 4) == 0.5559
    assert round(tree.metrics["r2_score"], 4) == 0.5997
    assert tree.pipeline["model"].max_depth == 5


def test_gradient_boosting_explains_five_sixths_of_the_variance():
    parts = whole("housing")
    pipeline = unfitted_pipeline(HOUSING, HOUSING.candidate("GradientBoosting"))
    predicted = pipeline.fit(parts.X_train, parts.y_train).predict(parts.X_test)
    assert scores(HOUSING, parts.y_test, predicted)["r2_score"] == pytest.approx(0.836, abs=0.002)


def test_the_declared_candidates_of_iris_are_the_ones_described():
    settings = {candidate.name: candidate.build(42).get_params() for candidate in IRIS.candidates}
    assert settings["LogisticRegression"]["max_iter"] == 200
    assert settings["RandomForest"]["n_estimators"] == 100
    assert settings["RandomForest"]["random_state"] == 42
    assert IRIS.candidate("RandomForest").always_registered
    assert len(settings) == 3


@pytest.mark.parametrize("use_case", USE_CASES.values(), ids=USE_CASES)
def test_the_baseline_ignores_its_inputs(use_case):
    parts = whole(use_case.name)
    shuffled = dataclasses.replace(parts, X_test=parts.X_test.sample(frac=1, random_state=0))
    found = baseline(use_case, parts)
    assert found == baseline(use_case, shuffled)
    assert found[use_case.metric] == pytest.approx(1 / 3 if use_case is IRIS else 0, abs=0.001)


def test_scores_have_their_textbook_values():
    regression = scores(HOUSING, np.array([1.0, 2, 3, 6]), np.array([1.0, 3, 3, 4]))
    expected = {"mse": 1.25, "rmse": 1.25**0.5, "mae": 0.75, "r2_score": 1 - 5 / 14}
    assert regression == pytest.approx(expected)
    classes = scores(IRIS, np.array([0, 0, 1, 1]), np.array([0, 0, 0, 1]))
    assert classes == pytest.approx({"accuracy": 0.75, "f1_score": (0.8 + 2 / 3) / 2})


# --- nothing leaks


@pytest.mark.parametrize(("use_case", "candidate"), EVERY_CANDIDATE)
def test_a_scaler_is_in_the_pipelines_that_need_it_and_learns_from_training_rows(
    use_case, candidate
):
    parts = small(use_case)
    pipeline = learnt(use_case.name, candidate.name).pipeline
    linear = candidate.name in {"LinearRegression", "LogisticRegression"}
    assert ("scale" in pipeline.named_steps) == linear
    assert list(pipeline.named_steps) == ["inputs", *["scale"] * linear, "model"]
    if linear:
        assert isinstance(pipeline["scale"], StandardScaler)
        seen = pipeline["inputs"].transform(parts.X_train)
        np.testing.assert_array_equal(pipeline["scale"].mean_, seen.mean(axis=0))
        np.testing.assert_allclose(pipeline["scale"].scale_, seen.std(axis=0))


def test_each_fold_fits_its_own_scaler():
    fitted_on: list[int] = []

    class Watched(StandardScaler):
        def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Any:
            fitted_on.append(len(X))
            return super().fit(X, y, sample_weight)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mlops.build.pipeline.StandardScaler", Watched)
        train_candidate(IRIS, IRIS.candidate("LogisticRegression"), whole("iris"))
    assert fitted_on == [96] * FOLDS + [120]


# --- comparison


def test_cross_validation_is_five_folds_with_mean_and_spread():
    trained = learnt("housing", "DecisionTree")
    folds = np.array(trained.fold_scores)
    assert folds.shape == (5,)
    assert trained.metrics["cv_r2_score_mean"] == pytest.approx(folds.mean())
    assert trained.metrics["cv_r2_score_std"] == pytest.approx(folds.std(ddof=1))
    names = {"mse", "rmse", "mae", "r2_score"}
    both = {f"cv_{name}_{what}" for name in names for what in ("mean", "std")}
    assert set(trained.metrics) == names | both


def planted(name: str, in_folds: float, on_test: float) -> Trained:
    metrics = {"r2_score": on_test, "cv_r2_score_mean": in_folds}
    return Trained(
        Candidate(name, lambda seed: None), None, metrics, (in_folds,), None, Spent(0.0, 0.0, None)
    )


def test_cross_validation_decides_and_not_the_test_rows():
    lucky, able = planted("Lucky", 0.7, 0.99), planted("Able", 0.8, 0.5)
    assert winner(HOUSING, [lucky, able]) is able
    assert winner(HOUSING, [able, lucky]) is able


def test_of_equals_the_one_declared_first_wins():
    first, second = planted("First", 0.8, 0.1), planted("Second", 0.8, 0.9)
    assert winner(HOUSING, [first, second]) is first


@pytest.mark.filterwarnings("ignore")  # as for a user: the product, not the suite, must stop
def test_a_candidate_that_does_not_converge_is_an_error_that_says_what_to_do():
    hasty = Candidate("Hasty", lambda seed: LogisticRegression(max_iter=2), scaled=True)
    with pytest.raises(TrainingError, match=r"Hasty did not converge.* — allow it more iter") as e:
        train_candidate(IRIS, hasty, whole("iris"))
    assert "\n" not in str(e.value)


def test_a_forest_adds_up_its_trees_in_their_order_whatever_its_threads_do():
    parts = small(HOUSING)
    candidate = HOUSING.candidate("RandomForest")
    assert candidate.build(42).n_jobs > 1
    pipeline = train_candidate(HOUSING, candidate, parts).pipeline
    seen = pipeline[:-1].transform(parts.X_test)
    total = np.zeros(len(seen))
    for tree in pipeline["model"].estimators_:
        total += tree.predict(seen)
    np.testing.assert_array_equal(pipeline.predict(parts.X_test), total / 100)


# --- derived inputs


def test_request_fields_become_model_inputs_by_name_and_a_zero_denominator_counts_as_one():
    inputs = ModelInputs(("a", "b"), ("b", Ratio("a_each", "a", "b", "each")))
    frame = pd.DataFrame({"b": [4.0, 0.0], "unused": [9, 9], "a": [2.0, 3.0]})
    expected = [[4.0, 0.5], [0.0, 3.0]]
    assert inputs.fit(frame).transform(frame).tolist() == expected
    assert inputs.transform(frame[["a", "b"]].to_numpy()).tolist() == expected


def test_the_first_block_group_of_the_census_has_its_known_averages():
    parts = whole("housing")
    inputs = unfitted_pipeline(HOUSING, HOUSING.candidates[0])["inputs"]
    row = pd.DataFrame([HOUSING.examples["a block group in Berkeley"]])
    derived = dict(zip(HOUSING.input_names, inputs.transform(row)[0], strict=True))
    assert derived["rooms_per_household"] == pytest.approx(6.98412698)
    assert derived["bedrooms_per_household"] == pytest.approx(1.02380952)
    assert derived["people_per_household"] == pytest.approx(2.55555556)
    assert (parts.X_train[["households"]] > 0).all(axis=None)


# --- what is sealed of the training rows


def test_golden_rows_touch_every_edge_and_repeat_none():
    rng = np.random.default_rng(0)
    fields, inputs, predictions = rng.random((400, 8)), rng.random((400, 8)), rng.random(400)
    chosen = golden_rows(fields, inputs, predictions)
    assert len(set(chosen.tolist())) == len(chosen) == 50
    for column in [*fields.T, *inputs.T, predictions]:
        assert {column.argmin(), column.argmax()} <= set(chosen)
    assert golden_rows(fields[:9], inputs[:9], predictions[:9]).tolist() == list(range(9))


def test_ranges_and_profile_describe_the_training_rows():
    values = np.column_stack([np.arange(101.0), np.repeat([1.0, 2.0], [1, 100])])
    assert training_ranges(["many", "two"], values) == {"many": [0.0, 100.0], "two": [1.0, 2.0]}
    profile = reference_profile({"many": values[:, 0], "two": values[:, 1]})
    assert profile["many"]["quantiles"] == pytest.approx(list(range(101)))
    assert profile["many"]["values"] is None
    assert profile["two"]["values"] == [[1.0, 1], [2.0, 100]]
    assert (profile["many"]["count"], profile["many"]["mean"]) == (101, 50.0)


# --- LightGBM that cannot load


class Unloadable:
    """A finder for which LightGBM is there, but the library that it needs is not."""

    def find_spec(self, name: str, *_: Any) -> None:
        if name == "lightgbm":
            raise OSError("libgomp.so.1: cannot open shared object file: No such file or directory")


@pytest.fixture
def without_lightgbm(monkeypatch):
    for name in [n for n in sys.modules if n.split(".")[0] == "lightgbm"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Unloadable(), *sys.meta_path])
    housing._lightgbm.cache_clear()
    yield
    housing._lightgbm.cache_clear()


@pytest.mark.usefixtures("without_lightgbm")
def test_where_lightgbm_cannot_load_scikit_learns_boosting_takes_its_place_and_one_line_says_so(
    caplog,
):
    parts = small(HOUSING)
    with threadpool_limits(1):
        trained = train_candidate(HOUSING, HOUSING.candidate("GradientBoosting"), parts)
    assert isinstance(trained.pipeline["model"], HistGradientBoostingRegressor)
    assert trained.pipeline["model"].random_state == 42
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("LightGBM cannot be loaded (libgomp.so.1: cannot open")
    assert "HistGradientBoostingRegressor" in line
    assert "\n" not in line
    rows = parts.X_train.to_numpy()
    parity = check_parity(trained.pipeline, OnnxModel(graph(HOUSING, trained)), rows)
    assert parity.largest_difference <= 1e-9
    assert parity.threshold_rows > 1000


def test_where_lightgbm_can_load_it_is_used_and_repeatable():
    model = HOUSING.candidate("GradientBoosting").build(42)
    assert type(model).__name__ == "LGBMRegressor"
    assert (model.deterministic, model.force_row_wise, model.random_state) == (True, True, 42)
    assert model.n_jobs == 1


def test_a_training_without_lightgbm_installed_can_still_state_its_libraries(monkeypatch):
    version = importlib.metadata.version

    def found(name: str) -> str:
        if name == "lightgbm":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", found)
    assert libraries()["lightgbm"] == "not installed"
    assert libraries()["scikit-learn"] == version("scikit-learn")
    assert not any("lightgbm" in line for line in runs.requirements())


def test_a_constant_candidate_loses_to_any_that_learns():
    constant = Candidate("Constant", lambda seed: DummyClassifier())
    trained = [
        train_candidate(IRIS, candidate, whole("iris"))
        for candidate in (constant, IRIS.candidate("LogisticRegression"))
    ]
    assert winner(IRIS, trained).candidate.name == "LogisticRegression"


def test_columns_of_one_unit_that_were_always_in_order_are_found_and_no_others() -> None:
    values = np.array([[1.0, 2.0, 9.0, 2.0], [3.0, 3.0, 9.0, 2.0]])
    names, units = ["a", "b", "other", "c"], ["m", "m", "kg", "m"]
    assert training_order(names, units, values) == [["a", "b"], ["c", "b"]]

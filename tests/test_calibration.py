"""Probabilities of classes: measured on rows held out, and scaled only where that helps there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import families
import joblib
import numpy as np
import pytest
from conftest import mlops
from forged import champions_bundle
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression

from mlops.build.calibration import Calibrated, calibrate, tempered
from mlops.build.data import prepare, split
from mlops.build.training import fit
from mlops.improve.ledger import Ledger
from mlops.package.bundle import open_bundle
from mlops.package.export import to_onnx
from mlops.package.model import OnnxModel
from mlops.package.parity import check_parity
from mlops.usecases import USE_CASES

IRIS = USE_CASES["iris"]


def world(truth: float, rows: int = 3_000) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Answers of a model whose scores are `truth` times as large as they should be, and classes."""
    random = np.random.default_rng(0)
    scores = random.normal(0, 2, (rows, 3))
    honest = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    actual = (random.random((rows, 1)) > honest.cumsum(axis=1)).sum(axis=1)
    stated = np.exp(truth * scores) / np.exp(truth * scores).sum(axis=1, keepdims=True)
    return stated, actual, np.array_split(np.arange(rows), 5)


@pytest.mark.parametrize("truth", [0.4, 2.5])
def test_a_model_that_is_too_sure_or_not_sure_enough_is_put_right(truth: float) -> None:
    found = calibrate(*world(truth))
    assert found.temperature == pytest.approx(truth, rel=0.1)
    before, after = found.measured["before"], found.measured["after"]
    assert after["log_loss"] < before["log_loss"]
    assert after["brier"] < before["brier"]
    assert after["calibration_error"] < 0.02 < before["calibration_error"]
    for one in found.measured["bins"]:
        assert one["low"] <= one["probability"] <= one["high"]
        assert one["rows"] < 100 or abs(one["probability"] - one["right"]) < 0.06


def test_a_row_that_counts_much_is_heeded() -> None:
    stated, actual, folds = world(1.0)
    wrong = stated.argmax(axis=1) != actual
    heeded = calibrate(stated, actual, folds, np.where(wrong, 5.0, 1.0))
    assert heeded.temperature > 1.5


@given(
    arrays.arrays(float, (4, 3), elements=st.floats(0, 1)),
    st.floats(0.05, 20),
)
def test_scaled_probabilities_keep_their_order_and_add_up(
    raw: np.ndarray, temperature: float
) -> None:
    stated = (raw + 1e-9) / (raw + 1e-9).sum(axis=1, keepdims=True)
    found = tempered(stated, temperature)
    assert np.allclose(found.sum(axis=1), 1)
    assert (found >= 0).all()
    rows = np.arange(4)
    assert np.allclose(found[rows, stated.argmax(axis=1)], found.max(axis=1))


# Iris, on rows that neither model nor temperature was learnt from


def test_of_iris_winner_and_forest_would_be_worse_for_it_and_are_left_alone(trained: Path) -> None:
    """In the rows that it is learnt from, a temperature always helps: that would be found out."""
    with Ledger(trained / "models" / "state.db") as ledger:
        versions = {one.candidate: one.bundle for one in ledger.versions("iris")}
    for candidate in ("LinearDiscriminantAnalysis", "RandomForest"):
        bundle = open_bundle(trained / "models" / "bundles" / versions[candidate])
        found = bundle.metrics["calibration"]
        assert found["rows"] == 120
        assert found["method"] == "none"
        assert found["before"]["log_loss"] < found["after"]["log_loss"] < 0.2
        card = (bundle.path / "model_card.md").read_text()
        assert f"instead of {found['before']['log_loss']:.4f}" in card
        assert sum(one["rows"] for one in found["bins"]) == 120


def test_a_regression_of_iris_is_not_sure_enough_and_is_served_scaled(home: Path) -> None:
    mlops("train", "iris", "--only", "LogisticRegression", home=home)
    with Ledger(home / "models" / "state.db") as ledger:
        path = home / "models" / "bundles" / ledger.versions("iris")[-1].bundle
    assert path != champions_bundle(home, "iris")
    bundle = open_bundle(path)
    found = bundle.metrics["calibration"]
    assert found["method"] == "temperature"
    assert 0.3 < found["temperature"] < 0.45
    assert found["after"]["log_loss"] < 0.7 * found["before"]["log_loss"]
    assert bundle.training["model_class"] == "LogisticRegression"
    assert "C" in bundle.training["parameters"]
    assert f"temperature of {found['temperature']:.3g}" in (path / "model_card.md").read_text()
    parts = split(IRIS, prepare(IRIS, home / "data").frame)
    rows = parts.X_test.to_numpy(dtype=float)
    pipeline = joblib.load(path / "pipeline.joblib")
    served = bundle.model.run(rows)
    np.testing.assert_allclose(served.probabilities, pipeline.predict_proba(rows), atol=1e-12)
    plain = fit(IRIS.candidate("LogisticRegression"), IRIS, parts.X_train, parts.y_train)
    assert (served.prediction == plain.predict(parts.X_test)).all()
    assert served.probabilities.max(axis=1).mean() > plain.predict_proba(rows).max(axis=1).mean()
    explained = bundle.explainer.explain(rows[:3])
    np.testing.assert_allclose(explained.value, served.probabilities[:3])
    row = [f"{name}={value}" for name, value in IRIS.examples["setosa"].items()]
    answered = mlops("predict", "iris", *row, "--version", "3", "--json", home=home).stdout
    assert sum(json.loads(answered)["probabilities"].values()) == pytest.approx(1)


def test_a_regression_has_no_probabilities_to_measure(trained: Path) -> None:
    assert "calibration" not in open_bundle(champions_bundle(trained, "housing")).metrics


@pytest.mark.parametrize("model", [LogisticRegression(), RandomForestClassifier(10)], ids=str)
@pytest.mark.parametrize("temperature", [0.3, 4.0])
def test_the_graph_scales_exactly_as_the_pipeline_does(model: Any, temperature: float) -> None:
    pipeline, rows = families.fitted(model, IRIS, scaled=True)
    name, fitted = pipeline.steps[-1]
    pipeline.steps[-1] = name, Calibrated(fitted, temperature)
    graph = OnnxModel(to_onnx(pipeline, IRIS.fields, IRIS.target.labels))
    found = check_parity(pipeline, graph, rows)
    assert found.largest_difference < 1e-12
    assert (found.threshold_rows > 0) == isinstance(model, RandomForestClassifier)

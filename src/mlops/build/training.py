"""Fit every candidate, compare by cross-validation, score the test rows once.

Cross-validation on the training rows decides; the test rows are looked at once per candidate and
decide nothing. Every fold fits the whole pipeline, the scaler included.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import (
    accuracy_score,
    f1_score,
    mean_absolute_error,
    mean_squared_error,
    r2_score,
)
from sklearn.model_selection import KFold, StratifiedKFold
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import has_fit_parameter

from mlops.build.calibration import Calibrated, calibrate
from mlops.build.data import Split
from mlops.build.energy import Meter, Spent
from mlops.build.pipeline import unfitted_pipeline
from mlops.errors import TrainingError
from mlops.usecase import FOLDS, SEED, Candidate, UseCase


@dataclasses.dataclass(frozen=True, slots=True)
class Trained:
    """One candidate, fitted on the training rows and measured.

    `metrics` holds the test scores under their plain names (`r2_score`, `mse`, …), and under
    `cv_<name>_mean` and `cv_<name>_std` the mean over the folds and the standard deviation
    between them. `fold_scores` are the deciding metric's, fold by fold. `held_out` are the answers
    to all training rows, each by the model of the fold that did not learn from it. `calibration`
    says how a classifier's probabilities were scaled, if they were, and what they are worth.
    `spent` is what folds and fit took.
    """

    candidate: Candidate
    pipeline: Pipeline
    metrics: dict[str, float]
    fold_scores: tuple[float, ...]
    held_out: Answers
    spent: Spent
    calibration: dict[str, Any] | None = None

    @property
    def seconds(self) -> float:
        return self.spent.seconds


class Answers(NamedTuple):
    """Answers to n rows: numbers or class numbers (n,), and of classifiers probabilities (n, k)."""

    prediction: np.ndarray
    probabilities: np.ndarray | None


def train_candidate(use_case: UseCase, candidate: Candidate, split: Split) -> Trained:
    """Cross-validate on the training rows, fit on all of them, score the test rows once."""
    meter = Meter()
    X, y, weights = split.X_train, split.y_train, split.weights
    answered = [_answer_fold(use_case, candidate, X, y, number, weights) for number in range(FOLDS)]
    folds = [scores(use_case, y[rows], answers.prediction) for rows, answers in answered]
    pipeline = fit(candidate, use_case, X, y, weights)
    held_out, calibration = _in_order(answered), None
    if held_out.probabilities is not None:
        found = calibrate(held_out.probabilities, y, [rows for rows, _ in answered], weights)
        held_out = held_out._replace(probabilities=found.probabilities)
        calibration = found.measured
        if found.temperature != 1:
            name, model = pipeline.steps[-1]
            pipeline.steps[-1] = name, Calibrated(model, found.temperature)
    metrics = scores(use_case, split.y_test, pipeline.predict(split.X_test))
    for name in folds[0]:
        values = [fold[name] for fold in folds]
        metrics[f"cv_{name}_mean"] = float(np.mean(values))
        metrics[f"cv_{name}_std"] = float(np.std(values, ddof=1))
    return Trained(
        candidate,
        pipeline,
        metrics,
        tuple(fold[use_case.metric] for fold in folds),
        held_out,
        meter.spent(),
        calibration,
    )


def score_fold(
    use_case: UseCase, candidate: Candidate, X: pd.DataFrame, y: np.ndarray, number: int
) -> dict[str, float]:
    """Fit on all rows but those of one fold, number 0 to `FOLDS` - 1, and score these."""
    held_out, answers = _answer_fold(use_case, candidate, X, y, number)
    return scores(use_case, y[held_out], answers.prediction)


def _answer_fold(
    use_case: UseCase,
    candidate: Candidate,
    X: pd.DataFrame,
    y: np.ndarray,
    number: int,
    weights: np.ndarray | None = None,
) -> tuple[np.ndarray, Answers]:
    fit_rows, held_out = list(_folds(use_case).split(X, y))[number]
    weights = weights if weights is None else weights[fit_rows]
    pipeline = fit(candidate, use_case, X.iloc[fit_rows], y[fit_rows], weights)
    rows = X.iloc[held_out]
    probabilities = pipeline.predict_proba(rows) if use_case.is_classification else None
    return held_out, Answers(pipeline.predict(rows), probabilities)


def _in_order(answered: list[tuple[np.ndarray, Answers]]) -> Answers:
    """Return the answers of all folds in the order of the rows."""
    order = np.argsort(np.concatenate([rows for rows, _ in answered]))
    prediction = np.concatenate([answers.prediction for _, answers in answered])[order]
    stated = [answers.probabilities for _, answers in answered if answers.probabilities is not None]
    return Answers(prediction, np.concatenate(stated)[order] if stated else None)


def baseline(use_case: UseCase, split: Split) -> dict[str, float]:
    """Return the test scores of a model that ignores its inputs: the mean, or the largest class."""
    dummy: Any = DummyClassifier() if use_case.is_classification else DummyRegressor()
    dummy.fit(split.X_train, split.y_train)
    return scores(use_case, split.y_test, dummy.predict(split.X_test))


def winner(use_case: UseCase, trained: list[Trained]) -> Trained:
    """Return the best mean over the folds; the one declared first among equals."""
    return max(trained, key=lambda one: one.metrics[f"cv_{use_case.metric}_mean"])


def scores(use_case: UseCase, actual: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Return the metrics of the task. Errors are in the target's unit, `mse` in its square."""
    if use_case.is_classification:
        return {
            "accuracy": float(accuracy_score(actual, predicted)),
            "f1_score": float(f1_score(actual, predicted, average="macro", zero_division=0)),
        }
    mse = float(mean_squared_error(actual, predicted))
    return {
        "mse": mse,
        "rmse": mse**0.5,
        "mae": float(mean_absolute_error(actual, predicted)),
        "r2_score": float(r2_score(actual, predicted)),
    }


def _folds(use_case: UseCase) -> KFold | StratifiedKFold:
    kind = StratifiedKFold if use_case.is_classification else KFold
    return kind(n_splits=FOLDS, shuffle=True, random_state=SEED)


def fit(
    candidate: Candidate,
    use_case: UseCase,
    X: pd.DataFrame,
    y: np.ndarray,
    weights: np.ndarray | None = None,
) -> Pipeline:
    """Fit a candidate's whole pipeline. Raises `TrainingError` if it does not converge.

    An estimator that knows no weights lets all rows count alike.
    """
    pipeline = unfitted_pipeline(use_case, candidate)
    weighed = {}
    if weights is not None and has_fit_parameter(pipeline[-1], "sample_weight"):
        weighed[f"{pipeline.steps[-1][0]}__sample_weight"] = weights
    try:
        with warnings.catch_warnings():
            # A model that did not converge is no candidate: better to stop than to compare it.
            warnings.simplefilter("error", ConvergenceWarning)
            pipeline.fit(X, y, **weighed)
    except ConvergenceWarning as warning:
        raise TrainingError(
            f"{candidate.name} did not converge: {str(warning).splitlines()[0]}",
            f"allow it more iterations where {use_case.name} declares it",
        ) from None
    for model in _estimators(pipeline[-1]):
        if isinstance(getattr(model, "n_jobs", None), int):
            # The threads of a forest add up its trees as they finish: another order each time, and
            # other last digits, which would give the same training another bundle.
            model.set_params(n_jobs=1)
    return pipeline


def _estimators(model: Any) -> Iterator[Any]:
    """Yield a fitted estimator and, of an ensemble of estimators, all within it."""
    yield model
    if hasattr(model, "named_steps"):
        yield from _estimators(model[-1])
    elif hasattr(model, "named_estimators_"):
        for member in model.estimators_:
            yield from _estimators(member)

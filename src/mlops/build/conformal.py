"""Prediction intervals: how far a truth may lie from its prediction, learnt from rows held out.

Conformal prediction with scores from cross-validation (cross-conformal: Vovk, "Cross-conformal
predictors", Annals of Mathematics and AI 74, 2015; CV+: Barber, Candes, Ramdas and Tibshirani,
"Predictive inference with the jackknife+", Annals of Statistics 49, 2021). The centre is the final
model's answer, as Vovk has it. An error is divided by what it was expected to be (Lei et al.,
"Distribution-free predictive inference for regression", JASA 113, 2018, section 5.2), so that
intervals are narrow where the model is sure; the quantiles are taken at both ends, since errors
lean. What is expected of a row's error never comes from a model that saw this error.

Where many targets equal the greatest, the target was cut off there. Such rows have a quantile of
their own, by which an interval reaches up to the cut or does not: else those of them that look
cheap would be missed (label-conditional conformal prediction: Vovk, Gammerman and Shafer,
"Algorithmic Learning in a Random World", 2005, section 4.5).
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.model_selection import KFold
from sklearn.pipeline import Pipeline
from threadpoolctl import threadpool_limits

from mlops.build.pipeline import ModelInputs
from mlops.usecase import FOLDS, SEED, UseCase

COVERAGE = 0.9
"""Share of rows whose truth is to lie within its interval."""
PREDICTION = "(prediction)"
"""What the expected error is told by beside the fields; no field has such a name."""
FLOOR = 0.05
"""Of the mean error: added to each, so that no error is expected to be nothing."""
LEAST_SHARE_AT_CAP = 0.01
FEWEST_ROWS_AT_CAP = 50


@dataclasses.dataclass(frozen=True, slots=True)
class Cap:
    """The greatest target, which `rows` training rows have; for them the quantile `high`."""

    at: float
    rows: int
    high: float


@dataclasses.dataclass(frozen=True, slots=True)
class Learnt:
    """What gives a row its interval: prediction - low * scale to prediction + high * scale.

    `scale` is fitted: fields and prediction, float64 (n, fields + 1), to the expected size of the
    error (n,), in the target's unit. `rows` were scored.
    """

    scale: Pipeline
    fields: tuple[str, ...]
    low: float
    high: float
    cap: Cap | None
    rows: int


def learn_intervals(
    use_case: UseCase,
    X: pd.DataFrame,
    y: np.ndarray,
    prediction: np.ndarray,
    weights: np.ndarray | None = None,
) -> Learnt | None:
    """Learn from training rows and what models that did not learn from them said, shape (n,).

    `weights` are what the rows count for, None if all count alike. None where the rows are too few
    for the quantiles: a 20th of them must be more than one.
    """
    fields = (*use_case.fields, PREDICTION)
    rows = with_prediction(use_case, X, prediction)
    error = y - prediction
    size = np.abs(error)
    size += FLOOR * size.mean() or 1.0  # if there are no errors at all, any number will do
    counted = np.ones(len(y)) if weights is None else weights
    if len(y) < FOLDS:
        return None
    with threadpool_limits(1):  # several would wait for each other by spinning
        expected = np.empty(len(y))
        for learnt, held_out in KFold(FOLDS, shuffle=True, random_state=SEED).split(rows):
            part = None if weights is None else weights[learnt]
            scale = _fit_scale(use_case, rows[learnt], size[learnt], part)
            expected[held_out] = scale.predict(rows[held_out])
        scale = _fit_scale(use_case, rows, size, weights)
    score = error / expected
    below = y < y.max()
    at_cap = _of_cap(y, score, counted)
    if at_cap is None:
        below = np.ones(len(y), dtype=bool)
    tail = (1 + COVERAGE) / 2
    low = upper_quantile(-score[below], counted[below], tail)
    high = upper_quantile(score[below], counted[below], tail)
    if low is None or high is None:
        return None
    return Learnt(scale, fields, max(low, 0.0), max(high, 0.0), at_cap, len(y))


def with_prediction(use_case: UseCase, X: pd.DataFrame, prediction: np.ndarray) -> np.ndarray:
    """Return what the expected error is told by, float64 (n, fields + 1)."""
    return np.column_stack([X[list(use_case.fields)].to_numpy(dtype=float), prediction])


def upper_quantile(scores: np.ndarray, weights: np.ndarray, level: float) -> float | None:
    """Return the score that a new row's exceeds with probability 1 - `level` at most.

    The new row itself counts as one that could be greater than all: of n rows that count alike this
    is the ceil((n + 1) level)-th. With weights (Tibshirani et al., "Conformal prediction under
    covariate shift", NeurIPS 2019) it counts as much as any. None where that is beyond all rows.
    """
    if not len(scores):
        return None
    order = np.argsort(scores, kind="stable")
    reached = np.cumsum(weights[order])
    needed = level * (reached[-1] + weights.max())
    at = int(np.searchsorted(reached, needed - 1e-9 * needed))
    return float(scores[order[at]]) if at < len(scores) else None


def _fit_scale(
    use_case: UseCase, rows: np.ndarray, size: np.ndarray, weights: np.ndarray | None
) -> Pipeline:
    """Fit what the size of an error is expected to be: by a gamma, whose answers are positive."""
    inputs = ModelInputs((*use_case.fields, PREDICTION), (*use_case.inputs, PREDICTION))
    model = HistGradientBoostingRegressor(
        loss="gamma",
        max_iter=60,
        max_bins=64,  # more tell no more, and with weights each bin costs a weighted quantile
        max_leaf_nodes=15,
        min_samples_leaf=50,
        early_stopping=False,
        random_state=SEED,
    )
    pipeline = Pipeline([("inputs", inputs), ("model", model)])
    return pipeline.fit(rows, size, model__sample_weight=weights)


def _of_cap(y: np.ndarray, score: np.ndarray, weights: np.ndarray) -> Cap | None:
    """Return the greatest target as a cap, if enough rows have it for a quantile of their own."""
    at = float(y.max())
    there = y == at
    rows = int(there.sum())
    if rows < max(FEWEST_ROWS_AT_CAP, math.ceil(LEAST_SHARE_AT_CAP * len(y))) or rows == len(y):
        return None
    high = upper_quantile(score[there], weights[there], COVERAGE)
    return None if high is None else Cap(at, rows, high)

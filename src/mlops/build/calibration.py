"""Calibrated probabilities: of what a classifier calls 80 % sure, four of five should be right.

Temperature scaling (Guo, Pleiss, Sun and Weinberger, "On calibration of modern neural networks",
ICML 2017): the logarithms of the probabilities are divided by one number, which keeps their order,
and so the class that is chosen. The number is learnt from answers to rows that were held out. It is
applied only if that helps on rows that it was not learnt from either.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from scipy.optimize import minimize_scalar
from sklearn.base import BaseEstimator, ClassifierMixin

LEAST_PROBABILITY = 1e-6
"""Added to each before its logarithm is taken: nothing cannot be scaled."""
HOTTEST = 20.0
BINS = 10


class Calibrated(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # untyped base
    """A fitted classifier whose probabilities are scaled; it chooses the same classes."""

    def __init__(self, calibrated: Any, temperature: float) -> None:
        self.calibrated = calibrated
        self.temperature = temperature

    def fit(self, X: Any, y: Any, **how: Any) -> Self:
        """Fit the classifier again; the temperature stays."""
        self.calibrated.fit(X, y, **how)
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return True

    @property
    def classes_(self) -> Any:
        return self.calibrated.classes_

    def predict(self, X: Any) -> np.ndarray:
        return np.asarray(self.calibrated.predict(X))

    def predict_proba(self, X: Any) -> np.ndarray:
        return tempered(self.calibrated.predict_proba(X), self.temperature)


@dataclasses.dataclass(frozen=True, slots=True)
class Calibration:
    """How a classifier's probabilities are scaled, and what they are worth.

    `temperature` is 1 where scaling did not help. `probabilities` (n, k) are those of held-out rows
    as they will be served, each scaled by what was learnt from other folds. `measured` is JSON.
    """

    temperature: float
    probabilities: np.ndarray
    measured: dict[str, Any]


def calibrate(
    probabilities: np.ndarray,
    actual: np.ndarray,
    folds: Sequence[np.ndarray],
    weights: np.ndarray | None = None,
) -> Calibration:
    """Learn from answers (n, k) to held-out rows of known classes (n,), numbered from 0.

    `folds` are the row numbers of each fold. The temperature of all rows is used if log loss is
    lower where each fold is scaled by the temperature that the other folds give.
    """
    actual = actual.astype(int)
    counted = np.ones(len(actual)) if weights is None else weights
    scaled = np.empty_like(probabilities)
    for held_out in folds:
        others = np.setdiff1d(np.arange(len(actual)), held_out)
        found = _temperature(probabilities[others], actual[others], counted[others])
        scaled[held_out] = tempered(probabilities[held_out], found)
    before, after = (_measure(p, actual, counted) for p in (probabilities, scaled))
    helps = after["log_loss"] < before["log_loss"]
    temperature = _temperature(probabilities, actual, counted) if helps else 1.0
    served = scaled if helps else probabilities
    return Calibration(
        temperature,
        served,
        {
            "method": "temperature" if helps else "none",
            "temperature": temperature,
            "rows": len(actual),
            "before": before,
            "after": after,
            "bins": by_certainty(served, actual),
        },
    )


def tempered(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Scale probabilities (n, k): the softmax of their logarithms over the temperature."""
    scores = np.log(probabilities + LEAST_PROBABILITY) / temperature
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def by_certainty(probabilities: np.ndarray, actual: np.ndarray) -> list[dict[str, Any]]:
    """Return, by how sure of its class an answer was, how sure and how often right: plain JSON.

    The bins are tenths of probability; those without rows are left out.
    """
    sure, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == actual
    place = np.minimum((sure * BINS).astype(int), BINS - 1)
    return [
        {
            "low": number / BINS,
            "high": (number + 1) / BINS,
            "rows": int(there.sum()),
            "probability": float(sure[there].mean()),
            "right": float(right[there].mean()),
        }
        for number in range(BINS)
        if (there := place == number).any()
    ]


def _measure(
    probabilities: np.ndarray, actual: np.ndarray, weights: np.ndarray
) -> dict[str, float]:
    """Return log loss, Brier score (over all classes), and expected calibration error.

    The last is the gap between how sure and how often right, mean over rows (Guo et al., eq. 3).
    """
    squares = ((probabilities - np.eye(probabilities.shape[1])[actual]) ** 2).sum(axis=1)
    bins = by_certainty(probabilities, actual)
    gaps = sum(one["rows"] * abs(one["probability"] - one["right"]) for one in bins)
    return {
        "log_loss": _log_loss(probabilities, actual, weights),
        "brier": float(np.average(squares, weights=weights)),
        "calibration_error": gaps / len(actual),
    }


def _log_loss(probabilities: np.ndarray, actual: np.ndarray, weights: np.ndarray) -> float:
    stated = probabilities[np.arange(len(actual)), actual]
    return float(np.average(-np.log(np.maximum(stated, LEAST_PROBABILITY)), weights=weights))


def _temperature(probabilities: np.ndarray, actual: np.ndarray, weights: np.ndarray) -> float:
    """Return the temperature of the lowest log loss, from 1/20 to 20."""
    limits = -np.log(HOTTEST), np.log(HOTTEST)
    found = minimize_scalar(
        lambda log: _log_loss(tempered(probabilities, float(np.exp(log))), actual, weights),
        bounds=limits,
        method="bounded",
    )
    return float(np.exp(found.x))

"""One candidate as one scikit-learn pipeline: request fields -> model inputs -> estimator.

The whole path from a request to a prediction is inside the object that is fitted, so training
and serving cannot differ. It is fitted on training rows only, the scaler included.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from mlops.usecase import SEED, Candidate, Ratio, UseCase

if TYPE_CHECKING:
    import pandas as pd


class ModelInputs(TransformerMixin, BaseEstimator):  # type: ignore[misc]  # untyped base
    """Turn request fields into the model's inputs: plain fields and ratios of two fields.

    Takes shape (n, len(fields)), as an array in the order of `fields` or as a data frame that has
    them; gives float64 of shape (n, len(inputs)). Learns nothing.
    """

    def __init__(self, fields: tuple[str, ...], inputs: tuple[str | Ratio, ...]) -> None:
        self.fields = fields
        self.inputs = inputs

    def fit(self, X: Any, y: Any = None) -> Self:
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def transform(self, X: pd.DataFrame | np.ndarray) -> np.ndarray:
        rows = X if isinstance(X, np.ndarray) else X[list(self.fields)].to_numpy(dtype=float)
        columns = {name: rows[:, position] for position, name in enumerate(self.fields)}
        return np.column_stack(
            [
                columns[item] if isinstance(item, str) else _ratio(item, columns)
                for item in self.inputs
            ]
        )


def _ratio(item: Ratio, columns: dict[str, np.ndarray]) -> np.ndarray:
    denominator = columns[item.denominator]
    return columns[item.numerator] / np.where(denominator == 0, 1.0, denominator)


def unfitted_pipeline(use_case: UseCase, candidate: Candidate, seed: int = SEED) -> Pipeline:
    """Return the candidate's steps, `inputs`, `scale` where it matters, and `model`."""
    steps: list[tuple[str, Any]] = [("inputs", ModelInputs(use_case.fields, use_case.inputs))]
    if candidate.scaled:
        steps.append(("scale", StandardScaler()))
    steps.append(("model", candidate.build(seed)))
    return Pipeline(steps)

"""Logged rows as arrays: their fields, their answers and truths, and the losses of these."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson

from mlops.records import Prediction
from mlops.usecase import UseCase


def fields_of(use_case: UseCase, rows: Sequence[Prediction]) -> np.ndarray:
    """Return the fields that were answered, in their order, shape (n, fields)."""
    read = (orjson.loads(row.inputs) for row in rows)
    return np.array([[one[field] for field in use_case.fields] for one in read], dtype=float)


def numbers_of(use_case: UseCase, values: Sequence[Any]) -> np.ndarray:
    """Answers or truths as numbers, shape (n,): classes by their place among the labels."""
    labels = use_case.target.labels
    return np.array([labels.index(one) if labels else one for one in values], dtype=float)


def losses_of(use_case: UseCase, answers: np.ndarray, actual: np.ndarray) -> np.ndarray:
    """Return the squared errors, or for classes 1 where they differ, shape (n,)."""
    if use_case.is_classification:
        return np.asarray(answers != actual, dtype=float)
    return np.asarray((answers - actual) ** 2)

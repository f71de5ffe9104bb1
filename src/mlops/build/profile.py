"""What training saw: ranges that warn, and a reference profile that later traffic is held against.

Both are plain data, sealed in the bundle.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

QUANTILES = 101
GOLDEN_ROWS = 50


def training_ranges(names: Sequence[str], values: np.ndarray) -> dict[str, list[float]]:
    """Return the least and greatest training value of each column of `values`, shape (n, names)."""
    return {
        name: [float(column.min()), float(column.max())]
        for name, column in zip(names, values.T, strict=True)
    }


def training_order(
    names: Sequence[str], units: Sequence[str], values: np.ndarray
) -> list[list[str]]:
    """Return the pairs [a, b] of columns in one unit of which a was never more than b.

    `values` has shape (n, names). A row in which a is more has, perhaps, the two swapped: both can
    be within their ranges. Columns in different units are not compared.
    """
    return [
        [a, b]
        for i, a in enumerate(names)
        for j, b in enumerate(names)
        if i != j and units[i] == units[j] and bool((values[:, i] <= values[:, j]).all())
    ]


def reference_profile(columns: dict[str, np.ndarray]) -> dict[str, Any]:
    """Describe the distribution of each column: count, moments, 101 quantiles, distinct values.

    Quantiles 0, 0.01 … 1 by linear interpolation (Hyndman and Fan 1996, type 7). `values` counts
    each distinct value where there are at most 50, else it is null.
    """
    return {name: _describe(np.asarray(column)) for name, column in columns.items()}


def _describe(column: np.ndarray) -> dict[str, Any]:
    values, counts = np.unique(column, return_counts=True)
    return {
        "count": len(column),
        "mean": float(column.mean()),
        "std": float(column.std()),
        "quantiles": np.quantile(column, np.linspace(0, 1, QUANTILES)).tolist(),
        "values": [[float(v), int(n)] for v, n in zip(values, counts, strict=True)]
        if len(values) <= 50
        else None,
    }


def golden_rows(fields: np.ndarray, inputs: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """Choose 50 rows (fewer if there are fewer) whose answers a bundle must always reproduce.

    They touch every edge: for each field, each model input and the prediction, a row that has the
    least value and one that has the greatest; the rest are spread evenly over the predictions.
    All arguments have one row per training row; returns sorted row numbers.
    """
    columns = [*fields.T, *inputs.T, predictions]
    edges = [int(pick) for column in columns for pick in (column.argmin(), column.argmax())]
    chosen = dict.fromkeys(edges[:GOLDEN_ROWS])
    by_prediction = np.argsort(predictions, kind="stable")
    # A stride that visits every row once, so that rows already chosen are simply passed over.
    spread = np.linspace(0, len(predictions) - 1, GOLDEN_ROWS).astype(int)
    for row in [*by_prediction[spread], *by_prediction]:
        if len(chosen) >= min(GOLDEN_ROWS, len(predictions)):
            break
        chosen.setdefault(int(row))
    return np.array(sorted(chosen))

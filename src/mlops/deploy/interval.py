"""The prediction intervals of logged answers, as HTTP and the command line show them.

An interval is not logged itself: the row and the bundle of the version that made it give it again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import orjson

from mlops.deploy.predictor import Conformal, OpenBundle
from mlops.errors import NoIntervalError
from mlops.records import Prediction
from mlops.usecase import UseCase


def conformal_of(use_case: UseCase, version: int, bundle: OpenBundle) -> Conformal:
    """Return what gives a version's answers their intervals, or raise `NoIntervalError`."""
    if bundle.conformal is not None:
        return bundle.conformal
    why = bundle.intervals.get("why", "it was sealed before there were intervals")
    fix = "" if use_case.is_classification else f"train again with: mlops train {use_case.name}"
    raise NoIntervalError(f"version {version} has no intervals: {why}", fix)


def intervals(
    use_case: UseCase, logged: Sequence[Prediction], bundle_of: Callable[[Prediction], OpenBundle]
) -> list[dict[str, Any]]:
    """Return the interval of each of these predictions; `bundle_of` opens what made one.

    Raises `NoIntervalError` for a version that has none.
    """
    found: list[dict[str, Any]] = []
    for _, same in itertools.groupby(logged, lambda row: row.bundle):
        rows = list(same)
        conformal = conformal_of(use_case, rows[0].model_version, bundle_of(rows[0]))
        bounds = conformal.of(*logged_values(use_case, rows))
        found += [
            {"low": low, "high": high, "coverage": conformal.coverage, "capped": capped}
            for low, high, capped in zip(
                bounds.low.tolist(), bounds.high.tolist(), bounds.capped.tolist(), strict=True
            )
        ]
    return found


def logged_values(use_case: UseCase, rows: Sequence[Prediction]) -> tuple[np.ndarray, np.ndarray]:
    """Return the fields (n, f) and the predictions (n,) of logged rows of a regression."""
    inputs = [orjson.loads(row.inputs) for row in rows]
    fields = np.array([[each[name] for name in use_case.fields] for each in inputs], dtype=float)
    return fields, np.array([row.prediction for row in rows], dtype=float)

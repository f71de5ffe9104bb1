"""Prediction intervals in service: a second, small graph that runs only when somebody asks.

    fields, prediction [N, f + 1] -> expected size of the error [N]

An interval goes from `low` such sizes below the prediction to `high` above it, and no further than
the target can be. If targets were cut off at a cap, it reaches up to the cap where a row beyond may
look like this one. The document `intervals.json` holds the numbers, how they were learnt, and what
was measured on held-out rows; `build/conformal.py` tells why they promise what they do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from mlops.errors import BundleError
from mlops.package.model import OnnxModel


class Bounds(NamedTuple):
    """Intervals of n rows, in the target's unit."""

    low: np.ndarray
    """float64 [n]"""
    high: np.ndarray
    """float64 [n]"""
    capped: np.ndarray
    """bool [n]: the upper end is where targets were cut off, so the truth may be beyond."""


class Conformal:
    """The intervals of one bundle. Holds no state between calls and may be shared by threads."""

    def __init__(self, document: Mapping[str, Any], scale: OnnxModel) -> None:
        self.coverage: float = document["coverage"]
        self._scale = scale
        self._low: float = document["quantiles"]["low"]
        self._high: float = document["quantiles"]["high"]
        self._cap: Mapping[str, float] | None = document["cap"]
        self._least, self._greatest = document["limits"]

    def of(self, rows: np.ndarray, prediction: np.ndarray) -> Bounds:
        """Return the intervals of answers (n,) to rows of fields, float64 [n, fields].

        low <= high, both within the target's limits; a prediction that is within them lies between.
        Raises `BundleError` if one is not finite.
        """
        scale = self._scale.run(np.column_stack([rows, prediction])).prediction
        low, high = prediction - self._low * scale, prediction + self._high * scale
        if not np.isfinite(high - low).all():
            raise BundleError(
                "the interval of a prediction is not finite",
                "train again: the bundle's intervals are not those of its model",
            )
        capped = np.zeros(len(high), dtype=bool)
        if self._cap is not None:
            at = self._cap["at"]
            reaches = prediction + self._cap["high"] * scale >= at
            high = np.where(reaches, np.maximum(high, at), high)
            capped = high >= at
        low, high = (np.clip(end, self._least, self._greatest) for end in (low, high))
        return Bounds(low, high, capped)


def conformal_of(document: Mapping[str, Any], graph: bytes | None) -> Conformal | None:
    """Return what gives a bundle's answers their intervals, if it holds what that takes.

    Raises `BundleError` if document or graph cannot be used.
    """
    if graph is None:
        return None
    try:
        return Conformal(document, OnnxModel(graph))
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(
            f"intervals.json does not say how intervals are made ({error!r})",
            "train again: the document is damaged",
        ) from None

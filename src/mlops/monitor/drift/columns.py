"""Rows, from the log or a file, as the columns that a profile counts: float64 [n, columns].

Those are the request's fields, the model's derived inputs and the prediction. What is no number is
NaN; a label that no class has is the number after the last class, which counts as new.
"""

from __future__ import annotations

import itertools
import operator
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson

from mlops.usecase import Ratio, UseCase

PREDICTION = "prediction"


def names(use_case: UseCase) -> list[str]:
    """Return the columns of a use case, each once: fields, derived inputs, the prediction."""
    return [*use_case.fields, *(ratio.name for ratio in _ratios(use_case)), PREDICTION]


def labels(use_case: UseCase) -> dict[str, tuple[str, ...]]:
    """Return the names of the classes, by the column that holds their numbers."""
    return {PREDICTION: use_case.target.labels} if use_case.target.labels else {}


def columns(
    use_case: UseCase, wanted: Sequence[str], fields: np.ndarray, prediction: np.ndarray
) -> np.ndarray:
    """Return the columns that are `wanted`; one that the use case does not have is all NaN.

    `fields` float64 [n, fields]; `prediction` float64 [n]: the number, or that of the class.
    """
    known = dict(zip(use_case.fields, fields.T, strict=True))
    for ratio in _ratios(use_case):
        below = known[ratio.denominator]
        known[ratio.name] = known[ratio.numerator] / np.where(below == 0, 1.0, below)
    known[PREDICTION] = prediction
    nothing = np.full(len(fields), np.nan)
    return np.column_stack([known.get(name, nothing) for name in wanted])


def of_logged(
    use_case: UseCase, wanted: Sequence[str], inputs: Sequence[str], predictions: Sequence[Any]
) -> np.ndarray:
    """Return logged rows as columns; `inputs` is the JSON text of each."""
    records = orjson.loads(f"[{','.join(inputs)}]")
    rows = map(operator.itemgetter(*use_case.fields), records)
    try:
        values = list(itertools.chain.from_iterable(rows))
        # In two thirds of the time that np.array takes: rows are read beside those who answer.
        fields = np.frombuffer(struct.pack(f"{len(values)}d", *values))
    except (KeyError, struct.error):  # logged when the use case had other fields
        found = [record.get(name) for record in records for name in use_case.fields]
        fields = np.array(found, dtype=float)
    fields = fields.reshape(len(records), len(use_case.fields))
    return columns(use_case, wanted, fields, numbers(use_case, predictions))


def numbers(use_case: UseCase, predictions: Sequence[Any]) -> np.ndarray:
    """Return answers as numbers: labels by their place, what is None as NaN."""
    known: Mapping[Any, float] = {
        label: float(place) for place, label in enumerate(use_case.target.labels)
    }
    if known:
        new = float(len(known))
        return np.array([np.nan if one is None else known.get(one, new) for one in predictions])
    return np.array(predictions, dtype=float)


def _ratios(use_case: UseCase) -> list[Ratio]:
    return [item for item in use_case.inputs if not isinstance(item, str)]

"""From validated rows to predictions: one call of the model for all rows at hand.

A `Champion` is a version with its opened bundle. It answers for as many rows as are waiting; each
row's answer depends on that row alone, so answering together changes nothing but the cost (and,
for a model that multiplies matrices, the rounding of the last digit).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Any, Protocol

import numpy as np
import orjson

from mlops import clock
from mlops.deploy.unlike import Unlike
from mlops.errors import MlopsError
from mlops.records import Prediction, from_columns
from mlops.usecase import UseCase

VARIANTS = {digit: "89ab"[int(digit, 16) % 4] for digit in "0123456789abcdef"}
"""The two bits that say RFC 9562, before two random ones."""


class Output(Protocol):
    """What a model gives for n rows: inputs (n, i), prediction (n,), probabilities (n, k)."""

    @property
    def inputs(self) -> np.ndarray: ...
    @property
    def prediction(self) -> np.ndarray: ...
    @property
    def probabilities(self) -> np.ndarray | None: ...


class Model(Protocol):
    def run(self, rows: np.ndarray) -> Output: ...


class Explained(Protocol):
    """Contributions to the answers to n rows: see `package.explainer.Explained`."""

    @property
    def output(self) -> Output: ...
    @property
    def value(self) -> np.ndarray: ...
    @property
    def base(self) -> np.ndarray: ...
    @property
    def contributions(self) -> np.ndarray: ...
    @property
    def derived(self) -> np.ndarray | None: ...


class Explainer(Protocol):
    method: str

    def explain(self, rows: np.ndarray) -> Explained: ...


class Bounds(Protocol):
    """Intervals of n answers: see `package.intervals.Bounds`."""

    @property
    def low(self) -> np.ndarray: ...
    @property
    def high(self) -> np.ndarray: ...
    @property
    def capped(self) -> np.ndarray: ...


class Conformal(Protocol):
    coverage: float

    def of(self, rows: np.ndarray, prediction: np.ndarray) -> Bounds: ...


class OpenBundle(Protocol):
    """What serving needs of an opened bundle."""

    @property
    def hash(self) -> str: ...
    @property
    def model(self) -> Model: ...
    @property
    def signature(self) -> dict[str, Any]: ...
    @property
    def golden(self) -> dict[str, Any]: ...
    @property
    def reference(self) -> dict[str, Any]: ...
    @property
    def training(self) -> dict[str, Any]: ...
    @property
    def metrics(self) -> dict[str, Any]: ...
    @property
    def provenance(self) -> dict[str, Any]: ...
    @property
    def explanation(self) -> dict[str, Any]: ...
    @property
    def explainer(self) -> Explainer | None: ...
    @property
    def intervals(self) -> dict[str, Any]: ...
    @property
    def conformal(self) -> Conformal | None: ...


class NotFiniteError(MlopsError):
    """A model gave, for `rows`, what is not finite; `predictions` holds all rows, those too."""

    def __init__(self, version: int, rows: list[int], predictions: list[Prediction]) -> None:
        super().__init__(f"version {version} answered with a number that is not finite")
        self.rows = rows
        self.predictions = predictions


class Champion:
    """A registered version that answers."""

    def __init__(self, use_case: UseCase, version: int, candidate: str, bundle: OpenBundle) -> None:
        self.use_case = use_case
        self.version = version
        self.candidate = candidate
        self.bundle = bundle
        self._model = bundle.model
        self._warnings = Unlike(use_case, bundle.signature).tell

    def predict(
        self,
        rows: Sequence[Sequence[float]] | np.ndarray,
        inputs: Sequence[str],
        clients: Sequence[str | None],
    ) -> list[Prediction]:
        """Answer rows of field values (in field order), each with its JSON text and its client.

        Raises `NotFiniteError` if the model gives what is not finite, and whatever it raises.
        """
        matrix = np.asarray(rows, dtype=np.float64)
        output = self._model.run(matrix)
        number, labels = len(matrix), self.use_case.target.labels
        values = output.prediction.tolist()
        numbers = [values] if output.probabilities is None else output.probabilities.tolist()
        probabilities: Iterable[str | None] = repeat(None)
        if output.probabilities is not None:
            probabilities = (
                orjson.dumps(dict(zip(labels, row, strict=True))).decode() for row in numbers
            )
        warnings = self._warnings(matrix, output.inputs)
        columns = (  # in the order of a Prediction's fields
            new_ids(number),
            repeat(clock.stamp()),
            inputs,
            [labels[value] for value in values] if labels else values,
            probabilities,
            map(warnings.get, range(number)) if warnings else repeat(None),
            repeat(self.version),
            repeat(self.bundle.hash),
            clients,
            repeat(0),
        )
        predictions = from_columns(columns)
        if not math.isfinite(sum(map(sum, numbers))):  # or large ones that add up to more
            odd = [not np.all(np.isfinite(row)) for row in (numbers if labels else values)]
            if any(odd):
                raise NotFiniteError(self.version, np.flatnonzero(odd).tolist(), predictions)
        return predictions


def answer(use_case: UseCase, prediction: Prediction) -> str:
    """Return the JSON answer for a logged prediction; the same one each time it is asked for."""
    target = use_case.target
    name, _, _, value, probabilities, warnings, version, *_ = prediction
    shown = orjson.dumps(value).decode()
    if probabilities is not None:
        number = target.labels.index(str(value))
        shown = f'{number},"predicted_label":{shown},"probabilities":{probabilities}'
    return (
        f'{{"{target.name}":{shown},"prediction_id":"{name}","model_version":{version},'
        f'"warnings":{warnings or "[]"}}}'
    )


def answers(use_case: UseCase, predictions: Sequence[Prediction]) -> list[str]:
    """Return the answer to each of one or more predictions, in half the time."""
    if use_case.target.labels:
        return [answer(use_case, one) for one in predictions]
    head = f'{{"{use_case.target.name}":'
    shown = orjson.dumps([one.prediction for one in predictions])[1:-1].decode().split(",")
    versions = {one.model_version for one in predictions}
    middle = {one: f'","model_version":{one},"warnings":' for one in versions}
    return [
        f'{head}{number},"prediction_id":"{name}{middle[version]}{warnings or "[]"}}}'
        for number, (name, _, _, _, _, warnings, version, _, _, _) in zip(
            shown, predictions, strict=True
        )
    ]


def new_ids(number: int) -> list[str]:
    """Return UUIDs version 7 (RFC 9562): 48 bits of milliseconds, then 73 random bits.

    Several count up from the first (its section 6.2, method 2), with a bit kept free to carry
    into. Ids rise with time, so the log's index on them only ever grows at its end.
    """
    now = f"{int(1000 * clock.unix()):012x}"
    random = os.urandom(10)
    digits = random[:4].hex()
    head = f"{now[:8]}-{now[8:]}-7{digits[:3]}-{VARIANTS[digits[3]]}{digits[4:7]}-"
    first = int.from_bytes(random[4:]) >> 1
    return [head + last.to_bytes(6).hex() for last in range(first, first + number)]

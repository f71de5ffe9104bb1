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
    def explanation(self) -> dict[str, Any]: ...
    @property
    def explainer(self) -> Explainer | None: ...


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
        seen = bundle.signature["training_ranges"]
        self._watched = (*use_case.fields, *_derived(use_case))
        self._units = bundle.signature["units"]
        # Bundles sealed before there was an order have none.
        self._ordered = [tuple(pair) for pair in bundle.signature.get("training_order", ())]
        less = [use_case.fields.index(a) for a, _ in self._ordered]
        more = [use_case.fields.index(b) for _, b in self._ordered]
        self._less, self._more = np.array(less, dtype=int), np.array(more, dtype=int)
        # What is watched: fields, derived inputs, and how much the lesser of a pair is more.
        any_order = len(self._ordered)
        self._low = np.array([*(seen[name][0] for name in self._watched), *[-np.inf] * any_order])
        self._high = np.array([*(seen[name][1] for name in self._watched), *[0.0] * any_order])
        self._derived = np.array(
            [use_case.input_names.index(name) for name in _derived(use_case)], dtype=int
        )
        # The same for one row alone, without numpy.
        self._of_one = self._derived.tolist(), list(zip(less, more, strict=True))
        self._limits = list(zip(self._low.tolist(), self._high.tolist(), strict=True))

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

    def _warnings(self, fields: np.ndarray, inputs: np.ndarray) -> dict[int, str]:
        """Return, for rows unlike the training data, a JSON list that says in what."""
        if len(fields) == 1 and self._is_usual(fields[0].tolist(), inputs[0].tolist()):
            return {}
        parts = [fields]
        if len(self._derived):
            parts.append(inputs.take(self._derived, axis=1))
        if self._ordered:
            parts.append(fields.take(self._less, axis=1) - fields.take(self._more, axis=1))
        watched = np.concatenate(parts, axis=1) if len(parts) > 1 else fields
        outside = (watched < self._low) | (watched > self._high)
        if not np.count_nonzero(outside):  # a third of the time that any() takes
            return {}
        found: dict[int, list[str]] = {}
        for row, column in np.argwhere(outside).tolist():
            if column >= len(self._watched):
                a, b = self._ordered[column - len(self._watched)]
                found.setdefault(row, []).append(
                    f"{a} is more than {b}, which training never saw: were they swapped?"
                )
                continue
            name = self._watched[column]
            low, high = float(self._low[column]), float(self._high[column])
            found.setdefault(row, []).append(
                f"{name} = {float(watched[row, column]):.6g} is outside what training saw: "
                f"{low:.6g} to {high:.6g} {self._units[name]}"
            )
        return {row: orjson.dumps(texts).decode() for row, texts in found.items()}

    def _is_usual(self, fields: list[float], inputs: list[float]) -> bool:
        """Whether one row has nothing to be warned of: told in half the time that numpy takes."""
        derived, pairs = self._of_one
        watched = [*fields, *[inputs[column] for column in derived]]
        watched += [fields[a] - fields[b] for a, b in pairs]
        for value, (low, high) in zip(watched, self._limits, strict=True):
            if value < low or value > high:
                return False
        return True


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
    return [f"{head}{last:012x}" for last in range(first, first + number)]


def _derived(use_case: UseCase) -> tuple[str, ...]:
    return tuple(name for name in use_case.input_names if name not in use_case.fields)

"""What in a request is unlike anything that training saw, in words for the one who sent it.

A value out of its range, a fraction where all were whole, two fields in an order that never was,
or two that look swapped: all learnt from the training rows and sealed in the bundle's signature
(`build/profile.py`, `build/swaps.py`). It warns; the request is answered all the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson

from mlops.usecase import UseCase


class Unlike:
    """Tells rows that are unlike the training rows. A bundle that lacks a part is not asked it."""

    def __init__(self, use_case: UseCase, signature: Mapping[str, Any]) -> None:
        fields, seen = use_case.fields, signature["training_ranges"]
        derived = [name for name in use_case.input_names if name not in fields]
        whole = set(signature.get("training_whole", ()))
        self._fields = fields
        self._units = signature["units"]
        self._named = (*fields, *derived)
        self._derived = np.array([use_case.input_names.index(name) for name in derived], dtype=int)
        self._fractions = bool(whole)
        self._ordered = [tuple(pair) for pair in signature.get("training_order", ())]
        self._swaps = list(signature.get("training_swaps", ()))
        # Of two fields, the first should not be more than so many times the second.
        pairs = [(a, b, 1.0) for a, b in self._ordered]
        for swap in self._swaps:
            more, less = swap["fields"]
            pairs.append((less, more, 1 / swap["suspect_below"]))
        self._pairs = np.zeros((len(fields), len(pairs)))
        for place, (a, b, times) in enumerate(pairs):
            self._pairs[[fields.index(a), fields.index(b)], place] = 1, -times
        self._scores = [
            (np.array(swap["quadratic"]), np.array(swap["linear"]), swap["threshold"])
            for swap in self._swaps
        ]
        # The same for one row alone, without numpy.
        self._of_one = (
            self._derived.tolist(),
            [place for place, name in enumerate(fields) if name in whole],
            [(fields.index(a), fields.index(b), times) for a, b, times in pairs],
        )
        self._limits = [tuple(seen[name]) for name in self._named]
        # What is watched, in this order: named values, fractions of fields, pairs.
        fractions = [0.0 if name in whole else np.inf for name in fields] * self._fractions
        low = [-np.inf] * (len(fractions) + len(pairs))
        self._low = np.array([*(seen[name][0] for name in self._named), *low])
        self._high = np.array(
            [*(seen[name][1] for name in self._named), *fractions, *[0.0] * len(pairs)]
        )

    def tell(self, fields: np.ndarray, inputs: np.ndarray) -> dict[int, str]:
        """Return, for rows unlike the training data, a JSON list that says in what.

        `fields` has shape (n, fields), `inputs` what the model makes of them (n, inputs).
        """
        if len(fields) == 1 and self._is_usual(fields[0].tolist(), inputs[0].tolist()):
            return {}
        watched, outside = self._outside(fields, inputs)
        if not np.count_nonzero(outside):  # a third of the time that any() takes
            return {}
        found: dict[int, list[str]] = {}
        for row, column in np.argwhere(outside).tolist():
            said = found.setdefault(row, [])
            if text := self._text(column, watched[row], not said):
                said.append(text)
        return {row: orjson.dumps(texts).decode() for row, texts in found.items()}

    def _is_usual(self, fields: list[float], inputs: list[float]) -> bool:
        """Whether one row has nothing to be warned of: told in half the time that numpy takes."""
        derived, whole, pairs = self._of_one
        watched = [*fields, *[inputs[column] for column in derived]]
        return not (
            any(v < low or v > high for v, (low, high) in zip(watched, self._limits, strict=True))
            or any(fields[column] % 1 for column in whole)
            or any(fields[less] > fields[more] * times for less, more, times in pairs)
        )

    def rows(self, fields: np.ndarray, inputs: np.ndarray) -> np.ndarray:
        """Return which rows are unlike the training data, of shape (n,)."""
        return np.asarray(self._outside(fields, inputs)[1].any(axis=1))

    def _outside(self, fields: np.ndarray, inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        parts = [fields]
        if len(self._derived):
            parts.append(inputs.take(self._derived, axis=1))
        if self._fractions:
            parts.append(fields - np.floor(fields))
        if self._pairs.size:
            parts.append(fields @ self._pairs)
        watched = np.concatenate(parts, axis=1) if len(parts) > 1 else fields
        outside: np.ndarray = np.logical_or(watched < self._low, watched > self._high)
        if self._scores and np.count_nonzero(outside):
            self._clear_honest(fields, outside)
        return watched, outside

    def _clear_honest(self, fields: np.ndarray, outside: np.ndarray) -> None:
        """Of the rows in which two fields may be swapped, leave those that all fields speak for."""
        first = outside.shape[1] - len(self._scores)
        for place, (quadratic, linear, threshold) in enumerate(self._scores, start=first):
            suspects = np.flatnonzero(outside[:, place])
            if len(suspects):
                x = np.arcsinh(fields[suspects])
                outside[suspects, place] = ((x @ quadratic + linear) * x).sum(axis=1) > threshold

    def _text(self, column: int, watched: np.ndarray, alone: bool) -> str:
        """Say what a column is outside of; nothing of a swap if there is a plainer thing to say."""
        if column < len(self._named):
            name = self._named[column]
            low, high = float(self._low[column]), float(self._high[column])
            return (
                f"{name} = {float(watched[column]):.6g} is outside what training saw: "
                f"{low:.6g} to {high:.6g} {self._units[name]}"
            )
        column -= len(self._named)
        if self._fractions:
            if column < len(self._fields):
                return (
                    f"{self._fields[column]} = {float(watched[column]):.6g} is not a whole number, "
                    "and training saw no other"
                )
            column -= len(self._fields)
        if column < len(self._ordered):
            a, b = self._ordered[column]
            return f"{a} is more than {b}, which training never saw: were they swapped?"
        a, b = (
            f"{name} = {float(watched[self._fields.index(name)]):.6g}"
            for name in self._swaps[column - len(self._ordered)]["fields"]
        )
        said = f"{a} and {b}: with all other fields, training saw them rather the other way round"
        return f"{said}; were they swapped?" if alone else ""

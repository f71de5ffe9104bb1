"""Rows on which an inexact export of trees would show: on every threshold, and just beside it.

A comparison that is made in another precision, or with < for <=, gives the same answer almost
everywhere; it differs on the threshold. Each probe is a real row that comes by the threshold's
question on its way down the tree, with the asked input moved onto the threshold: only such a row
has an answer that hangs on the comparison.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from mlops.errors import UsageError
from mlops.package import trees
from mlops.usecase import Ratio


def on_thresholds(pipeline: Any, rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Yield probes as arrays of request fields, at most about `size` rows each; none if no trees.

    For each (model input, threshold) of the fitted pipeline: the threshold, its two neighbours in
    double, and where the trees round to float32 the two float32 that enclose it. `rows`, float64
    [n, fields], are real rows to move. The order is always the same. In an ensemble these are the
    thresholds of all its members.
    """
    steps = pipeline.named_steps
    inputs, outer = pipeline[:-1].transform(rows), steps.get("scale")
    for inner, forest in trees.within(steps["model"]):
        if inner is not None and outer is not None:
            raise UsageError(
                "a member with a scaler behind another scaler has no probes",
                "scale all members at once (scaled=True), or each by itself",
            )
        seen = inputs if inner is None else inner.transform(inputs)
        scaler = outer if inner is None else inner
        yield from _on_forest(forest, seen, rows, scaler, steps["inputs"], size)


def _on_forest(
    forest: trees.Forest,
    seen: np.ndarray,
    rows: np.ndarray,
    scaler: Any,
    inputs: Any,
    size: int,
) -> Iterator[np.ndarray]:
    """Yield the probes of one forest; `seen` is what it sees of `rows`."""
    feature, threshold, guide = _questions(forest, seen)
    values = _values(threshold, feature, scaler, forest.float32)
    place = {name: position for position, name in enumerate(inputs.fields)}
    step = max(1, size // values.shape[1])
    for start in range(0, len(feature), step):
        part = slice(start, start + step)
        probes = np.repeat(rows[guide[part], None], values.shape[1], axis=1)
        for number, item in enumerate(inputs.inputs):
            asked = feature[part] == number
            probes[asked] = _move(probes[asked], item, values[part][asked], place)
        yield probes.reshape(-1, rows.shape[1])


def _questions(
    forest: trees.Forest, inputs: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Feature and threshold of each different question, and a row that is asked it.

    `inputs` are what the trees see. Where no row comes by, the rows take turns.
    """
    visitor = _visitors(forest, inputs)
    # Visited nodes first, so that they are the ones np.unique keeps. Lone leaves ask nothing.
    order = np.argsort(visitor < 0, kind="stable")
    order = order[np.isfinite(forest.threshold[order])]
    questions, first = np.unique(
        np.column_stack([forest.feature, forest.threshold])[order], axis=0, return_index=True
    )
    visitor = visitor[order][first]
    guide = np.where(visitor < 0, np.arange(len(first)) % len(inputs), visitor)
    return questions[:, 0].astype(np.int64), questions[:, 1], guide


def _visitors(forest: trees.Forest, inputs: np.ndarray) -> np.ndarray:
    """Return for each node the first row that comes by, or -1."""
    if forest.float32:
        inputs = inputs.astype(np.float32).astype(float)
    visitor = np.full(len(forest.feature), -1)
    for root in forest.roots:
        row, node = np.arange(len(inputs)), np.full(len(inputs), root)
        while row.size:
            visitor[node[::-1]] = row[::-1]  # the last assignment stays: the first row's
            goes_left = inputs[row, forest.feature[node]] <= forest.threshold[node]
            node = np.where(goes_left, forest.left[node], forest.right[node])
            row, node = row[node >= 0], node[node >= 0]
    return visitor


def _values(threshold: np.ndarray, feature: np.ndarray, scaler: Any, float32: bool) -> np.ndarray:
    """Return what to set each input to, [questions, 3 or 5], in units before scaling."""

    def unscaled(value: np.ndarray) -> np.ndarray:
        if scaler is None:
            return value
        scale = scaler.scale_[feature] if scaler.with_std else 1.0
        return value * scale + (scaler.mean_[feature] if scaler.with_mean else 0.0)

    on = unscaled(threshold)
    values = [on, np.nextafter(on, -np.inf), np.nextafter(on, np.inf)]
    if float32:
        near = threshold.astype(np.float32)
        far = np.nextafter(near, np.where(near > threshold, -np.inf, np.inf).astype(np.float32))
        values += [unscaled(near.astype(float)), unscaled(far.astype(float))]
    return np.column_stack(values)


def _move(
    rows: np.ndarray, item: str | Ratio, values: np.ndarray, place: dict[str, int]
) -> np.ndarray:
    """Set fields of rows [n, k, fields] so that the model input `item` is exactly values [n, k]."""
    if isinstance(item, str):
        rows[..., place[item]] = values
        return rows
    # Products with and quotients by a power of two are exact, so the numerator can be computed;
    # the one nearest to the row's own denominator leaves the row as it was, nearly.
    denominator = rows[..., place[item.denominator]]
    power = np.exp2(np.round(np.log2(np.where(denominator > 0, denominator, 1.0))))
    rows[..., place[item.denominator]] = power
    rows[..., place[item.numerator]] = values * power
    return rows

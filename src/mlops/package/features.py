"""Feature transformers as graph operations: the numbers of `estimators/features.py`, to the bit.

Each function takes the name of a value [N, columns] and returns the name of what the transformer
makes of it. The operations stand in the transformer's order, one at a time; `CumSum` adds up from
the first to the last as numpy's does, `TopK` prefers the earlier of two that are as near.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from mlops.errors import UsageError
from mlops.package.graph import Graph
from mlops.package.trees import Forest

AT_ONCE = 32
"""Rows that a graph of kernels answers at once: thousands of numbers a row have to fit a cache."""


def transform(graph: Graph, transformer: Any, given: str) -> str:
    """Add a fitted transformer. Raises `UsageError` for one that has no export."""
    for base in type(transformer).__mro__:
        if base.__name__ in TRANSFORMERS:
            return TRANSFORMERS[base.__name__](graph, transformer, given)
    raise UsageError(
        f"{type(transformer).__name__} has no exact ONNX export",
        f"use one of {', '.join(sorted(TRANSFORMERS))}",
    )


def _scale(graph: Graph, scaler: Any, given: str) -> str:
    """Add a `StandardScaler`."""
    if scaler.with_mean:
        given = graph.add("Sub", given, scaler.mean_)
    if scaler.with_std:
        given = graph.add("Div", given, scaler.scale_)
    return given


def _union(graph: Graph, union: Any, given: str) -> str:
    if union.transformer_weights:
        raise UsageError("a FeatureUnion with weights has no ONNX export", "leave out the weights")
    parts = []
    for _, part in union.transformer_list:
        if part == "passthrough" or type(part).__name__ == "FunctionTransformer":
            parts.append(given)  # what a fitted union makes of "passthrough"
        elif part != "drop":
            parts.append(transform(graph, part, given))
    return graph.add("Concat", *parts, axis=1)


def _columns(graph: Graph, given: str, places: list[int]) -> str:
    return graph.add("Gather", given, np.array(places), axis=1)


def _quotients(graph: Graph, quotients: Any, given: str) -> str:
    above, below = (
        _columns(graph, given, quotients.places(names))
        for names in zip(*quotients.pairs, strict=True)
    )
    nothing = graph.add("Equal", below, np.array(0.0))
    return graph.add("Div", above, graph.add("Where", nothing, np.array(1.0), below))


def _geography(graph: Graph, geography: Any, given: str) -> str:
    x, y = _scaled(graph, geography, (geography.longitude, geography.latitude), given)
    along, across = geography.axes
    parts = [graph.add("Add", graph.add("Mul", x, along), graph.add("Mul", y, across))]
    if geography.towns:
        towns = np.array([place for _, *place in geography.towns]) * geography.scale
        parts.append(graph.add("Sqrt", _squared(graph, x, y, towns[:, 0], towns[:, 1])))
    if geography.line:
        parts.append(_to_line(graph, geography, x, y))
    return graph.add("Concat", *parts, axis=1)


def _squared(graph: Graph, x: str, y: str, others_x: np.ndarray, others_y: np.ndarray) -> str:
    east, north = graph.add("Sub", x, others_x), graph.add("Sub", y, others_y)
    return graph.add("Add", graph.add("Mul", east, east), graph.add("Mul", north, north))


def _to_line(graph: Graph, geography: Any, x: str, y: str) -> str:
    start_x, start_y, way_x, way_y, squared = geography.segments
    east, north = graph.add("Sub", x, start_x), graph.add("Sub", y, start_y)
    both = graph.add("Add", graph.add("Mul", east, way_x), graph.add("Mul", north, way_y))
    along = graph.add("Div", both, squared)
    along = graph.add("Min", graph.add("Max", along, np.array(0.0)), np.array(1.0))
    east = graph.add("Sub", east, graph.add("Mul", along, way_x))
    north = graph.add("Sub", north, graph.add("Mul", along, way_y))
    apart = graph.add("Add", graph.add("Mul", east, east), graph.add("Mul", north, north))
    return graph.add("Sqrt", graph.add("ReduceMin", apart, np.array([1]), keepdims=1))


def _neighbours(graph: Graph, neighbours: Any, given: str) -> str:
    add = graph.add
    x, y = _scaled(graph, neighbours, (neighbours.x, neighbours.y), given)
    known = neighbours.known_
    counted = np.array(neighbours.counts) - 1
    last, one = np.array([counted[-1]]), np.array(1.0)
    squared, nearest = _nearest(graph, neighbours, x, y)
    distance = add("Sqrt", squared)
    weight = add("Div", one, add("Add", distance, np.array(neighbours.softening)))
    meant = add("Gather", known[:, :-2], nearest, axis=0)  # [N, neighbours, meant]
    weighed = add("Unsqueeze", weight, np.array([2]))
    summed = add("CumSum", add("Mul", meant, weighed), np.array(1))
    means = add(
        "Div",
        add("Gather", summed, counted, axis=1),
        add("Gather", add("CumSum", weighed, np.array(1)), counted, axis=1),
    )
    per, alike = (
        add("Add", _columns(graph, given, neighbours.places((name,))), np.array(0.5))
        for name in (neighbours.per, neighbours.alike)
    )
    like = _less_over_more(graph, add("Gather", known[:, -2] + 0.5, nearest, axis=0), per)
    like = add("Mul", like, like)
    first = add("Mul", weight, add("Mul", like, like))
    older = _less_over_more(graph, add("Gather", known[:, -1] + 0.5, nearest, axis=0), alike)
    second = add("Div", add("Mul", first, older), add("Add", distance, np.array(2.0)))
    target = add("Gather", known[:, 0], nearest, axis=0)
    similar = []
    for weights in (first, second):
        above, below = (
            add("Gather", add("CumSum", value, np.array(1)), last, axis=1)
            for value in (add("Mul", target, weights), weights)
        )
        similar.append(add("Div", above, below))
    width = known.shape[1] - 2
    mean = add("Gather", means, np.array(0), axis=2)
    square = add("Gather", means, np.array(width - 1), axis=2)
    spread = add("Sub", square, add("Mul", mean, mean))
    spread = add("Sqrt", add("Max", spread, np.array(0.0)))
    kept = add("Gather", means, np.arange(width - 1), axis=2)
    flat = add("Reshape", kept, np.array([-1, (width - 1) * len(counted)]))
    return add("Concat", flat, spread, add("Gather", distance, counted, axis=1), *similar, axis=1)


def _less_over_more(graph: Graph, a: str, b: str) -> str:
    return graph.add("Div", graph.add("Min", a, b), graph.add("Max", a, b))


def _nearest(graph: Graph, neighbours: Any, x: str, y: str) -> tuple[str, str]:
    """Look up the rectangle of a place, then the nearest among the rows that it lists."""
    add = graph.add
    number = _region(graph, neighbours.map_, x, y)
    rows = add("Gather", neighbours.map_.rows, number, axis=0)  # [N, listed]
    east, north = (
        add("Sub", mine, add("Gather", neighbours.places_[:, axis], rows, axis=0))
        for axis, mine in enumerate((x, y))
    )
    apart = add("Add", add("Mul", east, east), add("Mul", north, north))
    squared, order = graph.nearest(apart, max(neighbours.counts))
    return squared, add("GatherElements", rows, order, axis=1)


def _region(graph: Graph, map_: Any, x: str, y: str) -> str:
    """Walk a map's questions; return the numbers of the rectangles [N]."""
    rectangles = len(map_.rows)
    forest = Forest(
        feature=map_.axis,
        threshold=map_.threshold,
        left=map_.left,
        right=map_.right,
        leaves=np.arange(rectangles, dtype=float),
        roots=np.zeros(1, np.int64),
        tree=np.zeros(rectangles, np.int64),
    )
    place = graph.add("Concat", x, y, axis=1)
    number = graph.trees(forest, place, forest.leaves, forest.tree)
    return graph.add("Squeeze", graph.add("Cast", number, to=np.int64), np.array([1]))


def _regions(graph: Graph, regions: Any, given: str) -> str:
    x, y = _scaled(graph, regions, (regions.x, regions.y), given)
    return graph.add("Gather", regions.table_, _region(graph, regions.map_, x, y), axis=0)


def _scaled(graph: Graph, of: Any, names: tuple[str, str], given: str) -> Iterator[str]:
    """Yield two inputs of a transformer times its `scale`, each [N, 1]."""
    for name, scale in zip(names, of.scale, strict=True):
        yield graph.add("Mul", _columns(graph, given, of.places((name,))), np.array(float(scale)))


def kernels(graph: Graph, model: Any, given: str, output: str = "") -> str:
    """Add a `KernelRegressor`; return its answers [N]. Equal to some 1e-12, as sums differ."""
    add = graph.add
    graph.at_once = AT_ONCE
    seen = _columns(graph, given, [model.columns.index(name) for name in model.used])
    logged = np.array([[offset is not None for offset in model.offsets]])
    if logged.any():
        offsets = np.array([offset or 0.0 for offset in model.offsets])
        # A logarithm of what has none would be NaN: it is taken of 1 there.
        of = add("Where", logged, add("Add", seen, offsets), np.array(1.0))
        seen = add("Where", logged, add("Log", of), seen)
    seen = add("Div", add("Sub", seen, model.mean_), model.scale_)
    seen = add("Min", add("Max", seen, np.array(-5.0)), np.array(5.0))
    # All kernels in one stack [kernels, N, ...]: an operation takes 1 µs before it does anything.
    lengths = np.sqrt(3.0) * np.stack([model.weights(kernel) for kernel in model.kernels])[:, None]
    mine, theirs = add("Mul", seen, lengths), model.rows_ * lengths
    # |a - b|² = |a|² - 2ab + |b|²: the first two in one product, [a, |a|²] x [-2b, 1].
    own = add("ReduceSum", add("Mul", mine, mine), np.array([2]), keepdims=1)
    across = np.concatenate([-2.0 * theirs, np.ones_like(theirs[:, :, :1])], axis=2)
    squared = add("MatMul", add("Concat", mine, own, axis=2), np.swapaxes(across, 1, 2))
    squared = add("Add", squared, (theirs * theirs).sum(axis=2)[:, None])
    # Where a row lies on another, what is left of rounding may be below zero.
    distance = add("Sqrt", add("Abs", squared))
    falling = add("Exp", add("Neg", distance))
    weighed = add("Mul", add("Add", distance, np.array(1.0)), falling)
    variances = np.array([[[kernel.variance * model.target_scale_]] for kernel in model.kernels])
    # A product with one column takes thrice as long as this.
    answers = add("Mul", weighed, variances * model.coefficients_)
    # Over both at once takes twice as long.
    each = add("ReduceSum", answers, np.array([2]), keepdims=0)
    total = add("ReduceSum", each, np.array([0]), keepdims=0)
    return add("Add", total, np.array(model.target_mean_), output=output)


TRANSFORMERS: dict[str, Callable[[Graph, Any, str], str]] = {
    "FeatureUnion": _union,
    "Geography": _geography,
    "Neighbours": _neighbours,
    "Quotients": _quotients,
    "Regions": _regions,
    "StandardScaler": _scale,
}
"""By the name of a class or base class."""

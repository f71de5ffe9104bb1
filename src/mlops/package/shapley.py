"""Shapley values: how much each input adds to one prediction, exactly and in numpy alone.

A game is a value v(S) of every set S of known inputs; an input's Shapley value is what it adds to
v, averaged over all orders in which the inputs can become known (Shapley 1953). The values of all
inputs sum to v(all) - v(none), whatever the game.

**Trees** (`Paths`). An input that is not known is answered for by the training rows: at its
question both ways are gone, each as often as training rows went (the path-dependent game of
TreeSHAP, Lundberg et al. 2020, Nature Machine Intelligence 2). Leaf by leaf, v is a product,

    v(S) = value · Π_j (one_j if j in S else share_j)

over the different inputs j asked on the way: one_j is 1 if this row would go this way, else 0, and
share_j the part of the training rows that did. Its Shapley values are an integral (Owen 1972),

    φ_i = value · (one_i - share_i) · ∫ Π_{j≠i} (t·one_j + (1-t)·share_j) dt,   t from 0 to 1,

of a polynomial of degree d - 1 if d inputs are asked, which Gauss and Legendre integrate exactly
from d/2 points. So there is no sum over sets, and no recursion that loses digits as paths grow.

**Anything else** (`coalitions`). v is asked of the model itself, for each of the 2^f sets.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from mlops.package.trees import Forest

LEAVES_AT_ONCE = 4096
"""Leaves whose numbers stay in a core's cache while they are worked on."""
TREES_AT_ONCE = 16
LARGEST_TABLE = 4_000_000
"""Numbers in a table of patterns: 32 MB. Boosting at its defaults takes a fifth of that."""


class Paths(NamedTuple):
    """Every leaf with the questions on the way to it, of which d ask different inputs at most.

    An input that is asked twice is one question: is low < input <= high? Shorter paths are filled
    up with questions that everything passes. Leaves are columns, so that numpy runs along them.
    """

    feature: np.ndarray  # int64 [d, leaves], the input that is asked about
    low: np.ndarray  # float64 [d, leaves]
    high: np.ndarray  # float64 [d, leaves]
    share: np.ndarray  # float64 [d, leaves], of training rows that go this way at its questions
    value: np.ndarray  # float64 [outputs, leaves], what the leaf adds to the answer

    @property
    def base(self) -> np.ndarray:
        """The answer if nothing is known, [outputs]: the mean over the training rows."""
        base: np.ndarray = self.value @ self.share.prod(axis=0)
        return base


def cover(forest: Forest, inputs: np.ndarray) -> np.ndarray:
    """Count the training rows (float64 [n, inputs], as the trees see them) on their way down.

    Returns int64 [nodes + leaves], to be asked as `Forest.left` points: by the number of a node,
    and by ~leaf, which counts from the end.
    """
    inputs = as_compared(forest, inputs)
    covered = np.zeros(len(forest.feature) + len(forest.leaves), np.int64)
    for root in forest.roots:
        row, node = np.arange(len(inputs)), np.full(len(inputs), root)
        while row.size:
            np.add.at(covered, node, 1)
            row, node = row[node >= 0], node[node >= 0]
            goes_left = inputs[row, forest.feature[node]] <= forest.threshold[node]
            node = np.where(goes_left, forest.left[node], forest.right[node])
    return covered


def adds_up(forest: Forest, covered: np.ndarray) -> bool:
    """Whether from each question as many rows went on as had come."""
    went = covered[forest.left] + np.where(forest.left == forest.right, 0, covered[forest.right])
    return bool((went == covered[: len(forest.feature)]).all())


def as_compared(forest: Forest, inputs: np.ndarray) -> np.ndarray:
    """Round inputs as the forest does before it compares them."""
    return inputs.astype(np.float32).astype(float) if forest.float32 else inputs


def paths(forest: Forest, covered: np.ndarray, inputs: int) -> Paths:
    """Return the paths of a forest over so many inputs. `Forest.link` is not applied to them."""
    parts = [
        _walk(forest, covered, forest.roots[start : start + TREES_AT_ONCE], inputs)
        for start in range(0, len(forest.roots), TREES_AT_ONCE)
    ]
    longest = max(len(part[1]) for part in parts)
    leaf = np.concatenate([part[0] for part in parts])
    feature, low, high, share = (
        np.concatenate(
            [np.pad(p, ((0, longest - len(p)), (0, 0)), constant_values=neutral) for p in kind],
            axis=1,
        )
        for kind, neutral in zip(
            zip(*(part[1:] for part in parts), strict=True), (0, -np.inf, np.inf, 1.0), strict=True
        )
    )
    values = np.atleast_2d(forest.leaves.T)[:, leaf]
    return Paths(
        feature, low, high, share, values if forest.boosted else values / len(forest.roots)
    )


def _walk(
    forest: Forest, covered: np.ndarray, roots: np.ndarray, inputs: int
) -> tuple[np.ndarray, ...]:
    """Go down some trees level by level; return leaf [leaves] and the first four of `Paths`."""
    node = roots
    low, high = (np.full((len(roots), inputs), end) for end in (-np.inf, np.inf))
    share = np.ones((len(roots), inputs))
    ended: list[tuple[np.ndarray, ...]] = []
    while node.size:
        feature, threshold = forest.feature[node], forest.threshold[node]
        row = np.arange(len(node))
        left, right = ((low.copy(), high.copy(), share.copy()) for _ in range(2))
        left[1][row, feature] = np.minimum(high[row, feature], threshold)
        right[0][row, feature] = np.maximum(low[row, feature], threshold)
        # From a lone leaf's question both ways lead to it, and everything goes the first.
        two = forest.left[node] != forest.right[node]
        ways = []
        for way, bounds, on in (
            (forest.left[node], left, slice(None)),
            (forest.right[node], right, two),
        ):
            # Where no training row came by, none went on.
            bounds[2][row, feature] *= covered[way] / np.maximum(covered[node], 1)
            ways.append((way[on], *(bound[on] for bound in bounds)))
        node, low, high, share = (np.concatenate(pair) for pair in zip(*ways, strict=True))
        at_leaf = node < 0
        ended.append((~node[at_leaf], low[at_leaf], high[at_leaf], share[at_leaf]))
        node, low, high, share = (part[~at_leaf] for part in (node, low, high, share))
    leaf, low, high, share = (np.concatenate(kind) for kind in zip(*ended, strict=True))
    asked = (low > -np.inf) | (high < np.inf)
    # Asked inputs first, in their order; what is not asked is passed by everything as it stands.
    feature = np.argsort(~asked, axis=1, kind="stable")[:, : max(1, int(asked.sum(axis=1).max()))]
    return (
        leaf,
        feature.T,
        *(np.take_along_axis(kind, feature, axis=1).T for kind in (low, high, share)),
    )


class TreeShapley:
    """Contributions of the inputs of a forest; holds no state between calls.

    What a leaf contributes depends on a row only by which of its questions the row passes. Where
    all patterns of that fit into `LARGEST_TABLE`, they are computed once, and a row is looked up.
    """

    def __init__(self, paths: Paths, inputs: int) -> None:
        self.paths = Paths(*map(np.ascontiguousarray, paths))
        self.base = paths.base
        self._inputs = inputs
        nodes, weights = np.polynomial.legendre.leggauss((len(paths.feature) + 1) // 2)
        self._points = list(zip((nodes + 1) / 2, weights / 2, strict=True))
        asked = (paths.low > -np.inf) | (paths.high < np.inf)
        # Asked inputs come first, so that patterns of one leaf are numbered without gaps.
        self._bits = np.where(asked, 1 << np.arange(len(asked))[:, None], 0)
        patterns = np.exp2(asked.sum(axis=0))  # too many, perhaps, for an integer
        self._table: np.ndarray | None = None
        if patterns.sum() * inputs <= LARGEST_TABLE:
            number = patterns.astype(np.int64)
            self._first = np.cumsum(number) - number  # of each leaf, the number of its first
            self._table = self._tabulated(number)

    def contributions(self, row: np.ndarray) -> np.ndarray:
        """Explain one row, float64 [inputs] as the trees see it: float64 [outputs, inputs].

        They sum to the answer less `base`.
        """
        feature, low, high, share, value = self.paths
        asked = row[feature]
        passed = (asked > low) & (asked <= high)
        if self._table is not None:
            pattern = self._first + (passed * self._bits).sum(axis=0)
            found: np.ndarray = value @ self._table[pattern]
            return found
        total = np.zeros((len(self.base), self._inputs))
        for start in range(0, share.shape[1], LEAVES_AT_ONCE):
            part = slice(start, start + LEAVES_AT_ONCE)
            each = self._each(passed[:, part], share[:, part])
            places = feature[:, part].ravel()
            for output, values in enumerate(value[:, part]):
                total[output] += np.bincount(places, (each * values).ravel(), self._inputs)
        return total

    def _each(self, passed: np.ndarray, share: np.ndarray) -> np.ndarray:
        """Contribution of each question of paths, for a leaf of 1: all float64 [d, paths]."""
        each = np.zeros_like(share)
        for t, weight in self._points:
            # Divided by input i's own factor, the product over all inputs is that over others.
            unknown = (1 - t) * share
            of_all = (unknown + t * passed).prod(axis=0)
            own = np.where(passed, (1 - share) / (unknown + t), -1 / (1 - t))
            each += own * (weight * of_all)
        return each

    def _tabulated(self, patterns: np.ndarray) -> np.ndarray:
        """Return what each pattern contributes, for a leaf of 1: float64 [patterns, inputs]."""
        table = np.zeros((int(patterns.sum()), self._inputs))
        leaf = np.repeat(np.arange(len(patterns)), patterns)
        for start in range(0, len(table), LEAVES_AT_ONCE):
            row = np.arange(start, min(start + LEAVES_AT_ONCE, len(table)))
            of = leaf[row]
            bits = self._bits[:, of]
            passed = ((row - self._first[of]) & bits) == bits
            each = self._each(passed, self.paths.share[:, of])
            np.add.at(table, (row, self.paths.feature[:, of]), each)
        return table


def coalitions(
    value: Callable[[np.ndarray], np.ndarray], row: np.ndarray, background: np.ndarray
) -> np.ndarray:
    """Explain one row, float64 [f], of any model: float64 [outputs, f].

    `value` answers rows [n, f] with [n, outputs]. What is not known is taken from each of the rows
    `background` [b, f] in turn, and the answers are averaged (the interventional game, Janzing,
    Minorics and Blöbaum 2020): exact over all 2^f sets of known fields, so f must be small.
    """
    fields = len(row)
    known = _sets(fields)
    asked = np.where(known[:, None], row, background).reshape(-1, fields)
    answers = value(asked).reshape(len(known), len(background), -1).mean(axis=1)
    contributions: np.ndarray = (_weights(known) @ answers).T
    return contributions


def _sets(fields: int) -> np.ndarray:
    """All sets, bool [2^f, f]; the last knows everything."""
    return (np.arange(2**fields)[:, None] >> np.arange(fields) & 1).astype(bool)


def _weights(known: np.ndarray) -> np.ndarray:
    """Weight of each set's value in each field's Shapley value, float64 [f, 2^f]."""
    fields = known.shape[1]
    # Of all orders, the part in which just s given others come before.
    before = np.array(
        [1 / (fields * math.comb(fields - 1, size)) for size in range(fields)], dtype=float
    )
    size = known.sum(axis=1)
    joins, stays = before[np.maximum(size - 1, 0)], before[np.minimum(size, fields - 1)]
    weights: np.ndarray = np.where(known.T, joins, -stays)
    return weights

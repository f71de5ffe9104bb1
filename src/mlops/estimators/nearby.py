"""A map of places: which training rows to ask for the nearest of any place, without asking all.

The plane is cut in halves until few rows lie in a rectangle; each rectangle lists the rows nearest
to its centre. What is nearest to a place is decided among its rectangle's list, by true distances.
Where rows lie, the list is longer than the way to the nearest of them is; far from all rows it is
an approximation. It is the same one for training, the pipeline and the exported graph, which walks
the same questions: so all three agree to the last bit.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree

DEEPEST = 40
"""Cuts above a rectangle: what is still a crowd after so many lies in one place."""


class Map(NamedTuple):
    """A tree of questions "is the coordinate <= threshold?", and the rows of each rectangle."""

    axis: np.ndarray  # int64 [questions], 0 for x and 1 for y
    threshold: np.ndarray  # float64 [questions]
    left: np.ndarray  # int64 [questions], where yes leads: a question, or rectangle ~left
    right: np.ndarray  # int64 [questions]
    rows: np.ndarray  # int32 [rectangles, listed], training see `map_of`

    def region(self, places: np.ndarray) -> np.ndarray:
        """Return the rectangle's number of each place, [n] for float64 [n, 2]."""
        node = np.zeros(len(places), np.int64)
        asked = np.arange(len(places))
        while len(asked):
            at = node[asked]
            yes = places[asked, self.axis[at]] <= self.threshold[at]
            node[asked] = np.where(yes, self.left[at], self.right[at])
            asked = asked[node[asked] >= 0]
        return ~node


def map_of(places: np.ndarray, listed: int, *, crowd: int, sort: bool) -> Map:
    """Return the map of float64 [n, 2] places, whose rectangles list that many rows, or all n.

    A rectangle in which no more than `crowd` rows lie is cut no further. Its rows stand in rising
    order, or unless `sort` from the nearest to its centre to the furthest.
    """
    tree = cKDTree(places)
    listed = min(listed, len(places))
    axes: list[int] = []
    thresholds: list[float] = []
    ways: list[tuple[int, int]] = []
    rows: list[np.ndarray] = []

    def grow(low: np.ndarray, high: np.ndarray, inside: np.ndarray, depth: int) -> int:
        """Return the number of a question, or ~the number of a rectangle."""
        centre = (low + high) / 2
        # The first is always cut, so that there is a question.
        if depth and (len(inside) <= crowd or depth == DEEPEST):
            nearest = np.reshape(tree.query(centre, listed)[1], -1)
            rows.append(np.sort(nearest) if sort else nearest)
            return ~(len(rows) - 1)
        axis = int(high[1] - low[1] > high[0] - low[0])
        number = len(axes)
        axes.append(axis)
        thresholds.append(float(centre[axis]))
        ways.append((0, 0))
        below, above = high.copy(), low.copy()
        below[axis] = above[axis] = centre[axis]
        yes = places[inside, axis] <= centre[axis]
        ways[number] = (
            grow(low, below, inside[yes], depth + 1),
            grow(above, high, inside[~yes], depth + 1),
        )
        return number

    grow(places.min(axis=0), places.max(axis=0), np.arange(len(places)), 0)
    left, right = np.array(ways).T
    return Map(np.array(axes), np.array(thresholds), left, right, np.stack(rows).astype(np.int32))

"""Two fields in each other's place, where neither leaves its range: told by all fields together.

For a pair of fields, training rows are held against the same rows with the two swapped, and a
logistic regression on the fields and their products (of arsinh, which is a logarithm for counts
and keeps signs) learns to tell them. Its score is the log of how much likelier a row is among the
swapped ones; the limit is what few honest training rows exceed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

FALSE_FLAGS = 0.008
"""Share of honest training rows that all pairs together may flag."""
LEAST_ROWS = 1_000
"""Of fewer rows nobody can say what few of them exceed."""
MOST_FIELDS = 16
"""More have so many products that learning takes minutes."""
MOST_PAIRS = 6
KNOWN = 0.95
"""A pair of which so many swaps are flagged anyway needs no more."""
WORTH = 0.05
"""A pair of which fewer swaps would be flagged cannot be told, and is left alone."""
SUSPECTED = 0.99
"""Share of the swaps that can be told which the ratio of the two fields alone makes suspect."""
STEPS = 30
RIDGE = 1e-3


def training_swaps(
    names: Sequence[str], rows: np.ndarray, unlike: Callable[[np.ndarray], np.ndarray]
) -> list[dict[str, Any]]:
    """Return what tells swapped fields: for each pair that can be told, its score and limits.

    `rows` are training rows (n, names); `unlike` tells which of some rows are flagged already,
    shape (n,). A row is flagged if its first field of the pair is less than `suspect_below` times
    the second, which is quickly asked, and its score `x @ quadratic @ x + linear @ x` exceeds
    `threshold`, where x = arsinh(row). Only fields that are always positive have such a ratio.
    """
    if len(rows) < LEAST_ROWS or len(names) > MOST_FIELDS:
        return []
    positive = np.flatnonzero(rows.min(axis=0) > 0).tolist()
    flagged = {
        pair: float(unlike(swapped).mean())
        for pair in itertools.combinations(positive, 2)
        if len(swapped := _swapped(rows, pair))
    }
    pairs = sorted((share, pair) for pair, share in flagged.items() if share < KNOWN)[:MOST_PAIRS]
    with threadpool_limits(1):  # several would wait for each other by spinning
        found = [_learn(names, rows, pair, FALSE_FLAGS / len(pairs)) for _, pair in pairs]
    return [one for one in found if one is not None]


def _learn(
    names: Sequence[str], rows: np.ndarray, pair: tuple[int, int], false_flags: float
) -> dict[str, Any] | None:
    """Return what tells the pair swapped; None if too little does."""
    if np.median(rows[:, pair[0]] / rows[:, pair[1]]) < 1:
        pair = pair[::-1]  # usually the first is more: swapped, it is less
    quadratic, linear = _discriminant(np.arcsinh(rows), pair)

    def score(of: np.ndarray) -> np.ndarray:
        x = np.arcsinh(of)
        total: np.ndarray = ((x @ quadratic + linear) * x).sum(axis=1)
        return total

    swapped = _swapped(rows, pair)
    scores, ratios = score(swapped), swapped[:, pair[0]] / swapped[:, pair[1]]
    told = scores > np.quantile(score(rows), 1 - false_flags)
    if told.mean() < WORTH:
        return None
    # Honest rows that the ratio clears need no limit of the score: those that remain set it.
    below = float(np.quantile(ratios[told], SUSPECTED))
    suspects = np.sort(score(rows[rows[:, pair[0]] < below * rows[:, pair[1]]]))
    allowed = int(false_flags * len(rows))
    threshold = float(suspects[-1 - allowed] if allowed < len(suspects) else scores[told].min())
    return {
        "fields": [names[place] for place in pair],
        "suspect_below": below,
        "quadratic": quadratic.tolist(),
        "linear": linear.tolist(),
        "threshold": threshold,
    }


def training_whole(names: Sequence[str], rows: np.ndarray) -> list[str]:
    """Return the columns that had whole numbers only, in at least 1,000 rows."""
    if len(rows) < LEAST_ROWS:
        return []
    return [name for name, column in zip(names, rows.T, strict=True) if (column % 1 == 0).all()]


def _swapped(rows: np.ndarray, pair: tuple[int, int]) -> np.ndarray:
    """Return the rows that swapping changes, with the two columns swapped."""
    swapped = rows[rows[:, pair[0]] != rows[:, pair[1]]]
    swapped[:, pair] = swapped[:, pair[::-1]]
    return np.asarray(swapped)


def _discriminant(x: np.ndarray, pair: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Fit by iteratively reweighted least squares (Newton's method) with a small ridge.

    Returns the symmetric matrix (k, k) and the slopes (k,) of a quadratic in x, up to a constant.
    """
    swapped = _swapped(x, pair)
    mean, spread = x.mean(axis=0), x.std(axis=0)
    spread[spread == 0] = 1.0
    z = (np.vstack([x, swapped]) - mean) / spread
    i, j = np.triu_indices(z.shape[1])
    terms = np.column_stack([np.ones(len(z)), z, z[:, i] * z[:, j]])
    is_swapped = np.repeat([0.0, 1.0], [len(x), len(swapped)])
    ridge = RIDGE * np.eye(terms.shape[1])
    weights = np.zeros(terms.shape[1])
    for _ in range(STEPS):
        p = 1 / (1 + np.exp(-np.clip(terms @ weights, -30, 30)))
        slope = terms.T @ (p - is_swapped) + ridge @ weights
        step = np.linalg.solve((terms * (p * (1 - p))[:, None]).T @ terms + ridge, slope)
        weights -= step
        if np.abs(step).max() < 1e-3 * np.abs(weights).max():
            break
    k = x.shape[1]
    products = np.zeros((k, k))
    products[i, j] = weights[1 + k :]
    quadratic = (products + products.T) / 2 / np.outer(spread, spread)
    return quadratic, weights[1 : 1 + k] / spread - 2 * quadratic @ mean

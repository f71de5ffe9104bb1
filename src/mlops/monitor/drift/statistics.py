"""Tests that hold far in the tail at any window size, and the effect sizes that people know.

Every test is of one kind: k of n rows of the window did something, K of N training rows did. If
both were drawn alike, k given k + K is hypergeometric (Fisher 1934), whatever the distribution of
the column; nothing is asymptotic, so 50 rows at p = 1e-6 are as valid as a million. For "at most
c", where c is a value that training saw, this is also the exact test by exceedances (Epstein 1954:
the rank of an order statistic of one sample in the other), so it may be training that chose c.
"""

from __future__ import annotations

import numpy as np

from mlops.monitor.drift.profile import Column

TERMS = 8
LEAST_SHARE = 1e-4
"""What an empty bin counts as in the population stability index, as is the custom."""
SMALL = 256


def two_sided_p(
    k: np.ndarray, n: np.ndarray | int, reference_k: np.ndarray, reference_n: np.ndarray | int
) -> np.ndarray:
    """Return twice the smaller tail of the hypergeometric distribution, at most 1.

    All are whole numbers and broadcast. Never below the true value: of each tail the first 8
    terms are summed, and the rest is bounded by a geometric series (its ratio falls), which for
    p < 0.01 and 10^6 rows adds less than a tenth. Where nobody was asked (n = 0) p is 1.
    """
    n, reference_n = np.asarray(n, dtype=float), np.asarray(reference_n, dtype=float)
    k, reference_k = np.asarray(k, dtype=float), np.asarray(reference_k, dtype=float)
    more = _tail(k, n, reference_k, reference_n)
    fewer = _tail(n - k, n, reference_n - reference_k, reference_n)
    p = np.minimum(1.0, 2 * np.minimum(more, fewer))
    return np.asarray(np.where((n > 0) & (reference_n > 0), p, 1.0))


def _tail(k: np.ndarray, n: np.ndarray, K: np.ndarray, N: np.ndarray) -> np.ndarray:
    """Return P(at least k of the k + K marked rows are among the n of the window), or more."""
    term = np.exp(
        log_binomial(n, k) + log_binomial(N, K) - log_binomial(n + N, k + K),
    )
    total = np.zeros(np.broadcast_shapes(term.shape))
    for step in range(TERMS):
        total = total + term
        x, left = k + step, np.maximum(K - step, 0.0)
        ratio = np.maximum(n - x, 0.0) * left / ((x + 1) * (N - left + 1))
        term = term * ratio
    # Where the terms still rise, nothing is known of the rest.
    rest = np.where(ratio < 1, term / np.where(ratio < 1, 1 - ratio, 1.0), 1.0)
    return np.asarray(np.minimum(1.0, total + rest))


def log_binomial(n: np.ndarray, k: np.ndarray) -> np.ndarray:
    """Return the logarithm of n over k, for whole 0 <= k <= n."""
    return np.asarray(log_factorial(n) - log_factorial(k) - log_factorial(n - k))


_TABLE = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, SMALL)))])


def log_factorial(n: np.ndarray) -> np.ndarray:
    """Return ln n! of whole numbers: summed below 256, from there by Stirling's series."""
    n = np.asarray(n, dtype=float)
    x = np.maximum(n, SMALL)
    series = x * np.log(x) - x + 0.5 * np.log(2 * np.pi * x) + 1 / (12 * x) - 1 / (360 * x**3)
    return np.asarray(np.where(n < SMALL, _TABLE[np.minimum(n, SMALL - 1).astype(int)], series))


def population_stability_index(counts: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return the sum over bins (last axis) of (q - p) ln(q / p); nan without rows.

    Custom calls 0.1 a small and 0.25 a large change, at any number of rows. See `index_by_chance`.
    """
    q, p = _shares(counts), _shares(reference)
    q, p = (np.maximum(share, LEAST_SHARE) for share in (q, p))
    return np.asarray(((q - p) * np.log(q / p)).sum(axis=-1))


def index_by_chance(bins: int, n: int, reference_n: int) -> float:
    """Return about what the stability index is on average when nothing has changed.

    It is nearly chi-squared / n (Yurdakul and Naranjo 2020). With 50 rows in 10 bins that is 0.18.
    """
    return (bins - 1) * (1 / n + 1 / reference_n) if n and reference_n else float("nan")


def jensen_shannon_distance(counts: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return the square root of the Jensen-Shannon divergence in bits: 0 alike, 1 apart."""
    q, p = _shares(counts), _shares(reference)
    middle = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = [
            np.where(share > 0, share * np.log2(share / middle), 0.0).sum(axis=-1)
            for share in (p, q)
        ]
    return np.asarray(np.sqrt(np.maximum(0.0, (parts[0] + parts[1]) / 2)))


def wasserstein_distance(
    column: Column, counts: np.ndarray, low: float, high: float
) -> float | None:
    """Return the area between the two distribution functions, in standard deviations of training.

    Within a bin values are taken as evenly spread, or as lying on its edge if the edges are all
    values that there were. `low` and `high` are the least and greatest value of the window. None
    for a constant column, and without rows.
    """
    n = counts.sum()
    if not n or not column.std > 0:
        return None
    edges = column.edges
    points = np.array([min(low, edges[0]), *edges, max(high, edges[-1])])
    ours = np.concatenate([[0.0], np.cumsum(counts) / n])
    theirs = np.concatenate([[0.0], np.cumsum(column.counts) / column.n])
    left, right = (ours - theirs)[:-1], (ours - theirs)[1:]
    if column.exact:
        heights = np.abs(left)
    else:
        a, b = np.abs(left), np.abs(right)
        crossing = left * right < 0
        both = np.where(crossing, a + b, 1.0)
        heights = np.where(crossing, (a * a + b * b) / (2 * both), (a + b) / 2)
    return float((heights * np.diff(points)).sum() / column.std)


def _shares(counts: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.asarray(counts / counts.sum(axis=-1, keepdims=True))

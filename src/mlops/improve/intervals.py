"""Intervals for means of paired differences: what chance explains, and what it does not.

By the central limit theorem, so for some thirty values or more. Several questions at once are
answered at one level together (Bonferroni): 20 bands of which none got worse are called worse, any
of them, as rarely as one.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

FEWEST_ROWS = 30


class Interval(NamedTuple):
    """A mean, and what it may be but for chance."""

    mean: float
    low: float
    high: float


def interval(values: np.ndarray, *, level: float = 0.95, questions: int = 1) -> Interval:
    """Return the mean of `values`, shape (n,), n >= 2, with its two-sided interval.

    All of `questions` such intervals hold together with probability `level`.
    """
    z = NormalDist().inv_cdf(1 - (1 - level) / (2 * questions))
    mean = float(values.mean())
    half = z * float(values.std(ddof=1)) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)

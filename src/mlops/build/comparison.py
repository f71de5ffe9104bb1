"""Comparison: candidates beside each other, with what the folds allow to be said of them.

The difference of two candidates is taken fold by fold, where both learnt from the same rows and
were scored on the same others. Folds share most of the rows they learn from, so their differences
are not independent, and the usual t interval is too narrow. The corrected resampled t interval
(Nadeau and Bengio, "Inference for the Generalization Error", Machine Learning 52 (2003) 239-281,
equation 9) widens it: the variance of the mean is (1/k + n_test/n_train) s^2 and not s^2/k.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Literal

CONFIDENCE = 0.95

Verdict = Literal["best", "tie", "worse", "cannot tell"]


@dataclasses.dataclass(frozen=True, slots=True)
class Standing:
    """Where a candidate stands. `difference` is its mean minus the best one's, at most 0.

    `low` and `high` bound it at 95 %. It is a tie where they enclose 0, so that chance alone could
    have put the other first; NaN, and "cannot tell", where there are fewer than two folds.
    """

    mean: float
    std: float
    difference: float
    low: float
    high: float
    verdict: Verdict


def paired_interval(
    scores: Sequence[float], others: Sequence[float], confidence: float = CONFIDENCE
) -> tuple[float, float, float]:
    """Return the mean of `scores - others`, fold by fold, and the bounds of its interval.

    Both come from the same k folds of one cross-validation, so that n_test/n_train is 1/(k - 1).
    The bounds are NaN for fewer than two folds. Raises `ValueError` for lists of other lengths.
    """
    differences = [one - other for one, other in zip(scores, others, strict=True)]
    k = len(differences)
    mean = statistics.fmean(differences)
    if k < 2:
        return mean, math.nan, math.nan
    from scipy.stats import t

    error = math.sqrt((1 / k + 1 / (k - 1)) * statistics.variance(differences))
    half = float(t.ppf((1 + confidence) / 2, k - 1)) * error
    return mean, mean - half, mean + half


def compare(folds: Mapping[str, Sequence[float]]) -> dict[str, Standing]:
    """Compare candidates, given the scores (higher is better) of each in the same folds.

    The best mean is "best", the first among equals; the others are a "tie" with it or "worse".
    Intervals are of one pair each: with many candidates, some will be called worse by chance.
    """
    if not folds:
        return {}
    means = {name: statistics.fmean(scores) for name, scores in folds.items()}
    best = max(means, key=means.__getitem__)
    return {
        name: _standing(scores, folds[best], is_best=name == best) for name, scores in folds.items()
    }


def _standing(scores: Sequence[float], best: Sequence[float], *, is_best: bool) -> Standing:
    mean = statistics.fmean(scores)
    std = statistics.stdev(scores) if len(scores) > 1 else math.nan
    if is_best:
        return Standing(mean, std, 0.0, 0.0, 0.0, "best")
    difference, low, high = paired_interval(scores, best)
    verdict: Verdict = "tie" if low <= 0 <= high else "worse"
    if math.isnan(low):
        verdict = "cannot tell"
    return Standing(mean, std, difference, low, high, verdict)

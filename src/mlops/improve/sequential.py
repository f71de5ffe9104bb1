"""Statistics that may be looked at after every label and stay honest.

A 95 % interval holds for one look. Looked at after every label until it says what one hopes, it is
wrong far more often than one time in twenty. A *confidence sequence* is an interval after each
label, all of which hold together: whoever stops at whichever moment is wrong in at most `alpha` of
all experiments.

- `paired`, `unpaired`: asymptotic confidence sequences with the Gaussian mixture boundary (Robbins
  1970; Howard, Ramdas, McAuliffe and Sekhon 2021; Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas
  2024, "Time-uniform central limit theory and asymptotic confidence sequences", theorem 2.2).
  Assumed: labels independent, variance finite; as the spread is estimated, the first look comes
  after `FIRST_LOOK` labels on which the two differ, or `FIRST_LOOK_OF_ARM` of each arm: of skewed
  losses fewer would be told of too early. Nothing else about the shape of losses.
- `bounded`: the empirical Bernstein confidence sequence with predictable plug-in (Waudby-Smith and
  Ramdas 2024, "Estimating means of bounded random variables by betting", theorem 2). Assumed: each
  value within stated bounds, with the same mean given those before it. Holds from the first label
  on, exactly; it is wider, the more so the wider the bounds.
- `sample_ratio`: Lindon and Malek 2022, "Anytime-valid inference for multinomial count data".

Losses are compared as challenger less champion: below zero is better. All take arrays whose last
axis is time, so that thousands of experiments are computed at once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

ALPHA = 0.05
SAMPLE_RATIO_ALPHA = 0.001
TUNED_FOR = 1_000
"""The number of labels at which the boundary of `paired` and `unpaired` is narrowest."""
FIRST_LOOK = 50
FIRST_LOOK_OF_ARM = 200
MOST_LABELS = 10**9


class Intervals(NamedTuple):
    """Mean, lower and upper end after each label; infinitely wide before the first look."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def boundary(labels: np.ndarray | float, alpha: float = ALPHA, tuned_for: int = TUNED_FOR) -> Any:
    """Return half the width of the sequence after `labels` labels of standard deviation 1.

    Two-sided. The mixture's variance is chosen so that it is narrowest near `tuned_for`.
    """
    logarithm = -2 * math.log(alpha)
    mixed = (logarithm + math.log(logarithm + 1)) / tuned_for
    grown = np.asarray(labels, dtype=float) * mixed + 1
    return np.sqrt(2 * grown / mixed * np.log(np.sqrt(grown) / alpha)) / labels


def paired(
    differences: np.ndarray, *, alpha: float = ALPHA, tuned_for: int = TUNED_FOR
) -> Intervals:
    """Return the sequence for the mean of differences in loss on the same rows, shape (…, n)."""
    count = np.arange(1, differences.shape[-1] + 1)
    mean, variance = _running(differences, count)
    known = np.cumsum(differences != 0, axis=-1) >= FIRST_LOOK
    return around(mean, np.sqrt(variance), count, known, alpha, tuned_for)


def unpaired(
    losses: np.ndarray, challenger: np.ndarray, *, alpha: float = ALPHA, tuned_for: int = TUNED_FOR
) -> Intervals:
    """Return the sequence for the difference of two arms' mean losses, shape (…, n).

    `challenger` is true where the challenger answered: by chance, with the same share all along.
    """
    total = np.arange(1, losses.shape[-1] + 1)
    means, variances, counts = [], [], []
    for arm in (challenger, ~challenger):
        count = np.maximum(np.cumsum(arm, axis=-1), 1)
        mean, variance = _running(np.where(arm, losses, 0.0), count, arm)
        means.append(mean)
        variances.append(variance / count)
        counts.append(count)
    # As the mean of one process: its variance is that of a label, times their number.
    spread = np.sqrt(total * (variances[0] + variances[1]))
    known = np.minimum(*counts) >= FIRST_LOOK_OF_ARM
    return around(means[0] - means[1], spread, total, known, alpha, tuned_for)


def bounded(values: np.ndarray, low: float, high: float, *, alpha: float = ALPHA) -> Intervals:
    """Return the sequence for the mean of values within `low` and `high`, shape (…, n)."""
    time = np.arange(1, values.shape[-1] + 1)
    x = (values - low) / (high - low)
    mean = (0.5 + np.cumsum(x, axis=-1)) / (time + 1)
    variance = (0.25 + np.cumsum((x - mean) ** 2, axis=-1)) / (time + 1)
    mean_before, variance_before = _delayed(mean, 0.5), _delayed(variance, 0.25)
    stake = np.sqrt(2 * math.log(2 / alpha) / (variance_before * time * np.log1p(time)))
    stake = np.minimum(stake, 0.5)
    price = (-np.log1p(-stake) - stake) * (x - mean_before) ** 2
    staked = np.cumsum(stake, axis=-1)
    centre = np.cumsum(stake * x, axis=-1) / staked
    margin = (math.log(2 / alpha) + np.cumsum(price, axis=-1)) / staked
    width = high - low
    ends = np.clip(centre - margin, 0, 1), np.clip(centre + margin, 0, 1)
    return Intervals(low + width * centre, low + width * ends[0], low + width * ends[1])


def complete(arrived: np.ndarray) -> int:
    """Return how many predictions, from the first on, all have their truth.

    `arrived` holds one truth value a prediction, in the order in which they were made. Only these
    may be compared: those whose truth came early are no fair sample where the delay depends on the
    outcome. A truth that never comes ends the comparison, and no statistics can tell what it was.
    """
    missing = np.flatnonzero(~np.asarray(arrived, dtype=bool))
    return int(missing[0]) if len(missing) else len(arrived)


@dataclasses.dataclass(frozen=True, slots=True)
class Judgement:
    """What may be said now. `more` is how many more labels it may take; None if it is decided.

    It is infinite while nothing points either way.
    """

    outcome: Literal["better", "worse", "cannot tell yet"]
    mean: float
    low: float
    high: float
    labels: int
    more: float | None = None
    days: float | None = None

    @property
    def says(self) -> str:
        interval = f"{self.low:+.4g} to {self.high:+.4g} after {self.labels:,} labels"
        if math.isinf(self.low):
            interval = f"{self.labels:,} labels, too few to look at"
        if self.days is None:
            return f"{self.outcome}: mean loss {self.mean:+.4g}, {interval}"
        if math.isinf(self.days):
            return f"cannot tell yet, and nothing points either way: {interval}"
        return f"cannot tell yet, about {math.ceil(self.days):,} more days at this rate: {interval}"


def judge(
    differences: np.ndarray,
    *,
    labels_per_day: float,
    alpha: float = ALPHA,
    tuned_for: int = TUNED_FOR,
) -> Judgement:
    """Judge by paired differences in loss so far, shape (n,); may be asked after every label.

    The forecast supposes that mean and spread stay as they are, and labels come at this rate.
    """
    labels = len(differences)
    if not labels:
        return Judgement("cannot tell yet", 0.0, -math.inf, math.inf, 0, math.inf, math.inf)
    found = paired(np.asarray(differences, dtype=float), alpha=alpha, tuned_for=tuned_for)
    mean, low, high = (float(part[-1]) for part in found)
    if high < 0 or low > 0:
        return Judgement("better" if high < 0 else "worse", mean, low, high, labels)
    spread = float(np.std(differences))
    needed = labels_needed(mean, spread, alpha=alpha, tuned_for=tuned_for)
    more = max(needed - labels, 1)
    return Judgement("cannot tell yet", mean, low, high, labels, more, more / labels_per_day)


def labels_needed(
    difference: float, spread: float, *, alpha: float = ALPHA, tuned_for: int = TUNED_FOR
) -> float:
    """Return after how many labels such a mean difference is told from 0; infinite if never."""

    def is_told(labels: int) -> bool:
        return spread * float(boundary(labels, alpha, tuned_for)) < abs(difference)

    if not is_told(MOST_LABELS):
        return math.inf
    low, high = FIRST_LOOK - 1, MOST_LABELS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_told(middle) else (middle, high)
    return high


def sample_ratio(
    counts: Sequence[Mapping[str, int]], weights: Sequence[Mapping[str, float]]
) -> float:
    """Return the evidence that clients did not go where they should: 1 / a p-value.

    `counts` of clients by arm, and the `weights` that were meant, once for each stretch between
    two changes of the weights. May be looked at after every client: under the weights it reaches
    1 / alpha in at most `alpha` of all experiments, whenever one looks (alarm at 1,000). Raises
    `ValueError` if a client went to an arm of no weight.
    """
    return math.exp(
        min(sum(_stretch(seen, meant) for seen, meant in zip(counts, weights, strict=True)), 700.0)
    )


def _stretch(seen: Mapping[str, int], meant: Mapping[str, float]) -> float:
    """The logarithm of Dirichlet-multinomial over multinomial likelihood, prior Dirichlet(1, …)."""
    arms = [arm for arm, weight in meant.items() if weight > 0]
    if any(count and arm not in arms for arm, count in seen.items()):
        raise ValueError(f"clients in an arm of no weight: {dict(seen)}, weights {dict(meant)}")
    total, all_weight = sum(seen.values()), sum(meant[arm] for arm in arms)
    evidence = math.lgamma(len(arms)) - math.lgamma(len(arms) + total)
    for arm in arms:
        count = seen.get(arm, 0)
        evidence += math.lgamma(1 + count) - count * math.log(meant[arm] / all_weight)
    return evidence


def _running(
    values: np.ndarray, count: np.ndarray, counted: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance after each label; of those `counted`, where the others are 0."""
    # Around a value that is near the mean, so that squares do not cancel.
    centre = values.mean(axis=-1, keepdims=True)
    moved = values - centre if counted is None else np.where(counted, values - centre, 0.0)
    mean = np.cumsum(moved, axis=-1) / count
    variance = np.maximum(np.cumsum(moved**2, axis=-1) / count - mean**2, 0.0)
    return mean + centre, variance * count / np.maximum(count - 1, 1)


def around(
    mean: np.ndarray,
    spread: np.ndarray,
    count: np.ndarray,
    known: np.ndarray,
    alpha: float,
    tuned_for: int = TUNED_FOR,
) -> Intervals:
    """Return the sequence around `mean`, of labels with this `spread`; wide where not `known`."""
    half = np.where(known, spread * boundary(count, alpha, tuned_for), np.inf)
    return Intervals(mean, mean - half, mean + half)


def _delayed(values: np.ndarray, first: float) -> np.ndarray:
    return np.concatenate([np.full_like(values[..., :1], first), values[..., :-1]], axis=-1)

"""Degradation: has the loss of a window risen above that of the sealed test rows, beyond chance?

One-sided tests of the window's losses against the test rows' losses, neither of which the model
learnt from. `alpha` is the chance of any false alarm in one look: half of it is for all rows
together, the other half is shared by the bands of the slices (Bonferroni), of which there may be
many.

    numbers     Welch's z of the two means (squared errors have long tails to the right, with which
                the test is rather too slow than too quick to call a loss risen)
    classes     Fisher's exact test of the two error rates, which holds for no errors at all
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

from mlops.monitor.quality import ALL, FEWEST_ROWS, OURS, Sums, scores, total
from mlops.records import Finding
from mlops.usecase import UseCase

KIND = "quality"
FEWEST_OF_CLASSES = 10
"""Fisher's test holds for any number of rows, but of fewer it has nothing to say."""


def degradation(
    use_case: UseCase, sealed: Sequence[Sums] | None, window: Sequence[Sums], alpha: float
) -> list[Finding]:
    """Compare the truths of a window with the sealed test rows, over all and band by band.

    `sealed` is None for a bundle that was sealed without losses of its test rows. Bands without
    any truth are left out.
    """
    places = dict.fromkeys((one.key.slice, one.key.band) for one in window)
    bands = [place for place in places if place[0] not in {ALL[0], *OURS}]
    share = alpha / 2 if bands else alpha
    found = [_compare(use_case, ALL, sealed, window, share)]
    found += [_compare(use_case, band, sealed, window, share / len(bands)) for band in bands]
    return found


def _compare(
    use_case: UseCase,
    place: tuple[str, str],
    sealed: Sequence[Sums] | None,
    window: Sequence[Sums],
    alpha: float,
) -> Finding:
    subject = "all rows" if place == ALL else " ".join(place)
    here = [one for one in window if (one.key.slice, one.key.band) == place]
    rows = int(total(here)[0])
    numbers: dict[str, Any] = {"rows": rows, "alpha": alpha}
    if sealed is None:
        says = "sealed before test losses were kept: train again with: mlops train " + use_case.name
        return Finding(KIND, subject, "cannot tell", says, numbers)
    there = [one for one in sealed if (one.key.slice, one.key.band) == place]
    tested = int(total(there)[0])
    numbers |= {"test_rows": tested}
    needed = FEWEST_OF_CLASSES if use_case.is_classification else FEWEST_ROWS
    for few, what in ((rows, "predictions with a truth"), (tested, "sealed test rows")):
        if few < needed:
            says = f"{few} {what} are too few to tell ({needed} needed)"
            return Finding(KIND, subject, "cannot tell", says, numbers)
    p = _p_of_classes(here, there) if use_case.is_classification else _p_of_numbers(here, there)
    name = use_case.metric
    now, then = scores(use_case, here).get(name), scores(use_case, there).get(name)
    numbers |= {"p": p, "loss": _mean(here), "test_loss": _mean(there)}
    risen = p < alpha
    says = f"mean loss {numbers['loss']:.4g} against {numbers['test_loss']:.4g} in the sealed test"
    if now and then:
        numbers |= {"score": now.value, "test_score": then.value}
        says = f"{name} {now.value:.4f} against {then.value:.4f} in the sealed test, {says}"
    says += f" (p {p:.2g}, {'below' if risen else 'not below'} {alpha:.2g})"
    return Finding(KIND, subject, "alarm" if risen else "ok", says, numbers)


def _mean(sums: Sequence[Sums]) -> float:
    values = total(sums)
    return float(values[1] / values[0])


def _p_of_numbers(here: Sequence[Sums], there: Sequence[Sums]) -> float:
    means, variances = [], []
    for sums in (here, there):
        n, loss, loss2 = total(sums)[:3]
        means.append(loss / n)
        variances.append(max(loss2 / n - (loss / n) ** 2, 0.0) / (n - 1))
    error = math.sqrt(sum(variances))
    if not error:
        return 0.0 if means[0] > means[1] else 1.0
    return NormalDist().cdf((means[1] - means[0]) / error)


def _p_of_classes(here: Sequence[Sums], there: Sequence[Sums]) -> float:
    """Return P(at most so many of all errors are in the test rows), they falling anywhere."""
    rows, errors = (int(value) for value in total(here)[:2])
    tested, failed = (int(value) for value in total(there)[:2])
    least = max(0, errors + failed - rows)
    logs = [
        _log_choose(tested, k) + _log_choose(rows, errors + failed - k)
        for k in range(least, failed + 1)
    ]
    whole = _log_choose(rows + tested, errors + failed)
    return min(1.0, float(np.exp(np.array(logs) - whole).sum()))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)

"""Diagnosis: where a model is right and where it is wrong, as plain numbers.

All of it is measured on the held-out rows, which no candidate learnt from, and decides nothing.
Nothing here draws or writes; every section is JSON as it stands.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from mlops.build.data import Split
from mlops.build.training import Trained, fit, scores
from mlops.usecase import SEED, Candidate, UseCase

SHARES = (1 / 16, 1 / 4)
"""Of the training rows, beside all of them: evenly spaced on a logarithmic axis, and cheap."""

FEWEST_TO_LEARN = 4
"""Rows of each class (or in all, times ten) for the smallest size of a learning curve."""

SMALL_TABLE = 2_000
REPEATS_OF_SMALL = 3
PERMUTED_ROWS = 500
PERMUTATIONS = 5
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
BINS = 10
BINS_OF_FEW = 5
FEW_ROWS = 500
Z_95 = 1.959963984540054


class Answers(Protocol):
    """Answers to n rows: numbers or class numbers, (n,), and for classes probabilities (n, k)."""

    @property
    def prediction(self) -> np.ndarray: ...

    @property
    def probabilities(self) -> np.ndarray | None: ...


Answer = Callable[[np.ndarray], Answers]
"""A model as diagnosis sees it: float64 [n, fields] -> answers."""

Section = Callable[[], Any]


def sections(use_case: UseCase, answer: Answer, split: Split) -> dict[str, Section]:
    """Return the sections that apply to the use case, each to be computed by calling it.

    Computed one by one, so that one that fails takes no other with it.
    """
    rows, actual = split.X_test.to_numpy(dtype=float), split.y_test
    answers = answer(rows)
    predicted = answers.prediction
    found: dict[str, Section] = {}
    if use_case.is_classification:
        classes = len(use_case.target.labels)
        found["confusion_matrix"] = lambda: confusion(actual, predicted, classes)
        found["calibration"] = lambda: reliability(actual, answers.probabilities)
    else:
        found["predicted_vs_actual"] = lambda: {
            "actual": _short(actual),
            "predicted": _short(predicted),
        }
        found["residuals"] = lambda: residuals(actual, predicted)
        if where := use_case.coordinates:
            found["error_map"] = lambda: {
                "longitude": _short(split.X_test[where.longitude]),
                "latitude": _short(split.X_test[where.latitude]),
                "residual": _short(actual - predicted),
            }
        found["calibration"] = lambda: calibration(actual, predicted)
    found["permutation_importance"] = lambda: permutation_importance(use_case, answer, rows, actual)
    return found


def residuals(actual: np.ndarray, predicted: np.ndarray) -> dict[str, Any]:
    """Describe actual - predicted: mean, quantiles, and their spread by prediction.

    `by_prediction` has one entry for each tenth of the rows, ordered by prediction. Quantiles are
    type 7 of Hyndman and Fan 1996.
    """
    errors = actual - predicted
    tenths = np.array_split(np.argsort(predicted, kind="stable"), BINS)
    return {
        "mean": float(errors.mean()),
        "quantiles": _quantiles(errors),
        "absolute_quantiles": _quantiles(np.abs(errors)),
        "by_prediction": [
            {"predicted": float(predicted[rows].mean()), "quantiles": _quantiles(errors[rows])}
            for rows in tenths
            if len(rows)
        ],
    }


def calibration(actual: np.ndarray, predicted: np.ndarray) -> list[dict[str, Any]]:
    """Compare mean actual with mean predicted in each tenth of the rows, ordered by prediction.

    `half_width` is that of a 95 % interval of the mean actual (normal approximation); 0 where a
    tenth holds a single row.
    """
    found = []
    for rows in np.array_split(np.argsort(predicted, kind="stable"), BINS):
        if not len(rows):
            continue
        spread = actual[rows].std(ddof=1) if len(rows) > 1 else 0.0
        found.append(
            {
                "rows": len(rows),
                "predicted": float(predicted[rows].mean()),
                "actual": float(actual[rows].mean()),
                "half_width": float(Z_95 * spread / np.sqrt(len(rows))),
            }
        )
    return found


def reliability(actual: np.ndarray, probabilities: np.ndarray | None) -> list[list[dict[str, Any]]]:
    """For each class, compare the probability stated with how often the class came.

    Probabilities are binned in ten equal widths (five below 500 rows); empty bins are left out.
    `low` and `high` bound the share at 95 % (Wilson 1927, which suits few rows).
    """
    if probabilities is None:
        raise ValueError("the model states no probabilities")
    width = BINS if len(actual) >= FEW_ROWS else BINS_OF_FEW
    found = []
    for number, stated in enumerate(probabilities.T):
        came = actual == number
        bins = np.minimum((stated * width).astype(int), width - 1)
        found.append(
            [_reliability_bin(stated[bins == one], came[bins == one]) for one in np.unique(bins)]
        )
    return found


def _reliability_bin(stated: np.ndarray, came: np.ndarray) -> dict[str, Any]:
    from scipy.stats import binomtest

    share = binomtest(int(came.sum()), len(came))
    interval = share.proportion_ci(method="wilson")
    return {
        "rows": len(came),
        "stated": float(stated.mean()),
        "came": float(share.statistic),
        "low": float(interval.low),
        "high": float(interval.high),
    }


def confusion(actual: np.ndarray, predicted: np.ndarray, classes: int) -> list[list[int]]:
    """Count rows by actual class (row) and predicted class (column)."""
    counts = np.zeros((classes, classes), dtype=int)
    np.add.at(counts, (actual.astype(int), predicted.astype(int)), 1)
    return [[int(count) for count in row] for row in counts]


def permutation_importance(
    use_case: UseCase, answer: Answer, rows: np.ndarray, actual: np.ndarray
) -> dict[str, Any]:
    """How much the deciding metric loses when one request field is shuffled (Breiman 2001).

    On at most 500 held-out rows, five shuffles of each field: `mean` and `std` of the loss, by
    field. All shuffled tables are answered in one call, which is what makes this cheap. Fields
    that say the same share their importance: shuffling one leaves the model the other.
    """
    random = np.random.default_rng(SEED)
    chosen = random.permutation(len(rows))[:PERMUTED_ROWS]
    rows, actual = rows[chosen], actual[chosen]
    tables = [rows]
    for position in range(len(use_case.fields)):
        for _ in range(PERMUTATIONS):
            table = rows.copy()
            table[:, position] = random.permutation(table[:, position])
            tables.append(table)
    answered = np.split(answer(np.vstack(tables)).prediction, len(tables))
    whole, *shuffled = (scores(use_case, actual, one)[use_case.metric] for one in answered)
    losses = whole - np.reshape(shuffled, (len(use_case.fields), PERMUTATIONS))
    return {
        "metric": use_case.metric,
        "rows": len(rows),
        "repeats": PERMUTATIONS,
        "fields": {
            field: {"mean": float(loss.mean()), "std": float(loss.std(ddof=1))}
            for field, loss in zip(use_case.fields, losses, strict=True)
        },
    }


def learning_curve(use_case: UseCase, one: Trained, split: Split) -> dict[str, Any]:
    """The deciding metric on rows learnt from and on held-out rows, by how many were learnt from.

    Two sizes beside all rows, each a part of the next; of a small table three such draws, whose
    range `low` to `high` shows chance. The last size is the model itself, which is not fitted
    again.
    """
    sizes = _sizes(use_case, split.y_train)
    repeats = REPEATS_OF_SMALL if len(split.y_train) < SMALL_TABLE else 1
    orders = [_order(use_case, split.y_train, SEED + number) for number in range(repeats)]
    points = []
    for size in sizes:
        drawn = [_point(use_case, one.candidate, split, order[:size]) for order in orders]
        points.append(_summary(size, drawn))
    learnt = scores(use_case, split.y_train, one.pipeline.predict(split.X_train))
    whole = (learnt[use_case.metric], one.metrics[use_case.metric])
    points.append(_summary(len(split.y_train), [whole]))
    return {"metric": use_case.metric, "repeats": repeats, "points": points}


def _sizes(use_case: UseCase, y: np.ndarray) -> list[int]:
    parts = len(use_case.target.labels) or 10
    sizes = [int(len(y) * share) for share in SHARES]
    return [size for size in sizes if size >= FEWEST_TO_LEARN * parts]


def _order(use_case: UseCase, y: np.ndarray, seed: int) -> np.ndarray:
    """Return row numbers in a random order; of classes, each beginning has them in proportion."""
    order = np.random.default_rng(seed).permutation(len(y))
    if not use_case.is_classification:
        return order
    rank = np.empty(len(y))
    for number in np.unique(y):
        of_class = order[y[order] == number]
        rank[of_class] = (np.arange(len(of_class)) + 0.5) / len(of_class)
    return np.argsort(rank, kind="stable")


def _point(
    use_case: UseCase, candidate: Candidate, split: Split, rows: np.ndarray
) -> tuple[float, float]:
    X, y = split.X_train.iloc[rows], split.y_train[rows]
    pipeline = fit(candidate, use_case, X, y)
    learnt = scores(use_case, y, pipeline.predict(X))[use_case.metric]
    held_out = scores(use_case, split.y_test, pipeline.predict(split.X_test))[use_case.metric]
    return learnt, held_out


def _summary(size: int, drawn: list[tuple[float, float]]) -> dict[str, Any]:
    learnt, held_out = np.array(drawn).T
    return {
        "rows": size,
        "learnt_from": float(learnt.mean()),
        "held_out": float(held_out.mean()),
        "low": float(held_out.min()),
        "high": float(held_out.max()),
    }


def _quantiles(values: np.ndarray) -> dict[str, float]:
    found = np.quantile(values, QUANTILES)
    return {f"{share:g}": float(value) for share, value in zip(QUANTILES, found, strict=True)}


def _short(values: Any) -> list[float]:
    """Return numbers for a figure: four digits after the point are finer than any dot."""
    return [float(value) for value in np.round(np.asarray(values, dtype=float), 4)]

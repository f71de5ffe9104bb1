"""Quality as sums: what each truth adds, and the scores, with intervals, that the sums give.

A truth makes one loss: the squared error of a regression, 0 or 1 of a classification. All that is
said of quality follows from sums that only grow, kept for each hour, model version and band of a
slice, and for a classification also for each pair of actual and predicted class. So any stretch of
time is read in as many additions as it has hours, and a truth that comes late just adds to its
prediction's hour.

Intervals are at 95 %, and are left out below `FEWEST_ROWS`, where they would promise too much:

    mse, rmse, mae   mean ± z s/sqrt(n), by the central limit theorem
    r2_score         delta method on the moments of error and actual value (van der Vaart,
                     "Asymptotic Statistics", 1998, chapter 3), which sums of powers give exactly
    accuracy         Wilson 1927, which holds near 1 and for few rows
    f1_score         delta method on the confusion matrix (Takahashi et al., "Confidence interval
                     for micro-averaged F1 and macro-averaged F1 scores", 2022)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import orjson

from mlops.records import Prediction
from mlops.usecase import UseCase

COLUMNS = ("rows", "loss", "loss2", "absolute", "y", "y2", "y3", "y4", "loss_y", "loss_y2")
"""What is summed: 1, loss, its square, absolute error, powers of the actual value, loss times it.

Of a classification only the first three are other than 0."""
Z_95 = 1.959963984540054
FEWEST_ROWS = 30
ALL = ("", "")
"""The slice and band of all rows."""
RISK = "(risk)"
"""The slice whose bands are the cells of the estimate (`estimate.py`)."""

INTERVAL = "(interval)"
"""The slice of rows by whether the truth lay within the prediction interval: see these bands."""
INSIDE, OUTSIDE = "inside", "outside"
OURS = (RISK, INTERVAL)
"""Slices that no use case declares."""

Actual = float | str
Cells = Callable[[str, Sequence[Prediction]], Sequence[str] | None]
"""The cell of each of these rows of the bundle with this hash; None if it sealed no cells."""

Bounded = Callable[[str, Sequence[Prediction], Sequence[Actual]], Sequence[bool] | None]
"""Whether these truths lay within the intervals of the bundle with this hash; None without any."""


class Key(NamedTuple):
    """What a sum is of. `hour` is in unix seconds; classes are empty for a regression."""

    hour: int
    model_version: int
    slice: str
    band: str
    actual: str
    predicted: str


class Sums(NamedTuple):
    """What truths added to one key: `values` in the order of `COLUMNS`."""

    key: Key
    values: np.ndarray


class Score(NamedTuple):
    """A score with the bounds of its 95 % interval; None where there are too few rows."""

    value: float
    low: float | None
    high: float | None


def contributions(predicted: np.ndarray, actual: np.ndarray, *, numbers: bool) -> np.ndarray:
    """Return what each row adds to the sums, shape (n, len(COLUMNS)).

    Of `numbers` the loss is the squared error, of classes 1 where they differ.
    """
    added = np.zeros((len(predicted), len(COLUMNS)))
    added[:, 0] = 1
    if not numbers:
        added[:, 1] = added[:, 2] = predicted != actual
        return added
    error = predicted - actual
    loss = error**2
    powers = [actual, actual**2, actual**3, actual**4, loss * actual, loss * actual**2]
    added[:, 1:] = np.column_stack([loss, loss**2, np.abs(error), *powers])
    return added


def measure(
    use_case: UseCase,
    rows: Sequence[Prediction],
    actual: Sequence[Actual],
    cells: Cells,
    bounded: Bounded = lambda bundle, rows, actual: None,
) -> list[Sums]:
    """Return what these rows and their truths add, to each key."""
    labels = use_case.target.labels
    predicted = np.array([row.prediction for row in rows], dtype=object if labels else float)
    known = np.array(actual, dtype=object if labels else float)
    added = contributions(predicted, known, numbers=not labels)
    places: dict[Key, int] = {}
    member: list[int] = []
    which: list[int] = []
    found = _bands(use_case, rows, actual, cells, bounded)
    for number, (row, bands) in enumerate(zip(rows, found, strict=True)):
        classes = (str(known[number]), str(row.prediction)) if labels else ("", "")
        hour = unix_hour(row.timestamp)
        for name, band in bands:
            key = Key(hour, row.model_version, name, band, *classes)
            which.append(places.setdefault(key, len(places)))
            member.append(number)
    totals = np.zeros((len(places), len(COLUMNS)))
    np.add.at(totals, which, added[member])
    return [Sums(key, values) for key, values in zip(places, totals, strict=True)]


def _bands(
    use_case: UseCase,
    rows: Sequence[Prediction],
    actual: Sequence[Actual],
    cells: Cells,
    bounded: Bounded,
) -> list[list[tuple[str, str]]]:
    """Return, for each row, every slice with the band that the row is in."""
    found: list[list[tuple[str, str]]] = []
    by_bundle: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        fields = orjson.loads(row.inputs) if use_case.slices else {}
        found.append([ALL, *((one.name, one.band(fields)) for one in use_case.slices)])
        by_bundle.setdefault(row.bundle, []).append(number)
    for bundle, numbers in by_bundle.items():
        its = [rows[number] for number in numbers]
        for number, cell in zip(numbers, cells(bundle, its) or (), strict=False):
            found[number].append((RISK, cell))
        inside = bounded(bundle, its, [actual[number] for number in numbers])
        for number, one in zip(numbers, inside or (), strict=False):
            found[number].append((INTERVAL, INSIDE if one else OUTSIDE))
    return found


def unix_hour(timestamp: str) -> int:
    """Return the unix second at which the hour of a logged time (UTC) begins."""
    days = np.datetime64(timestamp[:13], "h")
    return int(days.astype("int64")) * 3600


def total(sums: Iterable[Sums]) -> np.ndarray:
    """Add up; zeros if there are none."""
    return sum((one.values for one in sums), np.zeros(len(COLUMNS)))


def scores(use_case: UseCase, sums: Sequence[Sums]) -> dict[str, Score]:
    """Return the scores of the task, each with its interval; none without rows.

    `r2_score` is left out where the actual values do not differ.
    """
    values = total(sums)
    if not values[0]:
        return {}
    if use_case.is_classification:
        right = values[0] - values[1]
        return {
            "accuracy": _wilson(right, values[0]),
            "f1_score": _macro_f1(sums, use_case.target.labels),
        }
    return _of_numbers(dict(zip(COLUMNS, values.tolist(), strict=True)))


def coverage(sums: Sequence[Sums]) -> tuple[int, Score] | None:
    """Return how many truths met an interval, and the share of them within it; None without any."""
    met = [one for one in sums if one.key.slice == INTERVAL]
    rows = total(met)[0]
    if not rows:
        return None
    return int(rows), _wilson(total(one for one in met if one.key.band == INSIDE)[0], rows)


def _of_numbers(sums: Mapping[str, float]) -> dict[str, Score]:
    n = sums["rows"]
    mse = sums["loss"] / n
    mae = sums["absolute"] / n
    squared = _around(mse, sums["loss2"] / n - mse**2, n, least=0)
    found = {
        "mse": squared,
        "rmse": Score(*(None if value is None else math.sqrt(value) for value in squared)),  # type: ignore[arg-type]
        "mae": _around(mae, mse - mae**2, n, least=0),
    }
    moments = {name: sums[name] / n for name in COLUMNS[1:]}
    mean = moments["y"]
    spread = moments["y2"] - mean**2
    if spread <= 1e-12 * moments["y2"] or n < 2:
        return found
    # Row by row, R2 moves by a - b e^2 + c (y - mean)^2: its variance, from central moments.
    b, c = 1 / spread, mse / spread**2
    fourth = moments["y4"] - 4 * mean * moments["y3"] + 6 * mean**2 * moments["y2"] - 3 * mean**4
    crossed = moments["loss_y2"] - 2 * mean * moments["loss_y"] + mean**2 * mse
    variance = (
        b**2 * (moments["loss2"] - mse**2)
        + c**2 * (fourth - spread**2)
        - 2 * b * c * (crossed - mse * spread)
    )
    found["r2_score"] = _around(1 - mse / spread, variance, n, most=1)
    return found


def _around(
    value: float, variance: float, n: float, *, least: float = -math.inf, most: float = math.inf
) -> Score:
    if n < FEWEST_ROWS:
        return Score(value, None, None)
    half = Z_95 * math.sqrt(max(variance, 0.0) / (n - 1))
    return Score(value, max(value - half, least), min(value + half, most))


def _wilson(right: float, n: float) -> Score:
    share = right / n
    if n < FEWEST_ROWS:
        return Score(share, None, None)
    scale = 1 + Z_95**2 / n
    middle = (share + Z_95**2 / (2 * n)) / scale
    half = Z_95 * math.sqrt(share * (1 - share) / n + Z_95**2 / (4 * n**2)) / scale
    return Score(share, max(middle - half, 0.0), min(middle + half, 1.0))


def _macro_f1(sums: Sequence[Sums], labels: Sequence[str]) -> Score:
    """Mean of the F1 of each class that was seen or predicted; a class without hits counts 0."""
    place = {label: number for number, label in enumerate(labels)}
    counts = np.zeros((len(labels), len(labels)))
    for one in sums:
        counts[place[one.key.actual], place[one.key.predicted]] += one.values[0]
    n = counts.sum()
    share = counts / n
    both = share.sum(axis=0) + share.sum(axis=1)
    there = both > 0
    hits = np.diag(share)[there]
    value = float(np.mean(2 * hits / both[there]))
    slope = np.zeros_like(share)
    per_class = np.zeros(len(labels))
    per_class[there] = 2 * hits / both[there] ** 2
    slope -= (per_class[:, None] + per_class[None, :]) / there.sum()
    np.fill_diagonal(
        slope,
        [(2 / both[k] - 2 * per_class[k]) / there.sum() if there[k] else 0 for k in place.values()],
    )
    variance = float((share * slope**2).sum() - (share * slope).sum() ** 2)
    return _around(value, variance, n, least=0, most=1)

"""An estimate of quality for predictions whose truth is not known yet, and what it was worth.

When a model is sealed, the space of its inputs and answers is divided into cells in which it errs
alike, and the mean loss of each is measured on rows that it had not learnt from. A window's loss
is then estimated as the mean of its cells' losses, weighted by how many of its predictions fell
into each: post-stratification, which is direct loss estimation with a regressogram, and for a
classifier, whose cells divide mostly its confidence, confidence-based estimation calibrated by
histogram binning (Zadrozny and Elkan 2001; Guillory et al. 2021 on why confidence alone misleads).

It follows the inputs wherever they go, and assumes that within a cell the model errs as it did:
if the relation of inputs and truth changes, it is wrong and cannot know. So it is graded as truths
arrive: the losses that came, cell by cell, against those that were sealed. If they differ by more
than chance explains, the estimate is muted until the newest grades are good again.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import orjson

from mlops.monitor.quality import FEWEST_ROWS, Z_95, Sums
from mlops.records import Prediction
from mlops.usecase import UseCase

GRADED = 5
"""How many of the newest grades decide whether the estimate is believed."""
ROWS_OF_A_GRADE = 100
SUMS_OF_GRADES = 1_000
"""So many of the newest sums hold all grades: a sum is of one truth at least."""
Z_MUTED = 3.2905267314918945
"""Beyond this an estimate missed by more than chance: once in 1,000 looks if it is right."""


class Estimate(NamedTuple):
    """An estimated mean loss of `rows` predictions and the 95 % interval of what will be found."""

    rows: int
    loss: float
    low: float
    high: float


class Grade(NamedTuple):
    """One estimate held against the truth: both mean losses, and their difference in sigmas.

    `counts` is how many of its predictions are in each cell.
    """

    since: int
    rows: int
    estimated: float
    found: float
    z: float
    counts: np.ndarray


class Standing(NamedTuple):
    """Whether the estimate is believed: the grades that decide, newest last, and why."""

    muted: bool
    z: float
    grades: tuple[Grade, ...]
    says: str


def features(use_case: UseCase, rows: Sequence[Prediction]) -> np.ndarray:
    """Return what cells divide, (n, fields + 1): the fields and what the answer says of itself.

    That is the prediction of a regression, and of a classification the greatest probability.
    """
    fields = use_case.fields
    matrix = np.empty((len(rows), len(fields) + 1))
    for number, row in enumerate(rows):
        inputs = orjson.loads(row.inputs)
        matrix[number, :-1] = [inputs[field] for field in fields]
        stated = orjson.loads(row.probabilities) if row.probabilities else None
        matrix[number, -1] = max(stated.values()) if stated else row.prediction
    return matrix


def cell_of(tree: Mapping[str, Sequence[float]], matrix: np.ndarray) -> np.ndarray:
    """Return the node of the tree, numbered as it is sealed, that is the cell of each row."""
    column = np.array(tree["column"], dtype=int)
    threshold = np.array(tree["threshold"], dtype=float)
    left, right = np.array(tree["left"], dtype=int), np.array(tree["right"], dtype=int)
    node = np.zeros(len(matrix), dtype=int)
    rows = np.arange(len(matrix))
    while (inner := column[node] >= 0).any():
        low = matrix[rows, column[node]] <= threshold[node]
        node = np.where(inner, np.where(low, left[node], right[node]), node)
    return node


def measure_cells(
    cells: np.ndarray, losses: np.ndarray, nodes: int, *, least: float
) -> dict[str, list[float]]:
    """Return, for each node of the tree, how many rows it has and the sums of loss and loss^2.

    Each node has one row more than came, of the overall mean: a cell in which no error was seen
    would else be certain never to err. `least` is half of the smallest loss that can be, which
    the overall mean has too, for the same reason.
    """
    n = len(losses) + 1
    steady = [1.0, (losses.sum() + least) / n, ((losses**2).sum() + least) / n]
    sums = [None, losses, losses**2]
    return {
        name: (np.bincount(cells, weights=weights, minlength=nodes) + more).tolist()
        for name, weights, more in zip(("rows", "loss", "loss2"), sums, steady, strict=True)
    }


def estimate(sealed: Mapping[str, Any], cells: np.ndarray) -> Estimate | None:
    """Estimate the mean loss of rows that are in these cells; None for fewer than 30 rows.

    The interval is that of the mean that will be found for these rows: it has the spread of losses
    within cells, and how well the sealed means are known.
    """
    counts = np.bincount(cells, minlength=len(sealed["rows"])).astype(float)
    rows = int(counts.sum())
    if rows < FEWEST_ROWS:
        return None
    loss, variance = _expected(sealed, counts)
    half = Z_95 * math.sqrt(variance)
    return Estimate(rows, loss, max(loss - half, 0.0), loss + half)


def grades(sealed: Mapping[str, Any], sums: Sequence[Sums]) -> list[Grade]:
    """Grade the estimates of the newest hours whose truths have come: at most five, oldest first.

    `sums` are of one version, by hour. From the newest back, hours are put together until they
    have 100 truths.
    """
    found: list[Grade] = []
    counts, losses = np.zeros(len(sealed["rows"])), 0.0
    for hour, risks in itertools.groupby(reversed(sums), key=lambda one: one.key.hour):
        for one in risks:
            counts[int(one.key.band)] += one.values[0]
            losses += float(one.values[1])
        if counts.sum() >= ROWS_OF_A_GRADE:
            found.append(_grade(sealed, hour, counts, losses))
            counts, losses = np.zeros_like(counts), 0.0
        if len(found) == GRADED:
            break
    return found[::-1]


def standing(sealed: Mapping[str, Any], sums: Sequence[Sums]) -> Standing:
    """Say whether the estimate is believed: by its newest grades, all their truths together."""
    newest = grades(sealed, sums)
    if not newest:
        says = f"not graded yet: fewer than {ROWS_OF_A_GRADE} truths have come"
        return Standing(False, math.nan, (), says)
    counts = np.sum([grade.counts for grade in newest], axis=0)
    together = _grade(sealed, newest[0].since, counts, sum(g.found * g.rows for g in newest))
    muted = abs(together.z) > Z_MUTED
    estimates = f"its last {len(newest)} estimates" if len(newest) > 1 else "its last estimate"
    says = (
        f"{estimates}, of {together.rows:,} predictions, said a mean loss of "
        f"{together.estimated:.4g}, and {together.found:.4g} was found ({together.z:+.1f} sigma)"
    )
    return Standing(muted, together.z, tuple(newest), f"muted: {says}" if muted else says)


def _grade(sealed: Mapping[str, Any], since: int, counts: np.ndarray, losses: float) -> Grade:
    rows = int(counts.sum())
    found = losses / rows
    estimated, variance = _expected(sealed, counts)
    z = (found - estimated) / math.sqrt(variance) if variance else 0.0
    return Grade(since, rows, estimated, found, z, counts)


def _expected(sealed: Mapping[str, Any], counts: np.ndarray) -> tuple[float, float]:
    """Return the mean loss to be expected of so many rows in each cell, and its variance."""
    rows = np.array(sealed["rows"])
    mean = np.array(sealed["loss"]) / rows
    spread = np.maximum(np.array(sealed["loss2"]) / rows - mean**2, 0.0)
    weight = counts / counts.sum()
    variance = weight**2 * spread / rows + weight * spread / counts.sum()
    return float(weight @ mean), float(variance.sum())

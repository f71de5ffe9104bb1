"""What truths cost, and how honest findings and estimates are, on the real table and model.

    python -m benchmarks.quality

Test rows are split in two: one half is sealed, windows are drawn from the other, so that nothing
drifts unless it is made to.

    alarms     false alarms of degradation, and how many truths a planted fall needs
    coverage   how often the estimate's interval holds what is found: as it was, and where only
               rows of one band come (the inputs drift)
    muting     how often it is muted without cause, and after how many truths when truths change
    cost       seconds for 10,000 items of feedback in one call, over HTTP's own handler
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean as mean
from statistics import median
from typing import NamedTuple

import numpy as np

from mlops.build.data import Split, prepare, split
from mlops.build.risk import learn_cells
from mlops.build.training import Trained, train_candidate
from mlops.loop.performance import FALSE_ALARMS_A_YEAR, LOOKS_A_YEAR
from mlops.monitor import estimate
from mlops.monitor.degradation import degradation
from mlops.monitor.log import PredictionLog
from mlops.monitor.quality import ALL, COLUMNS, RISK, Key, Sums, contributions, measure
from mlops.records import Prediction, Submission
from mlops.usecases.housing import HOUSING

ITEMS = 10_000
WORLDS = 20
ALPHA = FALSE_ALARMS_A_YEAR / LOOKS_A_YEAR
HOUR = 3600


class World(NamedTuple):
    """What is sealed, and rows to draw windows from: their cells, bands, answers and truths."""

    sealed: dict[str, list[float]]
    test: list[Sums]
    cells: np.ndarray
    income: np.ndarray
    predicted: np.ndarray
    actual: np.ndarray

    @property
    def every(self) -> np.ndarray:
        return np.arange(len(self.actual))

    def between(self, low: float, high: float) -> np.ndarray:
        """Return the numbers of the rows with such a median income."""
        return np.flatnonzero((self.income >= low) & (self.income < high))

    def loss(self, rows: np.ndarray, factor: float = 1.0) -> np.ndarray:
        """Squared errors, if the truths are `factor` times what they are."""
        return np.asarray((self.predicted[rows] - factor * self.actual[rows]) ** 2)


def trained(folder: Path, candidate: str) -> tuple[Split, Trained]:
    """Train one candidate of housing, as `mlops train` does it."""
    parts = split(HOUSING, prepare(HOUSING, folder).frame)
    return parts, train_candidate(HOUSING, HOUSING.candidate(candidate), parts)


def world(parts: Split, one: Trained, seed: int) -> World:
    """Seal the quality on one half of the test rows, chosen by the seed, and keep the other."""
    predicted = one.pipeline.predict(parts.X_test)
    rows = np.column_stack([parts.X_test[list(HOUSING.fields)], predicted])
    learnt = np.column_stack([parts.X_train[list(HOUSING.fields)], one.held_out.prediction])
    losses = (one.held_out.prediction - parts.y_train) ** 2
    order = np.random.default_rng(seed).permutation(len(rows))
    kept, drawn = order[: len(order) // 2], order[len(order) // 2 :]
    tree, choosing = learn_cells(learnt, losses)
    measuring = np.delete(np.arange(len(learnt)), choosing)
    cells = estimate.cell_of(tree, np.vstack([learnt[measuring], rows[kept]]))
    found = np.concatenate([losses[measuring], (predicted[kept] - parts.y_test[kept]) ** 2])
    measured = estimate.measure_cells(cells, found, len(tree["column"]), least=0)
    return World(
        {**tree, **measured},
        [_sums(0, predicted[kept], parts.y_test[kept])],
        estimate.cell_of(tree, rows[drawn]),
        parts.X_test["median_income"].to_numpy()[drawn],
        predicted[drawn],
        parts.y_test[drawn],
    )


def _sums(hour: int, predicted: np.ndarray, actual: np.ndarray) -> Sums:
    added = contributions(predicted, actual, numbers=True)
    return Sums(Key(hour * HOUR, 1, *ALL, "", ""), added.sum(axis=0))


def alarms(
    one: World, rows: int, alpha: float, looks: int, factor: float = 1.0, seed: int = 0
) -> float:
    """Return the share of looks at windows of so many truths that are alarms."""
    chance = np.random.default_rng(seed)
    found = 0
    for _ in range(looks):
        drawn = chance.choice(len(one.actual), rows)
        window = [_sums(1, one.predicted[drawn], factor * one.actual[drawn])]
        found += degradation(HOUSING, one.test, window, alpha)[0].verdict == "alarm"
    return found / looks


def coverage(one: World, rows: int, windows: int, among: np.ndarray, seed: int = 0) -> float:
    """Return how often the interval holds the mean loss of rows drawn from those numbers."""
    chance = np.random.default_rng(seed)
    held = 0
    for _ in range(windows):
        drawn = chance.choice(among, rows)
        found = estimate.estimate(one.sealed, one.cells[drawn])
        assert found is not None
        held += found.low <= one.loss(drawn).mean() <= found.high
    return held / windows


def muted(one: World, hours: Sequence[float], rows: int, seed: int) -> list[bool]:
    """Return, after each hour of so many truths, whether it is muted; hours give the factor."""
    chance = np.random.default_rng(seed)
    sums: list[Sums] = []
    found = []
    for hour, factor in enumerate(hours, 1):
        drawn = chance.choice(len(one.actual), rows)
        losses, cells = one.loss(drawn, factor), one.cells[drawn]
        for cell in np.unique(cells):
            values = np.zeros(len(COLUMNS))
            here = losses[cells == cell]
            values[:3] = len(here), here.sum(), (here**2).sum()
            sums.append(Sums(Key(hour * HOUR, 1, RISK, str(cell), "", ""), values))
        found.append(estimate.standing(one.sealed, sums).muted)
    return found


def cost(one: World, items: int = ITEMS) -> float:
    """Return the seconds that attaching so many truths in one call takes, durably."""
    inputs = json.dumps({feature.name: feature.low for feature in HOUSING.features})
    rows = [
        Prediction(
            prediction_id=f"{number:036d}",
            timestamp="2026-03-01T12:00:00.000000+00:00",
            inputs=inputs,
            prediction=2.0,
            probabilities=None,
            warnings=None,
            model_version=1,
            bundle="b",
        )
        for number in range(items)
    ]

    def cells(bundle: str, rows: Sequence[Prediction]) -> list[str]:
        found = estimate.cell_of(one.sealed, estimate.features(HOUSING, rows))
        return [str(cell) for cell in found.tolist()]

    with tempfile.TemporaryDirectory() as folder:
        log = PredictionLog(Path(folder), "housinglogs", "power")
        log.append([Submission(tuple(rows))])
        truths = [(row.prediction_id, 2.5) for row in rows]
        started = time.perf_counter()
        attached = log.attach(truths, lambda rows, y: measure(HOUSING, rows, y, cells))
        seconds = time.perf_counter() - started
        log.close()
    assert attached.attached == items
    return seconds


def main() -> None:
    """Print what was measured."""
    with tempfile.TemporaryDirectory() as folder:
        parts, model = trained(Path(folder), "GradientBoosting")
    worlds = [world(parts, model, seed) for seed in range(WORLDS)]
    for alpha in (0.05, 0.01, 0.001):
        for rows in (30, 100, 300, 1000):
            share = mean(alarms(one, rows, alpha, 500, seed=n) for n, one in enumerate(worlds))
            print(f"false alarms at alpha {alpha:g}, {rows} truths: {share:.4f}")
    for factor in (0.8, 0.75, 0.7):
        risen = mean(
            float(one.loss(one.every, factor).mean()) / one.loss(one.every).mean() for one in worlds
        )
        for rows in (100, 300, 1000):
            share = mean(alarms(one, rows, ALPHA, 50, factor, n) for n, one in enumerate(worlds))
            print(f"alarms, truths {factor:g} of it (loss x {risen:.2f}), {rows}: {share:.3f}")
    for name, low, high in (("all rows", 0, 99), ("low income", 0, 2.5), ("high income", 5, 99)):
        for rows in (100, 300, 1000):
            share = mean(
                coverage(one, rows, 100, one.between(low, high), n) for n, one in enumerate(worlds)
            )
            print(f"the estimate's interval holds what is found, {name}, {rows}: {share:.3f}")
    for rows in (100, 300):
        looks = mean(
            float(np.mean(muted(one, [1.0] * 40, rows, n))) for n, one in enumerate(worlds)
        )
        print(f"muted without cause, {rows} truths an hour: {looks:.4f}")
        for factor in (0.8, 0.7):
            hours = [
                _first(muted(one, [1.0] * 5 + [factor] * 20, rows, n)[5:], True)
                for n, one in enumerate(worlds)
            ]
            print(f"hours until muted, truths {factor:g} of it: {_spread(hours)}")
        hours = [
            _first(muted(one, [0.6] * 5 + [1.0] * 20, rows, n)[5:], False)
            for n, one in enumerate(worlds)
        ]
        print(f"hours until it speaks again: {_spread(hours)}")
    print(f"{ITEMS:,} truths in one call: {min(cost(worlds[0]) for _ in range(3)):.2f} s")


def _first(found: Sequence[bool], wanted: bool) -> float:
    return found.index(wanted) + 1 if wanted in found else math.inf


def _spread(hours: Sequence[float]) -> str:
    return f"median {median(hours):g}, at most {max(hours):g}"


if __name__ == "__main__":
    main()

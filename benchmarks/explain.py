"""What does an explanation cost? One row of the champion, beside LightGBM's own and one prediction.

And do all held-out rows add up, and those that are timed equal LightGBM's?
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import joblib
import numpy as np

from mlops.build.data import prepare, split
from mlops.improve.ledger import Ledger
from mlops.package.bundle import open_bundle
from mlops.package.explainer import Explainer
from mlops.settings import read_settings
from mlops.usecases import USE_CASES

ROWS = 300


def run(home: Path) -> None:
    """Print, for each use case's champion in `home`, what explaining a row costs."""
    settings = read_settings(MLOPS_HOME=home)
    print(f"\nExplanations: median of {ROWS} rows, one at a time")
    print(
        f"{'use case':<10}{'model':<28}{'ms':>7}{'first, ms':>11}{'of LightGBM':>13}{'off by':>10}"
    )
    for name, use_case in USE_CASES.items():
        with Ledger(settings.state_database) as ledger:
            champion = ledger.champion(name)
        if champion is None:
            raise RuntimeError(f"{name} has no champion")
        bundle = open_bundle(settings.bundles / champion.bundle)
        table = prepare(use_case, settings.data)
        held_out = split(use_case, table.frame).X_test.to_numpy(dtype=float)
        explainer = Explainer(bundle.explanation, bundle.model)
        first = seconds(explainer.explain, held_out[:1])
        ours = seconds(explainer.explain, held_out)
        found = explainer.explain(held_out)
        off = np.abs(found.base + found.contributions.sum(axis=2) - found.value).max()
        ratio = ""
        pipeline = joblib.load(bundle.path / "pipeline.joblib")  # sealed by this very run
        if hasattr(pipeline[-1], "booster_"):
            inputs = pipeline[:-1].transform(held_out)
            booster = pipeline[-1].booster_
            some = booster.predict(inputs[:ROWS], pred_contrib=True, num_threads=1)[:, :-1]
            off = max(off, np.abs(some - found.derived[:ROWS, 0]).max())
            theirs = seconds(
                lambda row, b=booster: b.predict(row, pred_contrib=True, num_threads=1), inputs
            )
            ratio = f"{ours / theirs:.2f}"
        print(
            f"{name:<10}{champion.candidate:<28}{1e3 * ours:>7.2f}{1e3 * first:>11.1f}"
            f"{ratio:>13}{off:>10.0e}"
        )


def seconds(explain: Callable[[np.ndarray], object], rows: np.ndarray) -> float:
    """Return the median time to explain one row."""
    times = []
    for number in range(min(ROWS, len(rows))):
        started = time.perf_counter()
        explain(rows[number : number + 1])
        times.append(time.perf_counter() - started)
    return statistics.median(times)

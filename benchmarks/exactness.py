"""Do graph and pipeline agree on a million random rows? And what does one row cost in each?

The rows are uniform in twice the range that training saw; both use cases are trained first.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import joblib
import numpy as np

from benchmarks import whole_loop
from benchmarks.results import Found, Line, Row
from mlops.improve.ledger import Ledger
from mlops.package.bundle import open_bundle
from mlops.package.parity import check_parity
from mlops.settings import read_settings
from mlops.usecases import USE_CASES

ROWS = 1_000_000
SEED = 42


EXACT = {  # as closely as a bundle is held to when it is sealed
    name: Line(f"{name}: largest difference in {ROWS:,} random rows", most=1e-9)
    for name in USE_CASES
}
FASTER = {
    name: Line(f"{name}: one row in the pipeline ÷ one row in the graph") for name in USE_CASES
}
LINES = (*EXACT.values(), *FASTER.values())


def run(home: Path, _: int = 0) -> Found:
    """Compare, for each use case's champion, its pipeline and its graph."""
    whole_loop.up(home)
    settings = read_settings(MLOPS_HOME=home)
    rng = np.random.default_rng(SEED)
    exact, faster = [], []
    for name, use_case in USE_CASES.items():
        with Ledger(settings.state_database) as ledger:
            champion = ledger.champion(name)
        if champion is None:
            raise RuntimeError(f"{name} has no champion")
        bundle = open_bundle(settings.bundles / champion.bundle)
        pipeline = joblib.load(bundle.path / "pipeline.joblib")  # sealed by this very run
        seen = np.array([bundle.signature["training_ranges"][field] for field in use_case.fields])
        low, high = seen.T
        rows = rng.uniform(low - (high - low) / 2, high + (high - low) / 2, (ROWS, len(seen)))
        parity = check_parity(pipeline, bundle.model, rows)
        one = rows[:1]
        ratio = _seconds(lambda p=pipeline, r=one: p.predict(r)) / _seconds(
            lambda m=bundle.model, r=one: m.run(r)
        )
        largest = f"{parity.largest_difference:.1e}"
        exact.append(Row(EXACT[name], "", largest, parity.largest_difference))
        faster.append(Row(FASTER[name], "", champion.candidate, ratio))
    return Found([*exact, *faster])


def _seconds(call: Callable[[], object]) -> float:
    times = []
    for _ in range(200):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return statistics.median(times)

"""Do graph and pipeline agree on a million random rows? And what does one row cost in each?"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import joblib
import numpy as np

from mlops.improve.ledger import Ledger
from mlops.package.bundle import open_bundle
from mlops.package.parity import check_parity
from mlops.settings import read_settings
from mlops.usecases import USE_CASES

ROWS = 1_000_000
SEED = 42


def run(home: Path) -> None:
    """Print, for each use case's champion, the largest difference and the cost of a row."""
    settings = read_settings(MLOPS_HOME=home)
    rng = np.random.default_rng(SEED)
    print(f"\nExactness: {ROWS:,} random rows, uniform in twice the range that training saw")
    print(f"{'use case':<10}{'model':<28}{'largest difference':>20}{'pipeline/graph, 1 row':>24}")
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
        print(
            f"{name:<10}{champion.candidate:<28}{parity.largest_difference:>20.1e}{ratio:>23.0f}×"
        )


def _seconds(call: Callable[[], object]) -> float:
    times = []
    for _ in range(200):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return statistics.median(times)

"""Do prediction intervals cover what they promise? Ten random splits of California Housing.

Each candidate is trained as ever on four fifths of the rows; the others are only measured on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.model_selection import train_test_split

from benchmarks.results import between, measured_on
from mlops.build.conformal import learn_intervals
from mlops.build.data import Split, fields_and_target, parted
from mlops.build.training import Trained, train_candidate
from mlops.loop.intervals import covered, interval_document
from mlops.package.export import to_onnx
from mlops.package.intervals import Conformal
from mlops.package.model import OnnxModel
from mlops.usecase import TEST_SHARE
from mlops.usecases.housing import HOUSING
from mlops.verbs.console import progress

PAGE = Path(__file__).parents[1] / "docs" / "intervals.md"
SEEDS = range(10)
CANDIDATES = ("Accurate", "GradientBoosting", "RandomForest", "LinearRegression")
FEWEST_ROWS = 200
"""Of a band that is held to anything."""


def run(_: Path, write: bool) -> None:
    """Measure, and print; with `write`, publish in docs/intervals.md."""
    X, y = fields_and_target(HOUSING, HOUSING.load().table)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in CANDIDATES}
    with progress().steps("intervals", len(SEEDS) * len(CANDIDATES)) as advance:
        for seed in SEEDS:
            learnt, held_out = train_test_split(
                np.arange(len(X)), test_size=TEST_SHARE, random_state=seed
            )
            parts = parted(HOUSING, X, y, learnt, held_out)
            for name in CANDIDATES:
                advance(f"{name}, split {seed}")
                one = train_candidate(HOUSING, HOUSING.candidate(name), parts)
                found[name].append(measured(parts, one, one.held_out.prediction))
    lines = table(found)
    print("\n".join(lines))
    if write:
        note = measured_on('make bench ARGS="intervals --write"')
        between(PAGE, "intervals", [f"- {note}", "", *lines])


def measured(parts: Split, one: Trained, unseen: np.ndarray) -> dict[str, Any]:
    """Return what intervals cover on the test rows if they are learnt from the answers `unseen`."""
    found = learn_intervals(HOUSING, parts.X_train, parts.y_train, unseen)
    if found is None:
        raise RuntimeError(f"{len(parts.y_train)} rows are too few for intervals")
    document = interval_document(HOUSING, found)
    conformal = Conformal(document, OnnxModel(to_onnx(found.scale, found.fields)))
    rows = parts.X_test.to_numpy(dtype=float)
    bounds = conformal.of(rows, one.pipeline.predict(parts.X_test))
    return covered(HOUSING, rows, parts.y_test, bounds, document["cap"])


def bands(found: dict[str, Any]) -> dict[str, float]:
    """Return what was covered of each band that has rows enough."""
    return {
        f"{name}: {band}": one["coverage"]
        for name, each in found["bands"].items()
        for band, one in each.items()
        if one["rows"] >= FEWEST_ROWS
    }


def table(found: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Return a table: mean over the splits, and the least of any split."""
    lines = [
        f"| rows | {' | '.join(found)} |",
        f"|---|{'---|' * len(found)}",
        _line("all held-out rows", [[one["coverage"] for one in runs] for runs in found.values()]),
    ]
    lines += [
        _line(name, [[bands(one)[name] for one in runs] for runs in found.values()])
        for name in bands(next(iter(found.values()))[0])
    ]
    lines.append(
        _line(
            "target at the cap",
            [[one["cap"]["coverage"] for one in runs] for runs in found.values()],
        )
    )
    widths = [f"{np.mean([one['median_width'] for one in runs]):.2f}" for runs in found.values()]
    return [*lines, f"| median width, 100,000 dollars | {' | '.join(widths)} |"]


def _line(name: str, each: Sequence[Sequence[float]]) -> str:
    cells = [f"{np.mean(shares):.1%} (least {min(shares):.1%})" for shares in each]
    return f"| {name} | {' | '.join(cells)} |"

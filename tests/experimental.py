"""Worlds with an experiment: versions that are off by a constant, rows of known truth, a log."""

from __future__ import annotations

import contextlib
import datetime
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from promotions import World
from test_bad_models import Rewired

from mlops import clock
from mlops.database import connect
from mlops.deploy.predictor import new_ids
from mlops.improve.experiments import Experiment
from mlops.improve.ledger import Ledger
from mlops.loop.performance import measure_of
from mlops.loop.prediction_log import open_log
from mlops.loop.verdict import report
from mlops.package.bundle import golden_answers, open_bundle
from mlops.package.model import OnnxModel
from mlops.records import Prediction, Submission
from mlops.usecases.housing import HOUSING


def register_off(world: World, by: float) -> int:
    """Register a version that answers like version 1, and a constant more."""

    def change(documents: dict[str, Any]) -> None:
        graph = Rewired((world.bundle("housing", 1) / "model.onnx").read_bytes())
        documents["model"] = graph.answering(graph.add("Add", "known", np.array(by)))
        golden = np.array(documents["golden"]["fields"])
        documents["golden"].update(golden_answers(OnnxModel(documents["model"]).run(golden)))

    return world.register("housing", change).version


def begin(world: World, mode: Any, challenger: int, **options: Any) -> Experiment:
    with Ledger(world.settings.state_database) as ledger:
        return ledger.experiments.begin("housing", mode, challenger, **options)


def opened(world: World) -> Experiment | None:
    with Ledger(world.settings.state_database) as ledger:
        return ledger.experiments.open("housing")


def drawn(world: World, number: int, seed: int = 0) -> list[dict[str, float]]:
    """Rows of the data file, drawn."""
    table = np.genfromtxt(world.settings.data / "housing.csv", delimiter=",", names=True)
    picked = table[np.random.default_rng(seed).integers(0, len(table), number)]
    return [{f.name: float(row[f.column]) for f in HOUSING.features} for row in picked]


def logged(
    world: World,
    rows: Sequence[dict[str, float]],
    *,
    version: int | Sequence[int] = 1,
    clients: Sequence[str | None] | None = None,
    at: float | None = None,
    seconds: float = 0.0,
) -> list[str]:
    """Log rows as a server would that answered them by this version, or each by its own.

    The first at `at` (unix seconds; else now), each of the others `seconds` later.
    """
    versions = [version] * len(rows) if isinstance(version, int) else list(version)
    fields = np.array([[row[name] for name in HOUSING.fields] for row in rows])
    bundles = {one: open_bundle(world.bundle("housing", one)) for one in set(versions)}
    answers = {one: bundle.model.run(fields).prediction for one, bundle in bundles.items()}
    first, ids = clock.unix() if at is None else at, new_ids(len(rows))
    predictions = [
        Prediction(
            ids[number],
            datetime.datetime.fromtimestamp(first + seconds * number, datetime.UTC).isoformat(
                timespec="microseconds"
            ),
            json.dumps(row),
            float(answers[one][number]),
            None,
            None,
            one,
            bundles[one].hash,
            clients[number] if clients else None,
        )
        for number, (row, one) in enumerate(zip(rows, versions, strict=True))
    ]
    with contextlib.closing(open_log(HOUSING, world.settings)) as log:
        log.append([Submission((one,)) for one in predictions])
    return ids


def tell(world: World, ids: Sequence[str], *, off: float = 0.0, version: int = 1) -> None:
    """Attach truths: what version 1 would answer, and `off` more, with some noise."""
    bundle = open_bundle(world.bundle("housing", version))
    noise = np.random.default_rng(len(ids)).normal(off, 0.3, len(ids))
    with contextlib.closing(open_log(HOUSING, world.settings)) as log:
        found = log.find_all(ids)
        rows = [json.loads(found[one].inputs) for one in ids]
        fields = np.array([[row[name] for name in HOUSING.fields] for row in rows])
        actual = (bundle.model.run(fields).prediction + noise).tolist()
        measure = measure_of(HOUSING, world.settings)
        log.attach(list(zip(ids, actual, strict=True)), measure)


def asked(world: World) -> dict[str, Any]:
    return report(HOUSING, world.settings)


def shadowed(world: World) -> list[tuple[Any, ...]]:
    """All that the shadow holds: experiment, row, prediction."""
    path = world.settings.home / "housinglogs" / "shadow.db"
    with contextlib.closing(connect(path, read_only=True)) as connection:
        return connection.execute(
            "SELECT experiment, log_id, prediction FROM shadowed ORDER BY 1, 2"
        ).fetchall()

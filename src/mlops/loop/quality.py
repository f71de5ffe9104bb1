"""What training seals of quality: losses of the test rows, and cells for the estimate.

And what it notes of the cost of an answer.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
import orjson
import pandas as pd

from mlops.build.data import Split
from mlops.build.risk import learn_cells
from mlops.build.training import Answers, Trained
from mlops.monitor import estimate
from mlops.monitor.performance import sealable
from mlops.monitor.quality import contributions, measure
from mlops.package.model import OnnxModel
from mlops.records import Prediction
from mlops.usecase import UseCase

TIMED_ROWS = 200
SMALLEST_ERROR = 1.0
"""Of a classification; squared errors can be as small as they like."""


def quality_to_seal(use_case: UseCase, parts: Split, one: Trained) -> dict[str, Any]:
    """Return the losses of the test rows, in all and by band, and the cells of the estimate.

    Cells are chosen by the losses of half the training rows, each by the model of the fold that
    did not learn from it, and measured on the other half and on the test rows.
    """
    X, pipeline = parts.X_test, one.pipeline
    probabilities = pipeline.predict_proba(X) if use_case.is_classification else None
    tested = _as_logged(use_case, X, Answers(pipeline.predict(X), probabilities))
    learnt = _as_logged(use_case, parts.X_train, one.held_out)
    rows = estimate.features(use_case, [*learnt, *tested])
    losses = np.concatenate(
        [
            _losses(use_case, answers, actual)
            for answers, actual in ((learnt, parts.y_train), (tested, parts.y_test))
        ]
    )
    tree, choosing = learn_cells(rows[: len(learnt)], losses[: len(learnt)])
    measuring = np.delete(np.arange(len(rows)), choosing)
    cells = estimate.cell_of(tree, rows[measuring])
    least = SMALLEST_ERROR / 2 if use_case.is_classification else 0.0
    measured = estimate.measure_cells(cells, losses[measuring], len(tree["column"]), least=least)
    actual = _as_truths(use_case, parts.y_test)
    sums = measure(use_case, tested, actual, lambda bundle, rows: None)
    return sealable(sums, {**tree, **measured})


def target_to_seal(actual: np.ndarray) -> dict[str, float]:
    """Return the range of the training targets, and the share of rows at its upper end."""
    low, high = float(actual.min()), float(actual.max())
    return {"lowest": low, "highest": high, "share_at_highest": float((actual == high).mean())}


def microseconds(model: OnnxModel, rows: np.ndarray) -> float:
    """Return what one row takes in the graph: the median of many, in processor time."""
    times = []
    for number in range(TIMED_ROWS):
        row, started = rows[number % len(rows)][None], time.thread_time()
        model.run(row)
        times.append(time.thread_time() - started)
    return statistics.median(times) * 1e6


def _as_logged(use_case: UseCase, X: pd.DataFrame, answers: Answers) -> list[Prediction]:
    """Return rows as the log would have them, so that what is sealed is measured as they are."""
    labels = use_case.target.labels
    stated = [None] * len(X) if answers.probabilities is None else answers.probabilities.tolist()
    return [
        Prediction(
            prediction_id="",
            timestamp="1970-01-01T00",
            inputs=orjson.dumps(dict(zip(use_case.fields, row, strict=True))).decode(),
            prediction=labels[int(value)] if labels else float(value),
            probabilities=orjson.dumps(dict(zip(labels, each, strict=True))).decode()
            if each
            else None,
            warnings=None,
            model_version=0,
            bundle="",
        )
        for row, value, each in zip(
            X[list(use_case.fields)].to_numpy(dtype=float).tolist(),
            answers.prediction.tolist(),
            stated,
            strict=True,
        )
    ]


def _as_truths(use_case: UseCase, actual: np.ndarray) -> list[float | str]:
    labels = use_case.target.labels
    return [labels[int(value)] if labels else float(value) for value in actual]


def _losses(use_case: UseCase, rows: list[Prediction], actual: np.ndarray) -> np.ndarray:
    kind = object if use_case.is_classification else float
    predicted = np.array([row.prediction for row in rows], dtype=kind)
    known = np.array(_as_truths(use_case, actual), dtype=kind)
    return contributions(predicted, known, numbers=not use_case.is_classification)[:, 1]

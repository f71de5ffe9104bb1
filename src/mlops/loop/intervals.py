"""What training seals of prediction intervals: how they are made, and what they cover."""

from __future__ import annotations

from typing import Any

import numpy as np

from mlops.build.conformal import COVERAGE, Learnt, learn_intervals, with_prediction
from mlops.build.data import Split
from mlops.build.training import Trained
from mlops.package.export import to_onnx
from mlops.package.intervals import Bounds, Conformal
from mlops.package.model import OnnxModel
from mlops.package.parity import check_parity
from mlops.usecase import UseCase

FEWEST_ROWS_OF_A_BAND = 30
"""Below, the share that was covered would say little."""


def intervals_to_seal(
    use_case: UseCase, parts: Split, one: Trained, model: OnnxModel
) -> tuple[dict[str, Any], bytes | None]:
    """Return the document `intervals`, and the graph that it takes, proven on all rows.

    There is no graph, and the document says why, of a classification and of too few rows.
    """
    if use_case.is_classification:
        why = "a class has probabilities, which say how sure it is"
        return {"method": "none", "why": why}, None
    learnt = learn_intervals(
        use_case, parts.X_train, parts.y_train, one.held_out.prediction, parts.weights
    )
    if learnt is None:
        why = f"{len(parts.y_train)} training rows are too few for intervals"
        return {"method": "none", "why": why}, None
    graph = to_onnx(learnt.scale, learnt.fields)
    scale = OnnxModel(graph)
    X = parts.X_test
    rows = X[list(use_case.fields)].to_numpy(dtype=float)
    prediction = model.run(rows).prediction
    seen = with_prediction(use_case, parts.X_train, one.held_out.prediction)
    check_parity(learnt.scale, scale, np.vstack([seen, with_prediction(use_case, X, prediction)]))
    document = interval_document(use_case, learnt)
    bounds = Conformal(document, scale).of(rows, prediction)
    document["measured"] = covered(use_case, rows, parts.y_test, bounds, document["cap"])
    return document, graph


def interval_document(use_case: UseCase, learnt: Learnt) -> dict[str, Any]:
    """Return what serving makes intervals of, beside the graph."""
    cap = learnt.cap
    return {
        "method": "cross-conformal, errors scaled",
        "coverage": COVERAGE,
        "rows": learnt.rows,
        "quantiles": {"low": learnt.low, "high": learnt.high},
        "cap": cap and {"at": cap.at, "rows": cap.rows, "high": cap.high},
        "limits": [use_case.target.low, use_case.target.high],
    }


def covered(
    use_case: UseCase,
    rows: np.ndarray,
    actual: np.ndarray,
    bounds: Bounds,
    cap: dict[str, Any] | None,
) -> dict[str, Any]:
    """Measure intervals on rows (n, fields) whose targets are known, in all and band by band.

    Of each band of a slice `bands` has its rows and the share that was covered; so has `cap` of the
    rows whose target is the cap, or beyond.
    """
    inside = (bounds.low <= actual) & (actual <= bounds.high)
    width = bounds.high - bounds.low
    of_rows = [dict(zip(use_case.fields, row, strict=True)) for row in rows.tolist()]
    bands: dict[str, dict[str, Any]] = {}
    for one in use_case.slices:
        band = np.array([one.band(row) for row in of_rows])
        bands[one.name] = {
            name: _share(inside[band == name])
            for name in (*one.bands, one.rest)
            if (band == name).sum() >= FEWEST_ROWS_OF_A_BAND
        }
    return {
        **_share(inside),
        "mean_width": float(width.mean()),
        "median_width": float(np.median(width)),
        "bands": bands,
        "cap": _share(inside[actual >= cap["at"]]) if cap and (actual >= cap["at"]).any() else None,
    }


def _share(inside: np.ndarray) -> dict[str, Any]:
    return {"rows": len(inside), "coverage": float(inside.mean())}

"""What a bundle seals so that its answers can be explained; `explainer.py` tells how they are."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np

from mlops.errors import BundleError, ParityError
from mlops.package import shapley, trees
from mlops.package.explainer import ARRAYS, TOLERANCE, Explainer, explained
from mlops.package.export import LINEAR_REGRESSORS
from mlops.package.model import OnnxModel
from mlops.usecase import Ratio

MOST_FIELDS = 10
ROWS_AT_ONCE = 12_800
"""Asked of the graph for one explanation by coalitions, which bounds the background."""
MOST_BACKGROUND = 100
FEW_BACKGROUND = 8
"""Where a model derives features for itself: it takes tens of times as long to answer."""
ENOUGH_WORK = 150_000_000
"""Leaves times inputs times rows after which sealing has measured importance well enough."""
FEWEST_ROWS = 100
WORK_OF_GRAPH = 200
"""What a row through the graph is taken to cost, in inputs of leaves."""


def explanation_document(
    pipeline: Any, model: OnnxModel, training: np.ndarray, held_out: np.ndarray
) -> dict[str, Any]:
    """Return what a bundle seals so that its answers can be explained: plain JSON.

    `training` and `held_out` are float64 [n, fields]. Global importance, the mean |contribution|
    of each field, is measured on the held-out rows: all of them unless that took too long.

    Raises `ParityError` if base value and contributions do not add up to the graph's answer, on any
    of these rows, or if the base value is not the training rows' mean answer.
    """
    document = _method(pipeline, model, training)
    if document["method"] == "none":
        return document
    explainer = Explainer(document, model)
    rows = held_out[_spread(len(held_out), _affordable(document, len(model.fields)))]
    try:
        found = explainer.explain(rows)
    except BundleError as error:
        raise ParityError(error.message, "nothing is sealed: choose another candidate") from None
    if explainer.method != "coalitions":
        mean = explained(model.run(training)).mean(axis=0)
        off = np.abs(found.base - mean) / np.maximum(1, np.abs(mean))
        if not off.max() <= TOLERANCE:
            raise _miscounted(
                f"the base value {found.base.tolist()} is not their mean answer {mean.tolist()}"
            )
    mean_size = np.abs(found.contributions).mean(axis=(0, 1))
    document["importance"] = {
        "rows": len(rows),
        "fields": dict(zip(model.fields, mean_size.tolist(), strict=True)),
    }
    return document


def _method(pipeline: Any, model: OnnxModel, training: np.ndarray) -> dict[str, Any]:
    """Choose how to explain a fitted pipeline, and return all that it takes."""
    steps = pipeline.named_steps
    estimator, scaler = steps["model"], steps.get("scale")
    answers = model.run(training)
    inputs = answers.inputs
    forest = trees.read(estimator)
    ancestors = {base.__name__ for base in type(estimator).__mro__}
    shift = np.zeros(inputs.shape[1])
    scale = np.ones(inputs.shape[1])
    if scaler is not None:
        shift = scaler.mean_ if scaler.with_mean else shift
        scale = scaler.scale_ if scaler.with_std else scale
    common = {
        "shift": shift.tolist(),
        "scale": scale.tolist(),
        "parts": [
            [item.numerator, item.denominator] if isinstance(item, Ratio) else [item]
            for item in steps["inputs"].inputs
        ],
    }
    if forest is not None and forest.link == "identity":
        arrays = {name: getattr(forest, name) for name in ARRAYS}
        arrays["cover"] = shapley.cover(forest, (inputs - shift) / scale)
        if not shapley.adds_up(forest, arrays["cover"]):
            raise _miscounted("from some question fewer or more went on than had come")
        kept = {name: _packed(array) for name, array in arrays.items()}
        how = {"float32": forest.float32, "boosted": forest.boosted}
        return {"method": "tree_paths", **common, "trees": {**kept, **how}}
    if ancestors & LINEAR_REGRESSORS and not model.labels and estimator.coef_.ndim == 1:
        return {
            "method": "linear",
            **common,
            "shift": inputs.mean(axis=0).tolist(),
            "weights": estimator.coef_.tolist(),
            "base": [float(answers.prediction.mean())],
        }
    if len(model.fields) > MOST_FIELDS:
        why = f"{type(estimator).__name__} on more than {MOST_FIELDS} fields has none that is exact"
        return {"method": "none", "why": why}
    derives = hasattr(estimator, "named_steps") or "Distilled" in ancestors
    most = FEW_BACKGROUND if derives else MOST_BACKGROUND
    rows = min(most, ROWS_AT_ONCE // 2 ** len(model.fields))
    by_answer = np.argsort(explained(answers)[:, 0], kind="stable")
    chosen = by_answer[_spread(len(training), rows)]
    return {"method": "coalitions", "background": training[chosen].tolist()}


def _miscounted(what: str) -> ParityError:
    return ParityError(
        f"training rows were miscounted: {what}",
        "the explanation is at fault, so nothing is sealed: report it, with the candidate",
    )


def _spread(rows: int, most: int) -> np.ndarray:
    """Return the numbers of at most `most` rows, evenly spread over all."""
    return np.linspace(0, rows - 1, min(rows, most)).round().astype(int)


def _affordable(document: Mapping[str, Any], fields: int) -> int:
    """Return how many rows are explained to measure importance."""
    work = 1
    if document["method"] == "tree_paths":
        work = document["trees"]["leaves"]["shape"][0] * len(document["parts"])
    elif document["method"] == "coalitions":
        work = 2**fields * len(document["background"]) * WORK_OF_GRAPH
    return max(FEWEST_ROWS, ENOUGH_WORK // work)


def _packed(array: np.ndarray) -> dict[str, Any]:
    """Return an array as JSON: exactly, and a third of what its digits would take."""
    small = array.astype(np.int32) if array.dtype.kind == "i" else array.astype(np.float64)
    little = small.astype(small.dtype.newbyteorder("<"))
    return {
        "type": little.dtype.str,
        "shape": list(array.shape),
        "base64": base64.b64encode(little.tobytes()).decode(),
    }

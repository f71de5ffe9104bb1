"""What a bundle takes and gives, and what training saw: sealed in it, and read by who serves it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from mlops.build.profile import training_order
from mlops.build.swaps import training_swaps, training_whole
from mlops.deploy.unlike import Unlike
from mlops.usecase import UseCase

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline


def signature(
    use_case: UseCase, rows: np.ndarray, ranges: dict[str, list[float]], pipeline: Pipeline
) -> dict[str, Any]:
    """Return the document `signature` of a bundle; `rows` are the training rows (n, fields)."""
    units = {feature.name: feature.unit for feature in use_case.features}
    for item in use_case.inputs:
        if not isinstance(item, str):
            units[item.name] = item.unit
    found = {
        "use_case": use_case.name,
        "task": use_case.task,
        "fields": [dataclasses.asdict(feature) for feature in use_case.features],
        "inputs": [i if isinstance(i, str) else dataclasses.asdict(i) for i in use_case.inputs],
        "target": dataclasses.asdict(use_case.target),
        "units": units,
        "training_ranges": ranges,
        "training_whole": training_whole(use_case.fields, rows),
        "training_order": training_order(
            use_case.fields, [feature.unit for feature in use_case.features], rows
        ),
    }
    inputs, so_far = pipeline["inputs"], Unlike(use_case, found)
    return {
        **found,
        "training_swaps": training_swaps(
            use_case.fields, rows, lambda changed: so_far.rows(changed, inputs.transform(changed))
        ),
    }

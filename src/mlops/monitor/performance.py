"""Performance: quality over time, by version and by band, beside what was sealed, and estimated.

Pure: sums, sealed documents and logged rows in, one document for people, JSON and pages out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mlops import clock
from mlops.monitor import estimate as estimating
from mlops.monitor.degradation import degradation
from mlops.monitor.quality import ALL, COLUMNS, Cells, Key, Score, Sums, coverage, scores, total
from mlops.records import Finding, Prediction
from mlops.usecase import UseCase

HOUR = 3600
DAY = 24 * HOUR
HOURLY_UP_TO = 2 * DAY


class Sealed(NamedTuple):
    """What a bundle sealed of its quality: sums of the test rows, and the cells of the estimate.

    `coverage` is what its prediction intervals promise, None without any.
    """

    test: tuple[Sums, ...]
    cells: Mapping[str, Any]
    coverage: float | None = None


def unsealed(
    document: Mapping[str, Any], intervals: Mapping[str, Any] | None = None
) -> Sealed | None:
    """Read a bundle's documents `metrics` and `intervals`; None if it was sealed before these."""
    found = document.get("quality")
    if found is None:
        return None
    names = len(Key._fields) - 2
    test = (
        Sums(Key(0, 0, *row[:names]), np.array(row[names:], dtype=float)) for row in found["test"]
    )
    return Sealed(tuple(test), found["cells"], (intervals or {}).get("coverage"))


def sealable(test: Sequence[Sums], cells: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `unsealed` reads, as JSON has it."""
    return {
        "columns": [*Key._fields[2:], *COLUMNS],
        "test": [[*one.key[2:], *one.values.tolist()] for one in test],
        "cells": dict(cells),
    }


def cells_from(use_case: UseCase, sealed: Callable[[str], Sealed | None]) -> Cells:
    """Return the `Cells` of a use case, given what a bundle of some hash sealed."""

    def cells(bundle: str, rows: Sequence[Prediction]) -> list[str] | None:
        there = sealed(bundle)
        if there is None:
            return None
        nodes = estimating.cell_of(there.cells, estimating.features(use_case, rows))
        return [str(node) for node in nodes.tolist()]

    return cells


def performance(
    use_case: UseCase,
    version: int,
    sums: Sequence[Sums],
    sealed: Mapping[int, Sealed | None],
    recent: Sequence[Prediction],
    graded: Sequence[Sums],
    *,
    since: int,
    until: int,
    predictions: int,
    alpha: float,
) -> dict[str, Any]:
    """Return all that is known of quality between two moments (unix seconds).

    `version` is judged: the findings and the estimate are about it. `sealed` is by version;
    `sums` are those of the window, of all versions that are to be shown. For the estimate,
    `recent` are logged predictions of `version`, and `graded` its newest sums by cell: truths may
    come so late that the window has none.
    """
    step = step_of(since, until)
    mine = [one for one in sums if one.key.model_version == version]
    own = sealed.get(version)
    everything = _at(sums, ALL)
    return {
        "use_case": use_case.name,
        "metric": use_case.metric,
        "model_version": version,
        "window": {"since": clock.iso(since), "until": clock.iso(until), "step_seconds": step},
        "predictions": predictions,
        "truths": int(total(everything)[0]),
        "versions": [
            {
                "model_version": number,
                **_scored(use_case, some),
                "sealed": _sealed_scores(use_case, sealed.get(number), ALL),
            }
            for number, some in _grouped(everything, lambda key: key.model_version)
        ],
        "series": [
            {"start": clock.iso(start), "model_version": number, **_scored(use_case, some)}
            for (start, number), some in _grouped(
                everything, lambda key: (key.hour // step * step, key.model_version)
            )
        ],
        "slices": {
            one.name: {
                "description": one.description,
                "bands": _bands(use_case, one.name, sums, sealed),
            }
            for one in use_case.slices
        },
        "intervals": [
            {
                "model_version": number,
                "promised": own_sealed.coverage if (own_sealed := sealed.get(number)) else None,
                "rows": found[0],
                "coverage": found[1]._asdict(),
            }
            for number, some in _grouped(sums, lambda key: key.model_version)
            if (found := coverage(some))
        ],
        "findings": [
            _plain(finding)
            for finding in degradation(use_case, own.test if own else None, mine, alpha)
        ],
        "estimate": estimated(use_case, own, graded, recent),
    }


def estimated(
    use_case: UseCase, sealed: Sealed | None, sums: Sequence[Sums], recent: Sequence[Prediction]
) -> dict[str, Any]:
    """Return the estimate for these predictions, and whether it is believed; why, if there is none.

    `state` is "given", "muted" or "none"; only what is given has scores.
    """
    answer: dict[str, Any] = {"state": "none", "rows": len(recent), "scores": {}, "grades": []}
    if sealed is None:
        return answer | {
            "says": "sealed before estimates were: train again with: mlops train " + use_case.name
        }
    graded = estimating.standing(sealed.cells, sums)
    answer["grades"] = [
        {"since": clock.iso(one.since), **{name: getattr(one, name) for name in one._fields[1:-1]}}
        for one in graded.grades
    ]
    answer["z"] = None if math.isnan(graded.z) else graded.z
    if graded.muted:
        return answer | {"state": "muted", "says": graded.says}
    matrix = estimating.features(use_case, recent)
    found = estimating.estimate(sealed.cells, estimating.cell_of(sealed.cells, matrix))
    if found is None:
        says = f"{len(recent)} predictions are too few for an estimate"
        return answer | {"says": says}
    return answer | {
        "state": "given",
        "says": graded.says,
        "scores": {
            name: score._asdict() for name, score in _scores(use_case, found, matrix).items()
        },
    }


def _scores(use_case: UseCase, found: estimating.Estimate, matrix: np.ndarray) -> dict[str, Score]:
    """Turn an estimated loss into scores.

    R2 has the variance of the actual values in it, which nobody knows yet: it is taken to be that
    of the predictions plus the estimated loss, as it is where predictions are means (the law of
    total variance).
    """
    loss = Score(found.loss, found.low, found.high)
    if use_case.is_classification:
        return {"accuracy": Score(1 - found.loss, max(1 - found.high, 0.0), 1 - found.low)}
    spread = float(matrix[:, -1].var())

    scores = {
        "mse": loss,
        "rmse": Score(*(math.sqrt(value) for value in (found.loss, found.low, found.high))),
    }
    if spread:
        r2 = (spread / (spread + mse) for mse in (found.loss, found.high, found.low))
        scores["r2_score"] = Score(*r2)
    return scores


def _bands(
    use_case: UseCase, name: str, sums: Sequence[Sums], sealed: Mapping[int, Sealed | None]
) -> list[dict[str, Any]]:
    there = [one for one in sums if one.key.slice == name]
    return [
        {
            "band": band,
            "model_version": number,
            **_scored(use_case, some),
            "sealed": _sealed_scores(use_case, sealed.get(number), (name, band)),
        }
        for (band, number), some in _grouped(there, lambda key: (key.band, key.model_version))
    ]


def _at(sums: Iterable[Sums], place: tuple[str, str]) -> list[Sums]:
    return [one for one in sums if (one.key.slice, one.key.band) == place]


def step_of(since: int, until: int) -> int:
    """Return the seconds of one entry of the series: hours of a short window, else days."""
    return HOUR if until - since <= HOURLY_UP_TO else DAY


def _grouped(sums: Iterable[Sums], by: Callable[[Key], Any]) -> list[tuple[Any, list[Sums]]]:
    found: dict[Any, list[Sums]] = {}
    for one in sums:
        found.setdefault(by(one.key), []).append(one)
    return sorted(found.items())


def _scored(use_case: UseCase, sums: Sequence[Sums]) -> dict[str, Any]:
    return {
        "rows": int(total(sums)[0]),
        "scores": {name: score._asdict() for name, score in scores(use_case, sums).items()},
    }


def _sealed_scores(
    use_case: UseCase, sealed: Sealed | None, place: tuple[str, str]
) -> dict[str, Any] | None:
    return _scored(use_case, _at(sealed.test, place)) if sealed else None


def _plain(finding: Finding) -> dict[str, Any]:
    return finding._asdict()

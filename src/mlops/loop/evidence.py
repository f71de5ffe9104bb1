"""Evidence: what the gates are shown of a version, measured here and now on the test rows."""

from __future__ import annotations

import dataclasses
import statistics
import time
from typing import Any

import numpy as np

from mlops.build.data import Split, prepare, split
from mlops.build.growth import counted, field_marks
from mlops.build.training import scores
from mlops.errors import BundleError
from mlops.improve.gates.evidence import Bands, Cost, Evidence, Paired, Proof
from mlops.improve.ledger import Version
from mlops.loop.lesson import learnt
from mlops.package.bundle import MODEL, Bundle, golden_difference, open_bundle
from mlops.settings import Settings
from mlops.usecase import UseCase

SHIFT = 0.1
"""How far fields are moved, as a share of their standard deviation in training."""
PERTURBED_ROWS = 500
TIMED_ROWS = 200
WIDTHS = 5
"""How far beyond the target's limits an answer to changed rows may lie, in widths of these."""


def gather(
    use_case: UseCase, version: Version, champion: Version | None, settings: Settings
) -> Evidence:
    """Return what is known of `version`, beside `champion` where they can be compared.

    Raises `BundleError` if the version's own bundle cannot be opened.
    """
    bundle = open_bundle(settings.bundles / version.bundle, key=settings.signing_key)
    mine = learnt(bundle, use_case, settings)
    parts = mine or split(use_case, prepare(use_case, settings.data).frame)
    other, against = _opened(champion, settings)
    comparable = other
    if other is not None:
        theirs = learnt(other, use_case, settings)
        new = _new_to_both(_counted(mine, bundle), theirs) if mine and theirs else None
        if new is None or new.X_test.empty:
            against += " learnt from other data, which may hold these test rows"
            comparable = None
        else:
            parts = new
    rows, actual = parts.X_test.to_numpy(dtype=float), parts.y_test
    predicted = bundle.model.run(rows).prediction
    metrics, target = bundle.metrics, use_case.target
    wide = WIDTHS * (target.high - target.low)
    costs = _costs([one for one in (bundle, other) if one is not None], rows)
    return Evidence(
        metric=use_case.metric,
        score=metrics["scores"][use_case.metric],
        baseline_score=metrics["baseline"][use_case.metric],
        measured_score=_score(use_case, bundle, mine) if mine else None,
        golden_difference=golden_difference(bundle),
        proof=_proof(bundle.training),
        losses=_losses(use_case, predicted, actual),
        champion_losses=_losses(use_case, comparable.model.run(rows).prediction, actual)
        if comparable is not None
        else None,
        champion=against,
        bands=_bands(use_case, rows),
        perturbed=_perturbed(use_case, bundle, comparable, parts),
        answers_allowed=(target.low - wide, target.high + wide),
        cost=costs[0],
        champion_cost=costs[1] if other is not None else None,
        budget=Cost(int(use_case.budget.megabytes * 1e6), use_case.budget.microseconds),
        signature=bundle.signature,
        champion_signature=other.signature if other is not None else None,
        declared={
            "fields": [dataclasses.asdict(feature) for feature in use_case.features],
            "target": dataclasses.asdict(target),
        },
    )


def _opened(champion: Version | None, settings: Settings) -> tuple[Bundle | None, str]:
    """Open the champion; return it, or None, and how to speak of it."""
    if champion is None:
        return None, "no champion yet"
    name = f"version {champion.version}"
    try:
        return open_bundle(settings.bundles / champion.bundle, key=settings.signing_key), name
    except BundleError as error:
        return None, f"{name} cannot be opened ({error.message})"


def _counted(mine: Split, bundle: Bundle) -> Split:
    """Return a split with its test rows as the training counted them: see `growth.counted`."""
    weight = bundle.training.get("new_row_weight", 1.0)
    if weight == 1:
        return mine
    these = counted(mine.X_test, int(bundle.training["rows_reference"]), weight)
    return dataclasses.replace(mine, X_test=mine.X_test[these], y_test=mine.y_test[these])


def _new_to_both(mine: Split, theirs: Split) -> Split:
    """Return a split with those of its test rows that equal no row the other training learnt from.

    If both set the same rows aside, it is all of them.
    """
    if mine.fingerprint == theirs.fingerprint:
        return mine
    known = set(field_marks(theirs.X_train))
    new = np.array([mark not in known for mark in field_marks(mine.X_test)], dtype=bool)
    return dataclasses.replace(mine, X_test=mine.X_test[new], y_test=mine.y_test[new])


def _score(use_case: UseCase, bundle: Bundle, parts: Split) -> float:
    """Return what a bundle scores now on the rows that its training held out."""
    predicted = bundle.model.run(parts.X_test.to_numpy(dtype=float)).prediction
    if not np.isfinite(predicted).all():
        return float("nan")
    return scores(use_case, parts.y_test, predicted)[use_case.metric]


def _losses(use_case: UseCase, predicted: np.ndarray, actual: np.ndarray) -> np.ndarray:
    if use_case.is_classification:
        return np.asarray(predicted != actual, dtype=float)
    return np.asarray(predicted - actual) ** 2


def _proof(training: dict[str, Any]) -> Proof:
    needed = training["rows_train"] + training["rows_test"]
    parity = training.get("parity", {})
    return Proof(parity.get("rows"), needed, parity.get("largest_difference", 0.0))


def _bands(use_case: UseCase, rows: np.ndarray) -> tuple[Bands, ...]:
    gaps = {one.slice: one.largest_gap for one in use_case.fairness}
    found = []
    for one in use_case.slices:
        names = (*one.bands, one.rest)
        named = (dict(zip(use_case.fields, row, strict=True)) for row in rows.tolist())
        of_row = np.array([names.index(one.band(row)) for row in named])
        found.append(Bands(one.name, names, of_row, gaps.get(one.name)))
    return tuple(found)


def _perturbed(
    use_case: UseCase, bundle: Bundle, champion: Bundle | None, parts: Split
) -> dict[str, Paired]:
    """Let both answer changed test rows: see the gate `withstands_drift`."""
    rows = parts.X_test.to_numpy(dtype=float)[:PERTURBED_ROWS]
    actual = parts.y_test[:PERTURBED_ROWS]
    spread = parts.X_train.to_numpy(dtype=float).std(axis=0)
    changed = {}
    for place, field in enumerate(use_case.features):
        for sign in (-1, 1):
            moved = rows.copy()
            moved[:, place] += sign * SHIFT * spread[place]
            moved[:, place] = moved[:, place].clip(field.low, field.high)
            changed[f"{field.name} {sign * SHIFT:+g} of its spread"] = moved
        mixed = rows.copy()
        mixed[::10, place] = np.roll(rows[:, place], 1)[::10]
        changed[f"{field.name} of other rows in every tenth"] = mixed
    found = {}
    for change, moved in changed.items():
        answers = bundle.model.run(moved).prediction
        found[change] = Paired(
            _losses(use_case, answers, actual),
            _losses(use_case, champion.model.run(moved).prediction, actual)
            if champion is not None
            else None,
            (float(answers.min()), float(answers.max())),
        )
    return found


def _costs(bundles: list[Bundle], rows: np.ndarray) -> list[Cost]:
    """Time the bundles row by row in turns, so that whatever slows the machine slows both."""
    times: list[list[int]] = [[] for _ in bundles]
    for number in range(TIMED_ROWS):
        row = rows[number % len(rows)][None]
        for bundle, taken in zip(bundles, times, strict=True):
            started = time.perf_counter_ns()
            bundle.model.run(row)
            taken.append(time.perf_counter_ns() - started)
    return [
        Cost((bundle.path / MODEL).stat().st_size, statistics.median(taken) / 1000)
        for bundle, taken in zip(bundles, times, strict=True)
    ]

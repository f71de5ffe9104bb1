"""Replay: answer again what was answered once, by the same bundle or by another version.

By the same bundle, one prediction: it is equal to the last bit, or was tampered with, or the
environment has changed (other libraries, whose sums end in other digits). By another version, a
stretch of the log: a shadow test after the fact, paired row by row, with truths where known.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
from collections.abc import Sequence
from typing import Literal

import numpy as np

from mlops.errors import BundleError, UsageError
from mlops.improve.ledger import Ledger
from mlops.improve.sequential import Judgement, complete, judge
from mlops.loop.logs import moment, open_existing
from mlops.loop.losses import fields_of, losses_of, numbers_of
from mlops.loop.prediction_log import has_log, open_log
from mlops.package.bundle import GOLDEN_TOLERANCE, Bundle, golden_difference, open_bundle
from mlops.records import Prediction
from mlops.settings import Settings, read_settings
from mlops.usecase import UseCase
from mlops.usecases import USE_CASES, find

Outcome = Literal["equal", "tampered", "environment changed", "cannot tell"]
DECIDING = ("numpy", "onnxruntime")
"""Libraries that compute an answer."""
SECONDS_A_DAY = 86_400.0


@dataclasses.dataclass(frozen=True, slots=True)
class Replayed:
    """What came of answering a logged prediction again.

    `difference` is the largest of prediction and probabilities, relative to the value where that
    is above 1; None if there is no answer now.
    """

    use_case: str
    prediction_id: str
    version: int
    bundle: str
    outcome: Outcome
    says: str
    logged: float | str
    now: float | str | None
    difference: float | None


@dataclasses.dataclass(frozen=True, slots=True)
class Shadow:
    """Another version on a stretch of the log.

    `differ` counts answers that are not those that were given. `mean_loss` and `logged_loss` are
    over all predictions whose truth is known (`truths`); `judgement` over those up to the first
    whose truth is missing, the difference being the other version's less the logged.
    """

    use_case: str
    against: int
    since: str | None
    predictions: int
    differ: int
    mean_difference: float | None
    largest_difference: float | None
    truths: int
    mean_loss: float | None
    logged_loss: float | None
    judgement: Judgement


def replay(
    prediction_id: str, use_case: str | None = None, *, settings: Settings | None = None
) -> Replayed:
    """Answer a logged prediction again by the bundle that the log names.

    Raises `UsageError` if no log holds such a prediction.
    """
    settings = settings or read_settings()
    asked = (find(use_case),) if use_case else tuple(USE_CASES.values())
    for one in asked:
        if not has_log(one, settings):
            continue
        with contextlib.closing(open_log(one, settings)) as log:
            row = log.find(prediction_id)
        if row is not None:
            return _replayed(one, row, settings)
    raise UsageError(
        f"no log holds a prediction {prediction_id!r}",
        f"list them with: mlops logs {asked[0].name} --json",
    )


def shadow(
    name: str, *, against: int, since: str | None = None, settings: Settings | None = None
) -> Shadow:
    """Let version `against` answer what was logged from `since` on, and compare row by row.

    Raises `UsageError` for a version or moment that is none, `NotTrainedError` without a log.
    """
    settings = settings or read_settings()
    use_case = find(name)
    with Ledger(settings.state_database) as ledger:
        version = ledger.version(name, against)
    bundle = open_bundle(settings.bundles / version.bundle, key=settings.signing_key)
    start = None if since is None else moment(since)
    rows: list[Prediction] = []
    truths: dict[str, float | str] = {}
    answers = []
    with contextlib.closing(open_existing(name, settings)) as log:
        for page in log.pages(start):
            rows += page
            truths |= log.known_truths([row.prediction_id for row in page])
            answers.append(bundle.model.run(fields_of(use_case, page)).prediction)
    logged = numbers_of(use_case, [row.prediction for row in rows])
    now = np.concatenate([*answers, np.empty(0)])
    apart = np.abs(now - logged)
    differ = apart > GOLDEN_TOLERANCE * np.maximum(1, np.abs(logged))
    known = np.array([row.prediction_id in truths for row in rows], dtype=bool)
    with_truth = [row.prediction_id for row in rows if row.prediction_id in truths]
    actual = numbers_of(use_case, [truths[one] for one in with_truth])
    mine = losses_of(use_case, now[known], actual)
    theirs = losses_of(use_case, logged[known], actual)
    whole = complete(known)  # of these the first `whole` are all known
    return Shadow(
        use_case=name,
        against=against,
        since=start,
        predictions=len(rows),
        differ=int(differ.sum()),
        mean_difference=_mean(now - logged),
        largest_difference=float(apart.max()) if len(apart) else None,
        truths=int(known.sum()),
        mean_loss=_mean(mine),
        logged_loss=_mean(theirs),
        judgement=judge((mine - theirs)[:whole], labels_per_day=_a_day(rows[:whole])),
    )


def _replayed(use_case: UseCase, row: Prediction, settings: Settings) -> Replayed:
    with Ledger(settings.state_database) as ledger:
        known = {one.version: one.bundle for one in ledger.versions(use_case.name)}
    now: float | str | None = None
    difference: float | None = None
    try:
        bundle = open_bundle(settings.bundles / row.bundle, key=settings.signing_key)
    except BundleError as error:
        gone = not (settings.bundles / row.bundle).exists()
        outcome: Outcome = "cannot tell" if gone else "tampered"
        says = f"its bundle is gone: {row.bundle}" if gone else error.message
    else:
        try:
            now, difference = _again(use_case, row, bundle)
            outcome, says = _judged(bundle, difference)
        except (ValueError, KeyError, TypeError):
            outcome, says = "tampered", "what is logged of it is no row that was ever answered"
        if known.get(row.model_version, row.bundle) != row.bundle:
            outcome = "tampered"
            says = f"version {row.model_version} has another bundle than the log names"
    return Replayed(
        use_case.name,
        row.prediction_id,
        row.model_version,
        row.bundle,
        outcome,
        says,
        row.prediction,
        now,
        difference,
    )


def _again(use_case: UseCase, row: Prediction, bundle: Bundle) -> tuple[float | str, float]:
    """Answer the row; return the answer and how far it is from the logged one."""
    output = bundle.model.run(fields_of(use_case, [row]))
    labels = use_case.target.labels
    if not labels or output.probabilities is None:
        answer = float(output.prediction[0])
        return answer, _apart([float(row.prediction)], [answer])
    label = labels[int(output.prediction[0])]
    logged = json.loads(row.probabilities or "{}")
    if label != row.prediction or set(logged) != set(labels):
        return label, float("inf")
    return label, _apart([logged[one] for one in labels], output.probabilities[0].tolist())


def _judged(bundle: Bundle, difference: float) -> tuple[Outcome, str]:
    """Tell a changed row from a changed environment.

    The bundle has proven itself when it was opened: its golden answers are the sealed ones to
    1e-9. So more than that is none of the environment's doing.
    """
    if difference == 0:
        return "equal", "the same answer, to the last bit"
    changed = _changed_libraries(bundle)
    if difference <= GOLDEN_TOLERANCE and (changed or golden_difference(bundle) > 0):
        what = ", ".join(changed) or "this machine computes its golden rows differently too"
        return "environment changed", f"off by {difference:.3g}: {what}"
    return "tampered", (
        f"off by {difference:.3g}, while the bundle still gives the answers that were sealed with "
        "it: inputs or answer are not those that were logged"
    )


def _changed_libraries(bundle: Bundle) -> list[str]:
    sealed = bundle.training.get("libraries", {})
    now = {name: importlib.metadata.version(name) for name in DECIDING}
    return [
        f"{name} {now[name]}, was {sealed[name]}"
        for name in DECIDING
        if name in sealed and sealed[name] != now[name]
    ]


def _apart(expected: Sequence[float], found: Sequence[float]) -> float:
    a, b = np.asarray(expected, dtype=float), np.asarray(found, dtype=float)
    return float(np.max(np.abs(a - b) / np.maximum(1, np.abs(a))))


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def _a_day(rows: Sequence[Prediction]) -> float:
    """Predictions a day; of too few to tell, one."""
    if len(rows) < 2:
        return 1.0
    first, last = (np.datetime64(row.timestamp[:26]) for row in (rows[0], rows[-1]))
    seconds = float((last - first) / np.timedelta64(1, "s"))
    return len(rows) * SECONDS_A_DAY / max(seconds, 1.0)

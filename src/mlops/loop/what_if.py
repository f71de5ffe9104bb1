"""What if: the ledger's history under another policy, and what that would have cost or saved.

Decisions come from the evidence that the ledger kept (`improve/hindsight.py`). What they would have
cost is measured: where another version would have answered, its bundle answers the logged rows
whose truth is known, and its losses are held against those of the answers that were given.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from typing import Any, Literal

import numpy as np

from mlops.errors import BundleError
from mlops.improve import policies
from mlops.improve.gates import check_all
from mlops.improve.hindsight import Held, Stretch, Weighed, replay
from mlops.improve.intervals import FEWEST_ROWS, interval
from mlops.improve.ledger import Ledger, Version
from mlops.loop.evidence import gather
from mlops.loop.losses import fields_of, losses_of, numbers_of
from mlops.loop.prediction_log import has_log, open_log
from mlops.loop.report import Report, Silent
from mlops.monitor.log import PredictionLog
from mlops.package.bundle import Bundle, open_bundle
from mlops.settings import Settings, read_settings
from mlops.usecase import UseCase
from mlops.usecases import find


@dataclasses.dataclass(frozen=True, slots=True)
class Cost:
    """The difference that the policy would have made to answers, where truths are known.

    `was` and `would` are mean losses over the `truths` of the time in which another version would
    have answered; `difference` is their mean difference with its 95 % interval, below zero where
    the policy is better. `total` sums it over these truths. `predictions` counts all of that time.
    """

    outcome: Literal["better", "worse", "no difference beyond chance", "none", "cannot tell"]
    says: str
    predictions: int = 0
    truths: int = 0
    was: float | None = None
    would: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    total: float | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Reign:
    """A stretch of time with who was champion and who would have been, and what it would cost."""

    stretch: Stretch
    cost: Cost


@dataclasses.dataclass(frozen=True, slots=True)
class WhatIf:
    """The history of a use case under another policy, `weighed` line by line."""

    use_case: str
    policy: str
    rule: str
    weighed: tuple[Weighed, ...]
    reigns: tuple[Reign, ...]
    cost: Cost


def what_if(
    name: str,
    policy: str,
    *,
    measure: bool = False,
    settings: Settings | None = None,
    report: Report | None = None,
) -> WhatIf:
    """Replay the decisions about a use case under a policy. Changes nothing.

    With `measure`, the gates are asked now about two versions that they never held against each
    other. Raises `UsageError` for a use case or policy that there is not.
    """
    settings = settings or read_settings()
    report = report or Silent()
    use_case, chosen = find(name), policies.find(policy)
    with Ledger(settings.state_database) as ledger:
        versions = {one.version: one for one in ledger.versions(name)}
        decisions = ledger.decisions(name)
    held = _measured(use_case, versions, settings, report) if measure else _unknown
    found = replay(decisions, chosen, held)
    reigns, losses = [], []
    with _log_of(use_case, settings) as log, report.steps(name, len(found.stretches)) as advance:
        for stretch in found.stretches:
            advance(stretch.since[:10])
            cost, pairs = _cost(use_case, stretch, versions, log, settings)
            reigns.append(Reign(stretch, cost))
            if stretch.differs:
                losses.append((cost, pairs))
    return WhatIf(name, policy, chosen.says, found.weighed, tuple(reigns), _sum(losses))


def _unknown(version: int, champion: int | None) -> None:
    """Leave what the ledger does not know unknown."""


def _measured(
    use_case: UseCase, versions: dict[int, Version], settings: Settings, report: Report
) -> Held:
    """Return what asks the gates about two versions, once each; None if a bundle is gone."""
    known: dict[tuple[int, int | None], Any] = {}

    def held(version: int, champion: int | None) -> Any:
        pair = (version, champion)
        if pair not in known:
            known[pair] = None
            other = None if champion is None else versions.get(champion)
            if version in versions and (champion is None or other is not None):
                report.say(f"asking the gates about version {version} against {champion} …")
                with contextlib.suppress(BundleError):
                    verdicts = check_all(gather(use_case, versions[version], other, settings))
                    known[pair] = [dataclasses.asdict(one) for one in verdicts]
        return known[pair]

    return held


@contextlib.contextmanager
def _log_of(use_case: UseCase, settings: Settings) -> Any:
    if not has_log(use_case, settings):
        yield None
        return
    with contextlib.closing(open_log(use_case, settings)) as log:
        yield log


def _cost(
    use_case: UseCase,
    stretch: Stretch,
    versions: dict[int, Version],
    log: PredictionLog | None,
    settings: Settings,
) -> tuple[Cost, np.ndarray]:
    """Return what the policy would have cost in a stretch, and the losses under both, (2, n)."""
    nothing = np.empty((2, 0))
    if not stretch.differs:
        return Cost("none", "the same version"), nothing
    if log is None or next(log.pages(stretch.since, stretch.until), None) is None:
        return Cost("none", "nothing was asked then"), nothing
    [other] = stretch.would if len(stretch.would) == 1 else [None]
    if other is None or other not in versions:
        says = "who would have answered cannot be told"
        if len(stretch.would) == 1:
            says = "nobody would have" if other is None else f"version {other} is not registered"
        return Cost("cannot tell", says), nothing
    try:
        bundle = open_bundle(settings.bundles / versions[other].bundle, key=settings.signing_key)
        predictions, pairs = _losses(use_case, stretch, bundle, log)
    except (BundleError, KeyError, ValueError) as error:
        says = getattr(error, "message", f"it takes other fields than were logged ({error})")
        return Cost("cannot tell", f"version {other}: {says}"), nothing
    return _judged(pairs, predictions), pairs


def _losses(
    use_case: UseCase, stretch: Stretch, bundle: Bundle, log: PredictionLog
) -> tuple[int, np.ndarray]:
    """Return how much was logged then, and both losses where the truth is known, shape (2, n)."""
    predictions, parts = 0, [np.empty((2, 0))]
    for page in log.pages(stretch.since, stretch.until):
        predictions += len(page)
        truths = log.known_truths([row.prediction_id for row in page])
        told = [row for row in page if row.prediction_id in truths]
        if told:
            actual = numbers_of(use_case, [truths[row.prediction_id] for row in told])
            given = numbers_of(use_case, [row.prediction for row in told])
            other = bundle.model.run(fields_of(use_case, told)).prediction
            answers = (given, other)
            parts.append(np.array([losses_of(use_case, one, actual) for one in answers]))
    return predictions, np.concatenate(parts, axis=1)


def _judged(pairs: np.ndarray, predictions: int) -> Cost:
    truths = pairs.shape[1]
    told = f"the truth is known of {truths:,} of {predictions:,} predictions"
    if truths < FEWEST_ROWS:
        return Cost("cannot tell", f"{told}, {FEWEST_ROWS} are needed", predictions, truths)
    if not np.isfinite(pairs).all():
        return Cost("cannot tell", "a model gives no finite number", predictions, truths)
    differences = pairs[1] - pairs[0]
    mean, low, high = interval(differences)
    outcome: Any = "no difference beyond chance"
    if high < 0 or low > 0:
        outcome = "better" if high < 0 else "worse"
    return Cost(
        outcome,
        f"mean loss {mean:+.4g}, 95 % interval {low:+.4g} to {high:+.4g}; {told}",
        predictions,
        truths,
        float(pairs[0].mean()),
        float(pairs[1].mean()),
        mean,
        low,
        high,
        math.fsum(differences),
    )


def _sum(parts: list[tuple[Cost, np.ndarray]]) -> Cost:
    """Return the cost of all that would have been different."""
    parts = [part for part in parts if part[0].outcome != "none"]
    if not parts:
        return Cost("none", "the same versions would have answered all that was asked")
    if len(parts) == 1:
        return parts[0][0]
    untold = [cost for cost, _ in parts if cost.outcome == "cannot tell"]
    pairs = np.concatenate([found for _, found in parts], axis=1)
    whole = _judged(pairs, sum(cost.predictions for cost, _ in parts))
    if not untold:
        return whole
    says = f"{len(untold)} of {len(parts)} stretches cannot be told: {untold[0].says}"
    if whole.outcome == "cannot tell":
        return dataclasses.replace(whole, says=says)
    return dataclasses.replace(whole, says=f"{whole.says}; {says}")

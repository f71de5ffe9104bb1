"""Promote: ask the gates, then make a version the champion by compare-and-swap."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from mlops.build.data import prepare, split
from mlops.errors import BundleError, GateError, TrackingError, UsageError
from mlops.improve.gates import Evidence, Verdict, check_all
from mlops.improve.ledger import Ledger, Version
from mlops.loop.report import Report, Silent
from mlops.loop.track import pending
from mlops.package.bundle import Bundle, golden_difference, open_bundle
from mlops.settings import Settings, read_settings
from mlops.track.registry import mirror_champion
from mlops.track.runs import Tracking
from mlops.usecase import UseCase
from mlops.usecases import find


@dataclasses.dataclass(frozen=True, slots=True)
class Promotion:
    """What came of it. `changed` is false when the version was champion already."""

    version: Version
    previous: int | None
    verdicts: tuple[Verdict, ...]
    changed: bool


def promote(
    name: str,
    number: int | None = None,
    *,
    force: bool = False,
    reason: str = "",
    settings: Settings | None = None,
    report: Report | None = None,
) -> Promotion:
    """Make a version (the newest, unless told) champion if every gate lets it.

    `force` overrules the gates, never a bundle that cannot be opened; it needs a `reason`, which
    the ledger keeps. Raises `GateError`, `BundleError`, or `ChampionMovedError` when another
    promotion came first.
    """
    settings = settings or read_settings()
    report = report or Silent()
    use_case = find(name)
    if force and not reason.strip():
        raise UsageError("a forced promotion needs a reason", "say why with --reason")
    with Ledger(settings.state_database) as ledger:
        version = _version(ledger, name, number)
        champion = ledger.champion(name)
        if champion is not None and champion.version == version.version:
            _mirror(use_case, version, settings, report)  # it may have failed when it was promoted
            return Promotion(version, champion.version, (), changed=False)
        previous = champion.version if champion else None
        verdicts = check_all(_evidence(use_case, version, champion, settings))
        failed = [verdict for verdict in verdicts if verdict.outcome == "fail"]
        evidence: list[Any] = [dataclasses.asdict(verdict) for verdict in verdicts]
        if failed and not force:
            why = "; ".join(f"{verdict.gate}: {verdict.says}" for verdict in failed)
            ledger.refuse(version, previous=previous, reason=why, evidence=evidence)
            raise GateError(
                f"{name} version {version.version} was not promoted: {why}",
                f"train a better one, or overrule with: mlops promote {name} {version.version} "
                '--force --reason "…"',
            )
        why = f"forced: {reason}" if force else reason or "every gate let it pass"
        ledger.promote(version, expected=previous, reason=why, evidence=evidence)
    _mirror(use_case, version, settings, report)
    return Promotion(version, previous, tuple(verdicts), changed=True)


def _version(ledger: Ledger, name: str, number: int | None) -> Version:
    if number is not None:
        return ledger.version(name, number)
    versions = ledger.versions(name)
    if not versions:
        raise UsageError(f"{name} has no registered version", f"train one with: mlops train {name}")
    return versions[-1]


def _evidence(
    use_case: UseCase, version: Version, champion: Version | None, settings: Settings
) -> Evidence:
    bundle = open_bundle(settings.bundles / version.bundle, key=settings.signing_key)
    table = prepare(use_case, settings.data)
    parts = split(use_case, table.frame)
    rows = parts.X_test.to_numpy(dtype=float)
    champion_losses, against = None, "no champion yet"
    if champion is not None:
        against = f"version {champion.version}"
        try:
            other = open_bundle(settings.bundles / champion.bundle, key=settings.signing_key)
        except BundleError as error:
            against = f"version {champion.version} cannot be opened ({error.message})"
        else:
            now = table.fingerprint, parts.fingerprint
            if not _learnt_from(other) == _learnt_from(bundle) == now:
                against += " learnt from other data, which may hold these test rows"
            else:
                champion_losses = _losses(use_case, other, rows, parts.y_test)
    metrics = bundle.metrics
    return Evidence(
        metric=use_case.metric,
        score=metrics["scores"][use_case.metric],
        baseline_score=metrics["baseline"][use_case.metric],
        golden_difference=golden_difference(bundle),
        losses=_losses(use_case, bundle, rows, parts.y_test),
        champion_losses=champion_losses,
        champion=against,
    )


def _learnt_from(bundle: Bundle) -> tuple[str | None, str | None]:
    """Return the fingerprints of the data and of the rows that were kept from training."""
    known = bundle.training
    return known.get("data_fingerprint"), known.get("held_out_fingerprint")


def _losses(use_case: UseCase, bundle: Bundle, rows: np.ndarray, actual: np.ndarray) -> np.ndarray:
    predicted = bundle.model.run(rows).prediction
    if use_case.is_classification:
        return np.asarray(predicted != actual, dtype=float)
    return np.asarray(predicted - actual) ** 2


def _mirror(use_case: UseCase, version: Version, settings: Settings, report: Report) -> None:
    """Show the decision in the registry. The decision stands if the registry cannot be reached.

    A version that the registry has not heard of yet is shown when it is tracked.
    """
    waiting = {(note.use_case, note.version) for note in pending(settings)}
    if (use_case.name, version.version) in waiting:
        return
    tracking = Tracking(settings.home, settings.tracking_uri, settings.registry_uri)
    try:
        mirror_champion(tracking, use_case.model_name, version.version)
    except TrackingError as error:
        report.say(f"{use_case.name}: promoted, but the registry's alias was not set: {error}")

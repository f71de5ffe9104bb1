"""Why: the story of a version, from the data it learnt from to what took its place."""

from __future__ import annotations

import dataclasses
from typing import Any

from mlops.errors import BundleError, MlopsError
from mlops.improve.decisions import Decision
from mlops.improve.ledger import Ledger, Version
from mlops.loop.differ import diff
from mlops.loop.promote import chosen
from mlops.package.bundle import open_bundle
from mlops.settings import Settings, read_settings
from mlops.usecases import find


@dataclasses.dataclass(frozen=True, slots=True)
class Reign:
    """A time as champion: how it began, and how it ended; None if it has not."""

    began: Decision
    ended: Decision | None


@dataclasses.dataclass(frozen=True, slots=True)
class Story:
    """What is known of a version; None where it was not kept.

    `data_change` says how its data differ from those of the version before. `decisions` are all
    about this version, oldest first, each with its evidence.
    """

    version: Version
    champion: bool
    sealed_utc: str | None
    commit: str | None
    trained_by: str | None
    data_fingerprint: str | None
    data_origin: str | None
    rows_train: int | None
    rows_test: int | None
    data_change: str | None
    scores: dict[str, float]
    decisions: tuple[Decision, ...]
    reigns: tuple[Reign, ...]


def why(name: str, number: int | None = None, *, settings: Settings | None = None) -> Story:
    """Tell the story of a version, the newest unless told. Raises `UsageError` if there is none."""
    settings = settings or read_settings()
    find(name)
    with Ledger(settings.state_database) as ledger:
        version = chosen(ledger, name, number)
        versions, decisions = ledger.versions(name), ledger.decisions(name)
        champion = ledger.champion(name)
    made: dict[str, Any] = {}
    trained: dict[str, Any] = {}
    scores: dict[str, float] = {}
    change: str | None
    try:
        bundle = open_bundle(settings.bundles / version.bundle, key=settings.signing_key)
    except BundleError as error:
        change = f"not known: {error.message}"
    else:
        made, trained = bundle.provenance, bundle.training
        scores = {k: v for k, v in bundle.metrics["scores"].items() if not k.startswith("cv_")}
        earlier = [one.version for one in versions if one.version < version.version]
        change = _change(name, earlier[-1], version.version, settings) if earlier else None
    return Story(
        version=version,
        champion=champion is not None and champion.version == version.version,
        sealed_utc=made.get("sealed_utc"),
        commit=made.get("commit"),
        trained_by=made.get("user"),
        data_fingerprint=trained.get("data_fingerprint"),
        data_origin=made.get("data_origin"),
        rows_train=trained.get("rows_train"),
        rows_test=trained.get("rows_test"),
        data_change=change,
        scores=scores,
        decisions=tuple(one for one in decisions if one.version == version.version),
        reigns=tuple(_reigns(version.version, decisions)),
    )


def _change(name: str, before: int, after: int, settings: Settings) -> str:
    """Say how the data of two versions differ, or why that cannot be said."""
    try:
        summary = diff(str(before), str(after), name, settings=settings).summary
    except MlopsError as error:
        return f"not known: {error.message}"
    return (
        f"{summary} to those of version {before}"
        if summary == "no difference"
        else (f"since version {before}: {summary}")
    )


def _reigns(number: int, decisions: list[Decision]) -> list[Reign]:
    changes = [one for one in decisions if one.action in ("promote", "rollback")]
    ends = [*changes[1:], None]
    return [
        Reign(began, ended)
        for began, ended in zip(changes, ends, strict=True)
        if began.version == number
    ]

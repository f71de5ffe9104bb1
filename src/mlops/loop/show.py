"""Show what is known of a use case: its declaration, versions, champion and decisions."""

from __future__ import annotations

import dataclasses
from typing import Any

from mlops.errors import BundleError
from mlops.improve.ledger import Ledger
from mlops.package.bundle import open_bundle
from mlops.settings import Settings, read_settings
from mlops.usecases import find


def show(name: str, *, settings: Settings | None = None) -> dict[str, Any]:
    """Return fields with units and limits, registered versions, champion and decisions."""
    settings = settings or read_settings()
    use_case = find(name)
    with Ledger(settings.state_database) as ledger:
        champion = ledger.champion(name)
        versions = ledger.versions(name)
        decisions = ledger.decisions(name)
        aliases = ledger.aliases(name)
    return {
        "use_case": name,
        "title": use_case.title,
        "task": use_case.task,
        "target": dataclasses.asdict(use_case.target),
        "fields": [dataclasses.asdict(feature) for feature in use_case.features],
        "candidates": [candidate.name for candidate in use_case.candidates],
        "on_demand": [candidate.name for candidate in use_case.on_demand],
        "profiles": [dataclasses.asdict(profile) for profile in use_case.profiles],
        "model_name": use_case.model_name,
        "champion": champion.version if champion else None,
        "aliases": aliases,
        "versions": [
            {**dataclasses.asdict(version), **_sealed(settings, version.bundle)}
            for version in versions
        ],
        "decisions": [dataclasses.asdict(decision) for decision in decisions],
    }


def _sealed(settings: Settings, bundle: str) -> dict[str, Any]:
    try:
        opened = open_bundle(settings.bundles / bundle, key=settings.signing_key)
    except BundleError as error:
        return {"sound": False, "trouble": str(error)}
    return {
        "sound": True,
        "scores": opened.metrics["scores"],
        "baseline": opened.metrics["baseline"],
        "data_fingerprint": opened.training["data_fingerprint"],
        "sealed_utc": opened.provenance.get("sealed_utc"),
        "commit": opened.provenance.get("commit"),
    }

"""Lineage: from a prediction to the data that its model learnt from, and back.

    prediction → version → bundle → run → commit → data fingerprint

Any of them may be asked for. A prediction is found by the log's index; how many predictions a
version made is what the log has kept count of. Versions are few, and are looked through.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlops.errors import BundleError, TrackingError, UsageError
from mlops.improve.ledger import UNTRACKED, Ledger, Version
from mlops.loop.prediction_log import has_log, open_log
from mlops.package.bundle import open_bundle
from mlops.records import Prediction
from mlops.settings import Settings, read_settings
from mlops.usecase import UseCase
from mlops.usecases import USE_CASES, find

SHORTEST_PREFIX = 4
KINDS = {"run_id": "run", "data_fingerprint": "data fingerprint"}


@dataclasses.dataclass(frozen=True, slots=True)
class Chain:
    """One version's way back to its data; None where it is not known here any more.

    `run_id` is None too while the run waits to be tracked. `version` is None for a run that was
    not registered.
    """

    use_case: str
    version: int | None
    champion: bool
    candidate: str | None
    bundle: str | None
    run_id: str | None
    commit: str | None
    data_fingerprint: str | None
    data_origin: str | None
    sealed_utc: str | None
    predictions: int = 0
    first_prediction: str | None = None
    last_prediction: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Lineage:
    """What was asked for, what it is, and each chain that it is part of, oldest first."""

    asked: str
    kind: str
    prediction: dict[str, Any] | None
    chains: tuple[Chain, ...]


def lineage(what: str, use_case: str | None = None, *, settings: Settings | None = None) -> Lineage:
    """Follow a prediction id, or a version, bundle, run, commit or data fingerprint.

    The beginnings of the last four are enough. Raises `UsageError` for what is not known.
    """
    settings = settings or read_settings()
    asked = (find(use_case),) if use_case else tuple(USE_CASES.values())
    for one in asked:
        row = _find_prediction(one, what, settings)
        if row is not None:
            chain = _counted(trace(one, row.model_version, row.bundle, settings), one, settings)
            return Lineage(what, "prediction", shown(row), (chain,))
    chains = [chain for one in asked for chain in _chains(one, settings)]
    for kind in ("version", "bundle", "run_id", "data_fingerprint", "commit"):
        found = [chain for chain in chains if _meant(what, kind, getattr(chain, kind))]
        if found:
            return Lineage(what, KINDS.get(kind, kind), None, _all_counted(found, settings))
    found = _unregistered_run(what, asked, chains, settings)
    if found:
        return Lineage(what, "run", None, _all_counted(found, settings))
    raise UsageError(
        f"{what!r} is no prediction, version, bundle, run, commit or data fingerprint known here",
        f"list them with: mlops show {asked[0].name}, mlops runs {asked[0].name} or "
        f"mlops logs {asked[0].name}",
    )


def trace(use_case: UseCase, version: int, bundle: str, settings: Settings) -> Chain:
    """Return the chain of a version that the log names; what cannot be found here is None."""
    with Ledger(settings.state_database) as ledger:
        known = [v for v in ledger.versions(use_case.name) if v.version == version]
        champion = ledger.champion(use_case.name)
    registered = known[0] if known and known[0].bundle == bundle else None
    return _chain(use_case, version, bundle, registered, champion, settings)


def shown(row: Prediction) -> dict[str, Any]:
    """Return a logged prediction without who asked for it."""
    return {
        "prediction_id": row.prediction_id,
        "timestamp": row.timestamp,
        "inputs": json.loads(row.inputs),
        "prediction": row.prediction,
        "probabilities": json.loads(row.probabilities) if row.probabilities else None,
        "warnings": json.loads(row.warnings) if row.warnings else [],
        "model_version": row.model_version,
        "bundle": row.bundle,
    }


def _find_prediction(use_case: UseCase, what: str, settings: Settings) -> Prediction | None:
    if not has_log(use_case, settings):
        return None
    with contextlib.closing(open_log(use_case, settings)) as log:
        return log.find(what)


def _chains(use_case: UseCase, settings: Settings) -> list[Chain]:
    if not settings.state_database.exists():
        return []
    with Ledger(settings.state_database) as ledger:
        versions, champion = ledger.versions(use_case.name), ledger.champion(use_case.name)
    return [_chain(use_case, v.version, v.bundle, v, champion, settings) for v in versions]


def _chain(
    use_case: UseCase,
    version: int,
    bundle: str,
    registered: Version | None,
    champion: Version | None,
    settings: Settings,
) -> Chain:
    run = registered.run_id if registered else None
    made: dict[str, Any]
    try:
        made = _sealed(settings.bundles / bundle, settings.signing_key)
    except BundleError:
        made = dict.fromkeys(("commit", "data_fingerprint", "data_origin", "sealed_utc"))
    return Chain(
        use_case=use_case.name,
        version=version,
        champion=registered is not None and registered == champion,
        candidate=registered.candidate if registered else None,
        bundle=bundle,
        run_id=run if run and not run.startswith(UNTRACKED) else None,
        **made,
    )


@functools.lru_cache(maxsize=64)
def _sealed(path: Path, key: bytes | None) -> dict[str, str | None]:
    """Return what a bundle says of its making. It has its content for a name: it never changes."""
    bundle = open_bundle(path, key=key)
    return {
        "commit": bundle.provenance.get("commit"),
        "data_fingerprint": bundle.training.get("data_fingerprint"),
        "data_origin": bundle.provenance.get("data_origin"),
        "sealed_utc": bundle.provenance.get("sealed_utc"),
    }


def _meant(what: str, kind: str, name: str | int | None) -> bool:
    if kind == "version":
        return what.removeprefix("v") == str(name)
    return len(what) >= SHORTEST_PREFIX and str(name or "").startswith(what.lower())


def _all_counted(chains: Sequence[Chain], settings: Settings) -> tuple[Chain, ...]:
    return tuple(_counted(chain, find(chain.use_case), settings) for chain in chains)


def _counted(chain: Chain, use_case: UseCase, settings: Settings) -> Chain:
    """Add how many predictions the version made, and when."""
    if chain.version is None or not has_log(use_case, settings):
        return chain
    with contextlib.closing(open_log(use_case, settings)) as log:
        first, last = log.span(chain.version) or (None, None)
        count = log.totals().by_version.get(chain.version, 0)
    return dataclasses.replace(
        chain, predictions=count, first_prediction=first, last_prediction=last
    )


def _unregistered_run(
    what: str, asked: Sequence[UseCase], chains: Sequence[Chain], settings: Settings
) -> list[Chain]:
    """Ask the tracking store: a run may not have been registered, or have repeated a bundle."""
    from mlops.loop.runs import runs

    found: list[Chain] = []
    if len(what) < SHORTEST_PREFIX:
        return found
    for use_case in asked:
        try:
            known = runs(use_case.name, every=True, settings=settings)
        except TrackingError:
            continue  # what is known here was looked through
        for run in known:
            if not run["run_id"].startswith(what.lower()):
                continue
            tags, bundle = run["tags"], run["tags"].get("bundle")
            same = [c for c in chains if (c.use_case, c.bundle) == (use_case.name, bundle)]
            alone = Chain(
                use_case.name, None, False, run["candidate"], bundle, None, None, None, None, None
            )
            found.append(
                dataclasses.replace(
                    same[-1] if same else alone,
                    run_id=run["run_id"],
                    commit=run["commit"],
                    data_fingerprint=tags.get("data_fingerprint"),
                    data_origin=tags.get("data_origin"),
                )
            )
    return found

"""The dashboard's view of a server: its use cases, their logs, the ledger, what training kept."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastapi import APIRouter

import mlops
from mlops.dashboard.overview import Seen
from mlops.dashboard.routes import Subject, dashboard
from mlops.deploy.alerts import Alerts
from mlops.deploy.service import Service
from mlops.errors import LogUnavailableError, MlopsError
from mlops.improve.chain import Verification
from mlops.improve.decisions import Decision
from mlops.improve.ledger import Ledger, Version
from mlops.loop.card import card_of_bundle
from mlops.loop.verdict import report
from mlops.monitor import search
from mlops.monitor.log import PredictionLog
from mlops.records import Metrics
from mlops.settings import Settings

Logs = Mapping[str, PredictionLog]


def pages(
    services: Sequence[Service], logs: Logs, alerts: Alerts, settings: Callable[[], Settings]
) -> APIRouter:
    """Return the dashboard over these services.

    `logs` holds the open log of each, while the server runs; `alerts` and `settings` are asked when
    they are needed.
    """
    return dashboard([_subject(one, logs, alerts, settings) for one in services], mlops.__version__)


def _subject(
    service: Service, logs: Logs, alerts: Alerts, settings: Callable[[], Settings]
) -> Subject:
    def model() -> tuple[int, dict[str, Any], dict[str, Any]] | None:
        champion = service.champion
        if champion is None:
            return None
        return champion.version, champion.bundle.signature, champion.bundle.reference

    def diagnosis() -> dict[str, Any] | None:
        champion = service.champion
        path = settings().diagnoses / f"{champion.bundle.hash}.json" if champion else None
        if champion is None or path is None or not path.exists():
            return None
        return {"model_version": champion.version, **json.loads(path.read_bytes())}

    def card() -> tuple[int, str] | None:
        champion = service.champion
        if champion is None:
            return None
        text = card_of_bundle(service.use_case, champion.bundle, champion.version)
        return champion.version, text

    return Subject(
        service.use_case,
        functools.partial(_look, service, logs, alerts, settings),
        functools.partial(_search, service.use_case.name, logs),
        model,
        diagnosis,
        card,
        functools.partial(_decisions, service.use_case.name, settings),
        lambda: report(service.use_case, settings()),
    )


async def _look(
    service: Service, logs: Logs, alerts: Alerts, settings: Callable[[], Settings]
) -> Seen:
    """Look at a use case. What cannot be read is not there, and the overview says so."""
    metrics: Metrics | None = None
    minutes: list[dict[str, Any]] = []
    try:
        metrics = (await service.metrics()).metrics
        if metrics is not None:
            minutes = await asyncio.to_thread(_log(service.use_case.name, logs).minutes)
    except LogUnavailableError:
        metrics = None
    try:
        versions = await asyncio.to_thread(_versions, service.use_case.name, settings())
    except MlopsError:
        versions = []
    try:
        found = await asyncio.to_thread(alerts, (service.use_case.name,))
        open_alerts: list[dict[str, Any]] | None = found["open"]
    except MlopsError:
        open_alerts = None
    return Seen(
        service.use_case,
        service.health(),
        metrics,
        minutes,
        versions,
        open_alerts,
        trouble=service.trouble if service.champion else "",
    )


def _versions(name: str, settings: Settings) -> list[Version]:
    with Ledger(settings.state_database) as ledger:
        return ledger.versions(name)


def _decisions(
    name: str, settings: Callable[[], Settings]
) -> tuple[Sequence[Decision], Verification]:
    """Return the lines that can be trusted: all, or those before the first that is broken."""
    with Ledger(settings().state_database) as ledger:
        chain = ledger.verify()
        return ledger.decisions(name, before=chain.line), chain


def _search(
    name: str, logs: Logs, query: search.Query
) -> tuple[list[dict[str, Any]], search.Found]:
    from mlops.loop.lineage import shown  # which itself imports what serves

    found = _log(name, logs).search(query)
    told = zip(found.rows, found.actual, strict=True)
    return [{**shown(row), "actual": actual} for row, actual in told], found


def _log(name: str, logs: Logs) -> PredictionLog:
    if name not in logs:
        raise LogUnavailableError(f"the log of {name} is not open", "try again")
    return logs[name]

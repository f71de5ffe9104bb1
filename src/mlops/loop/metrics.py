"""Metrics: what the logs have counted, as the server's `/metrics` says it."""

from __future__ import annotations

import contextlib
from typing import Any

from mlops.deploy.exposition import Scrape, as_json, together
from mlops.errors import NotTrainedError
from mlops.improve.ledger import Ledger
from mlops.loop.prediction_log import has_log, open_log
from mlops.settings import Settings, read_settings
from mlops.usecases import USE_CASES, find


def metrics(name: str | None = None, *, settings: Settings | None = None) -> dict[str, Any]:
    """Return the metrics of a use case, or of every one that has a log and in all.

    Raises `NotTrainedError` if there is no log yet, `LogUnavailableError` if it cannot be read.
    """
    settings = settings or read_settings()
    use_cases = [
        use_case
        for use_case in ([find(name)] if name else USE_CASES.values())
        if has_log(use_case, settings)
    ]
    if not use_cases:
        raise NotTrainedError(
            f"{name} has answered nothing here yet" if name else "nothing was answered here yet",
            f"start it with: mlops up {name or ''}".rstrip(),
        )
    scrapes = []
    with Ledger(settings.state_database) as ledger:
        for use_case in use_cases:
            champion = ledger.champion(use_case.name)
            with contextlib.closing(open_log(use_case, settings)) as log:
                version = champion.version if champion else None
                scrapes.append(Scrape(use_case, True, version, log.metrics()))
    return as_json(scrapes[0]) if name else together(scrapes)

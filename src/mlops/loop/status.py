"""Status: what is running, and who is champion."""

from __future__ import annotations

import dataclasses
from typing import Any

from mlops.improve.ledger import Ledger
from mlops.loop import services
from mlops.settings import Settings
from mlops.usecases import USE_CASES


def status(settings: Settings) -> dict[str, Any]:
    """Return each service and each use case's champion; `well` when all services are healthy."""
    found = services.status(settings)
    champions: dict[str, Any] = dict.fromkeys(USE_CASES)
    if settings.state_database.exists():
        with Ledger(settings.state_database) as ledger:
            for name in USE_CASES:
                champion = ledger.champion(name)
                champions[name] = dataclasses.asdict(champion) if champion else None
    return {
        "services": [dataclasses.asdict(service) for service in found],
        "champions": champions,
        "well": all(service.healthy for service in found),
    }

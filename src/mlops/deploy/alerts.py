"""`GET /alerts`: what is wrong now, what was lately, and who was told."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, Field

from mlops.deploy.schemas import ErrorAnswer

Alerts = Callable[[Sequence[str]], dict[str, Any]]
"""Names of use cases in, their alerts out. Raises `MlopsError` if they cannot be read."""


class Notified(BaseModel):
    """What became of one message about an alert."""

    channel: str = Field(description="By scheme: no address is shown")
    event: str = Field(description="started or ended")
    sent: str | None = Field(description="UTC; null while it is tried again")
    attempts: int
    error: str | None = Field(description="Why the last attempt failed")


class AlertAnswer(BaseModel):
    """One alert: open as long as `until` is null."""

    use_case: str
    rule: str
    severity: str
    says: str
    value: float | None
    limit: float | None
    since: str = Field(description="UTC, when its rule was first broken")
    until: str | None
    notified: list[Notified]


class ChannelAnswer(BaseModel):
    """One channel; an `error` while messages wait for it."""

    channel: str
    waiting: int
    error: str | None


class AlertsAnswer(BaseModel):
    """Alerts, newest first; those that ended, for seven days."""

    open: list[AlertAnswer]
    ended: list[AlertAnswer]
    channels: list[ChannelAnswer]
    checked: str | None = Field(description="UTC, when the rules were last checked")


def add_alerts(app: FastAPI, alerts: Alerts, use_cases: Sequence[str]) -> None:
    """Add `/alerts` for all use cases and, if they are several, one under the name of each."""
    own = {f"/{name}": (name,) for name in use_cases} if len(use_cases) > 1 else {}
    for prefix, names in {"": tuple(use_cases), **own}.items():
        app.add_api_route(
            f"{prefix}/alerts",
            functools.partial(alerts, names),
            methods=["GET"],
            name="alerts",
            summary="Alerts",
            description="What is wrong now, what was in the last seven days, and who was told.",
            tags=["alerts"],
            response_model=AlertsAnswer,
            responses={503: {"model": ErrorAnswer, "description": "They cannot be read"}},
        )

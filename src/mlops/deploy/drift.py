"""Drift over HTTP: how the latest traffic compares with training."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from mlops.deploy.schemas import ErrorAnswer
from mlops.deploy.service import Service
from mlops.errors import NotTrainedError


def add_drift(router: APIRouter, service: Service) -> None:
    """Add `GET /drift` of a use case."""

    async def drift() -> JSONResponse:
        """Say whether the latest traffic looks like what training saw, column by column.

        `findings` are of now. The server's own looks, on schedule, keep the budget of false alarms:
        `last_look` is the last of them. `columns` has shares of training and traffic to draw.
        """
        if service.drift is None:
            raise NotTrainedError("starting")
        return JSONResponse(await asyncio.to_thread(service.drift))

    router.add_api_route(
        "/drift",
        drift,
        methods=["GET"],
        summary="Drift",
        responses={
            200: {"content": {"application/json": {"schema": {"type": "object"}}}},
            503: {"model": ErrorAnswer, "description": "The log cannot be read"},
        },
    )

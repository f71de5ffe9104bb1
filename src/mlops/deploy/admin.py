"""Administration over HTTP: what changes which version answers. The guard keeps `/admin` shut."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from mlops.deploy import problems
from mlops.deploy.schemas import ErrorAnswer
from mlops.errors import MlopsError

Promote = Callable[[str, int, str], Awaitable[dict[str, Any]]]
"""Use case, version and reason in; what came of it out. Raises `MlopsError` if it was refused."""


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


class PromotionRequest(BaseModel):
    """Which version is to answer, and why."""

    model_config = ConfigDict(extra="forbid", strict=True)

    use_case: str = Field(max_length=64, examples=["housing"])
    # JSON knows no integers: 2.0 is one as well, "2" and true are none.
    version: Annotated[int, BeforeValidator(_whole)] = Field(ge=1, le=2**53, examples=[1])
    reason: str = Field("", max_length=500, description="The ledger keeps it")


class PromotionAnswer(BaseModel):
    """Who answers now, or within a second."""

    use_case: str
    version: int
    previous: int | None
    changed: bool


def add_admin(app: FastAPI, promote: Promote) -> None:
    """Add `POST /admin/promote`. One at a time: each takes seconds of a processor."""
    busy = asyncio.Lock()

    async def promote_version(request: PromotionRequest) -> Any:
        """Ask the gates, then make a version champion, as `mlops promote` does; never forced."""
        if busy.locked():
            detail = problems.problem("busy", "another promotion is under way")
            return JSONResponse({"detail": detail}, 409)
        async with busy:
            try:
                return await promote(request.use_case, request.version, request.reason)
            except MlopsError as error:
                return JSONResponse({"detail": problems.from_error(error)}, 409)

    app.add_api_route(
        "/admin/promote",
        promote_version,
        methods=["POST"],
        summary="Promote a version",
        tags=["administration"],
        response_model=PromotionAnswer,
        responses={
            400: {"model": ErrorAnswer, "description": "The body is no text at all"},
            409: {
                "model": ErrorAnswer,
                "description": "No such version, a gate refused it, or busy",
            },
            413: {"model": ErrorAnswer, "description": "The body is too large"},
            422: {"model": ErrorAnswer, "description": "Named by field and limit"},
            503: {"model": ErrorAnswer, "description": "Too many requests at once: try again"},
        },
    )

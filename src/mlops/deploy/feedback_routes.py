"""The routes of truth: `POST /feedback` and `GET /performance`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from mlops.deploy.feedback import ID, LARGEST_BATCH, take
from mlops.deploy.inference_protocol import CHARGE
from mlops.deploy.schemas import ErrorAnswer, FeedbackAnswer, FeedbackRefusal
from mlops.deploy.service import Service
from mlops.errors import UsageError
from mlops.usecase import UseCase

WINDOW = r"^[1-9]\d{0,2}[hd]$"
AN_ID = "0197c1f2-8d4b-7e7a-9d35-4f0a6c0e5b1d"


def add_feedback(router: APIRouter, services: Sequence[Service]) -> None:
    """Add both routes, which speak for these services: each id belongs to one of them."""

    async def feedback(request: Request) -> Response:
        """Attach actual values to predictions: once, late, in any order; a resend changes nothing.

        Each item stands for itself: whatever is right is attached, and all else is named.
        """
        taken = await take(services, await request.body())
        request.scope[CHARGE](taken.items)
        return JSONResponse(taken.says, taken.status)

    router.add_api_route(
        "/feedback",
        feedback,
        methods=["POST"],
        summary="Attach actual values to predictions",
        response_model=FeedbackAnswer,
        responses={
            404: {"model": FeedbackRefusal, "description": "Ids that are not in the log"},
            409: {"model": FeedbackRefusal, "description": "Another value is attached, and stays"},
            413: {"model": ErrorAnswer, "description": "The body is larger than LARGEST_BODY"},
            422: {"model": FeedbackRefusal, "description": "Named by item, value and limit"},
            503: {"model": ErrorAnswer, "description": "The log cannot be written: try again"},
        },
        openapi_extra={"requestBody": _documented([one.use_case for one in services])},
    )

    async def performance(
        window: Annotated[
            str, Query(pattern=WINDOW, description="Up to now: hours or days, as in 24h or 7d")
        ] = "7d",
        version: Annotated[
            int | None, Query(ge=1, le=2**53, description="The champion, unless told")
        ] = None,
    ) -> dict[str, Any]:
        """Say how good predictions were: over time, by version and slice, or as an estimate."""
        try:
            found = [await asyncio.to_thread(one.performance, window, version) for one in services]
        except UsageError as error:
            raise HTTPException(404, error.message) from None
        if len(found) == 1:
            return found[0]
        return {"use_cases": {one["use_case"]: one for one in found}}

    router.add_api_route(
        "/performance",
        performance,
        methods=["GET"],
        summary="Quality over time",
        responses={
            404: {"model": ErrorAnswer, "description": "No such version"},
            422: {"model": ErrorAnswer, "description": "No window, or no version"},
            503: {"model": ErrorAnswer, "description": "No model yet, or the log cannot be read"},
        },
    )


def _documented(use_cases: Sequence[UseCase]) -> dict[str, Any]:
    actual = [schema for one in use_cases for schema in _actual(one)]
    item = {
        "type": "object",
        "additionalProperties": False,
        "required": ["prediction_id", "actual"],
        "properties": {
            "prediction_id": {"type": "string", "pattern": f"^{ID}$", "examples": [AN_ID]},
            "actual": actual[0] if len(actual) == 1 else {"anyOf": actual},
        },
    }
    items = {"type": "array", "items": item, "minItems": 1, "maxItems": LARGEST_BATCH}
    many = {
        "type": "object",
        "additionalProperties": False,
        "required": ["items"],
        "properties": {"items": items},
    }
    content = {"application/json": {"schema": {"anyOf": [item, many]}}}
    return {"required": True, "content": content}


def _actual(use_case: UseCase) -> list[dict[str, Any]]:
    target = use_case.target
    if target.labels:
        last = len(target.labels) - 1
        return [
            {"type": "string", "enum": list(target.labels)},
            {"type": "integer", "minimum": 0, "maximum": last},
        ]
    return [{"type": "number", "minimum": target.low, "maximum": target.high}]

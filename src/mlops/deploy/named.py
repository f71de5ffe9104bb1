"""A model by its name: `…/models/{name}/predict`, whoever the champion is and however clients are
divided.

The name is a role (champion, challenger, fallback), an alias, or the number of a version that is
open because it has one of these.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from mlops.deploy.documented import HEADERS, REFUSALS, add_post
from mlops.deploy.inference_protocol import CHARGE
from mlops.deploy.query import parameters, with_intervals
from mlops.deploy.schemas import ErrorAnswer
from mlops.deploy.service import Reply, Service, reply_of

NAMED = re.compile(r"(?:/([^/]+))?/models/[^/]+/predict(?:/batch)?")
"""The paths of these routes; the group is the use case, if it stands there."""
UNKNOWN: dict[int | str, dict[str, Any]] = {
    404: {"model": ErrorAnswer, "description": "No such model answers; those that do are named"},
    409: {"model": ErrorAnswer, "description": "That version has no intervals"},
}
PARAMETER = {
    "name": "name",
    "in": "path",
    "required": True,
    "schema": {"type": "string"},
    "description": "A role (champion, challenger, fallback), an alias, or a version that has one",
    "example": "champion",
}


def add_named(
    router: APIRouter,
    service: Service,
    answer: type[BaseModel],
    batch_answer: type[BaseModel],
    examples: dict[str, Any],
) -> None:
    """Add the routes of one use case."""

    def asked(handler: Callable[..., None]) -> Callable[[Request, bytes], Any]:
        async def answered(request: Request, body: bytes) -> Reply:
            models = service.models()
            model = models.get(request.path_params["name"])
            if model is None and models:
                raise HTTPException(404, _unknown(service, models))
            arrived, headers, path = time.perf_counter(), request.headers.raw, request.url.path

            async def predicted() -> Reply:
                return await reply_of(lambda respond: handler(body, headers, path, respond, model))

            reply = await with_intervals(service, request.scope["query_string"], predicted, model)
            service.observe(reply, time.perf_counter() - arrived)
            request.scope[CHARGE](reply.rows)
            return reply

        return answered

    title = service.use_case.title
    asked_by: list[dict[str, Any]] = [PARAMETER, *HEADERS, *parameters(service.use_case)]
    add_post(
        router,
        "/models/{name}/predict",
        asked(service.predict),
        summary=f"{title}: predict by one model",
        body=service.reader.request_model,
        answer=answer,
        examples=examples,
        parameters=asked_by,
        refusals={**REFUSALS, **UNKNOWN},
    )
    add_post(
        router,
        "/models/{name}/predict/batch",
        asked(service.predict_batch),
        summary=f"{title}: predict for many by one model, all of them or none",
        body=service.reader.batch_model,
        answer=batch_answer,
        examples={
            "all examples": {
                "summary": "all examples",
                "value": {"instances": list(service.use_case.examples.values())},
            }
        },
        parameters=asked_by,
        refusals={**REFUSALS, **UNKNOWN},
    )


def _unknown(service: Service, models: dict[str, Any]) -> str:
    name = service.use_case.name
    refused = f"; {service.trouble}" if service.trouble else ""
    return (
        f"no such model answers; there are: {', '.join(models)}{refused}. Another registered "
        f"version answers once it has an alias: mlops alias {name} ALIAS VERSION"
    )

"""POST routes that FastAPI documents, and whose bodies their own handlers validate."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from fastapi import APIRouter, Body, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel

from mlops.deploy import problems
from mlops.deploy.limits import SECURITY_HEADERS
from mlops.deploy.schemas import ErrorAnswer
from mlops.deploy.service import Reply

REFUSALS: dict[int | str, dict[str, Any]] = {
    413: {"model": ErrorAnswer, "description": "The body is larger than LARGEST_BODY"},
    422: {"model": ErrorAnswer, "description": "Named by field, value and limit"},
    503: {"model": ErrorAnswer, "description": "No model yet, or no log: try again later"},
}
HEADERS = [
    {
        "name": "Idempotency-Key",
        "in": "header",
        "schema": {"type": "string"},
        "description": "A resend with the same key is given the first answer and logged once",
    },
    {
        "name": "X-Client-ID",
        "in": "header",
        "schema": {"type": "string"},
        "description": "Who asks; only a digest of it is kept",
    },
]


def add_post(
    router: APIRouter,
    path: str,
    answered: Callable[[Request, bytes], Awaitable[Reply]],
    *,
    summary: str,
    body: type[BaseModel],
    answer: type[BaseModel],
    examples: dict[str, Any],
    description: str = "Validate, predict, record, respond.",
    parameters: Sequence[dict[str, Any]] = (),
    refusals: dict[int | str, dict[str, Any]] = REFUSALS,
) -> None:
    """Add a route that FastAPI documents, and whose body its own handler validates."""

    class Documented(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Any]:
            async def handle(request: Request) -> Response:
                reply = await answered(request, await request.body())
                response = Response(reply.body, reply.status)
                response.raw_headers = headers_of(reply)
                return response

            return handle

    def endpoint(body: Any) -> None: ...

    endpoint.__annotations__["body"] = body
    endpoint.__defaults__ = (Body(openapi_examples=examples),)
    documented = APIRouter(route_class=Documented)
    documented.add_api_route(
        path,
        endpoint,
        methods=["POST"],
        summary=summary,
        description=description,
        response_model=answer,
        responses=refusals,
        openapi_extra={"parameters": list(parameters)},
        operation_id=re.sub(r"\W+", "_", router.prefix + path).strip("_"),
    )
    router.include_router(documented)


def headers_of(reply: Reply) -> list[tuple[bytes, bytes]]:
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(reply.body)),
        *SECURITY_HEADERS,
        *reply.headers,
    ]
    if reply.status == 503:
        headers.append((b"retry-after", problems.RETRY_AFTER_SECONDS.encode()))
    return headers

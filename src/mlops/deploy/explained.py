"""Explanations over HTTP: `/explain`, and `explain=true` beside a prediction or a logged one.

`/explain` validates as `/predict` does, and records nothing; `explain=true` explains the row that
was logged, by the bundle of the version that made it. Explaining takes a thread, not the event
loop: predictions go on meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import orjson

from mlops.deploy import problems
from mlops.deploy.query import flag, refusal
from mlops.deploy.service import Reply, Service

log = logging.getLogger("uvicorn.error")

PARAMETER = {
    "name": "explain",
    "in": "query",
    "schema": {"type": "boolean", "default": False},
    "description": "Explain the answer, too",
}


async def explain(service: Service, body: bytes) -> Reply:
    """Answer `POST /explain`."""
    return await _answered(service, body, lambda: service.explain(body))


async def predict(
    service: Service, body: bytes, query: bytes, predicted: Callable[[], Awaitable[Reply]]
) -> Reply:
    """Answer `POST /predict?explain=…`: let `predicted` answer and log, then explain that row.

    A version that cannot be explained is refused before anything is predicted.
    """
    try:
        wanted = flag(query, "explain")
    except ValueError as error:
        return refusal("explain", error)
    if not wanted:
        return await predicted()
    champion = service.champion
    if champion is not None and champion.bundle.explainer is None:
        return await explain(service, body)
    reply = await predicted()
    if reply.status != 200:
        return reply
    answer = orjson.loads(reply.body)
    explained = await _answered(
        service,
        body,
        lambda: {**answer, "explanation": service.explain_logged(answer["prediction_id"])},
    )
    return explained._replace(rows=reply.rows, model_version=reply.model_version)


async def _answered(service: Service, body: bytes, explained: Callable[[], Any]) -> Reply:
    try:
        return Reply(200, orjson.dumps(await asyncio.to_thread(explained)))
    except Exception as error:  # becomes an answer
        status, detail = service.problem_of(error, body)
        if status == 500:
            log.error("a defect met an explanation", exc_info=error)
        return Reply(status, problems.as_json(detail))

"""What a query string may ask for beside a prediction: a flag each; here also `interval=true`.

Intervals are added to answers that are logged already, in a thread: others are answered meanwhile,
and who does not ask is not slowed down.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs

import orjson

from mlops.deploy import problems
from mlops.deploy.interval import conformal_of
from mlops.deploy.predictor import Champion
from mlops.deploy.service import Reply, Service
from mlops.usecase import UseCase

log = logging.getLogger("uvicorn.error")

CHOICES = {"true": True, "1": True, "false": False, "0": False}
INTERVAL = {
    "name": "interval",
    "in": "query",
    "schema": {"type": "boolean", "default": False},
    "description": "Say, too, between which values the truth lies in 90 % of such cases",
}


def flag(query: bytes, name: str) -> bool:
    """Whether a query string asks for this. Raises `ValueError` if it cannot be told."""
    given = parse_qs(query.decode("latin-1"), keep_blank_values=True).get(name, ["false"])
    if len(given) > 1 or given[0].lower() not in CHOICES:
        raise ValueError(f"{name} must be true or false, got {', '.join(given)[:50]!r}")
    return CHOICES[given[0].lower()]


def refusal(name: str, error: ValueError) -> Reply:
    """Return the answer to a query that cannot be told."""
    detail = problems.problem("bool_parsing", str(error), ("query", name))
    return Reply(422, problems.as_json(detail), logged=False)


def parameters(use_case: UseCase) -> list[dict[str, Any]]:
    """Return what a query may ask for beside each answer of this use case, as OpenAPI has it."""
    return [] if use_case.is_classification else [INTERVAL]


async def with_intervals(
    service: Service,
    query: bytes,
    predicted: Callable[[], Awaitable[Reply]],
    model: Champion | None = None,
) -> Reply:
    """Let `predicted` answer and log, then add to each answer its interval, if that is asked for.

    A version without intervals, be it `model` or the champion, is refused before it is asked.
    """
    if b"interval" not in query:
        return await predicted()
    try:
        wanted = flag(query, "interval")
    except ValueError as error:
        return refusal("interval", error)
    if not wanted:
        return await predicted()
    try:
        if asked := model or service.champion:
            conformal_of(service.use_case, asked.version, asked.bundle)
        reply = await predicted()
        return await asyncio.to_thread(_with_intervals, service, reply)
    except Exception as error:  # becomes an answer
        status, detail = service.problem_of(error, b"")
        if status == 500:
            log.error("a defect met an interval", exc_info=error)
        return Reply(status, problems.as_json(detail), logged=False)


def _with_intervals(service: Service, reply: Reply) -> Reply:
    if reply.status != 200:
        return reply
    content = orjson.loads(reply.body)
    answers = content.get("predictions", [content])
    found = service.intervals_logged([answer["prediction_id"] for answer in answers])
    for answer, interval in zip(answers, found, strict=True):
        answer["interval"] = interval
    return reply._replace(body=orjson.dumps(content))

"""Predict from the command line, on the same path as a request: validate, predict, record."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any

import orjson

from mlops.deploy.query import with_intervals
from mlops.deploy.service import Reply, Service, reply_of
from mlops.errors import LogUnavailableError, MlopsError, NoIntervalError, NotTrainedError
from mlops.improve.ledger import Ledger
from mlops.loop.follow import open_champion
from mlops.loop.prediction_log import open_log
from mlops.settings import Settings, read_settings
from mlops.usecases import find

CLIENT = (b"x-client-id", b"mlops predict")


class InvalidRequestError(MlopsError):
    """A row that the use case's schema refuses."""

    exit_code = 2


def predict(
    name: str,
    rows: list[Mapping[str, Any]],
    *,
    number: int | None = None,
    intervals: bool = False,
    settings: Settings | None = None,
) -> list[dict[str, Any]]:
    """Answer rows of request fields with the champion (or version `number`), and log them.

    The answers are those that `POST /predict/batch` gives, with `intervals` as it does with
    `interval=true`: all of them, or an error that names row, field, value and limit, and then
    nothing is logged but the refusal. Raises `NoIntervalError` for a version that has none.
    """
    settings = settings or read_settings()
    use_case = find(name)
    with Ledger(settings.state_database) as ledger:
        version = ledger.champion(name) if number is None else ledger.version(name, number)
    if version is None:
        raise NotTrainedError(f"{name} has no champion", f"make one with: mlops up {name}")
    champion = open_champion(use_case, version, settings)
    service = Service(use_case)

    async def answer() -> Any:
        service.start(open_log(use_case, settings), synced=settings.durability == "power")
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(service.stop)
            service.swap(champion)
            body = orjson.dumps({"instances": rows})

            async def predicted() -> Reply:
                return await reply_of(
                    lambda respond: service.predict_batch(body, [CLIENT], "mlops predict", respond)
                )

            return await with_intervals(service, b"interval=true" if intervals else b"", predicted)

    reply = asyncio.run(answer())
    content = orjson.loads(reply.body)
    if reply.status != 200:
        found = "; ".join(_where(item["loc"]) + item["msg"] for item in content["detail"])
        if reply.status == LogUnavailableError.status:
            raise LogUnavailableError(found)
        if reply.status == NoIntervalError.status:
            raise NoIntervalError(found)
        raise InvalidRequestError(found, f"see the fields with: mlops show {name}")
    answers: list[dict[str, Any]] = content["predictions"]
    return answers


def _where(loc: list[Any]) -> str:
    rows = [part for part in loc if isinstance(part, int)]
    return f"row {rows[0] + 1}: " if rows else ""

"""Administration over HTTP: what changes which version answers. The guard keeps `/admin` shut."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal, NamedTuple

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from mlops.deploy import problems
from mlops.deploy.schemas import ErrorAnswer
from mlops.errors import REFUSALS, GateError, UsageError


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


Version = Annotated[int, Field(ge=1, le=2**53, examples=[1]), BeforeValidator(_whole)]
"""JSON knows no integers: 2.0 is one as well, "2" and true are none."""
UseCaseName = Annotated[str, Field(max_length=64, examples=["housing"])]
Reason = Annotated[str, Field(max_length=500, description="The ledger keeps it")]


class PromotionRequest(BaseModel):
    """Which version is to answer, and why."""

    model_config = ConfigDict(extra="forbid", strict=True)

    use_case: UseCaseName
    version: Version
    reason: Reason = ""


class RollbackRequest(BaseModel):
    """Which use case goes back to the champion before, and why."""

    model_config = ConfigDict(extra="forbid", strict=True)

    use_case: UseCaseName
    reason: str = Field(min_length=1, max_length=500, examples=["a drill"])


class ExperimentRequest(BaseModel):
    """Begin to try a version, in shadow or in an A/B; change the share of an A/B; or stop.

    `version` is the newest unless told. An A/B, and a change of its share, need a `share`.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    use_case: UseCaseName
    action: Literal["shadow", "ab", "share", "stop"]
    version: Version | None = None
    share: float | None = Field(None, ge=0, le=1, description="Of the clients", examples=[0.1])
    alpha: float = Field(0.05, gt=0, lt=1, description="How probable a false verdict may be")
    auto: bool = Field(False, description="Let the verdict promote through the gates, or end it")
    reason: Reason = ""


class PromotionAnswer(BaseModel):
    """Who answers now; `late` names processes of the server that do not answer with it yet."""

    use_case: str
    version: int
    previous: int | None
    changed: bool
    late: list[str]


class ExperimentAnswer(BaseModel):
    """The experiment as it is now; servers follow within a second."""

    id: int
    use_case: str
    mode: str
    champion: int
    challenger: int
    share: float
    alpha: float
    auto: bool
    started_utc: str
    ended_utc: str | None
    outcome: str | None


class Admin(NamedTuple):
    """What the routes do. Each raises one of `REFUSALS` if it was refused."""

    promote: Callable[[str, int, str], Awaitable[dict[str, Any]]]
    """Takes use case, version and reason."""
    rollback: Callable[[str, str], Awaitable[dict[str, Any]]]
    experiment: Callable[[ExperimentRequest], Awaitable[dict[str, Any]]]


def add_admin(app: FastAPI, admin: Admin) -> None:
    """Add the routes under `/admin`. Of each, one at a time: it takes seconds of a processor."""

    async def promote_version(request: PromotionRequest) -> Any:
        """Ask the gates, then make a version champion, as `mlops promote` does; never forced."""
        return await admin.promote(request.use_case, request.version, request.reason)

    async def roll_back(request: RollbackRequest) -> Any:
        """Make the champion before this one champion again, as `mlops rollback` does."""
        return await admin.rollback(request.use_case, request.reason)

    async def experiment(request: ExperimentRequest) -> Any:
        """Begin an experiment, change its share, or stop it, as `mlops experiment` does."""
        return await admin.experiment(request)

    _add(app, "/admin/promote", promote_version, "Promote a version", PromotionAnswer)
    _add(app, "/admin/rollback", roll_back, "Go back to the champion before", PromotionAnswer)
    _add(app, "/admin/experiment", experiment, "Try a version", ExperimentAnswer)


def _add(
    app: FastAPI,
    path: str,
    act: Callable[..., Awaitable[Any]],
    summary: str,
    answer: type[BaseModel],
) -> None:
    busy = asyncio.Lock()

    @functools.wraps(act)
    async def one_at_a_time(request: Any) -> Any:
        if busy.locked():
            detail = problems.problem("busy", "another one is under way")
            return JSONResponse({"detail": detail}, 409)
        async with busy:
            try:
                return await act(request)
            except REFUSALS as error:
                # How to mend the rest may name files of this machine.
                told = error if isinstance(error, UsageError) else GateError(error.message)
                return JSONResponse({"detail": problems.from_error(told)}, 409)

    app.add_api_route(
        path,
        one_at_a_time,
        methods=["POST"],
        summary=summary,
        tags=["administration"],
        response_model=answer,
        responses={
            400: {"model": ErrorAnswer, "description": "The body is no text at all"},
            409: {
                "model": ErrorAnswer,
                "description": "No such version, it was refused, or busy",
            },
            413: {"model": ErrorAnswer, "description": "The body is too large"},
            422: {"model": ErrorAnswer, "description": "Named by field and limit"},
            503: {
                "model": ErrorAnswer,
                "description": "Too many at once, or the state is away: try again",
            },
        },
    )

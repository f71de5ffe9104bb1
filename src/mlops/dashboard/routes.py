"""What the pages ask for beside the routes that are there anyway; public and documented as those.

A `Subject` is one use case as the dashboard sees it: callables that somebody who knows the server
hands over (`loop/dashboard.py`). They may be slow, and are called in threads.
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import functools
import heapq
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field

from mlops.dashboard import card, ledger
from mlops.dashboard.overview import Seen, overview
from mlops.dashboard.pages import add_pages
from mlops.improve.chain import Verification
from mlops.improve.decisions import Decision
from mlops.monitor import search
from mlops.usecase import UseCase

LARGEST_ID = 2**53
EARLIEST, LATEST = datetime.datetime(1970, 1, 2), datetime.datetime(9999, 12, 30)  # noqa: DTZ001


@dataclasses.dataclass(frozen=True, slots=True)
class Subject:
    """One use case: what is asked of it, without saying of whom.

    `search` returns rows as JSON has them. `model` returns the version that answers, its bundle's
    signature and its reference profile; `diagnosis` what training measured of it on held-out rows,
    `card` its model card. They return None where there is none. `decisions` reads the ledger's
    lines about it, `experiment` what is known of the open experiment and of those before.
    """

    use_case: UseCase
    look: Callable[[], Awaitable[Seen]]
    search: Callable[[search.Query], tuple[list[dict[str, Any]], search.Found]]
    model: Callable[[], tuple[int, dict[str, Any], dict[str, Any]] | None]
    diagnosis: Callable[[], dict[str, Any] | None]
    card: card.Read
    decisions: ledger.Read
    experiment: Callable[[], dict[str, Any]]


class LoggedPrediction(BaseModel):
    """A prediction, as a list has it; `/predictions/{id}` adds where it comes from."""

    prediction_id: str
    timestamp: str
    inputs: dict[str, float]
    prediction: float | str
    probabilities: dict[str, float] | None
    warnings: list[str]
    model_version: int
    bundle: str
    actual: float | str | None = Field(description="The truth; null until it has come")


class PredictionsAnswer(BaseModel):
    """The newest predictions that fit."""

    predictions: list[LoggedPrediction]
    examined: int = Field(description="Rows looked at; a call looks at 20,000 at most")
    before: int | None = Field(description="Where to go on; null: there are no more")
    says: str


def _utc(moment: datetime.datetime) -> datetime.datetime:
    """Take a moment without a zone as UTC.

    Nothing was logged before 1970, nor will be after 9999, where time zones leave the calendar: a
    moment out there is taken as the nearest one that the log could write.
    """
    named = moment.replace(tzinfo=None)
    if not EARLIEST <= named <= LATEST:
        return (EARLIEST if named < EARLIEST else LATEST).replace(tzinfo=datetime.UTC)
    zoned = moment.replace(tzinfo=moment.tzinfo or datetime.UTC)
    return zoned.astimezone(datetime.UTC)


def _dated(text: str) -> str:
    """Refuse a bare number, which pydantic would take for seconds since 1970."""
    if not re.match(r"\d{4}-\d\d-\d\d", text):
        raise ValueError("must be a moment like 2026-11-01T12:00:00Z")
    return text


Moment = Annotated[datetime.datetime, BeforeValidator(_dated), AfterValidator(_utc)]
Number = Annotated[float, Field(allow_inf_nan=False)]


def dashboard(subjects: Sequence[Subject], version: str) -> APIRouter:
    """Return all routes: those of several use cases under their names, the first's at the root too.

    The root's overview, ledger and experiments are of all.
    """
    router = APIRouter(tags=["dashboard"])
    combined = len(subjects) > 1
    prefixes = {s.use_case.name: f"/{s.use_case.name}" if combined else "" for s in subjects}
    add_pages(router, tuple(prefixes))
    _add_overview(router, "/overview", subjects)
    ledger.add_ledger(router, "/ledger", functools.partial(_all_decisions, subjects))
    _add_experiments(router, "/experiments", subjects)
    places = [("", subjects[0]), *((f"/{s.use_case.name}", s) for s in subjects if combined)]
    for prefix, subject in places:
        if prefix:
            _add_overview(router, f"{prefix}/overview", [subject])
            ledger.add_ledger(router, f"{prefix}/ledger", subject.decisions)
            _add_experiments(router, f"{prefix}/experiments", [subject])
        _add_search(router, prefix, subject)
        _add_schema(router, prefix, subject)
        _add_diagnosis(router, prefix, subject)
        card.add_card(router, prefix, subject.use_case.name, subject.card)

    async def site() -> dict[str, Any]:
        """Say which use cases there are and where their routes begin: no data, so no key."""
        return {
            "version": version,
            "use_cases": [
                {
                    "name": subject.use_case.name,
                    "title": subject.use_case.title,
                    "task": subject.use_case.task,
                    "routes": prefixes[subject.use_case.name],
                }
                for subject in subjects
            ],
        }

    router.add_api_route("/dashboard/site.json", site, methods=["GET"], include_in_schema=False)
    return router


def _all_decisions(subjects: Sequence[Subject]) -> tuple[Sequence[Decision], Verification]:
    """Return the lines about all, in order; the chain is the same whoever reads it."""
    read = [subject.decisions() for subject in subjects]
    lines = heapq.merge(*(decisions for decisions, _ in read), key=lambda one: one.id)
    return list(lines), read[-1][1]


def _add_overview(router: APIRouter, path: str, subjects: Sequence[Subject]) -> None:
    async def look() -> dict[str, Any]:
        """Say of each use case in one sentence whether it is healthy, with the numbers of it.

        `minutes` has the traffic of each whole minute of the last hour; `alerts` is null where
        nobody can tell.
        """
        seen = await asyncio.gather(*(subject.look() for subject in subjects))
        return {"use_cases": [overview(one) for one in seen]}

    router.add_api_route(path, look, methods=["GET"], summary="Overview")


def _add_experiments(router: APIRouter, path: str, subjects: Sequence[Subject]) -> None:
    def experiments() -> dict[str, Any]:
        """Tell of each use case's open experiment, and list those before, the newest first.

        Of the open one: its terms, verdict or forecast, both versions' losses, where clients went,
        the rows that it is behind the log, and the judgement over labels. `experiment` is null
        where none is open.
        """
        return {"use_cases": [subject.experiment() for subject in subjects]}

    router.add_api_route(
        path,
        experiments,
        methods=["GET"],
        summary="Experiments",
        responses={503: {"description": "The state database or the log cannot be read"}},
    )


def _add_search(router: APIRouter, prefix: str, subject: Subject) -> None:
    def predictions(
        search_: Annotated[
            str,
            Query(
                alias="search",
                max_length=200,
                description="Part of the id, inputs, prediction or warnings",
            ),
        ] = "",
        since: Annotated[Moment | None, Query(description="From this moment on (UTC)")] = None,
        until: Annotated[Moment | None, Query(description="Before this moment (UTC)")] = None,
        version: Annotated[int | None, Query(ge=0, le=LARGEST_ID)] = None,
        warned: Annotated[bool | None, Query(description="With warnings, or without")] = None,
        told: Annotated[bool | None, Query(description="Whose truth has come, or not")] = None,
        low: Annotated[Number | None, Query(alias="min", description="Least prediction")] = None,
        high: Annotated[Number | None, Query(alias="max", description="Greatest")] = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 50,
        before: Annotated[int | None, Query(ge=1, le=LARGEST_ID)] = None,
    ) -> dict[str, Any]:
        """Return the newest predictions that fit all that is given, newest first.

        A call looks at 20,000 rows at most. Where it stopped stands in `before`: give it to go on.
        """
        query = search.Query(
            search_,
            since.isoformat(timespec="microseconds") if since else None,
            until.isoformat(timespec="microseconds") if until else None,
            *(version, warned, told, low, high, before, limit),
        )
        rows, found = subject.search(query)
        return {
            "predictions": rows,
            "examined": found.examined,
            "before": found.before,
            "says": _says(found),
        }

    router.add_api_route(
        f"{prefix}/predictions",
        predictions,
        methods=["GET"],
        summary="Search the predictions",
        response_model=PredictionsAnswer,
        responses={503: {"description": "The log cannot be read"}},
    )


def _says(found: search.Found) -> str:
    """Say in one sentence how far the search came."""
    shown, examined = f"{len(found.rows):,} found", f"{found.examined:,} examined"
    if found.before is None:
        return f"{shown}, {examined}: these are all"
    return f"{shown}, {examined}: older ones have not been looked at (before={found.before})"


def _add_schema(router: APIRouter, prefix: str, subject: Subject) -> None:
    def schema() -> dict[str, Any]:
        """Describe the use case: fields, limits, examples, and what training saw of each."""
        return describe(subject.use_case, subject.model())

    router.add_api_route(
        f"{prefix}/schema", schema, methods=["GET"], summary="Fields, limits, what training saw"
    )


def describe(
    use_case: UseCase, model: tuple[int, dict[str, Any], dict[str, Any]] | None
) -> dict[str, Any]:
    """Return a use case as JSON; without a `model`, `seen` and `quantiles` are null.

    `quantiles` are those of training at 0, 1 … 100 percent, of the answers under `prediction`.
    """
    version, signature, reference = model or (None, {"training_ranges": {}}, {})
    where = use_case.coordinates

    def profile(name: str) -> dict[str, Any]:
        known = reference.get(name, {})
        return {"quantiles": known.get("quantiles"), "values": known.get("values")}

    return {
        "use_case": use_case.name,
        "title": use_case.title,
        "description": use_case.description,
        "task": use_case.task,
        "model_version": version,
        "target": dataclasses.asdict(use_case.target),
        "fields": [
            {
                "name": feature.name,
                "unit": feature.unit,
                "description": feature.description,
                "low": feature.low,
                "high": feature.high,
                "seen": signature["training_ranges"].get(feature.name),
                **profile(feature.name),
            }
            for feature in use_case.features
        ],
        "prediction": profile("prediction"),
        "examples": {name: dict(values) for name, values in use_case.examples.items()},
        "coordinates": dataclasses.asdict(where) if where else None,
    }


def _add_diagnosis(router: APIRouter, prefix: str, subject: Subject) -> None:
    def diagnosis() -> dict[str, Any]:
        """Return what training measured of the answering version on rows it had not learnt from."""
        found = subject.diagnosis()
        if found is None:
            name = subject.use_case.name
            raise HTTPException(
                404,
                "no diagnosis is kept here for the version that answers: train again with: "
                f"mlops train {name}",
            )
        return found

    router.add_api_route(
        f"{prefix}/diagnosis",
        diagnosis,
        methods=["GET"],
        summary="What training measured on held-out rows",
        responses={404: {"description": "None is kept for the version that answers"}},
    )

"""The ledger as a page shows it: decisions newest first in stretches, and how the chain stands.

Every line is read for it: decisions are few, tens a week, where predictions are many.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from mlops.improve.chain import Verification
from mlops.improve.decisions import Decision

LARGEST_ID = 2**53

Read = Callable[[], tuple[Sequence[Decision], Verification]]
"""Decisions, oldest first, and what came of checking the chain: those before the first line that is
broken, if one is."""


class ShownDecision(BaseModel):
    """One line of the ledger."""

    id: int
    decided_utc: str
    use_case: str
    action: str
    version: int = Field(description="0 where there is none")
    previous: int | None
    reason: str
    evidence: list[dict[str, Any]]
    decided_by: str
    rule: str
    hash: str


class Chain(BaseModel):
    """Whether the ledger is as it was written; `head` is the hash of its last line."""

    whole: bool
    lines: int
    head: str
    trouble: str
    line: int | None = Field(description="The first that is broken, where it is one's trouble")


class LedgerAnswer(BaseModel):
    """The newest decisions that fit."""

    decisions: list[ShownDecision]
    found: int = Field(description="How many fit in all")
    before: int | None = Field(description="Where to go on; null: there are no more")
    actions: list[str] = Field(description="All kinds that there are, to filter by")
    chain: Chain


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """Which decisions: those that fit all that is given. `before` is a line's number."""

    search: str = ""
    action: str | None = None
    version: int | None = None
    before: int | None = None
    limit: int = 50

    def fits(self, one: Decision) -> bool:
        told = f"{one.reason} {one.decided_by} {one.rule} {one.hash}".lower()
        return (
            self.search.lower() in told
            and self.action in (None, one.action)
            and self.version in (None, one.version, one.previous)
        )


def answer(decisions: Sequence[Decision], chain: Verification, asked: Asked) -> dict[str, Any]:
    """Return the stretch of the ledger that was asked for, as JSON."""
    fitting = [one for one in reversed(decisions) if asked.fits(one)]
    older = [one for one in fitting if asked.before is None or one.id < asked.before]
    shown = older[: asked.limit]
    return {
        "decisions": [dataclasses.asdict(one) for one in shown],
        "found": len(fitting),
        "before": shown[-1].id if len(older) > len(shown) else None,
        "actions": sorted({one.action for one in decisions}),
        "chain": {**dataclasses.asdict(chain), "whole": chain.whole},
    }


def add_ledger(router: APIRouter, path: str, read: Read) -> None:
    """Add the route that lists what `read` reads."""

    def ledger(
        search: Annotated[
            str, Query(max_length=200, description="Part of the reason, rule, hash, or who")
        ] = "",
        action: Annotated[str | None, Query(max_length=64)] = None,
        version: Annotated[int | None, Query(ge=0, le=LARGEST_ID)] = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 50,
        before: Annotated[int | None, Query(ge=1, le=LARGEST_ID)] = None,
    ) -> dict[str, Any]:
        """Return the newest decisions that fit all that is given, and whether the chain is whole.

        `version` finds what is about a version, or took its place. Where there are more, give
        `before` to go on.
        """
        return answer(*read(), Asked(search, action, version, before, limit))

    router.add_api_route(
        path,
        ledger,
        methods=["GET"],
        summary="The ledger of decisions",
        response_model=LedgerAnswer,
        responses={503: {"description": "The state database cannot be read"}},
    )

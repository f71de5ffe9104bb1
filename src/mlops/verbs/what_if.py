"""What if: the history of a use case, had another rule decided."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from mlops.improve.policies import POLICIES
from mlops.tables import line, plain, table_of
from mlops.verbs.console import AsJson, UseCaseName, out, print_result, progress
from mlops.verbs.improve import MOMENT

KNOWN = "; ".join(f"{one.name}: {one.says}" for one in POLICIES)


def what_if(
    use_case: UseCaseName,
    policy: Annotated[str, typer.Option(help=KNOWN)],
    measure: Annotated[
        bool,
        typer.Option("--measure", help="Ask the gates now where the ledger kept no evidence"),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Replay the ledger under another policy: what would differ, and what it would have cost.

    Decisions rest on the evidence that the ledger kept; what it does not hold cannot be told, and
    is said so. Costs are measured where truths are known: the version that would have answered
    answers the logged rows, and its losses are held against those of the answers that were given.
    Nothing is changed.

    Examples: `mlops what-if housing --policy strict` · `mlops what-if iris --policy newest --json`
    """
    from mlops.loop.what_if import what_if as run

    result = run(use_case, policy, measure=measure, report=progress())
    found = {**plain(result), "differ": sum(bool(one.differs) for one in result.weighed)}
    print_result(found, as_json, lambda: _draw(result))


def _draw(result: Any) -> None:
    line(out, f"{result.use_case} under the policy {result.policy}: {result.rule}")
    differing = [one for one in result.weighed if one.differs is not False]
    untold = sum(one.differs is None for one in differing)
    if differing:
        table = table_of("line", "decided (UTC)", "version", "it was", "it would be", "why")
        for one in differing:
            when = one.decided_utc[:MOMENT]
            table.add_row(str(one.line), when, str(one.version), one.was, one.would, one.says)
        out.print(table)
    line(
        out,
        f"decisions  {len(differing) - untold} of {len(result.weighed)} differ, "
        f"{untold} cannot be told",
    )
    if result.reigns:
        table = table_of(
            "from (UTC)", "until", "champion", "would be", "loss", "would be", "which is"
        )
        for reign in result.reigns:
            since, until = reign.stretch.since[:MOMENT], (reign.stretch.until or "now")[:MOMENT]
            who = (_named((reign.stretch.was,)), _named(reign.stretch.would))
            losses = (_number(reign.cost.was), _number(reign.cost.would))
            what = "the same" if reign.cost.outcome == "none" else reign.cost.outcome
            table.add_row(since, until, *who, *losses, what)
        out.print(table)
    line(out, f"cost       {result.cost.outcome}: {result.cost.says}")


def _named(champions: tuple[int | None, ...]) -> str:
    return " or ".join("nobody" if one is None else str(one) for one in champions)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


COMMANDS: dict[str, Callable[..., Any]] = {"what-if": what_if}

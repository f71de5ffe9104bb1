"""Verbs of verdicts: what an experiment has found so far."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import typer

from mlops.tables import line, table_of
from mlops.verbs.console import AsJson, out, print_result

MOMENT = 19


def show(
    use_case: Annotated[
        str | None, typer.Argument(metavar="USE_CASE", help="All, unless named")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the open experiment: verdict or forecast, losses, where clients went, rows behind.

    Examples: `mlops experiment show housing` · `mlops experiment show --json`
    """
    from mlops.loop.verdict import reports as run

    result = run(use_case)
    print_result(result, as_json, lambda: _draw(result))


def _draw(result: Sequence[Mapping[str, Any]]) -> None:
    for one in result:
        _draw_one(one)


def _draw_one(found: Mapping[str, Any]) -> None:
    experiment = found["experiment"]
    if experiment is None:
        line(out, f"{found['use_case']}: no experiment is under way")
    else:
        _draw_open(found, experiment)
    if not found["past"]:
        return
    table = table_of("experiment", "mode", "challenger", "champion", "from (UTC)", "to", "outcome")
    for one in found["past"]:
        versions = (str(one["challenger"]), str(one["champion"]))
        moments = (one["started_utc"][:MOMENT], one["ended_utc"][:MOMENT])
        table.add_row(str(one["id"]), one["mode"], *versions, *moments, one["outcome"])
    out.print(table)


def _draw_open(found: Mapping[str, Any], experiment: Mapping[str, Any]) -> None:
    whom = f"version {experiment['challenger']} against version {experiment['champion']}"
    how = "in its shadow"
    if experiment["mode"] == "ab":
        how = f"for {experiment['share']:.0%} of the clients"
    since = f"since {experiment['started_utc'][:MOMENT]} UTC"
    decides = "; it decides by itself" if experiment["auto"] else ""
    title = f"{found['use_case']} experiment {experiment['id']}"
    line(out, f"{title}: {whom}, {how}, {since}{decides}")
    line(out, f"verdict  {found['verdict']['says']}")
    for name, arm in found["arms"].items():
        if arm["labels"]:
            loss = f"mean loss {arm['mean_loss']:.4g} over {arm['labels']:,} labels"
            line(out, f"         {name}, version {arm['version']}: {loss}")
    for one in found["sample_ratio"]["clients"]:
        seen = f"{one['champion']:,} to the champion, {one['challenger']:,} to the challenger"
        line(out, f"clients  {seen}, at a share of {one['share']:.0%}")
    behind = found["rows_behind"]
    if behind is None:
        line(out, "rows     nobody is at it: it goes on while a server of this use case runs")
    else:
        line(out, f"rows     {behind:,} of the log are still to be looked at")
    if found["trouble"]:
        line(out, f"trouble  {found['trouble']}")


COMMANDS: dict[str, Callable[..., Any]] = {"experiment show": show}

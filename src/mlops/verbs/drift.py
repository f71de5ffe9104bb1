"""Drift, from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mlops import tables
from mlops.verbs.console import AsJson, UseCaseName, out, print_result, progress

EXIT_CODES = {"ok": 0, "alarm": 1, "cannot tell": 3}


def drift(
    use_case: UseCaseName,
    window: Annotated[
        str | None, typer.Option(help="Stretch of the latest traffic: 7d, 12h (DRIFT_WINDOW)")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="False alarms that are allowed: 1/30d (DRIFT_BUDGET)")
    ] = None,
    every: Annotated[
        str | None, typer.Option(help="How often you look, at most: 1h, 1d (DRIFT_EVERY)")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="A CSV or Parquet file instead of the traffic")
    ] = None,
    version: Annotated[int | None, typer.Option(help="Instead of the champion")] = None,
    to: Annotated[Path | None, typer.Option(help="Where the page goes")] = None,
    as_json: AsJson = False,
) -> None:
    """Say whether traffic still looks like what was trained on; write a page that shows it.

    Exit code 0: ok; 1: alarm; 2: not asked rightly; 3: it cannot be told, and why.

    Examples: `mlops drift housing --window 7d` · `mlops drift housing --data new.csv --every 7d`
    """
    from mlops.loop.drift import drift as look

    found, path = look(
        use_case,
        window=window,
        budget=budget,
        every=every,
        data=data,
        version=version,
        to=to,
        report=progress(),
    )
    print_result({**found.as_json(), "path": str(path)}, as_json, lambda: _draw(found, path))
    raise typer.Exit(EXIT_CODES[found.verdict])


def _draw(found: Any, path: Path) -> None:
    from mlops.monitor.drift.page import HEAD, cells

    columns = [one for one in found.findings if one.subject in found.columns]
    others = [one for one in found.findings[1:] if one.subject not in found.columns]
    if columns:
        table = tables.table_of(*HEAD)
        for one in [*columns, *others]:
            table.add_row(*cells(one))
        out.print(table)
    for one in found.findings[1:]:
        if one.verdict == "alarm":
            tables.line(out, f"{one.subject}: {one.says}")
    tables.line(out, f"{found.use_case}, {found.window}: {found.verdict}: {found.says}")
    if found.guarantee:
        tables.line(out, found.guarantee)
    tables.line(out, f"report: {path}")


COMMANDS = {"drift": drift}

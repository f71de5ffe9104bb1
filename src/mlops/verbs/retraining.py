"""Retraining: by hand, for a scheduler, or watched on one machine."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.console import Console

from mlops import tables
from mlops.settings import read_settings
from mlops.verbs.console import AsJson, UseCaseName, out, print_result, progress


def retrain(
    use_case: UseCaseName,
    if_needed: Annotated[
        bool, typer.Option("--if-needed", help="Only for a reason, for schedulers")
    ] = False,
    reason: Annotated[str, typer.Option(help="Why, if by hand; the ledger keeps it")] = "",
    no_promote: Annotated[
        bool, typer.Option("--no-promote", help="Leave the winner registered; ask no gate")
    ] = False,
    only: Annotated[
        list[str] | None, typer.Option(help="Train this candidate alone (may be repeated)")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train again on the data file and all that has come since; let the gates decide.

    What has come: files and queries in `data/<use case>.d/`, and logged predictions whose truth is
    known. The reason is written down before the work begins. Exit code 75 if another process is
    at it; 0 also if nothing was needed, or the gates kept the champion.

    Examples: `mlops retrain housing --reason "prices of May"` · `mlops retrain housing --if-needed`
    """
    from mlops.loop.retrain import retrain as run

    result = run(
        use_case,
        if_needed=if_needed,
        reason=reason,
        promote_winner=not no_promote,
        only=tuple(only or ()),
        gentle=True,
        report=progress(),
    )
    print_result(result, as_json, lambda: _draw(result, out))


def watch(
    use_cases: Annotated[
        list[str] | None, typer.Argument(metavar="USE_CASE", help="All, unless named")
    ] = None,
    every: Annotated[str, typer.Option(help="Time between two looks: 90s, 10m, 1h")] = "10m",
    once: Annotated[
        bool, typer.Option("--once", help="Look once; exit code 1 if anything failed")
    ] = False,
) -> None:
    """Retrain whatever needs it, in the foreground, until SIGTERM or Ctrl-C.

    Says each time what it decided, and goes on after errors. What a stop interrupts is resumed.

    Examples: `mlops watch` · `mlops watch housing --every 1h` · `mlops watch --once`
    """
    from mlops.loop.tune import duration
    from mlops.loop.watch import watch as run

    seconds = duration(every)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    if not run(use_cases or (), seconds, read_settings(), progress(), once=once):
        raise typer.Exit(1)


def _draw(result: Any, console: Console) -> None:
    if result.outcome == "not needed":
        tables.line(console, f"{result.use_case}: not needed: {result.says}")
        return
    if result.training:
        tables.training(result.training, console)
    rows = result.rows
    came = ", ".join(f"{count:,} of {name}" for name, count in rows.came.items()) or "none"
    tables.line(
        console,
        f"learnt from {rows.reference:,} rows of the data file and those that came: {came}; "
        f"left out: {rows.known:,} known already, {rows.broken:,} that break a rule",
    )
    for name, says in rows.refused.items():
        tables.line(console, f"refused: {name}: {says}")
    if result.difference:
        tables.line(console, f"since the last training: {result.difference}")
    tables.line(console, f"policy: {result.policy}")
    tables.line(console, f"{result.use_case}: {result.outcome}: {result.says}")


COMMANDS: dict[str, Callable[..., Any]] = {"retrain": retrain, "watch": watch}

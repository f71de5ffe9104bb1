"""Registered versions: which there are, and which of them is champion."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from mlops import tables
from mlops.verbs.console import AsJson, UseCaseName, out, print_result, progress
from mlops.verbs.profiles import draw_profiles


def show(use_case: UseCaseName, as_json: AsJson = False) -> None:
    """Show fields with units and limits, versions, champion and decisions.

    Example: `mlops show housing`
    """
    from mlops.loop.show import show as run

    result = run(use_case)

    def draw() -> None:
        tables.shown(result, out)
        draw_profiles(result, out)

    print_result(result, as_json, draw)


def promote(
    use_case: UseCaseName,
    version: Annotated[int | None, typer.Argument(help="The newest, unless told")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overrule the gates")] = False,
    reason: Annotated[str, typer.Option(help="Why; the ledger keeps it")] = "",
    over: Annotated[int | None, typer.Option(help="Only if this version is champion now")] = None,
    as_json: AsJson = False,
) -> None:
    """Ask the gates, then make a version champion. Returns when running servers have switched.

    Examples: `mlops promote housing` ·
    `mlops promote housing 1 --force --reason "version 2 misprices the coast"`
    """
    from mlops.loop.promote import promote as run

    result = run(use_case, version, force=force, reason=reason, over=over, report=progress())
    print_result(result, as_json, lambda: tables.promotion(result, out))


COMMANDS: dict[str, Callable[..., Any]] = {"show": show, "promote": promote}

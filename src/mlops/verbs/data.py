"""Tables that models learn from: write them, check them, compare them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from mlops import tables
from mlops.verbs.console import AsJson, UseCaseName, out, print_result

group = typer.Typer(help="Look at the data that models learnt from.", no_args_is_help=True)


def prepare(
    use_case: UseCaseName,
    force: Annotated[bool, typer.Option("--force", help="Write it anew from the source")] = False,
    as_json: AsJson = False,
) -> None:
    """Write `data/<use case>.csv` from its source, cleaned and checked.

    A file that is there already is checked and kept.

    Examples: `mlops prepare housing` · `mlops prepare iris --force`
    """
    from mlops.loop.prepare import prepare as run

    table = run(use_case, force=force)
    result = {
        "use_case": use_case,
        "path": str(table.path),
        "rows": len(table.frame),
        "columns": list(table.frame.columns),
        "dropped": table.dropped,
        "fingerprint": table.fingerprint,
        "origin": table.origin,
        "reused": table.reused,
    }
    print_result(result, as_json, lambda: tables.prepared(result, out))


def check(
    use_case: UseCaseName,
    table: Annotated[Path, typer.Argument(metavar="FILE", help="A CSV or Parquet file")],
    as_json: AsJson = False,
) -> None:
    """Check any table against a use case: what is wrong, by column, rule and line.

    With or without the target; columns may have the data file's names or those of the request.
    Ends with 0 if the table fits, 1 if it breaks a rule, 2 if it is no table.

    Examples: `mlops check housing data/housing.csv` · `mlops check iris new.parquet --json`
    """
    from mlops.loop.check import check as run

    result = run(use_case, table)
    found = {**tables.plain(result), "fits": result.fits}
    print_result(found, as_json, lambda: tables.checked(result, out))
    if not result.fits:
        raise typer.Exit(1)


@group.command("diff")
def data_diff(
    before: Annotated[
        str, typer.Argument(metavar="A", help="Fingerprint, version, bundle or file")
    ],
    after: Annotated[str, typer.Argument(metavar="B", help="What to compare it with")],
    use_case: Annotated[
        str | None, typer.Argument(metavar="USE_CASE", help="Where A and B alone are ambiguous")
    ] = None,
    key: Annotated[
        list[str] | None, typer.Option(help="Column that tells rows apart (may be repeated)")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what changed between the data of two trainings, or any two tables.

    Rows new, gone and changed, and columns that shifted. Beginnings of names are enough.

    Examples: `mlops data diff 1 2 housing` · `mlops data diff 8f31c0 data/housing.csv` ·
    `mlops data diff old.csv new.csv --key id --json`
    """
    from mlops.loop.differ import diff

    result = diff(before, after, use_case, key=tuple(key or ()))
    found = {**tables.plain(result), "summary": result.summary}
    print_result(found, as_json, lambda: tables.compared(result, out))


COMMANDS: dict[str, Callable[..., Any]] = {"prepare": prepare, "check": check}

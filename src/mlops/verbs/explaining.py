"""Why a model answers as it does: one answer explained, and the card of a version."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from mlops.tables import line, table_of
from mlops.verbs.console import AsJson, UseCaseName, out, parse_row, print_result


def explain(
    use_case: UseCaseName,
    fields: Annotated[list[str], typer.Argument(metavar="FIELD=VALUE", help="One row")],
    version: Annotated[int | None, typer.Option(help="The champion, unless told")] = None,
    as_json: AsJson = False,
) -> None:
    """Say which field adds how much to an answer. They add up to it; nothing is recorded.

    Example: `mlops explain iris sepal_length=5.1 sepal_width=3.5 petal_length=1.4 petal_width=0.2`
    """
    from mlops.loop.explain import explain as run

    row = parse_row(fields)
    result = run(use_case, row, number=version)
    print_result(result, as_json, lambda: _draw(result, row, out))


def card(
    use_case: UseCaseName,
    version: Annotated[
        int | None, typer.Argument(metavar="VERSION", help="The champion, unless told")
    ] = None,
    to: Annotated[Path | None, typer.Option(help="A file to write it to")] = None,
    as_json: AsJson = False,
) -> None:
    """Print a version's model card: what it is for, data, scores, importance of fields, limits.

    Examples: `mlops card housing` · `mlops card iris 2 --to forest.md`
    """
    from mlops.loop.explain import card as run

    result = run(use_case, version, to=to)
    text = result.path or result.text
    print_result(
        result,
        as_json,
        lambda: out.print(text, soft_wrap=True, highlight=False, markup=False),
    )


def _draw(result: dict[str, Any], row: dict[str, Any], console: Console) -> None:
    table = table_of("field", "value", f"adds ({result['unit']})")
    table.add_row("on average", "", f"{result['base_value']:.4f}")
    for name, value in sorted(result["contributions"].items(), key=lambda item: -abs(item[1])):
        table.add_row(name, f"{row[name]:g}", f"{value:+.4f}")
    table.add_row(result["explains"], "", f"{result['prediction']:.4f}")
    console.print(table)
    line(console, result["text"])


COMMANDS: dict[str, Callable[..., Any]] = {"explain": explain, "card": card}

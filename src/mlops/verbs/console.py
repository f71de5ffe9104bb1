"""What verbs share: their common arguments, and how they print."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.console import Console

from mlops import tables
from mlops.errors import UsageError
from mlops.loop.report import OnConsole

UseCaseName = Annotated[str, typer.Argument(metavar="USE_CASE", help="housing or iris")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for machines")]

# A pipe has no width of its own; 80 columns would fold most tables.
out = Console(width=None if sys.stdout.isatty() else 140)


def print_result(result: Any, as_json: bool, draw: Callable[[], None]) -> None:
    """Print a result as JSON, or have it drawn for people."""
    if as_json:
        print(json.dumps(tables.plain(result), indent=2, ensure_ascii=False))  # noqa: T201
    else:
        draw()


def progress() -> OnConsole:
    """Progress goes to standard error, so that results can be piped."""
    return OnConsole(Console(stderr=True))


def parse_row(fields: list[str]) -> dict[str, Any]:
    """Return FIELD=VALUE arguments as a row."""
    row: dict[str, Any] = {}
    for field in fields:
        name, equals, value = field.partition("=")
        if not equals:
            raise UsageError(f"{field!r} is not FIELD=VALUE", "write, say, latitude=37.8")
        row[name] = parse_number(value)
    return row


def parse_number(text: str | None) -> float | str | None:
    """Return the number that a text stands for, or the text for the schema to refuse."""
    try:
        number = float(text) if text is not None else None
    except ValueError:
        return text
    # JSON knows no NaN or infinity: they would reach the schema as nothing at all.
    return number if number is None or math.isfinite(number) else text

"""What people are shown of profiles: those there are, and what became of their products."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from mlops.tables import line, promotion, table_of


def draw_profiles(result: Mapping[str, Any], console: Console) -> None:
    for one in result["profiles"]:
        products = ", ".join(f"{p['alias']} = {p['candidate']}" for p in one["products"])
        took = f"about {one['minutes']:g} min on two cores"
        line(console, f"profile {one['name']}: {one['says']} ({took}): {products}")


def draw_settled(settled: Any, console: Console) -> None:
    if settled.promotion is not None:
        promotion(settled.promotion, console)
    table = table_of("product", "version", "says")
    for alias in sorted({*settled.answering, *settled.refused}):
        number = settled.answering.get(alias)
        answers = f"answers at /{settled.use_case}/models/{alias}/predict" if number else ""
        says = settled.refused.get(alias, answers)
        table.add_row(alias, str(number or "none"), says)
    console.print(table)

"""The model card for the page: the Markdown of `package/card.py`, taken apart into what is drawn.

Only what cards are written in is known: one title, sections, paragraphs, items and tables.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, HTTPException

Read = Callable[[], tuple[int, str] | None]
"""The version that answers, and its card in Markdown; None where there is none."""

CELL = re.compile(r"(?<!\\)\|")


def sections(markdown: str) -> list[dict[str, Any]]:
    """Return the sections of a card, each a `title` and `blocks`.

    A block is {"text": …}, {"items": […]} or {"head": […], "rows": [[…], …]}.
    """
    found: list[dict[str, Any]] = []
    for part in re.split(r"^## ", markdown, flags=re.MULTILINE)[1:]:
        title, _, content = part.partition("\n")
        blocks: list[dict[str, Any]] = []
        for paragraph in re.split(r"\n\s*\n|\n(?=- )", content.strip()):
            _add(blocks, paragraph.strip())
        found.append({"title": title.strip(), "blocks": blocks})
    return found


def _add(blocks: list[dict[str, Any]], paragraph: str) -> None:
    if paragraph.startswith("- "):
        if not blocks or "items" not in blocks[-1]:
            blocks.append({"items": []})
        blocks[-1]["items"].append(" ".join(paragraph[2:].split()))
    elif paragraph.startswith("| "):
        head, _, *rows = (_cells(line) for line in paragraph.splitlines())
        blocks.append({"head": head, "rows": rows})
    elif paragraph:
        blocks.append({"text": " ".join(paragraph.split())})


def _cells(line: str) -> list[str]:
    return [cell.strip().replace("\\|", "|") for cell in CELL.split(line.strip())[1:-1]]


def add_card(router: APIRouter, prefix: str, name: str, read: Read) -> None:
    """Add the route that returns the card of the version that answers."""

    def card() -> dict[str, Any]:
        """Return the model card of the answering version: as Markdown, and taken apart."""
        found = read()
        if found is None:
            raise HTTPException(404, f"no version answers yet: mlops train {name} --promote")
        version, markdown = found
        return {"model_version": version, "markdown": markdown, "sections": sections(markdown)}

    router.add_api_route(
        f"{prefix}/card",
        card,
        methods=["GET"],
        summary="Model card",
        responses={404: {"description": "No version answers yet"}},
    )

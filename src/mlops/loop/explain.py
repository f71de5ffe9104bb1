"""Explain from the command line: the same way as `POST /explain`, and nothing is recorded."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
from pydantic import ValidationError

from mlops.deploy import problems
from mlops.deploy.service import Service
from mlops.errors import NotTrainedError
from mlops.improve.ledger import Ledger, Version
from mlops.loop.card import card_of_bundle
from mlops.loop.follow import open_champion
from mlops.loop.predict import InvalidRequestError
from mlops.package.bundle import open_bundle
from mlops.settings import Settings, read_settings
from mlops.usecases import find


@dataclasses.dataclass(frozen=True, slots=True)
class Card:
    """A version's model card, in Markdown, and the file it was written to, if any."""

    use_case: str
    version: int
    bundle: str
    text: str
    path: str | None


def explain(
    name: str,
    row: Mapping[str, Any],
    *,
    number: int | None = None,
    settings: Settings | None = None,
) -> dict[str, Any]:
    """Explain what the champion (or version `number`) answers to a row of request fields.

    The result is what `POST /explain` answers. Raises `InvalidRequestError` that names field, value
    and limit, and `NotExplainedError` for a version that was sealed before it could be explained.
    """
    settings = settings or read_settings()
    use_case = find(name)
    champion = open_champion(use_case, _version(name, number, settings), settings)
    service = Service(use_case)
    body = orjson.dumps(row)
    try:
        return service.explained_by(champion, body)
    except ValidationError as error:
        found = "; ".join(item["msg"] for item in problems.invalid(error, use_case, body))
        raise InvalidRequestError(found, f"see the fields with: mlops show {name}") from None


def card(
    name: str,
    number: int | None = None,
    *,
    to: Path | None = None,
    settings: Settings | None = None,
) -> Card:
    """Return the model card of the champion (or version `number`), written `to` a file if asked."""
    settings = settings or read_settings()
    version = _version(name, number, settings)
    bundle = open_bundle(settings.bundles / version.bundle, key=settings.signing_key)
    text = card_of_bundle(find(name), bundle, version.version)
    if to is not None:
        from mlops.build.data import write_whole

        write_whole(to, lambda file: file.write_text(text, encoding="utf-8"))
    return Card(name, version.version, version.bundle, text, str(to) if to else None)


def _version(name: str, number: int | None, settings: Settings) -> Version:
    use_case = find(name)
    with Ledger(settings.state_database) as ledger:
        champion = ledger.champion(name) if number is None else ledger.version(name, number)
    if champion is None:
        raise NotTrainedError(
            f"{use_case.name} has no champion", f"make one with: mlops up {use_case.name}"
        )
    return champion

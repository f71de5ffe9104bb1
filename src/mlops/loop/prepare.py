"""Prepare: the data file of a use case, from its source."""

from __future__ import annotations

from mlops.build import data
from mlops.settings import Settings, read_settings
from mlops.usecases import find


def prepare(name: str, *, force: bool = False, settings: Settings | None = None) -> data.Table:
    """Write `data/<use case>.csv`, cleaned and checked; check it if it is there already.

    The table is kept under its fingerprint too, for `mlops data diff`.
    """
    settings = settings or read_settings()
    table = data.prepare(find(name), settings.data, force=force)
    data.keep(table, settings.data)
    return table

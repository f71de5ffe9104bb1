"""The model card of a bundle, with what is measured by slice: for people, files and pages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlops.deploy.predictor import OpenBundle
from mlops.monitor.performance import unsealed
from mlops.monitor.quality import scores
from mlops.package.card import Band, model_card
from mlops.usecase import UseCase

PARTS = ("signature", "metrics", "training", "explanation", "intervals")
"""The documents that a card is made from."""


def card_of(
    use_case: UseCase, documents: Mapping[str, Any], provenance: Mapping[str, Any], name: str = ""
) -> str:
    """Return the card of a bundle with these documents; `name` says which version it is."""
    bands = bands_of(use_case, documents["metrics"])
    return model_card(use_case, documents, provenance, bands=bands, name=name)


def card_of_bundle(use_case: UseCase, bundle: OpenBundle, version: int) -> str:
    """Return the card of an opened bundle."""
    documents = {part: getattr(bundle, part) for part in PARTS}
    return card_of(use_case, documents, bundle.provenance, f"version {version}")


def bands_of(use_case: UseCase, metrics: Mapping[str, Any]) -> list[Band]:
    """Return what was sealed of the held-out rows, band by band of each slice; of none, nothing."""
    sealed = unsealed(metrics)
    found: list[Band] = []
    if sealed is None:
        return found
    for one in use_case.slices:
        for band in (*one.bands, one.rest):
            sums = [s for s in sealed.test if (s.key.slice, s.key.band) == (one.name, band)]
            measured = scores(use_case, sums)
            if measured:
                rows = int(sum(s.values[0] for s in sums))
                found.append(Band(one.name, band, rows, measured))
    return found

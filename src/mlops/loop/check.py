"""Check: any table against a use case, before it is learnt from or asked about."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mlops.build.check import Checked, check_table
from mlops.build.data import fields_and_target
from mlops.build.pipeline import ModelInputs
from mlops.build.profile import QUANTILES
from mlops.errors import BundleError, MlopsError
from mlops.improve.ledger import Ledger
from mlops.package.bundle import open_bundle
from mlops.settings import Settings, read_settings
from mlops.usecase import UseCase
from mlops.usecases import find

Ranges = dict[str, Sequence[float]]


def check(name: str, path: Path, *, settings: Settings | None = None) -> Checked:
    """Check a CSV or Parquet file against a use case.

    What is plausible is judged by what the champion was trained on; without a champion, by the
    use case's own source. Raises `UsageError` for a file that is no table.
    """
    use_case = find(name)
    ranges, compared = ranges_of(use_case, settings or read_settings())
    return check_table(use_case, path, ranges=ranges, compared=compared)


def ranges_of(use_case: UseCase, settings: Settings) -> tuple[Ranges, str]:
    if settings.state_database.exists():
        with Ledger(settings.state_database) as ledger:
            champion = ledger.champion(use_case.name)
        try:
            if champion is not None:
                bundle = open_bundle(settings.bundles / champion.bundle, key=settings.signing_key)
                return {
                    name: (low, bundle.reference[name]["quantiles"][QUANTILES // 2], high)
                    for name, (low, high) in bundle.signature["training_ranges"].items()
                }, f"what version {champion.version} saw"
        except BundleError:
            pass  # the source knows as well
    try:
        source = use_case.load()
    except (MlopsError, OSError):
        return {}, ""
    X, _ = fields_and_target(use_case, source.table.dropna())
    rows = X.to_numpy()
    inputs = ModelInputs(use_case.fields, use_case.inputs).transform(rows)
    names = [*use_case.fields, *use_case.input_names]
    values = np.hstack([rows, inputs])
    edges = values.min(axis=0), np.median(values, axis=0), values.max(axis=0)
    return dict(zip(names, np.column_stack(edges).tolist(), strict=True)), source.origin

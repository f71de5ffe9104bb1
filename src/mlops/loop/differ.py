"""Differ: what changed between the data of two trainings, or between any two tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from mlops.build.data import data_file, fingerprint, kept_file, read_table
from mlops.build.difference import Difference, difference
from mlops.errors import BundleError, DataError, UsageError
from mlops.improve.ledger import Ledger
from mlops.package.bundle import open_bundle
from mlops.settings import Settings, read_settings
from mlops.usecase import UseCase
from mlops.usecases import USE_CASES, find

SHORTEST_PREFIX = 4


@dataclasses.dataclass(frozen=True, slots=True)
class Compared:
    """Two tables, what was said of them, and how they differ; None where they do not."""

    before: str
    after: str
    fingerprint_before: str
    fingerprint_after: str
    difference: Difference | None

    @property
    def summary(self) -> str:
        return self.difference.summary if self.difference else "no difference"


@dataclasses.dataclass(frozen=True, slots=True)
class _Known:
    """Something with a name that stands for data: a file, a version, a bundle, a fingerprint."""

    name: str
    fingerprint: str
    label: str


def diff(
    before: str,
    after: str,
    use_case: str | None = None,
    *,
    key: Sequence[str] = (),
    settings: Settings | None = None,
) -> Compared:
    """Compare two tables, each a file, a version, or the beginning of a bundle or fingerprint.

    `key` names columns that tell one row from all others; unless given, it is the use case's.
    Raises `UsageError` for what is not known or ambiguous, `DataError` for data that is gone.
    """
    settings = settings or read_settings()
    asked = (find(use_case),) if use_case else tuple(USE_CASES.values())
    (first, a), (second, b) = (_find(what, asked, settings) for what in (before, after))
    if a.fingerprint and a.fingerprint == b.fingerprint:
        return Compared(a.label, b.label, a.fingerprint, b.fingerprint, None)
    tables = [
        table if table is not None else _load(known, asked, settings)
        for table, known in ((first, a), (second, b))
    ]
    found = difference(tables[0], tables[1], key or _declared_key(asked, tables))
    return Compared(a.label, b.label, a.fingerprint, b.fingerprint, found)


def _find(
    what: str, asked: Sequence[UseCase], settings: Settings
) -> tuple[pd.DataFrame | None, _Known]:
    """Return what a word stands for, with its table if that was read already."""
    if Path(what).is_file():
        table = _read_file(Path(what))
        return table, _Known(what, fingerprint(table.dropna()), what)
    known = {one.fingerprint: one for one in _known(asked, settings) if _means(what, one.name)}
    if len(known) == 1:
        return None, known.popitem()[1]
    names = " or ".join(use_case.name for use_case in asked)
    if known:
        labels = "; ".join(sorted(one.label for one in known.values()))
        raise UsageError(f"{what!r} may be {labels}", f"say more of it, or add a use case: {names}")
    raise UsageError(
        f"{what!r} is no file, version, bundle or data fingerprint known here",
        f"list what is known with: mlops show {asked[0].name}",
    )


def _means(what: str, name: str) -> bool:
    if name.isdecimal() and len(name) < SHORTEST_PREFIX * 2:  # a version
        return what == name
    return len(what) >= SHORTEST_PREFIX and name.startswith(what.lower())


def _known(asked: Sequence[UseCase], settings: Settings) -> Iterator[_Known]:
    """Yield all that can be named, the same data under several names."""
    for use_case in asked:
        if settings.state_database.exists():
            with Ledger(settings.state_database) as ledger:
                versions = ledger.versions(use_case.name)
        else:
            versions = []
        for version in versions:
            try:
                made = open_bundle(
                    settings.bundles / version.bundle, key=settings.signing_key
                ).training["data_fingerprint"]
            except BundleError:
                continue
            label = f"the data of {use_case.name} version {version.version} ({made[:12]})"
            for name in (str(version.version), version.bundle, made):
                yield _Known(name, made, label)
        if data_file(use_case, settings.data).exists():
            now = read_table(use_case, settings.data)
            yield _Known(now.fingerprint, now.fingerprint, f"{now.path} ({now.fingerprint[:12]})")
    for path in sorted(kept_file("", settings.data).parent.glob("*.parquet")):
        yield _Known(path.stem, path.stem, f"kept data {path.stem[:12]}")


def _load(known: _Known, asked: Sequence[UseCase], settings: Settings) -> pd.DataFrame:
    kept = kept_file(known.fingerprint, settings.data)
    if kept.exists():
        return pd.read_parquet(kept)
    for use_case in asked:
        if data_file(use_case, settings.data).exists():
            table = read_table(use_case, settings.data)
            if table.fingerprint == known.fingerprint:
                return table.frame
    raise DataError(
        f"{known.label} is not kept here any more: {kept} is gone",
        "restore it from a copy, or name a file that holds the table",
    )


def _read_file(path: Path) -> pd.DataFrame:
    with path.open("rb") as file:
        is_parquet = file.read(4) == b"PAR1"
    try:
        return pd.read_parquet(path) if is_parquet else pd.read_csv(path, index_col=False)
    except (ValueError, OSError) as error:  # pandas' and pyarrow's own are among them
        said = str(error).splitlines()[0]
        raise UsageError(f"{path} cannot be read as a table: {said}", "write it again") from None


def _declared_key(asked: Sequence[UseCase], tables: Sequence[pd.DataFrame]) -> tuple[str, ...]:
    """Return the key of the use case whose tables these are, if it declares one."""
    for use_case in asked:
        columns = {feature.column for feature in use_case.features}
        if all(columns <= set(table.columns) for table in tables):
            return use_case.key
    return ()

"""The data file of a use case: written once from its source, checked on every load.

`prepare` writes `data/<use case>.csv`; everything after it reads that file. A user who edits the
file trains on the edit, and is told that it no longer equals its source: `<use case>.source.json`
notes beside it what it was written from, which the file itself does not show.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.model_selection import train_test_split

from mlops.errors import DataError
from mlops.usecase import SEED, TEST_SHARE, UseCase

SHOWN_VIOLATIONS = 10
FEWEST_ROWS = 20
"""Of each class, or in all: enough for two rows on each side of every fold."""


@dataclasses.dataclass(frozen=True, slots=True)
class Table:
    """A checked data file. `dropped` rows had a missing value. `origin` says where it is from."""

    frame: pd.DataFrame
    path: Path
    dropped: int
    fingerprint: str
    origin: str
    reused: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Split:
    """Rows to learn from and rows to be measured on, as request fields and targets.

    `X_*` are data frames with the request fields as columns; `y_*` are numbers, for a
    classification the number of the class. `shared_rows` counts test rows that equal, in every
    field and the target, some training row. `fingerprint` is that of the test rows: two trainings
    may be compared on them only if both set the same ones aside. `weights` are what the training
    rows count for, shape (n_train,); None where all count alike.
    """

    X_train: pd.DataFrame
    X_test: pd.DataFrame
    y_train: np.ndarray
    y_test: np.ndarray
    shared_rows: int
    fingerprint: str
    weights: np.ndarray | None = None


def data_file(use_case: UseCase, folder: Path) -> Path:
    return folder / f"{use_case.name}.csv"


def prepare(use_case: UseCase, folder: Path, *, force: bool = False) -> Table:
    """Write the data file from its source, cleaned and checked, unless it is there already.

    Raises `DataError` when source or file break the schema. The file appears whole or not at all.
    """
    path = data_file(use_case, folder)
    if path.exists() and not force:
        return dataclasses.replace(read_table(use_case, folder), reused=True)
    source = use_case.load()
    frame, dropped = clean(use_case, source.table, name=source.origin)
    table = Table(frame, path, dropped, fingerprint(frame), source.origin)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda file: frame.to_csv(file, index=False, lineterminator="\n"))
    note = {"origin": table.origin, "fingerprint": table.fingerprint, "dropped": dropped}
    write_whole(_note_file(path), lambda file: file.write_text(json.dumps(note, indent=1) + "\n"))
    return table


def read_table(use_case: UseCase, folder: Path) -> Table:
    """Read the data file and check it. Raises `DataError`, naming column, row and rule."""
    path = data_file(use_case, folder)
    if not path.exists():
        raise DataError(f"{path} does not exist", f"write it with: mlops prepare {use_case.name}")
    try:
        with warnings.catch_warnings():
            # More cells than columns: they would be cut off, or shift all columns by one.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            # Blank lines are no rows, but they count as lines when one of the file is named.
            raw = pd.read_csv(path, index_col=False, skip_blank_lines=False).dropna(how="all")
    except (
        pd.errors.ParserError,
        pd.errors.ParserWarning,
        pd.errors.EmptyDataError,
        UnicodeDecodeError,
    ) as error:
        raise DataError(
            f"{path} is not a readable CSV file: {error}",
            f"rewrite it with: mlops prepare {use_case.name} --force",
        ) from None
    frame, dropped = clean(use_case, raw, name=str(path))
    return _with_origin(Table(frame, path, dropped, fingerprint(frame), str(path)))


def clean(use_case: UseCase, table: pd.DataFrame, *, name: str) -> tuple[pd.DataFrame, int]:
    """Drop rows with a missing value, check the rest; return them and how many were dropped.

    Rows keep their order. The index of `table` numbers its rows from 0, without the blank lines of
    its file if there were any, so that a violation can be found in the file.
    """
    needed = [*_columns(use_case), use_case.target.column]
    missing = [column for column in needed if column not in table.columns]
    if missing:
        raise DataError(
            f"{name} lacks the column {missing[0]!r}"
            + (f" and {len(missing) - 1} more: {', '.join(missing[1:])}" if missing[1:] else ""),
            f"its columns must include {', '.join(needed)}",
        )
    complete = table.dropna(subset=needed)
    if complete.empty:
        raise DataError(f"{name} has no complete row", "add rows without missing values")
    violations = _violations(use_case, complete)
    if violations:
        more = len(violations) - SHOWN_VIOLATIONS
        lines = "\n  ".join(violations[:SHOWN_VIOLATIONS])
        tail = f"\n  and {more:,} more" if more > 0 else ""
        raise DataError(
            f"{name} breaks the schema of {use_case.name} in {len(violations):,} "
            f"place{'s' if len(violations) > 1 else ''}:\n"
            f"  {lines}{tail}\n",
            "correct or remove these rows",
        )
    return complete.reset_index(drop=True), len(table) - len(complete)


def keep(table: Table, folder: Path) -> None:
    """Keep a table that was learnt from, once per fingerprint, so that later ones can be compared.

    As `<folder>/tables/<fingerprint>.parquet`, some 40 bytes a row; it can be removed at any time.
    """
    path = kept_file(table.fingerprint, folder)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda file: table.frame.to_parquet(file, compression="zstd"))


def kept_file(fingerprint: str, folder: Path) -> Path:
    return folder / "tables" / f"{fingerprint}.parquet"


def sweep(folder: Path, process: int) -> None:
    """Remove what `write_whole` of a process that died left in a folder, or below."""
    for path in folder.rglob(f"*.unfinished-{process}"):
        path.unlink(missing_ok=True)


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make the file under another name, and rename it only when that is done."""
    unfinished = path.with_name(f"{path.name}.unfinished-{os.getpid()}")
    try:
        write(unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _note_file(path: Path) -> Path:
    return path.with_suffix(".source.json")


def _with_origin(table: Table) -> Table:
    """Return the table with what was noted when its file was written, or that it was edited."""
    try:
        note = json.loads(_note_file(table.path).read_text())
        origin, written, dropped = note["origin"], note["fingerprint"], note["dropped"]
    except (OSError, ValueError, KeyError, TypeError):
        return table  # a file that the user brought
    if written != table.fingerprint:
        return dataclasses.replace(
            table, origin=f"{table.path}, edited: it no longer equals the {origin}"
        )
    return dataclasses.replace(table, origin=origin, dropped=table.dropped + dropped)


def _columns(use_case: UseCase) -> list[str]:
    return [feature.column for feature in use_case.features]


def schema(use_case: UseCase, columns: Collection[str] = (), *, gaps: bool = False) -> Any:
    """Return the rules of a use case's table as a pandera schema: of all columns, or of some.

    `gaps` lets values be missing.
    """
    from pandera.pandas import Check, Column, DataFrameSchema

    target = use_case.target
    limits = [(f.column, f.low, f.high, f.unit) for f in use_case.features]
    if not target.labels:
        limits.append((target.column, target.low, target.high, target.unit))
    rules = {
        column: Column(
            float,
            Check.in_range(low, high, error=f"must be from {low:g} to {high:g} {unit}"),
            coerce=True,
            nullable=gaps,
        )
        for column, low, high, unit in limits
    }
    if target.labels:
        allowed = f"must be one of {', '.join(target.labels)}"
        rules[target.column] = Column(None, Check.isin(target.labels, error=allowed), nullable=gaps)
    checked = columns or rules
    return DataFrameSchema(
        {column: rule for column, rule in rules.items() if column in checked},
        checks=[
            # Row by row: what misses a value is told of by that.
            Check(
                lambda table, rule=rule: (
                    rule.holds(table) | table[list(rule.columns)].isna().any(axis=1)
                ),
                error=rule.says,
            )
            for rule in use_case.rules
            if set(rule.columns) <= set(checked)
        ],
    )


def broken_rules(use_case: UseCase, frame: pd.DataFrame, schema: Any) -> pd.DataFrame:
    """Return a line for each broken rule of each row: column, index (of the row), value, rule."""
    from pandera.errors import SchemaErrors

    try:
        schema.validate(frame, lazy=True)
    except SchemaErrors as found:
        cases: pd.DataFrame = found.failure_cases
    else:
        return pd.DataFrame(columns=["column", "index", "value", "rule"])
    cases = cases[cases["index"].notna()].rename(columns={"failure_case": "value", "check": "rule"})
    for rule in use_case.rules:
        of_rule = cases["rule"] == rule.says
        # Told once, though pandera repeats it for every column; and not of a value that cannot be.
        alone = cases.loc[~of_rule & cases["column"].isin(rule.columns), "index"]
        once = (cases["column"] == rule.columns[0]) & ~cases["index"].isin(alone)
        cases = cases[~of_rule | once]
    return cases[["column", "index", "value", "rule"]]


def _violations(use_case: UseCase, frame: pd.DataFrame) -> list[str]:
    """Return one line for each value that breaks its rule: column, row, value and rule."""
    cases = broken_rules(use_case, frame, schema(use_case))
    cases = cases.drop_duplicates(["column", "index"])
    return [_violation(case) for case in cases.sort_values("index").itertuples()]


def _violation(case: Any) -> str:
    rule = "must be a number" if "coerce" in str(case.rule) else case.rule
    # Line 1 of the file is the header, and people count from one.
    return f"column {case.column}, line {int(case.index) + 2}: {case.value!r} {rule}"


def fields_and_target(use_case: UseCase, frame: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
    """Return the request fields, shape (n, fields) float64, and the target, shape (n,)."""
    X = frame[_columns(use_case)].astype(float).set_axis(list(use_case.fields), axis=1)
    target = frame[use_case.target.column]
    if use_case.target.labels:
        numbers = {label: number for number, label in enumerate(use_case.target.labels)}
        return X, target.map(numbers).to_numpy(dtype=np.int64)
    return X, target.to_numpy(dtype=float)


def split(use_case: UseCase, frame: pd.DataFrame) -> Split:
    """Set 20 % aside, seeded; stratified for a classification; count rows on both sides.

    Raises `DataError` where there are too few rows to do this and to cross-validate.
    """
    X, y = fields_and_target(use_case, frame)
    _check_enough(use_case, y)
    train, test = train_test_split(
        np.arange(len(y)),
        test_size=TEST_SHARE,
        random_state=SEED,
        stratify=y if use_case.is_classification else None,
    )
    return parted(use_case, X, y, train, test)


def parted(
    use_case: UseCase, X: pd.DataFrame, y: np.ndarray, train: np.ndarray, test: np.ndarray
) -> Split:
    """Return the rows at the positions `train` and `test` as a split."""
    X_train, X_test, y_train, y_test = X.iloc[train], X.iloc[test], y[train], y[test]
    # Adding zero turns -0.0, which equals 0.0, into the same bytes.
    seen = {row.tobytes() for row in np.column_stack([X_train, y_train]) + 0.0}
    shared = sum(row.tobytes() in seen for row in np.column_stack([X_test, y_test]) + 0.0)
    test_rows = X_test.assign(**{use_case.target.name: y_test})
    return Split(X_train, X_test, y_train, y_test, shared, fingerprint(test_rows))


def _check_enough(use_case: UseCase, y: np.ndarray) -> None:
    labels = use_case.target.labels
    counts = {f" of {label}": int((y == number).sum()) for number, label in enumerate(labels)}
    for of_which, count in (counts or {"": len(y)}).items():
        if count < FEWEST_ROWS:
            raise DataError(
                f"{use_case.name} has {count} complete rows{of_which}: too few to learn from "
                "and to be measured on",
                f"add rows: at least {FEWEST_ROWS}{' of each class' if labels else ''} are needed",
            )


def fingerprint(frame: pd.DataFrame) -> str:
    """Return a SHA-256 over every value of every column, the same for any order of the rows.

    Columns are taken by name. Numbers count by value (1 equals 1.0, and -0.0 equals 0.0), texts
    by their UTF-8 bytes.
    """
    names = sorted(frame.columns)
    parts = []
    for name in names:
        column = frame[name]
        if pd.api.types.is_numeric_dtype(column):
            values = column.to_numpy(dtype=np.float64) + 0.0
        else:
            values = np.array([str(value).encode() for value in column])
        parts.append(values.view(np.uint8).reshape(len(frame), -1))
    rows = np.ascontiguousarray(np.hstack(parts))
    as_one_value = rows.view(np.dtype((np.void, rows.shape[1]))).ravel()
    # Each column with its width: "ab" and "c" must not count as "a" and "bc".
    columns = [f"{name}:{part.shape[1]}" for name, part in zip(names, parts, strict=True)]
    digest = hashlib.sha256("\x1f".join(columns).encode())
    digest.update(np.sort(as_one_value).tobytes())
    return digest.hexdigest()

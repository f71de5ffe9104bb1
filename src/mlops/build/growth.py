"""Growth: what a training learns from when rows have come to the data file since.

The data file stays what it is, and is the reference. Rows that came are put behind it, in the order
in which they were found, each once: a row that is there already is left out (all fields and the
target are equal, or the use case's key is). So the reference are the first rows of the grown table,
and their number is all that must be known to part it again.

A row that came is held out if the hash of its fields says so, of which it says a fifth, unless its
fields lie on one side already: then it goes there. So no row ever changes sides as the table grows,
rows of equal fields lie together, and what was held out of one training is new to all.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from mlops.build.data import (
    Split,
    Table,
    broken_rules,
    fields_and_target,
    fingerprint,
    parted,
    schema,
    split,
)
from mlops.usecase import TEST_SHARE, UseCase


@dataclasses.dataclass(frozen=True, slots=True)
class Batch:
    """Rows that came, in columns of the data file, and what brought them."""

    name: str
    frame: pd.DataFrame


@dataclasses.dataclass(frozen=True, slots=True)
class Lesson:
    """What a training learns from: a table, how it is parted, and how it came about.

    `stated` goes into the bundle, since it decides what is learnt; `told` (why, since when) into
    the run and the bundle's provenance. A table that did not grow has neither.
    """

    table: Table
    parts: Split
    stated: Mapping[str, object] = dataclasses.field(default_factory=dict)
    told: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class Grown:
    """A reference with the rows behind it that came.

    `taken` counts them by what brought them, `known` those left out because they were there
    already, `broken` those that break a rule of the use case or lack a value.
    """

    frame: pd.DataFrame
    taken: Mapping[str, int]
    known: int
    broken: int


def grow(use_case: UseCase, reference: pd.DataFrame, batches: Sequence[Batch]) -> Grown:
    """Put rows that came behind a reference."""
    parts, taken, broken = [reference], dict.fromkeys((b.name for b in batches), 0), 0
    came_from = []
    for batch in batches:
        sound = _sound(use_case, batch.frame)
        broken += len(batch.frame) - len(sound)
        parts.append(_completed(use_case, sound, reference))
        came_from += [batch.name] * len(sound)
    frame = pd.concat(parts, ignore_index=True) if came_from else reference
    again = _repeated(use_case, frame)
    again[: len(reference)] = False  # the data file stays what it is
    for name, repeated in zip(came_from, again[len(reference) :], strict=True):
        taken[name] += not repeated
    return Grown(frame[~again].reset_index(drop=True), taken, int(again.sum()), broken)


def lesson_of(
    use_case: UseCase, reference: Table, grown: Grown, *, policy: str, weight: float
) -> Lesson:
    """Return what is learnt from a reference that grew; from one that did not, as ever."""
    came = len(grown.frame) - len(reference.frame)
    if not came:
        return Lesson(reference, split(use_case, reference.frame))
    parts = split_grown(use_case, grown.frame, len(reference.frame))
    if weight != 1:
        came_to_train = parts.X_train.index.to_numpy() >= len(reference.frame)
        weights = np.where(came_to_train, float(weight), 1.0)
        parts = dataclasses.replace(parts, weights=weights)
    brought = ", ".join(f"{rows:,} of {name}" for name, rows in grown.taken.items() if rows)
    made = fingerprint(grown.frame)
    table = dataclasses.replace(
        reference,
        frame=grown.frame,
        fingerprint=made,
        origin=f"{reference.origin}; and {came:,} rows that came: {brought}",
    )
    stated = {
        "reference_fingerprint": reference.fingerprint,
        "rows_reference": len(reference.frame),
        "rows_came": came,
        "policy": policy,
        "new_row_weight": weight,
    }
    return Lesson(table, parts, stated)


def counted(rows: pd.DataFrame, reference_rows: int, weight: float) -> np.ndarray:
    """Return which rows to measure on where one that came counts `weight` times, shape (n,).

    So many of the more numerous kind are left out, drawn by their fields, that the rest count so:
    a model that was told to heed what came is not held to what was.
    """
    came = rows.index.to_numpy() >= reference_rows
    keep = np.where(came, min(weight, 1.0), min(1 / weight, 1.0))
    return np.array(
        [
            _below(mark, share, b"counted")
            for mark, share in zip(field_marks(rows), keep, strict=True)
        ],
        dtype=bool,
    )


def split_grown(use_case: UseCase, frame: pd.DataFrame, reference_rows: int) -> Split:
    """Part a grown table: its first rows as the reference was, the others by their fields."""
    old = split(use_case, frame.iloc[:reference_rows])
    X, y = fields_and_target(use_case, frame)
    marks = field_marks(X)
    learnt, held_out = old.X_train.index.to_numpy(), old.X_test.index.to_numpy()
    known_learnt = {marks[at] for at in learnt}
    known_held_out = {marks[at] for at in held_out} - known_learnt
    came = np.arange(reference_rows, len(frame))
    aside = np.array(
        [
            marks[at] in known_held_out or (marks[at] not in known_learnt and _drawn(marks[at]))
            for at in came
        ],
        dtype=bool,
    )
    return parted(
        use_case,
        X,
        y,
        np.concatenate([learnt, came[~aside]]),
        np.concatenate([held_out, came[aside]]),
    )


def field_marks(X: pd.DataFrame) -> list[bytes]:
    """Return the bytes of each row's fields, shape (n, fields): equal for equal numbers."""
    values = np.ascontiguousarray(X.to_numpy(dtype=np.float64) + 0.0)  # -0.0 equals 0.0
    return [row.tobytes() for row in values]


def _drawn(mark: bytes) -> bool:
    """Whether a row is held out: a fifth of all, and the same ones for ever."""
    return _below(mark, TEST_SHARE)


def _below(mark: bytes, share: float, salt: bytes = b"") -> bool:
    """Whether a row is among this share of all, always the same ones for a salt."""
    digest = hashlib.blake2b(mark, digest_size=8, salt=salt).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def _repeated(use_case: UseCase, frame: pd.DataFrame) -> np.ndarray:
    """Return which rows were there before: under their key, or in all fields and the target."""
    again = frame.duplicated(_columns(use_case))
    key = list(use_case.key)
    if key and set(key) <= set(frame.columns):
        again |= frame.duplicated(key) & frame[key].notna().all(axis=1)
    return again.to_numpy().copy()


def _columns(use_case: UseCase) -> list[str]:
    return [*(feature.column for feature in use_case.features), use_case.target.column]


def _sound(use_case: UseCase, frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that lack no value and break no rule."""
    whole = frame.dropna(subset=_columns(use_case)).reset_index(drop=True)
    if whole.empty:
        return whole
    broken = broken_rules(use_case, whole, schema(use_case))["index"].unique()
    return whole.drop(index=[int(at) for at in broken]).reset_index(drop=True)


def _completed(use_case: UseCase, frame: pd.DataFrame, reference: pd.DataFrame) -> pd.DataFrame:
    """Return rows in the reference's columns and types; what nobody knows is missing."""
    columns = {}
    ratios = {ratio.name: ratio for ratio in use_case.derived}
    for name in reference.columns:
        if name in frame:
            column = frame[name]
        elif name in ratios:
            below = frame[ratios[name].denominator].astype(float)
            above = frame[ratios[name].numerator].astype(float)
            column = above / below.where(below != 0, 1.0)
        else:
            column = pd.Series(np.nan, frame.index)
        numeric = pd.api.types.is_numeric_dtype(reference[name])
        columns[name] = pd.to_numeric(column).astype(float) if numeric else column
    return pd.DataFrame(columns)

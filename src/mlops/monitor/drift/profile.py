"""The profile of the training rows, and counting other rows in the same bins.

A window of traffic is one vector of counts, so windows add up: hours to a week, pages to a file of
any length. Each numeric column has up to 108 half-open bins `(edge, next edge]` between values that
training saw at its percentiles, one below the least and one above the greatest. A column of few
whole numbers that repeat is categorical: a bin for each value, and one for values that are new.

What columns have to do with each other is counted too. Each column gives two yes-or-no marks a row:
`high`, above the median of training, and `outer`, outside its quartiles. For every two columns the
rows are counted in which their marks agree (the quadrant test of Blomqvist 1950; `outer` sees what
a correlation does not).

Everything that is not a finite number counts as missing.
"""

from __future__ import annotations

import dataclasses
import itertools
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from mlops.errors import DataError

PERCENTILES = np.array([0.001, 0.002, 0.005, *(np.arange(1, 100) / 100), 0.995, 0.998, 0.999])
"""Closer at the ends, where bins can be wide: a tail that moves is to be measured, not guessed."""
MOST_CATEGORIES = 20
LEAST_PER_CATEGORY = 5
ROWS_AT_ONCE = 1 << 17
"""A column of so many rows is sorted within a processor's cache."""
MARKS = (("high", "high"), ("outer", "outer"), ("high", "outer"), ("outer", "high"))


@dataclasses.dataclass(frozen=True, slots=True)
class Column:
    """A column as training saw it.

    `edges` are the bounds of bins, rising, or the values of a categorical column; `counts` has one
    place more: for what is above the last edge, or for new values. `exact` says that the edges are
    all values there were. `quartiles` cut the marks.
    """

    name: str
    categorical: bool
    exact: bool
    edges: np.ndarray
    counts: np.ndarray
    quartiles: np.ndarray
    missing: int
    mean: float
    std: float

    @property
    def n(self) -> int:
        """Number of training rows that had a value."""
        return int(self.counts.sum())


@dataclasses.dataclass(slots=True)
class Counts:
    """Rows counted in the bins of a profile; `a += b` adds another window of the same profile.

    `vector` holds, column after column, the bins and then the missing values; then for every two
    columns the rows that had both, and those in which their marks agreed, one for each of `MARKS`.
    `sums`, `low`, `high`: the sum, least and greatest value of each column.
    """

    rows: int
    vector: np.ndarray
    sums: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def __iadd__(self, other: Counts) -> Self:
        self.rows += other.rows
        self.vector += other.vector
        self.sums += other.sums
        self.low = np.minimum(self.low, other.low)
        self.high = np.maximum(self.high, other.high)
        return self

    def pack(self) -> bytes:
        """Return all but `rows` as bytes: most counts of an hour are small."""
        floats = np.concatenate([self.sums, self.low, self.high]).astype("<f8")
        return zlib.compress(self.vector.astype("<i8").tobytes() + floats.tobytes(), 1)


class Profile:
    """All columns of the training rows, and the agreements of their marks."""

    def __init__(self, columns: Sequence[Column], agreements: np.ndarray) -> None:
        self.columns = tuple(columns)
        self.names = tuple(column.name for column in columns)
        self.agreements = agreements
        """int64 [pairs, 5]: rows that had both, then those that agreed in each of `MARKS`."""
        self.pairs = tuple(itertools.combinations(range(len(columns)), 2))
        ends = np.cumsum([len(column.counts) + 1 for column in columns])
        self.places = tuple(map(slice, [0, *ends[:-1].tolist()], ends.tolist()))
        """Where each column's bins and missing count stand in `Counts.vector`."""
        self.size = int(ends[-1]) + 5 * len(self.pairs)

    # -- learning and keeping -------------------------------------------------------------------

    @classmethod
    def learn(
        cls, names: Sequence[str], values: np.ndarray, labels: Mapping[str, int] | None = None
    ) -> Profile:
        """Learn bins from training rows, `values` float64 [n, names], and count them.

        `labels` names columns that hold numbers of classes, and how many classes there are.
        """
        labels = labels or {}
        columns = [
            _learn(name, column[np.isfinite(column)], labels.get(name))
            for name, column in zip(names, values.T, strict=True)
        ]
        pairs = len(columns) * (len(columns) - 1) // 2
        bare = cls(columns, np.zeros((pairs, 5), dtype=np.int64))
        counted = bare.count(values)
        learnt = [
            dataclasses.replace(
                column, counts=counted.vector[place][:-1], missing=int(counted.vector[place][-1])
            )
            for column, place in zip(columns, bare.places, strict=True)
        ]
        return cls(learnt, bare.agreed(counted.vector))

    def as_documents(self) -> dict[str, dict[str, Any]]:
        """Return what is sealed of each column, as JSON; `of_documents` reads it back."""
        documents: dict[str, dict[str, Any]] = {
            column.name: {
                "categorical": column.categorical,
                "exact": column.exact,
                "edges": column.edges.tolist(),
                "counts": column.counts.tolist(),
                "quartiles": column.quartiles.tolist(),
                "missing": column.missing,
                "mean": column.mean,
                "std": column.std,
                "agreements": {},
            }
            for column in self.columns
        }
        for (i, j), agreed in zip(self.pairs, self.agreements.tolist(), strict=True):
            documents[self.names[j]]["agreements"][self.names[i]] = agreed
        return documents

    @classmethod
    def of_documents(cls, documents: Mapping[str, Mapping[str, Any]]) -> Profile:
        """Read a sealed profile. Raises `DataError` if it is none."""
        try:
            ordered = sorted(documents.items(), key=lambda item: len(item[1]["agreements"]))
            columns = [
                Column(
                    name=name,
                    categorical=bool(sealed["categorical"]),
                    exact=bool(sealed["exact"]),
                    edges=np.array(sealed["edges"], dtype=float),
                    counts=np.array(sealed["counts"], dtype=np.int64),
                    quartiles=np.array(sealed["quartiles"], dtype=float),
                    missing=int(sealed["missing"]),
                    mean=float(sealed["mean"]),
                    std=float(sealed["std"]),
                )
                for name, sealed in ordered
            ]
            agreements = [
                documents[second]["agreements"][first]
                for first, second in itertools.combinations([name for name, _ in ordered], 2)
            ]
            return cls(columns, np.array(agreements, dtype=np.int64).reshape(-1, 5))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"no profile that rows can be counted by: {error!r}") from None

    # -- counting -------------------------------------------------------------------------------

    def nothing(self) -> Counts:
        """Return the counts of no rows."""
        m = len(self.columns)
        return Counts(
            0,
            np.zeros(self.size, dtype=np.int64),
            np.zeros(m),
            np.full(m, np.inf),
            np.full(m, -np.inf),
        )

    def count(self, values: np.ndarray) -> Counts:
        """Count rows: float64 [n, columns], in the order of `names`."""
        total = self.nothing()
        for start in range(0, len(values), ROWS_AT_ONCE):
            self._add(total, values[start : start + ROWS_AT_ONCE])
        return total

    def agreed(self, vector: np.ndarray) -> np.ndarray:
        """Return the last part of a vector as [..., pairs, 5]: see `agreements`."""
        part = vector[..., self.size - 5 * len(self.pairs) :]
        return part.reshape(*vector.shape[:-1], len(self.pairs), 5)

    def unpack(self, rows: int, packed: bytes) -> Counts:
        """Return what `Counts.pack` packed. Raises `DataError` if it was of another profile."""
        content, m = zlib.decompress(packed), len(self.columns)
        if len(content) != 8 * (self.size + 3 * m):
            raise DataError("these rows were counted by another profile")
        vector = np.frombuffer(content, "<i8", self.size).astype(np.int64)
        floats = np.frombuffer(content, "<f8", 3 * m, 8 * self.size).reshape(3, m).copy()
        return Counts(rows, vector, *floats)

    def _add(self, total: Counts, values: np.ndarray) -> None:
        n = len(values)
        total.rows += n
        marks: dict[str, list[np.ndarray]] = {"valid": [], "high": [], "outer": []}
        for number, (column, place) in enumerate(zip(self.columns, self.places, strict=True)):
            one = np.ascontiguousarray(values[:, number])
            valid = np.isfinite(one)
            there = one if valid.all() else one[valid]
            # Sorted once, a column is counted by looking its few edges up: 5 times faster than
            # looking every value up among the edges.
            ordered = np.sort(there)
            total.vector[place] += _counts(column, ordered, n)
            if len(ordered):
                total.sums[number] += ordered.sum()
                total.low[number] = min(total.low[number], ordered[0])
                total.high[number] = max(total.high[number], ordered[-1])
            low, middle, high = column.quartiles
            marks["valid"].append(np.packbits(valid))
            marks["high"].append(np.packbits(one > middle))
            marks["outer"].append(np.packbits((one <= low) | (one > high)))
        self._count_agreements(self.agreed(total.vector), marks)

    def _count_agreements(self, agreed: np.ndarray, marks: Mapping[str, list[np.ndarray]]) -> None:
        valid = np.array(marks["valid"])
        for i in range(len(self.columns) - 1):
            both = valid[i] & valid[i + 1 :]
            rows = np.bitwise_count(both).sum(axis=1, dtype=np.int64)
            first = next(number for number, pair in enumerate(self.pairs) if pair[0] == i)
            mine = agreed[first : first + len(rows)]
            mine[:, 0] += rows
            for place, (ours, theirs) in enumerate(MARKS, 1):
                differ = (marks[ours][i] ^ np.array(marks[theirs][i + 1 :])) & both
                mine[:, place] += rows - np.bitwise_count(differ).sum(axis=1, dtype=np.int64)


def _counts(column: Column, ordered: np.ndarray, rows: int) -> np.ndarray:
    """Return the bins of sorted finite values, and how many of all `rows` are missing."""
    upto = np.searchsorted(ordered, column.edges, side="right")
    if column.categorical:
        found = upto - np.searchsorted(ordered, column.edges, side="left")
        return np.array([*found, len(ordered) - found.sum(), rows - len(ordered)])
    return np.diff(np.array([0, *upto, len(ordered), rows]))


def _learn(name: str, values: np.ndarray, labels: int | None) -> Column:
    if not len(values):
        raise DataError(
            f"column {name} has no value in the training rows", "leave it out of the use case"
        )
    ordered = np.sort(values)
    distinct, repeats = np.unique(ordered, return_counts=True)
    categorical = labels is not None or (
        1 < len(distinct) <= MOST_CATEGORIES
        and bool((distinct == np.round(distinct)).all())
        and int(repeats.min()) >= LEAST_PER_CATEGORY
    )
    if labels is not None:
        edges = np.arange(labels, dtype=float)
    elif categorical:
        edges = distinct
    else:
        # Values that were seen, not values between: then the tests are exact (see `statistics`).
        at = ordered[np.ceil(PERCENTILES * len(ordered)).astype(int) - 1]
        below = np.nextafter(ordered[0], -np.inf)
        inner = distinct if len(distinct) <= len(PERCENTILES) else at
        edges = np.unique([below, *inner, ordered[-1]])
    quarters = np.ceil(np.array([0.25, 0.5, 0.75]) * len(ordered)).astype(int) - 1
    return Column(
        name=name,
        categorical=categorical,
        exact=len(distinct) <= len(PERCENTILES),
        edges=edges,
        counts=np.zeros(len(edges) + 1, dtype=np.int64),
        quartiles=ordered[quarters],
        missing=0,
        mean=float(ordered.mean()),
        std=float(ordered.std()),
    )

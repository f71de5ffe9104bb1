"""What changed between two tables: rows new, gone and changed, and columns that shifted.

Equal rows are taken out first, as multisets. Of the rest, a row that went and one that came are one
row *changed* if a key says so. Without a key they are if they agree exactly in more than half of
the columns, and so much agreement is no coincidence: the expected number of pairs that would agree
as much by chance, among all that could be paired, is below `COINCIDENCES` (the frequencies of the
values tell; as in Fellegi and Sunter, "A Theory for Record Linkage", JASA 64 (1969) 1183-1210).
What agrees in more than half of the columns agrees in all of at least one of a few blocks of
columns, so only rows that share a block are compared.

A column *shifted* if the values that came are not like those before: Kolmogorov-Smirnov for
numbers, chi-squared for texts, at 1 % over all columns together (Holm, "A Simple Sequentially
Rejective Multiple Test Procedure", 1979), and the whole column moved by at least `LEAST_EFFECT`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pandas as pd

from mlops.errors import UsageError

COINCIDENCES = 0.1
LARGEST_BUCKET = 50
"""Pairs of rows that share a block of columns; where more do, another block must tell."""
SIGNIFICANCE = 0.01
LEAST_EFFECT = 0.01


@dataclasses.dataclass(frozen=True, slots=True)
class ColumnChange:
    """A column before and after. `before` and `after` are means, None for texts.

    `effect` is the greatest difference of the two distribution functions (for texts, half the sum
    of the differences in share), from 0 to 1; `p` is adjusted for the number of columns.
    """

    column: str
    changed_cells: int
    before: float | None
    after: float | None
    effect: float
    p: float
    shifted: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Difference:
    """Rows that are the same, new, gone and changed, and every column's change."""

    rows_before: int
    rows_after: int
    same: int
    new: int
    gone: int
    changed: int
    matched_by: str
    columns_new: tuple[str, ...]
    columns_gone: tuple[str, ...]
    columns: tuple[ColumnChange, ...]

    @property
    def summary(self) -> str:
        """Say it in one line: "1,204 rows new, 12 changed, AveRooms shifted"."""
        counts = {"new": self.new, "gone": self.gone, "changed": self.changed}
        parts = [f"{count:,} {what}" for what, count in counts.items() if count]
        if parts:
            count, rest = parts[0].split(" ", 1)
            parts[0] = f"{count} row{'s' * (count != '1')} {rest}"
        parts += [f"column {name} new" for name in self.columns_new]
        parts += [f"column {name} gone" for name in self.columns_gone]
        parts += [f"{one.column} shifted" for one in self.columns if one.shifted]
        return ", ".join(parts) or "no difference"


def difference(before: pd.DataFrame, after: pd.DataFrame, key: Sequence[str] = ()) -> Difference:
    """Compare two tables in the columns that both have; the order of rows does not matter.

    Raises `UsageError` for a key that a table lacks, or that names two of its rows.
    """
    names = [name for name in before.columns if name in after.columns]
    if not names:
        raise UsageError("the two tables have no column in common", "compare tables of one kind")
    for name in key:
        if name not in names:
            raise UsageError(f"the key {name!r} is no column of both", f"both have: {names}")
    a, b = _plain(before[names], after[names])
    left, right = _without_equal_rows(a, b)
    pairs = _by_key(left, right, key) if key else _by_agreement(a, b, left, right)
    old, new = left.iloc[pairs[0]], right.iloc[pairs[1]]
    went = np.setdiff1d(np.arange(len(left)), pairs[0])
    came = np.setdiff1d(np.arange(len(right)), pairs[1])
    return Difference(
        rows_before=len(a),
        rows_after=len(b),
        same=len(a) - len(left),
        new=len(came),
        gone=len(went),
        changed=len(old),
        matched_by=f"the key {', '.join(key)}"
        if key
        else "agreement in more than half of the columns, beyond coincidence",
        columns_new=tuple(str(name) for name in after.columns if name not in names),
        columns_gone=tuple(str(name) for name in before.columns if name not in names),
        columns=_columns(a, b, old, new, left.iloc[went], right.iloc[came]),
    )


def _plain(a: pd.DataFrame, b: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return both as numbers where both have numbers, else as texts; -0.0 counts as 0.0."""
    columns: dict[str, list[pd.Series[float] | pd.Series[str]]] = {}
    for name in a.columns:
        numeric = all(pd.api.types.is_numeric_dtype(frame[name]) for frame in (a, b))
        columns[name] = [
            frame[name].astype(float) + 0.0 if numeric else frame[name].astype("str").fillna("")
            for frame in (a, b)
        ]
    first, second = (
        pd.DataFrame({name: both[side] for name, both in columns.items()}) for side in (0, 1)
    )
    return first.reset_index(drop=True), second.reset_index(drop=True)


def _without_equal_rows(a: pd.DataFrame, b: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return what is left of both when each row of one has cancelled an equal row of the other."""
    marks = []
    for frame in (a, b):
        row = pd.Series(_hash(frame))
        times = row.groupby(row).cumcount()
        marks.append(_hash(pd.DataFrame({"row": row, "times": times})))
    return a[~np.isin(marks[0], marks[1])], b[~np.isin(marks[1], marks[0])]


def _by_key(
    left: pd.DataFrame, right: pd.DataFrame, key: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    marks = [pd.Index(_hash(frame[list(key)])) for frame in (left, right)]
    for mark in marks:
        if mark.has_duplicates:
            raise UsageError(
                f"the key {', '.join(key)} names {mark.duplicated().sum():,} rows a second time",
                "add a column to it, or leave it out",
            )
    at = marks[1].get_indexer(marks[0])
    return np.flatnonzero(at >= 0), at[at >= 0]


def _by_agreement(
    a: pd.DataFrame, b: pd.DataFrame, left: pd.DataFrame, right: pd.DataFrame
) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions in `left` and `right` of rows that are one row changed."""
    nothing = np.empty(0, dtype=int), np.empty(0, dtype=int)
    width = a.shape[1]
    needed = width // 2 + 1
    if left.empty or right.empty:
        return nothing
    chance = np.array([_chance_to_agree(a[name], b[name]) for name in a.columns])
    # The most telling columns go to different blocks.
    blocks = [
        np.argsort(chance)[start :: width - needed + 1] for start in range(width - needed + 1)
    ]
    found = []
    for block in blocks:
        candidates = _sharing(_hash(left.iloc[:, block]), _hash(right.iloc[:, block]))
        found.append(candidates[0] * len(right) + candidates[1])
    pairs = np.unique(np.concatenate(found))
    i, j = pairs // len(right), pairs % len(right)
    agree = np.column_stack(
        [_equal(left[name].to_numpy()[i], right[name].to_numpy()[j]) for name in a.columns]
    )
    count = agree.sum(axis=1)
    log_expected = np.log(len(left)) + np.log(len(right)) + agree @ np.log(chance)
    kept = (count >= needed) & (log_expected < np.log(COINCIDENCES))
    order = np.lexsort((log_expected[kept], -count[kept]))
    used_i, used_j, chosen = set(), set(), []
    for one, other in zip(i[kept][order].tolist(), j[kept][order].tolist(), strict=True):
        if one not in used_i and other not in used_j:
            used_i.add(one)
            used_j.add(other)
            chosen.append((one, other))
    if not chosen:
        return nothing
    first, second = np.array(chosen).T
    return first, second


def _sharing(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions of all pairs with the same mark, of marks that few share."""
    i = pd.DataFrame({"mark": left, "i": np.arange(len(left))})
    j = pd.DataFrame({"mark": right, "j": np.arange(len(right))})
    pairs = i["mark"].value_counts().mul(j["mark"].value_counts(), fill_value=0)
    few = pairs[(pairs > 0) & (pairs <= LARGEST_BUCKET)].index
    both = i[i["mark"].isin(few)].merge(j, on="mark")
    return both["i"].to_numpy(), both["j"].to_numpy()


def _chance_to_agree(a: pd.Series[float], b: pd.Series[float]) -> float:
    """Return how probable it is that a row of each, picked at random, have the same value."""
    shares = a.value_counts(normalize=True, dropna=False)
    others = b.value_counts(normalize=True, dropna=False)
    together = float(shares.mul(others, fill_value=0).sum())
    return min(max(together, 1 / (len(a) * len(b))), 1.0)


def _columns(
    a: pd.DataFrame,
    b: pd.DataFrame,
    old: pd.DataFrame,
    new: pd.DataFrame,
    gone: pd.DataFrame,
    came: pd.DataFrame,
) -> tuple[ColumnChange, ...]:
    cells, effects, ps = [], [], []
    for name in a.columns:
        differs = ~_equal(old[name].to_numpy(), new[name].to_numpy())
        arrived = np.concatenate([came[name].to_numpy(), new[name].to_numpy()[differs]])
        # Rows that only changed are compared with what they were, others with the whole table:
        # the changed ones may be of one kind without anything having moved.
        before = a[name].to_numpy() if len(came) else old[name].to_numpy()[differs]
        if not len(arrived):
            before, arrived = a[name].to_numpy(), gone[name].to_numpy()
        cells.append(int(differs.sum()))
        ps.append(_test(before, arrived))
        effects.append(_effect(a[name].to_numpy(), b[name].to_numpy()))
    adjusted = holm(np.array(ps))
    return tuple(
        ColumnChange(
            str(name),
            cells[at],
            _mean(a[name]),
            _mean(b[name]),
            effects[at],
            float(adjusted[at]),
            bool(adjusted[at] < SIGNIFICANCE and effects[at] >= LEAST_EFFECT),
        )
        for at, name in enumerate(a.columns)
    )


def holm(p: np.ndarray) -> np.ndarray:
    """Return p-values adjusted so that rejecting those below alpha errs at all with alpha."""
    order = np.argsort(p)
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def _test(before: np.ndarray, arrived: np.ndarray) -> float:
    """Return the p-value of "both are drawn alike"; 1 where there is nothing to test."""
    from scipy import stats

    if before.dtype.kind == "f":
        before, arrived = before[np.isfinite(before)], arrived[np.isfinite(arrived)]
    if not len(before) or not len(arrived):
        return 1.0
    if before.dtype.kind == "f":
        return float(stats.ks_2samp(before, arrived, method="asymp").pvalue)
    counts = _counts(before, arrived)
    return 1.0 if len(counts) < 2 else float(stats.chi2_contingency(counts).pvalue)


def _effect(a: np.ndarray, b: np.ndarray) -> float:
    if a.dtype.kind == "f":
        a, b = np.sort(a[np.isfinite(a)]), np.sort(b[np.isfinite(b)])
        if not len(a) or not len(b):
            return 0.0
        at = np.concatenate([a, b])
        shares = [np.searchsorted(side, at, side="right") / len(side) for side in (a, b)]
        return float(np.abs(shares[0] - shares[1]).max())
    counts = _counts(a, b)
    if not counts.sum(axis=0).all():
        return 0.0
    return float(np.abs(np.subtract(*(counts / counts.sum(axis=0)).T)).sum() / 2)


def _counts(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return how often each text occurs in both, shape (texts, 2)."""
    both = [pd.Series(side).value_counts() for side in (a, b)]
    return pd.concat(both, axis=1).fillna(0).to_numpy()


def _mean(column: pd.Series[float]) -> float | None:
    return float(column.mean()) if column.dtype.kind == "f" and column.notna().any() else None


def _equal(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Compare cell by cell; a missing value equals a missing value."""
    same = np.asarray(a == b, dtype=bool)
    if a.dtype.kind == "f":
        same |= np.isnan(a) & np.isnan(b)
    return same


def _hash(frame: pd.DataFrame) -> np.ndarray:
    return pd.util.hash_pandas_object(frame, index=False).to_numpy()

"""Counts of a window against the profile of training → findings, at what one look may spend.

Each column is asked several yes-or-no questions: is a value at most the 2nd, 5th, 10th … 98th
percentile of training, below its least, above its greatest, missing, one of its categories, a new
one? Pairs of columns are asked whether their marks agree. Each question is an exact test; the p of
a column is its smallest times the number of its questions, and it is an alarm where that is at most
`alpha_per_look` divided by the number of columns, the pairs together counting as one more
(Bonferroni, twice: no assumption on how they hang together).

Not every silence is an "ok": where a shift by one standard deviation would not have been seen
either, the answer is "cannot tell".
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mlops.monitor.drift import statistics
from mlops.monitor.drift.profile import MARKS, Column, Counts, Profile
from mlops.records import Finding, Verdict

KIND = "drift"
TRAFFIC = "traffic"
"""The finding about all columns together."""
PAIRS = "pairs of columns"
CUTS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
TENTHS = tuple(number / 10 for number in range(1, 10))
ONE_DEVIATION = 0.8413
"""Share below the median after a shift by one standard deviation: the normal distribution at 1."""
MOST_ROWS_NEEDED = 4_096
ORDINARY = (0.05, 0.95)
"""A mark that nearly every row has, or none, says nothing about a pair but what its column says."""
BARS = 24

Labels = Mapping[str, Sequence[str]]


class Asked(NamedTuple):
    """Questions to a column: k of n rows of the window, K of N of training; arrays [..., question].

    `what` names each: a number is "at most this edge", text something else.
    """

    what: tuple[int | str, ...]
    k: np.ndarray
    n: np.ndarray
    reference_k: np.ndarray
    reference_n: np.ndarray

    def p(self) -> np.ndarray:
        """Return the p of each question."""
        return statistics.two_sided_p(self.k, self.n, self.reference_k, self.reference_n)


def cuts(column: Column, shares: Sequence[float] = CUTS) -> list[int]:
    """Return the edges of a numeric column that lie nearest to these shares of training."""
    below = np.cumsum(column.counts[:-1]) / column.n
    return sorted({int(np.abs(below - share).argmin()) for share in shares})


def ask(column: Column, counts: np.ndarray) -> Asked:
    """Ask a column. `counts` [..., bins + 1]: its part of a window's vector."""
    bins, missing = counts[..., :-1], counts[..., -1:]
    n = bins.sum(axis=-1, keepdims=True)
    what: list[int | str]
    if column.categorical:
        what = [f"category {number}" for number in range(len(column.edges))]
        if column.edges.size:
            what.append("new")
        k, reference_k = bins, column.counts
    else:
        places = sorted({0, *cuts(column), len(column.edges) - 1})
        what = [*places]
        k = np.cumsum(bins, axis=-1)[..., places]
        reference_k = np.cumsum(column.counts)[places]
    rows = n + missing
    return Asked(
        (*what, "missing"),
        np.concatenate([k, missing], axis=-1),
        np.concatenate([np.broadcast_to(n, k.shape), rows], axis=-1),
        np.array([*reference_k, column.missing]),
        np.array([*[column.n] * len(what), column.n + column.missing]),
    )


def ask_pairs(profile: Profile, vector: np.ndarray) -> Asked:
    """Ask all pairs of columns whose marks say anything. `vector` [..., profile.size]."""
    ordinary = [_ordinary_marks(column) for column in profile.columns]
    asked = [
        (pair, place)
        for pair, (i, j) in enumerate(profile.pairs)
        for place, (first, second) in enumerate(MARKS, 1)
        if first in ordinary[i] and second in ordinary[j]
    ]
    pairs = np.array([pair for pair, _ in asked], dtype=int)
    places = np.array([place for _, place in asked], dtype=int)
    window = profile.agreed(vector)
    return Asked(
        tuple(
            " ".join((str(profile.pairs[pair][0]), str(profile.pairs[pair][1]), str(place)))
            for pair, place in asked
        ),
        window[..., pairs, places],
        window[..., pairs, 0],
        profile.agreements[pairs, places],
        profile.agreements[pairs, 0],
    )


def p_values(profile: Profile, vector: np.ndarray) -> np.ndarray:
    """Return the p of each column and, last, of the pairs, each for all of its questions.

    `vector` [..., profile.size] gives [..., columns + 1].
    """
    asked = [ask(c, vector[..., at]) for c, at in zip(profile.columns, profile.places, strict=True)]
    asked.append(ask_pairs(profile, vector))
    return np.stack([_smallest(one.p()) for one in asked], axis=-1)


def threshold(profile: Profile, alpha_per_look: float) -> float:
    """Return what the p of a column, or of the pairs, may be at most to be an alarm."""
    return alpha_per_look / (len(profile.columns) + 1)


def assess(
    profile: Profile, counts: Counts, alpha_per_look: float, labels: Labels | None = None
) -> list[Finding]:
    """Return the findings: of the traffic as a whole, of each column, of the pairs of columns.

    `labels` names the classes of columns that hold their numbers.
    """
    limit = threshold(profile, alpha_per_look)
    found = []
    for number, (column, place) in enumerate(zip(profile.columns, profile.places, strict=True)):
        part = counts.vector[place]
        found.append(
            _of_column(column, part, counts, number, limit, (labels or {}).get(column.name))
        )
    if len(profile.columns) > 1:
        found.append(_of_pairs(profile, counts, limit))
    return [_of_traffic(found, counts.rows, limit, alpha_per_look), *found]


def cannot_tell(why: str) -> list[Finding]:
    """Return the findings of a look that had nothing to look at."""
    return [Finding(KIND, TRAFFIC, "cannot tell", why, {"rows": 0})]


def histogram(column: Column, counts: np.ndarray, labels: Sequence[str] | None) -> dict[str, Any]:
    """Return the shares of training and window, to be drawn beside each other.

    Numeric: evenly wide bins between `bounds`, and first and last what is below and above them,
    values within a bin of the profile taken as evenly spread. Categorical: one for each of `values`
    and one for new ones.
    """
    bins = counts[:-1]
    if column.categorical:
        drawn = {"reference": column.counts, "window": bins}
        values = list(labels or (f"{value:g}" for value in column.edges))
        return {"values": [*values, "new"], **{k: _shares(v) for k, v in drawn.items()}}
    at = cuts(column, (0.01, 0.99))
    low, high = float(column.edges[at[0]]), float(column.edges[at[-1]])
    bounds = np.linspace(low, high, BARS + 1 if high > low else 1)
    drawn = {
        name: np.diff(
            [0.0, *np.interp(bounds, column.edges, np.cumsum(one)[:-1]), float(one.sum())]
        )
        for name, one in (("reference", column.counts), ("window", bins))
    }
    return {"bounds": bounds.tolist(), **{k: _shares(v) for k, v in drawn.items()}}


@functools.lru_cache(maxsize=1_024)
def rows_needed(reference_n: int, p: float) -> int | None:
    """Return from how many rows on a shift by one standard deviation has a p as small as this.

    Asked at the median alone, with the rows that such a shift moves on average. None if that many
    rows (4,096) are not enough, because training had so few.
    """
    n = np.arange(1, MOST_ROWS_NEEDED + 1)
    moved = np.ceil(ONE_DEVIATION * n)
    seen = statistics.two_sided_p(moved, n, np.array(reference_n // 2), reference_n) <= p
    unseen = np.flatnonzero(~seen)
    first = int(unseen[-1]) + 2 if len(unseen) else 1
    return first if first <= MOST_ROWS_NEEDED else None


def _smallest(p: np.ndarray) -> np.ndarray:
    """Return the smallest p of the questions (last axis), times their number, at most 1."""
    if not p.shape[-1]:
        return np.ones(p.shape[:-1])
    return np.asarray(np.minimum(1.0, p.min(axis=-1) * p.shape[-1]))


def _ordinary_marks(column: Column) -> set[str]:
    below = [
        _at_most(column, quartile) / column.n if column.n else 0.0 for quartile in column.quartiles
    ]
    shares = {"high": 1 - below[1], "outer": 1 - (below[2] - below[0])}
    return {mark for mark, share in shares.items() if ORDINARY[0] <= share <= ORDINARY[1]}


def _at_most(column: Column, value: float) -> float:
    """Return about how many training rows had at most this value."""
    return float(column.counts[: int(np.searchsorted(column.edges, value, side="right"))].sum())


def _of_column(
    column: Column,
    part: np.ndarray,
    counts: Counts,
    number: int,
    limit: float,
    labels: Sequence[str] | None,
) -> Finding:
    asked = ask(column, part)
    each = asked.p()
    p, worst = float(_smallest(each)), int(each.argmin())
    bins, n = part[:-1], int(part[:-1].sum())
    verdict = _verdict(p, limit, n, column.n, len(each))
    told = _told(column, asked, worst, labels)
    coarse = coarser(column)
    index = float(statistics.population_stability_index(bins @ coarse, column.counts @ coarse))
    numbers = {
        "rows": n,
        "missing": int(part[-1]),
        "outside": int(bins[-1]) if column.categorical else int(bins[0] + bins[-1]),
        "p": p,
        "threshold": limit,
        "question": told,
        "psi": _finite(index),
        "psi_by_chance": _finite(
            statistics.index_by_chance(int((column.counts @ coarse > 0).sum()), n, column.n)
        ),
        "wasserstein": None
        if column.categorical
        else _finite(
            statistics.wasserstein_distance(
                column, bins, float(counts.low[number]), float(counts.high[number])
            )
        ),
        "jensen_shannon": _finite(
            float(statistics.jensen_shannon_distance(bins @ coarse, column.counts @ coarse))
        ),
        "mean": _finite(counts.sums[number] / n) if n else None,
        "reference_mean": column.mean,
    }
    return Finding(
        KIND, column.name, verdict, _says(verdict, told, n, column.n, limit, len(each)), numbers
    )


def _of_pairs(profile: Profile, counts: Counts, limit: float) -> Finding:
    asked = ask_pairs(profile, counts.vector)
    each = asked.p()
    p, n = float(_smallest(each)), counts.rows
    reference_n = int(asked.reference_n.min()) if len(each) else 0
    if not len(each):
        return Finding(
            KIND, PAIRS, "cannot tell", "no two columns have two sides each", {"rows": n}
        )
    worst = int(each.argmin())
    i, j, place = map(int, str(asked.what[worst]).split())
    shares = (
        _share(asked.k[worst], asked.n[worst]),
        _share(asked.reference_k[worst], asked.reference_n[worst]),
    )
    first, second = (
        f"{profile.names[at]} {'above its median' if mark == 'high' else 'outside its quartiles'}"
        for at, mark in zip((i, j), MARKS[place - 1], strict=True)
    )
    told = (
        f"{first} and {second} go together in {shares[0]:.1%} of rows, "
        f"in {shares[1]:.1%} of training rows"
    )
    verdict = _verdict(p, limit, n, reference_n, len(each))
    numbers = {
        "rows": n,
        "p": p,
        "threshold": limit,
        "question": told,
        "columns": [profile.names[i], profile.names[j]],
        "agree": shares[0],
        "reference_agree": shares[1],
        "largest_change": float(
            np.abs(asked.k / np.maximum(1, asked.n) - asked.reference_k / asked.reference_n).max()
        ),
    }
    return Finding(
        KIND, PAIRS, verdict, _says(verdict, told, n, reference_n, limit, len(each)), numbers
    )


def _of_traffic(found: Sequence[Finding], rows: int, limit: float, alpha: float) -> Finding:
    by = {
        verdict: [one.subject for one in found if one.verdict == verdict]
        for verdict in ("alarm", "cannot tell")
    }
    numbers = {
        "rows": rows,
        "alpha_per_look": alpha,
        "threshold": limit,
        "alarms": by["alarm"],
        "cannot_tell": by["cannot tell"],
    }
    if by["alarm"]:
        says = f"{rows:,} rows differ from training in {', '.join(by['alarm'])}"
        return Finding(KIND, TRAFFIC, "alarm", says, numbers)
    if by["cannot tell"]:
        one = next(one for one in found if one.verdict == "cannot tell")
        return Finding(KIND, TRAFFIC, "cannot tell", one.says, numbers)
    says = f"{rows:,} rows look like training in {len(found)} respects"
    return Finding(KIND, TRAFFIC, "ok", says, numbers)


def _verdict(p: float, limit: float, n: int, reference_n: int, questions: int) -> Verdict:
    if p <= limit:
        return "alarm"
    needed = rows_needed(reference_n, limit / questions)
    return "ok" if needed is not None and n >= needed else "cannot tell"


def _says(
    verdict: Verdict, told: str, n: int, reference_n: int, limit: float, questions: int
) -> str:
    if verdict == "alarm":
        return told
    if verdict == "ok":
        return "as in training"
    needed = rows_needed(reference_n, limit / questions)
    if needed is None:
        return f"training had {reference_n:,} rows, too few to see a shift by a standard deviation"
    return f"{n:,} row{'s' * (n != 1)}; a shift by a standard deviation needs {needed:,} to be seen"


def _told(column: Column, asked: Asked, worst: int, labels: Sequence[str] | None) -> str:
    """Return what the question found, as a sentence's end."""
    what = asked.what[worst]
    k, n = int(asked.k[worst]), int(asked.n[worst])
    share, reference = _share(k, n), _share(asked.reference_k[worst], asked.reference_n[worst])
    than = f"of {n:,} rows, {reference:.1%} of training rows"
    if what == "missing":
        return f"missing in {share:.1%} {than}"
    if what == "new":
        return f"{k:,} of {n:,} rows hold values that training never saw"
    if isinstance(what, str):
        place = int(what.rpartition(" ")[2])
        label = labels[place] if labels else f"{column.edges[place]:g}"
        return f"{label} in {share:.1%} {than}"
    if what == 0:
        least = np.nextafter(column.edges[0], math.inf)
        return f"{k:,} of {n:,} rows are below {least:.6g}, the least of training"
    edge = float(column.edges[what])
    if what == len(column.edges) - 1:
        return f"{n - k:,} of {n:,} rows are above {edge:.6g}, the greatest of training"
    return f"at most {edge:.6g} in {share:.1%} {than}"


def coarser(column: Column) -> np.ndarray:
    """Return a matrix [bins, coarser bins] of about tenths of training; categories stay."""
    bins = len(column.counts)
    if column.categorical:
        return np.eye(bins)
    # Bin b holds what is above edge b - 1 and at most edge b.
    bounds = np.array(cuts(column, TENTHS))
    group = np.searchsorted(bounds, np.arange(bins), side="left")
    return np.eye(len(bounds) + 1)[group]


def _shares(counts: np.ndarray) -> list[float]:
    return [float(count) for count in counts / max(1, counts.sum())]


def _share(k: float, n: float) -> float:
    return float(k / n) if n else 0.0


def _finite(number: float | None) -> float | None:
    return float(number) if number is not None and math.isfinite(number) else None

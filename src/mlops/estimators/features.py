"""Features that a model derives for itself from its inputs: quotients, geography, neighbours.

Each is a scikit-learn transformer that takes the model's inputs, float64 [n, len(inputs)], by
their names, and gives float64 columns that `get_feature_names_out` names. They stand inside the
candidate's estimator (in a `FeatureUnion`, say), so the request does not change, folds fit them
anew, and the exported graph holds them (`package/features.py`).

Trees compare these numbers with thresholds, so graph and transformer have to agree to the last
bit. Hence only +, -, *, /, square roots and comparisons, which IEEE 754 defines exactly, one at a
time, and sums that run from the first to the last: no exponentials, no matrix products.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin

from mlops.errors import TrainingError
from mlops.estimators.nearby import map_of

KM_A_DEGREE = 111.2
"""Kilometres between two degrees of latitude, on a sphere as large as the Earth."""

CHUNK = 2048
"""Rows whose neighbours are looked up at once."""
LISTED = 192
"""Rows among which the nearest are looked for; some more than are asked for."""


class _Named(TransformerMixin, BaseEstimator):  # type: ignore[misc]  # untyped base
    """What takes inputs by name and learns nothing, unless it says so."""

    inputs: tuple[str, ...]

    def fit(self, X: np.ndarray, y: Any = None) -> Self:
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def places(self, names: tuple[str, ...]) -> list[int]:
        """Return the columns of inputs."""
        return [self.inputs.index(name) for name in names]


def _less_over_more(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return how alike two positive numbers are: 1 if they are equal."""
    alike: np.ndarray = np.minimum(a, b) / np.maximum(a, b)
    return alike


class _Placed(_Named):
    """What looks at where rows lie: on the plane of two inputs times `scale`."""

    x: str
    y: str
    scale: tuple[float, float]

    def _where(self, X: np.ndarray) -> np.ndarray:
        """Return the places of rows, float64 [n, 2]."""
        where: np.ndarray = X[:, self.places((self.x, self.y))] * np.array(self.scale)
        return where


class Quotients(_Named):
    """One input divided by another, for each of `pairs`; a zero denominator counts as one."""

    def __init__(self, inputs: tuple[str, ...], pairs: tuple[tuple[str, str], ...]) -> None:
        self.inputs = inputs
        self.pairs = pairs

    def transform(self, X: np.ndarray) -> np.ndarray:
        above, below = (X[:, self.places(names)] for names in zip(*self.pairs, strict=True))
        divided: np.ndarray = above / np.where(below == 0, 1.0, below)
        return divided

    def get_feature_names_out(self, given: Any = None) -> np.ndarray:
        return np.array([f"{above} / {below}" for above, below in self.pairs], dtype=object)


class Geography(_Named):
    """Where a row lies: turned coordinates, and kilometres to towns and to a line (the coast).

    Degrees become kilometres on a plane that is true at `latitude_of_truth`. `turns` are angles in
    degrees by which the axes are turned: a tree's cuts are parallel to axes, the coast is not.
    `towns` and `line` are points (longitude, latitude); the line joins its points in their order.
    """

    def __init__(
        self,
        inputs: tuple[str, ...],
        longitude: str,
        latitude: str,
        latitude_of_truth: float,
        turns: tuple[float, ...],
        towns: tuple[tuple[str, float, float], ...] = (),
        line: tuple[tuple[float, float], ...] = (),
    ) -> None:
        self.inputs = inputs
        self.longitude = longitude
        self.latitude = latitude
        self.latitude_of_truth = latitude_of_truth
        self.turns = turns
        self.towns = towns
        self.line = line

    @property
    def scale(self) -> np.ndarray:
        """Kilometres a degree of longitude and of latitude, [2]."""
        return np.array([np.cos(np.deg2rad(self.latitude_of_truth)), 1.0]) * KM_A_DEGREE

    @property
    def axes(self) -> tuple[np.ndarray, np.ndarray]:
        """What the two coordinates are multiplied by for each turned axis, [axes] twice."""
        angles = np.deg2rad([*self.turns, *(turn + 90 for turn in self.turns)])
        return np.cos(angles), np.sin(angles)

    def transform(self, X: np.ndarray) -> np.ndarray:
        x, y = (X[:, self.places((self.longitude, self.latitude))] * self.scale).T[:, :, None]
        along, across = self.axes
        columns = [x * along + y * across]
        if self.towns:
            towns = np.array([place for _, *place in self.towns]) * self.scale
            east, north = x - towns[:, 0], y - towns[:, 1]
            columns.append(np.sqrt(east * east + north * north))
        if self.line:
            columns.append(self._to_line(x, y))
        return np.hstack(columns)

    @property
    def segments(self) -> np.ndarray:
        """The line's pieces in kilometres, [5, pieces]: start x, y; direction x, y; length²."""
        points = np.array(self.line) * self.scale
        ways = np.diff(points, axis=0)
        return np.vstack([points[:-1].T, ways.T, (ways * ways).sum(axis=1)])

    def _to_line(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        start_x, start_y, way_x, way_y, squared = self.segments
        east, north = x - start_x, y - start_y
        along = np.minimum(np.maximum((east * way_x + north * way_y) / squared, 0.0), 1.0)
        east, north = east - along * way_x, north - along * way_y
        squared = east * east + north * north
        nearest: np.ndarray = np.sqrt(squared.min(axis=1, keepdims=True))
        return nearest

    def get_feature_names_out(self, given: Any = None) -> np.ndarray:
        names = [f"axis at {turn:g}°" for turn in self.turns]
        names += [f"axis at {turn + 90:g}°" for turn in self.turns]
        names += [f"km to {name}" for name, *_ in self.towns]
        return np.array([*names, *(["km to the line"] if self.line else [])], dtype=object)


class Neighbours(_Placed):
    """What the training rows nearby cost, and are like: means over the nearest `counts` of them.

    Nearest on the plane of two inputs times `scale`; a mean weighs a row by 1 / (its distance +
    `softening`). Meant are the target, each of `means`, and the target / (`per` + 1). Beside them
    stand the distances to the nearest of each count, the spread of the target among the nearest 8,
    and two means of the target over all neighbours that weigh those more that are alike in `per`
    and in `per` and `alike`.

    **No row sees its own target**: `fit_transform` gives each training row what the others say
    (as scikit-learn's `TargetEncoder` does, by leaving out one where that leaves out a fold);
    `transform` asks all. Rows as near as each other count in the order of training.

    Raises `TrainingError` if there are not more rows than the largest of `counts`.
    """

    def __init__(
        self,
        inputs: tuple[str, ...],
        x: str,
        y: str,
        scale: tuple[float, float],
        means: tuple[str, ...],
        per: str,
        alike: str,
        counts: tuple[int, ...] = (1, 4, 8, 16, 32),
        softening: float = 0.5,
    ) -> None:
        self.inputs = inputs
        self.x = x
        self.y = y
        self.scale = scale
        self.means = means
        self.per = per
        self.alike = alike
        self.counts = counts
        self.softening = softening

    def fit(self, X: np.ndarray, y: Any = None) -> Self:
        if len(X) <= max(self.counts):
            raise TrainingError(
                f"{len(X)} rows have no {max(self.counts)} neighbours each",
                "train on more rows, or ask for fewer neighbours",
            )
        self.places_ = self._where(X)
        self.map_ = map_of(self.places_, LISTED, crowd=8, sort=True)
        per = X[:, self.places((self.per,))[0]]
        y = np.asarray(y, dtype=float)
        kept = X[:, self.places((*self.means, self.per, self.alike))]
        self.known_ = np.column_stack(
            [y, kept[:, : len(self.means)], y / (per + 1.0), y * y, kept[:, len(self.means) :]]
        )
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "places_")

    def fit_transform(self, X: np.ndarray, y: Any = None) -> np.ndarray:
        self.fit(X, y)
        return self._in_parts(X, np.arange(len(X)))

    def transform(self, X: np.ndarray) -> np.ndarray:
        return self._in_parts(X, None)

    def _in_parts(self, X: np.ndarray, own: np.ndarray | None) -> np.ndarray:
        """Bound the memory."""
        parts = [slice(start, start + CHUNK) for start in range(0, len(X), CHUNK)]
        return np.vstack(
            [self._features(X[one], None if own is None else own[one]) for one in parts]
        )

    def _features(self, X: np.ndarray, own: np.ndarray | None) -> np.ndarray:
        squared, nearest = self._nearest(self._where(X), own)
        distance = np.sqrt(squared)  # [n, neighbours]
        weight = 1.0 / (distance + self.softening)
        known = self.known_[nearest]  # [n, neighbours, known]
        counted = np.array(self.counts) - 1
        summed = np.cumsum(known[:, :, :-2] * weight[:, :, None], axis=1)[:, counted]
        weighed = np.cumsum(weight, axis=1)[:, counted]
        means = summed / weighed[:, :, None]  # [n, counts, meant]
        # Weights that fall with the difference in one input, then in two: (less / more)^4 is
        # exp(-4 |log ratio|), in operations that are exact.
        per, alike = (X[:, self.places((name,))] + 0.5 for name in (self.per, self.alike))
        like = _less_over_more(known[:, :, -2] + 0.5, per)
        like = like * like
        first = weight * (like * like)
        older = _less_over_more(known[:, :, -1] + 0.5, alike)
        second = first * older / (distance + 2.0)
        target = known[:, :, 0]
        similar = [
            (np.cumsum(target * one, axis=1)[:, -1:] / np.cumsum(one, axis=1)[:, -1:])
            for one in (first, second)
        ]
        target, square = means[:, :, 0], means[:, :, -1]
        spread = np.sqrt(np.maximum(square - target * target, 0.0))
        return np.hstack(
            [means[:, :, :-1].reshape(len(X), -1), spread, distance[:, counted], *similar]
        )

    def _nearest(self, places: np.ndarray, own: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Return squared distances and rows of the nearest training rows, [n, neighbours] each."""
        rows = self.map_.rows[self.map_.region(places)]
        apart = places[:, None] - self.places_[rows]
        east, north = apart[:, :, 0], apart[:, :, 1]
        squared = east * east + north * north
        if own is not None:
            squared[rows == own[:, None]] = np.inf
        order = np.argsort(squared, axis=1, kind="stable")[:, : max(self.counts)]
        return np.take_along_axis(squared, order, 1), np.take_along_axis(rows, order, 1)

    def get_feature_names_out(self, given: Any = None) -> np.ndarray:
        meant = ["target", *self.means, f"target / {self.per}"]
        names = [f"{one} of {count} nearest" for count in self.counts for one in meant]
        names += [f"spread among {count} nearest" for count in self.counts]
        names += [f"km to nearest {count}" for count in self.counts]
        both = f"{self.per} and {self.alike}"
        return np.array(
            [*names, f"target, alike in {self.per}", f"target, alike in {both}"], dtype=object
        )


class Regions(_Placed):
    """What the rows near the middle of a row's region cost: looked up, and so all but free.

    Regions are rectangles of two inputs times `scale`, cut until no more than one training row lies
    in each. A region knows, of the nearest 4, 16 and 48 training rows to its centre, the mean of
    the target and of the target / (`per` + 1), and of 16 that of `per`.

    A training row's region has seen its target. So this is for a model that learns from another's
    answers (`Distilled`), and never from the targets themselves.
    """

    def __init__(
        self, inputs: tuple[str, ...], x: str, y: str, scale: tuple[float, float], per: str
    ) -> None:
        self.inputs = inputs
        self.x = x
        self.y = y
        self.scale = scale
        self.per = per

    def fit(self, X: np.ndarray, y: Any = None) -> Self:
        self.map_ = map_of(self._where(X), 48, crowd=1, sort=False)
        target = np.asarray(y, dtype=float)
        per = X[:, self.places((self.per,))[0]]
        near = self.map_.rows
        relative = target / (per + 1.0)
        self.table_ = np.column_stack(
            [
                known[near[:, :count]].mean(axis=1)
                for count in (4, 16, 48)
                for known in (target, relative)
            ]
            + [per[near[:, :16]].mean(axis=1)]
        )
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "map_")

    def transform(self, X: np.ndarray) -> np.ndarray:
        found: np.ndarray = self.table_[self.map_.region(self._where(X))]
        return found

    def get_feature_names_out(self, given: Any = None) -> np.ndarray:
        each = ("target", f"target / {self.per}")
        names = [f"{one} of {count} in the region" for count in (4, 16, 48) for one in each]
        return np.array([*names, f"{self.per} of 16 in the region"], dtype=object)

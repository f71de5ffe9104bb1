"""Who asks what and when: held-out rows, sent by users of whom few ask much, most in the evening.

Seeded: two stories with one seed ask the same. Each hour draws its requests anew; a request keeps
what later turns out to be true of it, and when that is known.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

USERS = 1_000
PEAK_HOUR = 18
HOURS = np.exp(-0.5 * ((np.arange(24) - PEAK_HOUR) / 3.5) ** 2) + 0.15
DAYS_TO_KNOW = (1.0, 14.0)
"""Least and greatest delay of a truth, in days."""

Row = dict[str, float]
Change = Callable[[Row, float], tuple[Row, float]]
"""What has become of the world: of fields and target as they were in the data."""


@dataclasses.dataclass(frozen=True, slots=True)
class Ask:
    """One request: its fields, who sends it, what will prove true and how many days later."""

    row: Row
    user: str
    actual: float
    days_to_know: float


class Traffic:
    """Draws from rows X, shape (n, fields), and their targets y, shape (n,)."""

    def __init__(
        self, fields: tuple[str, ...], X: np.ndarray, y: np.ndarray, *, a_day: int, seed: int
    ) -> None:
        self._fields = fields
        self._X = X
        self._y = y
        self._a_day = a_day
        self._random = np.random.default_rng(seed)
        weights = 1 / np.arange(1, USERS + 1)  # Zipf: few ask much
        self._users = weights / weights.sum()
        self._hours = HOURS / HOURS.sum()

    def hour(self, hour: int, change: Change | None = None) -> Iterator[Ask]:
        """Yield what is asked in an hour of the day; `change` is what the world has become."""
        count = self._random.poisson(self._a_day * self._hours[hour])
        rows = self._random.integers(len(self._X), size=count)
        users = self._random.choice(USERS, size=count, p=self._users)
        delays = self._random.uniform(*DAYS_TO_KNOW, size=count)
        for row, user, delay in zip(rows, users, delays, strict=True):
            fields = dict(zip(self._fields, self._X[row].tolist(), strict=True))
            actual = float(self._y[row])
            if change is not None:
                fields, actual = change(fields, actual)
            yield Ask(fields, f"user-{user}", actual, float(delay))

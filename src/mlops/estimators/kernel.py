"""Kernel ridge regression with several Matérn kernels, on a sample of the training rows.

What trees are bad at is its strength: smooth surfaces over several inputs at once. Its answer is
the mean of a Gaussian process whose covariance is a sum of `kernels`, in the approximation of
"subset of regressors" (Nyström): all rows are learnt from, `sample` of them carry the answer.

Source: C. E. Rasmussen and C. K. I. Williams, "Gaussian Processes for Machine Learning" (2006),
sections 4.2 (Matérn, ν = 3/2), 8.3.1 (subset of regressors).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Self

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from sklearn.base import BaseEstimator, RegressorMixin
from threadpoolctl import threadpool_limits

CHUNK = 512
"""Rows answered at once: more do not fit a cache."""
ROOT = math.sqrt(3.0)


@dataclasses.dataclass(frozen=True, slots=True)
class Kernel:
    """A Matérn kernel: its variance, and over what distance of each input it falls to about 0.48.

    `lengths` are in standard deviations of the input; an input that is not named plays no part.
    """

    variance: float
    lengths: tuple[tuple[str, float], ...]


def _one_thread() -> threadpool_limits:
    """With several, the last digits depend on how many there are, and what learns from them."""
    return threadpool_limits(1, "blas")


class KernelRegressor(RegressorMixin, BaseEstimator):  # type: ignore[misc]  # untyped bases
    """The sum of `kernels` over named columns of [n, len(columns)], fitted by least squares.

    `logarithms` names columns of which log(value + offset) is taken first. Then columns are
    standardised, and held within 5 standard deviations. `noise` is the target's variance that no
    kernel explains, both in variances of the target.
    """

    def __init__(
        self,
        columns: tuple[str, ...],
        kernels: tuple[Kernel, ...],
        logarithms: tuple[tuple[str, float], ...] = (),
        noise: float = 0.05,
        sample: int = 3000,
        random_state: int = 0,
    ) -> None:
        self.columns = columns
        self.kernels = kernels
        self.logarithms = logarithms
        self.noise = noise
        self.sample = sample
        self.random_state = random_state

    @property
    def used(self) -> tuple[str, ...]:
        """Columns that some kernel has a length for, in the order of `columns`."""
        named = {name for kernel in self.kernels for name, _ in kernel.lengths}
        return tuple(name for name in self.columns if name in named)

    @property
    def offsets(self) -> list[float | None]:
        """What is added before the logarithm of each used column; None where none is taken."""
        return [dict(self.logarithms).get(name) for name in self.used]

    def weights(self, kernel: Kernel) -> np.ndarray:
        """1 / length of each used column, 0 for one that plays no part."""
        lengths = dict(kernel.lengths)
        return np.array([1 / lengths[name] if name in lengths else 0.0 for name in self.used])

    def fit(self, X: np.ndarray, y: np.ndarray) -> Self:
        seen = self._logged(X)
        self.mean_, self.scale_ = seen.mean(axis=0), seen.std(axis=0)
        self.target_mean_, self.target_scale_ = float(np.mean(y)), float(np.std(y))
        target = (np.asarray(y, dtype=float) - self.target_mean_) / self.target_scale_
        rows = self._standard(X)
        chosen = np.random.default_rng(self.random_state).permutation(len(rows))[: self.sample]
        self.rows_ = rows[np.sort(chosen)]
        with _one_thread():
            among = self._covariance(self.rows_)
            gram = self.noise * among
            pull = np.zeros(len(self.rows_))
            for start in range(0, len(rows), CHUNK):
                part = slice(start, start + CHUNK)
                across = self._covariance(rows[part])
                gram += across.T @ across
                pull += across.T @ target[part]
            gram[np.diag_indices_from(gram)] += 1e-6
            self.coefficients_ = cho_solve(cho_factor(gram, lower=True), pull)
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        parts = [X[start : start + CHUNK] for start in range(0, len(X), CHUNK)]
        with _one_thread():
            answers = [self._covariance(self._standard(one)) @ self.coefficients_ for one in parts]
        return np.concatenate(answers) * self.target_scale_ + self.target_mean_

    def _logged(self, X: np.ndarray) -> np.ndarray:
        seen = X[:, [self.columns.index(name) for name in self.used]]
        for number, offset in enumerate(self.offsets):
            if offset is not None:
                seen[:, number] = np.log(seen[:, number] + offset)
        return seen

    def _standard(self, X: np.ndarray) -> np.ndarray:
        standard: np.ndarray = np.clip((self._logged(X) - self.mean_) / self.scale_, -5.0, 5.0)
        return standard

    def _covariance(self, rows: np.ndarray) -> np.ndarray:
        """Return the kernels' sum between rows and those that carry the answer, [n, sample]."""
        total = np.zeros((len(rows), len(self.rows_)))
        for kernel in self.kernels:
            weights = self.weights(kernel) * ROOT
            a, b = rows * weights, self.rows_ * weights
            squared = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1) - 2 * (a @ b.T)
            distance = np.sqrt(np.maximum(squared, 0.0))
            total += kernel.variance * (1 + distance) * np.exp(-distance)
        return total

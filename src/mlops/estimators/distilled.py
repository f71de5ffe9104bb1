"""A small model that answers as a large one does, because it was taught by it.

Source: C. Bucilă, R. Caruana, A. Niculescu-Mizil, "Model Compression", KDD 2006. Rows to ask the
teacher about are made as their MUNGE makes them.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from scipy.spatial import cKDTree
from sklearn.base import BaseEstimator, RegressorMixin, clone
from sklearn.pipeline import Pipeline


class Distilled(RegressorMixin, BaseEstimator):  # type: ignore[misc]  # untyped bases
    """`student`, fitted to what `teacher` answers to rows made from the training rows.

    A row is made of a training row and one of the 5 that are most like it: of each input it has,
    with probability 1/2, a value drawn about the other's with the standard deviation of how far
    the two are apart. Of each training row there are `copies`. The true targets are seen by the
    teacher alone: what it answers to its own training rows is too good, so the student is not
    asked to repeat that.

    Both take float64 [n, inputs]. `student` is a pipeline: what its features learn is learnt from
    the training rows and their targets, what its last step learns from the teacher's answers.
    """

    def __init__(self, teacher: Any, student: Any, copies: int = 15, random_state: int = 0) -> None:
        self.teacher = teacher
        self.student = student
        self.copies = copies
        self.random_state = random_state

    def fit(self, X: np.ndarray, y: np.ndarray) -> Self:
        teacher = clone(self.teacher).fit(X, y)
        made = self._made(X)
        answers = teacher.predict(made)
        *before, (_, model) = clone(self.student).steps
        features = [(name, step.fit(X, y)) for name, step in before]
        for _, step in features:
            made = step.transform(made)
        self.student_ = Pipeline([*features, ("model", model.fit(made, answers))])
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        answers: np.ndarray = self.student_.predict(X)
        return answers

    def _made(self, X: np.ndarray) -> np.ndarray:
        random = np.random.default_rng(self.random_state)
        spread = X.std(axis=0)
        scaled = X / np.where(spread > 0, spread, 1.0)
        like = cKDTree(scaled).query(scaled, min(6, len(X)))[1]
        made = []
        for _ in range(self.copies):
            other = X[like[np.arange(len(X)), random.integers(1, like.shape[1], len(X))]]
            drawn = random.normal(other, np.abs(X - other))
            # Never outside what training saw: there nobody could answer.
            drawn = np.clip(drawn, X.min(axis=0), X.max(axis=0))
            made.append(np.where(random.random(X.shape) < 0.5, drawn, X))
        return np.vstack(made)

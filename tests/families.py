"""Small tables, and every estimator that the export supports, for the tests of the export."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from lightgbm import LGBMClassifier, LGBMRegressor
from sklearn.base import clone
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.ensemble import (
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
    StackingRegressor,
    VotingClassifier,
    VotingRegressor,
)
from sklearn.linear_model import Lasso, LinearRegression, LogisticRegression, Ridge
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from mlops.build.pipeline import unfitted_pipeline
from mlops.usecase import Candidate, UseCase
from mlops.usecases import USE_CASES

QUIET = {"n_jobs": 1, "verbose": -1}


def scaled_tree() -> Pipeline:
    return make_pipeline(StandardScaler(), DecisionTreeRegressor(random_state=0))


REGRESSORS = {
    "least squares, scaled": LinearRegression(),
    "ridge": Ridge(alpha=2.0),
    "lasso, scaled": Lasso(alpha=0.01),
    "tree": DecisionTreeRegressor(random_state=0),
    "tree, scaled": DecisionTreeRegressor(random_state=0),
    "forest": RandomForestRegressor(20, random_state=0),
    "extra trees": ExtraTreesRegressor(10, random_state=0),
    "histogram boosting": HistGradientBoostingRegressor(max_iter=20),
    "histogram boosting of a logarithm": HistGradientBoostingRegressor(loss="gamma", max_iter=9),
    "lightgbm": LGBMRegressor(n_estimators=30, **QUIET),
    "lightgbm, scaled": LGBMRegressor(n_estimators=30, **QUIET),
    "lightgbm of a logarithm": LGBMRegressor(objective="tweedie", n_estimators=20, **QUIET),
    "dummy": DummyRegressor(strategy="median"),
    "average of lightgbm and a forest": VotingRegressor(
        [("b", LGBMRegressor(n_estimators=20, **QUIET)), ("f", RandomForestRegressor(10))]
    ),
    "weighted average with a tree, scaled": VotingRegressor(
        [("t", DecisionTreeRegressor(random_state=0)), ("n", "drop"), ("l", LinearRegression())],
        weights=[2.0, 9.0, 1.0],
    ),
    "average with a tree behind its own scaler": VotingRegressor(
        [("r", make_pipeline(StandardScaler(), Ridge())), ("t", scaled_tree())]
    ),
    "stack of lightgbm and a tree": StackingRegressor(
        [("b", LGBMRegressor(n_estimators=20, **QUIET)), ("t", DecisionTreeRegressor(max_depth=6))],
        final_estimator=LinearRegression(),
    ),
    "stack of trees that sees the inputs too": StackingRegressor(
        [("f", ExtraTreesRegressor(5, random_state=0)), ("l", LinearRegression())],
        passthrough=True,
    ),
    "stack of an average with a tree": StackingRegressor(
        [
            ("v", VotingRegressor([("t", DecisionTreeRegressor(max_depth=4)), ("r", Ridge())])),
            ("h", HistGradientBoostingRegressor(max_iter=5)),
        ],
        final_estimator=Ridge(),
        cv=3,
    ),
}

CLASSIFIERS = {
    "logistic, scaled": LogisticRegression(),
    "discriminant": LinearDiscriminantAnalysis(),
    "tree": DecisionTreeClassifier(min_samples_leaf=3, random_state=0),
    "forest": RandomForestClassifier(20, random_state=0),
    "forest, scaled": RandomForestClassifier(10, random_state=0),
    "extra trees": ExtraTreesClassifier(10, min_samples_leaf=4, random_state=0),
    "histogram boosting": HistGradientBoostingClassifier(max_iter=10),
    "lightgbm": LGBMClassifier(n_estimators=10, **QUIET),
    "dummy": DummyClassifier(),
    "soft votes of a forest": VotingClassifier(
        [
            ("l", make_pipeline(StandardScaler(), LogisticRegression())),
            ("f", RandomForestClassifier(10, random_state=0)),
            ("h", HistGradientBoostingClassifier(max_iter=5)),
        ],
        voting="soft",
        weights=[1, 2, 3],
    ),
    "soft votes of a tree, scaled": VotingClassifier(
        [("d", LinearDiscriminantAnalysis()), ("t", DecisionTreeClassifier(min_samples_leaf=3))],
        voting="soft",
    ),
}


ENSEMBLES = ("average", "weighted average", "stack", "soft votes")
"""How the names of those begin that are made of other families."""


def table(use_case: UseCase) -> tuple[np.ndarray, np.ndarray]:
    """At most 2,000 rows of request fields, and their targets (class numbers for labels)."""
    return _table(use_case.name)


@functools.cache
def _table(name: str) -> tuple[np.ndarray, np.ndarray]:
    use_case = USE_CASES[name]
    data = use_case.load().table
    data = data.sample(min(len(data), 2000), random_state=0)
    targets = data[use_case.target.column]
    if use_case.target.labels:
        targets = targets.map({label: i for i, label in enumerate(use_case.target.labels)})
    columns = [feature.column for feature in use_case.features]
    return data[columns].to_numpy(dtype=float), targets.to_numpy()


def fitted(estimator: Any, use_case: UseCase, y: np.ndarray | None = None, *, scaled: bool = False):
    """The estimator in a fitted pipeline of the use case, and the rows that it was fitted on."""
    rows, targets = table(use_case)
    candidate = Candidate("any", lambda seed: clone(estimator), scaled=scaled)
    return unfitted_pipeline(use_case, candidate).fit(rows, targets if y is None else y), rows


@functools.cache
def family(kind: str, name: str) -> tuple[Pipeline, np.ndarray, UseCase]:
    """One of `FAMILIES`: its fitted pipeline, the rows and the use case they come from."""
    housing, iris = USE_CASES["housing"], USE_CASES["iris"]
    scaled = "scaled" in name
    if kind == "regression":
        return *fitted(REGRESSORS[name], housing, scaled=scaled), housing
    estimator = CLASSIFIERS[name]
    if kind == "iris":
        return *fitted(estimator, iris, scaled=scaled), iris
    limits = [2.0] if kind == "two classes" else [1.3, 1.9, 2.6]
    y = np.digitize(table(housing)[1], limits)
    return *fitted(estimator, housing, y, scaled=scaled), housing


FAMILIES = [("regression", name) for name in REGRESSORS] + [
    (kind, name) for kind in ("iris", "two classes", "four classes") for name in CLASSIFIERS
]

CANDIDATES = [
    (use_case.name, candidate.name)
    for use_case in USE_CASES.values()
    for candidate in use_case.candidates
]


@functools.cache
def candidate(use_case_name: str, name: str) -> tuple[Pipeline, np.ndarray, UseCase]:
    """A declared candidate of a declared use case, fitted."""
    use_case = USE_CASES[use_case_name]
    rows, targets = table(use_case)
    pipeline = unfitted_pipeline(use_case, use_case.candidate(name)).fit(rows, targets)
    return pipeline, rows, use_case

"""The leakage guard: with tuning on, no candidate learns anything from the test rows.

Two statements about every candidate of every use case. Multiplying the test rows by 1e9 changes no
fitted number: not the parameters that tuning chooses, not the scaler, not a tree, not a weight. And
with a permuted target, which no input can tell anything about, it scores as chance does. Both are
also asked of trainings that leak on purpose, to see that they would be found.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom, f
from sklearn.preprocessing import StandardScaler

from mlops.build.data import Split, split
from mlops.build.study import Study
from mlops.build.training import Trained, train_candidate
from mlops.build.tuning import Here, Rows, search, tuned, with_parameters
from mlops.usecase import Candidate, Range, UseCase
from mlops.usecases import USE_CASES

ROWS = 1_500
TRIALS = 2
ABSURD = 1e9
FALSE_ALARMS = 1e-4
"""How often a candidate that has learnt nothing may be said to have learnt something."""

HOUSING, IRIS = USE_CASES["housing"], USE_CASES["iris"]


def products(use_case: UseCase) -> Iterator[Candidate]:
    """Ensembles, features learnt from neighbours' targets, a model taught by another."""
    for profile in use_case.profiles:
        for product in profile.products:
            yield use_case.candidate(product.candidate)


EVERY_CANDIDATE = [
    pytest.param(use_case, candidate, id=f"{use_case.name}-{candidate.name}")
    for use_case in USE_CASES.values()
    for candidate in (*use_case.candidates, *products(use_case))
]


@functools.cache
def parts_of(use_case_name: str) -> Split:
    """The split of at most 1,500 rows of the use case's table."""
    use_case = USE_CASES[use_case_name]
    table = use_case.load().table
    return split(use_case, table.sample(min(ROWS, len(table)), random_state=0))


def chosen(use_case: UseCase, candidate: Candidate, parts: Split) -> Candidate:
    """What tuning makes of the candidate, in two trials; itself if it declares no search."""
    if not candidate.search:
        return candidate
    study = Study(None, use_case, (candidate,), parts)
    rows = Rows(use_case, parts.X_train, parts.y_train)
    search(study, Here(rows), trials=TRIALS, stop=lambda: False, finished=lambda attempt: None)
    best = study.best()
    assert best is not None
    assert study.counted() == TRIALS
    return tuned(candidate, best.parameters)


def tune_and_train(use_case: UseCase, candidate: Candidate, parts: Split) -> Trained:
    """As `mlops tune` and `mlops train --from-study` do it."""
    candidate = quick(candidate)
    use_case = dataclasses.replace(use_case, candidates=(candidate,))
    return train_candidate(use_case, chosen(use_case, candidate, parts), parts)


def quick(candidate: Candidate) -> Candidate:
    """The candidate as declared, but of few trees and in one thread."""
    has = candidate.build(0).get_params()
    smaller = {"n_estimators": 10, "n_jobs": 1, "copies": 1, "sample": 100}
    few = {name: smaller[end] for name in has if (end := name.rpartition("__")[2]) in smaller}
    search = dict(candidate.search)
    if "n_estimators" in search:
        search["n_estimators"] = Range(5, 15)
    if not isinstance(has.get("n_jobs"), int):
        few.pop("n_jobs", None)
    return dataclasses.replace(with_parameters(candidate, few), search=search)


@functools.cache
def learnt(use_case_name: str, candidate_name: str) -> Trained:
    use_case = USE_CASES[use_case_name]
    return tune_and_train(use_case, use_case.candidate(candidate_name), parts_of(use_case_name))


# --- every number in a fitted object


def fitted_numbers(thing: Any, path: str = "", seen: frozenset[int] = frozenset()) -> dict:
    """Every number, text and array within a fitted pipeline, by where it stands."""
    if id(thing) in seen:
        return {}
    if hasattr(thing, "model_to_string"):  # LightGBM's booster holds its trees outside Python
        return {path: thing.model_to_string()}
    if isinstance(thing, np.ndarray) and thing.dtype != object:
        return {path: (str(thing.dtype), thing.shape, thing.tobytes())}
    if isinstance(thing, str | int | float | bool | np.generic | type(None)):
        return {path: repr(thing)}
    inside = seen | {id(thing)}
    found: dict[str, Any] = {}
    for name, part in _parts(thing):
        found |= fitted_numbers(part, f"{path}.{name}", inside)
    return found


def _parts(thing: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(thing, dict):
        yield from ((str(key), value) for key, value in thing.items())
    elif isinstance(thing, list | tuple | np.ndarray):
        yield from ((str(number), value) for number, value in enumerate(thing))
    elif type(thing).__name__ in {"Tree", "RandomState"}:
        state = thing.__getstate__() if type(thing).__name__ == "Tree" else thing.get_state()
        yield from _parts(state)
    elif hasattr(thing, "__dict__"):
        yield from vars(thing).items()


def differences(one: Any, other: Any) -> list[str]:
    first, second = fitted_numbers(one), fitted_numbers(other)
    return sorted(k for k in first.keys() | second.keys() if first.get(k) != second.get(k))


Train = Callable[[UseCase, Candidate, Split], Trained]


def absurd(parts: Split) -> Split:
    """The same training rows, beside test rows that are 1e9 times as large."""
    return dataclasses.replace(parts, X_test=parts.X_test * ABSURD)


def assert_test_rows_change_nothing(sane: Trained, mad: Trained) -> None:
    assert differences(sane.pipeline, mad.pipeline) == []
    assert sane.fold_scores == mad.fold_scores


@pytest.mark.parametrize(("use_case", "candidate"), EVERY_CANDIDATE)
def test_test_rows_times_1e9_change_no_fitted_number_with_tuning_on(use_case, candidate):
    sane = learnt(use_case.name, candidate.name)
    mad = tune_and_train(use_case, candidate, absurd(parts_of(use_case.name)))
    assert_test_rows_change_nothing(sane, mad)
    assert sane.metrics[use_case.metric] > mad.metrics[use_case.metric], "they were looked at"


@pytest.mark.parametrize(("use_case", "candidate"), EVERY_CANDIDATE)
def test_the_guard_sees_every_number_of_every_family(use_case, candidate):
    """One training row changed, and the numbers differ: the walk reaches what was fitted."""
    trained = learnt(use_case.name, candidate.name)
    parts = parts_of(use_case.name)
    X = parts.X_train.copy()
    X.iloc[:, -1] = X.iloc[:, -1].to_numpy()[::-1]
    other = train_candidate(use_case, trained.candidate, dataclasses.replace(parts, X_train=X))
    changed = {path.split(".")[2] for path in differences(trained.pipeline, other.pipeline)}
    steps = enumerate(trained.pipeline.named_steps)
    assert changed == {str(number) for number, name in steps if name != "inputs"}


# --- trainings that leak on purpose


def scaler_of_all_rows(use_case: UseCase, candidate: Candidate, parts: Split) -> Trained:
    """The mistake of the published pipeline: the scaler has seen the rows to be measured on."""
    trained = tune_and_train(use_case, candidate, parts)
    everything = pd.concat([parts.X_train, parts.X_test])
    inputs = trained.pipeline["inputs"].transform(everything)
    trained.pipeline.set_params(scale=StandardScaler().fit(inputs))
    return trained


def chosen_by_test_rows(use_case: UseCase, candidate: Candidate, parts: Split) -> Trained:
    """Parameters that are the best on the test rows, and not in cross-validation."""
    trained = [
        train_candidate(use_case, with_parameters(candidate, {"max_depth": depth}), parts)
        for depth in (3, 5, 7, 9, 20)
    ]
    return max(trained, key=lambda one: one.metrics[use_case.metric])


@pytest.mark.parametrize(
    ("use_case", "name", "leaks"),
    [
        (IRIS, "LogisticRegression", scaler_of_all_rows),
        (HOUSING, "LinearRegression", scaler_of_all_rows),
        (HOUSING, "DecisionTree", chosen_by_test_rows),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_the_guard_finds_a_planted_leak(use_case, name, leaks):
    parts = parts_of(use_case.name)
    sane, mad = (leaks(use_case, use_case.candidate(name), p) for p in (parts, absurd(parts)))
    with pytest.raises(AssertionError):
        assert_test_rows_change_nothing(sane, mad)


# --- a target that nothing can be learnt about


def permuted(parts: Split) -> Split:
    shuffle = np.random.default_rng(7).permutation
    return dataclasses.replace(parts, y_train=shuffle(parts.y_train), y_test=shuffle(parts.y_test))


def highest_by_chance(use_case: UseCase, y: np.ndarray) -> float:
    """The score that something which has learnt nothing exceeds once in 10,000.

    Accuracy: always naming the largest class is right by the binomial distribution. R²: what the
    best of all straight lines on as many inputs reaches on the very rows that it is fitted to,
    by the F distribution; a fit to other rows is below it.
    """
    n = len(y)
    if use_case.is_classification:
        share = np.bincount(y).max() / n
        return float(binom.isf(FALSE_ALARMS, n, share) / n)
    k = len(use_case.inputs)
    limit = f.isf(FALSE_ALARMS, k, n - k - 1)
    return float(k * limit / (k * limit + n - k - 1))


@pytest.mark.parametrize(("use_case", "candidate"), EVERY_CANDIDATE)
def test_with_a_permuted_target_every_candidate_scores_at_chance_with_tuning_on(
    use_case, candidate
):
    parts = permuted(parts_of(use_case.name))
    limit = highest_by_chance(use_case, parts.y_test)
    assert limit < (0.7 if use_case is IRIS else 0.12)
    trained = tune_and_train(use_case, candidate, parts)
    assert trained.metrics[use_case.metric] <= limit
    assert learnt(use_case.name, candidate.name).metrics[use_case.metric] > limit


@pytest.mark.parametrize("use_case", USE_CASES.values(), ids=USE_CASES)
def test_scores_of_rows_that_were_learnt_by_heart_are_above_chance(use_case):
    """The planted fault: a candidate that is measured on the rows that it has learnt."""
    parts = permuted(parts_of(use_case.name))
    leaked = dataclasses.replace(parts, X_test=parts.X_train, y_test=parts.y_train)
    candidate = with_parameters(quick(use_case.candidate("RandomForest")), {"min_samples_leaf": 1})
    trained = train_candidate(use_case, candidate, leaked)
    assert trained.metrics[use_case.metric] > highest_by_chance(use_case, leaked.y_test)

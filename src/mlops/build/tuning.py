"""Tuning: trials of a candidate's declared search space, each scored on the folds of training rows.

A trial is scored fold after fold, on the folds that `train` compares candidates with, and is given
up (pruned) as soon as its mean so far is below the median of the trials before it at that fold.
The test rows are not handed to anything here.

The search itself is one loop in one process; only `score` runs elsewhere, in the processes of
`workers`. It knows nothing of files: `study` keeps what was tried.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from threadpoolctl import threadpool_limits

from mlops.build.training import score_fold
from mlops.errors import TrainingError, UsageError
from mlops.usecase import FOLDS, SEED, Candidate, UseCase

if TYPE_CHECKING:
    import pandas as pd

    from mlops.build.study import Study

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LOOKS = 0.2
"""How long the search may not notice that it is to stop."""


class Task(NamedTuple):
    """One fit: a candidate with parameters, to be scored on one fold."""

    candidate: str
    parameters: dict[str, Any]
    fold: int


class Outcome(NamedTuple):
    """The score of a task; or, if it has none, why."""

    score: float
    trouble: str = ""


@dataclasses.dataclass
class Attempt:
    """A trial under way. Number `None` is the candidate as declared, which is never pruned."""

    number: int | None
    candidate: str
    parameters: dict[str, Any]
    scores: list[float] = dataclasses.field(default_factory=list)

    @property
    def task(self) -> Task:
        return Task(self.candidate, self.parameters, len(self.scores))


class Team(Protocol):
    """Those who score tasks, by number."""

    def idle(self) -> list[int]: ...

    def give(self, worker: int, task: Task) -> None: ...

    def wait(self, seconds: float) -> list[tuple[int, Outcome]]:
        """Return what was finished, after `seconds` at most."""
        ...


@dataclasses.dataclass(frozen=True)
class Rows:
    """What tuning is given: a use case and its training rows, X (n, fields) and y (n,)."""

    use_case: UseCase
    X: pd.DataFrame
    y: np.ndarray

    def score(self, task: Task) -> Outcome:
        """Fit on all folds but one and score that one, in one thread: the same number each time."""
        candidate = with_parameters(self.use_case.candidate(task.candidate), task.parameters)
        try:
            with threadpool_limits(1):
                found = score_fold(
                    self.use_case, _in_one_thread(candidate), self.X, self.y, task.fold
                )
        except TrainingError as error:
            return Outcome(math.nan, error.message)
        except Exception as error:  # noqa: BLE001  # whatever a library has against these parameters
            return Outcome(math.nan, f"{type(error).__name__}: {error}".splitlines()[0])
        return Outcome(found[self.use_case.metric])


class Here:
    """A team of one, in this process."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.given: list[Task] = []

    def idle(self) -> list[int]:
        return [] if self.given else [0]

    def give(self, worker: int, task: Task) -> None:
        self.given.append(task)

    def wait(self, seconds: float) -> list[tuple[int, Outcome]]:
        return [(0, self.rows.score(self.given.pop()))]


def search(
    study: Study,
    team: Team,
    *,
    trials: float,
    stop: Callable[[], bool],
    finished: Callable[[Attempt], None],
) -> None:
    """Score each candidate as declared, then try parameters until the study has `trials` in all.

    Ends early when `stop()`; what is under way is then given up, and tried again by the next
    search. `finished` is called after each attempt. Raises `TrainingError` if a candidate cannot be
    fitted as it is declared.
    """
    under_way: dict[int, Attempt] = {}
    declared = [Attempt(None, name, {}) for name in study.not_yet_declared()]
    try:
        while not stop():
            for worker in team.idle():
                if declared:
                    under_way[worker] = declared.pop(0)
                elif study.counted() < trials:
                    under_way[worker] = study.ask()
                else:
                    break
                team.give(worker, under_way[worker].task)
            if not under_way:
                return
            for worker, outcome in team.wait(SECONDS_BETWEEN_LOOKS):
                attempt = under_way[worker]
                if _goes_on(study, attempt, outcome):
                    team.give(worker, attempt.task)
                else:
                    del under_way[worker]
                    finished(attempt)
    finally:
        study.give_up(attempt for attempt in under_way.values() if attempt.number is not None)


def _goes_on(study: Study, attempt: Attempt, outcome: Outcome) -> bool:
    """Record a fold's score; whether the attempt deserves its next fold."""
    if outcome.trouble:
        if attempt.number is None:
            raise TrainingError(
                f"{attempt.candidate} cannot be fitted as it is declared: {outcome.trouble}",
                "mend it where it is declared, or tune another with --candidate",
            )
        study.fail(attempt, outcome.trouble)
        return False
    attempt.scores.append(outcome.score)
    if len(attempt.scores) == FOLDS:
        study.finish(attempt)
        return False
    return not study.prunes(attempt)


def with_parameters(candidate: Candidate, parameters: Mapping[str, Any]) -> Candidate:
    """Return the candidate with some parameters of its estimator changed."""

    def build(seed: int) -> Any:
        return candidate.build(seed).set_params(**parameters)

    return dataclasses.replace(candidate, build=build)


def tuned(candidate: Candidate, parameters: Mapping[str, Any]) -> Candidate:
    """Return a candidate of its own, named after the one that it was tuned from."""
    return dataclasses.replace(
        with_parameters(candidate, parameters),
        name=f"{candidate.name}Tuned",
        file=f"{candidate.file or candidate.name}Tuned",
        always_registered=False,
        search={},
    )


def searchable(use_case: UseCase, names: tuple[str, ...] = ()) -> tuple[Candidate, ...]:
    """Return the candidates to tune: those named, or all plain ones that declare a search space.

    Raises `UsageError` for a name that is unknown or declares none, and for one whose estimator
    lacks a parameter that is searched; of those not named, the latter are left out with a warning.
    """
    declared = (*use_case.candidates, *(c for c in use_case.on_demand if c.name in names))
    found = {c.name: c for c in declared if c.search}
    for name in names:
        if name not in found:
            known = name in {c.name for c in declared}
            raise UsageError(
                f"{use_case.name} has no {'search space for' if known else 'candidate'} {name!r}",
                f"can be tuned: {', '.join(found) or 'none'}",
            )
    chosen = []
    for candidate in found.values():
        if names and candidate.name not in names:
            continue
        trouble = _misfit(candidate)
        if trouble and names:
            raise UsageError(trouble, f"correct its search where {use_case.name} declares it")
        if trouble:
            log.warning(trouble)
        else:
            chosen.append(candidate)
    if not chosen:
        raise UsageError(
            f"no candidate of {use_case.name} declares a search space that can be used",
            'declare one: Candidate(…, search={"max_depth": Range(2, 10)})',
        )
    return tuple(chosen)


def _misfit(candidate: Candidate) -> str:
    """Say which parameter of the search the estimator lacks: where LightGBM cannot load, say."""
    estimator = candidate.build(SEED)
    unknown = sorted(set(candidate.search) - set(estimator.get_params()))
    if not unknown:
        return ""
    return f"{candidate.name} cannot be tuned: {type(estimator).__name__} has no {unknown[0]}"


def _in_one_thread(candidate: Candidate) -> Candidate:
    """Trials run beside each other: threads of one would only wait for those of another."""
    if isinstance(getattr(candidate.build(SEED), "n_jobs", None), int):
        return with_parameters(candidate, {"n_jobs": 1})
    return candidate

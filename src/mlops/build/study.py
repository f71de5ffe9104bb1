"""A study: what was tried on one table, kept by Optuna in one SQLite file per use case.

A study belongs to training rows (in their order, which decides the folds), to the search space and
the declared settings of its candidates, and to the libraries that fit them. If any of these is
another, so is the study, because its scores could not be compared.

Each trial's proposal is drawn with a seed of its own: that of the suite plus the number of its
draw, the first that no other trial has. So a search that was interrupted proposes, when it goes on,
what it would have proposed, and what several processes were at when it was killed comes again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import importlib.metadata
import itertools
import json
import math
import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError

from mlops.build.data import Split
from mlops.build.tuning import Attempt
from mlops.errors import DataError, UsageError
from mlops.usecase import FOLDS, SEED, Candidate, Range, UseCase

STATES = {
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "pruned",
    TrialState.RUNNING: "running",
}
COUNTED = tuple(STATES)
"""Those that were not interrupted: Optuna calls these failed."""
CHOICE = "candidate"
DRAW = "draw"
FITTED_BY = ("scikit-learn", "lightgbm")


@dataclasses.dataclass(frozen=True, slots=True)
class Trial:
    """One trial, as it is kept. A pruned one has the scores of its first folds only.

    `state` is running, finished, pruned, or failed, with the reason in `trouble`.
    """

    number: int
    candidate: str
    parameters: dict[str, Any]
    scores: tuple[float, ...]
    state: str
    started_ms: int
    ended_ms: int
    trouble: str = ""

    @property
    def mean(self) -> float:
        return statistics.fmean(self.scores) if self.scores else math.nan


@dataclasses.dataclass(frozen=True, slots=True)
class Best:
    """The best trial of a use case's studies, and the study that it is of."""

    study: str
    trial: Trial


class Study:
    """Trials of some candidates of a use case on some training rows.

    `path` is the file that keeps them; without one they are kept in memory. Raises `DataError` if
    the file cannot be used.
    """

    def __init__(
        self, path: Path | None, use_case: UseCase, candidates: tuple[Candidate, ...], parts: Split
    ) -> None:
        self.candidates = candidates
        identity = _identity(use_case, candidates, parts)
        self.name = f"{use_case.name}-{_digest(identity)[:12]}"
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with usable(path):
            storage = _storage(path)
            self.changed = _changed(storage, use_case, identity, self.name)
            self._study = optuna.create_study(
                storage=storage,
                study_name=self.name,
                direction="maximize",
                load_if_exists=True,
                pruner=optuna.pruners.MedianPruner(n_startup_trials=5),
            )
            if "identity" not in self._study.user_attrs:
                self._study.set_user_attr("identity", identity)
        self._live: dict[int, optuna.Trial] = {}
        # A search that was killed could not say so: what it was at counts as never tried.
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self._study.tell(trial.number, state=TrialState.FAIL)

    def counted(self) -> int:
        """Return how many trials were asked for and not interrupted."""
        return len(self._study.get_trials(deepcopy=False, states=COUNTED))

    def not_yet_declared(self) -> list[str]:
        """Return the candidates whose declared settings have not been scored yet."""
        return [c.name for c in self.candidates if c.name not in self.declared()]

    def declared(self) -> dict[str, tuple[float, ...]]:
        """Return the scores, fold by fold, of the candidates as they are declared."""
        attributes = self._study.user_attrs
        keys = {c.name: f"declared {c.name}" for c in self.candidates}
        return {name: tuple(attributes[key]) for name, key in keys.items() if key in attributes}

    def ask(self) -> Attempt:
        """Return the next trial. The first ones try each candidate once."""
        names = [candidate.name for candidate in self.candidates]
        counted = self._study.get_trials(deepcopy=False, states=COUNTED)
        drawn = {trial.user_attrs.get(DRAW, trial.number) for trial in counted}
        draw = next(number for number in itertools.count() if number not in drawn)
        waiting = self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        if draw < len(names) and not waiting:
            self._study.enqueue_trial({CHOICE: names[draw]})
        self._study.sampler = optuna.samplers.TPESampler(seed=SEED + draw)
        trial = self._study.ask()
        trial.set_user_attr(DRAW, draw)
        chosen = self.candidates[names.index(trial.suggest_categorical(CHOICE, names))]
        for name, values in chosen.search.items():
            _suggest(trial, f"{chosen.name}.{name}", values)
        self._live[trial.number] = trial
        return Attempt(trial.number, chosen.name, _parameters(trial.params))

    def prunes(self, attempt: Attempt) -> bool:
        """Note the mean so far; if it is below the median at this fold, end the trial."""
        if attempt.number is None:
            return False
        trial = self._live[attempt.number]
        trial.report(statistics.fmean(attempt.scores), len(attempt.scores))
        if not trial.should_prune():
            return False
        self._end(attempt, state=TrialState.PRUNED)
        return True

    def finish(self, attempt: Attempt) -> None:
        """Note that all folds are scored."""
        if attempt.number is None:
            self._study.set_user_attr(f"declared {attempt.candidate}", attempt.scores)
        else:
            self._live[attempt.number].report(statistics.fmean(attempt.scores), FOLDS)
            self._end(attempt, statistics.fmean(attempt.scores))

    def fail(self, attempt: Attempt, trouble: str) -> None:
        """Note that these parameters do not work: a result too, and not to be tried again."""
        assert attempt.number is not None
        self._live[attempt.number].set_user_attr("trouble", trouble)
        self._end(attempt, state=TrialState.PRUNED)

    def give_up(self, attempts: Iterable[Attempt]) -> None:
        """Note that trials were interrupted."""
        for attempt in attempts:
            self._end(attempt, state=TrialState.FAIL)

    def trials(self) -> list[Trial]:
        """Return all trials that were not interrupted, in order."""
        return [_trial(trial) for trial in self._study.get_trials(states=COUNTED)]

    def best(self) -> Trial | None:
        return _best(self.trials())

    def _end(self, attempt: Attempt, value: float | None = None, state: Any = None) -> None:
        assert attempt.number is not None
        trial = self._live.pop(attempt.number)
        trial.set_user_attr("scores", attempt.scores)
        self._study.tell(trial, value, state)


def best_of_studies(path: Path, use_case: UseCase, parts: Split) -> Best:
    """Return the best trial of all studies of these training rows.

    Raises `UsageError` if there is none.
    """
    run = f"run: mlops tune {use_case.name}"
    if not path.exists():
        raise UsageError(f"{use_case.name} has no study yet", run)
    found = []
    tunable = {candidate.name for candidate in use_case.candidates if candidate.search}
    with usable(path):
        for study in optuna.get_all_study_summaries(_storage(path)):
            if _comparable(study.user_attrs.get("identity", {}), use_case, parts, tunable):
                loaded = optuna.load_study(study_name=study.study_name, storage=_storage(path))
                best = _best([_trial(trial) for trial in loaded.get_trials(states=COUNTED)])
                if best is not None:
                    found.append(Best(study.study_name, best))
    if not found:
        raise UsageError(
            f"no study of {use_case.name} has a finished trial on this table, with these "
            "declarations and libraries",
            run,
        )
    return max(found, key=lambda one: one.trial.mean)


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Let one search at a time write to a file of studies. Raises `UsageError` for a second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"another search writes to {path}", "wait for it to end, or stop it with Ctrl-C"
            ) from None
        yield


@contextlib.contextmanager
def usable(path: Path | None) -> Iterator[None]:
    """Turn whatever Optuna or its database raise about the file into one clear line."""
    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        said = next(iter(str(error.__cause__ or error).splitlines()), "")
        raise DataError(
            f"{path} cannot be used: {said}", "make it writable, or move it away and tune anew"
        ) from error


def _identity(use_case: UseCase, candidates: tuple[Candidate, ...], parts: Split) -> dict[str, Any]:
    """Return what makes scores comparable: one text for each reason why they may not be."""
    return {
        "training rows": _rows(parts),
        "declaration of the model inputs": repr((use_case.inputs, use_case.metric, FOLDS, SEED)),
        "libraries": [_version(name) for name in FITTED_BY],
        "candidates": {c.name: _declaration(c) for c in candidates},
    }


def _declaration(candidate: Candidate) -> str:
    estimator = candidate.build(SEED)
    settings = sorted((name, repr(value)) for name, value in estimator.get_params().items())
    return repr((type(estimator).__name__, candidate.scaled, settings, dict(candidate.search)))


def _rows(parts: Split) -> str:
    digest = hashlib.sha256(repr(list(parts.X_train.columns)).encode())
    digest.update(parts.X_train.to_numpy(dtype=float).tobytes())
    digest.update(parts.y_train.tobytes())
    return digest.hexdigest()


def _changed(
    storage: Any, use_case: UseCase, identity: dict[str, Any], name: str
) -> tuple[str, ...]:
    """Return why the newest study of the same candidates cannot be continued, if it cannot."""
    earlier = [
        study
        for study in optuna.get_all_study_summaries(storage)
        if study.user_attrs.get("identity", {}).get("candidates", {}).keys()
        == identity["candidates"].keys()
    ]
    if not earlier or any(study.study_name == name for study in earlier):
        return ()
    newest = max(earlier, key=lambda study: study._study_id)  # noqa: SLF001  # the order made
    before = newest.user_attrs["identity"]
    return tuple(what for what in identity if before.get(what) != identity[what])


def _comparable(
    identity: dict[str, Any], use_case: UseCase, parts: Split, tunable: set[str]
) -> bool:
    names = set(identity.get("candidates", {}))
    if not names or names - tunable:
        return False
    candidates = tuple(c for c in use_case.candidates if c.name in names)
    return identity == _identity(use_case, candidates, parts)


def _digest(identity: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _version(name: str) -> str:
    try:
        return f"{name} {importlib.metadata.version(name)}"
    except importlib.metadata.PackageNotFoundError:
        return f"no {name}"


def _suggest(trial: optuna.Trial, name: str, values: Range | tuple[Any, ...]) -> None:
    if not isinstance(values, Range):
        trial.suggest_categorical(name, values)
    elif isinstance(values.low, int) and isinstance(values.high, int):
        trial.suggest_int(name, values.low, values.high, log=values.log)
    else:
        trial.suggest_float(name, values.low, values.high, log=values.log)


def _parameters(params: dict[str, Any]) -> dict[str, Any]:
    """Return the estimator's parameters: Optuna's without the candidate that stands before each."""
    return {key.partition(".")[2]: value for key, value in params.items() if key != CHOICE}


def _trial(trial: optuna.trial.FrozenTrial) -> Trial:
    trouble = trial.user_attrs.get("trouble", "")
    started, ended = trial.datetime_start, trial.datetime_complete
    return Trial(
        trial.number,
        trial.params.get(CHOICE, ""),
        _parameters(trial.params),
        tuple(trial.user_attrs.get("scores", ())),
        "failed" if trouble else STATES[trial.state],
        int(started.timestamp() * 1000) if started else 0,
        int(ended.timestamp() * 1000) if ended else 0,
        trouble,
    )


def _best(trials: list[Trial]) -> Trial | None:
    """Return the best mean over all folds; of equals, the first."""
    finished = [trial for trial in trials if trial.state == "finished"]
    return max(finished, key=lambda trial: trial.mean, default=None)


def _storage(path: Path | None) -> Any:
    if path is None:
        return optuna.storages.InMemoryStorage()
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return optuna.storages.RDBStorage(f"sqlite:///{path.resolve()}")
    except RuntimeError as error:  # a file of another major version of Optuna
        raise DataError(f"{path}: {error}", "move it away and tune anew") from None

"""Tune: search the declared spaces of candidates, keep every trial, track them, report the best."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import joblib

from mlops.build.data import Split, prepare, split
from mlops.build.study import Study, Trial, alone, best_of_studies, usable
from mlops.build.tuning import Attempt, Here, Rows, search, searchable, tuned
from mlops.build.workers import Workers
from mlops.errors import TrackingError, TrainingError, UsageError
from mlops.loop.report import Report, Silent
from mlops.loop.track import tracking_of
from mlops.settings import Settings, read_settings
from mlops.usecase import FOLDS, SEED, Candidate, UseCase
from mlops.usecases import find

TRIALS = 50
BUDGET = "10m"
SHOWN_TRIALS = 5
SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


@dataclasses.dataclass(frozen=True, slots=True)
class Tried:
    """A trial or, without a number, a candidate as it is declared: its scores over the folds."""

    trial: int | None
    candidate: str
    parameters: dict[str, Any]
    mean: float
    std: float
    fold_scores: tuple[float, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Tuning:
    """What a search found. `best` are the best trials, best first; `counts` go by their state.

    `ended` says why: all trials were made, the budget was used up (perhaps before any trial was
    finished), or Ctrl-C.
    """

    use_case: str
    metric: str
    study: str
    path: str
    ended: Literal["trials", "budget", "interrupt"]
    seconds: float
    trials: int
    counts: dict[str, int]
    best: tuple[Tried, ...]
    declared: tuple[Tried, ...]
    tracked_in: str | None


def tune(
    name: str,
    *,
    trials: int | None = None,
    budget: str | None = None,
    candidates: tuple[str, ...] = (),
    jobs: int | None = None,
    settings: Settings | None = None,
    report: Report | None = None,
) -> Tuning:
    """Search until the study has `trials` in all, or for `budget` (90s, 10m, 1h); then track it.

    With a budget alone it goes on for all of it; without either, 50 trials or ten minutes.

    Tries all `candidates` that declare a search space, unless some are named, in `jobs` processes
    (one: this process; unless told, as many as there are cores). Ctrl-C ends the search early; a
    search that was ended or killed is continued by the same call. With one job the same call gives
    the same trials; with several they depend on which ends first.

    Several jobs import the calling script anew, as `multiprocessing` does: call this under
    `if __name__ == "__main__":`.

    Raises `UsageError`, `DataError`, and `TrainingError` when every trial failed. A tracking server
    that fails is reported and costs nothing: the study is kept.
    """
    started = time.monotonic()
    settings = settings or read_settings()
    report = report or Silent()
    limit = math.inf if trials is None and budget else trials or TRIALS
    deadline = started + duration(budget or BUDGET)
    use_case = find(name)
    chosen = searchable(use_case, candidates)
    parts = split(use_case, prepare(use_case, settings.data).frame)
    path = study_file(settings, use_case)
    with alone(path), usable(path):
        study = Study(path, use_case, chosen, parts)
        _introduce(study, path, name, limit, report)
        ended = _search(study, use_case, parts, limit, deadline, jobs, report)
        result = _result(study, use_case, path, ended, started)
        if ended != "interrupt":
            result = dataclasses.replace(result, tracked_in=_track(study, result, settings, report))
    return dataclasses.replace(result, seconds=time.monotonic() - started)


def tuned_candidate(
    use_case: UseCase, parts: Split, settings: Settings
) -> tuple[Candidate, dict[str, str]]:
    """Return the best trial of the use case's studies as a candidate, and where it is from.

    Raises `UsageError` when no study of this table has one.
    """
    best = best_of_studies(study_file(settings, use_case), use_case, parts)
    candidate = tuned(use_case.candidate(best.trial.candidate), best.trial.parameters)
    return candidate, {"study": best.study, "trial": str(best.trial.number)}


def study_file(settings: Settings, use_case: UseCase) -> Path:
    return settings.studies / f"{use_case.name}.db"


def duration(text: str) -> float:
    """Return the seconds of 90s, 10m or 1h. Raises `UsageError`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh])", text.strip().lower())
    if found is None or float(found[1]) == 0:
        raise UsageError(f"{text!r} is no length of time", "write it as 90s, 10m or 1h")
    return float(found[1]) * SECONDS[found[2]]


def _introduce(study: Study, path: Path, name: str, trials: float, report: Report) -> None:
    before = study.counted()
    if before >= trials:
        report.say(
            f"{name}: study {study.name} has its {before} trials already; "
            f"more with: mlops tune {name} --trials {before + TRIALS}"
        )
    elif before:
        report.say(f"{name}: study {study.name} goes on after {before} trials")
    elif study.changed:
        report.say(
            f"{name}: new study {study.name} in {path}: the {' and the '.join(study.changed)} "
            "changed, so earlier trials cannot be compared with new ones"
        )
    else:
        report.say(f"{name}: new study {study.name} in {path}")


def _search(
    study: Study,
    use_case: UseCase,
    parts: Split,
    trials: float,
    deadline: float,
    jobs: int | None,
    report: Report,
) -> Literal["trials", "budget", "interrupt"]:
    left: float = len(study.not_yet_declared()) + max(0, trials - study.counted())
    if not left:
        return "trials"
    rows = Rows(use_case, parts.X_train, parts.y_train)
    count = int(min(jobs or joblib.cpu_count(), left))
    total = None if math.isinf(left) else int(left)
    with (
        _ctrl_c() as interrupted,
        contextlib.ExitStack() as stack,
        report.steps(f"{use_case.name}: tuning", total) as advance,
    ):
        team: Workers | Here = Here(rows)
        if count > 1:
            team = Workers(rows, count, find)
            stack.callback(team.close)
        best = study.best()
        advance(_so_far(best))

        def finished(attempt: Attempt) -> None:
            nonlocal best
            found = study.best()
            if found is not None and found != best:
                report.say(f"{use_case.name}: {_so_far(found)}")
            best = found
            advance(_so_far(best))

        search(
            study,
            team,
            trials=trials,
            stop=lambda: interrupted.is_set() or time.monotonic() > deadline,
            finished=finished,
        )
    if interrupted.is_set():
        return "interrupt"
    done = study.counted() >= trials and not study.not_yet_declared()
    return "trials" if done else "budget"


def _so_far(best: Trial | None) -> str:
    if best is None:
        return "no trial finished yet"
    return f"best so far {best.mean:.4f} {best.candidate} (trial {best.number})"


def _result(
    study: Study,
    use_case: UseCase,
    path: Path,
    ended: Literal["trials", "budget", "interrupt"],
    started: float,
) -> Tuning:
    trials = study.trials()
    finished = sorted(
        (t for t in trials if t.state == "finished"), key=lambda t: (-t.mean, t.number)
    )
    if not finished and ended == "trials":
        troubles = [trial.trouble for trial in trials if trial.trouble]
        raise TrainingError(
            f"all {len(trials)} trials of {use_case.name} failed, the last with: {troubles[-1]}",
            f"correct the search spaces where {use_case.name} declares them",
        )
    return Tuning(
        use_case=use_case.name,
        metric=use_case.metric,
        study=study.name,
        path=str(path),
        ended=ended,
        seconds=time.monotonic() - started,
        trials=len(trials),
        counts={
            state: sum(trial.state == state for trial in trials)
            for state in ("finished", "pruned", "failed")
        },
        best=tuple(
            _tried(t.number, t.candidate, t.parameters, t.scores) for t in finished[:SHOWN_TRIALS]
        ),
        declared=tuple(_tried(None, name, {}, scores) for name, scores in study.declared().items()),
        tracked_in=None,
    )


def _tried(
    number: int | None, candidate: str, parameters: dict[str, Any], scores: tuple[float, ...]
) -> Tried:
    mean, std = statistics.fmean(scores), statistics.stdev(scores)
    return Tried(number, candidate, parameters, mean, std, scores)


def _track(study: Study, result: Tuning, settings: Settings, report: Report) -> str | None:
    """Track what is not tracked yet; return where, or None if that failed."""
    tracking = tracking_of(settings)
    try:
        with report.steps(f"{result.use_case}: tracking", result.trials) as advance:
            tracking.log_study(
                experiment=f"{result.use_case}-tuning",
                study=study.name,
                parameters={
                    "candidates": ", ".join(c.name for c in study.candidates),
                    "seed": SEED,
                    "folds": FOLDS,
                },
                metrics={f"best_{result.metric}": one.mean for one in result.best[:1]}
                | {f"declared_{one.candidate}": one.mean for one in result.declared},
                metric=result.metric,
                trials=[dataclasses.asdict(trial) for trial in study.trials()],
                advance=advance,
            )
    except TrackingError as error:
        report.say(f"{error}; the study is kept, and the next mlops tune tracks what is missing")
        return None
    return tracking.uri


@contextlib.contextmanager
def _ctrl_c() -> Iterator[threading.Event]:
    """Note the first Ctrl-C instead of raising it amid a write; a second one raises as ever."""
    noted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return

    def note(number: int, frame: Any) -> None:
        noted.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before: Callable[[int, Any], Any] | int | None = signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)

"""Tuning: declared spaces searched on training rows; kept, seeded, pruned, continued, tracked."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import psutil
import pytest
from conftest import environment, free_port, mlops
from rich.console import Console
from sklearn.linear_model import LogisticRegression
from sklearn.tree import DecisionTreeClassifier

from mlops import tables
from mlops.build.data import Split, split
from mlops.build.study import Study, Trial, alone, best_of_studies
from mlops.build.training import train_candidate
from mlops.build.tuning import Here, Outcome, Rows, Task, search, searchable, tuned
from mlops.build.workers import Workers
from mlops.errors import DataError, TrainingError, UsageError
from mlops.improve.ledger import Ledger
from mlops.loop import tune as tuning
from mlops.loop.report import Silent
from mlops.loop.train import train
from mlops.loop.tune import Tuning, duration, tune
from mlops.package.bundle import open_bundle
from mlops.settings import Settings, read_settings
from mlops.track.runs import Tracking
from mlops.usecase import Candidate, Range, UseCase
from mlops.usecases import USE_CASES, find

# What MLflow does with other libraries is not ours to mend.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore:.*Any type hint is inferred:UserWarning"
)

IRIS = USE_CASES["iris"]
DISCRIMINANT = "LinearDiscriminantAnalysis"


def tree(seed: int) -> Any:
    return DecisionTreeClassifier(random_state=seed)


TREE = Candidate(
    "Tree",
    tree,
    search={
        "max_depth": Range(1, 6),
        "min_samples_leaf": Range(1, 40, log=True),
        "criterion": ("gini", "entropy"),
        "ccp_alpha": Range(1e-4, 0.1, log=True),
    },
)
TREES = dataclasses.replace(IRIS, candidates=(TREE,))


@functools.cache
def parts_of(use_case_name: str = "iris") -> Split:
    use_case = USE_CASES[use_case_name]
    return split(use_case, use_case.load().table)


def rows_of(use_case: UseCase = TREES, parts: Split | None = None) -> Rows:
    parts = parts or parts_of()
    return Rows(use_case, parts.X_train, parts.y_train)


def study_of(path: Path | None = None, use_case: UseCase = TREES) -> Study:
    return Study(path, use_case, use_case.candidates, parts_of())


def searched(study: Study, trials: int, use_case: UseCase = TREES) -> list[Trial]:
    """The trials of a study after a search in this process."""
    search(study, Here(rows_of(use_case)), trials=trials, stop=lambda: False, finished=print)
    return study.trials()


@functools.cache
def once() -> Study:
    """A study of 20 trials, made in one go."""
    study = study_of()
    searched(study, 20)
    return study


def proposals(trials: list[Trial]) -> list[tuple[str, dict[str, Any], tuple[float, ...], str]]:
    return [(t.candidate, t.parameters, t.scores, t.state) for t in trials]


# --- what is searched


def test_a_search_stays_within_the_declared_space_and_uses_all_of_it():
    tried = [trial.parameters for trial in once().trials()]
    assert {type(one["max_depth"]) for one in tried} == {int}
    assert {one["max_depth"] for one in tried} <= set(range(1, 7))
    assert all(1 <= one["min_samples_leaf"] <= 40 for one in tried)
    assert all(1e-4 <= one["ccp_alpha"] <= 0.1 for one in tried)
    assert {one["criterion"] for one in tried} == {"gini", "entropy"}
    assert sum(one["ccp_alpha"] < 0.003 for one in tried) > 3, "a log scale reaches small values"


@pytest.mark.parametrize("use_case", USE_CASES.values(), ids=USE_CASES)
def test_every_declared_space_is_one_of_parameters_that_its_estimator_has(use_case):
    found = searchable(use_case)
    assert {c.name for c in found} == {c.name for c in use_case.candidates} - {"LinearRegression"}


def test_a_search_starts_with_the_candidates_as_declared_scored_as_train_scores_them():
    quick = tuple(c for c in IRIS.candidates if c.name != "RandomForest")
    use_case = dataclasses.replace(IRIS, candidates=quick)
    study = study_of(use_case=use_case)
    searched(study, 1, use_case)
    for candidate in quick:
        expected = train_candidate(IRIS, candidate, parts_of()).fold_scores
        assert study.declared()[candidate.name] == pytest.approx(expected, abs=1e-12)


def test_the_best_trial_has_the_best_mean_over_all_five_folds_and_trains_to_the_same_scores():
    trials, best = once().trials(), once().best()
    finished = [trial for trial in trials if trial.state == "finished"]
    assert best.mean == max(trial.mean for trial in finished)
    assert {len(trial.scores) for trial in finished} == {5}
    again = train_candidate(TREES, tuned(TREE, best.parameters), parts_of())
    assert again.fold_scores == best.scores
    assert again.candidate.name == "TreeTuned"


def test_hopeless_trials_are_pruned_after_their_first_folds():
    trials = once().trials()
    pruned = [trial for trial in trials if trial.state == "pruned"]
    assert pruned
    assert all(1 <= len(trial.scores) < 5 for trial in pruned)
    middle = np.median([trial.mean for trial in trials if trial.state == "finished"])
    assert all(trial.mean < middle for trial in pruned)


def test_parameters_that_do_not_work_are_a_failed_trial_and_not_the_end():
    odd = dataclasses.replace(TREE, search={"max_depth": Range(-3, 3)})
    use_case = dataclasses.replace(IRIS, candidates=(odd,))
    trials = searched(study_of(use_case=use_case), 8, use_case)
    failed = [trial for trial in trials if trial.state == "failed"]
    assert len(trials) == 8
    assert failed
    assert all(trial.parameters["max_depth"] < 1 and trial.scores == () for trial in failed)
    assert "max_depth" in failed[0].trouble
    assert "\n" not in failed[0].trouble


def test_a_candidate_that_cannot_be_fitted_as_declared_is_an_error_and_no_trial():
    hasty = Candidate(
        "Hasty", lambda seed: LogisticRegression(max_iter=2), search={"C": Range(0.1, 1.0)}
    )
    use_case = dataclasses.replace(IRIS, candidates=(hasty,))
    study = study_of(use_case=use_case)
    with pytest.raises(
        TrainingError, match=r"Hasty cannot be fitted as it is declared: .*converge"
    ):
        searched(study, 5, use_case)
    assert study.trials() == []


def test_the_first_trials_try_each_candidate_once():
    names = ("First", "Second", "Third")
    candidates = tuple(dataclasses.replace(TREE, name=name) for name in names)
    use_case = dataclasses.replace(IRIS, candidates=candidates)
    study = study_of(use_case=use_case)
    assert tuple(study.ask().candidate for _ in names) == names
    assert len({study.ask().candidate for _ in range(9)}) > 1


# --- the same again, and on


def test_the_same_search_proposes_the_same_trials():
    again = searched(study_of(), 12)  # the first ten are drawn at random, the others are not
    assert proposals(again) == proposals(once().trials())[:12]


def test_a_search_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path):
    path = tmp_path / "trees.db"
    looks = iter(range(1000))
    study = study_of(path)
    search(
        study,
        Here(rows_of()),
        trials=12,
        stop=lambda: next(looks) > 17,  # in the middle of a trial
        finished=lambda attempt: None,
    )
    before = study.trials()
    assert 0 < len(before) < 8
    assert proposals(searched(study_of(path), 12)) == proposals(once().trials())[:12]
    assert study_of(path).trials()[: len(before)] == before


def test_a_trial_that_a_killed_search_was_at_counts_as_never_tried(tmp_path):
    path = tmp_path / "trees.db"
    study = study_of(path)
    searched(study, 3)
    lost = study.ask()  # and never heard of again
    again = study_of(path)
    assert again.counted() == 3
    assert again.ask().parameters == lost.parameters


def test_what_several_processes_were_at_when_it_was_killed_comes_again_and_nothing_twice(tmp_path):
    names = ("First", "Second", "Third")
    candidates = tuple(dataclasses.replace(TREE, name=name) for name in names)
    use_case = dataclasses.replace(IRIS, candidates=candidates)
    study = study_of(tmp_path / "trees.db", use_case)
    _, lost, *others = (study.ask() for _ in range(5))  # as five processes at once have them
    for attempt in others:
        attempt.scores.extend([0.5] * 5)
        study.finish(attempt)
    again = study_of(tmp_path / "trees.db", use_case)
    first, second, new = (again.ask() for _ in range(3))
    assert (first.candidate, second.candidate) == ("First", "Second")
    assert second.parameters == lost.parameters
    assert new.parameters not in [attempt.parameters for attempt in (first, second, *others)]


def test_the_number_of_trials_counts_those_that_are_there(tmp_path):
    path = tmp_path / "trees.db"
    assert [len(searched(study_of(path), trials)) for trials in (2, 2, 3)] == [2, 2, 3]


def other_rows() -> Split:
    parts = parts_of()
    return dataclasses.replace(parts, y_train=np.roll(parts.y_train, 1))


@pytest.mark.parametrize(
    ("candidate", "parts", "why"),
    [
        (TREE, other_rows, ("training rows",)),
        (dataclasses.replace(TREE, search={"max_depth": Range(1, 9)}), parts_of, ("candidates",)),
        (dataclasses.replace(TREE, scaled=True), parts_of, ("candidates",)),
    ],
    ids=["table", "space", "declaration"],
)
def test_another_table_space_or_declaration_begins_another_study_and_says_why(
    tmp_path, candidate, parts, why
):
    path = tmp_path / "trees.db"
    searched(study_of(path), 2)
    use_case = dataclasses.replace(IRIS, candidates=(candidate,))
    other = Study(path, use_case, (candidate,), parts())
    assert other.trials() == []
    assert other.changed == why
    assert study_of(path).changed == ()
    assert study_of(path).counted() == 2


def test_a_second_search_on_the_same_file_is_refused(tmp_path):
    path = tmp_path / "studies" / "iris.db"
    refused = pytest.raises(UsageError, match=r"another search writes to .*iris\.db")
    with alone(path), refused, alone(path):
        pass
    with alone(path):
        pass


def test_a_file_that_is_no_study_is_one_clear_line(tmp_path):
    path = tmp_path / "iris.db"
    path.write_bytes(b"not a database at all " * 99)
    with pytest.raises(DataError, match=r"iris\.db cannot be used: .*not a database.*tune anew"):
        study_of(path)


# --- the best of them


def test_from_several_studies_of_the_same_rows_the_best_trial_is_taken(tmp_path):
    path = tmp_path / "iris.db"
    stump = dataclasses.replace(TREE, name="Stump", search={"max_depth": Range(1, 1)})
    both = dataclasses.replace(IRIS, candidates=(stump, TREE))
    for use_case in (dataclasses.replace(IRIS, candidates=(stump,)), TREES):
        searched(study_of(path, use_case), 3, use_case)
    best = best_of_studies(path, both, parts_of())
    assert best.trial == study_of(path).best()
    assert best.trial.candidate == "Tree"
    only_stump = dataclasses.replace(IRIS, candidates=(stump,))
    assert best_of_studies(path, only_stump, parts_of()).trial.candidate == "Stump"


def test_a_study_of_another_table_or_none_gives_no_candidate_but_the_command_to_run(tmp_path):
    path = tmp_path / "iris.db"
    with pytest.raises(UsageError, match="iris has no study yet — run: mlops tune iris"):
        best_of_studies(path, TREES, parts_of())
    searched(study_of(path), 2)
    with pytest.raises(UsageError, match=r"no study of iris .* on this table.*mlops tune iris"):
        best_of_studies(path, TREES, other_rows())


# --- processes


def answer(team: Workers, task: Task) -> Outcome:
    (worker,) = team.idle()
    team.give(worker, task)
    while not (found := team.wait(0.2)):
        assert team.idle() == []
    assert found[0][0] == worker
    return found[0][1]


@pytest.mark.parametrize(
    ("use_case", "task", "wrong"),
    [
        (
            USE_CASES["housing"],
            Task("DecisionTree", {"max_depth": 4}, 3),
            Task("DecisionTree", {"max_depth": -4}, 0),
        ),
        (
            IRIS,
            Task(DISCRIMINANT, {"solver": "lsqr", "shrinkage": 0.1}, 3),
            Task(DISCRIMINANT, {"solver": "none"}, 0),
        ),
    ],
    ids=["housing", "iris"],
)
def test_a_process_scores_as_this_one_does_and_its_death_is_an_error_that_says_what_to_do(
    use_case, task, wrong
):
    rows = rows_of(use_case, parts_of(use_case.name))
    with contextlib.closing(Workers(rows, 1, find)) as team:
        assert answer(team, task) == rows.score(task)
        assert next(iter(wrong.parameters)) in answer(team, wrong).trouble
        team.processes[0].kill()
        with pytest.raises(TrainingError, match=r"ended with -9 — .*--jobs"):
            answer(team, task)
    assert not team.processes[0].is_alive()


# --- the verb


@pytest.fixture
def fresh(tmp_path: Path, empty_store: Path) -> Settings:
    """A project in which nothing was trained."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return settings_of(tmp_path)


def settings_of(home: Path, tracking_uri: str = "") -> Settings:
    return read_settings(MLOPS_HOME=home, MLFLOW_TRACKING_URI=tracking_uri, MODEL_REGISTRY_URI="")


class Said:
    """A report that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.bars: list[tuple[str, int, list[str]]] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    def steps(self, title: str, total: int) -> Any:
        now: list[str] = []
        self.bars.append((title, total, now))
        return contextlib.nullcontext(now.append)


def tune_iris(settings: Settings, trials: int, **more: Any) -> Tuning:
    return tune(
        "iris", trials=trials, candidates=(DISCRIMINANT,), jobs=1, settings=settings, **more
    )


def tracked(settings: Settings) -> dict[str, list[Any]]:
    """The runs of `iris-tuning`: studies, and their trials."""
    client = Tracking(settings.home, "", "").client
    experiment = client.get_experiment_by_name("iris-tuning")
    runs = client.search_runs([experiment.experiment_id]) if experiment else []
    below = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    return {"studies": [run for run in runs if run not in below], "trials": below}


def test_a_search_shows_a_bar_with_the_best_so_far_and_says_each_that_is_better(fresh):
    said = Said()
    result = tune_iris(fresh, 3, report=said)
    title, total, steps = said.bars[0]
    assert (title, total, len(steps)) == ("iris: tuning", 4, 5)
    assert steps[0] == "no trial finished yet"
    assert re.fullmatch(rf"best so far 0\.\d+ {DISCRIMINANT} \(trial \d\)", steps[-1])
    assert said.lines[0].startswith("iris: new study iris-")
    assert sum("best so far" in line for line in said.lines) >= 1
    assert (result.ended, result.trials, result.counts["finished"]) == ("trials", 3, 3)
    (declared,) = result.declared
    assert (declared.trial, declared.candidate) == (None, DISCRIMINANT)
    assert result.best[0].mean == max(one.mean for one in result.best)
    assert result.best[0].std == pytest.approx(np.std(result.best[0].fold_scores, ddof=1))


def test_trials_are_runs_below_their_study_tracked_once_however_often_it_goes_on(fresh):
    first = tune_iris(fresh, 2)
    second = tune_iris(fresh, 4)
    third = tune_iris(fresh, 4)
    assert first.study == second.study == third.study
    found = tracked(fresh)
    (study,) = found["studies"]
    assert study.data.tags["study"] == first.study
    assert study.data.metrics["best_accuracy"] == second.best[0].mean
    assert study.info.status == "FINISHED"
    numbers = sorted(run.data.tags["trial"] for run in found["trials"])
    assert numbers == ["0", "1", "2", "3"]
    best = second.best[0]
    (run,) = (run for run in found["trials"] if run.data.tags["trial"] == str(best.trial))
    assert run.data.tags["mlflow.parentRunId"] == study.info.run_id
    assert run.data.metrics["cv_accuracy_mean"] == best.mean
    assert run.data.params["shrinkage"] == str(best.parameters["shrinkage"])
    assert run.data.params["model_name"] == DISCRIMINANT


def test_a_tracking_that_broke_off_is_completed_and_leaves_nothing_double(fresh):
    tune_iris(fresh, 2)
    client = Tracking(fresh.home, "", "").client
    cut, *_ = tracked(fresh)["trials"]
    client.delete_tag(cut.info.run_id, "trial")  # what a killed logging leaves
    tune_iris(fresh, 3)
    found = tracked(fresh)["trials"]
    assert sorted(run.data.tags["trial"] for run in found) == ["0", "1", "2"]


def test_a_tracking_server_that_is_down_costs_one_line_and_the_trials_are_tracked_later(fresh):
    said = Said()
    away = settings_of(fresh.home, f"http://127.0.0.1:{free_port()}")
    result = tune_iris(away, 2, report=said)
    assert result.tracked_in is None
    assert result.trials == 2
    (line,) = (line for line in said.lines if "tracking at" in line)
    assert "the study is kept" in line
    assert "\n" not in line
    tune_iris(fresh, 2)
    assert len(tracked(fresh)["trials"]) == 2


def test_the_budget_ends_a_search_that_could_go_on_for_long(fresh):
    tune_iris(fresh, 1)
    result = tune_iris(fresh, 100_000, budget="0.5s")
    assert result.ended == "budget"
    assert 1 <= result.trials < 100_000
    assert result.counts["finished"] + result.counts["pruned"] == result.trials


def test_a_budget_alone_is_searched_for_all_of_its_time(fresh, monkeypatch):
    class Impatient(Silent):
        @contextlib.contextmanager
        def steps(self, title: str, total: int | None) -> Iterator[Callable[[str], None]]:
            assert total is None, "nobody knows how many there will be"
            calls = itertools.count()
            yield lambda name: os.kill(os.getpid(), signal.SIGINT) if next(calls) == 5 else None

    monkeypatch.setattr(tuning, "TRIALS", 1)
    more = {"candidates": (DISCRIMINANT,), "jobs": 1, "settings": fresh}
    result = tune("iris", budget="10m", report=Impatient(), **more)
    assert result.ended == "interrupt"
    assert result.trials > 1
    again = tune("iris", **more)
    assert (again.ended, again.trials) == ("trials", result.trials), "without either so many"


def test_what_is_trained_on_demand_is_tuned_when_it_is_named():
    named = dataclasses.replace(TREE, name="Product")
    use_case = dataclasses.replace(IRIS, candidates=(TREE,), on_demand=(named,))
    assert searchable(use_case) == (TREE,)
    assert searchable(use_case, ("Product",)) == (named,)


def test_a_budget_in_which_nothing_can_be_finished_is_no_error_but_says_so(fresh, capsys):
    result = tune_iris(fresh, 5, budget="0.01s")
    assert (result.ended, result.trials, result.best) == ("budget", 0, ())
    tables.tuning(result, Console(width=140))
    assert "No trial is finished: give it longer, mlops tune iris" in capsys.readouterr().out
    assert tune_iris(fresh, 2).trials == 2


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("10m", 600), ("1h", 3600)])
def test_a_budget_is_a_number_with_its_unit(text, seconds):
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "10", "m", "-5m", "0s", "ten minutes", "1d", "nan s"])
def test_any_other_budget_is_refused(text):
    with pytest.raises(UsageError, match=r"is no length of time — write it as 90s, 10m or 1h"):
        duration(text)


@pytest.mark.parametrize(
    ("use_case", "candidate", "says"),
    [
        ("housing", "LinearRegression", "no search space for 'LinearRegression' — can be tuned: D"),
        ("iris", "Nothing", "no candidate 'Nothing' — can be tuned: LogisticRegression, Random"),
    ],
)
def test_a_candidate_that_cannot_be_tuned_is_named_with_those_that_can(use_case, candidate, says):
    with pytest.raises(UsageError, match=says):
        searchable(USE_CASES[use_case], (candidate,))


def test_a_candidate_whose_estimator_lacks_a_parameter_is_left_out_or_refused_if_named(caplog):
    odd = dataclasses.replace(TREE, name="Odd", search={"max_dept": Range(1, 3)})
    use_case = dataclasses.replace(IRIS, candidates=(TREE, odd))
    says = "Odd cannot be tuned: DecisionTreeClassifier has no max_dept"
    assert searchable(use_case) == (TREE,)
    assert [record.getMessage() for record in caplog.records] == [says]
    with pytest.raises(UsageError, match=f"{says} — correct its search where iris declares it"):
        searchable(use_case, ("Odd",))
    with pytest.raises(UsageError, match="no candidate of iris declares a search space that can"):
        searchable(dataclasses.replace(IRIS, candidates=(odd,)))


# --- the best becomes a candidate


def test_train_from_study_makes_the_best_trial_a_candidate_on_the_path_of_all(fresh):
    found = tune_iris(fresh, 3)
    name = f"{DISCRIMINANT}Tuned"
    result = train("iris", only=(name,), from_study=True, settings=fresh)
    (candidate,), (version,) = result.candidates, result.registered
    assert (candidate.name, candidate.fold_scores) == (name, found.best[0].fold_scores)
    pipeline = joblib.load(fresh.models / f"{name}.pkl")
    assert pipeline["model"].get_params()["shrinkage"] == found.best[0].parameters["shrinkage"]
    run = Tracking(fresh.home, "", "").client.get_run(candidate.run_id)
    assert run.data.tags["study"] == found.study
    assert run.data.tags["trial"] == str(found.best[0].trial)

    bundle = open_bundle(fresh.bundles / version.bundle)
    assert bundle.provenance["study"] == found.study
    assert bundle.training["parameters"]["shrinkage"] == str(found.best[0].parameters["shrinkage"])
    with Ledger(fresh.state_database) as ledger:
        assert ledger.versions("iris")[-1].candidate == name


def test_train_from_a_study_that_is_not_there_writes_nothing(fresh):
    with pytest.raises(UsageError, match="run: mlops tune iris"):
        train("iris", from_study=True, settings=fresh)
    assert not fresh.models.exists()


# --- ended from outside


def searching(home: Path, *options: str) -> subprocess.Popen[str]:
    """Start an endless `mlops tune iris` as a terminal does; return when it has a best trial."""
    command = (sys.executable, "-m", "mlops.cli", "tune", "iris", "--trials", "100000", *options)
    process = subprocess.Popen(
        command,
        cwd=home,
        env=environment(home),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    for line in process.stderr:
        if "best so far" in line:
            return process
    raise AssertionError(f"it ended: {process.communicate()}")


def trials_of(process: subprocess.CompletedProcess[str]) -> int:
    return int(re.search(r"^(\d+) trials \(", process.stdout, re.MULTILINE)[1])


def kept_in(home: Path) -> int:
    """How many trials the file of studies holds, which is sound."""
    with contextlib.closing(sqlite3.connect(home / "models" / "studies" / "iris.db")) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        query = "SELECT count(*) FROM trials WHERE state IN ('COMPLETE', 'PRUNED')"
        ((count,),) = database.execute(query)
    return int(count)


def assert_goes_on(home: Path, *options: str) -> None:
    """Run it again for two trials more; all that were made are tracked, each once."""
    before = kept_in(home)
    assert before >= 1
    again = mlops("tune", "iris", "--trials", str(before + 2), *options, home=home)
    assert f"goes on after {before} trials" in again.stderr
    assert trials_of(again) == before + 2
    found = tracked(settings_of(home))
    assert len(found["studies"]) == 1
    assert len(found["trials"]) == before + 2
    assert "mlops train iris --from-study" in again.stdout or "No trial beats" in again.stdout


def test_ctrl_c_ends_a_search_with_its_best_so_far_and_the_same_command_goes_on(fresh):
    options = ("--candidate", DISCRIMINANT, "--jobs", "1")
    process = searching(fresh.home, *options)
    os.killpg(process.pid, signal.SIGINT)
    printed, complaints = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in complaints
    assert DISCRIMINANT in printed
    done = kept_in(fresh.home)
    assert re.search(rf"^{done} trials \(.*interrupted", printed, re.MULTILINE)
    said = Said()
    assert tune_iris(fresh, done + 2, report=said).trials == done + 2
    assert f"goes on after {done} trials" in said.lines[0]
    assert len(tracked(fresh)["trials"]) == done + 2


@pytest.mark.slow
def test_ctrl_c_ends_a_parallel_search_and_all_its_processes(fresh):
    process = searching(fresh.home, "--jobs", "2")
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2
    os.killpg(process.pid, signal.SIGINT)
    printed, complaints = process.communicate(timeout=60)
    assert (process.returncode, "Traceback" in complaints) == (130, False)
    assert "as declared" in printed
    assert psutil.wait_procs(children, timeout=10)[1] == []
    assert_goes_on(fresh.home, "--jobs", "2")


@pytest.mark.slow
def test_kill_9_loses_only_the_trials_under_way_and_leaves_no_process_behind(fresh):
    process = searching(fresh.home, "--jobs", "2")
    children = psutil.Process(process.pid).children(recursive=True)
    time.sleep(1)
    process.kill()
    process.communicate(timeout=60)
    assert psutil.wait_procs(children, timeout=10)[1] == []
    assert list(fresh.models.rglob("*unfinished*")) == []
    assert_goes_on(fresh.home, "--jobs", "2")

"""Retraining: a reason first, then the work, then the gates; nothing is left half-done."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import environment, mlops
from sklearn.linear_model import LogisticRegression

from benchmarks import retraining as retraining_benchmark
from mlops.build.data import kept_file
from mlops.build.growth import counted
from mlops.errors import BusyError, TrainingError
from mlops.improve.decisions import Decision
from mlops.improve.ledger import Ledger, Version
from mlops.loop import retrain as retraining
from mlops.loop import train as training
from mlops.loop import watch as watching
from mlops.loop.alone import alone_at
from mlops.loop.feedback import feedback
from mlops.loop.gates import gates
from mlops.loop.lesson import gather, learnt
from mlops.loop.predict import predict
from mlops.loop.prediction_log import open_log
from mlops.loop.recipe import recipe, still_valid
from mlops.loop.report import Silent
from mlops.loop.retrain import Retrained, retrain
from mlops.package.bundle import open_bundle
from mlops.records import Finding
from mlops.settings import Settings, read_settings
from mlops.track.runs import Tracking
from mlops.usecase import Candidate, Retraining
from mlops.usecases import USE_CASES

# What MLflow does with other libraries is not ours to mend.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore:.*Any type hint is inferred:UserWarning"
)

IRIS = USE_CASES["iris"]
QUICK = ("LinearDiscriminantAnalysis",)
DRIFT = Finding("drift", "petal_width", "alarm", "PSI 0.41, allowed 0.1", {"psi": 0.41})


class Heard(Silent):
    """A report that keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture
def known(home: Path, empty_store: Path) -> Settings:
    """The trained project, its tracking store emptied."""
    shutil.copy(empty_store, home / "mlflow.db")
    return read_settings(MLOPS_HOME=home, MLFLOW_TRACKING_URI="", MODEL_REGISTRY_URI="")


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take most of the time of a small training, and are nothing to this room."""
    monkeypatch.setattr(training, "drawn", lambda *_: {})
    monkeypatch.setattr(training, "diagnose", lambda *_: {})


def again(settings: Settings, **options: Any) -> Retrained:
    return retrain("iris", settings=settings, **{"only": QUICK, **options})


def decisions(settings: Settings) -> list[Decision]:
    with Ledger(settings.state_database) as ledger:
        return [one for one in ledger.decisions("iris") if one.action != "train"]


def champion(settings: Settings) -> Version:
    with Ledger(settings.state_database) as ledger:
        found = ledger.champion("iris")
    assert found is not None
    return found


def plant(settings: Settings, *findings: Finding) -> None:
    log = open_log(IRIS, settings)
    log.record_findings(findings)
    log.close()


def flowers(rows: int, seed: int = 0) -> pd.DataFrame:
    """Return new flowers that are like those of the data file."""
    rng = np.random.default_rng(seed)
    table = IRIS.load().table.sample(rows, replace=True, random_state=seed)
    for name in IRIS.fields:
        table[name] = (table[name] + rng.uniform(-0.05, 0.05, rows)).clip(0.1).round(3)
    return table.reset_index(drop=True)


def deliver(settings: Settings, name: str, table: pd.DataFrame) -> None:
    folder = settings.data / "iris.d"
    folder.mkdir(exist_ok=True)
    table.to_csv(folder / name, index=False)


def nothing_half_done(settings: Settings) -> None:
    left = [path for path in settings.home.rglob("*") if "unfinished" in path.name]
    assert left == []
    assert [path.name for path in settings.retraining_folder.iterdir()] == ["iris.lock"]
    assert (settings.retraining_folder / "iris.lock").read_text() == ""
    for version in (settings.bundles).iterdir():
        open_bundle(version)


# --- reasons


def test_a_drift_alarm_is_the_reason_and_is_written_down_before_the_work_begins(
    known, undrawn, monkeypatch
):
    plant(known, DRIFT, Finding("quality", "accuracy", "cannot tell", "3 truths", {}))
    deliver(known, "may.csv", flowers(60))
    before: list[str] = []
    trained = training.train_candidate

    def watched(*arguments: Any) -> Any:
        before.extend(one.action for one in decisions(known))
        return trained(*arguments)

    monkeypatch.setattr(training, "train_candidate", watched)
    result = again(known, if_needed=True)
    assert before == ["promote", "retrain"]
    assert result.reason is not None
    assert result.reason.trigger == "drift"
    assert result.outcome == "promoted", result.says
    assert champion(known).version == result.version
    begun, passed, ended = decisions(known)[1:]
    assert [one.action for one in (begun, passed, ended)] == ["retrain", "promote", "retrained"]
    assert begun.reason == "drift: petal_width: PSI 0.41, allowed 0.1"
    assert begun.evidence[0]["rows_new"] == 60
    assert passed.reason == "retraining, drift: the gates let it pass"
    assert ended.reason == f"promoted: version {result.version} is champion"
    bundle = open_bundle(known.bundles / champion(known).bundle)
    assert bundle.provenance["trigger"] == "drift"
    assert bundle.provenance["reason"] == "petal_width: PSI 0.41, allowed 0.1"
    assert bundle.provenance["data_difference"].startswith("60 rows new")
    assert bundle.training["rows_reference"] == 150
    assert bundle.training["policy"] == "rows that came: all, each once"
    assert "60 rows that came: 60 of may.csv" in bundle.provenance["data_origin"]
    nothing_half_done(known)


def test_without_a_reason_one_line_says_so_and_nothing_is_written(known):
    before = decisions(known)
    done = mlops("retrain", "iris", "--if-needed", home=known.home)
    expected = "iris: not needed: no findings, 0 new rows of 1,000, "
    assert done.stdout.startswith(expected)
    assert done.stdout.count("\n") == 1
    assert decisions(known) == before


def test_a_lasting_alarm_with_nothing_new_to_learn_does_not_train_the_same_again(
    known, undrawn, monkeypatch
):
    monkeypatch.setattr(training, "train_candidate", None)
    plant(known, DRIFT)
    made = open_bundle(known.bundles / champion(known).bundle).training["data_fingerprint"]
    repeated = {"recipe": recipe(made)}
    looked = retraining._of_champion
    monkeypatch.setattr(
        retraining, "_of_champion", lambda *of: (looked(*of)[0], {**looked(*of)[1], **repeated})
    )
    result = again(known, if_needed=True, only=())
    assert result.outcome == "unchanged"
    assert "no row, code or library is new — give it rows in data/iris.d" in result.says
    result = again(known, if_needed=True, only=())
    assert result.outcome == "not needed"
    assert "nothing is a reason until" in result.says


def test_settings_win_over_what_the_use_case_declares():
    declared = Retraining(max_age_days=5, new_rows=10, window_days=3)
    settings = read_settings(RETRAIN_MAX_AGE_DAYS="0", RETRAIN_NEW_ROW_WEIGHT="2.5")
    assert settings.retraining(declared) == dataclasses.replace(
        declared, max_age_days=0, new_row_weight=2.5
    )


# --- what is learnt


def test_it_is_compared_with_the_champion_on_rows_that_neither_has_learnt_from(known, undrawn):
    deliver(known, "may.csv", flowers(100))
    result = again(known, reason="May came")
    assert result.outcome == "promoted", result.says
    assert result.training is not None
    held_out = result.training.rows_test - 30
    assert 8 <= held_out <= 35
    (passed,) = [one for one in decisions(known) if one.action == "promote"][1:]
    (compared,) = [v for v in passed.evidence if v["gate"] == "not worse than the champion"]
    assert compared["numbers"]["rows"] == 30 + held_out


def test_what_a_version_learnt_from_is_known_as_long_as_its_table_is_kept(known, undrawn):
    deliver(known, "may.csv", flowers(60))
    result = again(known)
    bundle = open_bundle(known.bundles / champion(known).bundle)
    parts = learnt(bundle, IRIS, known)
    assert parts is not None
    assert parts.fingerprint == bundle.training["held_out_fingerprint"]
    assert result.training is not None
    assert len(parts.X_train) == result.training.rows_train
    kept = kept_file(result.data_fingerprint, known.data)
    table = pd.read_parquet(kept)
    table.loc[200, "petal_width"] += 1  # whoever changes it is found out
    table.to_parquet(kept)
    assert learnt(bundle, IRIS, known) is None
    kept.write_bytes(b"PAR1")
    assert learnt(bundle, IRIS, known) is None
    kept.unlink()
    assert learnt(bundle, IRIS, known) is None


def test_data_that_grew_twice_tells_what_is_new_since_the_last_time(known, undrawn):
    deliver(known, "may.csv", flowers(60))
    first = again(known, reason="May")
    deliver(known, "june.csv", flowers(40, seed=1))
    second = again(known, reason="June")
    assert (first.difference[:11], second.difference[:11]) == ("60 rows new", "40 rows new")
    assert (first.rows.new, second.rows.new) == (60, 40)
    assert second.rows.came == {"june.csv": 40, "may.csv": 60}
    assert kept_file(second.data_fingerprint, known.data).exists()


def test_what_grew_is_still_valid_until_the_data_file_changes(known, undrawn, monkeypatch):
    deliver(known, "may.csv", flowers(60))
    assert again(known).outcome == "promoted"
    for candidate in IRIS.candidates:
        (known.models / candidate.pickle_name).touch()
    assert still_valid(IRIS, known) == champion(known)
    path = known.data / "iris.csv"
    path.write_text(path.read_text().replace("5.1", "5.2", 1))
    assert still_valid(IRIS, known) is None


def test_a_bad_file_is_told_of_and_left_out(known, undrawn):
    deliver(known, "may.csv", flowers(30))
    deliver(known, "bad.csv", flowers(30).assign(petal_width=99.0))
    heard = Heard()
    result = again(known, report=heard)
    assert list(result.rows.refused) == ["bad.csv"]
    assert result.rows.came == {"may.csv": 30}
    assert any(
        "bad.csv is refused, and the rest goes on: column petal_width" in line
        for line in heard.lines
    )
    assert list(decisions(known)[1].evidence[0]["refused"]) == ["bad.csv"]


def ask(settings: Settings, table: pd.DataFrame) -> list[str]:
    """Have flowers answered and logged; return the ids of the predictions."""
    rows = table[list(IRIS.fields)].to_dict("records")
    return [one["prediction_id"] for one in predict("iris", rows, settings=settings)]


def tell(settings: Settings, ids: list[str], species: Any) -> None:
    path = settings.home / "truths.csv"
    pd.DataFrame({"prediction_id": ids, "actual": list(species)}).to_csv(path, index=False)
    assert feedback("iris", path, settings=settings)["attached"] == len(ids)


def test_logged_inputs_whose_truth_came_are_learnt_each_once_and_within_the_window(known, undrawn):
    asked = flowers(40).drop_duplicates()
    known_already = IRIS.load().table.head(3)
    ids = ask(known, pd.concat([asked, asked.head(5), known_already]))
    told = [*range(30), *range(len(asked), len(ids))]  # of the others the truth is not known
    species = pd.concat([asked, asked.head(5), known_already])["species"].to_numpy()
    tell(known, [ids[at] for at in told], species[told])
    deliver(known, "may.csv", asked.head(10))
    narrow = known.model_copy(update={"retrain_window_days": 1e-9})
    assert gather(IRIS, narrow.retraining(IRIS.retraining), narrow).taken == {"may.csv": 10}
    result = again(known)
    assert result.rows.came == {"may.csv": 10, "the log": 20}
    assert result.rows.known == 10 + 5 + 3
    table = pd.read_parquet(kept_file(result.data_fingerprint, known.data))
    expected = asked.head(30).reset_index(drop=True)
    pd.testing.assert_frame_equal(table.tail(30).reset_index(drop=True), expected)


def test_rows_that_came_weigh_what_the_setting_says(known, undrawn, monkeypatch):
    seen: list[Any] = []
    fitted = training.train_candidate

    def watched(use_case: Any, candidate: Any, parts: Any) -> Any:
        seen.append(parts.weights)
        return fitted(use_case, candidate, parts)

    monkeypatch.setattr(training, "train_candidate", watched)
    deliver(known, "may.csv", flowers(60))
    heavy = known.model_copy(update={"retrain_new_row_weight": 4.0})
    result = again(heavy, only=("LogisticRegression",))
    assert set(seen[0]) == {1.0, 4.0}
    assert result.policy == "rows that came: all, each once; each counts 4 times"


def test_rows_to_measure_on_are_as_many_as_they_count_and_always_the_same():
    rows = pd.DataFrame(np.random.default_rng(1).normal(size=(4_000, 3)))
    for weight, of_old, of_new in ((4.0, 500, 2_000), (0.25, 2_000, 500), (1.0, 2_000, 2_000)):
        kept = counted(rows, 2_000, weight)
        assert abs(kept[:2_000].sum() - of_old) < 80
        assert abs(kept[2_000:].sum() - of_new) < 80
        some = rows.iloc[::-1]
        assert (counted(some, 2_000, weight) == kept[::-1]).all()


def test_a_model_that_heeds_what_came_is_not_held_to_what_was(known, undrawn):
    deliver(known, "may.csv", flowers(100))
    heavy = known.model_copy(update={"retrain_new_row_weight": 10.0})
    result = again(heavy, promote_winner=False)
    assert result.training is not None
    came = result.training.rows_test - 30
    judged = gates("iris", result.version, settings=heavy)
    (compared,) = [one for one in judged.verdicts if one.gate == "not worse than the champion"]
    assert came <= compared.numbers["rows"] < came + 15


# --- what comes of it


def weak(seed: int) -> Any:
    return LogisticRegression(C=1e-6, random_state=seed)


def with_candidate(monkeypatch: pytest.MonkeyPatch, candidate: Candidate) -> None:
    changed = dataclasses.replace(IRIS, candidates=(*IRIS.candidates, candidate))
    monkeypatch.setitem(USE_CASES, "iris", changed)


def test_a_gate_keeps_the_champion_and_the_ledger_says_which(known, undrawn, monkeypatch):
    with_candidate(monkeypatch, Candidate("Weak", weak))
    before = champion(known)
    result = again(known, only=("Weak",))
    assert result.outcome == "kept"
    assert champion(known) == before
    begun, kept, ended = decisions(known)[1:]
    assert [one.action for one in (begun, kept, ended)] == ["retrain", "keep", "retrained"]
    assert ended.reason.startswith("kept: iris version ")
    assert "was not promoted: " in ended.reason
    nothing_half_done(known)


@pytest.mark.parametrize(("mode", "share"), [("shadow", 0.0), ("ab", 0.1)])
def test_it_can_be_tried_before_it_becomes_champion(known, undrawn, mode, share):
    before = champion(known)
    trying = known.model_copy(update={"retrain_then": mode})
    deliver(known, "may.csv", flowers(60))
    result = again(trying, reason="May came")
    assert (result.outcome, champion(known)) == ("on trial", before)
    with Ledger(known.state_database) as ledger:
        experiment = ledger.experiments.open("iris")
    assert experiment is not None
    assert (experiment.mode, experiment.share, experiment.auto) == (mode, share, True)
    assert (experiment.challenger, experiment.champion) == (result.version, before.version)
    assert [one.action for one in decisions(known)][-2:] == [mode, "retrained"]
    deliver(known, "june.csv", flowers(80, seed=9))
    again_tried = again(trying, reason="June came")
    assert again_tried.outcome == "registered"
    assert "is held against version" in again_tried.says


def test_what_a_gate_keeps_out_is_not_tried_either(known, undrawn, monkeypatch):
    with_candidate(monkeypatch, Candidate("Weak", weak))
    trying = known.model_copy(update={"retrain_then": "shadow"})
    assert again(trying, only=("Weak",)).outcome == "kept"
    with Ledger(known.state_database) as ledger:
        assert ledger.experiments.open("iris") is None
    assert [one.action for one in decisions(known)][-2:] == ["keep", "retrained"]


def test_it_can_be_left_registered(known, undrawn):
    before = champion(known)
    result = again(known, promote_winner=False)
    assert result.outcome == "registered"
    assert champion(known) == before
    assert decisions(known)[-1].reason.startswith("registered: version ")


def broken(seed: int) -> Any:
    return LogisticRegression(max_iter=1, random_state=seed)


def test_what_fails_is_written_down_and_leaves_no_lock(known, undrawn, monkeypatch):
    with_candidate(monkeypatch, Candidate("Broken", broken))
    with pytest.raises(TrainingError, match="Broken did not converge"):
        again(known, only=("Broken",))
    assert decisions(known)[-1].action == "retrained"
    assert decisions(known)[-1].reason.startswith("failed: TrainingError: Broken did not converge")
    assert again(known).outcome in ("promoted", "kept")
    nothing_half_done(known)


# --- what dies, and two at once


def test_one_that_died_is_resumed_without_training_again_what_was_done(known, undrawn, monkeypatch):
    plant(known, DRIFT)
    deliver(known, "may.csv", flowers(60))
    two = ("LogisticRegression", "LinearDiscriminantAnalysis")
    with monkeypatch.context() as patched:

        def die(*_: Any) -> None:
            raise KeyboardInterrupt

        patched.setattr(training, "_seal", die)
        with pytest.raises(KeyboardInterrupt):
            again(known, if_needed=True, only=two)
    assert [one.action for one in decisions(known)] == ["promote", "retrain"]
    torn = known.models / f"LogisticRegression.pkl.unfinished-{os.getpid()}"
    torn.write_bytes(b"half of a model")
    monkeypatch.setattr(training, "train_candidate", None)
    result = again(known, if_needed=True, only=two)
    assert result.reason is not None
    assert result.reason.trigger == "resume"
    assert "its reason was: drift: petal_width: PSI 0.41" in result.reason.says
    assert result.training is not None
    assert {one.name for one in result.training.candidates} == set(two)
    client = Tracking(known.home, "", "").client
    experiment = client.get_experiment_by_name("iris")
    assert experiment is not None
    assert len(client.search_runs([experiment.experiment_id])) == len(two)  # none twice
    assert [one.action for one in decisions(known)][1:3] == ["retrain", "retrain"]
    assert decisions(known)[-1].action == "retrained"
    nothing_half_done(known)


def test_on_other_data_nothing_of_an_attempt_that_died_is_taken_over(known, undrawn, monkeypatch):
    with monkeypatch.context() as patched:

        def die(*_: Any) -> None:
            raise KeyboardInterrupt

        patched.setattr(training, "_seal", die)
        with pytest.raises(KeyboardInterrupt):
            again(known)
    deliver(known, "may.csv", flowers(60))
    result = again(known)
    assert result.training is not None
    assert result.training.rows_train > 120
    nothing_half_done(known)


def test_two_at_once_one_goes_on_and_the_other_says_who_holds_the_lock(known):
    with alone_at(known.retraining_folder / "iris.lock", "iris is being retrained"):
        with pytest.raises(
            BusyError, match=f"iris is being retrained already, by process {os.getpid()} on "
        ):
            again(known)
        done = mlops("retrain", "iris", "--if-needed", home=known.home, check=False)
        assert done.returncode == 75
        assert f"by process {os.getpid()} on " in done.stderr
        assert "wait for it to end" in done.stderr
        assert done.stderr.count("\n") == 1
    assert again(known, if_needed=True).outcome == "not needed"


def test_a_lock_ends_with_its_holder(tmp_path):
    path = tmp_path / "x.lock"
    code = (
        "import sys, time, pathlib; from mlops.loop.alone import alone_at\n"
        "with alone_at(pathlib.Path(sys.argv[1]), 'x'): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with (
            pytest.raises(BusyError, match=f"x already, by process {holder.pid} on "),
            alone_at(path, "x"),
        ):
            pass
        holder.kill()
        holder.wait()
    with alone_at(path, "x"):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert path.read_text() == ""


def until(found: Any, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not found():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)


MOMENTS = {
    "the reason is written": lambda s: decisions(s)[-1].action == "retrain",
    "one candidate is done": lambda s: any(s.retraining_folder.glob("iris/*/*.joblib")),
    "the last candidate is done": lambda s: any(s.retraining_folder.glob("iris/*/Lin*.joblib")),
    "a bundle is sealed": lambda s: len(list(s.bundles.glob("[0-9a-f]*"))) > 3,
}


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at_any_moment_the_next_one_goes_on_and_nothing_is_left_half_done(known, moment):
    plant(known, DRIFT)
    deliver(known, "may.csv", flowers(60))
    command = [sys.executable, "-m", "mlops.cli", "retrain", "iris", "--if-needed", "--json"]
    words = [*command, "--only", "LogisticRegression", "--only", "LinearDiscriminantAnalysis"]
    process = subprocess.Popen(
        words, cwd=known.home, env=environment(known.home), stdout=subprocess.DEVNULL
    )
    until(lambda: MOMENTS[moment](known), process)
    process.kill()
    process.wait()
    found = json.loads(mlops(*words[3:], home=known.home, timeout=280).stdout)
    assert found["reason"]["trigger"] == "resume"
    assert found["outcome"] in ("promoted", "kept")
    assert decisions(known)[-1].action == "retrained"
    nothing_half_done(known)


# --- for schedulers, and on one machine


def test_it_takes_the_lowest_priority_and_leaves_a_core(tmp_path):
    code = (
        "import os, json, numpy; from mlops.loop.gently import gently, _threads; gently()\n"
        "print(json.dumps([[os.getpriority(os.PRIO_PROCESS, t), len(os.sched_getaffinity(t))]"
        " for t in _threads()]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    cores = len(os.sched_getaffinity(0))
    assert {tuple(one) for one in json.loads(done.stdout)} == {(19, max(1, cores - 1))}


def test_it_leaves_one_core_however_often_it_is_asked_and_minds_no_thread_that_ended():
    code = (
        "import os; from mlops.loop import gently; threads, cores = gently._threads(), range(8)\n"
        "def keep(_, kept): global cores; cores = kept\n"
        "os.sched_getaffinity, os.sched_setaffinity = lambda _: set(cores), keep\n"
        "gently._threads = lambda: [2**30, *threads]\n"  # no thread has so large a number
        "gently.gently(); gently.gently(); print(len(cores))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert int(done.stdout) == 7


@pytest.mark.slow
def test_answers_take_at_most_about_twice_as_long_while_it_works(known, monkeypatch):
    """What it is, `make bench` says; a machine that does other things is allowed its noise."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    found = retraining_benchmark.measure(known.home, pairs=5)
    assert retraining_benchmark.BESIDE.most == 2
    assert found.ratio <= 2 * retraining_benchmark.BESIDE.most


def test_watching_says_what_it_decided_and_survives_what_goes_wrong(known, monkeypatch):
    def fails(name: str, **options: Any) -> Any:
        if name == "housing":
            raise ValueError("something nobody thought of")
        return retrain(name, **options)

    monkeypatch.setattr(watching, "retrain", fails)
    heard = Heard()
    assert not watching.watch((), 60, known, heard, once=True)
    assert "housing: failed" in heard.lines[0]
    assert "ValueError: something nobody thought of" in heard.lines[0]
    assert "iris: not needed: no findings" in heard.lines[1]
    assert watching.watch(("iris",), 60, known, heard, once=True)


def test_watching_ends_well_when_it_is_told_to(known):
    words = [sys.executable, "-m", "mlops.cli", "watch", "iris", "--every", "1h"]
    with subprocess.Popen(
        words, cwd=known.home, env=environment(known.home), stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert "iris: not needed: " in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0

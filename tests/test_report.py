"""Figures in every run, and the report: one file that opens without a network."""

from __future__ import annotations

import html.parser
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from mlops.build import figures
from mlops.errors import BundleError, DataError, NotTrainedError, UsageError
from mlops.improve.ledger import Ledger
from mlops.loop import diagnose as diagnosing
from mlops.loop.diagnose import report
from mlops.loop.runs import kept_runs, runs
from mlops.loop.track import UNTRACKED, track
from mlops.loop.train import train
from mlops.settings import Settings, read_settings
from mlops.track.runs import Tracking
from mlops.usecases import USE_CASES

# What MLflow does with other libraries is not ours to mend.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore:.*Any type hint is inferred:UserWarning"
)

IRIS = USE_CASES["iris"]
EACH_USE_CASE = pytest.mark.parametrize("use_case", USE_CASES.values(), ids=USE_CASES)
BOTH = {"calibration", "learning_curve", "permutation_importance"}
FIGURES = {
    "housing": BOTH | {"predicted_vs_actual", "residuals", "error_map"},
    "iris": BOTH | {"confusion_matrix"},
}


class Heard:
    """A report that remembers its lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    def steps(self, title: str, total: int) -> Any:
        return diagnosing.Silent().steps(title, total)


class Page(html.parser.HTMLParser):
    """The links, images, ids and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in {"href", "src", "xlink:href", "action", "data", "srcset"}:
                self.links.append(value or "")
            if name == "id":
                self.ids.append(value or "")

    def handle_data(self, data: str) -> None:
        self.text += data


def settings_of(home: Path) -> Settings:
    return read_settings(MLOPS_HOME=home, MLFLOW_TRACKING_URI="", MODEL_REGISTRY_URI="")


def with_diagnoses(trained: Path, home: Path) -> Settings:
    for folder in ("diagnoses", "runs"):
        shutil.copytree(trained / "models" / folder, home / "models" / folder)
    return settings_of(home)


# --- in the runs


@EACH_USE_CASE
def test_every_run_has_the_figures_that_apply_to_it_and_their_numbers(trained, use_case):
    tracking = Tracking(trained, "", "")
    for run in tracking.runs(use_case.name):
        found = {Path(f.path) for f in tracking.client.list_artifacts(run["run_id"], "figures")}
        names = {path.stem for path in found if path.suffix == ".png"}
        assert names == FIGURES[use_case.name]
        folder = Path(tracking.client.download_artifacts(run["run_id"], "figures"))
        assert set(json.loads((folder / "numbers.json").read_text())) == names
        assert (folder / "calibration.png").read_bytes().startswith(b"\x89PNG")


def test_what_fails_is_named_and_loses_no_run(tmp_path, empty_store, monkeypatch):
    shutil.copy(empty_store, tmp_path / "mlflow.db")

    def fail(*_: object) -> None:
        raise RuntimeError("no ink\nat all")

    monkeypatch.setitem(figures.DRAWN, "confusion_matrix", fail)
    monkeypatch.setattr(diagnosing, "learning_curve", fail)
    heard, settings = Heard(), settings_of(tmp_path)
    name = "LinearDiscriminantAnalysis"
    (version,) = train("iris", only=(name,), settings=settings, report=heard).registered
    assert heard.lines == [
        f"iris: {name}: learning_curve was not measured, the run goes on without: "
        "RuntimeError: no ink",
        f"iris: {name}: figure confusion_matrix was not drawn, the run goes on without: "
        "RuntimeError: no ink",
    ]
    files = Tracking(tmp_path, "", "").client.list_artifacts(version.run_id, "figures")
    assert {Path(file.path).name for file in files} == {
        "calibration.png",
        "numbers.json",
        "permutation_importance.png",
    }
    written = report("iris", settings=settings, report=heard)
    assert set(written.missing) == {"confusion_matrix", "learning_curve"}
    assert "not drawn: RuntimeError: no ink" in Path(written.path).read_text()


def test_a_run_that_was_tracked_later_has_its_figures_and_is_listed_once(tmp_path, empty_store):
    away = read_settings(MLOPS_HOME=tmp_path, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    train("iris", only=("LinearDiscriminantAnalysis",), settings=away)
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    here = settings_of(tmp_path)
    (waiting,) = runs("iris", every=True, settings=here)
    assert waiting["run_id"].startswith(UNTRACKED)
    track(settings=here)
    (one,) = runs("iris", every=True, settings=here)
    assert (one["verdict"], one["fold_scores"]) == ("best", waiting["fold_scores"])
    files = Tracking(tmp_path, "", "").client.list_artifacts(one["run_id"], "figures")
    assert {Path(file.path).stem for file in files} == FIGURES["iris"] | {"numbers"}


# --- the comparison


@EACH_USE_CASE
def test_runs_are_compared_best_first_with_their_versions(trained, use_case):
    found = runs(use_case.name, settings=settings_of(trained))
    assert {one["candidate"] for one in found} == {c.name for c in use_case.candidates}
    assert [one["verdict"] for one in found] == {
        "housing": ["best", "worse", "worse", "worse"],
        "iris": ["best", "tie", "tie"],
    }[use_case.name]
    means = [one["mean"] for one in found]
    assert means == sorted(means, reverse=True)
    with Ledger(trained / "models" / "state.db") as ledger:
        registered = {v.candidate: v.version for v in ledger.versions(use_case.name)}
    assert {one["candidate"]: one["version"] for one in found if one["version"]} == registered
    json.dumps(found, allow_nan=False)


def test_without_the_tracking_server_the_runs_made_here_say_the_same(trained, home):
    with_diagnoses(trained, home)
    away = read_settings(MLOPS_HOME=home, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    heard = Heard()
    found = runs("iris", settings=away, report=heard)
    (line,) = heard.lines
    assert line.startswith("iris: only the runs made here are listed: tracking at http://127.0.0.1")
    shown = ("run_id", "mean", "std", "score", "difference", "low", "high", "verdict", "version")
    tracked = runs("iris", settings=settings_of(trained))
    assert [[one[k] for k in shown] for one in found] == [
        [one[k] for k in shown] for one in tracked
    ]


def test_runs_of_another_machine_are_compared_by_what_was_tracked(trained, home):
    shutil.copy(trained / "mlflow.db", home / "mlflow.db")
    assert kept_runs(IRIS, settings_of(home)) == []
    here, there = (runs("iris", settings=settings_of(where)) for where in (home, trained))
    assert [(o["candidate"], o["fold_scores"], o["verdict"]) for o in here] == [
        (o["candidate"], o["fold_scores"], o["verdict"]) for o in there
    ]


def test_a_note_of_a_run_that_cannot_be_read_is_passed_over(trained, home):
    settings = with_diagnoses(trained, home)
    folder = home / "models" / "runs" / "iris"
    (folder / "half.json").write_text('{"run_id":')
    (folder / "other.json").write_text("[]")
    assert len(kept_runs(IRIS, settings)) == 3


# --- the report


@EACH_USE_CASE
def test_the_report_is_one_file_that_asks_for_nothing_else(trained, home, use_case):
    settings = with_diagnoses(trained, home)
    written = report(use_case.name, settings=settings)
    assert Path(written.path) == home / "models" / "reports" / f"{use_case.name}-version-1.html"
    assert set(written.figures) == FIGURES[use_case.name]
    assert written.missing == ()
    text = Path(written.path).read_text()
    page = Page(text)
    assert all(link.startswith(("data:", "#")) for link in page.links)
    assert not {"script", "iframe", "img", "object"} & set(page.tags)
    assert not re.search(r"@import|url\((?!#)", text)
    assert "default-src 'none'" in text
    assert len(page.ids) == len(set(page.ids))
    assert page.tags.count("svg") == len(FIGURES[use_case.name])


def test_the_report_says_what_was_measured_against_what_and_where_it_comes_from(trained, home):
    settings = with_diagnoses(trained, home)
    written = report("housing", settings=settings)
    text = Page(Path(written.path).read_text()).text
    for said in (
        *("California Housing, version 1", "GradientBoosting", "champion", "0.8360", "-0.0002"),
        *(written.bundle, "data fingerprint", "commit", "scikit-learn", "RandomForest", "worse"),
        *("Half of the rows are off by less than 0.197", "In 9 of 10 tenths", "latitude"),
        "By what it goes",
    ):
        assert said in text, said


def test_another_version_and_another_file(trained, home, tmp_path):
    settings = with_diagnoses(trained, home)
    target = tmp_path / "new" / "forest.html"
    written = report("iris", version=2, to=target, settings=settings)
    assert (written.candidate, written.path) == ("RandomForest", str(target))
    text = Page(target.read_text()).text
    assert "not the champion" in text
    assert "27 of 30 are right; most often virginica is taken for versicolor (2)." in text


def test_a_bundle_without_its_diagnosis_is_measured_anew_and_gives_the_same(trained, home):
    heard = Heard()
    written = report("iris", settings=settings_of(home), report=heard)
    assert heard.lines == [
        "iris: version 1: no diagnosis was kept beside its bundle; measuring it anew"
    ]
    assert written.missing == ("learning_curve",)
    kept = with_diagnoses(trained, home)
    again = report("iris", to=home / "again.html", settings=kept)
    one, other = (Path(w.path).read_text() for w in (written, again))
    cut = [
        re.search(r'<figure id="confusion_matrix".*?</figure>', t, re.DOTALL) for t in (one, other)
    ]
    assert cut[0].group() == cut[1].group()


def test_rows_that_the_model_may_have_learnt_from_are_not_taken_for_held_out_ones(home):
    path = home / "data" / "iris.csv"
    path.write_text(path.read_text().rpartition("5.9")[0])  # another last row, another split
    assert report("iris", settings=settings_of(home)).figures  # the table of then was kept
    shutil.rmtree(home / "data" / "tables")
    shutil.rmtree(home / "models" / "reports")
    with pytest.raises(DataError, match=r"is not what bundle .* was trained on"):
        report("iris", settings=settings_of(home))
    assert not (home / "models" / "reports").exists()


def test_with_a_signing_key_an_unsigned_bundle_is_not_reported_on(home):
    settings = read_settings(MLOPS_HOME=home, BUNDLE_SIGNING_KEY="k" * 64)
    with pytest.raises(BundleError, match="is not signed"):
        report("iris", settings=settings)


def test_what_is_not_there_is_said(home, tmp_path):
    with pytest.raises(UsageError, match="version 9"):
        report("iris", version=9, settings=settings_of(home))
    with pytest.raises(NotTrainedError, match="train one with: mlops train iris"):
        report("iris", settings=settings_of(tmp_path / "empty"))

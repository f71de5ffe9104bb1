"""A whole training: the same bundle wherever it is repeated, sealed and registered once."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
from conftest import mlops
from sklearn.linear_model import LogisticRegression

from mlops.build.data import prepare, split
from mlops.errors import DataError, ParityError, TrainingError, UsageError
from mlops.improve.ledger import Ledger, Version
from mlops.loop import recipe as recipes
from mlops.loop import train as training
from mlops.loop.recipe import still_valid
from mlops.loop.train import train
from mlops.package import graph as graphs
from mlops.package.bundle import Bundle, open_bundle
from mlops.settings import Settings, read_settings
from mlops.track.runs import Tracking
from mlops.usecase import Candidate, Source, UseCase
from mlops.usecases import USE_CASES

# What MLflow does with other libraries is not ours to mend.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore:.*Any type hint is inferred:UserWarning"
)

HOUSING, IRIS = USE_CASES["housing"], USE_CASES["iris"]
DISCRIMINANT = ("LinearDiscriminantAnalysis",)


def settings_of(home: Path) -> Settings:
    return read_settings(MLOPS_HOME=home, MLFLOW_TRACKING_URI="", MODEL_REGISTRY_URI="")


def versions(home: Path, use_case: str) -> list[Version]:
    with Ledger(home / "models" / "state.db") as ledger:
        return ledger.versions(use_case)


def bundle(home: Path, version: Version) -> Bundle:
    return open_bundle(home / "models" / "bundles" / version.bundle)


@pytest.fixture
def fresh(tmp_path: Path, empty_store: Path) -> Settings:
    """A project in which nothing was trained."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return settings_of(tmp_path)


@pytest.fixture
def known(home: Path, empty_store: Path) -> Settings:
    """The trained project, its tracking store emptied."""
    shutil.copy(empty_store, home / "mlflow.db")
    return settings_of(home)


def with_candidates(use_case: UseCase, *candidates: Candidate) -> UseCase:
    return dataclasses.replace(use_case, candidates=candidates)


# --- the same again


@pytest.fixture(scope="module")
def again(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both use cases trained a second time: another folder, hash seed, time zone and commit."""
    home = tmp_path_factory.mktemp("again")
    identity = ("-c", "user.name=T", "-c", "user.email=t@example.org")
    subprocess.run(["git", "init", "-q", home], check=True)
    subprocess.run(
        ["git", "-C", home, *identity, "commit", "-q", "--allow-empty", "-m", "x"], check=True
    )
    other = {"PYTHONHASHSEED": "1", "TZ": "Asia/Tokyo", "LANG": "C"}
    mlops("train", "iris", home=home, **other)
    only = ("--only", "GradientBoosting", "--only", "LinearRegression")
    mlops("train", "housing", *only, home=home, **other)
    return home


@pytest.mark.parametrize("use_case", USE_CASES)
def test_two_trainings_in_two_empty_folders_give_the_same_bundles(trained, again, use_case):
    first, second = versions(trained, use_case), versions(again, use_case)
    assert [v.bundle for v in first] == [v.bundle for v in second]
    assert [v.candidate for v in first] == [v.candidate for v in second]


def test_time_and_commit_differ_in_the_provenance_only(trained, again):
    one, other = (bundle(home, versions(home, "iris")[0]) for home in (trained, again))
    assert one.provenance["sealed_utc"] < other.provenance["sealed_utc"]
    head = ["git", "-C", again, "rev-parse", "HEAD"]
    commit = subprocess.run(head, capture_output=True, text=True, check=True).stdout.strip()
    assert other.provenance["commit"] == commit != one.provenance["commit"]
    for name in ("signature", "reference", "golden", "metrics", "training"):
        text = json.dumps(getattr(other, name))
        assert getattr(one, name) == getattr(other, name)
        assert commit not in text
        assert str(again) not in text


def test_missing_values_in_the_source_do_not_make_the_second_training_another(fresh, monkeypatch):
    table = IRIS.load().table
    table.loc[[3, 60], "petal_length"] = np.nan
    holed = dataclasses.replace(IRIS, load=lambda: Source(table.copy(), "a holed table"))
    monkeypatch.setitem(USE_CASES, "iris", holed)
    one, other = (train("iris", only=DISCRIMINANT, settings=fresh) for _ in range(2))
    assert one.registered == other.registered
    assert (one.rows_dropped, other.rows_dropped) == (2, 2)


# --- what a training leaves


@pytest.mark.parametrize("use_case", USE_CASES.values(), ids=USE_CASES)
def test_every_candidate_leaves_a_pickle_that_answers(trained, use_case):
    parts = split(use_case, prepare(use_case, trained / "data").frame)
    names = {candidate.pickle_name for candidate in use_case.candidates}
    assert names <= {path.name for path in (trained / "models").glob("*.pkl")}
    for name in names:
        pipeline = joblib.load(trained / "models" / name)
        assert pipeline.score(parts.X_test, parts.y_test) > 0.5
    assert [p.name for p in (trained / "models").glob("*unfinished*")] == []


def test_the_pickles_have_the_names_of_the_description():
    assert {candidate.pickle_name for candidate in (*HOUSING.candidates, *IRIS.candidates)} == {
        "LinearRegression.pkl",
        "DecisionTree.pkl",
        "RandomForest.pkl",
        "GradientBoosting.pkl",
        "LogisticRegression.pkl",
        "RandomForestClassifier.pkl",
        "LinearDiscriminantAnalysis.pkl",
    }


@pytest.mark.parametrize("use_case", USE_CASES.values(), ids=USE_CASES)
def test_the_bundle_holds_what_training_saw(trained, use_case):
    parts = split(use_case, prepare(use_case, trained / "data").frame)
    opened = bundle(trained, versions(trained, use_case.name)[0])
    ranges = opened.signature["training_ranges"]
    for field in use_case.fields:
        column = parts.X_train[field]
        assert ranges[field] == [column.min(), column.max()]
    assert set(ranges) == {*use_case.fields, *use_case.input_names}
    assert set(opened.reference) == {*ranges, "prediction"}
    assert opened.reference["prediction"]["count"] == len(parts.X_train)
    golden = np.array(opened.golden["fields"])
    assert golden.shape == (50, len(use_case.fields))
    edges = np.array([ranges[field] for field in use_case.fields])
    np.testing.assert_array_equal(golden.min(axis=0), edges[:, 0])
    np.testing.assert_array_equal(golden.max(axis=0), edges[:, 1])
    made = opened.training
    assert made["parity"]["rows"] == len(parts.X_train) + len(parts.X_test)
    assert made["parity"]["largest_difference"] <= 1e-9
    assert (made["rows_train"], made["rows_test"]) == (len(parts.X_train), len(parts.X_test))
    assert made["data_fingerprint"] == prepare(use_case, trained / "data").fingerprint
    assert made["held_out_fingerprint"] == parts.fingerprint


@pytest.mark.parametrize("use_case", USE_CASES.values(), ids=USE_CASES)
def test_the_sealed_scores_are_those_of_the_sealed_graph_on_the_test_rows(trained, use_case):
    parts = split(use_case, prepare(use_case, trained / "data").frame)
    for version in versions(trained, use_case.name):
        opened = bundle(trained, version)
        predicted = opened.model.run(parts.X_test.to_numpy()).prediction
        if use_case is IRIS:
            score = (predicted == parts.y_test).mean()
        else:
            error = ((predicted - parts.y_test) ** 2).mean()
            score = 1 - error / parts.y_test.var()
        assert opened.metrics["scores"][use_case.metric] == pytest.approx(score, abs=1e-12)
        assert opened.metrics["baseline"][use_case.metric] < score


def test_the_winner_is_registered_first_and_the_random_forest_of_iris_always(trained):
    assert [v.candidate for v in versions(trained, "iris")] == [*DISCRIMINANT, "RandomForest"]
    assert [v.candidate for v in versions(trained, "housing")] == ["GradientBoosting"]


# --- registered once


def test_training_again_registers_no_new_version(fresh, monkeypatch):
    always = dataclasses.replace(IRIS.candidate("LogisticRegression"), always_registered=True)
    both = with_candidates(IRIS, always, IRIS.candidate(*DISCRIMINANT))
    monkeypatch.setitem(USE_CASES, "iris", both)
    first, again = (train("iris", settings=fresh) for _ in range(2))
    assert [v.candidate for v in first.registered] == [*DISCRIMINANT, "LogisticRegression"]
    assert [v.version for v in first.registered] == [1, 2]
    assert again.registered == first.registered
    assert len(list(fresh.bundles.iterdir())) == 2
    client = Tracking(fresh.home, "", "").client
    assert len(client.search_model_versions("name='IrisClassifierModel'")) == 2


def test_version_numbers_are_never_given_again_after_the_store_was_deleted(known):
    result = train("iris", only=DISCRIMINANT, settings=known)
    before = versions(known.home, "iris")[0]
    (registered,) = result.registered
    assert (before.version, registered.version) == (1, 3)
    assert registered.bundle == before.bundle
    client = Tracking(known.home, "", "").client
    (found,) = client.search_model_versions("name='IrisClassifierModel'")
    assert (found.version, found.run_id) == (3, registered.run_id)
    assert train("iris", only=DISCRIMINANT, settings=known).registered == (registered,)


def test_a_bundle_that_was_damaged_is_sealed_anew_by_the_next_training(known):
    version = versions(known.home, "iris")[0]
    (known.bundles / version.bundle / "golden.json").write_bytes(b"{}")
    train("iris", only=DISCRIMINANT, settings=known)
    bundle(known.home, version)


# --- what stops a training


def test_an_unknown_candidate_is_answered_with_those_declared(fresh):
    with pytest.raises(UsageError, match=r"no candidate 'Tree' — declared are: LinearRegression,"):
        train("housing", only=("Tree",), settings=fresh)
    assert not fresh.models.exists()


@pytest.mark.filterwarnings("ignore")  # as for a user: the product, not the suite, must stop
def test_a_candidate_that_does_not_converge_stops_the_training_before_anything_is_sealed(
    fresh, monkeypatch
):
    hasty = Candidate("Hasty", lambda seed: LogisticRegression(max_iter=2), scaled=True)
    monkeypatch.setitem(USE_CASES, "iris", with_candidates(IRIS, hasty))
    with pytest.raises(TrainingError, match="Hasty did not converge"):
        train("iris", settings=fresh)
    assert not fresh.bundles.exists()
    assert versions(fresh.home, "iris") == []


def test_an_export_that_drops_the_scaler_is_not_sealed_and_the_message_names_the_row(
    fresh, monkeypatch
):
    add = graphs.Graph.add

    def without_division(self: Any, operation: str, *inputs: Any, **how: Any) -> str:
        scales = operation == "Div" and not isinstance(inputs[1], str)
        return inputs[0] if scales else add(self, operation, *inputs, **how)

    monkeypatch.setattr(graphs.Graph, "add", without_division)
    with pytest.raises(ParityError, match=r"for sepal_length=.*in scikit-learn and .* in the grap"):
        train("iris", only=("LogisticRegression",), settings=fresh)
    assert not fresh.bundles.exists()
    assert versions(fresh.home, "iris") == []


def test_a_broken_data_file_stops_the_training_before_anything_is_made(fresh):
    prepare(IRIS, fresh.data)
    path = fresh.data / "iris.csv"
    path.write_text(path.read_text().replace("5.1", "-5.1", 1))
    with pytest.raises(DataError, match=r"column sepal_length, line 2: -5\.1"):
        train("iris", settings=fresh)
    assert not fresh.models.exists()


def test_a_pickle_is_written_wholly_or_not_at_all(fresh, monkeypatch):
    train("iris", only=DISCRIMINANT, settings=fresh)
    before = {path: path.read_bytes() for path in fresh.models.glob("*.pkl")}

    def write_half(value: Any, path: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(joblib, "dump", write_half)
    with pytest.raises(OSError, match="No space left"):
        train("iris", only=DISCRIMINANT, settings=fresh)
    left = {path: path.read_bytes() for path in fresh.models.iterdir() if path.is_file()}
    assert {path: left[path] for path in before} == before
    assert not [path for path in left if "unfinished" in path.name]


# --- still valid


@pytest.fixture
def valid(home: Path, trained: Path) -> Settings:
    """The trained project with all that a training leaves."""
    for path in (trained / "models").glob("*.pkl"):
        (home / "models" / path.name).touch()
    (home / "mlflow.db").touch()
    return settings_of(home)


def test_what_was_trained_by_this_code_on_this_data_is_still_valid(valid):
    for use_case in USE_CASES.values():
        assert still_valid(use_case, valid) == versions(valid.home, use_case.name)[0]


def edit_the_data(settings: Settings) -> None:
    path = settings.data / "iris.csv"
    path.write_text(path.read_text().replace("5.1", "5.2", 1))


def damage_the_bundle(settings: Settings) -> None:
    version = versions(settings.home, "iris")[0]
    (settings.bundles / version.bundle / "model.onnx").write_bytes(b"")


def remove_a_pickle(settings: Settings) -> None:
    (settings.models / "RandomForestClassifier.pkl").unlink()


def remove_the_store(settings: Settings) -> None:
    (settings.home / "mlflow.db").unlink()


def remove_the_state(settings: Settings) -> None:
    settings.state_database.unlink()


@pytest.mark.parametrize(
    "change",
    [edit_the_data, damage_the_bundle, remove_a_pickle, remove_the_store, remove_the_state],
)
def test_after_a_change_the_champion_is_no_longer_valid(valid, change):
    change(valid)
    assert still_valid(IRIS, valid) is None
    assert (still_valid(HOUSING, valid) is None) == (change in {remove_the_store, remove_the_state})


def test_with_other_libraries_or_other_code_the_champion_is_no_longer_valid(valid, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(recipes, "libraries", lambda: {"numpy": "1.0"})
        assert still_valid(IRIS, valid) is None
    read = Path.read_bytes
    for name in ("pipeline.py", "export.py", "usecase.py", "iris.py", "train.py"):
        with monkeypatch.context() as patched:
            patched.setattr(
                Path, "read_bytes", lambda self, name=name: read(self) + b"#" * (self.name == name)
            )
            assert still_valid(IRIS, valid) is None, name
    assert still_valid(IRIS, valid) is not None


def test_another_page_figure_or_check_is_no_reason_to_train(valid, monkeypatch):
    read = Path.read_bytes
    others = {
        "figures.py",
        "page.py",
        "diagnosis.py",
        "check.py",
        "comparison.py",
        "difference.py",
        "card.py",
    }
    monkeypatch.setattr(Path, "read_bytes", lambda self: read(self) + b"#" * (self.name in others))
    assert still_valid(IRIS, valid) is not None


def test_what_decides_a_training_imports_nothing_of_build_that_does_not():
    build = Path(training.__file__).parents[1] / "build"
    for name in recipes.DECIDING:
        imported = re.findall(
            r"from mlops\.build\.(\w+) import", (build / f"{name}.py").read_text()
        )
        assert set(imported) <= set(recipes.DECIDING), name
    loop = Path(training.__file__).parent
    joined = [loop / f"{name}.py" for name in ("train", "intervals", "quality")]
    used = re.findall(
        r"from mlops\.build\.(\w+) import", "".join(path.read_text() for path in joined)
    )
    by_training = {"calibration", "energy", "pipeline"}
    assert set(used) == set(recipes.DECIDING) - by_training


def test_a_store_elsewhere_need_not_be_in_this_folder(valid):
    remove_the_store(valid)
    elsewhere = valid.model_copy(update={"tracking_uri": "http://127.0.0.1:9"})
    assert still_valid(IRIS, elsewhere) is not None


# --- LightGBM without its library


def test_without_libgomp_a_whole_training_takes_scikit_learns_boosting_and_seals_it_exactly(
    tmp_path, empty_store
):
    broken = tmp_path / "broken" / "lightgbm"
    broken.mkdir(parents=True)
    said = "libgomp.so.1: cannot open shared object file: No such file or directory"
    (broken / "__init__.py").write_text(f"raise OSError({said!r})\n")
    home = tmp_path / "home"
    (home / "data").mkdir(parents=True)
    shutil.copy(empty_store, home / "mlflow.db")
    HOUSING.load().table.head(300).to_csv(home / "data" / "housing.csv", index=False)
    only = ("--only", "GradientBoosting")
    alone = {"PYTHONPATH": str(broken.parent), "OMP_NUM_THREADS": "1"}
    done = mlops("train", "housing", *only, home=home, **alone)
    assert done.stderr.count("LightGBM cannot be loaded") == 1
    assert f"({said}): using HistGradientBoostingRegressor instead" in done.stderr
    (version,) = versions(home, "housing")
    opened = bundle(home, version)
    assert opened.training["model_class"] == "HistGradientBoostingRegressor"
    assert opened.training["parity"]["largest_difference"] <= 1e-9
    assert opened.training["parity"]["threshold_rows"] > 300
    rows = pd.DataFrame(opened.golden["fields"], columns=HOUSING.fields)
    pipeline = joblib.load(home / "models" / "GradientBoosting.pkl")
    np.testing.assert_allclose(pipeline.predict(rows), opened.golden["prediction"], rtol=1e-9)

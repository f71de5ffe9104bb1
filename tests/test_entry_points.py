"""The doors of the original description, each as a person would type it in the project's folder."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import joblib
import kept
import numpy as np
import pytest
from conftest import Server, copy_code, copy_project, environment, free_port, run, start_server
from test_api import FLOWER, HOUSE
from traffic import send_one

from mlops.usecases import USE_CASES
from mlops.usecases.housing import HOUSING
from mlops.usecases.iris import IRIS

CALIFORNIA = {  # scikit-learn's names
    "MedInc", "HouseAge", "AveRooms", "AveBedrms", "Population", "AveOccup", "Latitude",
    "Longitude", "MedHouseVal",
}  # fmt: skip


@pytest.fixture(scope="module")
def project(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project's folder after its training scripts, code included."""
    home = copy_project(trained, tmp_path_factory.mktemp("entry") / "project")
    for folder in ("src", "api"):
        copy_code(trained / folder, home / folder)
    for pickle in trained.glob("models/*.pkl"):
        shutil.copy(pickle, home / "models")
    shutil.copytree(trained / "mlruns", home / "mlruns")
    shutil.copy(trained / "mlflow.db", home / "mlflow.db")
    return home


@pytest.fixture
def printed(trained: Path, request: pytest.FixtureRequest) -> str:
    """What a script printed when the project was trained."""
    return (trained / f"{request.param}.out").read_text()


@contextlib.contextmanager
def uvicorn(app: str, home: Path) -> Iterator[Server]:
    """Start `uvicorn <app> --port N`. The code's `src` is on the path, as `pip install` puts it."""
    command = ["uvicorn", app, "--port", "{port}"]
    server = start_server(home, command=command, PYTHONPATH=str(home / "src"))
    try:
        yield server
    finally:
        server.kill()


# python src/….py


@pytest.mark.parametrize("printed", ["load_data"], indirect=True)
def test_load_data_writes_the_table_in_real_units_and_says_so(printed: str, trained: Path) -> None:
    assert "data/housing.csv written" in printed
    assert "20,640 rows" in printed
    assert "1990" in printed
    with (trained / "data" / "housing.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 20_640
    assert set(rows[0]) >= CALIFORNIA | {"total_rooms", "total_bedrooms", "households"}
    incomes = np.array([float(row["MedInc"]) for row in rows])
    assert (incomes.min(), incomes.max()) == (0.4999, 15.0001)
    for row in rows[:: len(rows) // 50]:
        rooms = float(row["AveRooms"]) * float(row["households"])
        assert rooms == pytest.approx(float(row["total_rooms"]), rel=1e-12)


def test_load_data_run_again_keeps_the_file(project: Path) -> None:
    before = (project / "data" / "housing.csv").stat()
    done = run("python", "src/load_data.py", home=project)
    assert "data/housing.csv checked" in done.stdout
    assert (project / "data" / "housing.csv").stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize("printed", ["train_and_track"], indirect=True)
def test_train_and_track_prints_each_candidate_and_promotes_the_winner(printed: str) -> None:
    for candidate in HOUSING.candidates:
        assert re.search(rf"{candidate.name} (\* )?.*±", printed), f"{candidate.name} in {printed}"
    assert re.search(r"LinearRegression .* 0\.5758 ", printed)
    assert re.search(r"DecisionTree .* 0\.5997 ", printed)
    assert re.search(r"GradientBoosting \* .* 0\.83\d\d ", printed)
    assert re.search(r"baseline .* -?0\.000\d ", printed)
    assert "housing: version 1 is champion" in printed
    assert "16,512 rows to learn from, 4,128 to be measured on" in printed


@pytest.mark.parametrize("printed", ["train_iris"], indirect=True)
def test_train_iris_registers_the_forest_whether_it_wins_or_not(printed: str) -> None:
    for candidate in IRIS.candidates:
        assert candidate.name in printed
    assert re.search(r"RandomForest: version \d", printed)
    assert "iris: version 1 is champion" in printed


def test_every_promised_file_is_there(trained: Path) -> None:
    expected = ["data/housing.csv", "data/iris.csv", "mlflow.db", "models/state.db"]
    for use_case in USE_CASES.values():
        expected += [f"models/{candidate.pickle_name}" for candidate in use_case.candidates]
    expected += ["models/LinearRegression.pkl", "models/RandomForestClassifier.pkl"]
    for name in expected:
        assert (trained / name).stat().st_size > 0, name
    assert any((trained / "mlruns").rglob("MLmodel"))
    for bundle in (trained / "models" / "bundles").iterdir():
        assert re.fullmatch("[0-9a-f]{64}", bundle.name)
        assert {"manifest.json", "model.onnx"} <= {file.name for file in bundle.iterdir()}


def test_a_pickle_is_a_whole_pipeline_that_answers_request_fields(trained: Path) -> None:
    for use_case in USE_CASES.values():
        example = next(iter(use_case.examples.values()))
        for candidate in use_case.candidates:
            pipeline = joblib.load(trained / "models" / candidate.pickle_name)
            assert ("scale" in pipeline.named_steps) == candidate.scaled
            [prediction] = pipeline.predict(np.array([[example[f] for f in use_case.fields]]))
            assert use_case.target.low <= prediction <= use_case.target.high + 1


# uvicorn api.…:app


@pytest.mark.parametrize(
    ("app", "request_body", "field", "use_case"),
    [
        ("api.housing_api:app", HOUSE, "predicted_price", "housing"),
        ("api.main:app", FLOWER, "predicted_class", "iris"),
    ],
    ids=["housing", "iris"],
)
def test_uvicorn_serves_the_app_that_is_named_and_logs_where_it_is_said(
    app: str, request_body: bytes, field: str, use_case: str, project: Path
) -> None:
    with uvicorn(app, project) as server:
        reply = send_one(server.port, "/predict", request_body)
        assert reply.status == 200
        assert field in reply.json
        metrics = server.request("/metrics")[1]
        assert metrics["total_predictions"] == 1
        assert metrics["last_updated"]
        [row] = kept.check_whole(project, use_case)
        assert row["prediction_id"] == reply.json["prediction_id"]
        [line] = (project / f"{use_case}logs" / "predictions.log").read_text().splitlines()
        assert json.loads(line)["prediction"] == row["prediction"]


def test_importing_an_app_opens_nothing(tmp_path: Path, trained: Path) -> None:
    for folder in ("src", "api"):
        copy_code(trained / folder, tmp_path / folder)
    before = {path for path in tmp_path.rglob("*") if "__pycache__" not in str(path)}
    code = "import api.main, api.housing_api; print(api.main.app.title, api.housing_api.app.title)"
    done = run(sys.executable, "-c", code, home=tmp_path, PYTHONPATH=str(tmp_path / "src"))
    assert done.stdout.strip() == "Iris California Housing"
    after = {path for path in tmp_path.rglob("*") if "__pycache__" not in str(path)}
    assert after == before


# mlflow ui


def test_mlflow_ui_without_any_setting_shows_runs_and_registry(project: Path) -> None:
    port = free_port()
    variables = {k: v for k, v in environment(project).items() if not k.startswith("MLOPS")}
    with (project / "mlflow.out").open("wb") as output:
        process = subprocess.Popen(
            ["mlflow", "ui", "--port", str(port), "--workers", "1"],
            cwd=project,
            env=variables | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{address}/health", timeout=5).close()
                break
            assert time.monotonic() < deadline, (project / "mlflow.out").read_text()
            assert process.poll() is None, (project / "mlflow.out").read_text()
            time.sleep(0.2)
        experiments = ask_mlflow(address, "experiments/search", {"max_results": 10})["experiments"]
        by_name = {one["name"]: one["experiment_id"] for one in experiments}
        assert {"housing", "iris"} <= set(by_name)
        runs = ask_mlflow(address, "runs/search", {"experiment_ids": [by_name["housing"]]})["runs"]
        logged = {}
        for one in runs:
            parameters = {item["key"]: item["value"] for item in one["data"]["params"]}
            metrics = {item["key"]: item["value"] for item in one["data"]["metrics"]}
            logged[parameters["model_name"]] = metrics
        assert set(logged) == {candidate.name for candidate in HOUSING.candidates}
        for metrics in logged.values():
            assert {"mse", "r2_score"} <= set(metrics)
        assert logged["LinearRegression"]["r2_score"] == pytest.approx(0.5758, abs=5e-5)
        models = ask_mlflow(address, "registered-models/search")["registered_models"]
        aliases = {one["name"]: one.get("aliases") for one in models}
        assert aliases["HousingPriceModel"] == [{"alias": "champion", "version": "1"}]
        assert aliases["IrisClassifierModel"] == [{"alias": "champion", "version": "1"}]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait(30)


def ask_mlflow(address: str, what: str, body: dict[str, Any] | None = None) -> Any:
    request = urllib.request.Request(
        f"{address}/api/2.0/mlflow/{what}",
        json.dumps(body).encode() if body else None,
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)


# import mlops

LOOP = """
import json, mlops
table = mlops.prepare("iris")
assert (len(table.frame), table.reused) == (150, True), table
training = mlops.train("iris", only=("LinearDiscriminantAnalysis",))
assert training.winner == "LinearDiscriminantAnalysis", training
[version] = training.registered
promotion = mlops.promote("iris", version.version)
assert not promotion.changed, "the same training gives the same bundle, which is champion already"
[answer] = mlops.predict("iris", [dict(
    sepal_length=5.1, sepal_width=3.5, petal_length=1.4, petal_width=0.2)])
assert answer["predicted_label"] == "setosa", answer
[logged] = mlops.logs("iris", last=1)
assert logged["prediction_id"] == answer["prediction_id"], logged
assert mlops.show("iris")["champion"] == version.version
assert {"LinearDiscriminantAnalysis", "RandomForest"} <= {
    run["candidate"] for run in mlops.runs("iris")}
try:
    mlops.predict("iris", [dict(sepal_length=5.1), dict(petal_width="x")])
except Exception as error:
    print(type(error).__name__, error)
print(mlops.__version__, mlops.serve("iris").title)
"""


def test_the_loop_in_python_reads_as_it_is_described(project: Path) -> None:
    done = run(sys.executable, "-c", LOOP, home=project, PYTHONPATH=str(project / "src"))
    refused, last = done.stdout.splitlines()
    assert refused.startswith("InvalidRequestError row 1: sepal_width is missing")
    assert "mlops show iris" in refused
    assert last.endswith(" Iris")
    failures = kept.query(project, "SELECT path, status FROM failures", "iris")
    assert failures == [{"path": "mlops predict", "status": 422}]
    kept.check_whole(project, "iris")

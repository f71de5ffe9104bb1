"""The offline score, found again by sending held-out rows through a running server."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from conftest import Server, copy_project, mlops, start_server
from sklearn.metrics import accuracy_score, r2_score
from sklearn.pipeline import Pipeline
from traffic import post, send

from mlops.build.data import Split, read_table, split
from mlops.improve.ledger import Ledger, Version
from mlops.package.bundle import PIPELINE, Bundle, golden_answers, open_bundle, seal
from mlops.package.export import to_onnx
from mlops.package.model import OnnxModel
from mlops.package.probes import on_thresholds
from mlops.usecase import UseCase
from mlops.usecases.housing import HOUSING
from mlops.usecases.iris import IRIS

BATCHES = (2, 7, 100, 1000)
SAME_SCORE = 1e-6
SAME_ANSWER = 1e-9


@pytest.fixture(scope="module")
def server(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = copy_project(trained, tmp_path_factory.mktemp("parity") / "home")
    started = start_server(home)
    yield started
    started.kill()


def champion(home: Path, use_case: UseCase) -> tuple[Bundle, Pipeline]:
    with Ledger(home / "models" / "state.db") as ledger:
        version = ledger.champion(use_case.name)
    assert version is not None
    return opened(home, version.bundle)


def opened(home: Path, name: str) -> tuple[Bundle, Pipeline]:
    """Return a bundle, and the fitted pipeline that lies in it for people."""
    bundle = open_bundle(home / "models" / "bundles" / name)
    return bundle, joblib.load(bundle.path / PIPELINE)


def parts(home: Path, use_case: UseCase) -> Split:
    return split(use_case, read_table(use_case, home / "data").frame)


def ask(server: Server, use_case: UseCase, rows: np.ndarray, size: int) -> list[dict[str, Any]]:
    """Send rows over 16 connections, singly or in batches; return the answers in order."""
    records = [dict(zip(use_case.fields, row, strict=True)) for row in rows.tolist()]
    path = f"/{use_case.name}/predict"
    if size == 1:
        shuffle = random.Random(1).shuffle
        items = [list(record.items()) for record in records]
        for pairs in items[::2]:
            shuffle(pairs)
        replies = send(server.port, [post(path, dict(pairs)) for pairs in items])
    else:
        groups = [records[start : start + size] for start in range(0, len(records), size)]
        requests = [post(f"{path}/batch", {"instances": group}) for group in groups]
        replies = send(server.port, requests)
    answers: list[dict[str, Any]] = []
    for reply in replies:
        assert reply is not None
        assert reply.status == 200, reply.body[:500]
        answers += [reply.json] if size == 1 else reply.json["predictions"]
    assert len(answers) == len(records)
    return answers


def check_housing(
    server: Server, bundle: Bundle, pipeline: Pipeline, held_out: Split, sizes: tuple[int, ...]
) -> None:
    """Check that held-out rows sent over HTTP are answered as scikit-learn does offline."""
    rows = held_out.X_test.to_numpy(dtype=float)
    offline = pipeline.predict(held_out.X_test)
    for size in sizes:
        answers = ask(server, HOUSING, rows, size)
        served = np.array([answer["predicted_price"] for answer in answers])
        score = r2_score(held_out.y_test, served)
        expected = bundle.metrics["scores"]["r2_score"]
        assert abs(score - expected) <= SAME_SCORE, (
            f"R² {score:.6f} over HTTP in groups of {size}, {expected:.6f} offline"
        )
        worst = int(np.argmax(np.abs(served - offline)))
        assert abs(served[worst] - offline[worst]) <= SAME_ANSWER, (
            f"row {worst}: {served[worst]} over HTTP, {offline[worst]} offline"
        )


def test_all_held_out_houses_get_over_http_the_answers_and_the_score_of_training(
    server: Server,
) -> None:
    held_out = parts(server.home, HOUSING)
    assert len(held_out.X_test) == 4128
    before = server.request("/housing/metrics")[1]["total_predictions"]
    check_housing(server, *champion(server.home, HOUSING), held_out, (1, *BATCHES))
    after = server.request("/housing/metrics")[1]["total_predictions"]
    assert after - before == 4128 * (1 + len(BATCHES))


def test_held_out_flowers_get_over_http_the_classes_and_probabilities_of_training(
    server: Server,
) -> None:
    bundle, pipeline = champion(server.home, IRIS)
    held_out = parts(server.home, IRIS)
    rows = held_out.X_test.to_numpy(dtype=float)
    offline = pipeline.predict_proba(held_out.X_test)
    for size in (1, *BATCHES):
        answers = ask(server, IRIS, rows, size)
        classes = np.array([answer["predicted_class"] for answer in answers])
        assert (classes == pipeline.predict(held_out.X_test)).all()
        accuracy = accuracy_score(held_out.y_test, classes)
        assert accuracy == pytest.approx(bundle.metrics["scores"]["accuracy"], abs=SAME_SCORE)
        for answer, expected in zip(answers, offline, strict=True):
            assert list(answer["probabilities"]) == list(IRIS.target.labels)
            assert list(answer["probabilities"].values()) == pytest.approx(
                expected, abs=SAME_ANSWER
            )
            assert answer["predicted_label"] == IRIS.target.labels[answer["predicted_class"]]


def test_rows_on_thresholds_of_the_trees_get_over_http_the_answers_of_training(
    server: Server,
) -> None:
    _, pipeline = champion(server.home, HOUSING)
    rows = parts(server.home, HOUSING).X_train.to_numpy(dtype=float)
    probes = np.concatenate(list(on_thresholds(pipeline, rows, 20_000)))
    low = np.array([feature.low for feature in HOUSING.features])
    high = np.array([feature.high for feature in HOUSING.features])
    probes = probes[((probes >= low) & (probes <= high)).all(axis=1)]
    assert len(probes) > 1_000
    answers = ask(server, HOUSING, probes, 1000)
    served = np.array([answer["predicted_price"] for answer in answers])
    assert np.abs(served - pipeline.predict(probes)).max() <= SAME_ANSWER


def promote(server: Server, bundle: str) -> int:
    """Make a bundle champion past all gates, and wait until the server answers with it."""
    with Ledger(server.home / "models" / "state.db") as ledger:
        number = max(one.version for one in ledger.versions("housing")) + 1
        version = Version("housing", number, bundle, "LinearRegression", "none", "2026")
        before = ledger.champion("housing")
        ledger.register(version)
        ledger.promote(
            version, expected=before.version if before else None, reason="a test", evidence=[]
        )
    deadline = time.monotonic() + 10
    while server.request("/housing")[1]["model_version"] != number:
        assert time.monotonic() < deadline, server.request("/housing")[1]
        time.sleep(0.05)
    return number


def test_a_scaler_dropped_from_the_exported_graph_is_found_over_http(
    home: Path, trained: Path
) -> None:
    shutil.copy(trained / "mlflow.db", home / "mlflow.db")
    printed = mlops("train", "housing", "--only", "LinearRegression", "--json", home=home).stdout
    [version] = json.loads(printed)["registered"]
    bundle, pipeline = opened(home, version["bundle"])
    assert "scale" in pipeline.named_steps
    without = Pipeline([step for step in pipeline.steps if step[0] != "scale"])
    graph = to_onnx(without, HOUSING.fields)
    documents = ("signature", "reference", "golden", "metrics", "training")
    contents = {name: getattr(bundle, name) for name in documents}
    rows = np.array(bundle.golden["fields"], dtype=float)
    contents["golden"] = {**bundle.golden, **golden_answers(OnnxModel(graph).run(rows))}
    broken = seal(
        home / "models" / "bundles",
        model=graph,
        documents=contents,
        pipeline=(bundle.path / PIPELINE).read_bytes(),
        provenance=bundle.provenance,
    )
    held_out = parts(home, HOUSING)
    server = start_server(home)
    try:
        promote(server, version["bundle"])
        check_housing(server, bundle, pipeline, held_out, (100, 1))
        promote(server, broken)
        for size in (100, 1):
            with pytest.raises(AssertionError, match=r"R² -\d.* over HTTP .*0\.57\d+ offline"):
                check_housing(server, bundle, pipeline, held_out, (size,))
    finally:
        server.kill()

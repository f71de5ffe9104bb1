"""Explanations of sealed bundles: they add up, agree with what is served, and say so in words."""

from __future__ import annotations

import contextlib
import functools
import json
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from conftest import Server
from families import ENSEMBLES, FAMILIES, family
from forged import seal_without

from mlops import cli
from mlops.build.data import prepare, split
from mlops.deploy.explanation import standing
from mlops.errors import BundleError, NotExplainedError, ParityError
from mlops.improve.ledger import Ledger
from mlops.loop.explain import card, explain
from mlops.package import explanation as sealing
from mlops.package import shapley
from mlops.package.bundle import EXPLANATION, Bundle, open_bundle
from mlops.package.explainer import Explained, Explainer
from mlops.package.explanation import explanation_document
from mlops.package.export import to_onnx
from mlops.package.model import OnnxModel
from mlops.settings import Settings
from mlops.usecases import USE_CASES

HOUSING, IRIS = USE_CASES["housing"], USE_CASES["iris"]
HOUSE = HOUSING.examples["8 rooms for 500 households: answered, with a warning"]
FLOWER = IRIS.examples["setosa"]
VERSIONS = [("housing", 1), ("iris", 1), ("iris", 2)]


def sealed(home: Path, use_case: str, version: int) -> Bundle:
    with Ledger(home / "models" / "state.db") as ledger:
        found = ledger.version(use_case, version)
    return open_bundle(home / "models" / "bundles" / found.bundle)


def held_out(home: Path, use_case: str) -> np.ndarray:
    one = USE_CASES[use_case]
    return split(one, prepare(one, home / "data").frame).X_test.to_numpy(dtype=float)


# The sealed bundles


@functools.cache
def explained(home: Path, use_case: str, version: int) -> Explained:
    """All held-out rows, explained."""
    return sealed(home, use_case, version).explainer.explain(held_out(home, use_case))


@pytest.mark.parametrize(("use_case", "version"), VERSIONS)
def test_on_every_held_out_row_they_add_up_to_what_is_served(
    use_case: str, version: int, trained: Path
) -> None:
    bundle, rows = sealed(trained, use_case, version), held_out(trained, use_case)
    assert len(rows) == {"housing": 4128, "iris": 30}[use_case]
    found = explained(trained, use_case, version)
    served = bundle.model.run(rows)
    answers = served.prediction[:, None] if served.probabilities is None else served.probabilities
    total = found.base + found.contributions.sum(axis=2)
    assert np.abs(total - answers).max() <= 1e-6
    assert np.isfinite(found.contributions).all()


def test_they_are_lightgbms_own_with_derived_inputs_split_between_their_fields(
    trained: Path,
) -> None:
    bundle, rows = sealed(trained, "housing", 1), held_out(trained, "housing")[:200]
    pipeline = joblib.load(bundle.path / "pipeline.joblib")
    theirs = pipeline[-1].booster_.predict(pipeline[:-1].transform(rows), pred_contrib=True)
    found = explained(trained, "housing", 1)
    found = found._replace(derived=found.derived[:200], contributions=found.contributions[:200])
    np.testing.assert_allclose(found.derived[:, 0], theirs[:, :-1], atol=1e-9)
    np.testing.assert_allclose(found.base[0], theirs[0, -1], atol=1e-9)
    of = dict(zip(HOUSING.input_names, theirs.T, strict=False))
    ours = dict(zip(HOUSING.fields, found.contributions[:, 0].T, strict=True))
    np.testing.assert_allclose(ours["median_income"], of["median_income"], atol=1e-9)
    np.testing.assert_allclose(ours["total_rooms"], of["rooms_per_household"] / 2, atol=1e-9)
    third = "rooms_per_household", "bedrooms_per_household", "people_per_household"
    np.testing.assert_allclose(ours["households"], sum(of[t] for t in third) / 2, atol=1e-9)
    np.testing.assert_allclose(
        ours["population"], of["population"] + of["people_per_household"] / 2, atol=1e-9
    )


def test_global_importance_is_in_the_bundle_and_its_card(trained: Path) -> None:
    bundle = sealed(trained, "housing", 1)
    measured = bundle.explanation["importance"]
    rows = held_out(trained, "housing")
    found = np.abs(explained(trained, "housing", 1).contributions[:, 0]).mean(axis=0)
    assert measured["rows"] == len(rows)
    listed = [measured["fields"][name] for name in HOUSING.fields]
    np.testing.assert_allclose(listed, found, rtol=1e-9)
    text = (bundle.path / "model_card.md").read_text()
    for name, size in measured["fields"].items():
        assert re.search(rf"\| `{name}` \| {re.escape(f'{size:.4g}')} \|", text)
    for heading in ("Model details", "Intended use", "Metrics", "Ethical", "Caveats"):
        assert f"\n## {heading}" in text
    assert f"{bundle.metrics['scores']['r2_score']:.4f}" in text
    assert bundle.training["data_fingerprint"] in text


def test_serving_explains_without_a_training_library_and_without_a_pickle(trained: Path) -> None:
    """In a process in which importing any of them, or pickle's loader, is an error."""
    code = """
import sys
for name in ("sklearn", "lightgbm", "pandas", "scipy", "onnx", "joblib", "mlflow"):
    sys.modules[name] = None
import pickle
def refused(*_, **__): raise AssertionError("unpickled")
pickle.load = pickle.loads = pickle.Unpickler = refused
from pathlib import Path
from mlops.package.bundle import open_bundle
import numpy as np
bundle = open_bundle(Path(sys.argv[1]))
rows = np.array(bundle.golden["fields"])
found = bundle.explainer.explain(rows)
print(abs(found.base + found.contributions.sum(axis=2) - found.value).max() <= 1e-6)
"""
    path = sealed(trained, "housing", 1).path
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
    )
    assert done.stdout == "True\n", done.stderr


# Sealing


def document(kind: str, name: str) -> tuple[dict[str, Any], OnnxModel, np.ndarray]:
    pipeline, rows, use_case = family(kind, name)
    model = OnnxModel(to_onnx(pipeline, use_case.fields))
    return explanation_document(pipeline, model, rows, rows[:5]), model, rows


EXPLAINED = [one for one in FAMILIES if one[0] in {"regression", "iris"}]
EXPLAINED += [("two classes", "lightgbm"), ("four classes", "forest")]


@pytest.mark.parametrize(("kind", "name"), EXPLAINED)
def test_every_family_that_can_be_served_can_be_explained(kind: str, name: str) -> None:
    found, model, rows = document(kind, name)
    explainer = Explainer(json.loads(json.dumps(found)), model)
    explainer.explain(rows[:3])  # raises where it does not add up
    assert list(found["importance"]["fields"]) == list(model.fields)
    if "dummy" not in name:
        assert max(found["importance"]["fields"].values()) > 0
    expected = {
        "least squares": "linear",
        "ridge": "linear",
        "lasso": "linear",
        "logistic": "coalitions",
        "discriminant": "coalitions",
    }.get(name.removesuffix(", scaled"))
    boosted = kind != "regression" and name in {"histogram boosting", "lightgbm"}
    other = boosted or name.endswith("of a logarithm") or name.startswith(ENSEMBLES)
    assert found["method"] == (expected or ("coalitions" if other else "tree_paths"))


@pytest.mark.parametrize("name", ["tree", "tree, scaled", "forest", "lightgbm"])
def test_training_rows_that_are_miscounted_are_found_and_nothing_is_sealed(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = shapley.cover

    def one_too_many(forest: Any, inputs: np.ndarray) -> np.ndarray:
        covered = count(forest, inputs)
        covered[len(covered) // 4] += 1
        return covered

    def rows_of_elsewhere(forest: Any, inputs: np.ndarray) -> np.ndarray:
        return count(forest, inputs[: len(inputs) // 2])

    for fault in (one_too_many, rows_of_elsewhere):
        monkeypatch.setattr(sealing.shapley, "cover", fault)
        with pytest.raises(ParityError, match="training rows were miscounted"):
            document("regression", name)


def test_an_explained_model_that_is_not_the_served_one_is_found_and_nothing_is_sealed() -> None:
    pipeline, rows, use_case = family("regression", "tree")
    other = family("regression", "lightgbm")[0]
    served = OnnxModel(to_onnx(other, use_case.fields))
    with pytest.raises(ParityError, match="differ from the answer by"):
        explanation_document(pipeline, served, rows, rows[:50])


def test_a_threshold_that_moved_after_sealing_is_not_answered() -> None:
    found, model, rows = document("regression", "tree")
    moved = {**found, "shift": [0.5] * 8}
    with pytest.raises(BundleError, match="differ from the answer by"):
        Explainer(moved, model).explain(rows[:100])


# Over HTTP


@pytest.fixture
def server(serve: Callable[..., Server]) -> Server:
    return serve()


def count(home: Path, table: str) -> int:
    with contextlib.closing(sqlite3.connect(f"{home}/housinglogs/predictions.db")) as log:
        return int(log.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0])


def adds_up(explanation: dict[str, Any]) -> bool:
    total = explanation["base_value"] + sum(explanation["contributions"].values())
    return abs(total - explanation["prediction"]) <= 1e-6


def test_explain_shares_an_answer_among_the_fields_and_records_nothing(server: Server) -> None:
    status, answer = server.request("/explain", HOUSE)
    assert status == 200
    assert server.request("/housing/explain", HOUSE) == (200, answer)
    assert list(answer["contributions"]) == list(HOUSING.fields)
    assert adds_up(answer)
    assert answer["predicted_price"] == answer["prediction"] == pytest.approx(3.2728, abs=1e-3)
    assert answer["text"].startswith("3.27 (100,000 dollars) = 2.07 on average; +1.00 because ")
    assert (
        "total_rooms is 8 rooms (very low: below 99 % of training rows), mostly as part of "
        "rooms_per_household, which is 0.016 rooms a household (lower than in any training row)"
    ) in answer["text"]
    assert count(server.home, "housinglogs") == 0

    status, answer = server.request("/iris/explain", FLOWER)
    assert status == 200
    assert (answer["predicted_class"], answer["predicted_label"]) == (0, "setosa")
    assert answer["explains"] == "probability of setosa"
    assert list(answer["classes"]) == list(IRIS.target.labels)
    assert all(map(adds_up, answer["classes"].values()))

    for body, says in (
        ({**HOUSE, "latitude": 99}, "latitude must be at most 42.5 degrees north, got 99"),
        ({"latitude": 37}, "total_rooms is missing"),
        (b'{"latitude": NaN}', ""),
        (b'{"latitude": 37, "latitude": 38}', ""),
    ):
        refused, predicted = (server.request(p, body) for p in ("/explain", "/predict"))
        assert refused == predicted
        assert refused[0] == 422
        assert says in refused[1]["detail"][0]["msg"]
    assert server.request("/metrics")[1]["use_cases"]["housing"]["total_predictions"] == 0


def test_explain_true_adds_why_to_a_prediction_that_is_logged_as_always(server: Server) -> None:
    plain = server.request("/predict", HOUSE)[1]
    headers = {"idempotency-key": "once"}
    status, answer = server.request("/predict?explain=true", HOUSE, headers)
    assert status == 200
    explanation = answer.pop("explanation")
    assert {**answer, "prediction_id": ""} == {**plain, "prediction_id": ""}
    assert adds_up(explanation)
    assert explanation["prediction"] == answer["predicted_price"]
    assert count(server.home, "housinglogs") == 2
    again = server.request("/predict?explain=true", HOUSE, headers)[1]
    assert again == {**answer, "explanation": explanation}
    assert "explanation" not in server.request("/predict?explain=false", HOUSE)[1]

    path = f"/predictions/{answer['prediction_id']}"
    assert "explanation" not in server.request(path)[1]
    found = server.request(f"{path}?explain=true")[1]
    assert found["explanation"] == explanation
    assert found["inputs"] == HOUSE

    before = count(server.home, "housinglogs")
    status, answer = server.request("/predict?explain=perhaps", HOUSE)
    assert (status, answer["detail"][0]["loc"]) == (422, ["query", "explain"])
    assert answer["detail"][0]["msg"] == "explain must be true or false, got 'perhaps'"
    assert count(server.home, "housinglogs") == before


def test_a_logged_prediction_is_explained_by_the_version_that_made_it(
    home: Path, serve: Callable[..., Server]
) -> None:
    server = serve("iris")
    first = server.request("/predict", FLOWER)[1]
    assert first["model_version"] == 1
    with Ledger(home / "models" / "state.db") as ledger:
        ledger.promote(ledger.version("iris", 2), expected=1, reason="a test", evidence=[])
    while (second := server.request("/predict", FLOWER)[1])["model_version"] != 2:
        time.sleep(0.1)
    for answer, method in ((first, "coalitions"), (second, "tree_paths")):
        found = server.request(f"/predictions/{answer['prediction_id']}?explain=true")[1]
        assert found["explanation"]["model_version"] == answer["model_version"]
        assert found["explanation"]["bundle"] == found["bundle"]
        assert found["explanation"]["method"] == method
        assert adds_up(found["explanation"])
    shutil.rmtree(home / "models" / "bundles" / sealed(home, "iris", 1).hash)
    gone = serve("iris").request(f"/predictions/{first['prediction_id']}?explain=true")
    assert gone[0] == 409
    assert "that made this prediction cannot be opened" in gone[1]["detail"][0]["msg"]
    assert str(home) not in json.dumps(gone[1])


def test_a_bundle_of_before_predicts_on_and_says_what_to_do_about_explanations(
    home: Path, serve: Callable[..., Server]
) -> None:
    seal_without(home, "housing", EXPLANATION)
    server = serve("housing")
    says = (
        "version 1 cannot be explained: it was sealed before there were explanations — "
        "train again with: mlops train housing"
    )
    for path in ("/explain", "/predict?explain=true"):
        status, answer = server.request(path, HOUSE)
        assert (status, answer["detail"][0]["msg"]) == (409, says)
    assert count(home, "housinglogs") == 0
    status, answer = server.request("/predict", HOUSE)
    assert status == 200
    status, answer = server.request(f"/predictions/{answer['prediction_id']}?explain=true")
    assert (status, answer["detail"][0]["msg"]) == (409, says)
    settings = Settings(MLOPS_HOME=home)
    with pytest.raises(NotExplainedError, match="train again"):
        explain("housing", HOUSE, settings=settings)
    assert (
        "Not measured: sealed before there were explanations"
        in card("housing", settings=settings).text
    )


# From the command line, and in words


def test_the_command_explains_and_prints_cards(
    home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home)
    monkeypatch.setenv("MLOPS_HOME", str(home))

    def mlops(*arguments: str, code: int = 0) -> str:
        with contextlib.ExitStack() as stack:
            ended = stack.enter_context(pytest.raises(SystemExit))
            cli.main(list(arguments))
        assert ended.value.code == code
        out, err = capfd.readouterr()
        return err if code else out

    row = [f"{name}={value}" for name, value in HOUSE.items()]
    shown = mlops("explain", "housing", *row)
    assert "median_income" in shown
    assert "on average; " in shown
    assert adds_up(json.loads(mlops("explain", "housing", *row, "--json")))
    assert not (home / "housinglogs").exists()
    refused = mlops("explain", "housing", *row[:-1], "longitude=7", code=2)
    assert "longitude must be at most -114" in refused
    printed = mlops("card", "iris", "2")
    assert printed.startswith("# Model card: Iris, version 2\n")
    mlops("card", "iris", "2", "--to", "card.md")
    assert (home / "card.md").read_text() == printed.rstrip("\n") + "\n"


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (-1, "lower than in any training row"),
        (0, "very low: below 99 % of training rows"),
        (10.5, "low: below 89 % of training rows"),
        (50, "usual: above 50 % of training rows"),
        (90, "high: above 90 % of training rows"),
        (100, "very high: above 99 % of training rows"),
        (101, "higher than in any training row"),
    ],
)
def test_a_value_is_told_by_where_it_stands_among_those_of_training(
    value: float, says: str
) -> None:
    assert standing(value, [float(q) for q in range(101)]) == says


def test_a_value_that_most_rows_have_stands_in_the_middle_of_them() -> None:
    quantiles = [0.0] * 20 + [1.0] * 60 + [2.0] * 21
    assert standing(1.0, quantiles) == "usual: above 49 % of training rows"


def test_the_benchmark_finds_that_all_held_out_rows_add_up(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks import explain as benchmark

    monkeypatch.setattr(benchmark, "ROWS", 3)
    benchmark.run(trained)
    lines = capsys.readouterr().out.splitlines()[3:]
    assert [line.split()[:2] for line in lines] == [
        ["housing", "GradientBoosting"],
        ["iris", "LinearDiscriminantAnalysis"],
    ]
    assert all(float(line.split()[-1]) < 1e-9 for line in lines)

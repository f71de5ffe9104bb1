"""Feedback and performance, over HTTP and on the command line, with the real model and log."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tiny
from conftest import Server, copy_project, mlops, start_server
from kept import query

from mlops.build.data import prepare, split
from mlops.deploy.feedback import LARGEST_BATCH, actual_value
from mlops.deploy.service import Service
from mlops.loop.performance import judge, measure_of
from mlops.loop.prediction_log import open_log
from mlops.records import Attached
from mlops.settings import read_settings
from mlops.usecases import USE_CASES
from mlops.usecases.housing import HOUSING
from mlops.usecases.iris import IRIS

Item = dict[str, Any]


@pytest.fixture(scope="module")
def server(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = copy_project(trained, tmp_path_factory.mktemp("feedback") / "home")
    server = start_server(home, PREDICTIONS_DURABILITY="crash")
    yield server
    server.kill()


@pytest.fixture(scope="module")
def held_out(trained: Path) -> pd.DataFrame:
    """Test rows of housing as requests, and their actual values."""
    parts = split(HOUSING, prepare(HOUSING, trained / "data").frame)
    return parts.X_test.assign(actual=parts.y_test)


@pytest.fixture
def predict(server: Server, held_out: pd.DataFrame) -> Callable[[int, int], list[Item]]:
    """Ask for test rows; return an item of feedback for each, with its true value."""

    def ask(start: int, number: int) -> list[Item]:
        rows = held_out.iloc[start : start + number]
        instances = rows.drop(columns="actual").to_dict("records")
        status, answer = server.request("/housing/predict/batch", {"instances": instances})
        assert status == 200
        return [
            {"prediction_id": one["prediction_id"], "actual": float(actual)}
            for one, actual in zip(answer["predictions"], rows["actual"], strict=True)
        ]

    return ask


def counted(answer: Item) -> tuple[int, int]:
    return answer["attached"], answer["already"]


@pytest.mark.parametrize("path", ["/feedback", "/housing/feedback"])
def test_one_truth_is_attached_once_and_a_contradiction_is_named(server, predict, path):
    [item] = predict(0, 1)
    status, answer = server.request(path, item)
    assert (status, counted(answer)) == (200, (1, 0))
    status, answer = server.request(path, item)
    assert (status, counted(answer)) == (200, (0, 1))
    status, answer = server.request(path, item | {"actual": 0.5})
    assert (status, counted(answer)) == (409, (0, 0))
    [conflict] = answer["conflicts"]
    assert conflict == {
        "prediction_id": item["prediction_id"],
        "attached": item["actual"],
        "sent": 0.5,
    }
    assert answer["detail"][0]["loc"] == ["body", "actual"]


def test_an_unknown_id_is_404_and_named(server):
    status, answer = server.request("/feedback", {"prediction_id": "nobody", "actual": 1})
    assert (status, answer["unknown"]) == (404, ["nobody"])
    assert "was never made here" in answer["detail"][0]["msg"]


def test_of_a_batch_what_is_right_is_attached_whatever_its_neighbours_are(server, predict):
    first, second, third, fourth = predict(10, 4)
    server.request("/housing/feedback", fourth)
    batch = [
        first,
        {"prediction_id": "nobody", "actual": 1},
        second | {"actual": 99},
        7,
        third,
        third,
        fourth | {"actual": 0.25},
        {"actual": 1},
        second | {"note": "x"},
    ]
    status, answer = server.request("/housing/feedback", {"items": batch})
    assert (status, counted(answer)) == (422, (2, 1))
    named = {(one["loc"][2], one["type"]) for one in answer["detail"]}
    assert named == {
        *((1, "unknown"), (2, "actual"), (3, "model_type"), (6, "conflict"), (7, "missing")),
        (8, "extra_forbidden"),
    }
    assert "must be a number from 0 to 5.00001 100,000 dollars, got 99" in str(answer["detail"])
    # Every item is counted or named, and a resend of the good ones changes nothing.
    assert sum(counted(answer)) + len(answer["detail"]) == len(batch)
    status, answer = server.request("/housing/feedback", {"items": [second, first, third]})
    assert (status, counted(answer)) == (200, (1, 2))


def test_the_root_finds_the_use_case_that_each_id_belongs_to(server, predict):
    flower = dict(zip(IRIS.fields, (5.1, 3.5, 1.4, 0.2), strict=True))
    labels = []
    for actual in ("setosa", 0, 1.0):
        _, answer = server.request("/iris/predict", flower)
        labels.append({"prediction_id": answer["prediction_id"], "actual": actual})
    status, answer = server.request("/feedback", {"items": [*labels, *predict(20, 1)]})
    assert (status, counted(answer)) == (200, (4, 0))
    wrong = labels[0] | {"actual": "rose"}
    status, answer = server.request("/feedback", wrong)
    assert status == 422
    assert "must be one of setosa, versicolor, virginica, or its number, 0 to 2" in str(answer)
    assert server.request("/housing/feedback", labels[0])[0] == 404
    _, found = server.request("/iris/performance")
    [version] = found["versions"]
    assert version["scores"]["accuracy"]["value"] == pytest.approx(2 / 3)
    assert found["findings"][0]["verdict"] == "cannot tell"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b"7",
        b'{"items": []}',
        b'{"items": 3}',
        b'{"items": [], "more": 1}',
        b'{"items": [], "items": []}',
        b'{"prediction_id": "a"}',
        b'{"prediction_id": "a", "actual": NaN}',
        b'{"prediction_id": "a", "actual": 1, "actual": 2}',
        b'{"prediction_id": "", "actual": 1}',
        b'{"prediction_id": "\\ud800", "actual": 1}',
        b'{"prediction_id": 1, "actual": 1}',
        b'{"prediction_id": "a", "actual": null}',
        b'{"prediction_id": "a", "actual": true}',
        b"\xff",
        b"[" * 100_000,
    ],
)
def test_what_cannot_be_read_is_422_and_says_why(server, body):
    status, answer = server.request("/housing/feedback", body)
    assert status == 422
    assert all(one["msg"] for one in answer["detail"])
    assert not answer.get("attached")


def test_more_items_than_a_batch_may_hold_attach_nothing(server):
    items = [{"prediction_id": "a", "actual": 1}] * (LARGEST_BATCH + 1)
    status, answer = server.request("/feedback", {"items": items})
    assert (status, answer["detail"][0]["type"]) == (422, "too_long")


def test_numbers_and_labels_of_a_class_are_the_same_truth_and_others_are_none():
    assert actual_value(IRIS, "virginica") == actual_value(IRIS, 2) == "virginica"
    assert actual_value(HOUSING, 2) == 2.0
    for use_case, sent in (
        *((IRIS, 3), (IRIS, 0.5), (IRIS, True), (IRIS, "Setosa"), (IRIS, -1)),
        *((HOUSING, True), (HOUSING, "2"), (HOUSING, 6), (HOUSING, float("nan"))),
    ):
        with pytest.raises(ValueError, match="must be"):
            actual_value(use_case, sent)


def test_a_log_that_cannot_be_written_is_503_and_names_no_file():
    service = Service(HOUSING)
    log = tiny.ListLog()
    service._log = log
    app = tiny.app_over(service)
    item = b'{"prediction_id": "a", "actual": 1}'
    assert asyncio.run(tiny.ask(app, "POST", "/feedback", item)).status == 404
    log.broken = True
    answer = asyncio.run(tiny.ask(app, "POST", "/feedback", item))
    assert answer.status == 503
    assert b"somebody" not in answer.body


def test_truths_that_go_missing_in_the_moment_are_unknown_too():
    """Between the look and the attaching the retention may delete a prediction."""
    service = Service(HOUSING)
    log = tiny.ListLog()
    log.find = lambda prediction_id: "there"  # type: ignore[method-assign,return-value,assignment]
    service._log = log
    service.attach_truths = lambda pairs: Attached(0, 0, tuple(one for one, _ in pairs), ())
    app = tiny.app_over(service)
    answer = asyncio.run(tiny.ask(app, "POST", "/feedback", b'{"prediction_id": "a", "actual": 1}'))
    assert (answer.status, answer.json["unknown"]) == (404, ["a"])


# --- the file, and what comes of it: a project of its own each


@pytest.fixture
def answered(trained: Path, tmp_path: Path, held_out: pd.DataFrame) -> tuple[Path, pd.DataFrame]:
    """A project whose champion has answered 1,200 test rows, and their truths by id."""
    from mlops.deploy.predictor import Champion
    from mlops.improve.ledger import Ledger
    from mlops.loop.follow import open_champion
    from mlops.records import Submission

    home = copy_project(trained, tmp_path / "home")
    settings = read_settings(MLOPS_HOME=str(home))
    with Ledger(settings.state_database) as ledger:
        version = ledger.champion("housing")
    assert version is not None
    champion: Champion = open_champion(HOUSING, version, settings)
    table = held_out.head(1200)
    records = table.drop(columns="actual").to_dict("records")
    rows = [list(record.values()) for record in records]
    inputs = [json.dumps(record) for record in records]
    made = champion.predict(rows, inputs, [None] * len(rows))
    log = open_log(HOUSING, settings)
    log.append([Submission(tuple(made))])
    log.close()
    ids = [one.prediction_id for one in made]
    return home, pd.DataFrame({"prediction_id": ids, "actual": table["actual"].to_numpy()})


def test_the_story_without_truth_with_truth_and_when_the_world_changes(answered):
    home, truth = answered
    path = home / "truth.csv"

    # Without a truth: an estimate with an interval, and degradation cannot be told.
    done = mlops("performance", "housing", "--json", home=home, check=False)
    found = json.loads(done.stdout)
    assert done.returncode == 3
    assert (found["truths"], found["predictions"]) == (0, 1200)
    first = found["estimate"]
    assert first["state"] == "given"
    assert first["says"].startswith("not graded yet")

    # Half of the truths come, in any order, with bad lines among them, which are named.
    half = truth.head(600).sample(frac=1, random_state=0)
    lines = half.to_csv(index=False).splitlines()
    lines[3:3] = ["nobody,1.0", f"{truth.prediction_id[0]},dear", ",1", truth.prediction_id[1]]
    path.write_text("\n".join(lines))
    done = mlops("feedback", "housing", str(path), "--json", home=home, check=False)
    result = json.loads(done.stdout)
    assert done.returncode == 1
    assert [(one["line"], one["kind"]) for one in result["left"]] == [
        *((4, "unknown"), (5, "invalid"), (6, "invalid"), (7, "invalid")),
    ]
    assert (result["lines"], result["attached"]) == (604, 600)
    half.to_csv(path, index=False)
    again = mlops("feedback", "housing", str(path), home=home)
    assert "600 truths, 0 attached, 600 known already, 0 left over" in again.stdout

    done = mlops("performance", "housing", "--json", home=home)
    found = json.loads(done.stdout)
    [version] = found["versions"]
    mse = version["scores"]["mse"]
    assert mse["low"] < mse["value"] < mse["high"]
    assert first["scores"]["mse"]["low"] < mse["value"] < first["scores"]["mse"]["high"]
    assert found["findings"][0]["verdict"] == "ok"
    assert found["estimate"]["state"] == "given"
    assert abs(found["estimate"]["z"]) < 3.3
    bands = {one["band"]: one for one in found["slices"]["income"]["bands"]}
    assert set(bands) == {"low", "middle", "high"}
    assert sum(one["rows"] for one in bands.values()) == 600
    assert all(one["sealed"]["rows"] > 100 for one in bands.values())
    drawn = mlops("performance", "housing", "--by", "region", home=home).stdout
    assert "bay area" in drawn
    wrong = mlops("performance", "housing", "--by", "colour", home=home, check=False)
    assert wrong.returncode == 2
    assert "declared are: region, income" in wrong.stderr

    # The world changes: the same inputs, other truths. That is found, and the estimate is muted.
    changed = truth.tail(600).assign(actual=lambda table: (table.actual * 0.5).round(4))
    changed.to_csv(path, index=False)
    mlops("feedback", "housing", str(path), home=home)
    done = mlops("performance", "housing", "--json", home=home, check=False)
    found = json.loads(done.stdout)
    assert done.returncode == 1
    assert found["findings"][0]["verdict"] == "alarm"
    assert found["estimate"]["state"] == "muted"
    assert found["estimate"]["scores"] == {}
    # Truths come late: that it was wrong is known in a window that has none of them, too.
    log = open_log(HOUSING, read_settings(MLOPS_HOME=str(home)))
    log._writer.execute("UPDATE quality SET hour = hour - 90 * 3600")
    log.close()
    done = mlops("performance", "housing", "--window", "24h", "--json", home=home, check=False)
    found = json.loads(done.stdout)
    assert (done.returncode, found["truths"]) == (3, 0)
    assert found["estimate"]["state"] == "muted"
    drawn = mlops("performance", "housing", home=home, check=False).stdout
    assert "alarm: all rows: r2_score" in drawn
    assert "muted: its last" in drawn


def test_quality_is_judged_once_an_hour_whoever_looks_and_kept_among_the_findings(answered):
    home, truth = answered
    settings = read_settings(MLOPS_HOME=str(home))
    logs = [open_log(HOUSING, settings) for _ in range(2)]
    pairs = [(one, float(actual) / 2) for one, actual in truth.itertuples(index=False)]
    logs[0].attach(pairs, measure_of(HOUSING, settings))
    assert [judge(HOUSING, log, settings) for log in (*logs, *logs)] == [True, *[False] * 3]
    kept = {finding.subject: finding for finding in logs[1].findings("quality")}
    assert kept["all rows"].verdict == "alarm"
    [estimate] = logs[1].findings("estimate")
    assert estimate.verdict == "alarm"
    assert estimate.says.startswith("muted: its last estimate")
    assert kept["income low"].numbers["rows"] > 100
    for log in logs:
        log.close()


def test_a_file_that_is_no_table_of_truths_is_refused(answered, tmp_path):
    home, _ = answered
    path = tmp_path / "truth.csv"
    for content, says in (
        (b"", "lacks the column prediction_id"),
        (b"prediction_id,price\na,1\n", "lacks the column actual"),
        (b"\xff\xfe\x00", "is no CSV file"),
    ):
        path.write_bytes(content)
        done = mlops("feedback", "housing", str(path), home=home, check=False)
        assert done.returncode == 1
        assert says in done.stderr
    done = mlops("feedback", "housing", str(tmp_path / "none.csv"), home=home, check=False)
    assert "cannot be read" in done.stderr


def test_a_file_without_a_use_case_finds_each_predictions_own(home: Path, serve, tmp_path: Path):
    server = serve()
    ids = {
        name: server.request(f"/{name}/predict", next(iter(USE_CASES[name].examples.values())))[1][
            "prediction_id"
        ]
        for name in ("housing", "iris")
    }
    path = tmp_path / "truth.csv"
    lines = [f"{ids['iris']},virginica", f"{ids['housing']},2.5", "nobody's,1", f"{ids['iris']},9"]
    path.write_text("\n".join(["prediction_id,actual", *lines, ""]))
    done = mlops("feedback", str(path), "--json", home=home, check=False)
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert (found["lines"], found["attached"], found["already"]) == (4, 2, 0)
    assert [(one["line"], one["kind"]) for one in found["left"]] == [(4, "unknown"), (5, "invalid")]
    for name, actual in (("iris", "virginica"), ("housing", 2.5)):
        [row] = query(home, "SELECT actual FROM truths", name)
        assert row["actual"] == actual
    done = mlops("feedback", "a", "b", "c", home=home, check=False)
    assert (done.returncode, "3 words are too many" in done.stderr) == (2, True)

"""Drift of live traffic: counted as it comes, exactly once, looked at on time, told with a code."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import environment

from mlops import cli, clock
from mlops.improve.ledger import Ledger
from mlops.loop.prediction_log import open_log
from mlops.loop.watching import Profiles, Watcher, sealed_profile
from mlops.monitor.drift import tables
from mlops.monitor.drift import windows as windows_module
from mlops.monitor.drift.columns import columns, names, of_logged
from mlops.monitor.drift.windows import Windows
from mlops.monitor.log import PredictionLog
from mlops.package.bundle import Bundle, open_bundle, seal
from mlops.records import Prediction, Submission
from mlops.settings import Settings, read_settings
from mlops.usecases.housing import HOUSING
from mlops.usecases.iris import IRIS

TESTS = Path(__file__).parent


@pytest.fixture
def settings(home: Path) -> Settings:
    return read_settings(MLOPS_HOME=home, PREDICTIONS_DURABILITY="crash")


def opened(settings: Settings) -> Bundle:
    with Ledger(settings.state_database) as ledger:
        champion = ledger.champion("housing")
    assert champion
    return open_bundle(settings.bundles / champion.bundle)


def requests(settings: Settings, n: int, *, richer: float = 0.0) -> list[dict[str, float]]:
    """Rows of the data file, drawn; `richer` is added to the median income."""
    table = np.genfromtxt(settings.data / "housing.csv", delimiter=",", names=True)
    rng = np.random.default_rng(n)
    picked = table[rng.integers(0, len(table), n)]
    rows = [{f.name: float(row[f.column]) for f in HOUSING.features} for row in picked]
    for row in rows:
        row["median_income"] += richer
    return rows


def logged(
    log: PredictionLog, bundle: Bundle, rows: list[dict[str, float]], *, hours_ago: float = 0
) -> None:
    """Answer rows and log them, as the server would have."""
    fields = np.array([[row[name] for name in HOUSING.fields] for row in rows])
    stamp = clock.utc().timestamp() - 3600 * hours_ago
    timestamp = time.strftime("%Y-%m-%dT%H:%M:%S.000000+00:00", time.gmtime(stamp))
    log.append(
        [
            Submission(
                (
                    Prediction(
                        f"{log.path}-{hours_ago}-{number}-{time.monotonic_ns()}",
                        timestamp,
                        json.dumps(row),
                        float(answer),
                        None,
                        None,
                        1,
                        bundle.hash,
                    ),
                )
            )
            for number, (row, answer) in enumerate(
                zip(rows, bundle.model.run(fields).prediction, strict=True)
            )
        ]
    )


def counted(settings: Settings, seconds: float = 1e9) -> int:
    """How many rows the windows hold, and that they hold what the rows say."""
    bundle = opened(settings)
    profile = sealed_profile(bundle.reference)
    assert profile
    with contextlib.closing(open_log(HOUSING, settings)) as log:
        with Windows(log.path, HOUSING.log_name) as windows:
            found = windows.read(bundle.hash, profile, clock.unix() - seconds)
        rows = [row for page in log.pages() for row in page]
    if seconds == 1e9:
        again = profile.count(
            of_logged(
                HOUSING, profile.names, [r.inputs for r in rows], [r.prediction for r in rows]
            )
        )
        assert (found.vector == again.vector).all()
    return found.rows


def follow(settings: Settings) -> None:
    with Windows(settings.home / "housinglogs" / "predictions.db", HOUSING.log_name) as windows:
        profiles = Profiles(HOUSING, settings)
        while windows.follow(profiles.counting):
            pass


# --- counting


def test_training_seals_what_drift_is_told_by(settings):
    profile = sealed_profile(opened(settings).reference)
    assert profile
    assert list(profile.names) == names(HOUSING)
    assert {column.n for column in profile.columns} == {16_512}
    assert profile.agreements[:, 0].tolist() == [16_512] * 66


def test_the_classes_of_iris_are_categories(home):
    with Ledger(home / "models" / "state.db") as ledger:
        champion = ledger.champion("iris")
    assert champion
    profile = sealed_profile(open_bundle(home / "models" / "bundles" / champion.bundle).reference)
    assert profile
    prediction = profile.columns[-1]
    assert (prediction.categorical, prediction.counts.sum()) == (True, 120)
    rows = of_logged(
        IRIS,
        profile.names,
        [json.dumps(dict.fromkeys(IRIS.fields, 1.0))] * 3,
        ["virginica", "tulip", None],
    )
    assert profile.count(rows).vector[profile.places[-1]].tolist() == [0, 0, 1, 1, 1]


def test_columns_are_what_the_model_saw(settings):
    bundle = opened(settings)
    rows = np.array(bundle.golden["fields"])
    output = bundle.model.run(rows)
    made = columns(HOUSING, HOUSING.input_names, rows, output.prediction)
    assert (made == output.inputs).all()


def test_what_a_logged_row_lacks_is_missing(settings):
    rows = of_logged(HOUSING, HOUSING.fields, ['{"latitude":37.5,"population":null}'], [1.5])
    assert rows.tolist()[0][HOUSING.fields.index("latitude")] == 37.5
    assert np.isnan(rows).sum() == len(HOUSING.fields) - 1
    whole = json.dumps(dict.fromkeys(HOUSING.fields, 2.0))
    unknown = whole.replace("2.0", "null", 1)
    assert np.isnan(of_logged(HOUSING, HOUSING.fields, [whole, unknown], [1, 1])).sum() == 1


def test_rows_are_counted_once_and_in_their_hour(settings):
    bundle = opened(settings)
    with contextlib.closing(open_log(HOUSING, settings)) as log:
        logged(log, bundle, requests(settings, 30), hours_ago=200)
        logged(log, bundle, requests(settings, 20))
        follow(settings)
        logged(log, bundle, requests(settings, 7))
        follow(settings)
        follow(settings)
    assert counted(settings) == 57
    assert counted(settings, 7 * 86400) == 27


def test_rows_of_a_bundle_without_a_profile_are_passed_over(settings):
    bundle = opened(settings)
    with contextlib.closing(open_log(HOUSING, settings)) as log:
        logged(log, bundle, requests(settings, 5))
        with Windows(log.path, HOUSING.log_name) as windows:
            assert windows.follow(lambda _: None) == 5
            assert windows.counted_to() == 5
            assert windows.follow(lambda _: None) == 0


def test_between_the_parts_of_a_page_others_have_their_turn(settings, monkeypatch):
    bundle = opened(settings)
    rests: list[float] = []
    monkeypatch.setattr("mlops.monitor.drift.windows.PART_ROWS", 10)
    monkeypatch.setattr("mlops.monitor.drift.windows.time.sleep", rests.append)
    with contextlib.closing(open_log(HOUSING, settings)) as log:
        logged(log, bundle, requests(settings, 15), hours_ago=200)
        logged(log, bundle, requests(settings, 20))
        with Windows(log.path, HOUSING.log_name) as windows:
            assert windows.follow(Profiles(HOUSING, settings).counting, rest=0.25) == 35
    assert rests == [0.25] * 4
    assert counted(settings) == 35


FOLLOWERS = """
import sys
from mlops.loop.watching import Profiles
from mlops.monitor.drift import windows
from mlops.settings import read_settings
from mlops.usecases.housing import HOUSING
windows.PAGE_ROWS = windows.PART_ROWS = 10
print("ready", flush=True)
sys.stdin.readline()
profiles = Profiles(HOUSING, read_settings())
with windows.Windows(read_settings().home / "housinglogs" / "predictions.db", "housinglogs") as w:
    while w.follow(profiles.counting):
        print("counted", flush=True)
"""


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline()


def test_followers_that_race_and_are_killed_count_each_row_once(settings):
    with contextlib.closing(open_log(HOUSING, settings)) as log:
        logged(log, opened(settings), requests(settings, 2_000))
    assert f"LIMIT {windows_module.PAGE_ROWS}" == "LIMIT 5000"
    followers = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(FOLLOWERS)],
            env=environment(settings.home),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for one in followers:
        assert said(one) == "ready\n"
    for one in followers:
        assert one.stdin
        one.stdin.write("go\n")
        one.stdin.flush()
    for one in followers[:2]:
        assert said(one) == "counted\n"
        os.kill(one.pid, signal.SIGKILL)
    for one in followers:
        one.communicate(timeout=60)
    assert counted(settings) == 2_000


# --- looking


def watcher(settings: Settings, log: PredictionLog, bundle: Bundle) -> Watcher:
    return Watcher(HOUSING, log, lambda: (1, bundle.hash), settings)


def test_the_server_looks_when_it_is_time_and_keeps_what_it_found(settings, tmp_path, monkeypatch):
    now = [clock.unix()]
    monkeypatch.setattr(clock, "unix", lambda: now[0])
    bundle = opened(settings)
    with contextlib.closing(open_log(HOUSING, settings)) as log:
        one = watcher(settings, log, bundle)
        one.step()
        assert [f.says for f in log.findings()] == [
            "version 1 has answered nothing in the last 7 days"
        ]
        logged(log, bundle, requests(settings, 400))
        one.step()
        first = log.findings("drift")
        assert (first[0].subject, first[0].verdict, len(first)) == ("traffic", "ok", 14)
        logged(log, bundle, requests(settings, 400, richer=2))
        one.step()
        assert log.findings("drift") == first  # looks are rationed: each spends of the budget
        one.close()
        again = watcher(settings, log, bundle)
        again.step()
        assert log.findings("drift") == first  # in the next life too
        now[0] += 3601
        again.step()
        found = {f.subject: f for f in log.findings("drift")}
        assert found["traffic"].verdict == "alarm"
        assert {"median_income", "prediction"} <= set(found["traffic"].numbers["alarms"])
        again.close()


def test_one_of_several_processes_watches_and_another_takes_over(settings):
    bundle = opened(settings)
    with contextlib.closing(open_log(HOUSING, settings)) as log:
        logged(log, bundle, requests(settings, 10))
        first, second = watcher(settings, log, bundle), watcher(settings, log, bundle)
        first.step()
        logged(log, bundle, requests(settings, 9))
        second.step()
        assert counted(settings, 3600) == 10
        first.close()
        second.step()
        second.close()
    assert counted(settings) == 19


def test_a_step_that_fails_is_said_once_and_the_next_goes_on(settings, caplog):
    bundle = opened(settings)
    with contextlib.closing(open_log(HOUSING, settings)) as log:
        logged(log, bundle, requests(settings, 3))
        one = watcher(settings, log, bundle)
        whole, one._profiles = one._profiles, None  # type: ignore[assignment]  # a planted defect
        with caplog.at_level("ERROR"):
            one.step()
            one.step()
        assert len(caplog.records) == 1
        one._profiles = whole
        one.step()
        one.close()
    assert counted(settings) == 3


# --- the server and the command


@pytest.fixture
def drift(settings, monkeypatch, capfd):
    """Run `mlops drift housing` in the project; return its exit code and all it said."""
    monkeypatch.setenv("MLOPS_HOME", str(settings.home))

    def run(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(["drift", "housing", *arguments])
        out, err = capfd.readouterr()
        return int(str(ended.value.code or 0)), out if "--json" in arguments else out + err

    return run


def test_a_server_counts_its_answers_and_the_command_ends_with_a_code(settings, serve, drift):
    code, said = drift()
    assert code == 3
    assert "start it with: mlops up housing" in said

    server = serve("housing", PREDICTIONS_DURABILITY="crash")
    status, nothing = server.request("/drift")
    assert (status, nothing["verdict"], nothing["findings"][0]["numbers"]) == (
        200,
        "cannot tell",
        {"rows": 0},
    )
    body = {"instances": requests(settings, 500)}
    assert server.request("/predict/batch", body)[0] == 200
    deadline = time.monotonic() + 30
    while (found := server.request("/drift")[1])["rows"] < 500 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert (found["rows"], found["verdict"]) == (500, "ok")
    assert set(found["columns"]) == set(names(HOUSING))
    assert sum(found["columns"]["latitude"]["window"]) == pytest.approx(1)

    assert server.request("/predict/batch", {"instances": requests(settings, 400, richer=2)})
    server.kill()  # before or after they were counted: they are counted once
    code, said = drift("--window", "1d", "--json")
    found = json.loads(said)
    assert (code, found["verdict"], found["rows"]) == (1, "alarm", 900)
    assert counted(settings) == 900
    page = Path(found["path"]).read_text()
    assert "median_income" in page
    assert page.count("<svg") == 12
    assert "http://" not in page
    assert "https://" not in page


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_file_is_compared_without_a_server(settings, suffix, drift, tmp_path):
    path = tmp_path / f"new{suffix}"
    table = pd.DataFrame(requests(settings, 600))
    write = table.to_csv if suffix == ".csv" else table.to_parquet
    write(path, index=False)
    code, said = drift("--data", str(path), "--to", str(tmp_path / "page.html"), "--json")
    found = json.loads(said)
    assert (code, found["rows"]) == (0, 600)
    assert found["findings"][-2]["subject"] == "prediction"
    assert found["findings"][-2]["numbers"]["rows"] == 600
    assert (tmp_path / "page.html").exists()

    table["population"] = np.nan
    table.loc[:300, "latitude"] = 41.9
    write = table.to_csv if suffix == ".csv" else table.to_parquet
    write(path, index=False)
    code, said = drift("--data", str(path), "--json")
    found = json.loads(said)
    verdicts = {one["subject"]: one["verdict"] for one in found["findings"]}
    assert code == 1
    assert (verdicts["population"], verdicts["latitude"]) == ("alarm", "alarm")


def test_a_file_is_read_page_by_page(settings, monkeypatch, tmp_path):
    monkeypatch.setattr(tables, "BLOCK_BYTES", 20_000)
    monkeypatch.setattr(tables, "PAGE_ROWS", 100)
    table = pd.DataFrame(requests(settings, 1_000))
    table.to_csv(tmp_path / "long.csv", index=False)
    table.to_parquet(tmp_path / "long.parquet")
    for name in ("long.csv", "long.parquet"):
        pages = [fields for fields, _ in tables.pages(HOUSING, tmp_path / name)]
        assert max(map(len, pages)) < 400
        assert (np.concatenate(pages) == table.to_numpy()).all()


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ("", "has no row"),
        ("1,2,3,4,5,6,7,8\n", "1 row; a shift by a standard deviation needs"),
        (",,,,,,,\n", "1 row"),
        ("inf,NaN,1e300,-1e300,5,6,7,8\n", "1 row"),
        ("1,2,3\n", "Expected 8 columns, got 3"),
    ],
)
def test_a_poor_file_is_no_crash_but_cannot_be_told(drift, tmp_path, rows, says):
    (tmp_path / "poor.csv").write_text(",".join(HOUSING.fields) + "\n" + rows)
    code, said = drift("--data", str(tmp_path / "poor.csv"))
    assert (code, says in " ".join(said.split())) == (3, True), said


def test_answers_in_a_file_are_taken_from_it(tmp_path):
    head = ",".join(IRIS.fields)
    (tmp_path / "a.csv").write_text(
        f"{head},prediction\n1,2,3,4,virginica\n1,2,3,4,tulip\n1,2,3,4,\n"
    )
    [(_, answers)] = tables.pages(IRIS, tmp_path / "a.csv")
    assert np.array_equal(answers, [2, 3, np.nan], equal_nan=True)


def test_what_is_asked_wrongly_ends_with_2_and_says_how(drift, tmp_path):
    lacks, text, empty = (tmp_path / name for name in ("lacks.csv", "text.csv", "empty.csv"))
    lacks.write_text("latitude\n1\n")
    text.write_text(",".join(HOUSING.fields) + "\n" + ",".join(["1"] * 7 + ["west"]) + "\n")
    empty.write_text("")
    for arguments, code, says in (
        (["--window", "7x"], 2, "is no stretch of time"),
        (["--budget", "often"], 2, "is no budget"),
        (["--version", "9"], 2, "has no version 9"),
        (["--data", "nowhere.csv"], 2, "is not a file"),
        (["--data", str(lacks)], 2, "has no column total_rooms"),
        (["--data", str(empty)], 2, "is empty"),
        (["--data", str(text)], 3, "west"),
    ):
        found, said = drift(*arguments)
        assert (found, says in " ".join(said.split())) == (code, True), said


def test_a_damaged_bundle_is_named(settings, drift):
    with contextlib.closing(open_log(HOUSING, settings)) as log:
        logged(log, opened(settings), requests(settings, 3))
    (opened(settings).path / "reference.json").write_text("{}")
    code, said = drift()
    assert code == 3
    assert "is corrupt: reference.json" in said


def test_a_bundle_sealed_before_says_what_to_do(settings, drift):
    old = opened(settings)
    documents = {
        name: getattr(old, name) for name in ("signature", "golden", "metrics", "training")
    }
    documents["reference"] = {
        name: {key: value for key, value in one.items() if key != "drift"}
        for name, one in old.reference.items()
    }
    name = seal(
        settings.bundles,
        model=(old.path / "model.onnx").read_bytes(),
        documents=documents,
        pipeline=b"",
        provenance={},
    )
    with Ledger(settings.state_database) as ledger:
        champion = ledger.champion("housing")
        assert champion
        ledger.register(dataclasses.replace(champion, version=7, bundle=name))
    with contextlib.closing(open_log(HOUSING, settings)):
        code, said = drift("--version", "7")
    assert code == 3
    assert "sealed before drift was told by counts: train again with: mlops train housing" in said
    assert (settings.models / "reports" / "housing-drift.html").exists()

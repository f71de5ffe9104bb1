"""The command: verbs with examples, results on stdout, progress on stderr, errors in one line."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from conftest import environment

from mlops import cli, tables
from mlops.build.data import prepare, split
from mlops.improve.ledger import Ledger
from mlops.package.bundle import open_bundle
from mlops.usecases import USE_CASES

# What MLflow does with other libraries is not ours to mend.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore:.*Any type hint is inferred:UserWarning"
)

HOUSING, IRIS = USE_CASES["housing"], USE_CASES["iris"]
VERBS = sorted(command.name or command.callback.__name__ for command in cli.app.registered_commands)
SETOSA = [f"{name}={value}" for name, value in IRIS.examples["setosa"].items()]


@dataclasses.dataclass
class Done:
    """What a command printed, and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


@pytest.fixture
def command(home: Path, empty_store: Path, monkeypatch, capfd):
    """Run `mlops` in this process, in the trained project, its tracking store emptied."""
    shutil.copy(empty_store, home / "mlflow.db")
    for name in list(os.environ):
        if name.startswith(("MLOPS", "MLFLOW_TRACKING", "MODEL_REGISTRY", "PORT", "USE_CASES")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(home)

    def run(*arguments: str) -> Done:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return Done(int(ended.value.code or 0), out, err)

    return run


@pytest.fixture
def empty(command, tmp_path, monkeypatch):
    """The same in an empty folder."""
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return command


# --- help


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example_of_itself(verb, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([verb, "--help"])
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Example" in text
    assert f"mlops {verb}" in text.split("Example")[1]


def test_the_verbs_are_those_of_the_loop():
    assert set(VERBS) >= {
        *("prepare", "train", "runs", "report", "show", "promote", "serve", "predict"),
        "logs",
        *("up", "down", "status", "drift"),
    }


def test_the_installed_command_lists_its_verbs(tmp_path):
    done = subprocess.run(
        ["mlops", "--help"],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=True,
    )
    for verb in VERBS:
        assert f" {verb} " in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("line", ["trian housing", "train housing --olny x", "show", "logs x y"])
def test_a_misspelt_verb_or_option_ends_with_2_and_no_traceback(command, line):
    done = command(*line.split())
    assert (done.code, done.out) == (2, "")
    assert "Usage: " in done.err
    assert "Traceback" not in done.err


# --- errors in one line


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("prepare boston", "there is no use case 'boston' — declared are: housing, iris"),
        ("train boston", "there is no use case 'boston' — declared are: housing, iris"),
        ("runs boston", "there is no use case 'boston' — declared are: housing, iris"),
        ("report boston", "there is no use case 'boston' — declared are: housing, iris"),
        ("show boston", "there is no use case 'boston' — declared are: housing, iris"),
        ("promote boston", "there is no use case 'boston' — declared are: housing, iris"),
        ("logs boston", "there is no use case 'boston' — declared are: housing, iris"),
        ("predict boston x=1", "there is no use case 'boston' — declared are: housing, iris"),
        ("serve boston", "there is no use case 'boston' — declared are: housing, iris"),
        ("up boston", "there is no use case 'boston' — declared are: housing, iris"),
        ("train housing --only Tree", "housing has no candidate 'Tree' — declared are: Linear"),
        ("promote housing 9", "housing has no version 9 (registered: 1) — list them with: mlops"),
        ("promote housing 0", "housing has no version 0 (registered: 1) — list them with: mlops"),
        ("promote housing --force", "a forced promotion needs a reason — say why with --reason"),
        ("predict iris --version 0 x=1", "iris has no version 0 (registered: 1, 2) — list them"),
        ("predict iris --version 9 x=1", "iris has no version 9 (registered: 1, 2) — list them"),
        ("predict iris x=1", "row 1: "),
        ("predict iris", "give either one row or a file — see: mlops predict --help"),
        ("predict iris x=1 --csv x.csv", "give either one row or a file — see: mlops predict"),
        ("logs export iris --to x.xls", "x.xls has no ending that says its format — name a file"),
        ("logs export iris --to x.csv --since May", "'May' is no date or time — write, say, 20"),
        ("logs prune iris", "nothing says what to delete — give --older-than 90d"),
        ("logs prune iris --older-than 90", "'90' is not an age — write, say, 90d (d, h, m)"),
        ("logs prune iris --larger-than nanGB", "'nanGB' is not a size — write, say, 2GB"),
        ("predict iris x", "'x' is not FIELD=VALUE — write, say, latitude=37.8"),
        ("predict iris --csv x.csv", "x.csv is not a file — name a CSV file with the fields"),
        ("predict iris --csv data", "data is not a file — name a CSV file with the fields"),
    ],
)
def test_what_does_not_exist_is_one_line_on_stderr_and_code_2(command, line, said):
    done = command(*line.split())
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"mlops: {said}")
    assert done.err.count("\n") == 1


def test_a_field_that_does_not_exist_is_named_with_those_that_do(command):
    done = command("predict", "iris", *SETOSA, "colour=3")
    assert done.code == 2
    assert "colour is not a field; the fields are sepal_length, sepal_width" in done.err
    assert "row 1: sepal_length is missing" in command("predict", "iris", *SETOSA[1:]).err


def test_without_a_champion_the_command_that_makes_one_is_named(empty):
    done = empty("predict", "housing", "latitude=37")
    assert (done.code, done.out) == (1, "")
    assert done.err == "mlops: housing has no champion — make one with: mlops up housing\n"
    for line in (["metrics", "housing"], ["metrics"]):
        done = empty(*line)
        assert (done.code, done.out) == (1, "")
        assert "answered" in done.err
        assert "start it with: mlops up" in done.err
    done = empty("promote", "housing")
    assert done.code == 2
    assert done.err.endswith("train one with: mlops train housing\n")


def test_a_full_disk_is_one_line_with_the_file(command, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device", "data/housing.csv")

    monkeypatch.setattr("mlops.build.data.write_whole", full)
    done = command("prepare", "housing", "--force")
    assert (done.code, done.out) == (1, "")
    assert done.err == "mlops: No space left on device: data/housing.csv\n"


def test_a_damaged_state_database_is_one_line(command, home):
    (home / "models" / "state.db").write_bytes(b"no database" * 999)
    for line in ("show housing", "promote housing", "predict iris x=1"):
        done = command(*line.split())
        assert (done.code, done.out) == (1, "")
        assert done.err.startswith("mlops: the state database models/state.db cannot be used")
        assert done.err.count("\n") == 1


def test_a_home_that_is_a_file_is_one_line(command, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MLOPS_HOME", str(tmp_path / "file"))
    done = command("prepare", "iris")
    assert done.code == 1
    assert done.err.startswith("mlops: ")
    assert done.err.count("\n") == 1


def test_a_broken_data_file_names_every_place(command, home):
    path = home / "data" / "iris.csv"
    path.write_text(path.read_text().replace("5.1", "-5.1", 1))
    done = command("prepare", "iris")
    assert (done.code, done.out) == (1, "")
    assert "mlops: data/iris.csv breaks the schema of iris in 1 place:\n" in done.err
    assert "  column sepal_length, line 2: -5.1 must be from 0.05 to 30 cm\n" in done.err


def test_a_pipe_that_closes_early_leaves_no_traceback(home):
    shell = f"{sys.executable} -m mlops.cli show housing --json | true"
    done = subprocess.run(
        ["sh", "-c", shell],
        cwd=home,
        env=environment(home),
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_a_keyboard_interrupt_leaves_no_traceback_and_no_bundle(home):
    process = subprocess.Popen(
        [sys.executable, "-m", "mlops.cli", "train", "housing"],
        cwd=home,
        env=environment(home),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # The tests may themselves run in the background of a shell, where Ctrl-C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    before = {path.name for path in (home / "models" / "bundles").iterdir()}
    assert process.stderr.readline() == "housing: training …\n"
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)
    try:
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    # Python ends by the signal itself, which a shell shows as 130 too, where the interrupt passed
    # through a text that was being executed: importing a library makes many of those.
    assert process.returncode in {130, -signal.SIGINT}
    assert "Traceback" not in err
    assert out == ""
    assert {path.name for path in (home / "models" / "bundles").iterdir()} == before


# --- results and progress


def test_every_verb_that_prints_json_prints_nothing_else_on_stdout(command, home):
    only = ("--only", "LinearDiscriminantAnalysis")
    trained = command("train", "iris", *only, "--promote", "--json")
    assert trained.code == 0
    assert trained.json["winner"] == "LinearDiscriminantAnalysis"
    assert trained.json["rows_train"] == 120
    assert trained.json["candidates"][0]["metrics"]["accuracy"] == 1.0
    assert "iris: training …" in trained.err
    assert command("prepare", "iris", "--json").json["rows"] == 150
    assert command("runs", "iris", "--json").json[0]["candidate"] == "LinearDiscriminantAnalysis"
    written = command("report", "iris", "--version", "2", "--to", "forest.html", "--json").json
    assert (written["path"], written["candidate"]) == ("forest.html", "RandomForest")
    assert command("show", "iris", "--json").json["champion"] == 3
    promoted = command("promote", "iris", "2", "--json").json
    assert (promoted["version"]["version"], promoted["previous"]) == (2, 3)
    assert command("predict", "iris", *SETOSA, "--json").json["predicted_label"] == "setosa"
    counted = command("metrics", "iris", "--json").json
    assert counted["total_predictions"] == counted["windows"]["minute"]["predictions"] == 1
    assert set(command("metrics", "--json").json["use_cases"]) == {"iris"}
    (logged,) = command("logs", "iris", "--json").json
    assert (logged["prediction"], logged["model_version"]) == ("setosa", 2)
    assert command("predict", "iris", "petal_width=1", "--json").code == 2
    (failure,) = command("logs", "iris", "--failures", "--json").json
    assert failure["status"] == 422
    assert set(command("logs", "--json").json) == {"server", "mlflow"}
    exported = command("logs", "export", "iris", "--to", "x.csv", "--since=2026-01-01", "--json")
    assert exported.json == {"use_case": "iris", "path": "x.csv", "rows": 1}
    assert "sepal_length" in (home / "x.csv").read_text()
    exported = command("logs", "export", "--since", "2026-01-01", "--to", "x.parquet", "--json")
    assert exported.json == {"use_case": "iris", "path": "x.parquet", "rows": 1}
    pruned = command("logs", "prune", "iris", "--older-than", "90d", "--json").json
    assert pruned["deleted"] == 0
    status = command("status", "--json")
    assert (status.code, status.json["well"]) == (1, False)
    assert status.json["champions"]["iris"]["version"] == 2
    assert command("down", "--json").json == {"stopped": []}


def test_tables_for_people_hold_the_same_and_progress_is_on_stderr(command):
    done = command("train", "iris", "--only", "LinearDiscriminantAnalysis", "--promote")
    assert done.code == 0
    assert done.err.splitlines() == ["iris: training …", "iris: sealing …"]
    assert "LinearDiscriminantAnalysis *   0.9750 ± 0.0373" in done.out
    assert "baseline" in done.out
    assert "120 rows to learn from, 30 to be measured on; 0 dropped for missing values" in done.out
    assert "LinearDiscriminantAnalysis: version 3, bundle " in done.out
    assert "iris: version 3 is champion (before: 1)" in done.out
    shown = command("show", "iris").out
    assert "Iris: classification of predicted_class (species)" in shown
    assert "3 champion   LinearDiscriminantAnalysis   1.0000" in shown
    assert re.search(r"promote +3 +1 +every gate that could tell let", shown)
    assert "LinearDiscriminantAnalysis   0.9750 ± 0.0373   1.0000" in command("runs", "iris").out
    assert command("report", "iris").out == "models/reports/iris-version-3.html\n"
    assert command("promote", "iris", "3").out == "iris: version 3 is champion already\n"
    assert "setosa 1.0000" in command("predict", "iris", *SETOSA).out
    assert "petal_width=0.2" in command("logs", "iris").out
    command("predict", "iris", "petal_width=1")
    assert "sepal_length is missing" in command("logs", "iris", "--failures").out
    metrics = command("metrics", "iris").out
    assert "iris: 1 predictions, 1 failed requests ever; version 3 answers" in metrics
    assert re.search(r"last minute +all +2 +0.0333 +1 +50.00% +0 ", metrics)
    prepared = command("prepare", "iris").out
    assert prepared.startswith("data/iris.csv checked: 150 rows, 5 columns, 0 dropped")
    assert "source       scikit-learn's copy of Fisher 1936" in prepared


def test_a_refused_promotion_ends_with_1_and_the_numbers(command, home):
    only = ("--only", "LinearRegression")
    done = command("train", "housing", *only, "--promote")
    assert done.code == 1
    assert "LinearRegression: version 2, bundle" in done.out
    line = done.err.splitlines()[-1]
    assert line.startswith(
        "mlops: housing version 2 was not promoted: not worse than the champion: mean loss "
    )
    assert "+0.341 against version 1, 95 % interval +0.28" in line
    assert ": worse; also: no slice got worse" in line
    assert " — train a better one, or overrule with: " in line
    assert line.endswith('mlops promote housing 2 --force --reason "…"')
    shown = command("show", "housing", "--json").json
    assert shown["champion"] == 1
    assert [d["action"] for d in shown["decisions"]] == ["train", "promote", "train", "keep"]
    (last,) = [
        one
        for one in shown["decisions"][-1]["evidence"]
        if one["gate"] == "not worse than the champion"
    ]
    assert (last["outcome"], last["numbers"]["rows"]) == ("fail", 4128)
    assert last["numbers"]["low"] > 0.2

    refused = command("promote", "housing", "2", "--force")
    assert (refused.code, "needs a reason" in refused.err) == (2, True)
    forced = command("promote", "housing", "2", "--force", "--reason", "a drill", "--json").json
    assert forced["changed"]
    decision = command("show", "housing", "--json").json["decisions"][-1]
    assert (decision["action"], decision["reason"]) == ("promote", "forced: a drill")
    assert "forced: a drill" in command("show", "housing").out


def test_a_version_whose_bundle_is_damaged_is_shown_as_unusable(command, home):
    with Ledger(home / "models" / "state.db") as ledger:
        path = home / "models" / "bundles" / ledger.version("iris", 2).bundle
    (path / "golden.json").write_bytes(b"{}")
    listed = command("show", "iris", "--json").json["versions"]
    assert [one["sound"] for one in listed] == [True, False]
    assert "golden.json" in listed[1]["trouble"]
    assert "unusable: bundle" in command("show", "iris").out


# --- predict


def test_rows_of_a_csv_file_are_answered_in_order_as_the_bundle_does(command, home, tmp_path):
    parts = split(HOUSING, prepare(HOUSING, home / "data").frame)
    rows = parts.X_test.head(40)
    rows[rows.columns[::-1]].to_csv(tmp_path / "rows.csv", index=False, encoding="utf-8-sig")
    answers = command("predict", "housing", "--csv", tmp_path / "rows.csv", "--json").json
    with Ledger(home / "models" / "state.db") as ledger:
        bundle = open_bundle(home / "models" / "bundles" / ledger.champion("housing").bundle)
    expected = bundle.model.run(rows.to_numpy()).prediction.tolist()
    assert [one["predicted_price"] for one in answers] == expected
    logged = command("logs", "housing", "--last", "40", "--json").json
    assert [one["prediction"] for one in logged] == expected


def test_one_row_is_answered_by_the_version_that_is_named(command):
    assert command("predict", "iris", *SETOSA, "--json").json["model_version"] == 1
    named = command("predict", "iris", *SETOSA, "--version", "2", "--json").json
    assert named["model_version"] == 2


def test_a_row_unlike_the_training_data_is_answered_with_a_warning(command):
    few = HOUSING.examples["8 rooms for 500 households: answered, with a warning"]
    row = [f"{name}={value}" for name, value in few.items()]
    answer = command("predict", "housing", *row, "--json").json
    assert any("rooms_per_household = 0.016" in warning for warning in answer["warnings"])
    assert "rooms_per_household = 0.016" in command("predict", "housing", *row).out


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("99", "row 2: latitude must be at most 42.5 degrees north, got 99.0"),
        ("31.9", "row 2: latitude must be at least 32.0 degrees north, got 31.9"),
        ("north", "row 2: latitude must be a number, got north"),
        ("nan", "row 2: latitude must be a number, got nan"),
        ("-inf", "row 2: latitude must be a number, got -inf"),
        ("", "row 2: latitude must be a number, got "),
    ],
)
def test_an_invalid_row_names_row_field_value_and_limit_and_none_is_logged(
    command, home, tmp_path, value, said
):
    row = dict(HOUSING.examples["a block group in Berkeley"])
    frame = pd.DataFrame([row, {**row, "latitude": value}, row])
    frame.to_csv(tmp_path / "rows.csv", index=False)
    done = command("predict", "housing", "--csv", tmp_path / "rows.csv")
    assert (done.code, done.out) == (2, "")
    assert done.err.replace("'", "").startswith(f"mlops: {said}")
    assert done.err.endswith(" — see the fields with: mlops show housing\n")
    assert done.err.count("\n") == 1
    assert command("logs", "housing", "--json").json == []
    assert len(command("logs", "housing", "--failures", "--json").json) == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "row|at least 1"),
        (b"sepal_length,sepal_width,petal_length,petal_width\n", "at least 1"),
        (b"\xff\xfe\x00\xc5 not text", "is not a CSV file: .* write it as UTF-8"),
        (
            b"sepal_length,sepal_width,petal_length,petal_width\n5,1,3,5,1,4,0,2\n",
            "row 1 has more cells than there are columns — write numbers with a point",
        ),
        (b"sepal_length,sepal_width,petal_length,petal_width\n5,3\n", "row 1: petal_length must"),
        (b"sepal_length;sepal_width\n5;3\n", "row 1: "),
        (b"\0" * 99, "row|at least|CSV"),
    ],
)
def test_a_csv_file_that_holds_no_rows_is_one_line_and_code_2(command, tmp_path, content, said):
    (tmp_path / "rows.csv").write_bytes(content)
    done = command("predict", "iris", "--csv", tmp_path / "rows.csv")
    assert (done.code, done.out) == (2, "")
    assert done.err.count("\n") == 1
    assert re.search(said, done.err), done.err


# --- small things


def test_plain_turns_results_into_what_json_holds():
    @dataclasses.dataclass
    class Inner:
        numbers: tuple[float, ...]

    value = {"a": Inner((1.0, 2.0)), 3: [Inner(())]}
    assert tables.plain(value) == {"a": {"numbers": [1.0, 2.0]}, "3": [{"numbers": []}]}

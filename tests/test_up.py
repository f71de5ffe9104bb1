"""`mlops up` and what goes with it, with real processes on free ports in a folder of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kept
import psutil
import pytest
from conftest import free_port, mlops

from mlops.errors import ServiceError, UsageError
from mlops.loop import services
from mlops.loop.up import up
from mlops.settings import Settings, read_settings

pytestmark = [
    pytest.mark.timeout(300),
    # A service is left running on purpose.
    pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning"),
]

NAMES = ("server", "mlflow")


class Project:
    """A folder with two ports of its own; all that it starts is ended with the tests."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.port, self.mlflow_port = free_port(), free_port()

    def run(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        ports = {"PORT": str(self.port), "MLFLOW_PORT": str(self.mlflow_port)}
        return mlops(*arguments, home=self.home, timeout=240, **{**ports, **options})

    def up(self) -> dict[str, Any]:
        result: dict[str, Any] = json.loads(self.run("up", "--json").stdout)
        return result

    def status(self) -> tuple[int, dict[str, Any]]:
        done = self.run("status", "--json", check=False)
        return done.returncode, json.loads(done.stdout)

    def family(self) -> dict[str, list[psutil.Process]]:
        """Return the processes that run, those that they started included."""
        found = {}
        for name in NAMES:
            with contextlib.suppress(OSError, psutil.NoSuchProcess):
                record = json.loads((self.home / ".run" / f"{name}.json").read_text())
                process = psutil.Process(record["pid"])
                found[name] = [process, *process.children(recursive=True)]
        return found

    def fetch(self, path: str, body: Any = None) -> Any:
        return fetch(self.port, path, body)


def fetch(port: int, path: str, body: Any = None) -> Any:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", json.dumps(body).encode() if body else None
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        content = response.read()
    return json.loads(content) if content.startswith((b"{", b"[")) else content.decode()


def ended(process: psutil.Process) -> bool:
    """Whether it has ended; that nobody has asked after it (a zombie) makes no difference."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_for_end(process: psutil.Process) -> None:
    deadline = time.monotonic() + 10
    while not ended(process):
        assert time.monotonic() < deadline, f"process {process.pid} has not ended"
        time.sleep(0.01)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """An empty folder. The first `up` in it trains; each test after it finds that reused."""
    made = Project(tmp_path_factory.mktemp("up"))
    yield made
    family = [process for each in made.family().values() for process in each]
    made.run("down", check=False)
    for process in family:
        if not ended(process):
            process.kill()


@pytest.fixture(scope="module")
def first_up(project: Project) -> subprocess.CompletedProcess[str]:
    return project.run("up")


@pytest.fixture
def running(project: Project, first_up: subprocess.CompletedProcess[str]) -> Project:
    """The project, up."""
    alive = {name for name, family in project.family().items() if not ended(family[0])}
    if alive != set(NAMES):
        project.up()
    return project


# From nothing


def test_up_trains_serves_and_asks_and_prints_how_it_went(
    project: Project, first_up: subprocess.CompletedProcess[str]
) -> None:
    printed = first_up.stdout
    for use_case, model, metric in (
        ("housing", "GradientBoosting", "r2_score"),
        ("iris", "LinearDiscriminantAnalysis", "accuracy"),
    ):
        scores = r"\d\.\d{4} +-?\d\.\d{4}"  # and the baseline's
        row = rf"{use_case} +{model} +{metric} +{scores} +1 +[0-9a-f]{{12}} "
        assert re.search(row, printed), printed
    for words in ("baseline", "version", "bundle", "answer", "setosa"):
        assert words in printed
    address = f"http://127.0.0.1:{project.port}"
    for line in (f"{address}/housing/predict", f"{address}/iris/predict", f"{address}/docs"):
        assert line in printed
    assert f"http://127.0.0.1:{project.mlflow_port}" in printed
    assert "make down" in printed
    assert "housing: 20,640 rows" in first_up.stderr
    assert "passed the gates" in first_up.stderr


def test_both_services_answer_and_each_use_case_has_been_asked_once(running: Project) -> None:
    assert running.fetch("/health/ready")["status"] == "healthy"
    assert fetch(running.mlflow_port, "/health") == "OK"
    for use_case in ("housing", "iris"):
        rows = kept.check_whole(running.home, use_case)
        assert rows
        assert running.fetch(f"/{use_case}/metrics")["total_predictions"] == len(rows)
    assert (running.home / "models" / "LinearRegression.pkl").exists()


def test_up_again_reuses_all_that_is_still_valid(running: Project) -> None:
    before = {name: family[0].pid for name, family in running.family().items()}
    bundles = sorted((running.home / "models" / "bundles").iterdir())
    started = time.monotonic()
    result = running.up()
    took = time.monotonic() - started
    assert [(one["version"], one["reused"]) for one in result["served"]] == [(1, True), (1, True)]
    assert {name: family[0].pid for name, family in running.family().items()} == before
    assert sorted((running.home / "models" / "bundles").iterdir()) == bundles
    assert took < 15, f"reusing everything took {took:.0f} s"


def test_status_is_0_while_all_is_well_and_names_champions(running: Project) -> None:
    code, result = running.status()
    assert code == 0
    assert result["well"]
    for service in result["services"]:
        assert service["healthy"]
        assert service["pid"] in {family[0].pid for family in running.family().values()}
        assert service["address"].endswith((str(running.port), str(running.mlflow_port)))
    assert {name: one["version"] for name, one in result["champions"].items()} == {
        "housing": 1,
        "iris": 1,
    }
    assert "healthy" in running.run("status").stdout


def test_logs_show_what_the_services_print(running: Project) -> None:
    printed = running.run("logs").stdout
    assert "Application startup complete" in printed
    assert "mlflow" in printed
    as_json = json.loads(running.run("logs", "--json", "--last", "3").stdout)
    assert set(as_json) == set(NAMES)
    assert len(as_json["server"]) <= 3
    predictions = json.loads(running.run("logs", "iris", "--json").stdout)
    assert predictions[-1]["prediction"] == "setosa"


# While it runs


def test_another_port_moves_the_server_and_loses_nothing(running: Project) -> None:
    old_port, old = running.port, running.family()["server"]
    counted = running.fetch("/housing/metrics")["total_predictions"]
    mlflow = running.family()["mlflow"][0].pid
    running.port = free_port()
    result = running.up()
    assert result["server"] == f"http://127.0.0.1:{running.port}"
    assert all(one["reused"] for one in result["served"])
    assert running.fetch("/housing/metrics")["total_predictions"] == counted + 1
    assert not listens(old_port)
    assert all(ended(process) for process in old)
    assert running.family()["mlflow"][0].pid == mlflow
    assert running.run("status", PORT=str(old_port)).returncode == 0


def test_a_server_that_was_killed_is_seen_and_restarted_and_nothing_is_lost(
    running: Project,
) -> None:
    counted = running.fetch("/iris/metrics")["total_predictions"]
    [server, *_] = running.family()["server"]
    server.kill()
    wait_for_end(server)
    code, result = running.status()
    assert code == 1
    assert [one["running"] for one in result["services"]] == [False, True]
    running.up()
    assert running.family()["server"][0].pid != server.pid
    assert running.fetch("/iris/metrics")["total_predictions"] == counted + 1
    kept.check_whole(running.home, "iris")


def test_down_leaves_no_process_loses_nothing_and_may_be_repeated(running: Project) -> None:
    family = [process for each in running.family().values() for process in each]
    assert len(family) >= 2
    rows = {name: len(kept.rows(running.home, name)) for name in ("housing", "iris")}
    started = time.monotonic()
    done = running.run("down")
    took = time.monotonic() - started
    assert done.stdout.strip() == "stopped: server, mlflow"
    left = [process for process in family if not ended(process)]
    assert not left, f"still there: {[process.cmdline() for process in left]}"
    assert not listens(running.port)
    assert not listens(running.mlflow_port)
    assert list((running.home / ".run").glob("*.json")) == []
    for name, number in rows.items():
        assert len(kept.check_whole(running.home, name)) == number
    assert took < 15, f"stopping took {took:.0f} s"
    assert running.run("down").stdout.strip() == "nothing was running"
    code, result = running.status()
    assert (code, result["well"]) == (1, False)
    assert not any(one["running"] for one in result["services"])
    assert result["champions"]["iris"]["version"] == 1


# What stands in its way


@contextlib.contextmanager
def busy() -> Iterator[int]:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield int(other.getsockname()[1])


@pytest.mark.parametrize("variable", ["PORT", "MLFLOW_PORT"])
def test_a_busy_port_is_one_line_that_names_it_before_any_training(
    variable: str, tmp_path: Path
) -> None:
    with busy() as port:
        ports = {"PORT": str(free_port()), "MLFLOW_PORT": str(free_port()), variable: str(port)}
        done = mlops("up", home=tmp_path, check=False, **ports)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert str(port) in line
    assert f"{variable}={port + 1}" in line
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def settings(home: Path, **more: Any) -> Settings:
    return read_settings(
        MLOPS_HOME=home, **{"PORT": free_port(), "MLFLOW_PORT": free_port(), **more}
    )


def test_one_port_for_both_services_is_refused(tmp_path: Path) -> None:
    port = free_port()
    with pytest.raises(ServiceError, match=f"{port}.* both .*make up MLFLOW_PORT={port + 1}"):
        up(settings=settings(tmp_path, PORT=port, MLFLOW_PORT=port))
    assert list(tmp_path.iterdir()) == []


def test_a_port_that_is_none_is_one_line_that_names_the_variable(tmp_path: Path) -> None:
    for value in ("0", "65536", "-1", "80.5", ""):
        with pytest.raises(UsageError, match=rf"PORT='{value}' cannot be used"):
            read_settings(PORT=value)
    done = mlops("status", home=tmp_path, check=False, PORT="no number")
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith("mlops: PORT='no number' cannot be used")


def test_a_server_that_ends_while_it_starts_is_reported_with_its_last_words(
    tmp_path: Path,
) -> None:
    where = settings(tmp_path)
    spec = dataclasses.replace(
        services.specs(where)[0], command=(sys.executable, "-c", "raise SystemExit('no such luck')")
    )
    services.start(where, spec)
    with pytest.raises(ServiceError, match=r"server ended while .*: no such luck .*server\.log"):
        services.wait_healthy(where, spec)


# Whose process it is


Start = Callable[..., services.Spec]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a service called "server" that runs a shell script; it is killed with the test."""
    where = settings(tmp_path)

    def run(script: str) -> services.Spec:
        spec = dataclasses.replace(services.specs(where)[0], command=("/bin/sh", "-c", script))
        assert services.start(where, spec)
        return spec

    yield run
    for process in services._family(where, "server"):
        process.kill()


def processes(path: Path, number: int) -> list[psutil.Process]:
    """Return the processes whose ids a script has written, once there are so many."""
    deadline = time.monotonic() + 10
    while not path.exists() or path.read_text().count("\n") < number:
        assert time.monotonic() < deadline, "the script did not start"
        time.sleep(0.01)
    return [psutil.Process(int(word)) for word in path.read_text().split()]


@pytest.mark.parametrize("same_time", [False, True])
def test_another_process_that_has_the_recorded_id_is_left_alone(
    same_time: bool, tmp_path: Path
) -> None:
    where = settings(tmp_path)
    bystander = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        created = psutil.Process(bystander.pid).create_time()
        where.run.mkdir()
        record = {"pid": bystander.pid, "created": created if same_time else created - 3600}
        record |= {"host": "127.0.0.1", "port": where.port, "recipe": "x"}
        (where.run / "server.json").write_text(json.dumps(record))
        if not same_time:
            assert not services.status(where)[0].running
        assert services.stop(where, "server") is False
        time.sleep(0.1)
        assert bystander.poll() is None, "a bystander was stopped"
        assert not (where.run / "server.json").exists()
    finally:
        bystander.kill()
        bystander.wait()


@pytest.mark.parametrize("content", ["", "{}", "[]", "nonsense", '{"pid": "x"}', '{"pid": 0}'])
def test_a_record_that_is_garbage_is_no_process(content: str, tmp_path: Path) -> None:
    where = settings(tmp_path)
    where.run.mkdir()
    (where.run / "server.json").write_text(content)
    assert not services.status(where)[0].running
    services.check_ports(where)
    assert services.stop(where, "server") is False


def test_what_outlived_the_process_that_started_it_is_stopped_too(
    start: Start, tmp_path: Path
) -> None:
    start("sleep 60 & echo $! >> pids; echo $$ >> pids; wait")
    child, parent = processes(tmp_path / "pids", 2)
    parent.kill()
    wait_for_end(parent)
    where = settings(tmp_path)
    assert not services.status(where)[0].running
    assert services.stop(where, "server") is True
    assert ended(child)


def test_stopping_does_not_wait_for_a_parent_that_never_asks_after_its_child(
    start: Start, tmp_path: Path
) -> None:
    start("echo $$ >> pids; exec sleep 60")  # we are its parent, and never ask
    [process] = processes(tmp_path / "pids", 1)
    started = time.monotonic()
    assert services.stop(settings(tmp_path), "server") is True
    assert time.monotonic() - started < 5
    assert process.status() == psutil.STATUS_ZOMBIE
    assert not services.status(settings(tmp_path))[0].running


def test_one_that_does_not_listen_is_killed(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start("trap '' TERM; echo $$ >> pids; while :; do sleep 0.1; done")
    [process] = processes(tmp_path / "pids", 1)
    monkeypatch.setattr(services, "SECONDS_TO_STOP", 0.5)
    assert services.stop(settings(tmp_path), "server") is True
    assert ended(process)


def test_a_change_of_code_or_settings_restarts_a_service(start: Start, tmp_path: Path) -> None:
    spec = start("echo $$ >> pids; exec sleep 60")
    [first] = processes(tmp_path / "pids", 1)
    assert services.start(settings(tmp_path), spec) is False
    assert not ended(first)
    start("exec sleep 61")
    assert ended(first)
    [second] = services._family(settings(tmp_path), "server")
    assert second.pid != first.pid


def test_models_whose_runs_are_gone_are_not_taken_for_valid(tmp_path, monkeypatch):
    # By name: in the package, `up` is the verb and not the module.
    up_module = importlib.import_module("mlops.loop.up")
    settings = read_settings(MLOPS_HOME=tmp_path, PORT=free_port(), MLFLOW_PORT=free_port())
    store = tmp_path / "mlflow.db"
    looked = []

    def stop_here(*_: object) -> None:
        raise ServiceError("far enough")

    monkeypatch.setattr(up_module.Tracking, "connect", lambda _: store.touch())
    monkeypatch.setattr(up_module, "still_valid", lambda *_: looked.append(store.exists()))
    monkeypatch.setattr(up_module.services, "start", stop_here)
    with pytest.raises(ServiceError, match="far enough"):
        up_module.up(settings=settings)

    assert looked == [False, False]
    assert store.exists()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("ALERT_URLS", "json://127.0.0.1:1/"),
        ("BUNDLE_SIGNING_KEY", "k" * 32),
        ("DRIFT_EVERY", "2h"),
        ("PREDICTIONS_DURABILITY", "crash"),
        ("WORKERS", "2"),
    ],
)
def test_up_again_with_another_setting_starts_the_server_again(variable: str, value: str):
    server, another = (
        services.specs(read_settings(**settings))[0] for settings in ({}, {variable: value})
    )
    assert another.environment[variable] == value
    assert another.recipe != server.recipe
    assert another.recipe == services.specs(read_settings(**{variable: value}))[0].recipe

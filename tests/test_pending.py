"""A tracking store that is away costs a training one line; what it missed is tracked later."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import environment, free_port, mlops

from mlops import cli
from mlops.errors import TrackingError
from mlops.improve.ledger import Ledger, Version
from mlops.loop import track as tracks
from mlops.loop import up
from mlops.loop.promote import promote
from mlops.loop.track import pending, track
from mlops.loop.train import train
from mlops.package.bundle import open_bundle
from mlops.settings import Settings, read_settings
from mlops.track import runs
from mlops.track.registry import CHAMPION
from mlops.track.runs import Tracking

# What MLflow does with other libraries is not ours to mend.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore:.*Any type hint is inferred:UserWarning"
)

DISCRIMINANT = ("LinearDiscriminantAnalysis",)
MODEL = "IrisClassifierModel"


class Heard:
    """A report that remembers what it was told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    @contextlib.contextmanager
    def steps(self, title: str, total: int) -> Iterator[Callable[[str], None]]:
        yield lambda name: None


class Fake(BaseHTTPRequestHandler):
    """A tracking server as one would not have it."""

    kind = ""

    def answer(self) -> None:
        if self.kind == "hangs":
            self.server.ended.wait(60)
            return
        if self.kind == "is slow":
            self.server.ended.wait(0.4)
        body = b"<html>" if self.kind == "is none" else b"{}"
        self.send_response(500 if self.kind == "errs" else 200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body) + 99 * (self.kind == "drips")))
        self.end_headers()
        self.wfile.write(body)
        while self.kind == "drips" and not self.server.ended.wait(0.2):
            self.wfile.write(b" ")
            self.wfile.flush()

    do_GET = do_POST = answer  # noqa: N815  named so by http.server

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # the client gave up
            super().handle()

    def log_message(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def fake_server(kind: str) -> Iterator[str]:
    if kind == "refuses":
        yield f"http://127.0.0.1:{free_port()}"
        return
    handler = type("Kind", (Fake,), {"kind": kind})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.ended = threading.Event()
        serving = threading.Thread(target=server.serve_forever, args=(0.01,))
        serving.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.ended.set()
            server.shutdown()
            serving.join()


def versions(settings: Settings) -> list[Version]:
    with Ledger(settings.state_database) as ledger:
        return ledger.versions("iris")


def client(settings: Settings) -> Any:
    return Tracking(settings.home, settings.tracking_uri, settings.registry_uri).client


def iris_runs(settings: Settings) -> list[Any]:
    experiment = client(settings).get_experiment_by_name("iris")
    return client(settings).search_runs([experiment.experiment_id]) if experiment else []


# --- a store that is away


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("refuses", "Connection refused"),
        ("hangs", "no answer within 1 s"),
        ("drips", "no answer within 1 s"),
        ("errs", "too many 500 error responses"),
        ("is slow", "it is slow: 0.4 s for one answer"),
        ("is none", ""),
    ],
)
def test_a_server_that_cannot_be_worked_with_is_one_line_in_bounded_time(
    tmp_path, monkeypatch, kind, says
):
    monkeypatch.setattr(runs, "SECONDS_TO_ANSWER", 2.0 if kind == "is slow" else 1.0)
    monkeypatch.setattr(runs, "SLOW_SECONDS", 0.3)
    with fake_server(kind) as address:
        started = time.monotonic()
        with pytest.raises(TrackingError) as caught:
            Tracking(tmp_path, address, "").connect()
        assert time.monotonic() - started < 20  # MLflow's own patience is ten minutes
    assert says in caught.value.message
    assert caught.value.message.startswith(f"tracking at {address} failed: ")
    assert "\n" not in str(caught.value)


def test_a_registry_that_is_away_is_found_out_before_the_training_too(tmp_path, empty_store):
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    with fake_server("errs") as address, pytest.raises(TrackingError, match="500 error"):
        Tracking(tmp_path, f"sqlite:///{tmp_path}/mlflow.db", address).connect()


@pytest.fixture(scope="module")
def went_without(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Path:
    """A project trained and promoted while its tracking server erred."""
    home = tmp_path_factory.mktemp("without")
    heard = Heard()
    with fake_server("errs") as address:
        settings = read_settings(MLOPS_HOME=home, MLFLOW_TRACKING_URI=address)
        training = train("iris", only=DISCRIMINANT, settings=settings, report=heard)
        assert train("iris", only=DISCRIMINANT, settings=settings).registered == training.registered
        assert promote("iris", settings=settings, report=heard).changed
    (line,) = heard.lines
    assert line.startswith(f"tracking at {address} failed: too many 500 error responses — ")
    assert line.endswith(
        "training goes on; what it keeps is tracked later with: mlops track --pending"
    )
    shutil.copy(empty_store, home / "mlflow.db")
    return home


@pytest.fixture
def back(went_without: Path, tmp_path: Path) -> Settings:
    """A copy of that project, its store there again."""
    shutil.copytree(went_without, tmp_path / "home")
    return read_settings(
        MLOPS_HOME=tmp_path / "home", MLFLOW_TRACKING_URI="", MODEL_REGISTRY_URI=""
    )


def test_training_without_a_store_keeps_bundle_version_champion_and_runs(back):
    (version,) = versions(back)
    assert version.version == 1
    assert version.run_id.startswith("pending-")
    open_bundle(back.bundles / version.bundle)
    with Ledger(back.state_database) as ledger:
        assert ledger.champion("iris") == version
    notes = pending(back)
    assert [(note.use_case, note.candidate) for note in notes] == [("iris", *DISCRIMINANT)] * 2
    assert [(note.bundle, note.version) for note in notes] == [(version.bundle, 1)] * 2
    assert iris_runs(back) == []


def test_what_was_kept_is_tracked_later_as_if_it_had_been_tracked_then(back):
    version, _ = track(settings=back)
    found = iris_runs(back)
    assert len(found) == 2
    (named,) = (run for run in found if run.info.run_id == versions(back)[0].run_id)
    made = open_bundle(back.bundles / version.bundle)
    assert named.data.tags["bundle"] == version.bundle
    assert named.data.tags["data_fingerprint"] == made.training["data_fingerprint"]
    assert named.data.metrics["accuracy"] == made.metrics["scores"]["accuracy"]
    assert named.info.start_time < time.time() * 1000 - 1
    attached = client(back).list_artifacts(named.info.run_id, "bundle")
    assert "bundle/manifest.json" in {file.path for file in attached}
    (registered,) = client(back).search_model_versions(f"name='{MODEL}'")
    assert (registered.version, registered.run_id) == (1, named.info.run_id)
    assert client(back).get_model_version_by_alias(MODEL, CHAMPION).version == 1

    assert pending(back) == []  # and tracking again does nothing
    assert track(settings=back) == []
    assert len(iris_runs(back)) == 2
    assert list((back.models / "pending").iterdir()) == []


@pytest.mark.parametrize("step", ["log_run", "attach", "register", "mirror_champion"])
def test_a_crash_after_any_step_doubles_neither_run_nor_version(back, monkeypatch, step):
    owner = Tracking if step in {"log_run", "attach"} else tracks
    real = getattr(owner, step)

    def crash_after(*arguments: Any, **named: Any) -> None:
        real(*arguments, **named)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(owner, step, crash_after)
        with pytest.raises(KeyboardInterrupt):
            track(settings=back)
    track(settings=back)
    assert len(iris_runs(back)) == 2
    assert len(client(back).search_model_versions(f"name='{MODEL}'")) == 1
    assert [version.version for version in versions(back)] == [1]
    assert pending(back) == []


def test_what_a_crash_left_of_a_run_is_removed(back, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("mlflow.sklearn.log_model", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            track(settings=back)
    assert [run.info.status for run in iris_runs(back)] == ["FAILED"]
    track(settings=back)
    assert {run.info.status for run in iris_runs(back)} == {"FINISHED"}
    assert len(iris_runs(back)) == 2


def test_a_store_that_is_still_away_leaves_all_as_it_is(back, monkeypatch, capsys):
    before = pending(back)
    with fake_server("errs") as address:
        away = back.model_copy(update={"tracking_uri": address})
        with pytest.raises(TrackingError):
            track(settings=away)
        heard = Heard()
        up._track_pending(away, heard)
    assert heard.lines[0].startswith("2 runs still wait to be tracked: tracking at http://")
    assert pending(back) == before
    heard = Heard()
    up._track_pending(back, heard)
    assert heard.lines == ["2 runs that waited are tracked, 2 of them as versions"]
    up._track_pending(back, heard)
    assert len(heard.lines) == 1


def test_the_next_training_tracks_what_waits_first_so_that_versions_keep_their_numbers(back):
    training = train("iris", only=("LogisticRegression",), settings=back)
    assert [version.version for version in training.registered] == [2]
    found = {v.version: v.tags["bundle"] for v in client(back).search_model_versions()}
    assert found == {version.version: version.bundle for version in versions(back)}
    assert pending(back) == []


def test_where_others_took_the_number_the_version_gets_one_more_and_the_alias_follows(back):
    tracking = client(back)
    tracking.create_registered_model(MODEL)
    for _ in range(2):
        tracking.create_model_version(MODEL, source=back.home.as_uri())
    heard = Heard()
    track(settings=back, report=heard)
    assert any("version 1 is 3 in the registry" in line for line in heard.lines)
    assert [version.version for version in versions(back)] == [1, 3]
    assert tracking.get_model_version_by_alias(MODEL, CHAMPION).version == 3


@pytest.mark.parametrize("step", ["log_run", "attach", "register"])
def test_a_store_that_goes_away_during_the_training_is_the_same(
    tmp_path, empty_store, monkeypatch, step
):
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    settings = read_settings(MLOPS_HOME=tmp_path, MLFLOW_TRACKING_URI="", MODEL_REGISTRY_URI="")
    owner = Tracking if step in {"log_run", "attach"} else tracks

    def fail(*_: Any, **__: Any) -> None:
        raise TrackingError("tracking at http://gone failed: gone")

    heard = Heard()
    with monkeypatch.context() as patched:
        patched.setattr(owner, step, fail)
        training = train("iris", only=DISCRIMINANT, settings=settings, report=heard)
    assert len(heard.lines) == 1
    assert [version.version for version in training.registered] == [1]
    assert len(pending(settings)) == 1
    (version,) = track(settings=settings)
    (run,) = iris_runs(settings)
    assert versions(settings) == [dataclasses.replace(version, run_id=run.info.run_id)]
    (registered,) = client(settings).search_model_versions()
    assert (registered.version, registered.tags["bundle"]) == (1, version.bundle)


def test_a_run_that_cannot_be_kept_leaves_nothing_half_written(back, monkeypatch):
    import joblib

    def write_half(value: Any, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    before = pending(back)
    with fake_server("errs") as address, monkeypatch.context() as patched:
        recorder = tracks.Recorder(back.model_copy(update={"tracking_uri": address}), Heard())
        patched.setattr(joblib, "dump", write_half)
        with pytest.raises(OSError, match="No space left"):
            recorder.log_run(experiment="iris", candidate="X", tags={})
    assert pending(back) == before
    assert len(list((back.models / "pending").iterdir())) == len(before)


# --- the command


def test_the_command_lists_what_waits_and_tracks_it_once(back, monkeypatch, capsys):
    monkeypatch.setenv("MLOPS_HOME", str(back.home))

    def printed(*arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            cli.main(["track", *arguments])
        assert not ended.value.code
        return capsys.readouterr().out

    assert "2 runs wait to be tracked: mlops track --pending" in printed()
    assert len(json.loads(printed("--json"))["pending"]) == 2
    assert "2 runs tracked; registered: iris version 1" in printed("--pending")
    assert printed("--pending") == "nothing waits to be tracked\n"
    assert json.loads(printed("--json")) == {"pending": [], "tracked": []}


@pytest.mark.slow
def test_a_server_that_hangs_costs_the_command_one_line_and_seconds(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        started = time.monotonic()
        done = mlops(
            "train", "iris", "--only", *DISCRIMINANT, "--promote",
            home=tmp_path, MLFLOW_TRACKING_URI=address,
        )  # fmt: skip
        assert time.monotonic() - started < 60  # ten minutes, if MLflow had its way
    first, *progress = done.stderr.splitlines()
    assert first.startswith(f"tracking at {address} failed: it hangs or is slow: no answer within")
    assert progress == ["iris: training …", "iris: sealing …"]
    assert "iris: version 1 is champion" in done.stdout


# --- two at once


@pytest.mark.slow
def test_two_trainings_at_once_do_not_disturb_each_other(tmp_path, empty_store):
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    words = [sys.executable, "-m", "mlops.cli", "train", "iris", "--only"]
    both = [
        subprocess.Popen(
            [*words, candidate],
            cwd=tmp_path,
            env=environment(tmp_path),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for candidate in ("LogisticRegression", *DISCRIMINANT, *DISCRIMINANT)
    ]
    for process in both:
        _, errors = process.communicate(timeout=120)
        assert (process.returncode, errors) == (0, "iris: training …\niris: sealing …\n")
    settings = read_settings(MLOPS_HOME=tmp_path, MLFLOW_TRACKING_URI="", MODEL_REGISTRY_URI="")
    known = versions(settings)
    assert [version.version for version in known] == [1, 2]  # equal trainings give one version
    assert {version.candidate for version in known} == {"LogisticRegression", *DISCRIMINANT}
    assert {run.info.status for run in iris_runs(settings)} == {"FINISHED"}
    assert len(iris_runs(settings)) == 3
    found = {v.version: v for v in client(settings).search_model_versions()}
    assert set(found) == {1, 2}
    for version in known:
        open_bundle(settings.bundles / version.bundle)
        assert found[version.version].tags["bundle"] == version.bundle
        assert found[version.version].run_id == version.run_id
    assert len(list(settings.bundles.iterdir())) == 2
    assert pending(settings) == []

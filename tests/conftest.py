"""Worlds for the tests: a project that was trained once, and real processes over copies of it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

REPOSITORY = Path(__file__).parents[1]
SCRIPTS = ("load_data", "train_and_track", "train_iris")
SECONDS_TO_START = 60


def environment(home: Path, **more: str) -> dict[str, str]:
    """Return a clean environment for a process over `home`."""
    ours = (
        *("LOG_", "MLFLOW", "MLOPS", "MODEL_REGISTRY", "PORT", "PREDICTIONS", "USE_CASES"),
        *("RATE_LIMIT", "TRUSTED_PROXIES", "LARGEST_BODY", "BUNDLE_", "SECONDS_TO_RECEIVE", "MAX_"),
        *("ALERT_", "CHAMPION_", "DRIFT_", "EXPERIMENT_", "RETRAIN_", "ROLLBACK_"),
    )
    kept = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {
        **kept,
        "PATH": path,
        "MLOPS_HOME": str(home),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        **more,
    }


def run(
    *command: str, home: Path, check: bool = True, timeout: float = 120, **more: str
) -> subprocess.CompletedProcess[str]:
    """Run a command in `home` as a person would type it there, its output kept."""
    done = subprocess.run(
        command,
        cwd=home,
        env=environment(home, **more),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if check and done.returncode:
        raise AssertionError(
            f"{command} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        )
    return done


def mlops(*arguments: str, home: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command `mlops`."""
    return run(sys.executable, "-m", "mlops.cli", *arguments, home=home, **options)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclasses.dataclass
class Server:
    """A real server process over a project folder."""

    home: Path
    process: subprocess.Popen[bytes]
    url: str

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def request(
        self,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
        timeout: float = 30,
    ) -> tuple[int, Any]:
        """Send one request; return the status and the parsed JSON. Bytes are sent as they are."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, data, {"content-type": "application/json", **(headers or {})}
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout) as response:
                return response.status, strict_json(response.read())
        except urllib.error.HTTPError as error:
            return error.code, strict_json(error.read())

    def kill(self) -> None:
        """End it as a power cut of the process would: SIGKILL."""
        self.process.kill()
        self.process.wait(timeout=30)

    def stop(self) -> int:
        """End it as an operator would: SIGTERM. Return the exit code."""
        self.process.terminate()
        return self.process.wait(timeout=30)

    def printed(self) -> str:
        return (self.home / "server.out").read_text()


def strict_json(content: bytes) -> Any:
    """Parse JSON as the standard has it: NaN and Infinity are errors."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"not strict JSON: {constant} in {content[:300]!r}")

    return json.loads(content, parse_constant=refuse)


def start_server(
    home: Path,
    *use_cases: str,
    command: list[str] | None = None,
    ready: bool = True,
    port: int | None = None,
    **more: str,
) -> Server:
    """Start `mlops serve` (or `command`, with {port} in it) and wait until it answers."""
    port = port or free_port()
    words = command or [sys.executable, "-m", "mlops.cli", "serve", *use_cases, "--port", "{port}"]
    with (home / "server.out").open("ab") as output:
        process = subprocess.Popen(
            [word.format(port=port) for word in words],
            cwd=home,
            env=environment(home, **more),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    server = Server(home, process, f"http://127.0.0.1:{port}")
    wait_for(server, "/health/ready" if ready else "/health/live")
    return server


def wait_for(server: Server, path: str) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if server.request(path)[0] == 200:
                return
        if server.process.poll() is not None:
            break
        time.sleep(0.05)
    server.kill()
    raise AssertionError(f"no 200 from {path}:\n{server.printed()}")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--trained", type=Path, help="a folder to keep the trained project in")


def train_project(home: Path) -> None:
    """Train, track and promote both use cases in `home`, by the scripts of the description."""
    for folder in ("src", "api"):
        copy_code(REPOSITORY / folder, home / folder)
    for script in SCRIPTS:
        done = run("python", f"src/{script}.py", home=home, timeout=280)
        (home / f"{script}.out").write_text(done.stdout)
    (home / "done").touch()


def shared(factory: pytest.TempPathFactory) -> Path:
    """Return the temporary folder that all processes of the suite have in common."""
    base = factory.getbasetemp()
    return base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Path:
    """A project in which both use cases were trained, tracked and promoted, once for the suite.

    By the scripts of the original description, in a copy of the code; what each printed is beside
    the project in `<script>.out`. Tests read it; those that change anything take `home`, a copy.
    """
    home: Path = (
        pytestconfig.getoption("--trained") or shared(tmp_path_factory) / "trained"
    ).absolute()
    home.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{home}.lock"):
        if not (home / "done").exists():
            train_project(home)
    return home


@pytest.fixture
def home(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained project that the test may change: data, bundles and champions."""
    return copy_project(trained, tmp_path / "home")


def copy_code(source: Path, target: Path) -> None:
    shutil.copytree(
        source, target, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True
    )


def copy_project(trained: Path, target: Path) -> Path:
    """Copy what serving needs: data, bundles and champions; neither runs nor pickles."""
    shutil.copytree(trained / "data", target / "data")
    shutil.copytree(trained / "models" / "bundles", target / "models" / "bundles")
    shutil.copy(trained / "models" / "state.db", target / "models" / "state.db")
    return target


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow store with its tables and nothing in them: making one takes seconds."""
    from mlops.track.runs import Tracking

    folder = shared(tmp_path_factory) / "store"
    with FileLock(f"{folder}.lock"):
        if not (folder / "done").exists():
            folder.mkdir()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what MLflow does with other libraries
                Tracking(folder, "", "").connect()
            (folder / "done").touch()
    return folder / "mlflow.db"


@pytest.fixture
def serve(home: Path) -> Iterator[Callable[..., Server]]:
    """Start servers over `home`; all are ended with the test."""
    servers: list[Server] = []

    def start(*use_cases: str, **options: Any) -> Server:
        server = start_server(options.pop("home", home), *use_cases, **options)
        servers.append(server)
        return server

    yield start
    for server in servers:
        if server.process.poll() is None:
            server.kill()


def typed(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Return what runs a command in this process, and gives its exit code and all it printed."""
    from mlops import cli

    def run(*words: str) -> tuple[int, str]:
        capfd.readouterr()
        try:
            cli.main(list(words))
            code = 0
        except SystemExit as ended:
            code = int(ended.code or 0)
        printed = capfd.readouterr()
        return code, printed.out + printed.err

    return run

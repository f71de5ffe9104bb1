"""Background services: the prediction server and MLflow, started, found again and stopped.

Each has a file in `.run/` with its process id and the time that process began, so that a recycled
id is never mistaken for it; what it prints is in `.run/<name>.log`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import psutil

from mlops.errors import ServiceError
from mlops.settings import Settings
from mlops.track.runs import MLFLOW_DEFAULTS, local_uri

SECONDS_TO_START = 60
SECONDS_TO_STOP = 20
LOCALHOST = "127.0.0.1"
MARK = "MLOPS_SERVICE"


@dataclasses.dataclass(frozen=True, slots=True)
class Spec:
    """How a service is started and asked how it is."""

    name: str
    command: tuple[str, ...]
    host: str
    port: int
    health: str
    variable: str
    environment: dict[str, str]
    code: Path | None = None

    @property
    def address(self) -> str:
        return f"http://{LOCALHOST if self.host == '0.0.0.0' else self.host}:{self.port}"  # noqa: S104

    @property
    def recipe(self) -> str:
        """A digest of command, settings and code: a service with another one is restarted."""
        digest = hashlib.sha256(repr((self.command, sorted(self.environment.items()))).encode())
        for source in sorted(self.code.rglob("*.py")) if self.code else ():
            digest.update(source.read_bytes())
        return digest.hexdigest()


@dataclasses.dataclass(frozen=True, slots=True)
class Status:
    """A service as it is now."""

    name: str
    running: bool
    healthy: bool
    address: str
    pid: int | None
    since: float | None


def specs(settings: Settings) -> list[Spec]:
    """Return the services of this project: the server, and MLflow unless tracking is elsewhere."""
    python = sys.executable
    home = str(settings.home.resolve())
    found = [
        Spec(
            "server",
            (python, "-m", "mlops.cli", "serve"),
            settings.host,
            settings.port,
            "/health/live",
            "PORT",
            {
                **_stated(settings),
                "MLOPS_HOME": home,
                "MLOPS_MODELS": str(settings.models.resolve()),
                "USE_CASES": "",  # `up` asks all of them
            },
            Path(__file__).parents[1],
        )
    ]
    if settings.tracks_locally:
        port = str(settings.mlflow_port)
        artifacts = (settings.home / "mlruns").resolve().as_uri()
        store = (
            "--backend-store-uri",
            local_uri(settings.home),
            "--default-artifact-root",
            artifacts,
        )
        address = ("--host", LOCALHOST, "--port", port, "--workers", "1")
        found.append(
            Spec(
                "mlflow",
                (python, "-m", "mlflow", "server", *address, *store),
                LOCALHOST,
                settings.mlflow_port,
                "/health",
                "MLFLOW_PORT",
                {**MLFLOW_DEFAULTS, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            )
        )
    return found


def _stated(settings: Settings) -> dict[str, str]:
    """Return all settings as the environment has them: what changes one restarts the server."""
    values = {
        str(field.validation_alias): getattr(settings, name)
        for name, field in Settings.model_fields.items()
    }
    return {name: str(value) for name, value in values.items() if value not in {None, ""}}


def check_ports(settings: Settings) -> None:
    """Raise `ServiceError` if a port that is needed belongs to somebody else."""
    taken: dict[int, str] = {}
    for spec in specs(settings):
        if spec.port in taken:
            raise ServiceError(
                f"port {spec.port} cannot be both {taken[spec.port]}'s and {spec.name}'s",
                f"choose another: make up {spec.variable}={spec.port + 1}",
            )
        taken[spec.port] = spec.name
        if _family(settings, spec.name) and _recorded(settings, spec.name)["port"] == spec.port:
            continue
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((spec.host, spec.port))
            except OSError as error:
                raise ServiceError(
                    f"port {spec.port} ({spec.name}) cannot be used: {error.strerror}",
                    f"free it, or choose another: make up {spec.variable}={spec.port + 1}",
                ) from None


def start(settings: Settings, spec: Spec) -> bool:
    """Start a service unless it already runs as it should; return whether it was started."""
    as_it_should = _recorded(settings, spec.name).get("recipe") == spec.recipe
    if as_it_should and _running(settings, spec.name) is not None:
        return False
    stop(settings, spec.name)
    settings.run.mkdir(parents=True, exist_ok=True)
    with _log_path(settings, spec.name).open("ab") as output:
        process = subprocess.Popen(  # noqa: S603  # our own command
            spec.command,
            cwd=settings.home,
            env={**os.environ, **spec.environment, MARK: _mark(settings, spec.name)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    record = {
        "pid": process.pid,
        "created": psutil.Process(process.pid).create_time(),
        "host": spec.host,
        "port": spec.port,
        "recipe": spec.recipe,
    }
    unfinished = _record_path(settings, spec.name).with_suffix(".unfinished")
    unfinished.write_text(json.dumps(record))
    unfinished.replace(_record_path(settings, spec.name))
    return True


def wait_healthy(settings: Settings, spec: Spec) -> None:
    """Wait until a service answers. Raises `ServiceError` with its last words if it ends."""
    deadline = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < deadline:
        if _answers(spec):
            return
        if _running(settings, spec.name) is None:
            raise ServiceError(
                f"{spec.name} ended while it was starting: {_last_words(settings, spec.name)}",
                f"all it said is in {_log_path(settings, spec.name)}",
            )
        time.sleep(0.1)
    raise ServiceError(
        f"{spec.name} did not answer within {SECONDS_TO_START} s",
        f"look at {_log_path(settings, spec.name)}",
    )


def stop(settings: Settings, name: str) -> bool:
    """Stop a service and every process it started; return whether it was running.

    It is asked first (SIGTERM: it finishes what it has accepted), and killed after 20 s.
    """
    asked: set[psutil.Process] = set()
    deadline = time.monotonic() + SECONDS_TO_STOP
    # Asked for anew each time: one may have started another meanwhile.
    while family := _family(settings, name):
        late = time.monotonic() - deadline
        if late > SECONDS_TO_STOP:
            raise ServiceError(f"{name} cannot be stopped: process {family[0].pid} stays")
        for one in family:
            if late > 0:
                _signal(one.kill)
            elif one not in asked:
                _signal(one.terminate)
        asked.update(family)
        time.sleep(0.02)
    _record_path(settings, name).unlink(missing_ok=True)
    return bool(asked)


def status(settings: Settings) -> list[Status]:
    """Return how each service is, running or not."""
    found = []
    for declared in specs(settings):
        process = _running(settings, declared.name)
        record = _recorded(settings, declared.name)
        # It may have been started on another port than today's setting.
        spec = dataclasses.replace(declared, **{k: record[k] for k in ("host", "port") if process})
        found.append(
            Status(
                spec.name,
                process is not None,
                process is not None and _answers(spec),
                spec.address,
                process.pid if process else None,
                process.create_time() if process else None,
            )
        )
    return found


def output(settings: Settings, name: str, last: int) -> list[str]:
    """Return the last lines that a service printed."""
    path = _log_path(settings, name)
    if not path.exists():
        return []
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 400 * last))
        return file.read().decode("utf-8", "replace").splitlines()[-last:]


def _answers(spec: Spec) -> bool:
    try:
        with urllib.request.urlopen(spec.address + spec.health, timeout=2) as response:  # noqa: S310
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError, ValueError):
        return False


def _running(settings: Settings, name: str) -> psutil.Process | None:
    record = _recorded(settings, name)
    if not record:
        return None
    try:
        process = psutil.Process(record["pid"])
        same = abs(process.create_time() - record["created"]) < 1
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None


def _recorded(settings: Settings, name: str) -> dict[str, Any]:
    try:
        record = json.loads(_record_path(settings, name).read_text())
    except (OSError, ValueError):
        return {}
    known = isinstance(record, dict) and {"pid", "created", "host", "port", "recipe"} <= set(record)
    return record if known else {}


def _family(settings: Settings, name: str) -> list[psutil.Process]:
    """Return a service's process and all that it started, even those that have outlived it.

    They share a session, whose number is the recorded process id, and the mark that they inherit
    tells them from others whose session came to have that number later. One that has ended but
    whose parent never asks after it (a zombie) shows no mark, and is not among them.
    """
    session = _recorded(settings, name).get("pid")
    mark = _mark(settings, name)
    found = []
    for process in psutil.process_iter() if session else ():
        with contextlib.suppress(psutil.Error, OSError):
            if os.getsid(process.pid) == session and process.environ().get(MARK) == mark:
                found.append(process)
    return found


def _mark(settings: Settings, name: str) -> str:
    return f"{name} of {settings.run.resolve()}"


def _signal(send: Any) -> None:
    try:
        send()
    except psutil.NoSuchProcess:
        return


def _last_words(settings: Settings, name: str) -> str:
    lines = [line for line in output(settings, name, 20) if line.strip()]
    return lines[-1].strip() if lines else "it said nothing"


def _record_path(settings: Settings, name: str) -> Path:
    return settings.run / f"{name}.json"


def _log_path(settings: Settings, name: str) -> Path:
    return settings.run / f"{name}.log"

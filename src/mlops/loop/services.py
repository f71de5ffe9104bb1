"""Background services: the prediction server and MLflow, started, found again and stopped.

Each has a file in `.run/` with its process id and the time that process began, so that a recycled
id is never mistaken for it; what it prints is in `.run/<name>.log`.
"""

from __future__ import annotations

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
                "MLOPS_HOME": home,
                "MLOPS_HOST": settings.host,
                "PORT": str(settings.port),
                "PREDICTIONS_DURABILITY": settings.durability,
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


def check_ports(settings: Settings) -> None:
    """Raise `ServiceError` if a port that is needed belongs to somebody else."""
    for spec in specs(settings):
        running = _running(settings, spec.name)
        if running is not None and _recorded(settings, spec.name).get("port") == spec.port:
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
    running = _running(settings, spec.name)
    if running is not None:
        if _recorded(settings, spec.name).get("recipe") == spec.recipe:
            return False
        stop(settings, spec.name)
    settings.run.mkdir(parents=True, exist_ok=True)
    with _log_path(settings, spec.name).open("ab") as output:
        process = subprocess.Popen(  # noqa: S603  # our own command
            spec.command,
            cwd=settings.home,
            env={**os.environ, **spec.environment},
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
    process = _running(settings, name)
    if process is not None:
        family = [process, *_children(process)]
        for one in family:
            _signal(one.terminate)
        _, alive = psutil.wait_procs(family, timeout=SECONDS_TO_STOP)
        for one in alive:
            _signal(one.kill)
        psutil.wait_procs(alive, timeout=SECONDS_TO_STOP)
    _record_path(settings, name).unlink(missing_ok=True)
    return process is not None


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
        record: dict[str, Any] = json.loads(_record_path(settings, name).read_text())
    except (OSError, ValueError):
        return {}
    return record


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return list(process.children(recursive=True))
    except psutil.NoSuchProcess:
        return []


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

"""How many requests do other model servers answer, with the same model, on the same core?

Each peer is installed into an environment of its own, at pinned versions, and serves the sealed
scikit-learn pipeline of 500 trees in the way its manual shows, with the choices that suit it: one
worker, batches gathered where it can, inputs as plain numbers. MLServer gathers none unless it is
told to, and is measured both ways. None of them checks the values or
logs the row. Ours does, and serves the graph that was exported from that same pipeline: that too
is a part of what is compared.

All servers share one core, and all but the one that is measured are stopped meanwhile. Counted are
answers for each second of processor time that a server and its children took: 16 connections keep
its core busy, and what else the machine does in that second then weighs on nobody.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.results import ROOT, Found, Line, Row
from benchmarks.serving import BODY, EXAMPLE, OURS, SERVER_CORE, Server, load
from mlops.usecases.housing import HOUSING

HERE = Path(__file__).parent
CONNECTIONS, ROUNDS, SECONDS = 16, 5, 2.0
SECONDS_TO_START = 180
VALUES = [EXAMPLE[name] for name in HOUSING.fields]


@dataclasses.dataclass(frozen=True, slots=True)
class Peer:
    """A server. `command` is given its environment's programs, a folder of its own and the port.

    What stands in its name behind a comma is how it is set.
    """

    name: str
    path: str
    body: Mapping[str, Any]
    command: Callable[[Path, Path, int], list[str]]

    @property
    def requirements(self) -> Path:
        return HERE / f"{self.name.partition(',')[0].lower()}.txt"


def _mlflow(programs: Path, folder: Path, port: int) -> list[str]:
    _call([programs / "python", HERE / "mlflow_save.py", folder / "model"], folder)
    serve = ["models", "serve", "--model-uri", folder / "model", "--env-manager", "local"]
    return [*map(str, (programs / "mlflow", *serve, "--host", "127.0.0.1", "--port", port))]


def _mlserver(programs: Path, folder: Path, port: int, *, batches: bool = True) -> list[str]:
    """MLServer gathers no batches unless told; without a second process it answers more."""
    settings = {
        "host": "127.0.0.1",
        "http_port": port,
        "grpc_port": _free_port(),
        "metrics_endpoint": None,
        "parallel_workers": 0,
    }
    model = {
        "name": "housing",
        "implementation": "mlserver_sklearn.SKLearnModel",
        "parameters": {"uri": str(folder.parent / "pipeline.joblib")},
        **({"max_batch_size": 64, "max_batch_time": 0.001} if batches else {}),
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "model-settings.json").write_text(json.dumps(model))
    return [str(programs / "mlserver"), "start", str(folder)]


def _mlserver_singly(programs: Path, folder: Path, port: int) -> list[str]:
    return _mlserver(programs, folder, port, batches=False)


def _bentoml(programs: Path, folder: Path, port: int) -> list[str]:
    bind = ["--host", "127.0.0.1", "--port", str(port), "--working-dir", str(HERE)]
    return [str(programs / "bentoml"), "serve", "bento_housing:Housing", *bind]


def _litserve(programs: Path, folder: Path, port: int) -> list[str]:
    return [str(programs / "python"), str(HERE / "lit_housing.py"), str(port)]


TENSOR = {"name": "predict", "shape": [1, len(VALUES)], "datatype": "FP64", "data": VALUES}
PEERS = (
    Peer("MLflow", "/invocations", {"inputs": [VALUES]}, _mlflow),
    Peer("MLServer", "/v2/models/housing/infer", {"inputs": [TENSOR]}, _mlserver_singly),
    Peer("MLServer, batching", "/v2/models/housing/infer", {"inputs": [TENSOR]}, _mlserver),
    Peer("BentoML", "/predict", {"rows": [VALUES]}, _bentoml),
    Peer("LitServe", "/predict", {"row": VALUES}, _litserve),
)
BEATEN = {peer.name: Line(f"ours ÷ {peer.name}", least=15) for peer in PEERS}
LINES = tuple(BEATEN.values())


@dataclasses.dataclass(slots=True)
class _Server:
    process: subprocess.Popen[bytes]
    port: int
    path: str
    body: bytes
    output: Path
    loads: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def tell(self, what: signal.Signals) -> None:
        """Signal the server and all its children, which may outlive it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, what)

    def measure(self) -> None:
        """Go on, answer for some seconds, and stop again."""
        self.tell(signal.SIGCONT)
        answering = Server(self.process, self.port)
        self.loads.append(answering.load(self.path, self.body, CONNECTIONS, SECONDS))
        self.tell(signal.SIGSTOP)

    def median(self, name: str) -> float:
        return statistics.median(one[name] for one in self.loads)


def run(home: Path, _: int = 0) -> Found:
    """Install the peers, train the model, and let all of them answer in turn."""
    makers = {peer.requirements: peer for peer in PEERS}
    environments = {
        file: _environment(home / "environments", peer) for file, peer in makers.items()
    }
    _call([sys.executable, "-m", "benchmarks.five_hundred", home], home)
    [pipeline] = home.glob("models/bundles/*/pipeline.joblib")
    (home / "pipeline.joblib").symlink_to(pipeline)
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(_ours(home))
        servers = {
            peer.name: stack.enter_context(_served(peer, environments[peer.requirements], home))
            for peer in PEERS
        }
        for _round in range(ROUNDS):
            for one in (ours, *servers.values()):
                one.measure()
    rate, p50, p99 = (ours.median(name) for name in ("per_busy_second", "p50", "p99"))
    rows = []
    for name, server in servers.items():
        pairs = zip(ours.loads, server.loads, strict=True)
        ratio = statistics.median(a["per_busy_second"] / b["per_busy_second"] for a, b in pairs)
        theirs = f"{server.median('per_busy_second'):,.0f} /s"
        rows.append(Row(BEATEN[name], theirs, f"{rate:,.0f} /s", ratio, 1e3 * p50, 1e3 * p99))
    said = "; ".join(
        f"{name} {1e3 * one.median('p50'):.1f} and {1e3 * one.median('p99'):.1f} ms"
        for name, one in servers.items()
    )
    return Found(rows, [f"{CONNECTIONS} connections; p50 and p99 of the peers: {said}"])


def _environment(folder: Path, peer: Peer) -> Path:
    """Make the peer's environment; return the folder of its programs."""
    path = folder / peer.name
    uv = Path(sys.executable).with_name("uv")
    _call([uv, "venv", "--quiet", "--python", sys.executable, path], ROOT)
    python = path / "bin" / "python"
    _call([uv, "pip", "install", "--quiet", "--python", python, "-r", peer.requirements], ROOT)
    return path / "bin"


@contextlib.contextmanager
def _ours(home: Path) -> Iterator[_Server]:
    port = _free_port()
    with _started([*OURS, str(port)], home, home, {"PREDICTIONS_DURABILITY": "crash"}) as process:
        yield _answering(_Server(process, port, "/predict", BODY, home / "server.log"))


@contextlib.contextmanager
def _served(peer: Peer, programs: Path, home: Path) -> Iterator[_Server]:
    folder, port = home / peer.name, _free_port()
    folder.mkdir()
    command = peer.command(programs, folder, port)
    path = {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}  # MLflow looks for uvicorn there
    with _started(command, folder, home, path) as process:
        body, output = json.dumps(peer.body).encode(), folder / "server.log"
        yield _answering(_Server(process, port, peer.path, body, output))


@contextlib.contextmanager
def _started(
    command: list[str], folder: Path, home: Path, more: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server on its core, as the leader of a group of processes, until the block ends."""
    with (folder / "server.log").open("ab") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=_variables(home) | more,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=lambda: os.sched_setaffinity(0, {SERVER_CORE}),
        )
    try:
        yield process
    finally:
        for what in (signal.SIGCONT, signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, what)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.1 if what == signal.SIGCONT else 10)


def _answering(server: _Server) -> _Server:
    """Wait until the server answers 200, then let it rest."""
    deadline = time.monotonic() + SECONDS_TO_START
    while True:
        try:
            load(server.port, server.path, server.body, 1, 0.1)
        except subprocess.CalledProcessError as error:
            if time.monotonic() > deadline or server.process.poll() is not None:
                says = error.stderr.decode(errors="replace").strip().rpartition("\n")[2]
                said = server.output.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{server.process.args}: {says}\n{said}") from error
            time.sleep(0.5)
        else:
            load(server.port, server.path, server.body, CONNECTIONS, 1.0)  # warm
            server.tell(signal.SIGSTOP)
            return server


def _variables(home: Path) -> dict[str, str]:
    return {
        **os.environ,
        "MLOPS_HOME": str(home),
        "PEER_MODEL": str(home / "pipeline.joblib"),
        "PYTHONPATH": str(ROOT / "src"),  # the pipeline's first step is ours
        "BENTOML_HOME": str(home / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "true",
        "OMP_NUM_THREADS": "1",
    }


def _call(words: list[Any], home: Path) -> None:
    done = subprocess.run(
        [str(word) for word in words],
        env=_variables(home if (home / "pipeline.joblib").exists() else home.parent),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    if done.returncode:
        raise RuntimeError(f"{words[0]} {words[1]} failed: {done.stderr.strip()[-2000:]}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

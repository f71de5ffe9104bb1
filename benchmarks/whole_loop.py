"""How long is it from an empty folder to the first answered predictions?

`mlops up` in an empty home, and again when everything is valid; the second as a share of the first.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path


def run(home: Path) -> None:
    """Bring the project in `home` up from nothing, down, and up again; leave it down."""
    environment = {
        **os.environ,
        "MLOPS_HOME": str(home),
        "PORT": str(_free_port()),
        "MLFLOW_PORT": str(_free_port()),
    }
    first = _mlops("up", environment)
    _mlops("down", environment)
    again = _mlops("up", environment)
    _mlops("down", environment)
    print("\nThe whole loop: prepare, train, track, seal, register, promote, serve, ask")
    print(f"from an empty folder {first:.1f} s; again {again:.1f} s, {again / first:.0%} of it")


def _mlops(verb: str, environment: dict[str, str]) -> float:
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "mlops.cli", verb],
        env=environment,
        check=True,
        capture_output=True,
    )
    return time.perf_counter() - started


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

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

from benchmarks.results import Found, Line, Row

AGAIN = Line("`mlops up` when all is valid ÷ from an empty folder")
LINES = (AGAIN,)


def run(home: Path, _: int = 0) -> Found:
    """Bring the project in `home` up from nothing, down, and up again; leave it down."""
    first, again = up(home), up(home)
    return Found([Row(AGAIN, f"{first:.1f} s", f"{again:.1f} s", again / first)])


def up(home: Path) -> float:
    """Bring the project in `home` up, and down again; return how long the first took."""
    environment = {
        **os.environ,
        "MLOPS_HOME": str(home),
        "PORT": str(_free_port()),
        "MLFLOW_PORT": str(_free_port()),
    }
    took = _mlops("up", environment)
    _mlops("down", environment)
    return took


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

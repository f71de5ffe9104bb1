"""Schemathesis against a running server: what the document says is what happens.

All of its checks, with good and bad data, singly and in sequences. It stops at nothing: a status
that is not documented, an answer that does not fit its schema, bad input accepted, good refused.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import copy_project, environment, start_server

# A schema cannot say that a tensor needs as many numbers as its shape has places, nor at the root
# which use case an id belongs to, and so whether its truth is a number or a label: there, and only
# there, good data may be refused. The rest of each list is the tool's own.
CONFIGURATION = """
request-timeout = 100.0

[parameters]
"path.model" = "housing"
"path.name" = "champion"
"path.version" = "1"

[[operations]]
include-path-regex = "/infer$"
[operations.checks.positive_data_acceptance]
expected-statuses = ["2xx", "400", "401", "403", "404", "409", "5xx"]

[[operations]]
include-path-regex = "^/feedback$"
[operations.checks.positive_data_acceptance]
expected-statuses = ["2xx", "401", "403", "404", "409", "422", "5xx"]
"""

# A key that comes again with other inputs is refused, as it should be: here each comes once. And a
# promotion is a process of its own, which takes seconds: a few are enough, the rest name nobody.
HOOKS = """
import itertools
import uuid

import schemathesis

promotions = itertools.count()


@schemathesis.hook
def before_call(context, case, kwargs):
    if case.path in ("/admin/promote", "/admin/rollback") and isinstance(case.body, dict):
        if case.body.get("use_case") in ("housing", "iris") and next(promotions) >= 4:
            case.body["use_case"] = "nobody"
    for name in [name for name in case.headers or {} if name.lower() == "idempotency-key"]:
        case.headers[name] += uuid.uuid4().hex
"""


def fuzz(trained: Path, folder: Path, *options: str) -> int:
    """Run it against a new server; return how many requests it made."""
    server = start_server(copy_project(trained, folder / "home"), PREDICTIONS_DURABILITY="crash")
    configuration = folder / "schemathesis.toml"
    configuration.write_text(CONFIGURATION)
    (folder / "fuzz_hooks.py").write_text(HOOKS)
    command = Path(sys.executable).with_name("schemathesis")
    words = ("--checks", "all", "--seed", "1", "--no-color", "--max-failures", "5", *options)
    # A promotion takes as long as it takes.
    words += ("--max-response-time", "100")
    try:
        done = subprocess.run(
            [command, "--config-file", configuration, "run", f"{server.url}/openapi.json", *words],
            cwd=folder,
            env=environment(folder, SCHEMATHESIS_HOOKS="fuzz_hooks", PYTHONPATH=str(folder)),
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert server.process.poll() is None
        assert "Traceback" not in server.printed(), server.printed()[-3000:]
    finally:
        server.kill()
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    made = re.search(r"(\d+) generated", done.stdout)
    assert made, done.stdout[-1000:]
    return int(made[1])


def test_examples_and_generated_requests_are_answered_as_documented(
    trained: Path, tmp_path: Path
) -> None:
    made = fuzz(trained, tmp_path, "--phases", "examples,fuzzing", "--max-examples", "2")
    assert made > 50


@pytest.mark.slow
def test_two_thousand_requests_are_answered_as_documented(trained: Path, tmp_path: Path) -> None:
    assert fuzz(trained, tmp_path, "--max-examples", "50") > 2_000

"""The README's tour, from a bare clone, as a newcomer would type it.

A console block holds commands (`$ …`) and what they print. In the expected text `…` stands for
anything within a line, and a line that is only `…` for any number of lines; spaces count as one.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY, free_port

LONGEST_LOOP = 120.0
LONGEST_FROM_CLONE = 240.0
SQLITE = """#!{python}
import sqlite3, sys
for row in sqlite3.connect(sys.argv[1]).execute(sys.argv[2]):
    print(*("" if value is None else value for value in row), sep="|")
"""


def tour() -> list[tuple[str, list[str]]]:
    """Return the commands of the README's tour with the lines that each should print."""
    steps: list[tuple[str, list[str]]] = []
    # The first block is the two commands at the top; the second of them is what runs this test.
    for block in re.findall(r"```console\n(.*?)```", readme(), re.DOTALL)[1:]:
        for line in block.splitlines():
            if line.startswith("$ "):
                steps.append((line[2:], []))
            else:
                steps[-1][1].append(line)
    return steps


def readme() -> str:
    return (REPOSITORY / "README.md").read_text()


def pattern(expected: list[str]) -> re.Pattern[str]:
    parts = []
    for line in filter(None, map(squeeze, expected)):
        if line == "…":
            parts.append(r"(?:.*\n)*?")
        else:
            parts.append(r".*".join(map(re.escape, line.split("…"))) + r"\n")
    return re.compile("".join(parts))


def squeeze(line: str) -> str:
    return " ".join(line.split())


def test_the_pattern_tells_what_is_expected_from_what_is_not() -> None:
    expected = pattern(["a …  z", "…", "end"])

    assert expected.fullmatch("a b z\nx\ny\nend\n")
    assert expected.fullmatch("a  z\nend\n")
    assert not expected.fullmatch("a b\nend\n")
    assert not expected.fullmatch("a b z\nend\nmore\n")


def test_the_two_commands_are_at_the_top() -> None:
    assert re.search(r"```console\n(.*?)```", readme(), re.DOTALL).group(1) == (
        "$ make up\n$ make test\n"
    )
    assert readme().index("$ make test") < 200


def test_every_command_of_mlops_in_the_readme_is_one_that_there_is() -> None:
    import typer

    from mlops.cli import app

    spans = re.findall(r"(?:^\$ |`)(mlops [a-z][^`\n]*)", readme(), re.MULTILINE)
    commands = {tuple(shlex.split(span)[1:]) for span in spans if "·" not in span}
    assert ("tune", "housing", "--trials", "50", "--budget", "10m") in commands
    assert len(commands) > 15
    for words in commands:
        command, rest = typer.main.get_command(app), list(words)
        while hasattr(command, "resolve_command"):
            context = command.make_context("mlops", [*rest], resilient_parsing=True)
            name, command, rest = command.resolve_command(context, rest)
            assert command is not None, words
        if rest:  # else it is the verb alone that is spoken of
            command.make_context(name, rest)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The files that git would clone, with the changes that are not committed yet."""
    listed = subprocess.run(
        ["git", "-C", REPOSITORY, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
        check=True,
    )
    target = tmp_path / "clone"
    for name in filter(None, listed.stdout.split("\0")):
        if (REPOSITORY / name).exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, target / name)
    return target


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_tour_prints_what_the_readme_says(clone: Path, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / ".curlrc").write_text("silent\n")
    if shutil.which("sqlite3") is None:
        (tools / "sqlite3").write_text(SQLITE.format(python=sys.executable))
        (tools / "sqlite3").chmod(0o755)
    port, mlflow_port = str(free_port()), str(free_port())
    environment = {
        "HOME": os.environ["HOME"],
        "PATH": os.pathsep.join(
            [str(clone / ".venv" / "bin"), f"{sys.base_prefix}/bin", os.environ["PATH"], str(tools)]
        ),
        "CURL_HOME": str(tools),
        "PORT": port,
        "MLFLOW_PORT": mlflow_port,
        **{k: v for k, v in os.environ.items() if k.startswith(("PIP_", "UV_", "SSL_"))},
    }

    def here(text: str) -> str:
        return text.replace("8000", port).replace("5000", mlflow_port)

    try:
        for command, expected in tour():
            started = time.monotonic()
            done = subprocess.run(
                ["bash", "-c", here(command)],
                cwd=clone,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=600,
                check=False,
            )
            took = time.monotonic() - started
            printed = "".join(
                f"{squeeze(line)}\n" for line in done.stdout.splitlines() if line.strip()
            )
            assert pattern([here(line) for line in expected]).fullmatch(printed), (
                f"$ {command}\nprinted\n{done.stdout}\nand the README says\n" + "\n".join(expected)
            )
            if command == "make up":
                loop = float(re.search(r"Up in ([\d.]+) s", printed).group(1))
                assert loop <= LONGEST_LOOP
                assert took <= LONGEST_FROM_CLONE
    finally:
        subprocess.run(["make", "down"], cwd=clone, env=environment, check=False)

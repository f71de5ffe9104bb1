"""Keep the documents true: `python tools/docs.py` writes docs/reference.md, `--check` compares.

Checked too: every relative link leads somewhere, and every dependency has its reason.
"""

from __future__ import annotations

import re
import sqlite3
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import typer
from typer.testing import CliRunner

from mlops.cli import app
from mlops.monitor.log import PredictionLog
from mlops.settings import Settings

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "docs" / "reference.md"
REASONS = ROOT / "docs" / "decisions" / "0002-dependencies.md"
INTRODUCTION = """# Reference

Written by `python tools/docs.py` from the code; `make check` fails when it is stale.
"""


def reference() -> str:
    """Return the reference: commands, settings and the log's tables, as the code has them."""
    return "\n".join([INTRODUCTION, _commands(), _settings(), _log_schema()])


def problems() -> list[str]:
    """Return what is wrong with the documents, one line each."""
    found = [] if REFERENCE.read_text() == reference() else [f"{_name(REFERENCE)} is stale"]
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    for document in documents:
        links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text())
        found += [
            f"{_name(document)} links to {link}, which is not there"
            for link in links
            if "://" not in link and not (document.parent / link).exists()
        ]
    reasons = REASONS.read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = project["dependency-groups"]
    for requirement in [*project["project"]["dependencies"], *groups["dev"], *groups["build"]]:
        name = re.split(r"[^\w-]", requirement)[0]
        if not re.search(rf"\b{re.escape(name)}\b", reasons):
            found.append(f"{name} has no reason in {_name(REASONS)}")
    return found


def _commands() -> str:
    runner = CliRunner(env={"COLUMNS": "96", "NO_COLOR": "1", "TERM": "dumb"})
    parts = ["## Commands\n"]
    for command in _verbs(typer.main.get_command(app)):
        text = runner.invoke(app, [*command.split(), "--help"], prog_name="mlops").output
        lines = "\n".join(line.rstrip() for line in text.strip().splitlines())
        parts.append(f"### mlops {command}\n\n```text\n{lines}\n```\n")
    return "\n".join(parts)


def _verbs(group: Any) -> list[str]:
    """Return all commands, those of a group after it."""
    found = []
    for name, command in group.commands.items():
        found.append(name)
        if hasattr(command, "commands"):
            found += [f"{name} {one}" for one in _verbs(command)]
    return found


def _settings() -> str:
    lines = ["## Settings\n", "| variable | default | meaning |", "|---|---|---|"]
    for field in Settings.model_fields.values():
        default = f"`{field.default}`" if str(field.default) else "unset"
        lines.append(f"| `{field.validation_alias}` | {default} | {field.description} |")
    return "\n".join([*lines, ""])


def _log_schema() -> str:
    with tempfile.TemporaryDirectory() as folder:
        log = PredictionLog(Path(folder), "housinglogs", "crash")
        log.close()
        with sqlite3.connect(log.path) as database:
            query = "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY rowid"
            statements = [row[0] for row in database.execute(query) if "sqlite_" not in row[0]]
        database.close()
    text = ";\n".join(statements)
    return f"## The prediction log\n\n`housinglogs/predictions.db`:\n\n```sql\n{text};\n```\n"


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def main() -> int:
    if "--check" not in sys.argv:
        REFERENCE.write_text(reference())
        return 0
    found = problems()
    for problem in found:
        print(problem, file=sys.stderr)
    if found:
        print("documents: run python tools/docs.py, and mend the rest", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

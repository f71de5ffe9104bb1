"""What a benchmark found: lines with a target each, and the page they are published on.

A line says what is measured and what is asked of it; a row says what was seen. Every line of a
section stands in its table in docs/benchmarks.md, between two marks that name the section.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
import platform
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
COLUMNS = ("what", "reference", "ours", "ratio", "target", "", "p50 ms", "p99 ms")


@dataclasses.dataclass(frozen=True, slots=True)
class Line:
    """What is measured. The ratio of a row is to be `least` or more, `most` or less; or is told."""

    what: str
    least: float | None = None
    most: float | None = None

    @property
    def target(self) -> str:
        if self.least is not None:
            return f"≥ {self.least:g}"
        return "" if self.most is None else f"≤ {self.most:g}"

    def verdict(self, ratio: float) -> str:
        if self.least is None and self.most is None:
            return ""
        met = (self.least is None or ratio >= self.least) and (
            self.most is None or ratio <= self.most
        )
        return "met" if met else "**missed**"


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """What was seen of a line; times in milliseconds, 0 for none."""

    line: Line
    reference: str
    ours: str
    ratio: float
    p50: float = 0.0
    p99: float = 0.0

    def cells(self) -> tuple[str, ...]:
        line = self.line
        times = (f"{self.p50:.2f}", f"{self.p99:.2f}") if self.p50 else ("", "")
        ratio = f"{self.ratio:.3g}"
        seen = (self.reference, self.ours, ratio, line.target, line.verdict(self.ratio))
        return (line.what, *seen, *times)


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """The rows of a run, and what else a reader must know of it, a sentence each."""

    rows: Sequence[Row]
    notes: Sequence[str] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Section:
    """A benchmark. `run` is given an empty folder, and the number of rows if it can take one."""

    name: str
    lines: Sequence[Line]
    run: Callable[[Path, int], Found]


def table(rows: Sequence[Row]) -> list[str]:
    """Return the lines of a table, as Markdown."""
    texts = [COLUMNS, ("---",) * len(COLUMNS), *(row.cells() for row in rows)]
    return ["| " + " | ".join(cells) + " |" for cells in texts]


def publish(section: Section, found: Found, command: str) -> None:
    """Put what was found into the page, in place of what was found before."""
    notes = [f"- {note}" for note in (measured_on(command), *found.notes)]
    between(PAGE, section.name, [*notes, "", *table(found.rows)])


def between(page: Path, name: str, lines: Sequence[str]) -> None:
    """Put lines between the marks of that name, in place of those that were there."""
    begin, end = marks(name)
    before, _, rest = page.read_text().partition(begin)
    _, _, after = rest.partition(end)
    page.write_text(before + "\n".join([begin, "", *lines, "", end]) + after)


def measured_on(command: str) -> str:
    """Say when, of which code, on what machine and by which command something was measured."""
    load = os.getloadavg()[2]
    return (
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, commit `{_commit()}`, "
        f"{platform.machine()} with {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"mean load of the last 15 minutes {load:.1f}{_niceness()}, `{command}`"
    )


def marks(name: str) -> tuple[str, str]:
    """Return the marks of a section: what lies between them is written by its command."""
    return f"<!-- {name} -->", f"<!-- end of {name} -->"


def _niceness() -> str:
    niceness = os.nice(0)
    return f", run with nice {niceness}" if niceness else ""


def _commit() -> str:
    words = ["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()

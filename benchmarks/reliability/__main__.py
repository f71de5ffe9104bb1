"""`make bench-reliability`: run lines of the score card and print one row for each.

    python -m benchmarks.reliability [--lines R1,R7] [--scale must|goal|N] [--minutes M]
                                     [--seed S] [--write]

A line that was not asked for, has no harness or found no time is "not measured". `--write` puts
the table into docs/reliability.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.reliability.lines import LINES, Line
from benchmarks.reliability.world import ROOT, Found, World

PAGE = ROOT / "docs" / "reliability.md"
COLUMNS = ("line", "what", "recipe", "must", "goal", "found", "verdict", "size", "seconds")
NOT_MEASURED = "not measured"
REACHED = "reaches the goal"
SHORTEST = 600.0
"""Seconds that tests may take to run once."""
SECONDS_TO_END = 60.0
MARK = "<!-- what follows is written by: make bench-reliability ARGS=--write -->"


class Row(NamedTuple):
    """What a run of a line gave. `found` is None if it was not measured.

    `whole` is whether it was as long as the goal asks for.
    """

    found: Found | None
    seconds: float
    whole: bool = False


def cells(line: Line, row: Row | None) -> tuple[str, ...]:
    """Return the texts of a line's columns."""
    known = (line.name, line.what, line.recipe, line.must, line.goal)
    if row is None or row.found is None:
        return (*known, "", NOT_MEASURED, "", f"{row.seconds:.0f}" if row else "")
    verdict = "**red**"
    if row.found.holds:
        verdict = REACHED if row.found.goal and row.whole else "holds"
    return (*known, row.found.says, verdict, row.found.size, f"{row.seconds:.0f}")


def as_row(texts: Sequence[str]) -> str:
    return "| " + " | ".join(text.replace("|", "\\|").replace("\n", " ") for text in texts) + " |"


def table(rows: Mapping[str, Row]) -> list[str]:
    """Return the lines of the published table, every line of the score card in it."""
    head = [as_row(COLUMNS), "|" + "---|" * len(COLUMNS)]
    return head + [as_row(cells(line, rows.get(line.name))) for line in LINES]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and print; 1 if a line is red."""
    asked = _arguments(arguments)
    lines = [line for line in LINES if not asked.lines or line.name in asked.lines]
    print(as_row(COLUMNS), flush=True)
    rows: dict[str, Row] = {}
    with tempfile.TemporaryDirectory(prefix="reliability-") as folder:
        trained = asked.trained or Path(folder) / "trained"
        end: float | None = None
        for number, line in enumerate(lines):
            if end is None:  # training is not what is measured
                _train(trained)
                end = time.monotonic() + 60 * asked.minutes
            share = max(0.0, end - time.monotonic()) / (len(lines) - number)
            rows[line.name] = run(line, trained, asked.scale, asked.seed, share)
            print(as_row(cells(line, rows[line.name])), flush=True)
    if asked.write:
        told = f"--lines {','.join(asked.lines)} " if asked.lines else ""
        told += f"--scale {asked.scale} --minutes {asked.minutes:g} --seed {asked.seed}"
        PAGE.write_text(page(rows, f'ARGS="{told}"'))
    return int(any(row.found is not None and not row.found.holds for row in rows.values()))


def run(line: Line, trained: Path, scale: str, seed: int, seconds: float) -> Row:
    """Measure one line within some seconds: what has rounds ends with the round it is in."""
    size = {"must": line.sizes[0], "goal": line.sizes[1]}.get(scale) or int(scale)
    started = time.monotonic()
    world = World(trained, seed=seed, deadline=started + seconds)
    try:
        found = None
        if line.measure is not None:
            with world:
                found = line.measure(world, size)
        if line.tests:
            found = _both(found, _by_tests(line.tests, 1 if found else size, world))
    except (AssertionError, OSError, ValueError, subprocess.TimeoutExpired) as error:
        # It could not go on: that is red.
        print(error, file=sys.stderr)
        found = Found(f"{type(error).__name__}: {error}"[:200], False, f"of {size}")
    whole = size >= line.sizes[1] and not world.out_of_time
    return Row(found, time.monotonic() - started, whole)


def _both(measured: Found | None, tested: Found | None) -> Found | None:
    """Return what was measured, and what tests say beside it."""
    if measured is None or tested is None:
        return measured or tested
    return dataclasses.replace(
        measured,
        says=f"{measured.says}; {tested.says}",
        holds=measured.holds and tested.holds,
    )


def _by_tests(tests: Sequence[str], times: int, world: World) -> Found | None:
    """Run tests so many times, or as often as there is time for."""
    passed = done = 0
    failures: list[str] = []
    names = [f"tests/{test}" for test in tests]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=no", "-rfE"]
    for _ in world.rounds(times):
        ended = _pytest([*command, f"--trained={world.trained}", *names], SHORTEST)
        if ended is None:
            world.out_of_time = True
            break
        says, code = ended
        passed += sum(int(n) for n in re.findall(r"(\d+) passed", says))
        failures += re.findall(r"^(?:FAILED|ERROR) (?:tests/)?(\S+)", says, re.MULTILINE)
        if code not in {0, 1}:
            failures.append(says.strip().rpartition("\n")[2] or "pytest could not run")
        done += 1
    if not passed and not failures:
        return None
    says = f"{passed} tests passed" + "".join(f"; failed: {name}" for name in failures[:5])
    return Found(says, not failures, f"{done} runs of them")


def _pytest(command: Sequence[str], seconds: float) -> tuple[str, int] | None:
    """Return what pytest printed and its exit code; None if it was out of time."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        says, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)  # so that it ends the servers that it started
        try:
            process.communicate(timeout=SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        return None
    return says, process.returncode


def page(rows: Mapping[str, Row], words: str) -> str:
    """Return docs/reliability.md with the results of a run in it.

    A run of some lines replaces these, and is told of beside the runs that the others are from.
    """
    introduction, _, published = PAGE.read_text().partition(MARK)
    some = len(rows) < len(LINES)
    told = [line for line in published.splitlines() if line.startswith("- ")] if some else []
    lines = table(rows)
    if some:
        known = {row.split()[1]: row for row in published.splitlines() if row.startswith("| R")}
        lines[2:] = [
            row if (name := row.split()[1]) in rows else known.get(name, row) for row in lines[2:]
        ]
    today = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}"
    told.append(
        f"- {', '.join(rows) if some else 'All lines'}: {today}, commit `{_commit()}`, "
        f"{platform.machine()} with {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"`make bench-reliability {words}`"
    )
    return introduction + "\n".join([MARK, "", *_still_true(told), "", *lines, ""])


def _still_true(told: Sequence[str]) -> list[str]:
    """Leave out the runs of which every line was run again since."""
    since: set[str] = set()
    kept = []
    for run in reversed(told):
        names = set(run.removeprefix("- ").partition(":")[0].split(", "))
        if "All lines" in names:
            names = {line.name for line in LINES}
        if names - since:
            kept.append(run)
        since |= names
    return kept[::-1]


def _commit() -> str:
    words = ["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()


def _train(home: Path) -> None:
    from conftest import train_project

    if not (home / "done").exists():
        print("training both use cases, to have something to serve ...", file=sys.stderr)
        train_project(home)


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("make bench-reliability")
    parser.add_argument("--lines", type=_names, default=(), help="R1,R7 (all, unless told)")
    parser.add_argument("--scale", default="must", help="must, goal, or a number (must)")
    parser.add_argument("--minutes", type=float, default=15, help="for all lines together (15)")
    parser.add_argument("--seed", type=int, default=1, help="of what is left to chance (1)")
    parser.add_argument("--write", action="store_true", help="publish in docs/reliability.md")
    parser.add_argument("--trained", type=Path, help="a folder to keep the trained project in")
    asked = parser.parse_args(arguments)
    if asked.scale not in {"must", "goal"} and not asked.scale.isdigit():
        parser.error("--scale is must, goal, or a number")
    return asked


def _names(text: str) -> tuple[str, ...]:
    names = tuple(text.upper().split(","))
    unknown = set(names) - {line.name for line in LINES}
    if unknown:
        raise argparse.ArgumentTypeError(f"no line {', '.join(sorted(unknown))}")
    return names


if __name__ == "__main__":
    sys.exit(main())

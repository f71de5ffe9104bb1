"""`make bench`: speed and accuracy, each figure beside its target.

    python -m benchmarks [loop] [exactness] [explain] [serving] [growth] [peers] [drift]
                         [sequential] [bad-models] [shadow] [intervals] [--rows N] [--write]

Without names it runs the first four. `--write` puts what was found into docs/benchmarks.md, of
`drift` into docs/drift.md, of `bad-models` into docs/improving.md, of `intervals` into
docs/intervals.md; `sequential` writes
docs/experiments.md, and `explain` prints.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks import (
    drift,
    exactness,
    explain,
    growth,
    intervals,
    peers,
    retraining,
    sequential,
    serving,
    shadow,
    whole_loop,
)
from benchmarks.reliability import bad_models
from benchmarks.results import Section, publish, table

SECTIONS = (
    Section("loop", whole_loop.LINES, whole_loop.run),
    Section("exactness", exactness.LINES, exactness.run),
    Section("serving", serving.LINES, serving.run),
    Section("growth", growth.LINES, growth.run),
    Section("retraining", retraining.LINES, retraining.run),
    Section("shadow", shadow.LINES, shadow.run),
    Section("peers", peers.LINES, peers.run),
)
PLAIN = ("loop", "exactness", "explain", "serving")


def _explain(home: Path, write: bool) -> None:
    whole_loop.up(home)
    explain.run(home)


def _sequential(_: Path, __: bool) -> None:
    sequential.run()


OTHERS: Mapping[str, Callable[[Path, bool], None]] = {
    "explain": _explain,
    "drift": drift.run,
    "intervals": intervals.run,
    "sequential": _sequential,
    "bad-models": bad_models.run,
}
"""Those that publish on no page, or on one of their own."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, print, and publish if asked to."""
    asked = arguments_of(sys.argv[1:] if arguments is None else arguments)
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    names = asked.sections or PLAIN
    for name, measure in OTHERS.items():
        if name in names:
            with tempfile.TemporaryDirectory(prefix=f"bench-{name}-") as folder:
                measure(Path(folder), asked.write)
    for section in SECTIONS:
        if section.name not in names:
            continue
        print(f"\n{section.name}", flush=True)
        with tempfile.TemporaryDirectory(prefix=f"bench-{section.name}-") as folder:
            found = section.run(Path(folder), asked.rows)
        print("\n".join([*found.notes, *table(found.rows)]), flush=True)
        if asked.write:
            publish(section, found, _command(section.name, asked))


def arguments_of(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("make bench", usage='make bench ARGS="serving --write"')
    parser.add_argument("sections", nargs="*", type=_name, help="loop, exactness, serving, ...")
    parser.add_argument("--rows", type=int, default=1_000_000, help="that growth logs (10^6)")
    parser.add_argument("--write", action="store_true", help="publish in docs/benchmarks.md")
    return parser.parse_args(arguments)


def _name(text: str) -> str:
    names = [*(section.name for section in SECTIONS), *OTHERS]
    if text not in names:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(names)}")
    return text


def _command(name: str, asked: argparse.Namespace) -> str:
    if name == "peers":
        return "make bench-peers ARGS=--write"
    rows = f" --rows {asked.rows}" if name == "growth" else ""
    return f'make bench ARGS="{name}{rows} --write"'


if __name__ == "__main__":
    main()

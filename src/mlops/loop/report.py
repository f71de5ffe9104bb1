"""How the loop tells of its progress: lines that stay, and a bar while something takes long.

On a terminal the bar moves and then leaves its last line; elsewhere each finished step is one
plain line. `Silent` is for the Python API.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

Advance = Callable[[str], None]
"""Called before each step, with the name of what is now being worked on."""


class Report(Protocol):
    def say(self, line: str) -> None: ...

    def steps(self, title: str, total: int | None) -> contextlib.AbstractContextManager[Advance]:
        """Tell of steps as they are made; `total` is None where nobody knows how many there are."""
        ...


class Silent:
    """Says nothing."""

    def say(self, line: str) -> None:
        pass

    @contextlib.contextmanager
    def steps(self, title: str, total: int | None) -> Iterator[Advance]:
        yield lambda name: None


class OnConsole:
    """Tells a person, or a log of a build."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def say(self, line: str) -> None:
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    @contextlib.contextmanager
    def steps(self, title: str, total: int | None) -> Iterator[Advance]:
        if not self.console.is_terminal:
            self.say(f"{title} …")
            yield lambda name: None
            return
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[now]}"),
            console=self.console,
            transient=True,
        ) as progress:
            task = progress.add_task(title, total=total, now="")
            started = False

            def advance(name: str) -> None:
                nonlocal started
                progress.update(task, advance=1 if started else 0, now=name)
                started = True

            yield advance

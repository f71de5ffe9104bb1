"""Tell the story: chapter after chapter, until the end or the first that does not come true."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from mlops import clock
from mlops.build.data import write_whole
from mlops.errors import MlopsError, UsageError
from mlops.loop.report import Report, Silent
from mlops.loop.story.chapters import CHAPTERS
from mlops.loop.story.page import page
from mlops.loop.story.tale import DAY, LOOK_EVERY, Happened, Story, Told
from mlops.loop.story.world import COMMAND, World
from mlops.settings import Settings
from mlops.usecases import find

USE_CASE = "housing"
REPORT = Path("story.html")
PACE = {
    "DRIFT_EVERY": f"{LOOK_EVERY / 3600:g}h",
    "DRIFT_BUDGET": "1/365d",
    "ALERT_HOLD_SECONDS": "10",
    "RETRAIN_WINDOW_DAYS": "21",
    "RETRAIN_NEW_ROW_WEIGHT": "20",
}
"""Settings of the story's server: a false alarm a year, for it must not come in these weeks."""


def story(
    *,
    days: int = 42,
    a_day: int = 150,
    seed: int = 7,
    to: Path = REPORT,
    folder: Path | None = None,
    report: Report | None = None,
    command: Sequence[str] = COMMAND,
    until: str | None = None,
) -> Told:
    """Let months of a service's life pass; assert each step; write what was seen as HTML to `to`.

    `days` quiet days come first, of about `a_day` requests each. It takes place in a temporary
    folder, or in `folder`, which stays; a model that is champion there already is not trained
    again. `command` runs other verbs than the real ones, and `until` is the last chapter: for
    tests, which break one part and expect its chapter to fail.

    Raises `UsageError` for too few days, or a chapter that there is not.
    """
    if days < 21:
        raise UsageError(f"{days} quiet days are too few for late truths", "give at least 21")
    if until is not None and until not in CHAPTERS:
        raise UsageError(f"there is no chapter {until!r}", f"one of {', '.join(CHAPTERS)}")
    report = report or Silent()
    names = list(CHAPTERS)
    names = names[: names.index(until) + 1] if until else names
    started = time.perf_counter()
    begins = (clock.unix() // DAY + 1) * DAY
    happened: list[Happened] = []
    failed = why = None
    with _place(folder) as home:
        settings = _settings(home)
        world = World(USE_CASE, home, begins, command, **PACE)
        tale = Story(find(USE_CASE), settings, world, days, a_day, seed)
        try:
            with report.steps("story", len(names)) as advance:
                for name in names:
                    advance(name)
                    chapter = time.perf_counter()
                    try:
                        says = CHAPTERS[name](tale)
                    except (MlopsError, OSError) as error:
                        failed, why = (
                            name,
                            error.message if isinstance(error, MlopsError) else str(error),
                        )
                        report.say(f"✗ {name}: {why}")
                        break
                    seconds = time.perf_counter() - chapter
                    happened.append(Happened(name, CHAPTERS[name].__doc__ or "", says, seconds))
                    report.say(f"✓ {name}: {says}")
        finally:
            world.close()
        told = Told(
            tuple(happened),
            failed,
            why,
            time.perf_counter() - started,
            (world.now - begins) / DAY,
            len(tale.answered),
            str(to),
        )
    to.parent.mkdir(parents=True, exist_ok=True)
    write_whole(to, lambda file: file.write_text(page(told, tale, names)))
    return told


@contextlib.contextmanager
def _place(folder: Path | None) -> Iterator[Path]:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder.resolve()
        return
    made = Path(tempfile.mkdtemp(prefix="mlops-story-"))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _settings(home: Path) -> Settings:
    """Return the settings of a story, whatever the environment says: defaults, in its folder."""
    defaults = {
        str(field.validation_alias): field.default for field in Settings.model_fields.values()
    }
    return Settings(**{**defaults, "MLOPS_HOME": home})

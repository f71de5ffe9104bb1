"""The chapters of the story, in order."""

from __future__ import annotations

from collections.abc import Callable

from mlops.loop.story import improved, noticed
from mlops.loop.story.tale import Story

CHAPTERS: dict[str, Callable[[Story], str]] = {
    "train": noticed.trained,
    "serve": noticed.served,
    "quiet weeks": noticed.quiet,
    "late truths": noticed.late_truths,
    "drift": noticed.drifted,
    "quality": noticed.worse,
    "error burst": noticed.burst,
    "kill -9": noticed.killed,
    "retrain": improved.retrained,
    "gates": improved.gated,
    "shadow": improved.shadowed,
    "A/B": improved.split_up,
    "promotion": improved.promoted,
    "poisoned model": improved.poisoned,
    "rollback": improved.rolled_back,
}

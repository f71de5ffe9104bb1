"""The whole story comes true; and where one part is broken, the chapter that needs it fails."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from mlops.errors import UsageError
from mlops.loop.story import chapters, noticed, tale
from mlops.loop.story.tell import story
from mlops.loop.story.traffic import PEAK_HOUR, USERS, Traffic

BROKEN = Path(__file__).with_name("broken.py")
CHAPTER_OF = {
    "answers": "serve",
    "budget": "quiet weeks",
    "truths": "late truths",
    "drift": "drift",
    "estimate": "quality",
    "alerts": "error burst",
    "counts": "kill -9",
    "reason": "retrain",
    "gates": "gates",
    "shadow": "shadow",
    "split": "A/B",
    "verdict": "promotion",
    "checks": "poisoned model",
    "guard": "rollback",
}


def traffic(seed: int = 1, a_day: int = 2_000) -> Traffic:
    X = np.arange(20.0).reshape(10, 2)
    return Traffic(("a", "b"), X, X.sum(axis=1), a_day=a_day, seed=seed)


def test_one_seed_asks_the_same_and_another_does_not():
    first, second, other = (list(traffic(seed).hour(PEAK_HOUR)) for seed in (1, 1, 2))
    assert first == second != other


def test_most_ask_in_the_evening_few_users_ask_much_and_truths_are_late():
    one = traffic()
    day = [list(one.hour(hour)) for hour in range(24)]
    assert max(range(24), key=lambda hour: len(day[hour])) in range(PEAK_HOUR - 3, PEAK_HOUR + 4)
    asks = [ask for hour in day for ask in hour]
    assert sum(ask.user == "user-0" for ask in asks) > len(asks) / 20
    assert len({ask.user for ask in asks}) > USERS / 3
    assert all(1 <= ask.days_to_know <= 14 for ask in asks)
    assert all(ask.actual == ask.row["a"] + ask.row["b"] for ask in asks)


def test_what_has_become_of_the_world_reaches_every_request():
    one = traffic()
    changed = list(one.hour(PEAK_HOUR, lambda row, actual: ({**row, "a": -1.0}, 2 * actual)))
    assert changed
    assert all(ask.row["a"] == -1 for ask in changed)


def test_too_few_days_and_unknown_chapters_are_refused_by_name(tmp_path: Path):
    with pytest.raises(UsageError, match="3 quiet days are too few"):
        story(days=3, folder=tmp_path / "story")
    with pytest.raises(UsageError, match="no chapter 'war'"):
        story(until="war", folder=tmp_path / "story")
    assert not (tmp_path / "story").exists()


@pytest.mark.slow
def test_the_story_comes_true_and_is_written_down(home: Path, tmp_path: Path):
    told = story(days=21, folder=home, to=tmp_path / "story.html")
    assert (told.failed, told.why) == (None, None)
    assert [one.name for one in told.chapters] == list(chapters.CHAPTERS)
    assert told.simulated_days > 21
    page = (tmp_path / "story.html").read_text()
    for one in told.chapters:
        assert one.name in page
    assert page.count("<svg") == 2
    assert "http" not in page.replace("http-equiv", "")


@pytest.mark.slow
@pytest.mark.parametrize("part", CHAPTER_OF)
def test_a_broken_part_fails_the_chapter_that_names_it(
    part: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tale, "PATIENCE", 10.0)
    chapter = CHAPTER_OF[part]
    command = [sys.executable, str(BROKEN), part]
    report = tmp_path / "story.html"
    told = story(days=21, folder=home, to=report, command=command, until=chapter)
    assert told.failed == chapter, told.why
    assert told.why
    assert f"✗ {chapter}" in report.read_text()


def test_without_a_champion_the_first_chapter_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(noticed, "train", lambda *_, **__: None)
    monkeypatch.setattr(noticed, "promote", lambda *_, **__: None)
    told = story(folder=tmp_path / "story", to=tmp_path / "story.html")
    assert told.failed == "train"
    assert "nobody is champion" in str(told.why)

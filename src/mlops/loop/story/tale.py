"""What is known while the story goes on, and the ways in which days pass and things are seen."""

from __future__ import annotations

import dataclasses
import heapq
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from mlops import clock
from mlops.build.data import Split
from mlops.errors import MlopsError
from mlops.improve.ledger import Ledger
from mlops.loop.story.traffic import Change, Traffic
from mlops.loop.story.world import Answered, World
from mlops.package.bundle import Bundle, open_bundle
from mlops.settings import Settings
from mlops.usecase import UseCase

DAY, HOUR = 86_400.0, 3_600.0
LOOK_EVERY = 6 * HOUR
CANDIDATE = "GradientBoosting"
PATIENCE = 60.0
"""Seconds of the real clock within which the server must have noticed what the story did."""


class UntrueError(MlopsError):
    """Something that the story promised was not seen."""


class Happened(NamedTuple):
    """A chapter that came true."""

    name: str
    title: str
    says: str
    seconds: float


class Day(NamedTuple):
    """What had been seen by the end of a day."""

    at: float
    asked: int
    told: int
    drifted: tuple[str, ...]
    """Columns that drift was alarmed of."""
    by: dict[int, int]
    """How many answers of this day each version gave."""


class Told(NamedTuple):
    """How it went. `failed` names the chapter that did not come true, and `why`."""

    chapters: tuple[Happened, ...]
    failed: str | None
    why: str | None
    seconds: float
    simulated_days: float
    predictions: int
    report: str


@dataclasses.dataclass
class Story:
    """What is known while the story goes on. Times are unix seconds of its own clock."""

    use_case: UseCase
    settings: Settings
    world: World
    quiet_days: int
    a_day: int
    seed: int
    parts: Split | None = None
    traffic: Traffic | None = None
    answered: list[Answered] = dataclasses.field(default_factory=list)
    refused: int = 0
    late: list[tuple[float, str, float]] = dataclasses.field(default_factory=list)
    """A heap of truths that are not known yet: when they will be, of which prediction, which."""
    told: int = 0
    days: list[Day] = dataclasses.field(default_factory=list)
    series: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    """Quality by day, as the server tells of it in the end."""
    champion: int = 0
    challenger: int = 0
    """Versions: the one that answers, and the one that is to."""

    def require(self, holds: object, says: str) -> None:
        if not holds:
            raise UntrueError(says, "see the report and the server's log in the story's folder")

    def see(self, what: str, look: Callable[[], Any]) -> Any:
        """Return what `look` finds, when it finds it: servers notice within their own time."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if found := look():
                return found
            time.sleep(0.05)
        raise UntrueError(f"not seen within {PATIENCE:.0f} s: {what}", "see the server's log")

    def get(self, path: str) -> Any:
        status, body = self.world.get(path)
        self.require(status == 200, f"GET {path} was answered with {status}: {body}")
        return body

    def do(self, *words: str) -> Any:
        """Run a verb that has to succeed; return what it says."""
        code, found = self.world.run(*words)
        self.require(code == 0, f"mlops {' '.join(words)} ended with {code}: {found}")
        return found

    def live(self, days: int, change: Change | None = None) -> None:
        """Let days pass: users ask, truths of earlier days arrive, monitors look."""
        for _ in range(days):
            begins = self.world.now
            for hour in range(24):
                self.world.pass_to(begins + hour * HOUR + 1)
                self._ask(hour, change)
            self.world.pass_to(begins + DAY)
            self._tell_truths()
            self._end_day()

    def _ask(self, hour: int, change: Change | None) -> None:
        assert self.traffic is not None
        for one in self.world.ask(self.traffic.hour(hour, change)):
            self.require(one.status == 200, f"a request was answered with {one.status}: {one.body}")
            self.answered.append(one)
            known = one.at + one.ask.days_to_know * DAY
            heapq.heappush(self.late, (known, one.body["prediction_id"], one.ask.actual))

    def _tell_truths(self) -> None:
        """Send what has become known by now: late, and not in the order of the predictions."""
        known = []
        while self.late and self.late[0][0] <= self.world.now:
            known.append(heapq.heappop(self.late))
        if not known:
            return
        items = [{"prediction_id": one, "actual": actual} for _, one, actual in known]
        status, body = self.world.post("/feedback", {"items": items})
        self.require(
            status == 200 and body["attached"] == len(items),
            f"{len(items)} truths were sent, and the answer was {status}: {body}",
        )
        self.told += len(items)

    def _end_day(self) -> None:
        drift = self.see("that drift was looked for today", self._looked)
        alarms = [one["subject"] for one in drift["findings"] if one["verdict"] == "alarm"]
        today = self.answered[self.days[-1].asked if self.days else 0 :]
        by = Counter(one.body["model_version"] for one in today)
        self.days.append(Day(self.world.now, len(self.answered), self.told, tuple(alarms), by))

    def minutes_until(self, what: str, look: Callable[[], Any]) -> Any:
        """Let minutes pass at their leisure until `look` finds what an alert should have told."""

        def after_some_seconds() -> Any:
            self.world.pass_to(self.world.now + 10)
            return look()

        return self.see(what, after_some_seconds)

    def _looked(self) -> Any:
        found = self.get("/drift")
        last = found["last_look"]
        then = clock.seconds_of(last["at"]) if last else 0.0
        return found if then >= self.world.now - LOOK_EVERY else None


def about(heard: Sequence[dict[str, Any]], what: str, event: str = "") -> dict[str, Any] | None:
    for one in heard:
        if what in one["title"].lower() and one["title"].startswith("Ended") == (event == "ended"):
            return one
    return None


def champion(story: Story) -> Bundle | None:
    with Ledger(story.settings.state_database) as ledger:
        version = ledger.champion(story.use_case.name)
    return open_bundle(story.settings.bundles / version.bundle) if version else None

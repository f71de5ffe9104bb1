"""Watching: what a server does about drift beside answering, in a thread of its own.

Each second it counts the rows that were logged since (`windows.py`), and as often as DRIFT_EVERY
says it looks at the last DRIFT_WINDOW and keeps what it found in the log. Of several processes one
does it: who holds the lock of a file, which the kernel gives back when its holder dies.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

import apsw
import numpy as np

from mlops import clock
from mlops.errors import BundleError, DataError, LogUnavailableError
from mlops.loop.alone import Lock
from mlops.monitor.drift import columns
from mlops.monitor.drift.assessment import KIND
from mlops.monitor.drift.budget import Budget, parse_budget, parse_span, span
from mlops.monitor.drift.profile import Counts, Profile
from mlops.monitor.drift.report import Drift, assessed
from mlops.monitor.drift.windows import PAGE_ROWS, Read, Windows
from mlops.monitor.findings import of_version
from mlops.monitor.log import PredictionLog
from mlops.package.bundle import verify
from mlops.settings import Settings
from mlops.usecase import UseCase

log = logging.getLogger("uvicorn.error")

SECONDS_BETWEEN_STEPS = 1.0
PAGES_PER_STEP = 4
"""So that a log of millions of rows that were never counted leaves the processor to requests."""
REST = 0.002
"""Seconds between two parts of a page: a request meets one part of it, not all."""
SEALED = "drift"
"""Under this name each column of the reference profile has what drift is told by."""


class Profiles:
    """The profiles of bundles, opened and verified once each."""

    def __init__(self, use_case: UseCase, settings: Settings) -> None:
        self._use_case = use_case
        self._settings = settings
        self._known: dict[str, Profile | None] = {}

    def find(self, bundle: str) -> Profile | None:
        """Return the profile of a bundle, None if it was sealed without one.

        Raises `BundleError` if it cannot be opened.
        """
        if bundle not in self._known:
            contents = verify(self._settings.bundles / bundle, key=self._settings.signing_key)
            self._known[bundle] = sealed_profile(json.loads(contents["reference.json"]))
        return self._known[bundle]

    def counting(self, bundle: str) -> tuple[Profile, Read] | None:
        """Return what `Windows.follow` asks for; None for a bundle that cannot be opened, too."""
        try:
            profile = self.find(bundle)
        except (BundleError, DataError):
            return None
        return None if profile is None else (profile, self._read_for(profile))

    def _read_for(self, profile: Profile) -> Read:
        def read(inputs: Sequence[str], predictions: Sequence[Any]) -> np.ndarray:
            return columns.of_logged(self._use_case, profile.names, inputs, predictions)

        return read


def sealed_profile(reference: dict[str, Any]) -> Profile | None:
    """Return what drift is told by; None in a bundle that was sealed before that was known."""
    documents = {name: one[SEALED] for name, one in reference.items() if SEALED in one}
    return Profile.of_documents(documents) if documents else None


def budget_of(settings: Settings, text: str | None = None, every: str | None = None) -> Budget:
    """Return the budget of false alarms. Raises `UsageError`."""
    return parse_budget(text or settings.drift_budget, parse_span(every or settings.drift_every))


def look(
    use_case: UseCase,
    version: tuple[int, str] | None,
    windows: Windows,
    profiles: Profiles,
    budget: Budget,
    seconds: int,
) -> Drift:
    """Look at the last `seconds` of what a version answered, as far as it has been counted.

    `version` is its number and its bundle's name. Raises `apsw.Error`.
    """
    number, bundle = version or (None, None)
    found: tuple[Profile, Counts] | str
    try:
        profile = profiles.find(bundle) if bundle else None
    except (BundleError, DataError) as error:
        found = str(error)
    else:
        if bundle is None:
            found = f"{use_case.name} has no champion yet: make one with: mlops up {use_case.name}"
        elif profile is None:
            found = sealed_before(use_case, number)
        else:
            counts = windows.read(bundle, profile, clock.unix() - seconds)
            found = profile, counts
            if not counts.rows:
                found = f"version {number} has answered nothing in the last {span(seconds)}"
    return assessed(
        use_case,
        number,
        bundle,
        window=f"the last {span(seconds)}",
        at=clock.stamp(),
        budget=budget,
        found=found,
    )


def sealed_before(use_case: UseCase, number: int | None) -> str:
    """Return why nothing can be told of a version whose bundle has no profile to count by."""
    return (
        f"version {number} was sealed before drift was told by counts: train again with: "
        f"mlops train {use_case.name}"
    )


class Watcher:
    """Watches one use case. `step` is for one thread, `report` for any."""

    def __init__(
        self,
        use_case: UseCase,
        prediction_log: PredictionLog,
        champion: Callable[[], tuple[int, str] | None],
        settings: Settings,
    ) -> None:
        """`champion` gives the version that answers, and its bundle's name.

        Raises `UsageError` for a budget or a stretch of time that is none.
        """
        self.use_case = use_case
        self._log = prediction_log
        self._champion = champion
        self._budget = budget_of(settings)
        self._seconds = parse_span(settings.drift_window)
        self._profiles = Profiles(use_case, settings)
        self._windows: Windows | None = None
        self._leads = Lock(prediction_log.path.with_name("drift.lock"))
        self._due = 0.0
        self._said = ""

    def report(self) -> dict[str, Any]:
        """Look now, and return it as JSON, with what the last look on schedule said.

        Raises `LogUnavailableError`.
        """
        try:
            with Windows(self._log.path, self.use_case.log_name) as windows:
                found = self._look(windows)
        except apsw.Error as error:
            raise LogUnavailableError("what was counted of drift cannot be read") from error
        last = next(iter(self._log.findings(KIND)), None)
        return {**found.as_json(), "last_look": last._asdict() if last else None}

    def step(self) -> None:
        """Count what is new, and look if it is time to. Says in the server's log what fails."""
        try:
            if self._leads.taken():
                self._step()
        except Exception as error:
            # The disk may be full, or the log away for a moment; answering goes on, so does this.
            if str(error) != self._said:
                log.exception("%s: drift could not be watched", self.use_case.name)
            self._said = str(error)
        else:
            self._said = ""

    def close(self) -> None:
        """Let go of the log. What is not counted yet, whoever comes next counts."""
        if self._windows is not None:
            self._windows.close()
        self._leads.give_back()

    def _step(self) -> None:
        if self._windows is None:
            self._windows = Windows(self._log.path, self.use_case.log_name)
        for _ in range(PAGES_PER_STEP):
            if self._windows.follow(self._profiles.counting, rest=REST) < PAGE_ROWS:
                break
        else:
            return  # there is more to count first
        now = clock.unix()
        self._due = self._due or self._first_due(now)
        if now < self._due:
            return
        found = self._look(self._windows)
        if not found.rows:  # nothing was tested: it spends nothing, and is said once
            if [one.says for one in self._log.findings(KIND)] != [found.says]:
                self._log.record_findings(of_version(found.version, found.findings))
            return
        self._log.record_findings(of_version(found.version, found.findings))
        self._due = now + self._budget.every
        if found.verdict == "alarm":
            log.warning("%s: drift: %s", self.use_case.name, found.says)

    def _first_due(self, now: float) -> float:
        """Return when to look first: of an earlier life, or another process, looks count too."""
        for last in self._log.findings(KIND)[:1]:
            if last.numbers["rows"]:
                then = clock.seconds_of(last.at)
                return then + self._budget.every
        return now

    def _look(self, windows: Windows) -> Drift:
        return look(
            self.use_case,
            self._champion(),
            windows,
            self._profiles,
            self._budget,
            self._seconds,
        )


def keep_watching(watchers: Sequence[Watcher]) -> Callable[[], None]:
    """Let a thread watch from now on; return what ends that, and waits for the step under way."""
    ending = threading.Event()

    def watch() -> None:
        while not ending.wait(clock.pause(SECONDS_BETWEEN_STEPS)):
            for watcher in watchers:
                watcher.step()
        for watcher in watchers:
            watcher.close()

    thread = threading.Thread(target=watch, name="drift", daemon=True)
    thread.start()

    def stop() -> None:
        ending.set()
        thread.join()

    return stop

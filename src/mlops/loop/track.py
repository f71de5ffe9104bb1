"""Track: tell the tracking store of a training, now or later.

Training does not depend on the store. What cannot be told is kept, each run in a folder of its own:

    models/pending/<attempt>/
      note.json      use case, candidate, time; run, bundle and version as far as they exist
      run.joblib     what `Tracking.log_run` is to be told; not there if the run was tracked

`track` tells it later. Every step is asked for before it is made (a run carries its attempt as a
tag, a version its bundle), so that a crash between two steps doubles neither, and a folder is
removed only when all of it is in the store. The version has its number in the state database from
the start, and can be champion before the registry hears of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import joblib

from mlops import clock
from mlops.build.data import write_whole
from mlops.errors import TrackingError
from mlops.improve.ledger import UNTRACKED, Ledger, Version
from mlops.loop.report import Report, Silent
from mlops.settings import Settings, read_settings
from mlops.track.registry import holds, mirror_champion, register
from mlops.track.runs import Run, Tracking, commit, user
from mlops.usecase import UseCase
from mlops.usecases import find

DONE = ".done-"


@dataclasses.dataclass(frozen=True, slots=True)
class Pending:
    """A run that waits to be tracked. `run_id` is empty until it is in the store."""

    attempt: str
    use_case: str
    candidate: str
    since_utc: str
    run_id: str = ""
    model_uri: str = ""
    bundle: str = ""
    version: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Why:
    """Why a version is registered, for the ledger: the reason, its rule, what it is made of."""

    reason: str
    rule: str
    made_of: dict[str, Any]

    def register(self, ledger: Ledger, version: Version) -> None:
        evidence = {"run_id": version.run_id, "bundle": version.bundle, **self.made_of}
        ledger.register(version, reason=self.reason, evidence=[evidence], rule=self.rule, by=user())


class Recorder:
    """Tells the store of a training as it goes, and keeps what it cannot tell.

    What waits from earlier trainings is tracked first, so that versions keep their order. The
    first failure is said in one line, and the store is not tried again: a training waits for it
    once, not at every candidate.
    """

    def __init__(self, settings: Settings, report: Report) -> None:
        self._settings = settings
        self._report = report
        self._tracking = tracking_of(settings)
        self._away = False
        with self._or_go_on():
            self._tracking.connect()
            track(settings=settings, report=report)

    def log_run(self, **stated: Any) -> Run:
        """Log a run, or keep what `Tracking.log_run` would have been told.

        One that is tagged with an attempt that was made before, and died, is logged once.
        """
        tags = {"attempt": uuid.uuid4().hex, **stated.pop("tags")}
        attempt = tags["attempt"]
        started_ms = int(time.time() * 1000)
        if not self._away:
            with self._or_go_on():
                return self._tracking.finished(
                    stated["experiment"], attempt
                ) or self._tracking.log_run(**stated, tags=tags)
        if (_folder(self._settings) / attempt).exists():
            return Run(UNTRACKED + attempt, "", started_ms)
        # What will be another one's when it is tracked.
        tags |= {
            "mlflow.user": user(),
            "mlflow.source.git.commit": commit(self._settings.home),
        }
        note = Pending(attempt, stated["experiment"], stated["candidate"], clock.stamp())
        _keep(self._settings, note, {**stated, "tags": tags, "started_ms": started_ms})
        return Run(UNTRACKED + attempt, "", started_ms)

    def register(
        self,
        ledger: Ledger,
        use_case: UseCase,
        candidate: str,
        run: Run,
        bundle: str,
        why: Why,
    ) -> Version:
        """Register a bundle once; training that repeats it gives the version it has.

        In a registry that has lost it, or another one, it is registered anew under a new number.
        Without the registry the state database alone gives the number.
        """
        with alone(self._settings.models):
            if not self._away:
                with self._or_go_on():
                    return self._register(ledger, use_case, candidate, run, bundle, why)
            versions = ledger.versions(use_case.name)
            same = [version for version in versions if version.bundle == bundle]
            version = Version(
                use_case.name, _next(versions), bundle, candidate, run.run_id, clock.stamp()
            )
            version = same[-1] if same else version
            why.register(ledger, version)
        self._note_version(use_case, candidate, run, version)
        return version

    def _register(
        self,
        ledger: Ledger,
        use_case: UseCase,
        candidate: str,
        run: Run,
        bundle: str,
        why: Why,
    ) -> Version:
        tracking = self._tracking
        tracking.attach(run.run_id, self._settings.bundles / bundle, {"bundle": bundle})
        versions = ledger.versions(use_case.name)
        for version in reversed(versions):
            if version.bundle == bundle and holds(
                tracking, use_case.model_name, version.version, bundle
            ):
                return version
        number = register(tracking, use_case.model_name, run, bundle, above=_next(versions) - 1)
        version = Version(use_case.name, number, bundle, candidate, run.run_id, clock.stamp())
        why.register(ledger, version)
        return version

    def _note_version(self, use_case: UseCase, candidate: str, run: Run, version: Version) -> None:
        if run.run_id.startswith(UNTRACKED):
            folder = _folder(self._settings) / run.run_id.removeprefix(UNTRACKED)
            note = _read_note(folder)
        else:  # the store went away after the run was tracked
            folder = _folder(self._settings) / run.run_id
            note = Pending(
                run.run_id, use_case.name, candidate, clock.stamp(), run.run_id, run.model_uri
            )
        note = dataclasses.replace(note, bundle=version.bundle, version=version.version)
        if folder.exists():
            _write_note(folder, note)
        else:
            _keep(self._settings, note, None)

    @contextlib.contextmanager
    def _or_go_on(self) -> Iterator[None]:
        try:
            yield
        except TrackingError as error:
            self._away = True
            self._report.say(
                f"{error.message} — training goes on; "
                "what it keeps is tracked later with: mlops track --pending"
            )


def pending(settings: Settings | None = None) -> list[Pending]:
    """Return the runs that wait to be tracked, oldest first."""
    folder = _folder(settings or read_settings())
    notes = [_read_note(path.parent) for path in folder.glob("[!.]*/note.json")]
    return sorted(notes, key=lambda note: note.since_utc)


def track(*, settings: Settings | None = None, report: Report | None = None) -> list[Version]:
    """Track what waits to be tracked; return the versions that the registry now knows.

    What is tracked is forgotten at once, so an interrupted `track` goes on where it was. Raises
    `TrackingError` if the store is still away.
    """
    settings = settings or read_settings()
    report = report or Silent()
    if not pending(settings):
        return []
    tracked = []
    folder = _folder(settings)
    with alone(folder), Ledger(settings.state_database) as ledger:
        for leftover in folder.glob(f"{DONE}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        waiting = pending(settings)  # another `track` may have come first
        tracking = tracking_of(settings)
        tracking.connect()
        with report.steps("tracking", len(waiting)) as advance:
            for note in waiting:
                advance(f"{note.use_case}: {note.candidate}")
                version = _track_one(tracking, ledger, note, settings, report)
                tracked += [version] if version else []
        for name in {note.use_case for note in waiting}:
            _mirror(tracking, ledger, find(name))
    return tracked


def tracking_of(settings: Settings) -> Tracking:
    return Tracking(settings.home, settings.tracking_uri, settings.registry_uri)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Wait until no other process is at this in the same folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _track_one(
    tracking: Tracking, ledger: Ledger, note: Pending, settings: Settings, report: Report
) -> Version | None:
    folder = _folder(settings) / note.attempt
    run = Run(note.run_id, note.model_uri) if note.run_id else None
    run = run or tracking.finished(note.use_case, note.attempt)
    if run is None:
        run = tracking.log_run(**joblib.load(folder / "run.joblib"))
    version = None
    if note.bundle:
        tracking.attach(run.run_id, settings.bundles / note.bundle, {"bundle": note.bundle})
        with alone(settings.models):
            version = _register_late(tracking, ledger, note, run, report)
    # Out of sight in one step: half of a folder would be tracked again.
    done = folder.with_name(f"{DONE}{note.attempt}")
    folder.rename(done)
    shutil.rmtree(done, ignore_errors=True)
    return version


def _register_late(
    tracking: Tracking, ledger: Ledger, note: Pending, run: Run, report: Report
) -> Version:
    """Give the registry a version under the number that the state database gave it."""
    use_case = find(note.use_case)
    version = ledger.version(note.use_case, note.version)
    if version.run_id == UNTRACKED + note.attempt:
        ledger.name_run(version, run.run_id)
    model = use_case.model_name
    same = [v for v in ledger.versions(note.use_case) if v.bundle == note.bundle]
    if any(holds(tracking, model, v.version, note.bundle) for v in same):
        return version
    number = register(tracking, model, run, note.bundle, above=version.version - 1)
    if number != version.version:
        report.say(
            f"{note.use_case}: version {version.version} is {number} in the registry, "
            "where others took the numbers before; here it has both"
        )
        late = dataclasses.replace(version, version=number, run_id=run.run_id)
        reason = f"the registry's number for version {version.version}, tracked late"
        Why(reason, "registry", {}).register(ledger, late)
        return late
    return version


def _mirror(tracking: Tracking, ledger: Ledger, use_case: UseCase) -> None:
    """Point the registry's alias at the champion, if the registry knows it by now."""
    champion = ledger.champion(use_case.name)
    if champion is None:
        return
    for version in (champion, *reversed(ledger.versions(use_case.name))):
        if version.bundle == champion.bundle and holds(
            tracking, use_case.model_name, version.version, version.bundle
        ):
            mirror_champion(tracking, use_case.model_name, version.version)
            return


def _next(versions: list[Version]) -> int:
    return max((version.version for version in versions), default=0) + 1


def _folder(settings: Settings) -> Path:
    return settings.models / "pending"


def _keep(settings: Settings, note: Pending, stated: dict[str, Any] | None) -> None:
    """Write a pending run: its folder appears whole or not at all."""
    folder = _folder(settings)
    unfinished = folder / f".unfinished-{note.attempt}"
    unfinished.mkdir(parents=True)
    try:
        if stated is not None:
            joblib.dump(stated, unfinished / "run.joblib")
        _write_note(unfinished, note)
        unfinished.rename(folder / note.attempt)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write_note(folder: Path, note: Pending) -> None:
    text = json.dumps(dataclasses.asdict(note), indent=1) + "\n"
    write_whole(folder / "note.json", lambda file: file.write_text(text))


def _read_note(folder: Path) -> Pending:
    return Pending(**json.loads((folder / "note.json").read_text()))

"""Drift: does a window of traffic, or a file, still look like what a version was trained on?"""

from __future__ import annotations

import contextlib
from pathlib import Path

import apsw
import numpy as np

from mlops import clock
from mlops.build.data import write_whole
from mlops.build.sheet import sheet
from mlops.errors import MlopsError, NotTrainedError, UsageError
from mlops.improve.ledger import Ledger, Version
from mlops.loop.prediction_log import has_log, open_log
from mlops.loop.report import Report, Silent
from mlops.loop.watching import Profiles, budget_of, look, sealed_before, sealed_profile
from mlops.monitor.drift import columns, tables
from mlops.monitor.drift.budget import Budget, parse_span, span
from mlops.monitor.drift.page import page
from mlops.monitor.drift.profile import Counts, Profile
from mlops.monitor.drift.report import Drift, assessed
from mlops.monitor.drift.windows import Windows
from mlops.package.bundle import Bundle, open_bundle
from mlops.settings import Settings, read_settings
from mlops.usecase import UseCase
from mlops.usecases import find


def drift(
    name: str,
    *,
    window: str | None = None,
    budget: str | None = None,
    every: str | None = None,
    data: Path | None = None,
    version: int | None = None,
    to: Path | None = None,
    settings: Settings | None = None,
    report: Report | None = None,
) -> tuple[Drift, Path]:
    """Compare traffic, or the file `data`, with what a version (the champion) was trained on.

    Writes a page of HTML that opens without a network, to `to` or into the reports; returns what
    was found, and the page's path. What stands in the way of an answer is "cannot tell", not an
    error. Raises `UsageError` for an option, a version or a file that is none.
    """
    settings, report = settings or read_settings(), report or Silent()
    use_case = find(name)
    allowed = budget_of(settings, budget, every)
    seconds = parse_span(window or settings.drift_window)
    chosen: Version | None = None
    what = str(data) if data else f"the last {span(seconds)}"
    try:
        chosen = _version(use_case, version, settings)
        if data is not None:
            found = _of_file(use_case, chosen, data, allowed, settings, report)
        else:
            found = _of_traffic(use_case, chosen, allowed, seconds, settings, report)
    except UsageError:
        raise
    except (MlopsError, apsw.Error) as error:
        found = assessed(
            use_case,
            chosen.version if chosen else None,
            chosen.bundle if chosen else None,
            window=what,
            at=clock.stamp(),
            budget=allowed,
            found=str(error),
        )
    path = to or settings.models / "reports" / f"{name}-drift.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = page(use_case, found, sheet=sheet)
    write_whole(path, lambda file: file.write_text(text, encoding="utf-8"))
    return found, path


def follow_all(windows: Windows, profiles: Profiles, rows: int, report: Report) -> None:
    """Count all logged rows that are not counted yet; `rows` is about how many there are."""
    if not (counted := windows.follow(profiles.counting)):
        return
    with report.steps("counting logged rows", max(1, rows)) as advance:
        while counted:
            advance(f"{counted:,} rows")
            counted = windows.follow(profiles.counting)


def _follow(windows: Windows, profiles: Profiles, report: Report) -> None:
    """Count the logged rows that nobody has counted yet: few where a server runs."""
    done = 0
    while counted := windows.follow(profiles.counting):
        done += counted
        report.say(f"{done:,} logged rows counted")


def _version(use_case: UseCase, number: int | None, settings: Settings) -> Version:
    with Ledger(settings.state_database) as ledger:
        if number is not None:
            return ledger.version(use_case.name, number)
        champion = ledger.champion(use_case.name)
    if champion is None:
        raise NotTrainedError(
            f"{use_case.name} has no champion yet", f"make one with: mlops up {use_case.name}"
        )
    return champion


def _of_traffic(
    use_case: UseCase,
    version: Version,
    budget: Budget,
    seconds: int,
    settings: Settings,
    report: Report,
) -> Drift:
    if not has_log(use_case, settings):
        raise NotTrainedError(
            f"{use_case.name} has answered nothing here yet",
            f"start it with: mlops up {use_case.name}",
        )
    profiles = Profiles(use_case, settings)
    with (
        contextlib.closing(open_log(use_case, settings)) as log,
        Windows(log.path, use_case.log_name) as windows,
    ):
        _follow(windows, profiles, report)
        return look(use_case, (version.version, version.bundle), windows, profiles, budget, seconds)


def _of_file(
    use_case: UseCase,
    version: Version,
    path: Path,
    budget: Budget,
    settings: Settings,
    report: Report,
) -> Drift:
    bundle = open_bundle(settings.bundles / version.bundle, key=settings.signing_key)
    profile = sealed_profile(bundle.reference)
    found: tuple[Profile, Counts] | str
    if profile is None:
        found = sealed_before(use_case, version.version)
    else:
        counts = profile.nothing()
        for fields, answers in tables.pages(use_case, path):
            prediction = _predicted(bundle, fields) if answers is None else answers
            counts += profile.count(columns.columns(use_case, profile.names, fields, prediction))
            report.say(f"{path}: {counts.rows:,} rows counted")
        found = (profile, counts) if counts.rows else f"{path} has no row"
    return assessed(
        use_case,
        version.version,
        version.bundle,
        window=str(path),
        at=clock.stamp(),
        budget=budget,
        found=found,
    )


def _predicted(bundle: Bundle, fields: np.ndarray) -> np.ndarray:
    """Return what the model answers to complete rows, NaN for the others."""
    prediction = np.full(len(fields), np.nan)
    complete = np.isfinite(fields).all(axis=1)
    if complete.any():
        prediction[complete] = bundle.model.run(np.ascontiguousarray(fields[complete])).prediction
    return prediction

"""Performance: what the log's truths and a version's sealed quality say of it, asked anywhere."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlops import clock
from mlops.deploy.interval import logged_values
from mlops.errors import BundleError, NotTrainedError, UsageError
from mlops.improve.ledger import Ledger
from mlops.monitor.degradation import KIND
from mlops.monitor.estimate import SUMS_OF_GRADES
from mlops.monitor.findings import of_version
from mlops.monitor.log import PredictionLog
from mlops.monitor.performance import DAY, HOUR, Sealed, cells_from, performance, step_of, unsealed
from mlops.monitor.quality import RISK, Actual, measure
from mlops.monitor.truths import Measure
from mlops.package.bundle import INTERVAL_MODEL, INTERVALS, verify
from mlops.package.intervals import Conformal, conformal_of
from mlops.records import Finding, Prediction, Verdict
from mlops.settings import Settings
from mlops.usecase import UseCase

WINDOW = "7d"
LONGEST_WINDOW = 3660 * DAY
ESTIMATED_ROWS = 10_000
"""An estimate is made for the newest of a window: more would hardly narrow it."""
FALSE_ALARMS_A_YEAR = 1
LOOKS_A_YEAR = 365 * 24
"""The server looks once an hour. Windows overlap, so that false alarms are rarer than this."""

ESTIMATE = "estimate"
"""The kind of what is found of the estimate: that it was wrong is no fall in quality."""
STATES: dict[str, Verdict] = {"given": "ok", "muted": "alarm", "none": "cannot tell"}


def look(
    use_case: UseCase,
    log: PredictionLog,
    settings: Settings,
    window: str = WINDOW,
    version: int | None = None,
) -> dict[str, Any]:
    """Return the performance that a log has, now: see `monitor/performance.py`."""
    until = math.ceil(clock.unix() / HOUR) * HOUR
    since = until - seconds_of(window)
    with Ledger(settings.state_database) as ledger:
        champion = ledger.champion(use_case.name)
        bundles = {one.version: one.bundle for one in ledger.versions(use_case.name)}
    if version is None:
        if champion is None:
            raise NotTrainedError(
                f"{use_case.name} has no champion", f"train one with: mlops up {use_case.name}"
            )
        version = champion.version
    elif version not in bundles:
        raise UsageError(
            f"{use_case.name} has no version {version}",
            f"list them with: mlops show {use_case.name}",
        )
    sealed = functools.partial(sealed_quality, settings)
    return performance(
        use_case,
        version,
        log.quality(since, until, step_of(since, until)),
        {number: sealed(bundle) for number, bundle in bundles.items()},
        log.rows(ESTIMATED_ROWS, version=version, since=clock.iso(since)),
        log.newest_quality(version, RISK, SUMS_OF_GRADES),
        since=since,
        until=until,
        predictions=log.predictions(since, until),
        alpha=FALSE_ALARMS_A_YEAR / LOOKS_A_YEAR,
    )


def judge(use_case: UseCase, log: PredictionLog, settings: Settings) -> bool:
    """Keep what is found of quality among the log's findings, if that was not done this hour.

    Several processes may try: whoever comes first does it. Returns whether it was done.
    """
    hour_ago = clock.iso(int(clock.unix()) - HOUR)
    if any(finding.at > hour_ago for finding in log.findings(KIND)):
        return False
    log.record_findings(quality_findings(use_case, log, settings))
    return True


def quality_findings(use_case: UseCase, log: PredictionLog, settings: Settings) -> list[Finding]:
    """Look at the champion's last seven days; return what was found, the estimate's worth too."""
    found = look(use_case, log, settings)
    estimate = found["estimate"]
    about_estimate = Finding(
        ESTIMATE,
        "all rows",
        STATES[estimate["state"]],
        estimate["says"],
        {"rows": estimate["rows"], "scores": estimate["scores"], "z": estimate.get("z")},
    )
    findings = [*(Finding(**one) for one in found["findings"]), about_estimate]
    return of_version(found["model_version"], findings)


def measure_of(use_case: UseCase, settings: Settings) -> Measure:
    """Return what a log needs to attach truths: what each adds, its estimate's cell included.

    And whether it lay within the prediction interval of its row, which is computed again for that.
    """
    cells = cells_from(use_case, functools.partial(sealed_quality, settings))

    def bounded(
        bundle: str, rows: Sequence[Prediction], actual: Sequence[Actual]
    ) -> list[bool] | None:
        conformal = sealed_intervals(settings, bundle)
        return inside(use_case, conformal, rows, actual) if conformal else None

    return lambda rows, actual: measure(use_case, rows, actual, cells, bounded)


def inside(
    use_case: UseCase, conformal: Conformal, rows: Sequence[Prediction], actual: Sequence[Actual]
) -> list[bool]:
    """Say which truths lay within their intervals; beyond one that ends at the cap is within."""
    bounds = conformal.of(*logged_values(use_case, rows))
    known = np.array(actual, dtype=float)
    found = (bounds.low <= known) & ((known <= bounds.high) | bounds.capped)
    return [bool(one) for one in found]


def sealed_quality(settings: Settings, bundle: str) -> Sealed | None:
    """Return what a bundle sealed of its quality; None if it did not, or is not sound."""
    with contextlib.suppress(BundleError):
        return _sealed(settings.bundles / bundle, settings.signing_key)
    return None


@functools.lru_cache(maxsize=64)
def _sealed(path: Path, key: bytes | None) -> Sealed | None:
    """A bundle has its content for a name: it never changes."""
    content = verify(path, key=key)
    intervals = json.loads(content[INTERVALS]) if INTERVALS in content else None
    return unsealed(json.loads(content["metrics.json"]), intervals)


def sealed_intervals(settings: Settings, bundle: str) -> Conformal | None:
    """Return what gives a bundle's answers their intervals; None without, or if it is not sound."""
    with contextlib.suppress(BundleError):
        return _sealed_intervals(settings.bundles / bundle, settings.signing_key)
    return None


@functools.lru_cache(maxsize=64)
def _sealed_intervals(path: Path, key: bytes | None) -> Conformal | None:
    content = verify(path, key=key)
    document = json.loads(content[INTERVALS]) if INTERVALS in content else {}
    return conformal_of(document, content.get(INTERVAL_MODEL))


def seconds_of(window: str) -> int:
    """Return the length of a window like "24h" or "7d". Raises `UsageError`."""
    found = re.fullmatch(r"(\d{1,5})([hd])", window)
    seconds = int(found[1]) * {"h": HOUR, "d": DAY}[found[2]] if found else 0
    if not 0 < seconds <= LONGEST_WINDOW:
        raise UsageError(f"{window!r} is no window", "write, say, 24h or 7d (at most 3660d)")
    return seconds

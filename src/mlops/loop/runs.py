"""Compare the runs of a use case: each candidate's spread, and whether it is worse or a tie.

Every training notes its runs in `models/runs/<use case>/<run id>.json`, so that the comparison is
there when the tracking server is away; the server adds the runs of other machines.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable
from typing import Any

from mlops.build.comparison import compare
from mlops.build.data import write_whole
from mlops.errors import TrackingError
from mlops.improve.ledger import UNTRACKED, Ledger, Version
from mlops.loop.report import Report, Silent
from mlops.loop.track import tracking_of
from mlops.settings import Settings, read_settings
from mlops.track.runs import Tracking
from mlops.usecase import UseCase
from mlops.usecases import find

SAME_ROWS = ("data_fingerprint", "held_out_fingerprint")
"""Tags of a run. Runs that agree in them were scored on the same folds, and may be compared."""

KEPT = ("run_id", "candidate", "status", "start_time", "metrics", "tags", "commit", "fold_scores")


def runs(
    name: str,
    *,
    every: bool = False,
    settings: Settings | None = None,
    report: Report | None = None,
) -> list[dict[str, Any]]:
    """Return the newest run of each candidate (or `every` run), compared, the best mean first.

    Each has what was tracked (`run_id`, `candidate`, `start_time` in ms, `metrics`, `tags`,
    `commit`), its `fold_scores`, and where it stands: `mean`, `std`, `score` (test rows),
    `difference` to the best with `low` and `high`, `verdict`, `version`. Without a tracking server
    these are the runs that were made here, and one line says so.
    """
    settings = settings or read_settings()
    report = report or Silent()
    use_case = find(name)
    kept = {run["run_id"]: run for run in kept_runs(use_case, settings)}
    tracking = tracking_of(settings)
    found = list(kept.values())
    if not tracking.local or (settings.home / "mlflow.db").exists():
        try:
            tracked = tracking.runs(use_case.name)
            late = {UNTRACKED + str(run["tags"].get("attempt")) for run in tracked}
            here = [run for run in kept.values() if run["run_id"] not in late]
            chosen = _newest_first([*tracked, *here])
            chosen = chosen if every else _newest_of_each(chosen)
            found = [
                run
                if "fold_scores" in run
                else {**run, "fold_scores": _fold_scores(tracking, use_case, run, kept)}
                for run in chosen
            ]
        except TrackingError as error:
            report.say(f"{name}: only the runs made here are listed: {error}")
    if not found:
        return []
    with Ledger(settings.state_database) as ledger:
        versions = ledger.versions(name)
    return standings(use_case, found, versions, every=every)


def keep_run(use_case: UseCase, run: dict[str, Any], settings: Settings) -> None:
    """Note a run of this training; noted again, with its bundle, once it is sealed."""
    path = settings.models / "runs" / use_case.name / f"{run['run_id']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(run, indent=1) + "\n"
    write_whole(path, lambda file: file.write_text(text))


def kept_runs(use_case: UseCase, settings: Settings) -> list[dict[str, Any]]:
    """Return the runs that were noted here; a note that cannot be read is passed over."""
    found = []
    for path in sorted((settings.models / "runs" / use_case.name).glob("*.json")):
        try:
            run = json.loads(path.read_bytes())
        except (OSError, ValueError):
            continue
        if isinstance(run, dict) and all(name in run for name in KEPT):
            found.append(run)
    return found


def standings(
    use_case: UseCase,
    found: Iterable[dict[str, Any]],
    versions: Iterable[Version],
    *,
    every: bool = False,
) -> list[dict[str, Any]]:
    """Put runs beside each other: those on the newest run's data, by their mean; then the others.

    A run on other data, or without scores of each fold, says so instead of a verdict.
    """
    newest = _newest_first(found)
    if not every:
        newest = _newest_of_each(newest)
    if not newest:
        return []
    rows, folds = _rows(newest[0]), _folds(newest)
    comparable = {
        run["run_id"]: run["fold_scores"]
        for run in newest
        if _rows(run) == rows and folds and len(run["fold_scores"]) == folds
    }
    standing = compare(comparable)
    numbers = {version.bundle: version.version for version in versions}
    listed = []
    for run in newest:
        at = standing.get(run["run_id"])
        why = "no folds" if not run["fold_scores"] else "other data"
        listed.append(
            {
                "metric": use_case.metric,
                **run,
                **(
                    {k: _or_none(v) for k, v in dataclasses.asdict(at).items()}
                    if at
                    else dict.fromkeys(("mean", "std", "difference", "low", "high"))
                    | {"verdict": why}
                ),
                "score": run["metrics"].get(use_case.metric),
                "version": numbers.get(run["tags"].get("bundle", "")),
            }
        )
    return sorted(listed, key=lambda run: math.inf if run["mean"] is None else -run["mean"])


def _fold_scores(
    tracking: Tracking, use_case: UseCase, run: dict[str, Any], kept: dict[str, dict[str, Any]]
) -> list[float]:
    known = kept.get(run["run_id"])
    if known is not None:
        return list(known["fold_scores"])
    name = f"cv_{use_case.metric}_fold"
    return tracking.history(run["run_id"], name) if name in run["metrics"] else []


def _newest_first(found: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Order runs, each once: the first that has its id is taken."""
    by_id: dict[str, dict[str, Any]] = {}
    for run in found:
        by_id.setdefault(run["run_id"], run)
    return sorted(by_id.values(), key=lambda run: run["start_time"], reverse=True)


def _newest_of_each(newest: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the newest run of each candidate that was finished, given them newest first."""
    found: dict[str, dict[str, Any]] = {}
    for run in newest:
        if run["status"] == "FINISHED":
            found.setdefault(run["candidate"], run)
    return list(found.values())


def _rows(run: dict[str, Any]) -> tuple[str | None, ...]:
    return tuple(run["tags"].get(tag) for tag in SAME_ROWS)


def _folds(newest: list[dict[str, Any]]) -> int:
    return next((len(run["fold_scores"]) for run in newest if run["fold_scores"]), 0)


def _or_none(value: Any) -> Any:
    """JSON knows no NaN."""
    return None if isinstance(value, float) and math.isnan(value) else value

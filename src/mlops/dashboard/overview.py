"""Whether a use case is healthy, and why, in one sentence. Pure: it is handed all it looks at."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from mlops.improve.ledger import Version
from mlops.records import Metrics
from mlops.usecase import UseCase

MOST_SERVER_ERRORS = 0.01
"""Share of a minute's requests that may meet a server error before the use case counts as ill."""


@dataclasses.dataclass(frozen=True, slots=True)
class Seen:
    """One use case at one moment.

    `metrics` is None when the log cannot be read, `alerts` when nobody can tell. `trouble` says
    what is wrong though requests are answered, such as a newer version that was refused.
    """

    use_case: UseCase
    health: Mapping[str, Any]
    metrics: Metrics | None
    minutes: Sequence[Mapping[str, Any]] = ()
    versions: Sequence[Version] = ()
    alerts: Sequence[Mapping[str, Any]] | None = None
    trouble: str = ""


def overview(seen: Seen) -> dict[str, Any]:
    """Return what the overview says of a use case, as JSON."""
    healthy, sentence = judge(seen)
    answers = seen.health["model_version"]
    windows = seen.metrics.windows if seen.metrics else {}
    ever = windows.get("all", {}).get("by_version", {})
    return {
        "use_case": seen.use_case.name,
        "title": seen.use_case.title,
        "healthy": healthy,
        "sentence": sentence,
        "model_version": answers,
        "candidate": seen.health["candidate"],
        "traffic": {name: _traffic(windows[name]) for name in ("minute", "hour") if windows},
        "total_predictions": seen.metrics.totals.total_predictions if seen.metrics else None,
        "predictions_with_warnings": seen.metrics.totals.warned if seen.metrics else None,
        "minutes": list(seen.minutes),
        "versions": [
            {
                "version": one.version,
                "candidate": one.candidate,
                "answers": one.version == answers,
                "registered_utc": one.registered_utc,
                "predictions": ever.get(str(one.version), {}).get("predictions", 0),
                "response_time_ms": ever.get(str(one.version), {}).get("response_time_ms"),
                "server_error_rate": ever.get(str(one.version), {}).get("server_error_rate"),
            }
            for one in reversed(seen.versions)
        ],
        "alerts": None if seen.alerts is None else list(seen.alerts),
    }


def judge(seen: Seen) -> tuple[bool, str]:
    """Return whether the use case is healthy, and one sentence that says so or why not.

    Not healthy: it does not answer, its log cannot be read, a newer version was refused, more than
    1 % of the last minute's requests met a server error, or an alert is open.
    """
    if seen.health["status"] != "healthy":
        return False, f"not healthy: {seen.health['message']}"
    if seen.metrics is None:
        return False, "not healthy: the prediction log cannot be read"
    minute = seen.metrics.windows["minute"]
    wrong = []
    if seen.trouble:
        wrong.append(f"a newer version was refused: {seen.trouble}")
    if (minute["server_error_rate"] or 0) > MOST_SERVER_ERRORS:
        wrong.append(
            f"{minute['server_error_rate']:.1%} of the last minute's requests met a server error"
        )
    if seen.alerts:
        wrong.append(_open_alerts(seen.alerts))
    doing = f"version {seen.health['model_version']} answers, {_busy(minute)}"
    if wrong:
        return False, f"not healthy: {'; '.join(wrong)}; {doing}"
    alerts = "alerts cannot be told" if seen.alerts is None else "no open alerts"
    return True, f"healthy: {doing}, {alerts}"


def _busy(minute: Mapping[str, Any]) -> str:
    if not minute["requests"]:
        return "no requests in the last minute"
    rate, errors = minute["requests_per_second"], minute["error_rate"]
    return f"{rate:.1f} requests/s, {errors:.1%} errors"


def _open_alerts(alerts: Sequence[Mapping[str, Any]]) -> str:
    """Name the alerts by what they say before they go into details."""
    heads = ", ".join(one["says"].partition(": ")[0] for one in alerts)
    return f"{len(alerts)} open alert{'s' * (len(alerts) > 1)} ({heads})"


def _traffic(window: Mapping[str, Any]) -> dict[str, Any]:
    names = ("requests", "requests_per_second", "predictions", "error_rate", "server_error_rate")
    return {
        **{name: window[name] for name in (*names, "predictions_with_warnings", "unique_users")},
        "response_time_ms": window["response_time_ms"],
    }

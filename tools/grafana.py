"""Grafana's dashboards as code: `python tools/grafana.py` writes them, `--check` compares.

Each panel also declares how its value moves when its cause is planted; tests/test_prometheus.py
plants all causes in a real server and asks a real Prometheus for every expression.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

FOLDER = Path(__file__).resolve().parent.parent / "deploy" / "grafana" / "dashboards"
SOURCE = {"type": "prometheus", "uid": "prometheus"}
USE_CASES = 'use_case=~"$use_case"'
WIDTH, HEIGHT = 12, 8

Moves = Literal["rises", "falls", "changes"]

# Large batches are planted: they take longer than the single requests that most others are.
QUANTILES: dict[int, Moves] = {50: "changes", 95: "rises", 99: "rises"}


class Panel(NamedTuple):
    """One graph. `legend` is Grafana's template of a line's name, `unit` one of Grafana's units."""

    title: str
    expr: str
    legend: str
    unit: str
    moves: Moves
    """Against its first value, once there were more traffic, errors, warnings, drift and worse
    predictions, another champion, less room on the disk, and a log that could not be written."""
    description: str = ""


def _of(metric: str, labels: str = "") -> str:
    return f"{metric}{{{USE_CASES}{f', {labels}' if labels else ''}}}"


DASHBOARDS: dict[str, Sequence[Panel]] = {
    "Service": (
        Panel(
            "Requests",
            _of("use_case:mlops_requests:rate5m"),
            "{{use_case}}",
            "reqps",
            "rises",
        ),
        Panel(
            "Predictions",
            _of("use_case:mlops_predictions:rate5m"),
            "{{use_case}}",
            "rowsps",
            "rises",
            "Rows of batches included.",
        ),
        Panel(
            "Requests by version",
            _of("use_case_version:mlops_requests:rate5m"),
            "{{use_case}} version {{model_version}}",
            "reqps",
            "rises",
        ),
        Panel(
            "Requests by status",
            f"sum by (use_case, status) (rate({_of('mlops_requests_total')}[5m]))",
            "{{use_case}} {{status}}",
            "reqps",
            "rises",
        ),
        Panel(
            "Error rate",
            _of("use_case:mlops_request_errors:ratio_rate5m"),
            "{{use_case}}",
            "percentunit",
            "rises",
            "Share of requests answered with a status of 400 or more; there is an alert above 5 %.",
        ),
        Panel(
            "Error rate by version",
            _of("use_case_version:mlops_request_errors:ratio_rate5m"),
            "{{use_case}} version {{model_version}}",
            "percentunit",
            "rises",
        ),
        *(
            Panel(
                f"Response time, {share} %",
                _of(f"use_case:mlops_request_duration_seconds:p{share}_5m"),
                "{{use_case}}",
                "s",
                moves,
                f"{share} % of the answers with status 200 took no longer.",
            )
            for share, moves in QUANTILES.items()
        ),
        Panel(
            "Unique users",
            _of("mlops_unique_clients", 'window="day"'),
            "{{use_case}}",
            "none",
            "rises",
            "Different clients of the last day, by X-Client-ID.",
        ),
        Panel(
            "Unique users by version",
            _of("mlops_version_unique_clients", 'window="day"'),
            "{{use_case}} version {{model_version}}",
            "none",
            "rises",
        ),
        Panel(
            "Busiest hour",
            _of("mlops_peak_hour_timestamp_seconds", 'window="day"') + " * 1000",
            "{{use_case}}",
            "dateTimeAsIso",
            "rises",
            "Beginning of the hour with the most requests of the last day.",
        ),
        Panel(
            "Requests in the busiest hour",
            _of("mlops_peak_hour_requests", 'window="day"'),
            "{{use_case}}",
            "none",
            "rises",
        ),
    ),
    "Model": (
        Panel(
            "Champion",
            _of("mlops_champion_version"),
            "{{use_case}}",
            "none",
            "changes",
            "The version that answers.",
        ),
        Panel(
            "Age of the champion",
            f"time() - {_of('mlops_champion_registered_timestamp_seconds')}",
            "{{use_case}}",
            "s",
            "changes",
        ),
        Panel(
            "Share of predictions with a warning",
            _of("use_case:mlops_prediction_warnings:ratio_rate5m"),
            "{{use_case}}",
            "percentunit",
            "rises",
            "Requests unlike anything that training saw.",
        ),
        Panel(
            "Warnings by version",
            "sum by (use_case, model_version) "
            f"(rate({_of('mlops_prediction_warnings_total')}[5m]))",
            "{{use_case}} version {{model_version}}",
            "rowsps",
            "rises",
        ),
        Panel(
            "Drift alarms",
            f"sum by (use_case) ({_of('mlops_drift_alarm')})",
            "{{use_case}}",
            "none",
            "rises",
        ),
        Panel(
            "Drift by column",
            _of("mlops_drift_value", 'measure="psi"'),
            "{{use_case}} {{subject}}",
            "none",
            "rises",
            "Population stability index; the alarm itself rests on a test, not on this.",
        ),
        Panel(
            "Quality alarms",
            f"sum by (use_case) ({_of('mlops_quality_alarm')})",
            "{{use_case}}",
            "none",
            "rises",
        ),
        Panel(
            "Loss of predictions whose truth is known",
            _of("mlops_quality_value", 'measure=~"loss|test_loss"'),
            "{{use_case}} version {{model_version}} {{subject}} {{measure}}",
            "none",
            "rises",
            "test_loss is what it was in training.",
        ),
        Panel(
            "Time since drift was looked at",
            f"time() - {_of('mlops_drift_checked_timestamp_seconds')}",
            "{{use_case}}",
            "s",
            "changes",
        ),
        Panel(
            "Time since quality was looked at",
            f"time() - {_of('mlops_quality_checked_timestamp_seconds')}",
            "{{use_case}}",
            "s",
            "changes",
        ),
    ),
    "Operations": (
        Panel("Scraped", 'up{job="mlops"}', "{{instance}}", "bool_on_off", "falls"),
        Panel("Ready", _of("mlops_ready"), "{{use_case}}", "bool_on_off", "falls"),
        Panel(
            "Alerts of the server",
            f"sum by (use_case, rule) ({_of('mlops_alert_active')})",
            "{{use_case}} {{rule}}",
            "none",
            "rises",
        ),
        Panel(
            "Alerts of Prometheus",
            'count by (alertname) (ALERTS{alertstate="firing", alertname=~"Mlops.+"})',
            "{{alertname}}",
            "none",
            "rises",
        ),
        Panel(
            "Free share of the log's disk",
            _of("mlops_log_disk_free_ratio"),
            "{{use_case}}",
            "percentunit",
            "falls",
        ),
        Panel(
            "Rows that predictions.log lacks",
            _of("mlops_log_lines_behind"),
            "{{use_case}}",
            "none",
            "rises",
        ),
        Panel(
            "Time since the last prediction",
            f"time() - {_of('mlops_last_prediction_timestamp_seconds')}",
            "{{use_case}}",
            "s",
            "changes",
        ),
        Panel(
            "Predictions ever",
            f"sum by (use_case) ({_of('mlops_predictions_total')})",
            "{{use_case}}",
            "none",
            "rises",
        ),
    ),
}


def dashboard(name: str) -> dict[str, Any]:
    """Return a dashboard as Grafana 10 and newer read it."""
    variable = {
        "name": "use_case",
        "label": "Use case",
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": "label_values(mlops_ready, use_case)", "refId": "use_case"},
        "refresh": 2,
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }
    return {
        "uid": f"mlops-{name.lower()}",
        "title": f"MLOps {name.lower()}",
        "tags": ["mlops"],
        "timezone": "utc",
        "schemaVersion": 38,
        "editable": False,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [variable]},
        "panels": [_panel(number, panel) for number, panel in enumerate(DASHBOARDS[name])],
    }


def _panel(number: int, panel: Panel) -> dict[str, Any]:
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "gridPos": {
            "x": number % 2 * WIDTH,
            "y": number // 2 * HEIGHT,
            "w": WIDTH,
            "h": HEIGHT,
        },
        "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
        "targets": [
            {
                "refId": "A",
                "datasource": SOURCE,
                "expr": panel.expr,
                "legendFormat": panel.legend,
            }
        ],
    }


def files() -> dict[Path, str]:
    """Return what each file is to hold."""
    return {
        FOLDER / f"{name.lower()}.json": json.dumps(dashboard(name), indent=2) + "\n"
        for name in DASHBOARDS
    }


def problems(folder: Path = FOLDER) -> list[str]:
    """Return what is wrong with the files there, one line each."""
    wanted = {path.name: text for path, text in files().items()}
    there = {path.name: path.read_text() for path in folder.glob("*.json")}
    return [
        f"{name} is {'stale' if name in there and name in wanted else 'missing or not ours'}"
        for name in sorted(wanted.keys() | there.keys())
        if wanted.get(name) != there.get(name)
    ]


def main() -> int:
    if "--check" not in sys.argv:
        for path, text in files().items():
            path.write_text(text)
        return 0
    found = problems()
    for problem in found:
        print(f"deploy/grafana/dashboards: {problem}: run python tools/grafana.py", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

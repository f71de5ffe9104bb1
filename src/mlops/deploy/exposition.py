"""Metrics as JSON, and as Prometheus reads them. `docs/metrics.md` lists each; a test compares.

Both are written from the log's counts whenever they are asked for, so they survive restarts and
are the same whichever server process is asked: nothing is counted in this process's memory.
"""

from __future__ import annotations

import contextlib
import datetime
import math
import platform
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4 as PLAIN
from prometheus_client.exposition import choose_encoder, generate_latest

from mlops.records import Metrics, Totals, Watched
from mlops.usecase import UseCase

NOTHING = Totals(0, {}, 0, {}, None)
FOUND = {
    "drift": "the subject drifted from what training saw",
    "quality": "the subject is predicted worse than it was in training",
    "experiment": "the experiment asks for a decision in the subject",
}
USUAL_STATUSES = (200, 422, 500, 503)
TEXT_TYPES = ("text/plain", "application/openmetrics-text")


class Scrape(NamedTuple):
    """One use case, as it is at this moment. `metrics` is None before its log is open.

    `watched` is None where nobody watches it.
    """

    use_case: UseCase
    ready: bool
    champion: int | None
    metrics: Metrics | None
    watched: Watched | None = None


def together(scrapes: Sequence[Scrape]) -> dict[str, Any]:
    """Return the metrics of several use cases as JSON has them, and what they are in all."""
    each = {one.use_case.name: as_json(one) for one in scrapes}
    updates = [one["last_updated"] for one in each.values() if one["last_updated"]]
    return {
        "total_predictions": sum(one["total_predictions"] for one in each.values()),
        "failed_requests": sum(one["failed_requests"] for one in each.values()),
        "last_updated": max(updates, default=None),
        "use_cases": each,
    }


def as_json(scrape: Scrape) -> dict[str, Any]:
    """Return the metrics of one use case as JSON has them."""
    totals = scrape.metrics.totals if scrape.metrics else NOTHING
    return {
        "use_case": scrape.use_case.name,
        "model": scrape.use_case.model_name,
        "model_version": scrape.champion,
        "total_predictions": totals.total_predictions,
        "predictions_by_version": totals.by_version,
        "predictions_with_warnings": totals.warned,
        "failed_requests": sum(totals.failed_requests.values()),
        "failed_requests_by_status": totals.failed_requests,
        "last_updated": totals.last_updated,
        "windows": scrape.metrics.windows if scrape.metrics else {},
    }


def wants_text(accept: str) -> bool:
    """Whether the header prefers a text format of Prometheus to JSON; JSON wins a draw."""
    wanted: dict[bool, tuple[float, bool]] = {True: (0, False), False: (0, False)}
    for part in accept.lower().split(","):
        kind, *parameters = [item.strip() for item in part.split(";")]
        is_text = kind in TEXT_TYPES
        if not is_text and kind not in {"application/json", "application/*", "*/*"}:
            continue
        quality = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                with contextlib.suppress(ValueError):
                    quality = float(parameter[2:])
        if quality > 0:  # what is named outranks what a wildcard admits
            wanted[is_text] = max(wanted[is_text], (quality, "*" not in kind))
    return wanted[True] > wanted[False]


def as_text(scrapes: Sequence[Scrape], accept: str, version: str) -> tuple[bytes, str]:
    """Return the metrics in the text format that the header asks for, and its content type."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(scrapes, version))
    try:
        encode, content_type = choose_encoder(accept)
        return encode(registry), content_type
    except (TypeError, ValueError):  # a version of the format that is no number
        return generate_latest(registry), PLAIN


class _Collector:
    def __init__(self, scrapes: Sequence[Scrape], version: str) -> None:
        self._scrapes = scrapes
        self._version = version

    def collect(self) -> Iterator[Metric]:
        yield self._build()
        yield from self._states()
        yield from self._windows()
        yield from self._traffic()
        yield from self._watched()
        yield from self._found()

    def _build(self) -> Metric:
        build = GaugeMetricFamily(
            "mlops_build_info",
            "Always 1; the labels name the version of the server and of Python.",
            labels=("version", "python"),
        )
        build.add_metric((self._version, platform.python_version()), 1)
        return build

    def _states(self) -> Iterator[Metric]:
        ready = GaugeMetricFamily(
            "mlops_ready", "1 if requests can be answered and logged, else 0.", labels=("use_case",)
        )
        champion = GaugeMetricFamily(
            "mlops_champion_version", "Model version that answers.", labels=("use_case",)
        )
        last = GaugeMetricFamily(
            "mlops_last_prediction_timestamp_seconds",
            "When the last prediction was logged, in unix time.",
            labels=("use_case",),
        )
        for use_case, is_ready, version, metrics, _ in self._scrapes:
            name = use_case.name
            ready.add_metric((name,), is_ready)
            if version is not None:
                champion.add_metric((name,), version)
            if metrics is None:
                continue
            stamps = [one.last_timestamp for one in metrics.series if one.predictions]
            if stamps:
                moment = datetime.datetime.fromisoformat(max(stamps))
                last.add_metric((name,), moment.timestamp())
        yield from (ready, champion, last)

    def _windows(self) -> Iterator[Metric]:
        """Yield what is known of the windows only: of a use case, and of each version alone."""
        for of, more in (("", ()), ("version_", ("model_version",))):
            labels = ("use_case", *more, "window")
            unique = GaugeMetricFamily(
                f"mlops_{of}unique_clients",
                "Different clients in the window, by X-Client-ID; an estimate, standard error"
                " 1.6 %.",
                labels=labels,
            )
            start = GaugeMetricFamily(
                f"mlops_{of}peak_hour_timestamp_seconds",
                "Beginning of the hour with the most requests in the window, in unix time.",
                labels=labels,
            )
            requests = GaugeMetricFamily(
                f"mlops_{of}peak_hour_requests", "Requests in that hour.", labels=labels
            )
            for use_case, _, _, metrics, _ in self._scrapes:
                for window, every in metrics.windows.items() if metrics else ():
                    parts = every["by_version"] if more else {None: every}
                    for version, numbers in parts.items():
                        places = (use_case.name, *((version,) if more else ()), window)
                        unique.add_metric(places, numbers["unique_users"])
                        if peak := numbers["peak_hour"]:
                            moment = datetime.datetime.fromisoformat(peak["start"])
                            start.add_metric(places, moment.timestamp())
                            requests.add_metric(places, peak["requests"])
            yield from (unique, start, requests)

    def _traffic(self) -> Iterator[Metric]:
        by_version = ("use_case", "model_version")
        predictions = CounterMetricFamily(
            "mlops_predictions", "Predictions logged, rows of batches included.", labels=by_version
        )
        warnings = CounterMetricFamily(
            "mlops_prediction_warnings",
            "Predictions logged with at least one warning.",
            labels=by_version,
        )
        requests = CounterMetricFamily(
            "mlops_requests",
            "Prediction requests answered, by HTTP status.",
            labels=(*by_version, "status"),
        )
        durations = HistogramMetricFamily(
            "mlops_request_duration_seconds",
            "Time from a request's arrival, its body read, to its answer.",
            labels=(*by_version, "status"),
        )
        for use_case, _, version, metrics, _ in self._scrapes:
            if metrics:
                # A counter that is not there before its first error has no rate when it comes.
                there = {(one.model_version, one.status) for one in metrics.series}
                versions = {one.model_version for one in metrics.series} | {version or 0}
                for number in versions:
                    for status in USUAL_STATUSES:
                        if (number, status) not in there:
                            requests.add_metric((use_case.name, str(number), str(status)), 0)
            for one in metrics.series if metrics else ():
                labels = (use_case.name, str(one.model_version))
                if one.status == 200:
                    predictions.add_metric(labels, one.predictions)
                    warnings.add_metric(labels, one.warned)
                requests.add_metric((*labels, str(one.status)), one.requests)
                bounds = [
                    ("+Inf" if math.isinf(bound) else str(bound), number)
                    for bound, number in one.responses
                ]
                durations.add_metric((*labels, str(one.status)), bounds, one.response_seconds)
        yield from (predictions, warnings, requests, durations)

    def _watched(self) -> Iterator[Metric]:
        by_use_case = ("use_case",)
        free = GaugeMetricFamily(
            "mlops_log_disk_free_ratio",
            "Free share of the disk that holds the prediction log.",
            labels=by_use_case,
        )
        behind = GaugeMetricFamily(
            "mlops_log_lines_behind",
            "Rows of the log's database that predictions.log lacks.",
            labels=by_use_case,
        )
        unmoved = GaugeMetricFamily(
            "mlops_log_wal_bytes",
            "Write-ahead log of predictions.db: grows beside a reader that stays.",
            labels=by_use_case,
        )
        registered = GaugeMetricFamily(
            "mlops_champion_registered_timestamp_seconds",
            "When the champion was registered, in unix time.",
            labels=by_use_case,
        )
        active = GaugeMetricFamily(
            "mlops_alert_active",
            "1 while the server's own alert of that rule is open, else 0.",
            labels=("use_case", "rule"),
        )
        for scrape, watched in self._pairs():
            labels = (scrape.use_case.name,)
            for family, value in (
                (free, watched.disk_free),
                (behind, watched.log_lines_behind),
                (unmoved, watched.log_wal_bytes),
                (registered, watched.champion_registered),
            ):
                if value is not None:
                    family.add_metric(labels, value)
            for rule, is_open in watched.active.items():
                active.add_metric((*labels, rule), is_open)
        yield from (free, behind, unmoved, registered, active)

    def _found(self) -> Iterator[Metric]:
        """Yield what the monitors found when they last looked."""
        for kind, what in FOUND.items():
            by_subject = ("use_case", "model_version", "subject")
            alarm = GaugeMetricFamily(
                f"mlops_{kind}_alarm",
                f"1 if {what}, 0 if not; none where it cannot be told.",
                labels=by_subject,
            )
            value = GaugeMetricFamily(
                f"mlops_{kind}_value", "What that rests on.", labels=(*by_subject, "measure")
            )
            checked = GaugeMetricFamily(
                f"mlops_{kind}_checked_timestamp_seconds",
                "When that was last looked at, in unix time.",
                labels=("use_case",),
            )
            for scrape, watched in self._pairs():
                name, mine = scrape.use_case.name, [f for f in watched.findings if f.kind == kind]
                for one in mine:
                    version = str(one.numbers.get("model_version", scrape.champion or 0))
                    labels = (name, version, one.subject)
                    if one.verdict != "cannot tell":
                        alarm.add_metric(labels, one.verdict == "alarm")
                    for measure, number in _numbers(one.numbers):
                        value.add_metric((*labels, measure), number)
                if mine:
                    moment = datetime.datetime.fromisoformat(mine[0].at)
                    checked.add_metric((name,), moment.timestamp())
            yield from (alarm, value, checked)

    def _pairs(self) -> Iterator[tuple[Scrape, Watched]]:
        for scrape in self._scrapes:
            if scrape.watched:
                yield scrape, scrape.watched


def _numbers(part: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Yield every number in a finding's by its name; of a part of a part, "part.name"."""
    if isinstance(part, Mapping):
        for key, inner in part.items():
            if key == "model_version":  # a label already
                continue
            yield from _numbers(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(part, int | float):
        yield name, float(part)

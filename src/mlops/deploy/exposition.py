"""Metrics as JSON, and as Prometheus reads them. `docs/metrics.md` lists each; a test compares.

Both are written from the log's counts whenever they are asked for, so they survive restarts and
are the same whichever server process is asked: nothing is counted in this process's memory.
"""

from __future__ import annotations

import contextlib
import datetime
import math
import platform
from collections.abc import Iterator, Sequence
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

from mlops.records import Metrics, Totals
from mlops.usecase import UseCase

NOTHING = Totals(0, {}, 0, {}, None)
TEXT_TYPES = ("text/plain", "application/openmetrics-text")


class Scrape(NamedTuple):
    """One use case, as it is at this moment. `metrics` is None before its log is open."""

    use_case: UseCase
    ready: bool
    champion: int | None
    metrics: Metrics | None


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
        yield from self._traffic()

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
        unique = GaugeMetricFamily(
            "mlops_unique_clients",
            "Different clients in the window, by X-Client-ID; an estimate, standard error 1.6 %.",
            labels=("use_case", "window"),
        )
        for use_case, is_ready, version, metrics in self._scrapes:
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
            for window, numbers in metrics.windows.items():
                unique.add_metric((name, window), numbers["unique_users"])
        yield from (ready, champion, last, unique)

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
        for use_case, _, _, metrics in self._scrapes:
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

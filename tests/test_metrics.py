"""Metrics equal the log, whatever happened to it, in every window and in both forms."""

from __future__ import annotations

import asyncio
import datetime
import json
import re
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from conftest import REPOSITORY
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse
from test_log import failure, one, open_log, row, start_script

from mlops.database import connect, migrate
from mlops.deploy import exposition
from mlops.deploy.groupcommit import SECONDS_BETWEEN_TIMINGS
from mlops.deploy.service import Service
from mlops.errors import LogUnavailableError
from mlops.monitor import buckets, counts
from mlops.monitor.log import SCHEMA, PredictionLog
from mlops.records import Finding, Submission, Watched
from mlops.usecases.iris import IRIS

SETOSA = json.dumps(IRIS.examples["setosa"]).encode()
NOW = 0
"""When the test began: what is older is merged by the clock, however long other tests took."""


@pytest.fixture(autouse=True)
def _now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "NOW", int(time.time()))


def stamp(seconds_ago: float) -> str:
    moment = datetime.datetime.fromtimestamp(NOW - seconds_ago, datetime.UTC)
    return moment.isoformat(timespec="microseconds")


@pytest.fixture
def log(tmp_path: Path) -> Iterator[PredictionLog]:
    log = open_log(tmp_path)
    yield log
    log.close()


def window(log: PredictionLog, name: str, now: float | None = None) -> dict[str, Any]:
    return log.metrics(NOW if now is None else now).windows[name]


# Windows


def test_each_window_holds_what_fell_into_it(log):
    ages = [1, 30, 59, 90, 1800, 3500, 7200, 86_000, 90_000, 40 * 86_400]
    log.append([one(n, timestamp=stamp(age)) for n, age in enumerate(ages)])
    found = {name: window(log, name)["predictions"] for name in counts.WINDOWS}
    assert found == {"minute": 3, "hour": 6, "day": 8, "all": 10}
    assert log.metrics().totals.total_predictions == 10


def test_a_window_moves_on_with_the_clock(log):
    log.append([one(1, timestamp=stamp(0))])
    seen = [window(log, "minute", NOW + later)["predictions"] for later in (0, 59, 60, 61)]
    assert seen == [1, 1, 1, 0]
    assert window(log, "hour", NOW + 61)["predictions"] == 1


def test_rates_errors_and_warnings_are_of_the_window_and_of_each_version(log):
    log.append(
        [
            Submission((row("a", timestamp=stamp(5)), row("b", timestamp=stamp(5)))),
            one("c", timestamp=stamp(5), warnings='["odd"]', model_version=2),
            one("old", timestamp=stamp(5000), model_version=1, warnings='["odd"]'),
        ],
        [
            failure(422)._replace(timestamp=stamp(4), model_version=2),
            failure(503)._replace(timestamp=stamp(4)),
        ],
    )
    last = window(log, "minute")
    assert (last["requests"], last["predictions"], last["errors"]) == (4, 3, 2)
    assert (last["error_rate"], last["server_error_rate"]) == (0.5, 0.25)
    assert last["predictions_per_second"] == 3 / 60
    assert last["predictions_with_warnings"] == 1
    by_version = last["by_version"]
    assert set(by_version) == {"1", "2"}
    assert by_version["1"]["error_rate"] == 0
    assert by_version["2"]["error_rate"] == 0.5
    assert by_version["1"]["predictions_with_warnings"] == 0
    assert window(log, "day")["by_version"]["1"]["predictions_with_warnings"] == 1


def test_response_times_are_of_answers_and_of_each_version(log):
    slow = [(2, 200, 0.5, True)] * 5
    log.append([], timings=[(1, 200, 0.001, True)] * 95 + slow + [(1, 422, 60.0, True)] * 50)
    log.append([], timings=[(2, 200, 0.5, True)] * 5)
    times = window(log, "minute", time.time())["response_time_ms"]
    assert times["measured"] == 105
    assert times["p50"] == pytest.approx(1, rel=counts.QUANTILE_ERROR)
    assert times["p95"] == times["p99"] == pytest.approx(500, rel=counts.QUANTILE_ERROR)
    assert times["mean"] == pytest.approx((95 * 1 + 10 * 500) / 105)


def test_of_nothing_nothing_is_made_up(log):
    for name in counts.WINDOWS:
        empty = window(log, name)
        assert (empty["requests"], empty["unique_users"]) == (0, 0)
        assert empty["error_rate"] is None
        assert empty["peak_hour"] is None
        assert empty["response_time_ms"]["p50"] is None
    assert log.metrics().totals.last_updated is None


def test_the_peak_hour_is_found_even_when_only_its_day_is_kept(log):
    start = (NOW - 50 * 86_400) // 3600 * 3600
    old = [one(n, timestamp=stamp(NOW - start - 60 * n)) for n in range(5)]
    log.append(old)
    log.append([one(9, timestamp=stamp(10)), one(10, timestamp=stamp(10), model_version=2)])
    connection = log._writer
    buckets.merge(connection, NOW)
    buckets.merge(connection, NOW)
    widths = {width for (width,) in connection.execute("SELECT DISTINCT width FROM counts")}
    assert widths == {counts.SECOND, counts.DAY}
    peak = {"start": datetime.datetime.fromtimestamp(start, datetime.UTC).isoformat()}
    assert window(log, "all")["peak_hour"] == {**peak, "requests": 5}
    assert window(log, "all")["by_version"]["2"]["peak_hour"]["requests"] == 1
    assert window(log, "day")["peak_hour"]["requests"] == 2


# Users


def test_users_are_counted_in_each_window_and_version_by_their_digest(log):
    clients = ["a", "b", "a", None, "c"]
    log.append([one(n, client=name) for n, name in enumerate(clients)])
    log.append([one(f"2-{name}", client=name, model_version=2) for name in "cde"])
    for name in counts.WINDOWS:
        assert window(log, name)["unique_users"] == 5
        assert window(log, name)["by_version"].get("2", {"unique_users": 3})["unique_users"] == 3
    log._writer.execute("UPDATE clients SET last_seen = last_seen - 7200 WHERE model_version = 1")
    assert window(log, "hour")["unique_users"] == 3
    assert window(log, "day")["unique_users"] == 5


def test_marks_that_say_no_more_are_forgotten_without_changing_a_number(log):
    for late in (False, True):
        log.append([one(f"{late}{n}", client=f"{late}{n}") for n in range(9000)])
        if not late:
            log._writer.execute("UPDATE clients SET last_seen = last_seen - 7200")
    before = [window(log, name)["unique_users"] for name in counts.WINDOWS]
    kept = log._writer.execute("SELECT count(*) FROM clients").get
    log._writer.execute(buckets.FORGET_SURPASSED)
    assert [window(log, name)["unique_users"] for name in counts.WINDOWS] == before
    assert log._writer.execute("SELECT count(*) FROM clients").get < kept
    assert before[-1] == pytest.approx(18_000, rel=0.06)
    assert before[0] == pytest.approx(9_000, rel=0.06)


# Equal to the log


def counted_and_there(log: PredictionLog) -> None:
    table = "SELECT model_version, 200, count(*) FROM housinglogs GROUP BY 1"
    refused = "SELECT model_version, status, count(*) FROM failures GROUP BY 1, 2"
    there = {tuple(row) for sql in (table, refused) for row in log._writer.execute(sql)}
    counted = log._writer.execute(
        "SELECT model_version, status, sum(logged) FROM counts GROUP BY 1, 2"
    )
    assert {tuple(row) for row in counted if row[2]} == there


def test_merging_changes_no_total_and_leaves_few_buckets(log):
    for n in range(300):
        log.append([one(n, timestamp=stamp(n * n * 37), model_version=1 + n % 3)], [failure()])
        log.append([], timings=[(1, 200, 0.01, True)])
    before = log.metrics(NOW)
    for later in (0, 3600, 90_000, 40 * 86_400):
        buckets.merge(log._writer, NOW + later)
        after = log.metrics(NOW)
        assert after.totals == before.totals
        assert after.windows["all"]["response_time_ms"] == before.windows["all"]["response_time_ms"]
        assert after.windows["all"]["peak_hour"] == before.windows["all"]["peak_hour"]
        counted_and_there(log)
    widths = {width for (width,) in log._writer.execute("SELECT DISTINCT width FROM counts")}
    assert widths == {counts.DAY}


def test_what_is_rolled_back_is_not_counted_and_is_counted_when_sent_again(log):
    log.append([one(1)])
    log._writer.pragma("max_page_count", log._writer.pragma("page_count"))
    again = [one(2, client="c", model_version=7), one(3, inputs="x" * 100_000)]
    with pytest.raises(LogUnavailableError):
        log.append(again, [failure()])
    counted_and_there(log)
    log._writer.pragma("max_page_count", 100_000)
    log.append(again, [failure()])
    counted_and_there(log)
    assert window(log, "all")["unique_users"] == 2  # the failure's client is one too
    assert [row.id for row in log.rows(version=7)] == [2]


def test_a_resend_is_a_request_but_no_prediction_and_a_conflict_is_neither(log):
    log.append([one("a", "key"), one("a", "key")])
    log.append([one("a", "key"), one("b"), one("other", "key")])
    all_time = window(log, "all")
    assert (all_time["requests"], all_time["predictions"]) == (4, 2)
    counted_and_there(log)


def test_what_was_logged_before_there_were_counts_is_counted_once(tmp_path):
    path = tmp_path / "housinglogs" / "predictions.db"
    old = connect(path)
    migrate(old, [("m001_log", [SCHEMA.format(table="housinglogs")])])
    for n in range(50):
        item = n % 2  # pairs were batches
        old.execute(
            "INSERT INTO housinglogs VALUES (NULL, ?, '{}', 1.5, ?, ?, 'b', NULL, ?, ?, NULL, ?)",
            (
                stamp(n * 3000),
                f"p{n}",
                1 + n // 25,
                '["odd"]' if n == 7 else None,
                f"client {n % 4}",
                item,
            ),
        )
    old.execute("INSERT INTO totals VALUES (1, 25, 1, '', 1), (2, 25, 0, '', 26)")
    for n in range(3):
        old.execute("INSERT INTO failures VALUES (NULL, ?, '/', 422, '[]', '', NULL)", (stamp(n),))
    old.close()
    for _ in range(2):
        log = open_log(tmp_path)
        counted_and_there(log)
        metrics = log.metrics(NOW)
        assert metrics.totals.by_version == {1: 25, 2: 25}
        assert metrics.totals.failed_requests == {422: 3}
        assert metrics.totals.warned == 1
        assert metrics.windows["all"]["requests"] == 25 + 3
        assert metrics.windows["day"]["predictions"] == 29
        assert metrics.windows["all"]["unique_users"] == 4
        assert [row.id for row in log.rows(1, version=2)] == [50]
        assert not log._writer.table_exists("main", "totals")
        log.close()


def test_counts_equal_rows_after_kill_9_of_two_processes(tmp_path):
    writer = textwrap.dedent("""
        import os, sys
        from pathlib import Path
        from test_log import failure, one, open_log
        log, n = open_log(Path(sys.argv[1])), 0
        while True:
            n += 1
            row = one(f"{os.getpid()}-{n}", client=str(n))
            log.append([row], [failure()] * (n % 2), [(1, 200, 0.1, True)])
    """)
    log = open_log(tmp_path)
    before = 0
    for _ in range(3):
        writers = [start_script(writer, tmp_path) for _ in range(2)]
        deadline = time.monotonic() + 20
        while log.totals().total_predictions < before + 60 and time.monotonic() < deadline:
            time.sleep(0.01)
        for process in writers:
            process.kill()
            process.wait()
        counted_and_there(log)
        assert log.totals().total_predictions >= before + 60
        before = log.totals().total_predictions
    log.close()


# Over HTTP


LOOKED = "2026-11-01T12:00:00.000000+00:00"
WATCHED = Watched(
    disk_free=0.25,
    log_lines_behind=3,
    last_prediction=None,
    champion_registered=1_790_000_000.0,
    findings=(
        Finding("drift", "petal_width", "alarm", "", {"p": 1e-9, "psi": 0.4}, LOOKED),
        Finding("drift", "traffic", "cannot tell", "", {"rows": 3, "why": "few"}, LOOKED),
        Finding("quality", "all", "ok", "", {"model_version": 1, "score": {"mean": 0.9}}, LOOKED),
        Finding("experiment", "verdict", "alarm", "", {"model_version": 3, "mean": 0.1}, LOOKED),
    ),
    active={"disk": False, "drift": True},
    log_wal_bytes=4_152,
)


class World:
    """An application over a real log."""

    def __init__(self, log: PredictionLog, *, synced: bool = False) -> None:
        self.service = Service(IRIS)
        self.service.start(log, synced=synced)
        self.service.swap(tiny.champion(IRIS, 2))
        self.service.watched = lambda: WATCHED
        self.app = tiny.app_over(self.service)

    async def predict(self, body: bytes = SETOSA, **options: Any) -> tiny.Answer:
        return await tiny.ask(self.app, "POST", "/predict", body, **options)

    async def metrics(self, accept: str | None = None) -> tiny.Answer:
        headers = {"accept": accept} if accept else {}
        return await tiny.ask(self.app, "GET", "/metrics", headers=headers)


@pytest.fixture
def iris_log(tmp_path: Path) -> PredictionLog:
    return PredictionLog(tmp_path / "irislogs", "irislogs", "crash")


@pytest.mark.parametrize("by_fastapi", [False, True])
@pytest.mark.parametrize("synced", [False, True])
def test_every_answer_is_in_the_metrics_that_are_asked_for_next(iris_log, by_fastapi, synced):
    async def run() -> None:
        world = World(iris_log, synced=synced)
        for n in range(6):
            headers = {"x-client-id": f"user {n % 2}"}
            await world.predict(headers=headers, by_fastapi=by_fastapi)
        await world.predict(b"{}", by_fastapi=by_fastapi)
        metrics = (await world.metrics()).json
        assert metrics["total_predictions"] == 6
        assert metrics["last_updated"] is not None
        for name in ("minute", "hour", "day", "all"):
            found = metrics["windows"][name]
            assert (found["requests"], found["errors"], found["unique_users"]) == (7, 1, 2)
            assert found["response_time_ms"]["measured"] == 6
            assert found["by_version"]["2"]["requests"] == 7
        await world.service.stop()

    asyncio.run(run())


def test_an_answer_is_counted_within_a_second_and_with_the_last_words_of_a_server(tmp_path):
    async def run(wait: bool) -> int:
        world = World(log := PredictionLog(tmp_path / "irislogs", "irislogs", "crash"))
        await world.predict()
        if wait:
            await asyncio.sleep(SECONDS_BETWEEN_TIMINGS + 0.5)
            measured = window(log, "all")["response_time_ms"]["measured"]
        await world.service.stop()
        if wait:
            return measured
        log = PredictionLog(tmp_path / "irislogs", "irislogs", "crash")
        measured = window(log, "all")["response_time_ms"]["measured"]
        log.close()
        return measured

    assert asyncio.run(run(wait=True)) == 1
    assert asyncio.run(run(wait=False)) == 2


def test_requests_refused_while_the_log_could_not_be_written_are_counted_afterwards(iris_log):
    async def run() -> None:
        world = World(iris_log)
        await world.predict()
        iris_log._writer.set_busy_timeout(1)
        other = connect(iris_log.path)
        other.execute("BEGIN IMMEDIATE")
        for _ in range(3):
            assert (await world.predict()).status == 503
        other.execute("ROLLBACK")
        other.close()
        await world.predict()
        metrics = (await world.metrics()).json
        assert metrics["total_predictions"] == 2
        assert metrics["failed_requests"] == 0  # in the log there are none
        assert metrics["windows"]["all"]["requests"] == 5
        assert metrics["windows"]["all"]["server_error_rate"] == 0.6
        await world.service.stop()

    asyncio.run(run())


def samples(text: str) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in parse(text)
        for sample in family.samples
    }


def test_prometheus_reads_what_the_json_form_says(iris_log):
    async def run() -> None:
        world = World(iris_log)
        for n in range(5):
            await world.predict(headers={"x-client-id": f"user {n % 3}"})
        await world.predict(b"{}")
        as_json = (await world.metrics()).json
        answer = await world.metrics("text/plain;version=0.0.4")
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        found = samples(answer.body.decode())
        assert found["mlops_predictions_total", "2", "iris"] == as_json["total_predictions"] == 5
        assert found["mlops_requests_total", "2", "200", "iris"] == 5
        assert found["mlops_requests_total", "2", "422", "iris"] == 1
        assert found["mlops_request_duration_seconds_count", "2", "200", "iris"] == 5
        assert found["mlops_unique_clients", "iris", "minute"] == 3
        last = datetime.datetime.fromisoformat(as_json["last_updated"]).timestamp()
        assert found["mlops_last_prediction_timestamp_seconds", "iris"] == pytest.approx(last, 1e-6)

        answer = await world.metrics("application/openmetrics-text;version=1.0.0,*/*;q=0.1")
        assert answer.headers["content-type"].startswith("application/openmetrics-text")
        families = list(parse_openmetrics(answer.body.decode()))  # strict: units, order, EOF
        assert {family.name: family.type for family in families} == {
            re.sub("_total$", "", name): kind for name, kind, *_ in documented()
        }
        await world.service.stop()

    asyncio.run(run())


def test_what_is_watched_beside_the_traffic_is_a_gauge_each(iris_log):
    async def run() -> dict[tuple[str, ...], float]:
        world = World(iris_log)
        await world.predict()
        text = (await world.metrics("text/plain")).body.decode()
        await world.service.stop()
        return samples(text)

    found = asyncio.run(run())
    assert found["mlops_log_disk_free_ratio", "iris"] == 0.25
    assert found["mlops_log_lines_behind", "iris"] == 3
    assert found["mlops_log_wal_bytes", "iris"] == 4_152
    assert found["mlops_alert_active", "drift", "iris"] == 1
    assert found["mlops_alert_active", "disk", "iris"] == 0
    assert found["mlops_peak_hour_requests", "iris", "day"] == 1
    assert found["mlops_version_peak_hour_requests", "2", "iris", "day"] == 1
    assert found["mlops_drift_alarm", "2", "petal_width", "iris"] == 1
    assert found["mlops_drift_value", "psi", "2", "petal_width", "iris"] == 0.4
    looked = datetime.datetime.fromisoformat(LOOKED).timestamp()
    assert found["mlops_drift_checked_timestamp_seconds", "iris"] == looked
    # Of what cannot be told there are numbers, but no verdict.
    assert found["mlops_drift_value", "rows", "2", "traffic", "iris"] == 3
    assert ("mlops_drift_alarm", "2", "traffic", "iris") not in found
    # A finding that names its version keeps it when another has become champion since.
    assert found["mlops_quality_alarm", "1", "all", "iris"] == 0
    assert found["mlops_quality_value", "score.mean", "1", "all", "iris"] == 0.9


def documented() -> list[list[str]]:
    lines = (REPOSITORY / "docs" / "metrics.md").read_text().splitlines()
    cells = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if row[0].startswith("mlops_") and len(row) == 5]


def test_every_metric_is_documented_with_its_type_and_labels(iris_log):
    async def run() -> None:
        world = World(iris_log)
        await world.predict()
        text = (await world.metrics("text/plain")).body.decode()
        await world.service.stop()
        for name, kind, _, labels, _ in documented():
            [family] = [
                family for family in parse(text) if name in {family.name, f"{family.name}_total"}
            ]
            assert family.type == kind
            names = {label for sample in family.samples for label in sample.labels} - {"le"}
            assert names == set(re.findall(r"\w+", labels))
        assert len(documented()) == len(list(parse(text)))

    asyncio.run(run())


def test_every_field_of_the_json_form_is_documented(iris_log):
    async def run() -> dict[str, Any]:
        world = World(iris_log)
        await world.predict()
        answer = (await world.metrics()).json
        await world.service.stop()
        return answer

    answer = asyncio.run(run())
    text = (REPOSITORY / "docs" / "metrics.md").read_text()
    one_window = answer["windows"]["hour"]
    fields = [*answer, *answer["windows"], *one_window, *one_window["response_time_ms"]]
    known = {"use_case", "model", "model_version"}
    assert not [name for name in fields if name not in known and f"`{name}`" not in text]


@pytest.mark.parametrize(
    ("accept", "text"),
    [
        ("", False),
        ("*/*", False),
        ("application/json", False),
        ("application/json, text/plain, */*", False),  # what browsers' libraries send
        ("text/html,application/xhtml+xml,*/*;q=0.8", False),
        ("text/plain", True),
        ("text/plain, */*", True),
        ("text/plain;q=0.5,application/json;q=0.4", True),
        ("text/plain;q=0.3, application/json", False),
        ("text/plain;q=0", False),
        ("text/plain;q=x", True),
        ("application/openmetrics-text;version=1.0.0;q=0.6,text/plain;q=0.4,*/*;q=0.2", True),
        (",;,=;q", False),
    ],
)
def test_json_is_what_is_answered_unless_text_is_preferred(accept, text):
    assert exposition.wants_text(accept) is text


@pytest.mark.parametrize(
    "accept", ["text/plain;version=x", "application/openmetrics-text;version=,"]
)
def test_a_format_version_that_is_none_is_no_error(accept):
    content, kind = exposition.as_text([exposition.Scrape(IRIS, False, None, None)], accept, "1")
    assert b"mlops_ready" in content
    assert "text" in kind

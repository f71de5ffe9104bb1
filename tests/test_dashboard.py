"""The dashboard without a browser: the sentence, the routes behind the pages, and who gets them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
from conftest import REPOSITORY
from test_access import KEYS, LOCAL, bearer
from test_log import one

from mlops.dashboard.overview import Seen, judge, overview
from mlops.dashboard.pages import VIEWS
from mlops.dashboard.routes import describe
from mlops.deploy.app import App, build_app
from mlops.deploy.service import Service
from mlops.errors import MlopsError
from mlops.improve.ledger import Ledger, Version
from mlops.loop.dashboard import pages
from mlops.monitor.log import PredictionLog
from mlops.records import Metrics, Totals
from mlops.settings import read_settings
from mlops.usecases.housing import HOUSING
from mlops.usecases.iris import IRIS

STATIC = REPOSITORY / "src" / "mlops" / "dashboard" / "static"
WINDOW = {
    "requests": 735,
    "requests_per_second": 12.25,
    "predictions": 730,
    "predictions_with_warnings": 3,
    "error_rate": 0.002,
    "server_error_rate": 0.0,
    "unique_users": 4,
    "response_time_ms": {"measured": 735, "mean": 2.0, "p50": 1.5, "p95": 4.0, "p99": 9.0},
}
QUIET = {**WINDOW, "requests": 0, "requests_per_second": 0.0, "error_rate": None}
HEALTH = {"status": "healthy", "message": "", "model_version": 1, "candidate": "GradientBoosting"}


def metrics(**minute: Any) -> Metrics:
    now = {**WINDOW, **minute}
    version = {"predictions": 730, "response_time_ms": WINDOW["response_time_ms"]}
    windows = {"minute": now, "hour": now, "all": {"by_version": {"1": version}}}
    return Metrics(Totals(730, {1: 730}, 3, {}, None), windows, ())


def seen(**changes: Any) -> Seen:
    given: dict[str, Any] = {"health": HEALTH, "metrics": metrics(), "alerts": [], **changes}
    return Seen(HOUSING, **given)


@pytest.mark.parametrize(
    ("changes", "healthy", "sentence"),
    [
        (
            {},
            True,
            "healthy: version 1 answers, 12.2 requests/s, 0.2% errors, no open alerts",
        ),
        (
            {"metrics": metrics(**QUIET)},
            True,
            "healthy: version 1 answers, no requests in the last minute, no open alerts",
        ),
        (
            {"alerts": None},
            True,
            "healthy: version 1 answers, 12.2 requests/s, 0.2% errors, alerts cannot be told",
        ),
        (
            {"health": {**HEALTH, "status": "unavailable", "message": "no model yet"}},
            False,
            "not healthy: no model yet",
        ),
        ({"metrics": None}, False, "not healthy: the prediction log cannot be read"),
        (
            {"metrics": metrics(server_error_rate=0.034)},
            False,
            "not healthy: 3.4% of the last minute's requests met a server error; "
            "version 1 answers, 12.2 requests/s, 0.2% errors",
        ),
        (
            {"alerts": [{"says": "1 of 8 drifted: median_income is higher"}]},
            False,
            "not healthy: 1 open alert (1 of 8 drifted); version 1 answers, 12.2 requests/s, "
            "0.2% errors",
        ),
        (
            {"alerts": [{"says": "1 of 8 drifted: so"}, {"says": "slow"}], "trouble": "corrupt"},
            False,
            "not healthy: a newer version was refused: corrupt; "
            "2 open alerts (1 of 8 drifted, slow); "
            "version 1 answers, 12.2 requests/s, 0.2% errors",
        ),
    ],
)
def test_one_sentence_says_whether_it_is_healthy_and_why(changes, healthy, sentence):
    assert judge(seen(**changes)) == (healthy, sentence)


def test_the_overview_lists_versions_newest_first_and_names_the_one_that_answers():
    versions = [Version("housing", number, "b", "Tree", "r", "2026") for number in (1, 2)]
    found = overview(seen(versions=versions))
    assert [(each["version"], each["answers"]) for each in found["versions"]] == [
        (2, False),
        (1, True),
    ]
    assert [each["predictions"] for each in found["versions"]] == [0, 730]
    assert json.loads(json.dumps(found, allow_nan=False)) == found


class World:
    """Both use cases with the pages, over real logs and tiny models."""

    def __init__(self, folder: Path, *use_cases: Any) -> None:
        self.services = [Service(use_case) for use_case in use_cases]
        self.logs: dict[str, PredictionLog] = {}
        self.alerts: list[dict[str, Any]] | None = []
        self.settings = read_settings(MLOPS_HOME=folder)
        self.app: App = build_app(
            self.services,
            lifespan=lambda _: contextlib.nullcontext(),
            version="0",
            pages=pages(self.services, self.logs, self.listed, lambda: self.settings),
        )
        for service in self.services:
            name, table = service.use_case.name, service.use_case.log_name
            self.logs[name] = PredictionLog(folder / table, table, "crash")
        self.opened = dict(self.logs)

    def listed(self, names: Sequence[str]) -> dict[str, Any]:
        if self.alerts is None:
            raise MlopsError("the alerts cannot be read")
        return {"open": [one for one in self.alerts if one["use_case"] in names]}

    def ask(self, *paths: str, headers: dict[str, str] | None = None) -> list[tiny.Answer]:
        async def run() -> list[tiny.Answer]:
            for service in self.services:
                service.start(self.opened[service.use_case.name], synced=False)
                champion = tiny.champion(service.use_case)
                champion.bundle.reference = {}  # type: ignore[misc]
                service.swap(champion)
            return [
                await tiny.ask(self.app, "GET", path, headers=headers or LOCAL) for path in paths
            ]

        return asyncio.run(run())


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path, HOUSING, IRIS)
    yield world
    for log in world.opened.values():
        log.close()


PAGES = [
    "/dashboard",
    "/dashboard/ledger",
    *(f"/dashboard/{name}{v}" for name in ("housing", "iris") for v in VIEWS),
]


def test_every_page_loads_only_its_own_files_and_runs_nothing_inline(world):
    for path, answer in zip(PAGES, world.ask(*PAGES), strict=True):
        assert answer.status == 200, path
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
        assert "unsafe" not in policy
        assert not re.search(rb"<script>|<style|style=|\son\w+=|https?://", answer.body)
        used = re.findall(rb'(?:src|href)="(/dashboard/assets/[^"]+)"', answer.body)
        assert len(used) == 5
        assert all(one.status == 200 for one in world.ask(*(name.decode() for name in used)))


def test_every_file_is_served_with_its_type_and_no_other_is(world):
    kinds = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
    files = sorted(file for file in STATIC.iterdir() if file.suffix != ".html")
    assert {file.suffix for file in files} == set(kinds)
    for file, answer in zip(
        files, world.ask(*(f"/dashboard/assets/{file.name}" for file in files)), strict=True
    ):
        assert answer.body == file.read_bytes()
        assert answer.headers["content-type"].startswith(kinds[file.suffix])
    for wrong in ("page.html", "nothing.js", "..%2f..%2fpages.py", "__init__.py"):
        [answer] = world.ask(f"/dashboard/assets/{wrong}")
        assert answer.status == 404, wrong


def test_modules_ask_only_this_server_and_make_no_html_of_text():
    for file in STATIC.glob("*.js"):
        text = file.read_text()
        addresses = set(re.findall(r"https?://[^\"'` ]+", text))
        assert addresses <= {"http://www.w3.org/2000/svg"}, file.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text)


def test_pages_are_open_and_what_they_show_needs_a_key_that_reads(world):
    world.app.access.take(list(KEYS.values()))
    data = ["/overview", "/housing/overview", "/iris/predictions", "/iris/schema"]
    data += ["/housing/ledger", "/ledger", "/housing/experiments", "/experiments"]
    data += ["/housing/diagnosis", "/housing/card"]
    for path, answer in zip(PAGES, world.ask(*PAGES), strict=True):
        assert answer.status == 200, path
    assert world.ask("/dashboard/site.json")[0].status == 200
    assert {answer.status for answer in world.ask(*data)} == {401}
    assert {answer.status for answer in world.ask(*data, headers=bearer("predict"))} == {403}
    assert {answer.status for answer in world.ask(*data[:8], headers=bearer("read"))} == {200}
    own = [answer.status for answer in world.ask(*data[:3], headers=bearer("iris alone"))]
    assert own == [403, 403, 200]


def test_the_first_use_case_stands_at_the_root_too(world):
    world.logs["housing"].append([one(0)])
    for path in ("/predictions", "/schema"):
        own, at_root, other = world.ask(f"/housing{path}", path, f"/iris{path}")
        assert own.json == at_root.json != other.json


def test_of_one_use_case_the_routes_stand_at_the_root(tmp_path):
    world = World(tmp_path, IRIS)
    [site] = world.ask("/dashboard/site.json")
    assert site.json["use_cases"] == [
        {"name": "iris", "title": "Iris", "task": "classification", "routes": ""}
    ]
    there = ("/overview", "/predictions", "/schema", "/ledger", "/experiments")
    answers = world.ask(*there, "/iris/schema")
    assert [answer.status for answer in answers] == [200] * 5 + [404]
    world.logs["iris"].close()


def test_predictions_are_searched_over_http_with_limits_named(world):
    world.logs["housing"].append(
        [one(number, prediction=number / 10, inputs='{"latitude": 37.5}') for number in range(30)]
    )
    [found] = world.ask("/housing/predictions?min=2&max=2.2&limit=2")
    assert [row["prediction"] for row in found.json["predictions"]] == [2.2, 2.1]
    assert found.json["predictions"][0]["inputs"] == {"latitude": 37.5}
    assert "client" not in found.json["predictions"][0]
    assert found.json["says"].startswith("2 found, 9 examined: older ones")
    [rest] = world.ask(f"/housing/predictions?min=2&max=2.2&before={found.json['before']}")
    assert [row["prediction"] for row in rest.json["predictions"]] == [2.0]
    assert rest.json["before"] is None


def test_moments_outside_of_what_a_log_can_hold_are_no_error(world):
    queries = ("since=0457-04-05T16:34:51Z&limit=1", "until=0022-02-01T05:01:00%2B01:00")
    queries += ("until=9999-12-31T23:59:59-11:00&limit=1", "since=9999-12-31T23:59:59-11:00")
    answers = world.ask(*(f"/housing/predictions?{query}" for query in queries))
    assert [(one.status, one.json["predictions"]) for one in answers] == [(200, [])] * 4


def test_a_search_that_cannot_be_is_refused_by_field(world):
    queries = [
        *("limit=0", "limit=1001", "before=0", "before=99999999999999999999", "min=nan", "max=inf"),
        *("since=yesterday", "since=0.5", "until=99999-01-01", "warned=x"),
        *("version=-1", f"search={'x' * 201}"),
    ]
    answers = world.ask(*(f"/housing/predictions?{query}" for query in queries))
    for query, answer in zip(queries, answers, strict=True):
        assert answer.status == 422, query
        assert answer.json["detail"][0]["loc"] == ["query", query.partition("=")[0]]


def decide(world: World) -> None:
    """Two versions of housing with four lines about them, and one line about iris between."""
    with Ledger(world.settings.state_database) as ledger:
        versions = [Version("housing", number, "b", "Tree", "r", "2026") for number in (1, 2)]
        for version in (*versions, Version("iris", 1, "b", "Tree", "r", "2026")):
            ledger.register(version)
        ledger.promote(versions[0], expected=None, reason="the first", evidence=[], rule="gates")
        ledger.promote(
            Version("iris", 1, "b", "Tree", "r", "2026"), expected=None, reason="", evidence=[]
        )
        said = {"gate": "size", "outcome": "fail", "says": "large", "numbers": {"mb": 9.5}}
        ledger.refuse(
            versions[1], previous=1, reason="TOO large", evidence=[said], rule="gates", by="ann"
        )
        ledger.promote(versions[1], expected=1, reason="mine", evidence=[said], rule="force")
        ledger.promote(versions[0], expected=2, reason="", evidence=[], action="rollback")


def lines(answer: tiny.Answer) -> list[int]:
    return [one["id"] for one in answer.json["decisions"]]


def test_the_ledger_is_read_newest_first_in_stretches_and_by_what_is_asked(world):
    [empty] = world.ask("/housing/ledger")
    assert empty.json["decisions"] == []
    assert empty.json["chain"]["whole"]
    decide(world)
    paths = ["/ledger", "/housing/ledger", "/iris/ledger", "/ledger?limit=2", "/ledger?before=4"]
    paths += ["/ledger?action=promote", "/housing/ledger?version=2", "/ledger?search=too+LARGE"]
    paths += ["/ledger?search=force&limit=1", "/ledger?before=1"]
    found = world.ask(*paths)
    assert [lines(one) for one in found] == [
        *([5, 4, 3, 2, 1], [5, 4, 3, 1], [2], [5, 4], [3, 2, 1]),
        *([4, 2, 1], [5, 4, 3], [3], [4], []),
    ]
    assert [one.json["before"] for one in found] == [*(None,) * 3, 4, *(None,) * 6]
    assert found[3].json["found"] == 5
    assert found[2].json["actions"] == ["promote"]
    kept = found[7].json["decisions"][0]
    assert (kept["decided_by"], kept["evidence"][0]["numbers"]) == ("ann", {"mb": 9.5})
    assert found[0].json["chain"] == {
        "whole": True,
        "lines": 5,
        "head": found[0].json["decisions"][0]["hash"],
        "trouble": "",
        "line": None,
    }
    for query in ("limit=0", "limit=1001", "before=0", "version=-1", f"search={'x' * 201}"):
        assert world.ask(f"/ledger?{query}")[0].status == 422


@pytest.mark.parametrize("evidence", ["'[]'", "'{}'", "'no json'", "x'00ff'", "NULL || 1"])
def test_of_a_ledger_that_was_changed_the_lines_before_are_shown_and_the_trouble_is(
    world, evidence
):
    decide(world)
    with contextlib.closing(sqlite3.connect(world.settings.state_database)) as state:
        state.execute("DROP TRIGGER decisions_are_not_changed")
        state.execute("PRAGMA ignore_check_constraints = 1")
        state.execute(f"UPDATE OR IGNORE decisions SET evidence = {evidence} WHERE id = 4")
        state.execute("UPDATE decisions SET reason = 'x' WHERE id = 4")
        state.commit()
    answer, other = world.ask("/ledger", "/iris/ledger")
    assert (answer.status, lines(answer), lines(other)) == (200, [3, 2, 1], [2])
    assert not answer.json["chain"]["whole"]
    assert answer.json["chain"]["line"] == other.json["chain"]["line"] == 4
    assert "not what was written" in answer.json["chain"]["trouble"]


def test_experiments_are_told_of_whole_before_anything_was_found_and_when_they_are_over(world):
    [none] = world.ask("/experiments")
    assert [one["experiment"] for one in none.json["use_cases"]] == [None, None]
    decide(world)
    with Ledger(world.settings.state_database) as ledger:
        open_one = ledger.experiments.begin("housing", "ab", 2, share=0.25, reason="why not")
    housing, at_root, iris = world.ask("/housing/experiments", "/experiments", "/iris/experiments")
    [found] = housing.json["use_cases"]
    assert at_root.json["use_cases"] == [found, *iris.json["use_cases"]]
    assert iris.json["use_cases"][0]["experiment"] is None
    terms = found["experiment"]
    assert (terms["mode"], terms["challenger"], terms["share"]) == ("ab", 2, 0.25)
    assert found["verdict"]["outcome"] == "cannot tell yet"
    assert (found["rows_behind"], found["series"], found["past"]) == (None, [], [])
    with Ledger(world.settings.state_database) as ledger:
        ledger.experiments.end(open_one.id, "stopped", reason="enough")
    [found] = world.ask("/housing/experiments")[0].json["use_cases"]
    assert found["experiment"] is None
    assert [one["outcome"] for one in found["past"]] == ["stopped"]


def test_a_state_database_that_is_away_is_said_to_be(world):
    world.settings.state_database.parent.mkdir(parents=True, exist_ok=True)
    world.settings.state_database.write_bytes(b"no database " * 999)
    for path in ("/ledger", "/experiments"):
        [answer] = world.ask(path)
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")


def test_the_schema_says_all_that_a_form_needs():
    reference = {"latitude": {"quantiles": [32.0, 42.0], "values": None}}
    found = describe(HOUSING, (3, {"training_ranges": {"latitude": [32.5, 41.9]}}, reference))
    assert [field["name"] for field in found["fields"]] == list(HOUSING.fields)
    latitude = found["fields"][6]
    assert (latitude["low"], latitude["high"], latitude["seen"]) == (32, 42.5, [32.5, 41.9])
    assert latitude["quantiles"] == [32.0, 42.0]
    assert found["examples"] == {name: dict(row) for name, row in HOUSING.examples.items()}
    assert len(found["coordinates"]["outline"]) > 30
    without = describe(IRIS, None)
    assert without["model_version"] is None
    assert {field["seen"] for field in without["fields"]} == {None}


def test_the_diagnosis_of_the_version_that_answers_is_read_or_said_to_be_missing(world):
    [missing] = world.ask("/housing/diagnosis")
    assert missing.status == 404
    assert "mlops train housing" in missing.json["detail"][0]["msg"]
    world.settings.diagnoses.mkdir(parents=True)
    (world.settings.diagnoses / f"{1:064x}.json").write_text('{"residuals": {"mean": 0.1}}')
    [found] = world.ask("/housing/diagnosis")
    assert found.json == {"model_version": 1, "residuals": {"mean": 0.1}}


def test_an_open_alert_makes_its_own_use_case_ill_and_alerts_that_cannot_be_read_nobody(world):
    world.alerts = [{"use_case": "iris", "rule": "drift", "says": "petal_width differs"}]
    housing, iris = world.ask("/overview")[0].json["use_cases"]
    assert (housing["healthy"], iris["healthy"]) == (True, False)
    assert "1 open alert (petal_width differs)" in iris["sentence"]
    assert iris["alerts"] == world.alerts
    world.alerts = None
    housing, iris = world.ask("/overview")[0].json["use_cases"]
    assert housing["healthy"]
    assert iris["healthy"]
    assert iris["alerts"] is None
    assert iris["sentence"].endswith("alerts cannot be told")


def test_the_overview_counts_what_was_logged_and_survives_a_log_that_is_away(world):
    [before] = world.ask("/overview")
    [housing, _] = before.json["use_cases"]
    assert housing["sentence"] == (
        "healthy: version 1 answers, no requests in the last minute, no open alerts"
    )
    assert len(housing["minutes"]) == 60
    world.logs["housing"].append([one(number) for number in range(7)])
    [after] = world.ask("/housing/overview")
    assert after.json["use_cases"][0]["total_predictions"] == 7
    world.logs.clear()
    [away] = world.ask("/overview")
    assert away.json["use_cases"][0]["sentence"] == (
        "not healthy: the prediction log cannot be read"
    )

"""Findings: what the last look of each monitor found, kept with the log."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from mlops import clock
from mlops.database import connect, transaction
from mlops.monitor import findings
from mlops.monitor.log import PredictionLog
from mlops.records import Finding

OK = Finding("drift", "latitude", "ok", "as in training", {"p": 0.4})
ALARM = Finding("drift", "latitude", "alarm", "moved", {"p": 1e-9, "bins": [1, 2]})


@pytest.fixture
def log(tmp_path: Path):
    made = PredictionLog(tmp_path, "housinglogs", "crash")
    yield made
    made.close()


def without_time(found: list[Finding]) -> list[Finding]:
    return [one._replace(at="") for one in found]


def test_a_log_without_findings_has_none(log):
    assert log.findings() == []


def test_the_last_look_of_each_kind_is_what_holds_now(log):
    other = Finding("performance", "r2_score", "cannot tell", "no truths yet", {})
    log.record_findings([OK, OK._replace(subject="longitude")])
    log.record_findings([other])
    log.record_findings([ALARM])
    assert without_time(log.findings()) == [other, ALARM]
    assert without_time(log.findings("drift")) == [ALARM]
    assert log.findings("drift")[0].at > log.findings("performance")[0].at


def test_of_two_looks_at_one_moment_the_later_one_holds(log, monkeypatch):
    now = clock.unix()
    monkeypatch.setattr(clock, "unix", lambda: now)
    log.record_findings([ALARM, OK._replace(subject="longitude")])
    log.record_findings([OK])
    assert without_time(log.findings()) == [OK]


def test_findings_outlive_the_process_that_recorded_them(log, tmp_path):
    log.record_findings([ALARM])
    again = PredictionLog(tmp_path, "housinglogs", "crash")
    assert without_time(again.findings()) == [ALARM]
    again.close()


def test_what_json_cannot_hold_is_not_recorded_in_part(log):
    log.record_findings([OK])
    with pytest.raises(ValueError, match="JSON"):
        log.record_findings([ALARM, ALARM._replace(numbers={"p": float("nan")})])
    assert without_time(log.findings()) == [OK]


def test_history_is_kept_for_ninety_days(log):
    connection = connect(log.path)
    now = datetime.datetime(2026, 11, 1, tzinfo=datetime.UTC)
    for days in (0, 50, 100):
        with transaction(connection):
            findings.record(connection, [OK], now + datetime.timedelta(days=days))
    kept = findings.history(connection, "drift", "2026")
    assert [one.at[:10] for one in kept] == ["2026-12-21", "2027-02-09"]
    connection.close()


def test_a_finding_says_which_version_it_is_about_and_0_is_none():
    [found] = findings.of_version(3, [ALARM])
    assert found.numbers == {"model_version": 3, **ALARM.numbers}
    assert findings.of_version(None, [OK])[0].numbers["model_version"] == 0

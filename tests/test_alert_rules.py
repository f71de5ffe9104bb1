"""Rules read what is known, and say it with numbers; alerts start and end once each."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest

from mlops.database import transaction
from mlops.errors import UsageError
from mlops.monitor.alerts.book import (
    FIRST_RETRY,
    LEASE,
    SECONDS_UNTIL_GIVEN_UP,
    AlertBook,
    Channel,
)
from mlops.monitor.alerts.channels import cleared, parse_channels
from mlops.monitor.alerts.rules import (
    FEWEST_REQUESTS,
    LONGEST_DOUBT,
    LONGEST_GAP,
    RULES,
    Known,
    Limits,
    Reading,
    step,
)
from mlops.records import Alert, Finding, Watched

NOW = 1_800_000_000.0
HOLD = 30.0
LIMITS = Limits()
HOOK = Channel("json", "json://127.0.0.1:9/secretpath")
SLACK = Channel("slack", "slack://tokenA/tokenB/tokenC")
RULE = {rule.name: rule for rule in RULES}
WELL = Watched(0.5, 0, NOW - 10, NOW - 86_400, log_wal_bytes=33_000_000)


def traffic(requests: int, errors: int = 0, p95: float = 3.0) -> dict[str, Any]:
    ok = requests - errors
    return {
        "seconds": 300,
        "requests": requests,
        "requests_by_status": {"200": ok, "422": errors},
        "error_rate": errors / requests if requests else None,
        "response_time_ms": {"measured": ok, "p95": p95 if ok else None},
    }


def known(**changes: Any) -> Known:
    return Known(NOW, "", traffic(1000), None, WELL)._replace(**changes)


def read(rule: str, what: Known, limits: Limits = LIMITS) -> Reading:
    return RULE[rule].read(what, limits)


def finding(kind: str, verdict: Any, subject: str = "latitude", age: float = 60) -> Finding:
    at = datetime.datetime.fromtimestamp(NOW - age, datetime.UTC).isoformat()
    return Finding(kind, subject, verdict, f"{subject} is {verdict}", {}, at)


def watched(**changes: Any) -> Known:
    return known(watched=WELL._replace(**changes))


# What each rule reads


def test_where_all_is_well_no_rule_is_broken():
    findings = (finding("drift", "ok"), finding("quality", "ok"))
    for rule in RULES:
        assert rule.read(watched(findings=findings), Limits()).breached is False, rule.name


@pytest.mark.parametrize(
    ("rule", "broken", "says"),
    [
        ("unavailable", known(not_ready="no model yet"), "no model yet"),
        ("error_rate", known(traffic=traffic(1000, 60)), "6.0% of 1,000 requests in 5 minutes"),
        ("slow", known(traffic=traffic(1000, p95=612.0)), "took up to 612 ms; the limit is 500"),
        ("drift", watched(findings=(finding("drift", "alarm"),)), "latitude is alarm"),
        ("quality", watched(findings=(finding("quality", "alarm", "rmse"),)), "rmse is alarm"),
        (
            "experiment",
            watched(findings=(finding("experiment", "alarm", "verdict"),)),
            "verdict is",
        ),
        ("stale_model", watched(champion_registered=NOW - 91 * 86_400), "91.0 days ago"),
        ("unwatched", watched(findings=(finding("drift", "ok", age=90_010),)), "25.0 hours"),
        ("disk", watched(disk_free=0.03), "3.0% of the log's disk is free; the limit is 5.0%"),
        ("wal", watched(log_wal_bytes=1_100_000_000), "has 1,100 MB, the limit is 1,074 MB"),
        ("log_stopped", watched(log_lines_behind=7), "predictions.log lacks 7 of the rows"),
        ("log_stopped", known(log_failed="no space left"), "cannot be written"),
    ],
)
def test_a_rule_that_is_broken_says_so_with_numbers(rule: str, broken: Known, says: str):
    reading = read(rule, broken)
    assert reading.breached is True
    assert says in reading.says


def test_silence_is_told_only_where_it_has_a_limit():
    quiet = watched(last_prediction=NOW - 7_200)
    assert read("silent", quiet).breached is False
    reading = read("silent", quiet, Limits(silent_minutes=60))
    assert (reading.breached, reading.value) == (True, 120)


def test_exactly_the_limit_is_not_above_it():
    assert read("error_rate", known(traffic=traffic(1000, 50))).breached is False
    assert read("error_rate", known(traffic=traffic(1000, 51))).breached is True


@pytest.mark.parametrize(
    ("rule", "unsure"),
    [
        ("error_rate", known(traffic=traffic(2, 1))),
        ("error_rate", known(traffic=traffic(FEWEST_REQUESTS - 1, FEWEST_REQUESTS - 1))),
        ("error_rate", known(traffic=None)),
        ("slow", known(traffic=None)),
        ("slow", known(traffic=traffic(FEWEST_REQUESTS - 1, p95=9_000))),
        ("drift", watched(findings=(finding("drift", "cannot tell"),))),
        ("quality", known()),
        ("unwatched", known()),
        ("disk", watched(disk_free=None)),
        ("wal", watched(log_wal_bytes=None)),
        ("log_stopped", watched(log_lines_behind=None)),
    ],
)
def test_what_cannot_be_told_is_neither_a_breach_nor_well(rule: str, unsure: Known):
    assert read(rule, unsure).breached is None


# From readings to alerts

BAD, GOOD, UNSURE = Reading(True, "bad", 2, 1), Reading(False, "good", 0, 1), Reading(None, "?")


def follow(*readings: tuple[float, Reading]) -> Alert | None:
    alert = None
    for seconds, reading in readings:
        alert = step(alert, "iris", RULE["disk"], reading, NOW + seconds, HOLD)
    return alert


def test_a_breach_opens_an_alert_when_it_has_lasted():
    assert follow((0, GOOD)) is None
    assert follow((0, BAD), (29, BAD)).opened is None
    assert follow((0, BAD), (29, BAD), (30, BAD)).opened == NOW + 30
    assert follow((0, BAD), (29, BAD), (30, BAD)).since == NOW


def test_a_breach_that_stops_in_time_was_no_alert():
    assert follow((0, BAD), (20, GOOD)) is None
    assert follow((0, BAD), (20, GOOD), (40, BAD), (65, BAD)).opened is None


def test_a_breach_that_nobody_watched_has_to_last_anew():
    late = LONGEST_GAP + 1
    assert follow((0, BAD), (late, BAD)).opened is None
    assert follow((0, BAD), (late, BAD)).since == NOW + late


def test_an_alert_ends_when_all_was_well_for_as_long():
    opened = ((0, BAD), (30, BAD))
    assert follow(*opened, (40, GOOD), (69, GOOD)).ended is None
    assert follow(*opened, (40, GOOD), (70, GOOD)).ended == NOW + 70
    assert follow(*opened, (40, GOOD), (50, BAD), (60, GOOD), (80, GOOD)).ended is None


def test_an_alert_that_nothing_confirms_ends_late():
    opened = ((0, BAD), (30, BAD), (40, UNSURE))
    assert follow(*opened, (40 + LONGEST_DOUBT - 1, UNSURE)).ended is None
    assert follow(*opened, (40 + LONGEST_DOUBT, UNSURE)).ended == NOW + 40 + LONGEST_DOUBT


# The book


@pytest.fixture
def book(tmp_path: Path):
    with AlertBook(tmp_path / "alerts.db") as made:
        yield made


def readings(**of: Reading) -> dict[str, Reading]:
    return {**dict.fromkeys(RULE, GOOD), **of}


def start(book: AlertBook, now: float = NOW, channels=(HOOK,)) -> None:
    book.take("iris", readings(disk=BAD), now, 0, channels)


def end(book: AlertBook, now: float, channels=(HOOK,)) -> None:
    book.take("iris", readings(), now, 0, channels)


def events(book: AlertBook, now: float, channels=(HOOK,)) -> list[tuple[str, str]]:
    return [(one.event, one.channel) for one in book.claim(now, channels)]


def test_one_start_and_one_end_make_one_message_each_however_often_it_is_looked(book):
    for second in range(5):
        start(book, NOW + second)
    for second in range(5, 10):
        end(book, NOW + second)
    [message] = book.claim(NOW + 10, (HOOK,))
    assert (message.event, message.says) == ("started", "bad")
    book.settle(message, None, NOW + 10)
    [message] = book.claim(NOW + 10, (HOOK,))
    assert (message.event, message.says) == ("ended", "good")
    book.settle(message, None, NOW + 10)
    assert book.claim(NOW + 99_999, (HOOK,)) == []


def test_each_channel_has_its_own_messages(book):
    start(book, channels=(HOOK, SLACK))
    assert sorted(events(book, NOW, (HOOK, SLACK))) == sorted(
        [("started", HOOK.key), ("started", SLACK.key)]
    )


def test_a_second_process_is_not_handed_what_the_first_has_claimed(book, tmp_path):
    start(book)
    with AlertBook(tmp_path / "alerts.db") as other:
        assert events(book, NOW) == [("started", HOOK.key)]
        assert events(other, NOW + LEASE - 1) == []
        # ... unless the first has died in the meantime
        assert events(other, NOW + LEASE) == [("started", HOOK.key)]


def test_a_message_that_was_not_taken_is_tried_again_ever_later_and_given_up_after_a_day(book):
    start(book)
    now, waited = NOW, []
    while messages := book.claim(now, (HOOK,)):
        book.settle(messages[0], "Connection refused", now)
        before = now
        while not book.claim(now, (HOOK,)) and now < NOW + SECONDS_UNTIL_GIVEN_UP:
            now += 0.5
        waited.append(now - before)
        assert book.failing(HOOK) == (1, "Connection refused")
        now += LEASE  # the claim above is not settled
    assert waited[0] == FIRST_RETRY
    assert waited[:-1] == sorted(waited[:-1])
    assert 100 < len(waited) < 200


def test_an_end_is_told_after_its_start_even_if_the_start_came_late(book):
    start(book)
    [first] = book.claim(NOW, (HOOK,))
    end(book, NOW + 1)
    assert events(book, NOW + 2) == []
    book.settle(first, "down", NOW + 2)
    [again] = book.claim(NOW + 10, (HOOK,))
    assert again.event == "started"
    book.settle(again, None, NOW + 10)
    assert events(book, NOW + 11) == [("ended", HOOK.key)]


def test_a_channel_that_is_no_longer_configured_gets_nothing(book):
    start(book)
    assert events(book, NOW, (SLACK,)) == []
    assert events(book, NOW, ()) == []


def test_who_finds_a_look_due_when_another_does_leaves_it_to_the_first(book, tmp_path, monkeypatch):
    assert book.due("iris", NOW, 5)
    with AlertBook(tmp_path / "alerts.db") as other:

        def after_the_other(database: Any) -> Any:
            monkeypatch.undo()
            assert other.due("iris", NOW + 5, 5)
            return transaction(database)

        monkeypatch.setattr("mlops.monitor.alerts.book.transaction", after_the_other)
        assert not book.due("iris", NOW + 5, 5)


def test_of_all_processes_one_looks_at_a_time(book, tmp_path):
    with AlertBook(tmp_path / "alerts.db") as other:
        asked = [one.due("iris", NOW, 5) for one in (book, other, book)]
        assert asked == [True, False, False]
        assert other.due("housing", NOW, 5)
        assert not other.due("iris", NOW + 4.9, 5)
        assert other.due("iris", NOW + 5, 5)
        assert book.due("iris", NOW - 3_600, 5), "a clock that was set back"


def test_open_and_ended_alerts_are_listed_for_a_week(book):
    start(book)
    assert [one.rule for one in book.alerts(("iris",), NOW)[0]] == ["disk"]
    assert book.alerts(("housing",), NOW) == ([], [])
    assert book.active("iris") == {"disk"}
    end(book, NOW + 60)
    opened, ended = book.alerts(("iris",), NOW + 60)
    assert (opened, [one.rule for one in ended]) == ([], ["disk"])
    assert book.active("iris") == set()
    assert book.alerts(("iris",), NOW + 8 * 86_400) == ([], [])


# Channels


def test_channels_are_named_by_scheme_and_place():
    text = "json://127.0.0.1:9/a, mailtos://host?user=me&to=a@b.c,d@e.f ,json://host/b"
    names = [(one.name, one.url) for one in parse_channels(text)]
    assert names == [
        ("json", "json://127.0.0.1:9/a"),
        ("mailtos", "mailtos://host?user=me&to=a@b.c,d@e.f"),
        ("json 2", "json://host/b"),
    ]
    assert parse_channels("") == parse_channels(" , ") == ()


def test_what_is_no_address_is_named_by_its_place_and_not_shown():
    with pytest.raises(UsageError, match="ALERT_URLS: number 1 is no address") as caught:
        parse_channels("hunter2,json://host")
    assert "hunter2" not in str(caught.value)


def test_no_part_of_an_address_stays_in_what_is_shown():
    url = "json://" + "user:hunter2" + "@hooks.test/T012345?token=abcdef"
    said = f"POST {url} to hooks.test failed: /T012345 is gone, abcdef, user:hunter2"
    shown = cleared(said, url)
    assert not [part for part in ("hunter2", "T012345", "abcdef", "hooks.test") if part in shown]
    assert "failed" in shown

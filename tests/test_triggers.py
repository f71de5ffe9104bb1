"""Triggers: what is a reason to train again, and what is none."""

from __future__ import annotations

import dataclasses
import datetime
from typing import Any

import pytest

from mlops.improve.triggers import MOST_DEATHS, Known, ask
from mlops.records import Finding
from mlops.usecase import Retraining

NOW = datetime.datetime(2026, 6, 1, 12, tzinfo=datetime.UTC)
DAY = datetime.timedelta(days=1)
RULES = Retraining(max_age_days=90, new_rows=1000, every_days=0, pause_days=0.5)
CALM = Known(now=NOW, champion=3, trained=NOW - 10 * DAY, promoted=NOW - 10 * DAY)


def known(**changes: Any) -> Known:
    return dataclasses.replace(CALM, **changes)


def finding(kind: str, verdict: Any, days_ago: float = 1.0, subject: str = "MedInc") -> Finding:
    at = (NOW - days_ago * DAY).isoformat(timespec="microseconds")
    return Finding(kind, subject, verdict, "PSI 0.4, allowed 0.1", {"psi": 0.4}, at)


def test_where_all_is_well_there_is_no_reason_and_it_is_said_how_far_from_one():
    answer = ask(CALM, RULES)
    assert answer.reason is None
    assert answer.says == "no findings, 0 new rows of 1,000, 10 days old of 90"


@pytest.mark.parametrize("kind", ["drift", "quality"])
def test_an_alarm_of_a_monitor_is_a_reason_that_names_what_it_found(kind):
    found = [finding(kind, "ok", subject="other"), finding(kind, "alarm"), finding(kind, "alarm")]
    reason = ask(known(findings=found), RULES).reason
    assert reason is not None
    assert (reason.trigger, reason.numbers["subjects"]) == (kind, ["MedInc", "MedInc"])
    assert reason.says == "MedInc: PSI 0.4, allowed 0.1; and 1 more"


def test_what_a_monitor_cannot_tell_is_no_reason():
    answer = ask(known(findings=[finding("drift", "cannot tell")]), RULES)
    assert answer.reason is None
    assert answer.says.startswith("1 findings, none an alarm (1 cannot tell), ")


def test_an_alarm_of_another_kind_is_no_reason():
    assert ask(known(findings=[finding("latency", "alarm")]), RULES).reason is None


def test_an_alarm_from_before_the_promotion_was_about_another_model():
    old = [finding("drift", "alarm", days_ago=11)]
    assert ask(known(findings=old), RULES).reason is None
    assert ask(known(findings=old, promoted=NOW - 12 * DAY), RULES).reason is not None


@pytest.mark.parametrize(("version", "due"), [(3, True), (2, False)])
def test_an_alarm_that_names_its_version_counts_for_that_one_alone(version, due):
    said = finding("drift", "alarm", days_ago=11)._replace(numbers={"model_version": version})
    assert (ask(known(findings=[said]), RULES).reason is not None) == due


@pytest.mark.parametrize(("rows", "due"), [(999, False), (1000, True)])
def test_enough_new_rows_are_a_reason(rows, due):
    reason = ask(known(new_rows=rows), RULES).reason
    assert (reason is not None and reason.trigger == "new truth") == due


@pytest.mark.parametrize(("days", "due"), [(89.9, False), (90, True)])
def test_age_is_a_reason(days, due):
    reason = ask(known(trained=NOW - days * DAY), RULES).reason
    assert (reason is not None and reason.trigger == "age") == due


def test_a_champion_that_was_looked_at_since_is_not_old():
    old = known(trained=NOW - 200 * DAY, last_began=NOW - 5 * DAY, last_ended=NOW - 5 * DAY)
    assert ask(old, RULES).reason is None


def test_a_schedule_counts_from_the_last_training_or_retraining():
    weekly = dataclasses.replace(RULES, every_days=7)
    reason = ask(CALM, weekly).reason
    assert reason is not None
    assert reason.trigger == "schedule"
    assert ask(known(last_began=NOW - 3 * DAY, last_ended=NOW - 3 * DAY), weekly).reason is None


def test_zero_switches_a_trigger_off():
    never = Retraining(max_age_days=0, new_rows=0, every_days=0)
    assert ask(known(new_rows=10**6, trained=NOW - 999 * DAY), never).reason is None


def test_after_a_retraining_nothing_is_a_reason_for_a_while_then_everything_is_again():
    lasting = [finding("drift", "alarm")]
    just_now = known(findings=lasting, last_began=NOW - 0.4 * DAY, last_ended=NOW - 0.4 * DAY)
    answer = ask(just_now, RULES)
    assert answer.reason is None
    assert "nothing is a reason until 2026-06-01 14:24 UTC (RETRAIN_PAUSE_DAYS=0.5)" in answer.says
    later = known(findings=lasting, last_began=NOW - 0.6 * DAY, last_ended=NOW - 0.6 * DAY)
    assert ask(later, RULES).reason is not None


def test_one_that_died_is_resumed_at_once_but_not_for_ever():
    died = known(died="drift: MedInc", deaths=1, last_began=NOW - 0.01 * DAY)
    reason = ask(died, RULES).reason
    assert reason is not None
    assert (reason.trigger, reason.numbers) == ("resume", {"deaths": 1})
    assert "drift: MedInc" in reason.says
    assert ask(dataclasses.replace(died, deaths=MOST_DEATHS), RULES).reason is None


def test_without_a_champion_that_is_the_reason():
    nothing = Known(now=NOW, champion=None)
    reason = ask(nothing, RULES).reason
    assert reason is not None
    assert reason.trigger == "first"


def test_the_first_reason_in_the_order_of_the_triggers_is_the_reason():
    both = known(findings=[finding("quality", "alarm"), finding("drift", "alarm")], new_rows=10**6)
    reason = ask(both, RULES).reason
    assert reason is not None
    assert reason.trigger == "drift"

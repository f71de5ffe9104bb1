"""A challenger beside the champion: at most one a use case, each change a line of the ledger."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_ledger import version

from mlops.database import connect, migrate
from mlops.errors import ChampionMovedError, NotTrainedError, UsageError
from mlops.improve import ledger as ledgers
from mlops.improve.experiments import Experiments
from mlops.improve.ledger import Ledger


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "models" / "state.db"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    """Versions 1 to 3 of housing, of which 1 is champion."""
    with Ledger(path) as opened:
        for number in (1, 2, 3):
            opened.register(version(number))
        opened.promote(version(1), expected=None, reason="first", evidence=[])
        yield opened


@pytest.fixture
def experiments(ledger: Ledger) -> Experiments:
    return ledger.experiments


def written(ledger: Ledger) -> list[tuple[str, int, int | None, str]]:
    """The lines since the first promotion."""
    lines = ledger.decisions("housing")[1:]
    return [(one.action, one.version, one.previous, one.reason) for one in lines]


def test_a_shadow_answers_nobody_and_is_written_down_with_its_terms(ledger, experiments):
    assert experiments.open("housing") is None
    begun = experiments.begin("housing", "shadow", 2, reason="does it hold?", by="ann")
    assert experiments.open("housing") == begun
    assert experiments.all("housing") == [begun]
    assert experiments.all("iris") == []
    assert (begun.mode, begun.champion, begun.challenger) == ("shadow", 1, 2)
    assert (begun.share, begun.alpha, begun.auto) == (0.0, 0.05, False)
    assert (begun.ended_utc, begun.outcome) == (None, None)
    assert written(ledger) == [("shadow", 2, 1, "does it hold?")]
    [line] = ledger.decisions("housing")[1:]
    assert line.decided_by == "ann"
    assert line.evidence == [begun.terms()]
    assert ledger.verify().whole


def test_the_share_of_an_ab_changes_and_all_shares_are_kept(ledger, experiments):
    begun = experiments.begin("housing", "ab", 3, share=0.1, alpha=0.01, auto=True)
    experiments.set_share(begun.id, 0.25, reason="no harm so far", by="bob")
    now = experiments.open("housing")
    assert now.share == 0.25
    assert [share for _, share in now.shares] == [0.1, 0.25]
    assert now.shares[0][0] <= now.shares[1][0]
    assert (now.salt, now.alpha, now.auto) == (begun.salt, 0.01, True)
    assert written(ledger) == [("ab", 3, 1, ""), ("share", 3, 1, "no harm so far")]
    assert ledger.decisions("housing")[-1].evidence[0]["share"] == 0.25
    assert ledger.verify().whole


def test_each_experiment_divides_the_clients_anew(experiments):
    first = experiments.begin("housing", "ab", 2, share=0.5)
    experiments.end(first.id, "stopped")
    assert experiments.begin("housing", "ab", 2, share=0.5).salt != first.salt


def test_one_is_open_at_a_time_and_an_ended_one_stays_ended(ledger, experiments):
    first = experiments.begin("housing", "ab", 2, share=0.5)
    with pytest.raises(UsageError, match=r"version 2 is held against version 1 already .*stop"):
        experiments.begin("housing", "shadow", 3)
    evidence = [{"verdict": "worse", "labels": 900}]
    experiments.end(first.id, "kept", "worse", evidence, rule="verdict", by="the server")
    assert experiments.open("housing") is None
    ended = experiments.all("housing")[0]
    assert ended.outcome == "kept"
    assert ended.ended_utc > ended.started_utc
    last = ledger.decisions("housing")[-1]
    assert (last.action, last.rule, last.decided_by) == ("end", "verdict", "the server")
    assert last.evidence == [{**ended.terms(), "outcome": "kept"}, *evidence]
    before = ledger.decisions()
    for again in (
        lambda: experiments.end(first.id, "stopped"),
        lambda: experiments.set_share(first.id, 0.1),
        lambda: experiments.end(99, "stopped"),
    ):
        with pytest.raises(UsageError, match="is not open"):
            again()
    assert ledger.decisions() == before
    experiments.begin("housing", "shadow", 3)
    assert ledger.verify().whole


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5, float("nan")])
def test_a_share_that_is_none_is_refused_with_its_limits(ledger, experiments, share):
    with pytest.raises(UsageError, match="above 0 and below 1"):
        experiments.begin("housing", "ab", 2, share=share)
    assert experiments.open("housing") is None
    begun = experiments.begin("housing", "ab", 2, share=0.5)
    with pytest.raises(UsageError, match="above 0 and below 1"):
        experiments.set_share(begun.id, share)
    assert experiments.open("housing") == begun
    assert len(written(ledger)) == 1


def test_what_cannot_be_tried_is_refused_and_nothing_is_written(ledger, experiments):
    for number, options, says in (
        (1, {}, "version 1 is the champion itself"),
        (9, {}, r"no version 9 \(registered: 1, 2, 3\)"),
        (2, {"share": 0.5}, "in its shadow nobody is answered"),
        (2, {"alpha": 0.0}, "alpha is 0"),
        (2, {"alpha": float("nan")}, "alpha is nan"),
    ):
        with pytest.raises(UsageError, match=says):
            experiments.begin("housing", "shadow", number, **options)
    ledger.register(version(1, "iris"))
    with pytest.raises(NotTrainedError, match="iris has no champion"):
        experiments.begin("iris", "shadow", 1)
    begun = experiments.begin("housing", "shadow", 2)
    with pytest.raises(UsageError, match="in its shadow nobody is answered"):
        experiments.set_share(begun.id, 0.5)
    assert len(written(ledger)) == 1
    assert ledger.decisions("iris") == []


# --- promotions


@pytest.mark.parametrize(("promoted", "outcome"), [(2, "promoted"), (3, "stopped")])
def test_a_promotion_ends_the_experiment_in_the_same_transaction(
    ledger, experiments, promoted, outcome
):
    experiments.begin("housing", "ab", 2, share=0.5)
    ledger.promote(version(promoted), expected=1, reason="why", evidence=[], by="ann")
    assert experiments.open("housing") is None
    assert experiments.all("housing")[-1].outcome == outcome
    says = f"{outcome}: version {promoted} became champion: why"
    assert written(ledger)[1:] == [("promote", promoted, 1, "why"), ("end", 2, 1, says)]
    assert ledger.verify().whole


def test_a_rollback_stops_it_and_a_promotion_that_came_too_late_leaves_it(ledger, experiments):
    ledger.promote(version(2), expected=1, reason="", evidence=[])
    begun = experiments.begin("housing", "ab", 3, share=0.5)
    with pytest.raises(ChampionMovedError):
        ledger.promote(version(3), expected=1, reason="late", evidence=[])
    assert experiments.open("housing") == begun
    ledger.promote(version(1), expected=2, reason="bad", evidence=[], action="rollback")
    assert experiments.all("housing")[-1].outcome == "stopped"


def test_a_promotion_of_one_use_case_leaves_the_experiments_of_others(ledger, experiments):
    begun = experiments.begin("housing", "shadow", 2)
    ledger.register(version(7, "iris"))
    ledger.promote(version(7, "iris"), expected=None, reason="", evidence=[])
    assert experiments.open("housing") == begun


# --- aliases


def test_an_alias_names_a_version_until_it_names_another_or_none(ledger):
    ledger.set_alias(version(2), "canary", reason="try it", by="ann")
    ledger.set_alias(version(1), "fallback")
    assert ledger.aliases("housing") == {"canary": 2, "fallback": 1}
    assert ledger.aliases("iris") == {}
    ledger.set_alias(version(3), "canary")
    ledger.remove_alias("housing", "fallback", reason="not needed")
    assert ledger.aliases("housing") == {"canary": 3}
    assert written(ledger) == [
        ("alias", 2, None, "try it"),
        ("alias", 1, None, ""),
        ("alias", 3, 2, ""),
        ("alias", 0, 1, "not needed"),
    ]
    assert ledger.decisions("housing")[1].evidence == [{"alias": "canary"}]
    assert ledger.verify().whole


@pytest.mark.parametrize("alias", ["", "2", "Canary", "a/b", "champion", "challenger", "a" * 33])
def test_a_name_that_cannot_be_an_alias_is_refused(ledger, alias):
    with pytest.raises(UsageError, match="cannot be an alias"):
        ledger.set_alias(version(2), alias)
    assert ledger.aliases("housing") == {}


def test_to_remove_an_alias_that_is_not_there_is_an_error_with_those_that_are(ledger):
    ledger.set_alias(version(2), "canary")
    with pytest.raises(UsageError, match=r"no alias canari \(there are: canary\)"):
        ledger.remove_alias("housing", "canari")


# --- what somebody else wrote


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("UPDATE experiments SET challenger = 3", "challenger of housing is version 3"),
        ("UPDATE experiment_shares SET share = 0.9", "challenger's share of housing is 0.9"),
        ("UPDATE experiments SET ended_utc = '2026'", "challenger of housing is version None"),
        ("UPDATE aliases SET version = 3", "alias canary of housing is version 3"),
        ("DELETE FROM aliases", "alias canary of housing is version None"),
    ],
)
def test_whoever_answers_without_a_decision_is_found(path, ledger, experiments, change, says):
    experiments.begin("housing", "ab", 2, share=0.5)
    ledger.set_alias(version(2), "canary")
    assert ledger.verify().whole
    ledger.close()
    connection = sqlite3.connect(path)
    connection.execute(change)
    connection.commit()
    connection.close()
    with Ledger(path) as opened:
        assert says in opened.verify().trouble


def test_a_database_of_before_gets_the_tables_and_keeps_its_chain(path):
    connection = connect(path)
    migrate(connection, ledgers.MIGRATIONS[:2])
    connection.close()
    with Ledger(path) as ledger:
        ledger.register(version(1), reason="only one")
        assert ledger.experiments.open("housing") is None
        assert ledger.verify().whole

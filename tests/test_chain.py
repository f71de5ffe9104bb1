"""The chain: whoever changes the ledger with another program is found."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import apsw
import pytest
from test_ledger import version

from mlops.database import connect, migrate
from mlops.errors import DataError
from mlops.improve import ledger as ledgers
from mlops.improve.chain import START
from mlops.improve.decisions import KEPT
from mlops.improve.ledger import Ledger


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A ledger of five lines: 1 and 2 are trained, 1 promoted, 2 promoted, 1 again."""
    path = tmp_path / "models" / "state.db"
    with Ledger(path) as ledger:
        for number in (1, 2):
            ledger.register(version(number), reason="best of 4", evidence=[{"rows": 9}], by="ann")
        ledger.promote(version(1), expected=None, reason="first", evidence=[{"score": 0.8}])
        ledger.promote(version(2), expected=1, reason="better", evidence=[], rule="gates", by="bob")
        ledger.promote(version(1), expected=2, reason="back", evidence=[], action="rollback")
    return path


def found(path: Path, expect: str = "") -> tuple[bool, int | None, str]:
    with Ledger(path) as ledger:
        result = ledger.verify(expect)
    return result.whole, result.line, result.trouble


def tamper(path: Path, *statements: str, triggers: bool = False) -> None:
    """Write with Python's own sqlite3, as somebody with a shell would."""
    connection = sqlite3.connect(path)
    kept = connection.execute("SELECT sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
    for name in KEPT:
        connection.execute(f"DROP TRIGGER {name}")
    for statement in statements:
        connection.execute(statement)
    for (sql,) in kept if triggers else ():
        connection.execute(sql)
    connection.commit()
    connection.close()


def test_an_untouched_ledger_is_whole_and_each_hash_can_be_recomputed_by_hand(path):
    assert found(path) == (True, None, "")
    before = START
    connection = sqlite3.connect(path)
    connection.row_factory = sqlite3.Row
    for row in connection.execute("SELECT * FROM decisions ORDER BY id"):
        line = dict(row)
        stored = line.pop("hash")
        text = json.dumps(line, sort_keys=True, separators=(",", ":"))
        before = hashlib.sha256(f"{before}\n{text}".encode()).hexdigest()
        assert before == stored
    connection.close()
    with Ledger(path) as ledger:
        assert ledger.verify().head == before


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE decisions SET reason = 'because' WHERE id = 3",
        "UPDATE decisions SET evidence = '[{\"score\": 0.9}]' WHERE id = 3",
        "UPDATE decisions SET decided_utc = '2020' WHERE id = 3",
        "UPDATE decisions SET previous = 2 WHERE id = 3",
        "UPDATE decisions SET decided_by = 'eve' WHERE id = 3",
        "UPDATE decisions SET hash = '00' WHERE id = 3",
        "UPDATE decisions SET version = 'one' WHERE id = 3",
        "UPDATE decisions SET evidence = x'00' WHERE id = 3",
        "DELETE FROM decisions WHERE id = 3",
    ],
)
def test_the_first_line_that_was_changed_or_removed_is_named(path, change):
    tamper(path, change, triggers=True)
    whole, line, trouble = found(path)
    assert (whole, line) == (False, 3)
    assert "line 3 is" in trouble


def test_two_lines_that_were_swapped_are_found(path):
    tamper(
        path,
        "UPDATE decisions SET id = 99 WHERE id = 1",
        "UPDATE decisions SET id = 1 WHERE id = 2",
        "UPDATE decisions SET id = 2 WHERE id = 99",
        triggers=True,
    )
    assert found(path)[:2] == (False, 1)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("DELETE FROM decisions WHERE id = 5", "5 lines were written, the last that is there is 4"),
        (
            "UPDATE champions SET version = 2",
            "champion of housing is version 2, the ledger decided",
        ),
        ("DELETE FROM champions", "champion of housing is version None, the ledger decided for 1"),
    ],
)
def test_lines_cut_off_at_the_end_and_a_champion_nobody_decided_for_are_found(path, change, says):
    tamper(path, change, triggers=True)
    assert says in found(path)[2]


def test_a_ledger_without_its_triggers_is_not_whole(path):
    tamper(path)
    assert "is gone: the ledger is no longer append-only" in found(path)[2]


def test_a_ledger_written_anew_is_found_by_whoever_kept_a_hash(path, tmp_path):
    with Ledger(path) as ledger:
        head = ledger.verify().head
        ledger.promote(version(2), expected=1, reason="again", evidence=[])
    assert found(path, head) == found(path, head[:8].upper()) == (True, None, "")
    with Ledger(tmp_path / "forged.db") as forged:
        forged.register(version(1))
        forged.promote(version(1), expected=None, reason="always", evidence=[])
    whole, _, trouble = found(tmp_path / "forged.db", head)
    assert (whole, "it was written anew" in trouble) == (False, True)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE decisions SET reason = ''",
        "DELETE FROM decisions",
        "INSERT OR REPLACE INTO decisions SELECT * FROM decisions WHERE id = 3",
    ],
)
def test_the_database_itself_refuses_to_change_a_line(path, statement):
    connection = connect(path)
    with pytest.raises(apsw.ConstraintError, match="the ledger is append-only"):
        connection.execute(statement)
    connection.close()
    assert found(path) == (True, None, "")


def test_an_unreadable_line_is_an_error_in_words_that_names_it(path):
    tamper(path, "UPDATE decisions SET evidence = 'no' WHERE id = 4")
    with Ledger(path) as ledger, pytest.raises(DataError, match=r"line 4 of the ledger .*verify"):
        ledger.decisions("housing")


def test_lines_of_an_older_ledger_are_chained_once(tmp_path):
    path = tmp_path / "state.db"
    connection = connect(path)
    migrate(connection, ledgers.MIGRATIONS[:1])
    for number in (1, 2):
        connection.execute(
            "INSERT INTO decisions (decided_utc, use_case, action, version, reason, evidence)"
            " VALUES ('2026', 'housing', 'keep', ?, 'worse', '[]')",
            (number,),
        )
    connection.close()
    assert found(path) == (True, None, "")
    with Ledger(path) as ledger:
        first = [one.hash for one in ledger.decisions()]
        ledger.register(version(3), reason="best")
    with Ledger(path) as ledger:
        assert [one.hash for one in ledger.decisions()][:2] == first
        assert ledger.verify().lines == 3
    tamper(path, "UPDATE decisions SET version = 7 WHERE id = 1", triggers=True)
    assert found(path)[:2] == (False, 1)


def test_a_version_is_trained_once_and_a_rollback_goes_one_further_back_each_time(path):
    with Ledger(path) as ledger:
        ledger.register(version(2), reason="again", evidence=[])
        made = [(d.action, d.version, d.previous) for d in ledger.decisions("housing")]
        assert made[:2] == [("train", 1, None), ("train", 2, None)]
        assert len(made) == 5
        assert ledger.before(version(1)) is None  # rolled back to the first
        ledger.register(version(3))
        back: Callable[..., None] = ledger.promote
        back(version(2), expected=1, reason="", evidence=[])
        back(version(3), expected=2, reason="", evidence=[])
        assert ledger.before(version(3)) == 2
        back(version(2), expected=3, reason="", evidence=[], action="rollback")
        assert ledger.before(version(2)) == 1

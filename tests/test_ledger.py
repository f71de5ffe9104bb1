"""The state database: one row decides who is champion, and every decision is written down."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from mlops import database
from mlops.database import connect, migrate
from mlops.errors import ChampionMovedError, DataError, MlopsError, UsageError
from mlops.improve import ledger as ledgers
from mlops.improve.ledger import Ledger, Version

EVIDENCE = [{"gate": "beats the baseline", "outcome": "pass", "numbers": {"score": 0.8}}]


def version(number: int, use_case: str = "housing") -> Version:
    return Version(use_case, number, f"{number:064x}", "Tree", f"run-{number}", "2026-01-01")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "models" / "state.db"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    """A ledger with versions 1 to 3 of housing and no champion."""
    with Ledger(path) as opened:
        for number in (1, 3, 2):
            opened.register(version(number))
        yield opened


def test_versions_are_listed_in_order_and_per_use_case(ledger):
    ledger.register(version(7, "iris"))
    assert ledger.versions("housing") == [version(1), version(2), version(3)]
    assert ledger.versions("iris") == [version(7, "iris")]
    assert ledger.version("housing", 2) == version(2)


def test_registering_a_version_again_changes_nothing(ledger):
    ledger.register(dataclasses.replace(version(2), bundle="other", run_id="other"))
    assert ledger.version("housing", 2) == version(2)


def test_an_unknown_version_is_answered_with_those_that_exist(ledger):
    with pytest.raises(UsageError, match=r"no version 9 \(registered: 1, 2, 3\) — .*mlops show"):
        ledger.version("housing", 9)
    with pytest.raises(UsageError, match=r"iris has no version 1 \(registered: none yet\)"):
        ledger.version("iris", 1)


def test_the_champion_is_the_one_promoted_last(ledger):
    assert ledger.champion("housing") is None
    ledger.promote(version(2), expected=None, reason="first", evidence=EVIDENCE)
    assert ledger.champion("housing") == version(2)
    ledger.promote(version(1), expected=2, reason="back", evidence=[])
    assert ledger.champion("housing") == version(1)
    assert ledger.champion("iris") is None


@pytest.mark.parametrize("expected", [None, 1, 3])
def test_a_promotion_that_expected_another_champion_changes_nothing(ledger, expected):
    ledger.promote(version(2), expected=None, reason="first", evidence=[])
    before = ledger.decisions("housing")
    with pytest.raises(ChampionMovedError, match="version 2 became champion meanwhile"):
        ledger.promote(version(3), expected=expected, reason="late", evidence=[])
    assert ledger.champion("housing") == version(2)
    assert ledger.decisions("housing") == before


def test_each_promotion_and_each_refusal_is_a_decision_with_its_evidence(ledger):
    ledger.promote(version(1), expected=None, reason="first", evidence=EVIDENCE)
    ledger.refuse(version(2), previous=1, reason="worse by 0.3", evidence=EVIDENCE * 2)
    ledger.promote(version(3), expected=1, reason="forced: it is mine", evidence=[])
    made = ledger.decisions("housing")
    assert [(d.action, d.version, d.previous, d.reason) for d in made] == [
        ("promote", 1, None, "first"),
        ("keep", 2, 1, "worse by 0.3"),
        ("promote", 3, 1, "forced: it is mine"),
    ]
    assert [d.evidence for d in made] == [EVIDENCE, EVIDENCE * 2, []]
    times = [d.decided_utc for d in made]
    assert times == sorted(times)
    assert all(len(text) == 32 and text.endswith("+00:00") for text in times)
    assert ledger.champion("housing") == version(3)
    assert ledger.decisions("iris") == []


def test_a_promotion_whose_decision_cannot_be_written_does_not_happen(ledger):
    with pytest.raises(ValueError, match="JSON"):
        ledger.promote(version(1), expected=None, reason="", evidence=[{"score": float("nan")}])
    assert ledger.champion("housing") is None
    ledger.promote(version(1), expected=None, reason="mended", evidence=[])
    assert ledger.champion("housing") == version(1)


PROMOTE_MINE = """
    import sys, time
    from pathlib import Path
    from mlops.errors import ChampionMovedError
    from mlops.improve.ledger import Ledger

    folder, me = Path(sys.argv[1]), int(sys.argv[2])
    with Ledger(folder / "state.db") as ledger:
        for turn in range(5):
            mine = ledger.version("housing", 100 * (turn + 1) + me)
            champion = ledger.champion("housing").version
            (folder / f"ready-{turn}-{me}").touch()
            while not (folder / f"go-{turn}").exists():
                time.sleep(0.0005)
            try:
                ledger.promote(mine, expected=champion, reason=f"turn {turn}", evidence=[])
                (folder / f"won-{turn}-{me}").touch()
            except ChampionMovedError:
                (folder / f"lost-{turn}-{me}").touch()
"""


def test_of_eight_promotions_at_once_exactly_one_wins_each_time(tmp_path):
    with Ledger(tmp_path / "state.db") as ledger:
        ledger.register(version(1))
        for turn in range(5):
            for me in range(8):
                ledger.register(version(100 * (turn + 1) + me))
        ledger.promote(version(1), expected=None, reason="first", evidence=[])
    script = textwrap.dedent(PROMOTE_MINE)
    processes = [
        subprocess.Popen([sys.executable, "-c", script, tmp_path, str(me)]) for me in range(8)
    ]
    champion = 1
    for turn in range(5):
        wait_for(tmp_path, f"ready-{turn}-*", 8)
        (tmp_path / f"go-{turn}").touch()
        wait_for(tmp_path, f"*-{turn}-*", 16)
        (winner,) = tmp_path.glob(f"won-{turn}-*")
        with Ledger(tmp_path / "state.db") as ledger:
            last = ledger.decisions("housing")[-1]
            assert len(ledger.decisions("housing")) == turn + 2
            assert (last.reason, last.previous) == (f"turn {turn}", champion)
            champion = ledger.champion("housing").version
        assert champion == last.version == 100 * (turn + 1) + int(winner.name[-1])
    assert [process.wait(timeout=30) for process in processes] == [0] * 8


def wait_for(folder: Path, pattern: str, count: int) -> None:
    deadline = time.monotonic() + 60
    while len(list(folder.glob(pattern))) < count:
        assert time.monotonic() < deadline
        time.sleep(0.001)


# --- the file


def test_a_blank_database_gets_every_migration_once(path):
    for _ in range(2):
        Ledger(path).close()
    connection = connect(path)
    applied = connection.execute("SELECT name FROM schema_migrations ORDER BY name").fetchall()
    connection.close()
    assert applied == [(name,) for name, _ in ledgers.MIGRATIONS]


def test_a_database_of_the_first_version_is_taken_along_by_later_migrations(path, monkeypatch):
    connection = connect(path)
    migrate(connection, ledgers.MIGRATIONS[:1])
    connection.execute(
        "INSERT INTO versions VALUES ('housing', 4, 'b', 'Tree', 'run', '2026-01-01')"
    )
    connection.execute("INSERT INTO champions VALUES ('housing', 4, '2026-01-01')")
    evidence = json.dumps(EVIDENCE)
    connection.execute(
        "INSERT INTO decisions VALUES (1, '2026', 'housing', 'promote', 4, NULL, 'why', ?)",
        (evidence,),
    )
    connection.close()
    added = ("m999_note", ["ALTER TABLE versions ADD COLUMN note TEXT"])
    for migrations in (ledgers.MIGRATIONS, (*ledgers.MIGRATIONS, added)):
        monkeypatch.setattr(ledgers, "MIGRATIONS", migrations)
        with Ledger(path) as ledger:
            assert ledger.champion("housing").version == 4
            assert ledger.decisions("housing")[0].evidence == EVIDENCE


def test_a_database_of_a_newer_version_is_refused(path):
    connection = connect(path)
    migrate(connection, [*ledgers.MIGRATIONS, ("m999_future", ["CREATE TABLE future(x)"])])
    connection.close()
    with pytest.raises(DataError, match="newer version: it holds m999_future"):
        Ledger(path)


def test_a_file_that_is_no_database_is_an_error_in_words(path):
    path.parent.mkdir()
    path.write_bytes(b"no database " * 999)
    with pytest.raises(MlopsError, match=r"state\.db cannot be used: .*not a database") as caught:
        Ledger(path)
    assert "\n" not in str(caught.value)


def test_a_crash_in_the_middle_of_a_promotion_leaves_the_champion_and_no_decision(path, ledger):
    ledger.promote(version(1), expected=None, reason="first", evidence=[])
    script = """
        import os, sys
        from pathlib import Path
        from mlops.improve.ledger import Ledger

        ledger = Ledger(Path(sys.argv[1]))
        ledger._decide = lambda *_: os.kill(os.getpid(), 9)
        ledger.promote(ledger.version("housing", 2), expected=1, reason="", evidence=[])
    """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(script), path], check=False)
    assert killed.returncode == -9
    assert ledger.champion("housing") == version(1)
    assert len(ledger.decisions("housing")) == 1
    ledger.promote(version(3), expected=1, reason="goes on", evidence=[])


def test_readers_do_not_wait_for_a_writer(path, ledger):
    other = connect(path)
    other.execute("BEGIN IMMEDIATE")
    started = time.monotonic()
    assert len(ledger.versions("housing")) == 3
    assert time.monotonic() - started < 1
    other.execute("ROLLBACK")
    other.close()


# --- where it cannot be written


@pytest.fixture
def sealed(path: Path, monkeypatch) -> Path:
    """A ledger with a champion, in a folder that cannot be written, as in an image."""
    with Ledger(path) as ledger:
        ledger.register(version(1))
        ledger.promote(version(1), expected=None, reason="first", evidence=EVIDENCE)
    # Tests may run as root, whom no permission keeps from writing.
    monkeypatch.setattr(database.os, "access", lambda *_: False)
    return path


def test_a_sealed_ledger_is_read_and_nothing_is_made_beside_it(sealed):
    before = sealed.read_bytes()
    with Ledger(sealed) as ledger:
        assert ledger.champion("housing") == version(1)
        assert [decision.reason for decision in ledger.decisions("housing")] == ["first"]
        with pytest.raises(apsw.ReadOnlyError):
            ledger.register(version(2))
    assert [file.name for file in sealed.parent.iterdir()] == ["state.db"]
    assert sealed.read_bytes() == before


def test_what_a_writer_has_not_yet_moved_into_the_file_is_read_too(path, sealed, monkeypatch):
    monkeypatch.undo()
    with Ledger(path) as writer:
        writer.register(version(2))
        monkeypatch.setattr(database.os, "access", lambda *_: False)
        with Ledger(path) as reader:
            assert reader.versions("housing") == [version(1), version(2)]


def test_a_sealed_ledger_that_lacks_a_migration_is_refused_by_name(sealed, monkeypatch):
    monkeypatch.setattr(ledgers, "MIGRATIONS", (*ledgers.MIGRATIONS, ("m999_more", [])))
    with pytest.raises(DataError, match=r"older version .*lacks m999_more — make its folder"):
        Ledger(sealed)

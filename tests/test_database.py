"""Databases: opened safely, migrated once, written wholly or not at all."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from mlops import database
from mlops.database import connect, insert, insert_columns, migrate, transaction
from mlops.errors import DataError, MlopsError

TWO_TABLES = [
    ("m001_first", ["CREATE TABLE first(x)", "INSERT INTO first VALUES (1)"]),
    ("m002_second", lambda connection: connection.execute("CREATE TABLE second(x)")),
]


@pytest.fixture
def db(tmp_path: Path) -> Iterator[apsw.Connection]:
    connection = connect(tmp_path / "a.db")
    yield connection
    connection.close()


def tables(connection: apsw.Connection) -> set[str]:
    return {
        name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type='table'")
    }


@pytest.mark.parametrize(("synchronous", "level"), [("FULL", 2), ("NORMAL", 1)])
def test_a_new_database_has_a_write_ahead_log_and_the_durability_asked_for(
    tmp_path, synchronous, level
):
    connection = connect(tmp_path / "a.db", synchronous=synchronous)
    assert connection.pragma("journal_mode") == "wal"
    assert connection.pragma("synchronous") == level
    connection.close()


def test_the_names_of_a_new_file_and_of_its_new_folders_are_synced_too(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(database, "_sync_folder", synced.append)
    path = tmp_path / "new" / "newer" / "a.db"
    connect(path).close()
    assert set(synced) == {tmp_path, tmp_path / "new", tmp_path / "new" / "newer"}
    synced.clear()
    connect(path).close()
    assert synced == []


def test_an_sqlite_that_can_corrupt_the_file_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(apsw, "sqlite_lib_version", lambda: "3.51.2")
    with pytest.raises(MlopsError, match=r"SQLite 3\.51\.2 .*install apsw"):
        connect(tmp_path / "a.db")
    assert not (tmp_path / "a.db").exists()


def test_a_read_only_connection_reads_and_makes_nothing(tmp_path, db):
    migrate(db, TWO_TABLES)
    reader = connect(tmp_path / "a.db", read_only=True)
    assert reader.execute("SELECT x FROM first").get == 1
    with pytest.raises(apsw.ReadOnlyError):
        reader.execute("DELETE FROM first")
    reader.close()
    with pytest.raises(apsw.CantOpenError):
        connect(tmp_path / "no" / "b.db", read_only=True)
    assert not (tmp_path / "no").exists()


def test_each_migration_is_applied_once(db):
    migrate(db, TWO_TABLES[:1])
    migrate(db, TWO_TABLES)
    migrate(db, TWO_TABLES)
    assert db.execute("SELECT count(*) FROM first").get == 1
    assert {"first", "second"} < tables(db)
    names = db.execute("SELECT name, length(applied_utc) > 20 FROM schema_migrations ORDER BY name")
    assert names.fetchall() == [("m001_first", 1), ("m002_second", 1)]


def test_a_failing_migration_rolls_back_wholly_names_itself_and_applies_once_mended(db):
    broken = ("m002_second", ["CREATE TABLE second(x)", "INSERT INTO nowhere VALUES (1)"])
    with pytest.raises(apsw.SQLError, match="nowhere") as caught:
        migrate(db, [TWO_TABLES[0], broken])
    assert "m002_second" in caught.value.__notes__[0]
    assert tables(db) == set()
    migrate(db, TWO_TABLES)
    assert {"first", "second"} < tables(db)


def test_a_database_made_by_a_newer_version_is_refused_and_left_alone(db):
    migrate(db, TWO_TABLES)
    with pytest.raises(DataError, match="newer version: it holds m002_second"):
        migrate(db, [*TWO_TABLES[:1], ("m003_third", ["CREATE TABLE third(x)"])])
    assert "third" not in tables(db)


def test_processes_that_open_a_new_database_together_migrate_it_once(tmp_path):
    script = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        from mlops.database import connect, migrate
        Path(sys.argv[1], "ready-" + sys.argv[2]).touch()
        while not Path(sys.argv[1], "go").exists():
            time.sleep(0.0005)
        for number in range(30):
            connection = connect(Path(sys.argv[1], str(number), "a.db"))
            migrate(connection, [
                ("m001", ["CREATE TABLE t(x)", "INSERT INTO t VALUES (1)"]),
                ("m002", ["INSERT INTO t SELECT x + 1 FROM t"]),
            ])
            assert connection.execute("SELECT group_concat(x) FROM t").get == "1,2"
            connection.close()
    """)
    processes = [
        subprocess.Popen([sys.executable, "-c", script, tmp_path, str(n)]) for n in range(3)
    ]
    while len(list(tmp_path.glob("ready-*"))) < len(processes):
        assert all(process.poll() is None for process in processes)
        time.sleep(0.001)
    (tmp_path / "go").touch()
    assert [process.wait(timeout=60) for process in processes] == [0, 0, 0]


def test_another_process_that_makes_the_database_at_this_moment_is_waited_for(monkeypatch):
    class Busy:
        tries = 0

        def pragma(self, *_: str) -> str:
            self.tries += 1
            if self.tries < 3:
                raise apsw.BusyError
            return "wal"

    assert database._use_write_ahead_log(Busy()) == "wal"
    monkeypatch.setattr(database, "BUSY_TIMEOUT_MS", -1)
    with pytest.raises(apsw.BusyError):
        database._use_write_ahead_log(Busy())


def test_an_error_in_a_transaction_rolls_everything_back(db):
    migrate(db, TWO_TABLES)

    def fail_half_way() -> None:
        with transaction(db):
            db.execute("DELETE FROM first")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_half_way()
    assert db.execute("SELECT count(*) FROM first").get == 1
    with transaction(db):
        db.execute("DELETE FROM first")
    assert db.execute("SELECT count(*) FROM first").get == 0


def test_a_failed_clean_up_does_not_hide_the_first_error(db):
    def fail_beyond_repair() -> None:
        with transaction(db):
            db.close()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_beyond_repair()


def test_a_transaction_has_the_write_lock_before_it_reads(tmp_path, db):
    other = connect(tmp_path / "a.db")
    other.set_busy_timeout(1)
    with transaction(db), pytest.raises(apsw.BusyError), transaction(other):
        pytest.fail("two writers at once")
    other.close()


@pytest.mark.parametrize("count", [0, 1, 249, 250, 251, 1000])
def test_any_number_of_rows_is_inserted_in_order(db, count):
    db.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, x, y)")
    rows = [(n, f"é{n}") for n in range(count)]
    insert(db, "t(x, y)", rows)
    assert db.execute("SELECT x, y FROM t ORDER BY id").fetchall() == rows


@pytest.mark.parametrize("count", [1, 2, 249, 250, 251, 1000])
@pytest.mark.parametrize("same", ["", "x", "y", "z", "xz", "xyz"])
def test_columns_are_inserted_in_order_whichever_hold_one_value(db, count, same):
    db.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, x, y, z)")
    values = {name: [f"é{name}{0 if name in same else n}" for n in range(count)] for name in "xyz"}
    insert_columns(db, "t", values)
    rows = list(zip(*values.values(), strict=True))
    assert db.execute("SELECT x, y, z FROM t ORDER BY id").fetchall() == rows


def test_a_column_of_values_that_are_equal_but_not_the_same_keeps_each_as_it_is(db):
    db.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, x)")
    insert_columns(db, "t", {"x": [1, 1.0, True, None]})
    assert [kind for (kind,) in db.execute("SELECT typeof(x) FROM t")] == [
        "integer",
        "real",
        "integer",
        "null",
    ]
    db.execute("DELETE FROM t")
    insert_columns(db, "t", {"x": [4.0, 4]})
    assert [kind for (kind,) in db.execute("SELECT typeof(x) FROM t")] == ["real", "integer"]

"""The text file follows the database through every accident."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
from test_log import one, open_log, row, start_script

from mlops.monitor import logfile
from mlops.monitor.log import PredictionLog
from mlops.monitor.logfile import as_line
from mlops.records import Submission

DIE = 9


@pytest.fixture
def log(tmp_path: Path) -> Iterator[PredictionLog]:
    log = open_log(tmp_path)
    yield log
    log.close()


def text(log: PredictionLog) -> Path:
    return log.path.with_name("predictions.log")


def assert_file_is_the_database(log: PredictionLog) -> None:
    assert text(log).read_bytes() == b"".join(as_line(row) for row in log.rows(100_000))
    assert log.file_behind is None


def aside(log: PredictionLog) -> list[Path]:
    return sorted(log.path.parent.glob("predictions.log.aside-*"))


def test_a_line_is_one_json_object_with_the_promised_fields_in_order():
    plain = orjson.loads(as_line(row(1, id=7)))
    assert list(plain) == [
        "id",
        "timestamp",
        "prediction_id",
        "inputs",
        "prediction",
        "warnings",
        "model_version",
        "bundle",
    ]
    assert (plain["id"], plain["inputs"], plain["warnings"]) == (7, {"x": "1"}, [])
    line = as_line(
        row(1, prediction='a"\n\u2028é', probabilities='{"a":0.5}', warnings='["odd","é"]')
    )
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    entry = orjson.loads(line)
    assert entry["prediction"] == 'a"\n\u2028é'
    assert entry["probabilities"] == {"a": 0.5}
    assert entry["warnings"] == ["odd", "é"]


@pytest.mark.parametrize(
    ("number", "written"), [(4.0, b"4.0"), (-0.0, b"-0.0"), (0.1 + 0.2, b"0.30000000000000004")]
)
def test_a_number_is_written_as_the_double_it_is(number, written):
    assert b'"prediction":' + written + b"," in as_line(row(1, prediction=number))


def test_each_commit_is_appended_once_in_order(tmp_path, log):
    assert text(log).read_bytes() == b""
    assert stat.S_IMODE(text(log).stat().st_mode) & ~0o640 == 0
    for n in range(5):
        log.append([one(f"{n}-{item}") for item in range(n)])
    log.append([one("key", "key"), one("key", "key")])
    assert_file_is_the_database(log)
    assert len(text(log).read_bytes().splitlines()) == 11
    log.close()
    reopened = open_log(tmp_path)
    assert_file_is_the_database(reopened)
    reopened.close()


def test_while_nobody_else_writes_neither_the_tail_nor_the_database_is_read(log, monkeypatch):
    log.append([one(1)])
    monkeypatch.setattr(logfile, "_last_line", None)
    monkeypatch.setattr(log._file, "_rows_after", None)
    log.append([one(2), one(3)])
    monkeypatch.undo()
    assert_file_is_the_database(log)


def test_lines_that_answers_did_not_wait_for_are_written_by_the_next_step_or_at_the_end(
    tmp_path, log
):
    log.append([one(1)], wait=False)
    log.append([one(2)], wait=False)
    assert text(log).read_bytes() == b""
    assert log.follow()
    assert_file_is_the_database(log)
    log.append([one(3)], wait=False)
    log.append([one(4)])
    assert_file_is_the_database(log)
    log.append([one(5)], wait=False)
    log.close()
    assert len(text(log).read_bytes().splitlines()) == 5


def test_rows_of_another_process_between_two_that_wait_for_their_lines_are_in_their_place(
    tmp_path, log
):
    other = open_log(tmp_path)
    log.append([one(1)], wait=False)
    other.append([one(2)], wait=False)
    log.append([one(3)], wait=False)
    assert log.follow()
    assert_file_is_the_database(log)
    assert other.follow()
    assert_file_is_the_database(log)
    other.close()


def test_while_the_log_is_in_use_its_lines_wait(log):
    log.append([one(1)], wait=False)
    with log._lock:
        assert not log.follow()
    assert log.follow()
    assert_file_is_the_database(log)


# Accidents, each mended both by the next append and by the next opening


def delete(path: Path) -> None:
    path.unlink()


def move(path: Path) -> None:
    path.rename(path.with_name("predictions.log.1"))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def tear(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def tear_the_first_line(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20])


def add_garbage(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"garbage\n{}\n\n[1]\n" + b"\0" * 5000 + b"\n\0\0")


def add_much_garbage(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0" * 3_000_000)


def replace_by_another_of_its_size(path: Path) -> None:
    *kept, last = path.read_bytes().splitlines(keepends=True)
    other = path.with_name("other")
    other.write_bytes(b"".join(kept) + b"x" * (len(last) - 1) + b"\n")
    other.rename(path)


def lose_the_last_lines(path: Path) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:3]))


ACCIDENTS = [
    delete,
    move,
    empty,
    tear,
    tear_the_first_line,
    add_garbage,
    add_much_garbage,
    replace_by_another_of_its_size,
    lose_the_last_lines,
]


@pytest.mark.parametrize("accident", ACCIDENTS)
@pytest.mark.parametrize("reopened", [True, False])
def test_after_an_accident_the_file_is_the_database_again(tmp_path, log, accident, reopened):
    for n in range(6):
        log.append([one(n), one(f"{n}b")])
    accident(text(log))
    if reopened:
        other = open_log(tmp_path)
        assert_file_is_the_database(other)
        other.close()
    log.append([one("after")])
    assert_file_is_the_database(log)
    assert aside(log) == []


def test_a_line_longer_than_the_window_is_found(log):
    log.append([one("short"), one("long", inputs=f'"{"x" * 3 * logfile.TAIL_BYTES}"')])
    text(log).write_bytes(text(log).read_bytes() + b"torn")
    log.append([one("after")])
    assert_file_is_the_database(log)


def test_a_file_that_moves_while_its_lock_is_awaited_gets_no_line(log, monkeypatch):
    log.append([one(1)])
    moved = text(log).with_name("moved")
    real_flock = fcntl.flock

    def flock_of_a_moved_file(descriptor: int, operation: int) -> None:
        real_flock(descriptor, operation)
        if not moved.exists():
            text(log).rename(moved)

    monkeypatch.setattr(fcntl, "flock", flock_of_a_moved_file)
    log.append([one(2)])
    assert_file_is_the_database(log)
    assert len(moved.read_bytes().splitlines()) == 1


@pytest.mark.parametrize(
    "foreign", [b"2024-01-01 some other program's log\n", as_line(row("elsewhere", id=2))]
)
def test_a_file_of_another_origin_is_moved_aside_and_kept(tmp_path, log, foreign):
    log.append([one(1), one(2)])
    text(log).write_bytes(foreign)
    log.append([one(3)])
    assert_file_is_the_database(log)
    assert [path.read_bytes() for path in aside(log)] == [foreign]


def test_a_file_whose_database_was_deleted_is_moved_aside_and_kept(tmp_path, log):
    log.append([one(1), one(2)])
    log.close()
    kept = text(log).read_bytes()
    log.path.unlink()
    fresh = open_log(tmp_path)
    fresh.append([one("new")])
    assert_file_is_the_database(fresh)
    assert [path.read_bytes() for path in aside(fresh)] == [kept]
    fresh.close()


def test_a_long_file_is_written_anew_in_steps_that_no_request_waits_for(tmp_path, log, monkeypatch):
    monkeypatch.setattr(logfile, "ROWS_PER_STEP", 10)
    log.append([Submission(tuple(row(n) for n in range(35)))])
    text(log).unlink()
    log.append([one("a")])
    assert len(text(log).read_bytes().splitlines()) == 10
    assert "being completed" in log.file_behind
    for name in "bcd":
        log.append([one(name)])
    assert_file_is_the_database(log)
    text(log).unlink()
    reopened = open_log(tmp_path)  # has the time
    assert_file_is_the_database(reopened)
    reopened.close()


# The file cannot be written


@pytest.mark.parametrize("written", [0, 7, 150])
def test_a_file_that_cannot_be_written_is_left_whole_and_completed_later(log, monkeypatch, written):
    log.append([one(1)])
    before = text(log).read_bytes()
    real_write = os.write
    allowed = [written, 0]

    def full_disk(descriptor: int, data: bytes) -> int:
        if size := allowed.pop(0):
            return real_write(descriptor, bytes(data)[:size])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full_disk)
    answers = log.append([one(2), one(3)])
    monkeypatch.undo()
    assert [answer[0].id for answer in answers] == [2, 3]
    assert text(log).read_bytes() == before
    assert "No space left" in log.file_behind
    assert log.failed is None
    log.append([one(4)])
    assert_file_is_the_database(log)


def test_short_writes_are_carried_on(log, monkeypatch):
    real_write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real_write(fd, bytes(data)[:11]))
    log.append([one(1), one(2)])
    monkeypatch.undo()
    assert_file_is_the_database(log)


def test_a_file_that_cannot_even_be_cut_back_is_mended_later(log, monkeypatch):
    log.append([one(1)])
    real_write = os.write
    allowed = [7, 0]

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    def half(descriptor: int, data: bytes) -> int:
        size = allowed.pop(0)
        return real_write(descriptor, bytes(data)[:size]) if size else fail()

    monkeypatch.setattr(os, "write", half)
    monkeypatch.setattr(os, "ftruncate", fail)
    log.append([one(2)])
    monkeypatch.undo()
    assert "Input/output error" in log.file_behind
    log.append([one(3)])
    assert_file_is_the_database(log)


def test_a_folder_in_the_place_of_the_file_stops_no_request_and_no_opening(tmp_path, log):
    text(log).unlink()
    text(log).mkdir()
    assert log.append([one(1)])[0][0].id == 1
    assert "Is a directory" in log.file_behind
    other = open_log(tmp_path)
    assert "Is a directory" in other.file_behind
    text(log).rmdir()
    other.append([one(2)])
    assert_file_is_the_database(other)
    other.close()


# A process dies

DYING = """
import os, signal, sys
from pathlib import Path
from test_log import Submission, one, open_log, row
import mlops.monitor.log, mlops.monitor.logfile as logfile
log = open_log(Path(sys.argv[1]))
log.append([one("before")])
"""
BETWEEN_INSERT_AND_COMMIT = """
mlops.monitor.log.PredictionLog._insert = lambda self, new: (
    mlops.monitor.log.insert_columns(self._writer, "housinglogs", dict(prediction_id=["lost"],
        timestamp=["t"], inputs=["{}"], prediction=[1.0], model_version=[1], bundle=["b"],
        item=[0])), os._exit(9))
"""
BETWEEN_COMMIT_AND_FILE = "logfile.LogFile.follow = lambda *_, **__: os._exit(9)"
IN_THE_MIDDLE_OF_THE_FILE = """
real_write = os.write
def write(descriptor, data):
    real_write(descriptor, bytes(data)[:len(data) * 2 // 3])
    os._exit(9)
os.write = write
"""
IN_THE_FIRST_LINE = IN_THE_MIDDLE_OF_THE_FILE.replace("len(data) * 2 // 3", "5")
AFTER_THE_FILE = """
real_write = os.write
os.write = lambda *a: (real_write(*a), os._exit(9))
"""


@pytest.mark.parametrize(
    ("fault", "committed"),
    [
        pytest.param(BETWEEN_INSERT_AND_COMMIT, False, id="between insert and commit"),
        pytest.param(BETWEEN_COMMIT_AND_FILE, True, id="between commit and file"),
        pytest.param(IN_THE_MIDDLE_OF_THE_FILE, True, id="in the middle of the file"),
        pytest.param(IN_THE_FIRST_LINE, True, id="in the first line"),
        pytest.param(AFTER_THE_FILE, True, id="after the file"),
    ],
)
@pytest.mark.parametrize("second_server", [True, False])
def test_after_a_death_the_file_is_the_database_again(tmp_path, fault, committed, second_server):
    survivor = open_log(tmp_path) if second_server else None
    script = DYING + fault + "\nlog.append([Submission(tuple(row(n) for n in range(4)))])"
    assert start_script(script, tmp_path).wait(timeout=60) == DIE
    log = survivor or open_log(tmp_path)
    if second_server:
        log.append([one("after")])
    names = ["pbefore", *(["p0", "p1", "p2", "p3"] * committed), *(["pafter"] * second_server)]
    assert [row.prediction_id for row in log.rows()] == names
    assert_file_is_the_database(log)
    assert aside(log) == []
    log.close()


def test_kill_9_at_any_moment_loses_nothing_that_was_answered(tmp_path):
    script = textwrap.dedent("""
        import os, sys
        from pathlib import Path
        from test_log import one, open_log
        log = open_log(Path(sys.argv[1]))
        answered = os.open(Path(sys.argv[1], "answered"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        n = 0
        while True:
            rows = log.append([one(f"{os.getpid()}-{n + i}") for i in range(7)])
            os.write(answered, b"".join(b"%d\\n" % row.id for [row] in rows))
            n += 7
    """)
    answered = tmp_path / "answered"
    for round_ in range(3):
        processes = [start_script(script, tmp_path) for _ in range(2)]
        size = answered.stat().st_size if answered.exists() else 0
        deadline = time.monotonic() + 30
        while not answered.exists() or answered.stat().st_size < size + 300:
            assert time.monotonic() < deadline
            time.sleep(0.003 * (1 + round_))
        for process in processes:
            process.send_signal(signal.SIGKILL)
            process.wait()
        log = open_log(tmp_path)
        assert_file_is_the_database(log)
        ids = [row.id for row in log.rows(1_000_000)]
        assert ids == list(range(1, len(ids) + 1))
        assert {int(line) for line in answered.read_text().split()} <= set(ids)
        assert log.totals().total_predictions == len(ids)
        log.close()

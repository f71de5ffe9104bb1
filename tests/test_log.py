"""The prediction log: what is answered is in it, once, and it says so when it cannot be written."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from mlops.database import connect
from mlops.errors import DataError, IdempotencyConflictError, LogUnavailableError, UsageError
from mlops.monitor.log import PredictionLog
from mlops.records import Failure, Prediction, Submission


def row(name: object, **changes: object) -> Prediction:
    plain = Prediction(
        prediction_id=f"p{name}",
        timestamp="2026-03-01T12:00:00.000000+00:00",
        inputs=f'{{"x":"{name}"}}',
        prediction=2.5,
        probabilities=None,
        warnings=None,
        model_version=1,
        bundle="b1",
    )
    return plain._replace(**changes)


def one(name: object, key: str | None = None, **changes: object) -> Submission:
    return Submission((row(name, **changes),), key)


def failure(status: int = 422, second: int = 0) -> Failure:
    time = f"2026-03-01T12:00:{second:02}.000000+00:00"
    return Failure(time, "/predict", status, '[{"msg":"no"}]', '{"x":', "tester")


def open_log(folder: Path, durability: str = "crash") -> PredictionLog:
    return PredictionLog(folder / "housinglogs", "housinglogs", durability)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[PredictionLog]:
    log = open_log(tmp_path)
    yield log
    log.close()


@pytest.fixture
def switching_threads_often() -> Iterator[None]:
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


def test_a_prediction_is_answered_with_its_id_and_found_with_every_field(tmp_path, log):
    full = row(
        'é\u2028"\\ 🏠',
        prediction="Ünïcode",
        probabilities='{"a":0.25}',
        warnings='["odd"]',
        client="cli\x00ent",
    )
    [[answered]] = log.append([Submission((full,), "key")])
    assert answered == full._replace(id=1)
    assert log.find(full.prediction_id) == answered
    assert log.rows() == [answered]
    assert log.find("nobody") is None


def test_ids_follow_the_order_of_rows_in_the_call_whatever_its_size(log):
    expected = 0
    for size in (1, 3, 128, 300):
        submissions = [
            Submission(tuple(row(f"{size}-{n}-{item}") for item in range(1 + n % 3)))
            for n in range(size)
        ]
        answers = log.append(submissions, [failure()])
        for submission, answer in zip(submissions, answers, strict=True):
            for sent, got in zip(submission.rows, answer, strict=True):
                expected += 1
                assert got == sent._replace(id=expected)
                assert log.find(sent.prediction_id) == got


@pytest.mark.parametrize(
    ("prediction", "stored"), [(4.0, "real"), (-0.0, "real"), (1e300, "real"), ("4.0", "text")]
)
def test_a_prediction_stays_the_number_or_text_it_was(log, prediction, stored):
    log.append([one(1, prediction=prediction)])
    kept = log.find("p1").prediction
    assert (type(kept), repr(kept)) == (type(prediction), repr(prediction))
    assert log._writer.execute("SELECT typeof(prediction) FROM housinglogs").get == stored


def test_the_table_begins_with_the_promised_columns(tmp_path, log):
    log.append([one(1)])
    reader = connect(log.path, read_only=True)
    cursor = reader.execute("SELECT * FROM housinglogs LIMIT 5")
    assert [name for name, *_ in cursor.get_description()[:4]] == [
        "id",
        "timestamp",
        "inputs",
        "prediction",
    ]
    reader.close()


@pytest.mark.parametrize("name", ["", "1logs", "Logs", "a-b", "a;--", 'a"b', "logs\n"])
def test_a_name_that_is_no_plain_word_names_no_table(tmp_path, name):
    with pytest.raises(UsageError, match="cannot name a table"):
        PredictionLog(tmp_path / "logs", name, "crash")
    assert not (tmp_path / "logs").exists()


def test_a_word_of_sql_may_name_the_table(tmp_path):
    log = PredictionLog(tmp_path, "order", "crash")
    assert log.append([one(1, "key"), one(1, "key")])[1][0].id == 1
    assert [row.id for row in log.rows(version=1, since="2026")] == [1]
    log.close()


def test_the_log_of_another_table_is_refused(tmp_path, log):
    with pytest.raises(DataError, match="holds no table irislogs"):
        PredictionLog(log.path.parent, "irislogs", "crash")


# Idempotency


def test_a_resend_is_answered_with_the_first_predictions_and_logged_once(tmp_path, log):
    first = Submission((row("a", prediction=1.0), row("b", warnings='["odd"]')), "key")
    again = Submission(
        (row("c", inputs=first.rows[0].inputs), row("d", inputs=first.rows[1].inputs)), "key"
    )
    [answer] = log.append([first])
    assert log.append([again]) == [answer]
    log.close()
    reopened = open_log(tmp_path)
    assert reopened.append([one("x"), again, one("y")])[1] == answer
    assert [row.prediction_id for row in reopened.rows()] == ["pa", "pb", "px", "py"]
    assert reopened.totals().total_predictions == 4
    reopened.close()


def test_a_resend_in_the_same_call_is_answered_with_the_first_too(log):
    answers = log.append([one("x"), one("a", "key"), one("a", "key"), one("y"), one("a", "key")])
    assert [answer[0].id for answer in answers] == [1, 2, 2, 3, 2]
    assert log.totals().total_predictions == 3


def test_a_first_submission_keeps_its_place_when_it_is_the_first_of_the_call(log):
    answers = log.append([one("a", "key"), one("a", "key"), one("b")])
    assert [answer[0].id for answer in answers] == [1, 1, 2]


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param(("b", "a"), id="another order"),
        pytest.param(("a",), id="fewer"),
        pytest.param(("a", "b", "c"), id="more"),
        pytest.param(("a", "c"), id="other"),
    ],
)
@pytest.mark.parametrize("same_call", [True, False])
def test_a_key_with_other_inputs_is_a_conflict_that_leaves_the_others_alone(log, rows, same_call):
    first = Submission((row("a"), row("b")), "key")
    other = Submission(
        tuple(row(f"{n}-{name}", inputs=row(name).inputs) for n, name in enumerate(rows)), "key"
    )
    if same_call:
        _, conflict, fine = log.append([first, other, one("z")])
    else:
        log.append([first])
        conflict, fine = log.append([other, one("z")])
    assert isinstance(conflict, IdempotencyConflictError)
    assert "'key'" in str(conflict)
    assert fine[0].id == 3
    assert [row.prediction_id for row in log.rows()] == ["pa", "pb", "pz"]


def test_equal_inputs_without_a_key_are_two_predictions(log):
    answers = log.append([one("a"), one("b", inputs=row("a").inputs)])
    assert [answer[0].id for answer in answers] == [1, 2]


# Reading


def test_rows_come_newest_last_by_version_and_by_time(log):
    def at(hour: int, minute: int) -> str:
        return f"2026-03-01T{hour:02}:{minute:02}:00.000000+00:00"

    times = [(10, 0), (10, 50), (11, 5), (10, 59), (11, 30), (13, 0), (12, 59), (13, 1)]
    for n, when in enumerate(times, 1):  # some came in later than their time, as with two servers
        log.append([one(n, timestamp=at(*when), model_version=1 + n // 5)])

    def ids(*args: object, **filters: object) -> list[int]:
        return [row.id for row in log.rows(*args, **filters)]

    assert ids() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert ids(2) == [7, 8]
    assert ids(2, version=1) == [3, 4]
    assert ids(version=2) == [5, 6, 7, 8]
    assert ids(version=3) == []
    for since in {at(*when) for when in times} | {"2026-03-01", at(10, 51), at(12, 0), at(14, 0)}:
        expected = [n for n, when in enumerate(times, 1) if at(*when) >= since]
        assert ids(since=since) == expected
        assert ids(version=2, since=since) == [n for n in expected if n >= 5]


def test_failed_requests_are_kept_and_come_newest_last(log):
    several = [failure(422, 1), failure(503, 2), failure(422, 3)]
    assert log.append([], several) == []
    assert log.failures() == several
    assert log.failures(1) == several[2:]


def test_nothing_to_append_is_no_commit(log):
    assert log.append([]) == []
    assert log.totals().last_updated is None


def test_totals_equal_the_rows_and_survive_a_restart(tmp_path, log):
    assert log.totals().total_predictions == 0
    log.append(
        [
            Submission((row(1), row(2, warnings='["odd"]'), row(3, warnings="[]"))),
            one(4, model_version=2, timestamp="2026-03-01T12:00:07.000000+00:00"),
        ],
        [failure(422, 1), failure(503, 9), failure(422, 2)],
    )
    late = "2026-03-01T11:00:00.000000+00:00"
    log.append(
        [one(5, warnings='["odd"]', model_version=2, timestamp=late)],
        [failure(503)._replace(timestamp=late), failure(422, 3)],
    )
    before = log.totals()
    log.close()
    reopened = open_log(tmp_path)
    assert reopened.totals() == before
    assert before.total_predictions == 5
    assert before.by_version == {1: 3, 2: 2}
    assert before.warned == 2
    assert before.failed_requests == {422: 3, 503: 2}
    assert before.last_updated == "2026-03-01T12:00:09.000000+00:00"
    last = {one.model_version: one.last_timestamp for one in reopened.metrics().series}
    assert last[2] == "2026-03-01T12:00:07.000000+00:00"
    reopened.close()


def test_a_reader_that_holds_an_old_snapshot_blocks_no_writer_and_sees_no_change(log):
    log.append([Submission(tuple(row(n) for n in range(100)))])
    reader = connect(log.path, read_only=True)
    cursor = reader.execute("SELECT id FROM housinglogs")
    assert next(cursor) == (1,)
    log.append([one("late")])
    assert log.rows(1)[0].prediction_id == "plate"
    assert len(cursor.fetchall()) == 99
    reader.close()


def test_readers_do_not_wait_for_a_writer_or_for_each_other(log):
    log.append([one(n) for n in range(50)])
    writer = connect(log.path)
    writer.execute("BEGIN IMMEDIATE")
    seen = set()

    def read() -> None:
        for _ in range(50):
            seen.add((log.totals().total_predictions, len(log.rows(50))))

    threads = [threading.Thread(target=read) for _ in range(4)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {(50, 50)}
    assert time.monotonic() - started < 5
    writer.execute("ROLLBACK")
    writer.close()


def test_threads_append_together(log, switching_threads_often):
    def work(name: str) -> None:
        for n in range(20):
            for [answered] in log.append([one(f"{name}-{n}-{item}") for item in range(10)]):
                assert log.find(answered.prediction_id) == answered

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(row.id for row in log.rows(1000)) == list(range(1, 801))
    assert log.totals().total_predictions == 800


# Faults


def test_a_full_disk_refuses_wholly_says_why_and_works_again_with_room(tmp_path, log):
    log.append([one(1)])
    pages = log._writer.pragma("page_count")
    log._writer.pragma("max_page_count", pages)
    big = "x" * 100_000
    with pytest.raises(LogUnavailableError) as caught:
        log.append([one(2), one(3, "key", inputs=big)], [failure()])
    for part in ("predictions.db", "FullError", "full", "disk space"):
        assert part in str(caught.value)
    assert "full" in log.failed
    assert [row.id for row in log.rows()] == [1]
    assert log.failures() == []
    assert log.totals().total_predictions == 1
    with pytest.raises(LogUnavailableError):  # a last free page is no room to go on
        log.probe()

    log._writer.pragma("max_page_count", pages + 1000)
    log.probe()
    assert log.failed is None
    [_, [answered]] = log.append([one(2), one(3, "key", inputs=big)])
    assert answered.id == 3
    assert log.totals().total_predictions == 3
    assert log.file_behind is None


def test_a_probe_finds_the_log_failed_and_finds_it_mended(log):
    other = connect(log.path)
    log._writer.set_busy_timeout(10)
    log.probe()
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(LogUnavailableError, match="BusyError"):
        log.probe()
    with pytest.raises(LogUnavailableError, match="end the process"):
        log.append([one(1)])
    assert "locked" in log.failed
    assert log.totals().total_predictions == 0  # reading goes on
    other.execute("ROLLBACK")
    log.probe()
    assert log.failed is None
    other.close()


def test_a_database_deleted_under_the_server_is_noticed_at_once(tmp_path, log):
    log.append([one(1)])
    moved = log.path.with_name("moved.db")
    log.path.rename(moved)
    with pytest.raises(LogUnavailableError, match="put it back"):
        log.append([one(2)])
    log.path.touch()
    with pytest.raises(LogUnavailableError, match="another file has taken its place"):
        log.probe()
    moved.rename(log.path)
    [[answered]] = log.append([one(2)])
    assert answered.id == 2
    assert log.failed is None


def test_a_file_that_is_no_database_is_named_when_opening(tmp_path):
    (tmp_path / "housinglogs").mkdir()
    (tmp_path / "housinglogs" / "predictions.db").write_text("not a database " * 100)
    with pytest.raises(LogUnavailableError, match=r"predictions\.db.*NotADBError"):
        open_log(tmp_path)


def test_a_closed_log_refuses_politely_and_closes_twice(log):
    log.append([one(1)])
    log.close()
    log.close()
    with pytest.raises(LogUnavailableError, match="closed"):
        log.append([one(2)])


def test_closing_leaves_everything_in_the_main_file(tmp_path, log):
    log.append([one(1)])
    log.totals()
    log.close()
    assert [path.name for path in log.path.parent.glob("*.db*")] == ["predictions.db"]


def test_a_row_that_breaks_a_rule_takes_the_whole_call_back(log):
    log.append([one(1)])
    with pytest.raises(LogUnavailableError, match="ConstraintError"):
        log.append([one(2), one(1)])
    with pytest.raises(UnicodeEncodeError):  # a bug of the caller, shown as one
        log.append([one(2), one(3, client="\ud800")])
    assert [row.id for row in log.rows()] == [1]
    assert log.append([one(2)])[0][0].id == 2


def test_a_write_that_the_system_refuses_is_survived_without_reopening(tmp_path):
    script = textwrap.dedent("""
        import resource, sys
        from pathlib import Path
        from test_log import LogUnavailableError, Submission, one, open_log, row
        log = open_log(Path(sys.argv[1]), "power")
        log.append([one("first")])
        size = Path(str(log.path) + "-wal").stat().st_size
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10_000, hard))
        refused = 0
        for n in range(30):
            try:
                log.append([Submission(tuple(row(f"{n}-{i}") for i in range(20)))])
            except LogUnavailableError:
                refused += 1
        assert log.failed
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        [[answered]] = log.append([one("last")])
        assert refused > 0
        assert log.failed is None and log.file_behind is None
        kept = 20 * (30 - refused) + 2
        assert answered.id == kept
        assert log.totals().total_predictions == len(log.rows(1000)) == kept
        assert len(log.path.with_name("predictions.log").read_text().splitlines()) == kept
        assert log._writer.execute("PRAGMA integrity_check").get == "ok"
        log.close()
    """)
    run_script(script, tmp_path)


# Several processes


def run_script(script: str, *args: object) -> None:
    process = start_script(script, *args)
    assert process.wait(timeout=60) == 0


def start_script(script: str, *args: object) -> subprocess.Popen[bytes]:
    """Run Python text that may import this module; its errors appear among pytest's output."""
    arguments = [sys.executable, "-c", script, *map(str, args)]
    return subprocess.Popen(arguments, cwd=Path(__file__).parent)


def test_two_processes_share_one_log(tmp_path):
    script = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        from test_log import Submission, failure, one, open_log, row
        folder, name = Path(sys.argv[1]), sys.argv[2]
        log = open_log(folder)
        (folder / ("ready-" + name)).touch()
        while len(list(folder.glob("ready-*"))) < 2:
            time.sleep(0.001)
        for n in range(60):
            both = one(f"{name}-both{n}", f"key{n}", inputs=str(n))
            plain = [one(f"{name}-{n}-{i}", model_version=1 + n % 2) for i in range(n % 4)]
            answers = log.append([*plain, both], [failure()])
            for sent, [answered] in zip(plain, answers):
                assert log.find(sent.rows[0].prediction_id) == answered
            # Whoever came first, both give the same answer.
            assert log.find(answers[-1][0].prediction_id) == answers[-1][0]
        assert log.file_behind is None
        log.close()
    """)
    processes = [start_script(script, tmp_path, name) for name in ("a", "b")]
    assert [process.wait(timeout=60) for process in processes] == [0, 0]
    plain = 2 * sum(n % 4 for n in range(60))
    log = open_log(tmp_path)
    rows = log.rows(10_000)
    assert [row.id for row in rows] == list(range(1, plain + 60 + 1))
    totals = log.totals()
    assert totals.total_predictions == len(rows)
    assert totals.by_version == {
        version: sum(row.model_version == version for row in rows) for version in (1, 2)
    }
    assert totals.failed_requests == {422: 120}
    assert len(log.failures(1000)) == 120
    lines = log.path.with_name("predictions.log").read_bytes().splitlines()
    assert [orjson.loads(line)["prediction_id"] for line in lines] == [
        row.prediction_id for row in rows
    ]
    log.close()

"""The log's life: full text files, exports beside a writing server, rows that had their day."""

from __future__ import annotations

import csv
import json
import textwrap
from collections.abc import Iterator
from pathlib import Path

import apsw
import orjson
import pyarrow.parquet
import pytest
from test_log import failure, one, row, start_script

from mlops.errors import UsageError
from mlops.monitor import logreader
from mlops.monitor.export import WRITERS, writer_for
from mlops.monitor.log import PredictionLog
from mlops.records import Submission


def open_log(folder: Path, **limits: int) -> PredictionLog:
    return PredictionLog(folder / "housinglogs", "housinglogs", "crash", **limits)


def at(day: int) -> str:
    return f"2026-03-{day:02}T12:00:00.000000+00:00"


@pytest.fixture
def log(tmp_path: Path) -> Iterator[PredictionLog]:
    log = open_log(tmp_path)
    yield log
    log.close()


def written(log: PredictionLog) -> list[int]:
    """Ids in the full files, in order, and then in the one being written."""
    last = log.path.with_name("predictions.log")
    files = [*log._file.full(), *([last] if last.exists() else [])]
    return [orjson.loads(line)["id"] for file in files for line in file.read_bytes().splitlines()]


# Rotation


def test_full_files_and_the_last_one_hold_each_line_once_after_restarts_too(tmp_path):
    for start in range(0, 60, 20):
        log = open_log(tmp_path, largest_file=1500)
        for n in range(start, start + 20):
            log.append([one(n)])
        assert written(log) == list(range(1, start + 21))
        assert len(log._file.full()) >= start // 20 + 1
        log.close()


def test_a_last_file_that_was_deleted_is_written_anew_after_the_full_ones(tmp_path):
    log = open_log(tmp_path, largest_file=1500)
    for n in range(20):
        log.append([one(n)])
    log.path.with_name("predictions.log").unlink(missing_ok=True)
    log.append([one("later")])
    assert written(log) == list(range(1, 22))
    log.close()


def test_only_as_many_full_files_stay_as_are_wanted(tmp_path):
    log = open_log(tmp_path, largest_file=600, keep_files=2)
    for n in range(40):
        log.append([one(n)])
    assert len(log._file.full()) == 2
    ids = written(log)
    assert ids == list(range(ids[0], 41))
    log.close()


def test_full_files_of_another_log_are_not_continued(tmp_path):
    log = open_log(tmp_path, largest_file=600)
    for n in range(10):
        log.append([one(n)])
    log.close()
    for path in log.path.parent.glob("predictions.db*"):
        path.unlink()
    log.path.with_name("predictions.log").unlink(missing_ok=True)
    other = open_log(tmp_path)
    other.append([one(f"other {n}") for n in range(3)])
    lines = log.path.with_name("predictions.log").read_bytes().splitlines()
    assert [orjson.loads(line)["id"] for line in lines] == [1, 2, 3]
    other.close()


def test_several_processes_rotate_together_and_lose_no_line(tmp_path):
    script = textwrap.dedent("""
        import sys
        from pathlib import Path
        from test_log import one
        from test_log_life import open_log
        log = open_log(Path(sys.argv[1]), largest_file=3000)
        for n in range(150):
            log.append([one(f"{sys.argv[2]}-{n}-{item}") for item in range(1 + n % 3)])
        log.close()
    """)
    writers = [start_script(script, tmp_path, name) for name in "abc"]
    assert [writer.wait(timeout=100) for writer in writers] == [0, 0, 0]
    log = open_log(tmp_path)
    assert written(log) == list(range(1, 3 * 300 + 1))
    assert len(log._file.full()) > 20
    log.close()


# Export


def fill(log: PredictionLog) -> None:
    for day in range(1, 11):
        log.append(
            [
                one(
                    f"{day}-{n}",
                    timestamp=at(day),
                    inputs=f'{{"x":{n}.25,"client":0.1}}',
                    prediction=day / 3,
                    warnings='["odd, \\"very\\""]' if n == 1 else None,
                )
                for n in range(3)
            ]
        )


def read_back(path: Path) -> list[dict[str, object]]:
    if path.suffix == ".parquet":
        return pyarrow.parquet.read_table(path).to_pylist()
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("ending", WRITERS)
def test_an_export_holds_every_row_of_its_time_and_no_other(log, tmp_path, monkeypatch, ending):
    monkeypatch.setattr(logreader, "PAGE_ROWS", 4)
    fill(log)
    path, shares = tmp_path / f"x{ending}", []
    pages = log.pages("2026-03-03", "2026-03-07", advance=shares.append)
    assert writer_for(path)(path, pages, ["x", "client"]) == 12
    found = read_back(path)
    assert [int(one["id"]) for one in found] == list(range(7, 19))
    expected = [day / 3 for day in (3, 4, 5, 6) for _ in range(3)]
    assert [float(one["prediction"]) for one in found] == expected
    assert shares[-1] == 1
    if ending != ".jsonl":  # one column a field, whatever its name
        assert float(found[1]["x"]) == 1.25
        assert float(found[1]["input_client"]) == 0.1
    else:
        assert found[1]["inputs"] == {"x": 1.25, "client": 0.1}
        assert found[1]["warnings"] == ['odd, "very"']


@pytest.mark.parametrize("ending", WRITERS)
def test_an_export_of_nothing_is_a_file_without_rows(log, tmp_path, ending):
    path = tmp_path / f"x{ending}"
    assert writer_for(path)(path, log.pages("2027-01-01"), ["x"]) == 0
    assert read_back(path) == []


def test_an_export_holds_no_snapshot_while_it_is_read(log, monkeypatch):
    monkeypatch.setattr(logreader, "PAGE_ROWS", 5)
    fill(log)
    pages = log.pages()
    next(pages)
    log.append([one("meanwhile")])
    moved, pages_in_all = log._writer.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_FULL)
    assert moved == pages_in_all
    assert sum(map(len, pages)) == 25  # what came meanwhile is not in it


def test_an_ending_that_says_no_format_is_refused():
    with pytest.raises(UsageError, match=r"\.parquet, \.csv, \.jsonl"):
        writer_for(Path("x.xlsx"))


# Retention


def prune(log: PredictionLog, **limits: object) -> int:
    deleted = 0
    while step := log.prune(**limits):
        deleted += step
    return deleted


def test_old_rows_go_and_stay_counted_and_the_newest_stays_whatever_its_age(tmp_path, log):
    fill(log)
    log.append([], [failure(), failure(503)])
    before = log.metrics().totals
    assert prune(log, before=at(6)) == 15 + 1
    assert [row.id for row in log.rows(100)] == list(range(16, 31))
    assert prune(log, before="2027") == 14
    assert [row.id for row in log.rows(100)] == [30]
    assert log.metrics().totals == before
    log.close()
    reopened = open_log(tmp_path)
    assert reopened.append([one("next")])[0][0].id == 31
    assert written(reopened) == list(range(1, 32))  # the text file was recognised
    assert not list(tmp_path.rglob("*.aside-*"))
    reopened.close()


def test_full_text_files_go_with_the_last_of_their_rows_and_the_one_being_written_stays(tmp_path):
    log, other = (open_log(tmp_path, largest_file=1500) for _ in range(2))
    fill(log)
    log.append([one("newest", timestamp=at(20))])
    last = {path: int(path.suffix[1:]) for path in log._file.full()}
    writing = log.path.with_name("predictions.log")
    before = writing.read_bytes()
    assert len(last) >= 3
    prune(log, before=at(6))
    [oldest, *_] = [row.id for row in log.rows(100)]
    assert [path for path, number in last.items() if number >= oldest] == log._file.full()
    assert 0 < len(log._file.full()) < len(last)
    for each in (log, other, log):  # both may find the same files
        prune(each, before="2027")
    assert log._file.full() == []
    assert writing.read_bytes() == before
    assert other.append([one("next")])[0][0].id == 32
    assert written(other)[-2:] == [31, 32]
    for each in (log, other):
        each.close()


def test_when_a_version_answered_is_known_without_its_rows(log, monkeypatch):
    for day, version in ((1, 1), (2, 1), (3, 2), (4, 2)):
        log.append([Submission((row(day, timestamp=at(day), model_version=version),))])
    assert log.span(1) == (at(1), at(2))
    assert log.span(3) is None
    with monkeypatch.context() as patched:
        patched.setattr(log, "rows", None)  # however many rows of others came later
        assert log.span(1) == (at(1), at(2))
    while log.prune(before=at(4)):
        pass
    for version, day in ((1, 1), (2, 3)):
        first, last = log.span(version)
        assert (first[:10], last) == (at(day)[:10], at(day + 1))


def test_a_log_that_is_too_large_shrinks_on_disk_and_keeps_what_is_new(tmp_path, log):
    for n in range(20):
        log.append([Submission(tuple(row(f"{n}-{i}", inputs="x" * 1000) for i in range(100)))])
    log._writer.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
    size = log.path.stat().st_size
    assert prune(log, largest=size // 2) >= 500
    log._writer.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
    assert log.path.stat().st_size <= 0.6 * size
    kept = [row.id for row in log.rows(5000)]
    assert kept == list(range(kept[0], 2001))
    assert log.totals().total_predictions == 2000
    assert log._writer.execute("PRAGMA integrity_check").get == "ok"

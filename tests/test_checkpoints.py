"""The write-ahead log stays small beside readers that overlap; for one that stays nobody waits."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_log import one, open_log

from mlops import database
from mlops.database import connect
from mlops.monitor import checkpoints
from mlops.monitor.log import PredictionLog

PAGE = 4096 + 24
PAGES = 50
"""Between two checkpoints here."""


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PredictionLog]:
    monkeypatch.setattr(checkpoints, "CHECKPOINT_PAGES", PAGES)
    monkeypatch.setattr(checkpoints, "LARGE_PAGES", 2 * PAGES)
    monkeypatch.setattr(checkpoints, "TIMES_WITHOUT_PAUSE", 0)
    log = open_log(tmp_path)
    yield log
    log.close()


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Hold a snapshot of the log."""
    with contextlib.closing(connect(path, read_only=True)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM housinglogs").fetchall()
        yield
        reader.execute("COMMIT")


@contextlib.contextmanager
def readers_that_overlap(path: Path) -> Iterator[None]:
    """Let two threads hold a snapshot again and again, so that there is always one."""
    over = threading.Event()

    def read(late: float) -> None:
        time.sleep(late)
        while not over.is_set():
            with reading(path):
                time.sleep(0.02)

    threads = [threading.Thread(target=read, args=(late,)) for late in (0, 0.01)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def pages(log: PredictionLog) -> int:
    """Return how many pages the write-ahead log has."""
    return log._disk.pages


def append(log: PredictionLog, names: Iterator[int], number: int, *, pause: float = 0) -> int:
    """Log so many rows, each with a commit of its own; return the most pages there ever were."""
    most = 0
    for name in itertools.islice(names, number):
        log.append([one(name)])
        most = max(most, pages(log))
        time.sleep(pause)
    return most


def append_up_to(log: PredictionLog, names: Iterator[int], number: int) -> None:
    """Log rows until there were so many pages, and the checkpoint that they called for began."""
    while append(log, names, 1, pause=0.01) < number:
        pass


@contextlib.contextmanager
def one_reader_after_another(log: PredictionLog) -> Iterator[Iterator[int]]:
    """Hold a snapshot that is newer than the first checkpoint, which another has kept from its end.

    Yields names for rows.
    """
    names = itertools.count()
    with contextlib.ExitStack() as newer:
        with reading(log.path):
            append_up_to(log, names, PAGES)
            append(log, names, 1)
            newer.enter_context(reading(log.path))
        yield names


def test_the_write_ahead_log_stays_small_beside_readers_that_overlap(log: PredictionLog) -> None:
    with readers_that_overlap(log.path):
        most = append(log, itertools.count(), 300, pause=0.004)
    assert 2 * PAGES <= most < 12 * PAGES, "300 rows are a thousand pages and more"
    assert log.totals().total_predictions == len(log.rows(1000)) == 300


def test_nobody_waits_for_a_reader_that_stays_and_the_log_begins_anew_when_it_has_gone(
    log: PredictionLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "LONGEST_PAUSE", 60)  # a commit would fail before
    names = itertools.count()
    with reading(log.path):
        assert append(log, names, 100) > 6 * PAGES
    written = 100 + next(n for n in range(1, 500) if append(log, names, 1, pause=0.01) < PAGES)
    assert log.totals().total_predictions == written


def test_a_reader_that_has_just_begun_and_stays_is_waited_for_once(
    log: PredictionLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "LONGEST_PAUSE", 0.05)
    with one_reader_after_another(log) as names:
        append(log, names, 200)
    assert 2 * PAGES < log._checkpoints._large < pages(log), "it has more than when one waited"


def test_writers_that_have_waited_are_left_alone_for_four_times_as_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    checked = checkpoints.Checkpoints(tmp_path / "none.db")
    for seconds, left_alone in ((0.5, 2), (1_000, 4 * checkpoints.LONGEST_PAUSE)):
        checked.committed(checkpoints.CHECKPOINT_PAGES)
        checked._thread.join()
        now += seconds
        checked.committed(1)
        assert checked._no_pause_until == now + left_alone
    checked.close()


def test_to_close_the_log_no_reader_is_waited_for(
    log: PredictionLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "SHORTEST_PAUSE", 0)
    monkeypatch.setattr(checkpoints, "LONGEST_PAUSE", 60)
    with one_reader_after_another(log) as names:
        while not log._checkpoints._thread.is_alive():  # as it stays when it waits for the reader
            append(log, names, 1)
            log._checkpoints._thread.join(0.2)
        started = time.monotonic()
        log.close()
    assert time.monotonic() - started < 20


def test_what_a_log_once_needed_is_given_back_to_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "LARGEST_EMPTY_LOG", 100_000)
    log = open_log(tmp_path)
    wal = log.path.with_name(f"{log.path.name}-wal")
    names = itertools.count()
    with reading(log.path):
        append(log, names, 100)
    assert wal.stat().st_size > 1_000_000
    log._writer.wal_checkpoint()
    append(log, names, 1)
    assert wal.stat().st_size < 110_000
    log.close()

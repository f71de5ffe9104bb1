"""The disk begins with a commit before anybody waits for it, if it was quick just now."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_log import one, open_log

from mlops.monitor import disk
from mlops.monitor.disk import FRAME_HEAD_BYTES, HEAD_BYTES, Disk, begin_writing
from mlops.monitor.log import PredictionLog

PAGE = 4096
FRAME = PAGE + FRAME_HEAD_BYTES
Begun = list[tuple[int, int]]


class Hands:
    """A clock that stands still unless it is moved: how busy the machine is plays no part."""

    now = 1.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def hands(monkeypatch: pytest.MonkeyPatch) -> Hands:
    """Return the clock that the disk is timed by."""
    hands = Hands()
    monkeypatch.setattr(disk, "time", hands)
    return hands


@pytest.fixture
def begun(hands: Hands, monkeypatch: pytest.MonkeyPatch) -> Begun:
    """Return where each begun write starts, and how long it is; the disk is a quick one."""
    found: Begun = []
    monkeypatch.setattr(os, "fdatasync", lambda _: None)
    monkeypatch.setattr(disk, "begin_writing", lambda _, *part: found.append(part))
    return found


@pytest.fixture
def log(tmp_path: Path) -> Iterator[PredictionLog]:
    log = open_log(tmp_path, "power")
    yield log
    log.close()


def test_the_disk_begins_with_what_each_commit_adds_to_the_log(
    log: PredictionLog, begun: Begun
) -> None:
    log.append([one("a")], wait=False)
    assert begun == [], "whether the disk is quick is not known yet"
    log.sync()
    log.append([one("b")], wait=False)
    log.append([one(name) for name in range(50)], wait=False)
    size = log.path.with_name(f"{log.path.name}-wal").stat().st_size
    [first, second] = begun
    assert first[0] == HEAD_BYTES, "what was synced before is begun once more, the first time"
    assert second[0] == sum(first)
    assert sum(second) == size
    assert all(length % FRAME == 0 for _, length in begun)


def test_a_log_that_does_not_promise_the_disk_begins_nothing(tmp_path: Path, begun: Begun) -> None:
    log = open_log(tmp_path)
    log.append([one("a")], wait=False)
    log.sync()
    log.append([one("b")], wait=False)
    log.close()
    assert begun == []


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Disk]:
    path = tmp_path / "file"
    path.write_bytes(b"x" * (HEAD_BYTES + 10 * FRAME))
    plain = Disk(path, PAGE)
    yield plain
    plain.close()


def test_a_log_that_began_again_at_its_start_is_written_from_there(
    plain: Disk, begun: Begun
) -> None:
    plain.sync()
    for plain.pages in (3, 7, 2):
        plain.begin()
    assert begun == [
        (HEAD_BYTES, 3 * FRAME),
        (HEAD_BYTES + 3 * FRAME, 4 * FRAME),
        (HEAD_BYTES, 2 * FRAME),
    ]


@pytest.mark.parametrize("seconds", [2 * disk.QUICK_SECONDS, 0.0])
def test_a_disk_that_was_slow_or_is_at_work_or_long_unheard_of_is_left_alone(
    plain: Disk, begun: Begun, hands: Hands, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain.pages = 3

    def slowly(_: int) -> None:
        plain.begin()  # another group is committed meanwhile
        assert begun == []
        hands.now += seconds

    monkeypatch.setattr(os, "fdatasync", slowly)
    plain.sync()
    plain.begin()
    assert len(begun) == (seconds == 0)
    hands.now += 2 * disk.STALE_SECONDS
    plain.begin()
    assert len(begun) == (seconds == 0)


def test_a_sync_that_fails_says_so_and_the_next_is_not_hurried(
    plain: Disk, begun: Begun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: int) -> None:
        raise OSError(5, "Input/output error")

    plain.sync()
    monkeypatch.setattr(os, "fdatasync", broken)
    with pytest.raises(OSError, match="Input/output error"):
        plain.sync()
    plain.begin()
    assert begun == []


def test_to_begin_changes_no_byte_and_what_it_cannot_do_is_left_to_the_sync(
    plain: Disk, tmp_path: Path
) -> None:
    before = (tmp_path / "file").read_bytes()
    plain.pages = 10
    plain.sync()
    plain.begin()
    plain.sync()
    assert (tmp_path / "file").read_bytes() == before
    reading, writing = os.pipe()
    begin_writing(writing, 0, 10)  # no file: refused, and nobody told
    os.close(reading)
    os.close(writing)

"""One clock for all that is stamped: the machine's, or one that a file keeps."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Server, environment
from kept import rows

from mlops import clock
from mlops.errors import UsageError
from mlops.settings import read_settings
from mlops.usecases.housing import HOUSING

NEW_YEAR = 1_767_225_600.0  # 2026-01-01, 00:00 UTC
EXAMPLE = next(iter(HOUSING.examples.values()))


def test_the_clock_is_the_machines():
    assert abs(clock.unix() - time.time()) < 1
    assert clock.stamp() <= clock.stamp()
    assert len(clock.stamp()) == 32


@pytest.mark.parametrize(
    ("seconds", "written"),
    [
        (0, "1970-01-01T00:00:00.000000+00:00"),
        (1_800_000_000.000001, "2027-01-15T08:00:00.000001+00:00"),
        (1_799_999_999.9999999, "2027-01-15T08:00:00.000000+00:00"),
    ],
)
def test_a_stamp_is_always_as_long_and_rounded_to_the_microsecond(monkeypatch, seconds, written):
    monkeypatch.setattr(clock, "unix", lambda: seconds)
    assert clock.stamp() == written


def test_a_process_follows_the_clock_that_a_file_keeps(tmp_path: Path):
    path = tmp_path / "clock"
    clock.set_to(path, NEW_YEAR)
    script = "from mlops import clock; from mlops.settings import read_settings; read_settings();"
    script += "[print(clock.stamp(), flush=True) for _ in iter(input, 'end')]"
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        env=environment(tmp_path, MLOPS_STORY_CLOCK=str(path)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin
    assert process.stdout
    for day in (0, 40, 1):  # back, too: whoever sets it decides
        clock.set_to(path, NEW_YEAR + day * 86400)
        process.stdin.write("\n")
        process.stdin.flush()
        month, number = divmod(day, 31)
        expected = f"2026-{month + 1:02}-{number + 1:02}T00:00:00.000000+00:00\n"
        assert process.stdout.readline() == expected
    process.communicate("end\n", timeout=10)


def test_a_file_that_keeps_no_time_is_refused_by_name(tmp_path: Path):
    (tmp_path / "empty").touch()
    for name in ("missing", "empty"):
        with pytest.raises(UsageError, match=f"MLOPS_STORY_CLOCK names .*{name}"):
            read_settings(MLOPS_STORY_CLOCK=tmp_path / name)


def test_a_server_stamps_and_counts_by_that_clock(
    serve: Callable[..., Server], home: Path, tmp_path: Path
):
    path = tmp_path / "clock"
    clock.set_to(path, NEW_YEAR)
    server = serve("housing", MLOPS_STORY_CLOCK=str(path))
    server.request("/predict", EXAMPLE)
    clock.set_to(path, NEW_YEAR + 3 * 86400)
    for _ in range(2):
        server.request("/predict", EXAMPLE)
    days = [row["timestamp"][:10] for row in rows(home)]
    assert days == ["2026-01-01", "2026-01-04", "2026-01-04"]
    status, metrics = server.request("/metrics")
    assert status == 200
    windows = metrics["windows"]
    assert [windows[name]["predictions"] for name in ("hour", "day", "all")] == [2, 2, 3]

"""What survives a power cut: the system calls of a real server, in their order."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from conftest import Server
from traffic import post, send

from mlops.usecases.housing import HOUSING

BODY = next(iter(HOUSING.examples.values()))
REQUESTS = 200
ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


def find_strace() -> str:
    """The program, from Debian's package where it is missing. Raises `OSError` without it."""
    if shutil.which("strace") is None:
        install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "strace"]
        if not shutil.which("apt-get") or subprocess.run(install, check=False).returncode:
            raise OSError("strace is not here and could not be installed")
    return "strace"


@pytest.fixture
def strace() -> str:
    try:
        return find_strace()
    except OSError as error:
        pytest.skip(str(error))


def traced(strace: str, start: Callable[..., Server], folder: Path, durability: str) -> list[str]:
    """Load a server that strace watches; return the calls that matter, in their order."""
    server = start("housing", PREDICTIONS_DURABILITY=durability)
    file = folder / f"{durability}.strace"
    # A page of the write-ahead log is 4,096 bytes, and the ids in it can be read.
    watch = [strace, "-f", "-y", "-s", "5000", "-o", str(file), "-p", str(server.process.pid)]
    calls = ["-e", "trace=pwrite64,fdatasync,fsync,write,writev,sendto,sendmsg"]
    tracer = subprocess.Popen([*watch, *calls], stderr=subprocess.PIPE)
    try:
        assert tracer.stderr is not None
        assert b"attached" in tracer.stderr.readline()
        time.sleep(0.5)  # and to its threads
        replies = send(server.port, [post("/predict", BODY)] * REQUESTS, connections=16)
        assert all(reply and reply.status == 200 for reply in replies)
    finally:
        server.stop()
        tracer.wait(timeout=60)
        tracer.stderr.close()
    return file.read_text(errors="replace").splitlines()


def answered(calls: Sequence[str]) -> dict[str, bool]:
    """Return, for the id in each answer, whether the disk had its row before it was sent.

    That is, whether a sync of the write-ahead log began after the row was first written there,
    and had ended well.
    """
    written: dict[str, int] = {}
    began: dict[str, int] = {}
    synced_up_to = -1
    found = {}
    for number, line in enumerate(calls):
        thread, call = line.split(maxsplit=1)
        if call.startswith("pwrite64") and "-wal>" in call:
            for one in ID.findall(call):
                written.setdefault(one, number)
        elif call.startswith("fdatasync") and "-wal>" in call:
            began[thread] = number
            if call.endswith("= 0"):
                synced_up_to = number
        elif call.startswith("<... fdatasync resumed") and call.endswith("= 0"):
            synced_up_to = max(synced_up_to, began.get(thread, -1))
        elif "HTTP/1.1 200" in call and (answer := ID.search(call)):
            found[answer[0]] = written[answer[0]] < synced_up_to
    return found


@pytest.mark.slow
def test_each_answer_follows_the_sync_of_its_row_and_without_the_promise_it_does_not(
    strace: str, serve: Callable[..., Server], tmp_path: Path
) -> None:
    found = answered(traced(strace, serve, tmp_path, "power"))
    assert len(found) == REQUESTS
    assert all(found.values()), f"{list(found.values()).count(False)} answers came too early"
    # The harness sees it when nothing is synced.
    found = answered(traced(strace, serve, tmp_path, "crash"))
    assert len(found) == REQUESTS
    assert not any(found.values())

"""R6: several processes write one log file that is renamed when it is full, to the line."""

from __future__ import annotations

import textwrap

import orjson
from test_log import start_script
from test_log_life import open_log, written

from benchmarks.reliability.world import Found, World

WRITERS = 3
GROUP = 20
WRITE = textwrap.dedent("""
    import fcntl, sys, time
    from pathlib import Path
    from test_log import one
    from test_log_life import open_log

    if sys.argv[4] == "no-lock":  # with a moment between looking and writing, which a lock covers
        fcntl.flock = lambda *_: time.sleep(0.001)
    log = open_log(Path(sys.argv[1]), largest_file=1_000_000)
    for n in range(int(sys.argv[3])):
        log.append([one(f"{sys.argv[2]}-{n}-{item}") for item in range(20)])
    log.close()
""")


def rotation(world: World, lines: int = 20_000) -> Found:
    """Let three processes write, with a new file each megabyte; then count every line.

    All files together must hold each row of the database once and in order.
    """
    folder = world.folder()
    groups = -(-lines // (WRITERS * GROUP))
    names = [str(number) for number in range(WRITERS)]
    writers = [start_script(WRITE, folder, name, groups, world.fault or "none") for name in names]
    codes = [writer.wait(600) for writer in writers]
    log = open_log(folder, largest_file=1_000_000)
    expected = WRITERS * GROUP * groups
    try:
        there = written(log)
    except orjson.JSONDecodeError:
        there = []
    files = len(log._file.full()) + 1
    log.close()
    wrong = sum(a != b for a, b in zip(there, range(1, expected + 1), strict=False))
    wrong += abs(len(there) - expected)
    return Found(
        f"{wrong} lines missing, double or out of order",
        not wrong and not any(codes),
        f"{expected:,} lines, {files} files, {WRITERS} processes",
    )

"""`make bench`: everything that is measured, in one run, in a folder of its own."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from pathlib import Path

from benchmarks import exactness, explain, growth, serving, whole_loop


def main() -> None:
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    if sys.argv[1:2] == ["growth"]:
        growth.run(*map(int, sys.argv[2:3]))
        return
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        whole_loop.run(home)
        exactness.run(home)
        explain.run(home)
    with tempfile.TemporaryDirectory() as folder:
        serving.run(Path(folder))


if __name__ == "__main__":
    main()

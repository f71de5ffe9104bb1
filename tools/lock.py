"""Recompiles the locks from pyproject.toml: `make lock`, or `make lock UPGRADE=1` for newer pins.

    requirements/setup.txt    uv, which installs the others
    requirements/runtime.txt  everything the product runs with, and what builds the project
    requirements/dev.txt      runtime, and the tools for tests and checks
    requirements/serving.txt  what answers requests, at runtime's versions
    requirements.txt          runtime without hashes, for `pip install -r requirements.txt`

All are made in a temporary folder, checked, and put in place together, so that a failure half-way
leaves the old ones. Pins that still fit are kept: a second run changes nothing.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ("setup", "runtime", "dev", "serving")
PLAIN_HEAD = """\
# Everything the product runs with, and the project itself: pip install -r requirements.txt
# Plain pins, because pip checks hashes for all or for none and `-e .` can have none. The same
# pins with hashes are in requirements/ (runtime, dev, serving); make lock writes all of them.
"""
# What a lock may hold, and so no address, no option, no path: it must install from any index.
PIN = r"[a-z0-9][a-z0-9.-]*==[A-Za-z0-9.!+]+( ; [^/@]+?)?"
ALLOWED = re.compile(rf"({PIN}|    --hash=sha256:[0-9a-f]{{64}})( \\)?")


def sources(name: str, folder: Path) -> list[str]:
    """What each lock is compiled from. Those after runtime may not differ from it."""
    constraint = ["--constraint", str(folder / "runtime.txt")]
    return {
        "setup": ["--group", "setup"],
        "runtime": ["pyproject.toml", "--group", "build"],
        "dev": ["pyproject.toml", "--group", "build", "--group", "dev", *constraint],
        "serving": ["--group", "serving", *constraint],
    }[name]


def compile_lock(name: str, folder: Path, *, upgrade: bool) -> None:
    """Write one lock; uv keeps the pins of the file it finds there."""
    command = [sys.executable, "-S", str(ROOT / "tools" / "setup.py"), "uv", "pip", "compile"]
    command += ["--universal", "--python-version", "3.11", "--generate-hashes", "--no-header"]
    command += ["--no-annotate", "--quiet", "--output-file", str(folder / f"{name}.txt")]
    command += ["--upgrade"] if upgrade else []
    # One complete index and no others: an extra one may hold the wheels of one machine only, and
    # the lock would then refuse everybody else's.
    environ = {**os.environ, "UV_INDEX": "", "UV_FIND_LINKS": ""}
    subprocess.run([*command, *sources(name, folder)], cwd=ROOT, env=environ, check=True)


def plain(lock: str) -> str:
    """The pins of a lock without their hashes, and the project after them."""
    pins = [line.rstrip("\\ ") for line in lock.splitlines() if not line.startswith(" ")]
    return PLAIN_HEAD + "\n".join([*pins, "-e ."]) + "\n"


def foreign_lines(text: str) -> list[str]:
    """Lines that are neither a pin nor a hash."""
    return [line for line in text.splitlines() if not ALLOWED.fullmatch(line)]


def main() -> int:
    upgrade = os.environ.get("UPGRADE", "") not in ("", "0")
    requirements = ROOT / "requirements"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for lock in LOCKS:
            target = folder / f"{lock}.txt"
            if (requirements / target.name).exists():
                shutil.copy(requirements / target.name, target)
            try:
                compile_lock(lock, folder, upgrade=upgrade)
            except subprocess.CalledProcessError as error:
                print(f"requirements/{lock}.txt cannot be compiled: see above", file=sys.stderr)
                return error.returncode
            for line in foreign_lines(target.read_text(encoding="utf-8")):
                print(f"{lock}.txt would hold more than pins: {line[:40]} ...", file=sys.stderr)
                return 1
        for lock in LOCKS:
            shutil.copy(folder / f"{lock}.txt", requirements / f"{lock}.txt")
        runtime = (requirements / "runtime.txt").read_text(encoding="utf-8")
        (ROOT / "requirements.txt").write_text(plain(runtime), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

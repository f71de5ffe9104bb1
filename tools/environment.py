"""What is there, what is to be done about it, and with which Python."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from installer_failures import AGAIN, SetupError

MINIMUM = (3, 11)
NEWER_PYTHONS = ("python3.11", "python3.12", "python3.13", "python3.14")  # CI runs 3.11


class Place:
    """The files that setting up touches, all below the project's folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.requirements = root / "requirements"
        self.pyproject = root / "pyproject.toml"
        self.venv = root / ".venv"
        self.python = self.venv / "bin" / "python"
        self.uv = self.venv / "bin" / "uv"
        self.stamp = self.venv / "setup.json"
        self.run = root / ".run"
        self.log = self.run / "setup.log"
        self.lock = self.run / "setup.lock"

    def lock_of(self, kind: str) -> Path:
        return self.requirements / f"{kind}.txt"


def digest(*paths: Path) -> str:
    """SHA-256 over files."""
    total = hashlib.sha256()
    for path in paths:
        total.update(path.read_bytes())
    return total.hexdigest()


def lock_digest(place: Place, kind: str) -> str:
    return digest(place.lock_of(kind), place.lock_of("setup"))


def read_stamp(place: Place) -> dict[str, str]:
    """What the last set-up left: empty if none did, `set` alone if it was interrupted."""
    try:
        stamp = json.loads(place.stamp.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def write_stamp(place: Place, stamp: dict[str, str]) -> None:
    """Whole or not at all: a killed writer leaves the old one."""
    new = place.stamp.with_suffix(".new")
    new.write_text(json.dumps(stamp, indent=1) + "\n", encoding="utf-8")
    new.replace(place.stamp)


def plan(place: Place, wanted: str) -> tuple[str, str]:
    """What to do (nothing, project, add, sync, build), and for which set of packages.

    What has dev keeps dev: it holds all of runtime, and `make up` must not take the test tools
    away from a `make test` in another window.
    """
    stamp = read_stamp(place)
    kind = "dev" if "dev" in (wanted, stamp.get("set")) else "runtime"
    if not stamp:
        return ("sync" if is_usable(place) else "build"), kind
    # Scripts in .venv/bin hold its absolute path, so a copied clone needs its own.
    in_place = stamp.get("venv") == str(place.venv) and place.python.exists()
    if not in_place or not runs_wanted_python(place, stamp):
        return "build", kind
    if stamp["set"] == kind and stamp["lock"] == lock_digest(place, kind):
        same = stamp.get("project") == digest(place.pyproject)
        return ("nothing" if same else "project"), kind
    if stamp["set"] == "runtime" and stamp["lock"] == lock_digest(place, "runtime"):
        return "add", kind
    return "sync", kind


def runs_wanted_python(place: Place, stamp: dict[str, str]) -> bool:
    """Whether .venv runs on the Python it was made with, and on the one that PYTHON= names."""
    actual = place.python.resolve()
    # A link that has moved on, from 3.11 to 3.12, would leave the packages of 3.11 behind.
    if str(actual) != stamp.get("python"):
        return False
    wish = os.environ.get("PYTHON", "")
    if not wish:
        return True
    named = Path(shutil.which(wish) or "")
    if named.resolve() == actual:
        return True
    minor = ".".join(map(str, version_of(str(named))[:2]))
    return stamp.get("version", "").startswith(f"{minor}.")


def is_usable(place: Place) -> bool:
    """Whether a .venv that somebody else made can be brought up to date instead of replaced."""
    try:
        here = str(place.venv) in (place.venv / "bin" / "activate").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
    return here and version_of(str(place.python), "import pip") >= MINIMUM


def version_of(python: str, also: str = "pass") -> tuple[int, ...]:
    """(3, 11, 7), or () for what does not run: version managers leave such names on the PATH."""
    script = f"import sys; {also}; print('%d.%d.%d' % sys.version_info[:3])"
    try:
        answer = subprocess.run(
            [python, "-c", script], capture_output=True, text=True, timeout=30, check=True
        ).stdout
        return tuple(int(part) for part in answer.strip().split("."))
    except (OSError, ValueError, subprocess.SubprocessError):
        return ()


def running_python() -> str:
    """The Python that runs this, and not the .venv it may have been started from."""
    return str(getattr(sys, "_base_executable", "") or sys.executable)


def find_python() -> str:
    """The Python that PYTHON= names, else the running one, else one from the PATH."""
    wish = os.environ.get("PYTHON", "")
    if wish:
        path = shutil.which(wish)
        if path is None:
            raise SetupError(f"PYTHON={wish} is not there: name the path of a Python", exit_code=2)
        if version_of(path) >= MINIMUM:
            return path
        raise too_old(version_of(path))
    if sys.version_info >= MINIMUM:
        return running_python()
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    for name in NEWER_PYTHONS:
        for folder in folders:
            path = shutil.which(name, path=folder)
            if path and version_of(path) >= MINIMUM:
                return path
    raise too_old(sys.version_info[:2])


def too_old(found: tuple[int, ...]) -> SetupError:
    name = ".".join(str(part) for part in found[:2]) or "one that does not run"
    return SetupError(
        f"Python 3.11 or newer is needed, found {name}: install python3.11 or run"
        " make PYTHON=/path/to/python3.11 and the verb",
        exit_code=2,
    )


def check_venv_module(python: str) -> None:
    """Debian and Ubuntu keep the half of it that brings pip in a package of its own."""
    if version_of(python, "import venv, ensurepip"):
        return
    package = "python{}.{}-venv".format(*version_of(python))
    raise SetupError(
        f"{python} cannot make environments, its venv or ensurepip module is missing: install the"
        f" package {package}, or name another Python with make PYTHON=/path/to/python3.11,"
        f" and {AGAIN}"
    )

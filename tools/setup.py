"""From a bare clone to an environment: `python3 tools/setup.py runtime|dev`.

`make` runs this before each verb that needs Python packages, so it must cost nothing when there
is nothing to do, and end in one line that says what to do when it cannot do its work. It uses the
standard library only and runs on Python 3.8 too, which is then used to look for a newer one.

    stamp says "done"            nothing                                        (some 0.05 s)
    only pyproject.toml changed  the project itself is installed again
    dev asked, runtime is there  what dev adds is added, nothing removed: a server may be running
    another lock                 what changed is changed, what left the lock is removed
    no .venv; a broken, moved    .venv is made anew
    or unfinished one

`python3 tools/setup.py uv ...` runs the pinned uv with pip's own settings (index, certificate).
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from environment import (
    Place,
    check_venv_module,
    digest,
    find_python,
    lock_digest,
    plan,
    read_stamp,
    version_of,
    write_stamp,
)
from installer_failures import AGAIN, REMEDIES, UNTOUCHED, SetupError, classify, explain, redacted
from pip_settings import pip_settings, uv_settings

SETS = ("runtime", "dev")
# Measured in 2026-11: 1.8 GB with bytecode and development tools; the rest is for packages that
# are unpacked and not yet linked. An existing environment needs a fraction of it.
NEW_ENVIRONMENT_BYTES = 2_500_000_000
CHANGED_ENVIRONMENT_BYTES = 400_000_000


class Job:
    """One set-up under the lock: its log, its environment, its progress."""

    def __init__(self, place: Place, held: int) -> None:
        self.place = place
        self.held = held
        self.changed = False  # whether an installer has finished, and so touched .venv
        self.terminal = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        self.started = time.monotonic()
        self.environ = {
            **os.environ,
            "NO_COLOR": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_NO_INPUT": "1",  # a question would wait unseen for ever
            "PIP_USER": "0",  # set in some pip.conf, and refused inside an environment
            "UV_COMPILE_BYTECODE": "1",  # else each new process may compile every module again
            "UV_NO_PROGRESS": "1",
            "UV_PYTHON_DOWNLOADS": "never",
        }
        self.environ.setdefault("PIP_RETRIES", "2")
        for name in ("PYTHONHOME", "PYTHONPATH", "PIP_TARGET", "PIP_PREFIX"):
            self.environ.pop(name, None)
        place.log.write_text(time.strftime("%Y-%m-%d %H:%M:%S\n"), encoding="utf-8")

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def run(self, label: str, command: list[str], extra: dict[str, str] | None = None) -> None:
        """Run one installer, its output in the log; raise the line to show when it fails."""
        output: list[str] = []
        child = subprocess.Popen(
            command,
            cwd=self.place.root,
            env={**self.environ, **(extra or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            # The child holds the lock too: if this process is killed, the next set-up still
            # waits until the child has ended.
            pass_fds=(self.held,),
        )
        reader = threading.Thread(target=self.keep, args=(child, command, output), daemon=True)
        reader.start()
        try:
            while reader.is_alive():  # until the child has closed its output
                reader.join(timeout=0.1)
                self.show(label)
            child.wait()
        except BaseException:
            stop(child)
            raise
        finally:
            self.hide()
        if child.returncode:
            raise self.failure(label, child.returncode, "".join(output))

    def keep(self, child: subprocess.Popen[str], command: list[str], output: list[str]) -> None:
        """Copy a child's output to the log. A log on a full disk must not stop the reading."""
        lines = child.stdout
        assert lines is not None
        try:
            with self.place.log.open("a", encoding="utf-8") as log:
                log.write(redacted(f"\n$ {' '.join(command)}\n"))
                for line in lines:
                    output.append(redacted(line))
                    log.write(output[-1])
        except OSError:
            output.extend(redacted(line) for line in lines)

    def failure(self, label: str, code: int, output: str) -> SetupError:
        kind, advice = classify(output)
        log = self.place.log.relative_to(self.place.root)
        if not advice:
            how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
            advice = f"the installer {how}: read the end of its output and {AGAIN}"
        return SetupError(f"{label} failed: {advice} (full output: {log})", kind)

    def show(self, label: str) -> None:
        if self.terminal:
            mark = "|/-\\"[int(self.seconds * 5) % 4]
            print(f"\r\033[K{mark} {label}, {self.seconds:.0f} s", end="", flush=True)

    def hide(self) -> None:
        if self.terminal:
            print("\r\033[K", end="", flush=True)

    def uv(self, label: str, command: list[str]) -> None:
        """Run uv, and once more with what may help against the way it failed."""
        try:
            self.run(label, command)
        except SetupError as first:
            if first.kind not in REMEDIES:
                raise
            try:
                self.run(label, command, REMEDIES[first.kind])
            except SetupError:
                raise first from None


def stop(child: subprocess.Popen[str]) -> None:
    child.terminate()
    try:
        child.wait(timeout=10)
    except subprocess.TimeoutExpired:
        child.kill()


def clear(place: Place) -> None:
    """Remove .venv, whatever it is."""
    if place.venv.is_symlink() or place.venv.is_file():
        place.venv.unlink()
    elif place.venv.exists():
        # Without this file it is no environment: what an interrupted removal leaves is never
        # taken for one.
        (place.venv / "pyvenv.cfg").unlink(missing_ok=True)
        shutil.rmtree(place.venv)


def check_space(place: Place, needed: int) -> None:
    free = shutil.disk_usage(place.root).free
    if free < needed:
        raise SetupError(
            f"the environment needs {needed / 1e9:.1f} GB in {place.root} and {free / 1e9:.1f} GB"
            f" are free: make room and {AGAIN}",
            "disk",
        )


def runs_uv(uv: str, pinned: tuple[int, ...]) -> bool:
    """Whether this uv starts on this machine and is no older than the pinned one."""
    try:
        answer = subprocess.run(
            [uv, "--version"], capture_output=True, text=True, timeout=30, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return False
    found = re.match(r"uv (\d+)\.(\d+)\.(\d+)", answer)
    return found is not None and tuple(map(int, found.groups())) >= pinned


def obtain_uv(job: Job) -> str:
    """The uv to install with: pinned and hashed, in .venv; or "" where there is none to be had.

    It lives in .venv itself: `uv pip sync` leaves pip and uv alone though no lock names them.
    """
    place = job.place
    lock = place.lock_of("setup")
    pin = re.search(r"^uv==(\d+)\.(\d+)\.(\d+)", lock.read_text(encoding="utf-8"), re.MULTILINE)
    pinned = tuple(map(int, pin.groups())) if pin else ()
    if runs_uv(str(place.uv), pinned):
        return str(place.uv)
    command = [str(place.python), "-m", "pip", "install", "--require-hashes", "--no-deps"]
    # A wheel or nothing: the source would want a Rust compiler.
    command += ["--only-binary", ":all:", "-r", str(lock)]
    try:
        job.run("Installing uv", command)
    except SetupError as error:
        own = shutil.which("uv") or ""
        if error.kind in UNTOUCHED and own and runs_uv(own, pinned):
            return own
        if error.kind not in ("missing", ""):
            raise
    return str(place.uv) if runs_uv(str(place.uv), pinned) else ""


def hand_over_pip_settings(job: Job) -> None:
    listing = subprocess.run(
        [str(job.place.python), "-m", "pip", "config", "list"],
        env=job.environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    ).stdout
    job.environ.update(uv_settings(pip_settings(listing), job.environ))


def pinned_names(lock: Path) -> set[str]:
    return set(re.findall(r"^([A-Za-z0-9._-]+)==", lock.read_text(encoding="utf-8"), re.MULTILINE))


def install(job: Job, action: str, kind: str) -> None:
    """Bring .venv to the lock of `kind`, and the project into it."""
    place = job.place
    python, lock = str(place.python), str(place.lock_of(kind))
    editable = ["--no-deps", "--no-build-isolation", "-e", str(place.root)]
    uv = obtain_uv(job)
    if not uv:
        print("uv cannot be had or does not run here: installing with pip, some minutes ...")
        pip = [python, "-m", "pip", "install"]
        if action != "project":
            job.run("Installing packages with pip", [*pip, "--require-hashes", "-r", lock])
            job.changed = True
        job.run("Installing the project", [*pip, *editable])
        return
    hand_over_pip_settings(job)
    if action == "add":
        job.uv("Adding development packages", add_command(place, uv, kind))
    elif action != "project":
        sync = [uv, "pip", "sync", "--require-hashes", "--python", python, lock]
        job.uv("Installing packages", sync)
    if action in ("build", "sync"):
        job.changed = True
    # An addition leaves the project where it is: a running server imports from it.
    if action != "add" or read_stamp(place).get("project") != digest(place.pyproject):
        job.uv("Installing the project", [uv, "pip", "install", "--python", python, *editable])


def add_command(place: Place, uv: str, kind: str) -> list[str]:
    """Add the packages that `kind` has and runtime has not; finish an addition that was cut off."""
    command = [uv, "pip", "install", "--no-deps", "--require-hashes"]
    command += ["--python", str(place.python), "-r", str(place.lock_of(kind))]
    stamp = read_stamp(place)
    if "adding" in stamp:
        # A package that was cut off half-way looks installed. It can only be one of these.
        new = pinned_names(place.lock_of(kind)) - pinned_names(place.lock_of("runtime"))
        command += [f"--reinstall-package={name}" for name in sorted(new)]
    write_stamp(place, {**stamp, "adding": kind})
    return command


def make_venv(job: Job, kind: str, python: str) -> None:
    """An environment with pip, marked as unfinished before there is anything in it."""
    job.place.venv.mkdir()
    write_stamp(job.place, {"set": kind})
    job.run("Making .venv", [python, "-m", "venv", str(job.place.venv)])


def carry_out(job: Job, action: str, kind: str, python: str) -> None:
    """Do what `plan` said, with the stamp telling the truth at each moment in between."""
    place = job.place
    before = read_stamp(place)
    if action == "build":
        make_venv(job, kind, python)
    elif action == "sync":
        write_stamp(place, {"set": kind})
    try:
        install(job, action, kind)
    except SetupError as error:
        if action == "sync" and error.kind in UNTOUCHED and not job.changed:
            # Offline after a change of the lock: the next try must not begin by deleting.
            write_stamp(place, before) if before else place.stamp.unlink()
        raise
    write_stamp(
        place,
        {
            "set": kind,
            "lock": lock_digest(place, kind),
            "project": digest(place.pyproject),
            "python": str(place.python.resolve()),
            "version": ".".join(map(str, version_of(str(place.python)))),
            "venv": str(place.venv),
        },
    )


def make_ready(place: Place, action: str) -> str:
    """All that can be refused before work begins. The Python to build with, if one is needed."""
    if action != "build":
        check_space(place, CHANGED_ENVIRONMENT_BYTES)
        return ""
    python = find_python()
    check_venv_module(python)
    clear(place)
    check_space(place, NEW_ENVIRONMENT_BYTES)
    return python


def set_up(place: Place, wanted: str) -> None:
    """Make .venv hold what `wanted` (runtime or dev) names; silent when it does already."""
    if plan(place, wanted)[0] == "nothing":
        return
    place.run.mkdir(exist_ok=True)
    with place.lock.open("a", encoding="utf-8") as lock:
        wait_for(lock.fileno())
        action, kind = plan(place, wanted)
        if action == "nothing":
            return
        python = make_ready(place, action)
        job = Job(place, lock.fileno())
        if action == "build":
            about = "Setting up the environment (.venv), about 30 s with a warm package cache ..."
        else:
            about = "Bringing the environment (.venv) up to date ..."
        print(about, flush=True)
        carry_out(job, action, kind, python)
        print(f"The environment is ready ({job.seconds:.0f} s).", flush=True)


def wait_for(lock: int) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("Another set-up is under way in this folder: waiting for it ...", flush=True)
        fcntl.flock(lock, fcntl.LOCK_EX)


def run_uv(place: Place, arguments: list[str]) -> None:
    """Become uv. It needs no finished environment: a lock that cannot be installed needs it."""
    place.run.mkdir(exist_ok=True)
    with place.lock.open("a", encoding="utf-8") as lock:
        wait_for(lock.fileno())
        action, kind = plan(place, "runtime")
        job = Job(place, lock.fileno())
        if action == "build":
            make_venv(job, kind, make_ready(place, action))
        uv = obtain_uv(job)
        if not uv:
            raise SetupError(f"uv cannot be had or does not run here (full output: {place.log})")
        hand_over_pip_settings(job)
    os.execve(uv, [uv, *arguments], job.environ)


def interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


def main(arguments: list[str]) -> int:
    """Exit code: 0 done, 2 nothing to work with, 130 interrupted, 1 anything else."""
    place = Place(Path(__file__).resolve().parent.parent)
    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGHUP, interrupt)
    wanted = arguments[0] if arguments else ""
    if wanted not in (*SETS, "uv") or (wanted in SETS and len(arguments) > 1):
        print("usage: python3 tools/setup.py runtime|dev|uv ...", file=sys.stderr)
        return 2
    try:
        if wanted == "uv":
            run_uv(place, arguments[1:])
        else:
            set_up(place, wanted)
    except SetupError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(explain(error, place.root), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"Set-up interrupted: {AGAIN} to finish it.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

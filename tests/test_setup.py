"""From a bare clone to an environment, played with a Python, a pip and a uv that are scripts."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from types import SimpleNamespace

import environment
import lock
import pip_settings
import pytest
import setup

ROOT = Path(__file__).parents[1]
MAKE = shutil.which("make") or "make"

# A Python that knows `-c`, `-m venv` and `-m pip`; files in the clone decide how it fails.
PYTHON = """#!/bin/sh
case "$1 $2" in
"-m venv") mkdir -p "$3/bin"; ln -s "$0" "$3/bin/python"; touch "$3/pyvenv.cfg"
    echo "VIRTUAL_ENV=$3" > "$3/bin/activate"; echo venv >> calls ;;
"-m pip") shift 2
    if [ "$1" = config ]; then cat pip-config 2>/dev/null; exit 0; fi
    if [ -f no-uv ]; then case "$*" in *setup.txt*) cat no-uv; exit 1 ;; esac; fi
    echo "pip $*" >> calls
    case "$*" in *setup.txt*) cp uv-script .venv/bin/uv ;; esac ;;
*) case "$2" in *ensurepip*) if [ -f no-ensurepip ]; then exit 1; fi ;; esac
    echo 3.11.7 ;;
esac
"""
UV = """#!/bin/sh
if [ "$1" = --version ]; then echo "uv 1.2.3"; exit; fi
echo "uv $*" >> calls
env | grep -E '^(UV|SSL)_' > uv-environment
if [ -f uv-stops ]; then kill -TERM $PPID; exec sleep 9; fi
if [ -f uv-dawdles ]; then sleep 0.3; fi
if [ -f uv-says ]; then cat uv-says; exit 1; fi
exit 0
"""


class Clone:
    """A bare clone with locks of a few lines, and what happens when it is set up."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.python = root.with_name("python3.11")
        (root / "tools").mkdir(parents=True)
        for source in (ROOT / "tools").glob("*.py"):
            # What is tested must not depend on how full this machine's disk is.
            sized = re.sub(r"(?m)^(\w+_ENVIRONMENT_BYTES) = .*", r"\1 = 0", source.read_text())
            self.write(f"tools/{source.name}", sized)
        self.write("pyproject.toml", "[project]\n")
        self.write("requirements/setup.txt", "uv==1.2.3 \\\n")
        self.write("requirements/runtime.txt", "numpy==2.0 \\\n")
        self.write("requirements/dev.txt", "numpy==2.0 \\\npytest==9.0 \\\n")
        self.python.write_text(PYTHON)
        self.python.chmod(0o755)
        self.write("uv-script", UV).chmod(0o755)

    def write(self, name: str, text: str) -> Path:
        path = self.root / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-S", "tools/setup.py", *arguments],
            cwd=self.root,
            env={"PATH": "/usr/bin:/bin", "PYTHON": str(self.python)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def set_up(self, *arguments: str) -> SimpleNamespace:
        (self.root / "calls").unlink(missing_ok=True)
        child = self.start(*arguments)
        out, err = child.communicate(timeout=30)
        return SimpleNamespace(code=child.returncode, out=out, err=err, calls=self.calls())

    def calls(self) -> list[str]:
        path = self.root / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def stamp(self) -> dict[str, str]:
        stamp: dict[str, str] = json.loads((self.root / ".venv" / "setup.json").read_text())
        return stamp

    def uv_environment(self) -> dict[str, str]:
        lines = (self.root / "uv-environment").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines)


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path / "clone")


def is_one_line(text: str) -> bool:
    return text.endswith("\n") and text.count("\n") == 1 and "Traceback" not in text


# --- What is done, and what is not done again


def test_a_bare_clone_gets_venv_uv_packages_and_the_project(clone: Clone) -> None:
    done = clone.set_up("runtime")
    assert (done.code, done.err) == (0, "")
    assert [call.split(" -")[0] for call in done.calls] == [
        "venv",
        "pip install",
        "uv pip sync",
        "uv pip install",
    ]
    assert all("--require-hashes" in call for call in done.calls[1:3])
    assert "requirements/runtime.txt" in done.calls[2]
    assert "--no-deps --no-build-isolation -e" in done.calls[3]
    assert clone.uv_environment()["UV_COMPILE_BYTECODE"] == "1"
    first, last = done.out.splitlines()
    assert "about 30 s" in first
    assert re.search(r"ready \(\d+ s\)", last)


@pytest.mark.parametrize("again", ["runtime", "dev"])
def test_what_is_set_up_is_left_alone_in_silence(clone: Clone, again: str) -> None:
    clone.set_up(again)
    log = (clone.root / ".run" / "setup.log").stat().st_mtime_ns
    done = clone.set_up(again)
    assert (done.code, done.out, done.err, done.calls) == (0, "", "", [])
    assert (clone.root / ".run" / "setup.log").stat().st_mtime_ns == log


def test_runtime_after_dev_takes_no_development_package_away(clone: Clone) -> None:
    clone.set_up("dev")
    assert clone.set_up("runtime").calls == []
    clone.write("requirements/dev.txt", "numpy==2.1 \\\npytest==9.0 \\\n")
    clone.write("requirements/runtime.txt", "numpy==2.1 \\\n")
    changed = clone.set_up("runtime")
    assert "requirements/dev.txt" in changed.calls[0]


def test_dev_after_runtime_only_adds(clone: Clone) -> None:
    clone.set_up("runtime")
    [call] = clone.set_up("dev").calls
    assert call.startswith("uv pip install --no-deps --require-hashes")
    assert call.endswith("requirements/dev.txt")
    assert clone.set_up("dev").calls == []


def test_a_changed_lock_is_synced_and_a_changed_project_only_installed_again(clone: Clone) -> None:
    clone.set_up("runtime")
    clone.write("requirements/runtime.txt", "numpy==2.1 \\\n")
    assert [call.split(" -")[0] for call in clone.set_up("runtime").calls] == [
        "uv pip sync",
        "uv pip install",
    ]
    clone.write("pyproject.toml", "[project]\nname = 'other'\n")
    [call] = clone.set_up("runtime").calls
    assert call.endswith(f"-e {clone.root}")


def test_a_venv_made_by_hand_is_brought_up_to_date_and_not_replaced(clone: Clone) -> None:
    clone.set_up("runtime")
    (clone.root / ".venv" / "setup.json").unlink()
    assert clone.set_up("runtime").calls[0].startswith("uv pip sync")


def test_an_interrupted_setup_says_so_and_is_made_anew(clone: Clone) -> None:
    clone.write("uv-stops", "")
    cut = clone.set_up("runtime")
    assert cut.code == 130
    assert is_one_line(cut.err)
    (clone.root / "uv-stops").unlink()
    assert clone.set_up("runtime").calls[0] == "venv"
    assert clone.set_up("runtime").calls == []


def test_an_interrupted_addition_keeps_runtime_and_is_finished_later(clone: Clone) -> None:
    clone.set_up("runtime")
    clone.write("uv-stops", "")
    assert clone.set_up("dev").code == 130
    (clone.root / "uv-stops").unlink()
    assert clone.set_up("runtime").calls == []
    [call] = clone.set_up("dev").calls
    assert call.endswith("--reinstall-package=pytest")  # and not numpy, which was whole before
    assert "adding" not in clone.stamp()


def test_a_clone_that_was_moved_gets_an_environment_of_its_own(clone: Clone) -> None:
    clone.set_up("runtime")
    shutil.move(clone.root, clone.root.with_name("elsewhere"))
    clone.root = clone.root.with_name("elsewhere")
    assert clone.set_up("runtime").calls[0] == "venv"


def test_a_venv_whose_python_has_vanished_is_made_anew(clone: Clone) -> None:
    clone.set_up("runtime")
    clone.python = clone.python.rename(clone.python.with_name("python3.11.8"))
    assert clone.set_up("runtime").calls[0] == "venv"


def test_of_two_at_once_the_second_waits_and_says_so(clone: Clone) -> None:
    clone.write("uv-dawdles", "")
    first = clone.start("runtime")
    while not clone.calls():
        time.sleep(0.01)
    second = clone.start("runtime")
    assert "waiting for it" in second.communicate(timeout=30)[0]
    assert first.communicate(timeout=30)[1] == ""
    assert (first.returncode, second.returncode) == (0, 0)
    assert len(clone.calls()) == 4  # as for one


# --- Which Python


def test_a_python_that_is_too_old_gets_one_line_and_exit_code_2(clone: Clone) -> None:
    clone.python.write_text("#!/bin/sh\necho 3.10.4\n")
    refused = clone.set_up("runtime")
    assert refused.code == 2
    assert refused.err.startswith("Python 3.11 or newer is needed, found 3.10: install python3.11")
    assert "make PYTHON=/path/to/python3.11" in refused.err
    assert is_one_line(refused.err)
    assert refused.out == ""


def test_an_old_python_looks_for_a_newer_one_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHON", raising=False)
    monkeypatch.setattr(environment, "sys", SimpleNamespace(version_info=(3, 8, 18)))
    folders = [tmp_path / "broken", tmp_path / "good"]
    for folder, version in zip(folders, ("command not found", "3.12.1"), strict=True):
        folder.mkdir()
        script = folder / "python3.12"
        script.write_text(f"#!/bin/sh\necho {version}\n")
        script.chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join(map(str, folders)))
    assert setup.find_python() == str(tmp_path / "good" / "python3.12")
    monkeypatch.setenv("PATH", str(folders[0]))
    with pytest.raises(setup.SetupError, match=r"is needed, found 3\.8") as refusal:
        setup.find_python()
    assert refusal.value.exit_code == 2


def test_a_python_without_ensurepip_names_the_package_to_install(clone: Clone) -> None:
    clone.write("no-ensurepip", "")
    refused = clone.set_up("runtime")
    assert refused.code == 1
    assert "install the package python3.11-venv" in refused.err
    assert is_one_line(refused.err)


# --- Where packages come from


def test_pip_settings_are_handed_to_uv_without_what_is_not_there(clone: Clone) -> None:
    (clone.root / "index").mkdir()
    certificate = clone.write("ca.pem", "")
    clone.write(
        "pip-config",
        f"""global.cert='{certificate}'
global.extra-index-url='file://{clone.root}/index file:///not/there https://b.invalid/simple'
global.find-links='/not/there'
global.index-url='https://a.invalid/simple'
install.index-url='https://me:secret@c.invalid/simple'
global.timeout='60'
""",
    )
    done = clone.set_up("runtime")
    seen = clone.uv_environment()
    assert seen["UV_DEFAULT_INDEX"] == "https://me:secret@c.invalid/simple"
    assert seen["UV_INDEX"] == f"file://{clone.root}/index https://b.invalid/simple"
    assert seen["UV_INDEX_STRATEGY"] == "unsafe-best-match"
    assert seen["SSL_CERT_FILE"] == str(certificate)
    assert seen["UV_HTTP_TIMEOUT"] == "60"
    assert "UV_FIND_LINKS" not in seen
    assert "secret" not in done.out + done.err + "".join(done.calls)


def test_the_environment_wins_over_pip_files_and_uvs_own_over_both() -> None:
    pip = pip_settings.pip_settings(
        ":env:.index-url='https://env.invalid'\nglobal.index-url='https://file.invalid'\n"
    )
    assert pip_settings.uv_settings(pip, {}) == {"UV_DEFAULT_INDEX": "https://env.invalid"}
    assert pip_settings.uv_settings(pip, {"UV_DEFAULT_INDEX": "https://own.invalid"}) == {}
    assert pip_settings.uv_settings(pip, {"UV_INDEX_URL": "https://own.invalid"}) == {}


def test_a_password_in_an_address_stays_out_of_line_and_log(clone: Clone) -> None:
    clone.write("uv-says", "error: Failed to fetch: https://me:secret@c.invalid/simple\n")
    failed = clone.set_up("runtime")
    log = (clone.root / ".run" / "setup.log").read_text()
    assert "secret" not in failed.out + failed.err + log
    assert "https://***@c.invalid/simple" in log


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("uv-script", "#!/bin/sh\nexit 1\n"),
        ("no-uv", "ERROR: No matching distribution found for uv==1.2.3\n"),
    ],
)
def test_without_a_uv_that_runs_pip_installs_and_a_line_says_so(
    clone: Clone, name: str, text: str
) -> None:
    clone.write(name, text)
    done = clone.set_up("runtime")
    assert (done.code, done.err) == (0, "")
    assert "installing with pip" in done.out
    packages, project = done.calls[-2:]
    assert packages.startswith("pip install --require-hashes")
    assert packages.endswith("requirements/runtime.txt")
    assert project.endswith(f"-e {clone.root}")


def test_a_uv_that_differs_from_its_pin_is_not_replaced_by_pip(clone: Clone) -> None:
    clone.write("no-uv", "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES\n")
    failed = clone.set_up("runtime")
    assert failed.code == 1
    assert is_one_line(failed.err)
    assert failed.calls == ["venv"]


# --- Failures: one line that says what to do

SAID = {
    "network": "error: Request failed after 3 retries\n  cause: dns error\n",
    "disk": "error: failed to write to file: No space left on device (os error 28)\n",
    "hash": "error: Failed to download `idna==3.10`\n  cause: Hash mismatch for `idna==3.10`\n",
    "permission": "error: failed to create directory: Permission denied (os error 13)\n",
    "certificate": "cause: invalid peer certificate: UnknownIssuer\n",
    "refused": "cause: HTTP status client error (403 Forbidden) for url\n",
    "missing": "cause: Because idna was not found in the package registry\n",
}
ADVICE = {
    "network": "connect to the network",
    "disk": "make room",
    "hash": "differs from the one pinned",
    "permission": "chown",
    "certificate": "SSL_CERT_FILE",
    "refused": "pip config list",
    "missing": "Python 3.11",
    "": "read the end of its output",
}


@pytest.mark.parametrize("kind", [*SAID, ""])
def test_each_failure_of_uv_is_one_line_with_advice_and_the_log(clone: Clone, kind: str) -> None:
    clone.write("uv-says", SAID.get(kind, "error: something new\n"))
    failed = clone.set_up("runtime")
    assert failed.code == 1
    assert is_one_line(failed.err)
    assert ADVICE[kind] in failed.err
    assert "run the same command again" in failed.err
    assert failed.err.endswith("(full output: .run/setup.log)\n")


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("NewConnectionError(... [Errno -3] Temporary failure in name resolution)", "network"),
        ("OSError: [Errno 28] No space left on device", "disk"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.", "hash"),
        (
            "Could not install packages due to an OSError: [Errno 13] Permission denied",
            "permission",
        ),
        ("SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED]", "certificate"),
        ("ERROR: HTTP error 403 while getting https://c.invalid/uv", "refused"),
        ("Retrying ... NewConnectionError\nERROR: No matching distribution found", "network"),
        ("ERROR: No matching distribution found for uv==1.2.3", "missing"),
        ("network is fine\nNo space left on device\nRead timed out", "disk"),
    ],
)
def test_what_pip_says_is_understood_too(said: str, kind: str) -> None:
    assert setup.classify(said)[0] == kind


def test_without_network_the_cache_is_tried_and_a_working_environment_stays(clone: Clone) -> None:
    clone.set_up("runtime")
    before = clone.stamp()
    clone.write("requirements/runtime.txt", "numpy==2.1 \\\n")
    clone.write("uv-says", SAID["network"])
    failed = clone.set_up("runtime")
    assert failed.code == 1
    assert len(failed.calls) == 2
    assert clone.uv_environment()["UV_OFFLINE"] == "1"
    assert clone.stamp() == before
    (clone.root / "uv-says").unlink()
    assert clone.set_up("runtime").code == 0


def test_a_disk_that_is_too_small_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup.shutil, "disk_usage", lambda _: SimpleNamespace(free=10**9))
    with pytest.raises(setup.SetupError, match=r"needs 2\.5 GB in .* and 1\.0 GB are free: make"):
        setup.make_ready(setup.Place(tmp_path), "build")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "advice"),
    [(errno.EACCES, "chown"), (errno.ENOSPC, "make room"), (errno.EIO, "put it right")],
)
def test_a_refused_file_operation_is_one_line_that_names_the_file(
    tmp_path: Path, number: int, advice: str
) -> None:
    line = setup.explain(OSError(number, os.strerror(number), "/a/file"), tmp_path)
    assert advice in line
    assert "/a/file" in line
    assert "\n" not in line


# --- make


def run_make(folder: Path, *arguments: str, path: str = "/usr/bin:/bin") -> SimpleNamespace:
    shutil.copy(ROOT / "Makefile", folder)
    done = subprocess.run(
        [MAKE, *arguments],
        cwd=folder,
        env={"PATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    return SimpleNamespace(code=done.returncode, out=done.stdout, err=done.stderr)


def test_make_alone_explains_every_verb(tmp_path: Path) -> None:
    declared = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    listed = re.findall(r"^make (\S+) +\S", run_make(tmp_path).out, re.MULTILINE)
    assert sorted(listed) == sorted(" ".join(declared).split())


@pytest.mark.parametrize("verb", ["down", "status", "logs"])
def test_verbs_that_ask_need_no_environment(tmp_path: Path, verb: str) -> None:
    asked = run_make(tmp_path, verb)
    assert asked.code == 0
    assert asked.out.startswith("nothing is running: no environment yet")


def test_make_without_any_python_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused = run_make(tmp_path, "up", path=str(tmp_path / "empty"))
    assert refused.code != 0
    assert refused.err.startswith("Python 3.11 or newer is needed, found none: install python3.11")


def test_clean_keeps_data_models_runs_and_logs(tmp_path: Path) -> None:
    kept = ["data", "models", "mlruns", "housinglogs", "irislogs", ".run"]
    gone = [".venv", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".hypothesis", "dist"]
    for name in [*kept, *gone, "src/__pycache__"]:
        (tmp_path / name).mkdir(parents=True)
    assert run_make(tmp_path, "clean").code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, "Makefile", "src"])
    assert list((tmp_path / "src").iterdir()) == []


# --- Locks


def pins(name: str) -> set[str]:
    """The lines `name==version ; marker` of a lock."""
    lines = (ROOT / name).read_text().splitlines()
    return {line.rstrip("\\ ") for line in lines if re.match(r"[a-z0-9]", line)}


@pytest.mark.parametrize("name", lock.LOCKS)
def test_a_hashed_lock_holds_pins_and_hashes_and_no_address(name: str) -> None:
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    assert lock.foreign_lines(text) == []
    assert "://" not in text
    blocks = re.split(r"(?m)^(?=\S)", text)[1:]
    assert all("--hash=sha256:" in block for block in blocks)


def test_the_plain_lock_has_the_pins_of_runtime_and_the_project() -> None:
    text = (ROOT / "requirements.txt").read_text()
    assert pins("requirements.txt") == pins("requirements/runtime.txt")
    assert text == lock.plain((ROOT / "requirements" / "runtime.txt").read_text())
    assert text.endswith("\n-e .\n")
    assert "--hash" not in text
    assert "://" not in text


def test_dev_holds_runtime_and_serving_is_held_by_it() -> None:
    runtime = pins("requirements/runtime.txt")
    assert runtime < pins("requirements/dev.txt")
    # With the same versions, if for fewer platforms.
    serving, whole = (
        {pin.partition(" ; ")[0] for pin in some}
        for some in (pins("requirements/serving.txt"), runtime)
    )
    assert serving < whole


def test_serving_needs_no_training_library() -> None:
    names = {pin.split("==")[0] for pin in pins("requirements/serving.txt")}
    training = {"mlflow", "pandas", "pandera", "scikit-learn", "scipy", "lightgbm", "onnx"}
    assert names.isdisjoint(training)
    assert {"apsw", "fastapi", "fastapi-offline", "onnxruntime", "uvicorn"} <= names


def test_serving_is_declared_as_a_part_of_the_dependencies() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())
    serving = set(declared["dependency-groups"]["serving"])
    assert serving < set(declared["project"]["dependencies"])


@pytest.mark.parametrize(
    "line",
    [
        "--index-url https://c.invalid/simple",
        "numpy @ https://c.invalid/numpy.whl",
        "numpy @ file:///here/numpy.whl",
        "# from https://c.invalid",
        "-e .",
    ],
)
def test_a_lock_with_more_than_pins_is_refused(line: str) -> None:
    fine = "numpy==2.4.6 ; python_full_version < '3.12' \\\n    --hash=sha256:" + "0" * 64
    assert lock.foreign_lines(f"{fine}\n{line}\n") == [line]

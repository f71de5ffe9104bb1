"""The real Dockerfile, built and run where no Docker engine is.

buildah builds it without a daemon, on a base made of Debian's own packages (minbase and its Python
3.11), because a registry may be out of reach. What comes out is started in namespaces of its own,
with what `docker run --read-only --cap-drop ALL --user` would give: process 1, the image's
environment and command, its numeric user, no capability, a root file system mounted read-only, one
writable volume, and a network of its own.

Not shown: Docker's own builder, port mapping, its default seccomp profile and limits, and the
official Python base.

Base and layers are kept in a cache folder of the user, so a second run builds what has changed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import sqlite3
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import REPOSITORY
from filelock import FileLock
from pip_settings import pip_settings
from test_readme import tour

LARGEST_ABOVE_BASE = 350_000_000
LARGEST_CACHE = 15_000_000_000
SECONDS_TO_START = 30
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mlops-test-container"
BASE = "localhost/mlops-debian-python:bookworm"
IMAGE = "localhost/mlops-housing-api"
# Always the same: buildah 1.28 takes a cached layer though the argument in its LABEL has changed.
COMMIT = "0123456789abcdef0123456789abcdef01234567"
PROGRAMS = {
    "buildah": "buildah",
    "debootstrap": "debootstrap",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "curl": "curl",
}
PACKAGES_OF_BASE = "python3,python3-venv,ca-certificates"
# What a base of python:3.11-slim-bookworm has nothing of.
NOT_IN_BASE = ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man")
NOT_FOR_SERVING = ("mlflow", "pandas", "sklearn", "lightgbm", "scipy", "onnx", "pandera", "pip")
IS_ROOT = os.geteuid() == 0

START = """
set -e
root=$1 volume=$2 user=$3; shift 3
ip link set lo up
mount --bind "$root" "$root"
mount --bind "$volume" "$root/app/state"
mount -t proc proc "$root/proc"
mount -t tmpfs -o nosuid,mode=755 tmpfs "$root/dev"
for device in null zero urandom; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mount -o remount,ro "$root/dev"
mount -o remount,ro,bind "$root"
cd /
exec chroot "$root" /usr/bin/setpriv --reuid "${user%:*}" --regid "${user#*:}" --clear-groups \\
    --no-new-privs --bounding-set=-all --inh-caps=-all /usr/bin/env -i -C /app/state "$@"
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(sys.platform != "linux", reason="containers are Linux"),
]


def cannot(reason: str) -> None:
    """Skip, and say why; in continuous integration nothing is skipped."""
    if os.environ.get("CI", "").lower() in {"true", "1"}:
        pytest.fail(f"in CI the image must be built: {reason}")
    pytest.skip(f"the image cannot be built here: {reason}")


def root(*command: str | Path, **options: Any) -> str:
    """Run a command, which needs root, and return what it printed."""
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=1200, **options
    )
    if done.returncode:
        words = " ".join(map(str, command))
        raise AssertionError(f"{words}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}")
    return done.stdout


@dataclasses.dataclass(frozen=True)
class Builder:
    """buildah, with a storage of its own."""

    driver: str

    def __call__(self, *arguments: str | Path) -> str:
        where = ("--root", CACHE / self.driver, "--runroot", CACHE / f"{self.driver}-run")
        return root("buildah", *where, "--storage-driver", self.driver, *arguments).strip()

    @contextlib.contextmanager
    def mounted(self, image: str) -> Iterator[tuple[str, Path]]:
        """A working container from `image`, and the folder in which its files are."""
        container = self("from", image)
        try:
            yield container, Path(self("mount", container))
        finally:
            self("rm", container)

    def inspect(self, image: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self("inspect", "--type", "image", image))
        return found

    def exists(self, image: str) -> bool:
        return bool(self("images", "--quiet", "--filter", f"reference={image}"))


@pytest.fixture(scope="session")
def builder() -> Iterator[Builder]:
    if not IS_ROOT:
        pytest.skip("only root may: see test_it_is_all_run_as_root")
    _install([package for name, package in PROGRAMS.items() if _which(name) is None])
    CACHE.mkdir(parents=True, exist_ok=True)
    with FileLock(CACHE / "lock"):
        if int(root("du", "-sxb", CACHE).split()[0]) > LARGEST_CACHE:
            root("sh", "-c", f"rm -rf {CACHE}/overlay* {CACHE}/vfs*")
        # Overlays copy nothing; on a file system that cannot hold them, each layer is a full copy.
        for driver in ("overlay", "vfs"):
            found = Builder(driver)
            with contextlib.suppress(AssertionError), found.mounted("scratch"):
                break
        else:
            cannot("buildah has no storage here")
        if not found.exists(BASE):
            _make_base(found)
        yield found


def _which(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


def _install(packages: list[str]) -> None:
    if not packages:
        return
    if shutil.which("apt-get") is None:
        cannot(f"no {', '.join(packages)}, and no apt-get to install it with")
    try:
        root("apt-get", "update", "-q")
        install = ("apt-get", "install", "-y", "-q", "--no-install-recommends")
        root("env", "DEBIAN_FRONTEND=noninteractive", *install, *packages)
    except AssertionError as error:
        cannot(f"{', '.join(packages)} cannot be installed: {error}")


def _make_base(builder: Builder) -> None:
    with builder.mounted("scratch") as (container, folder):
        include = f"--include={PACKAGES_OF_BASE}"
        try:
            root("debootstrap", "--variant=minbase", include, "bookworm", folder)
        except AssertionError as error:
            cannot(f"Debian's packages cannot be had: {error}")
        for name in NOT_IN_BASE:
            root("find", folder / name, "-type", "f", "-delete")
        builder("config", "--cmd", "/bin/bash", container)
        builder("commit", "--quiet", container, BASE)


@dataclasses.dataclass(frozen=True)
class Image:
    """The image, its files, and its configuration as Docker would read it."""

    folder: Path
    config: dict[str, Any]
    layers: int
    bytes_above_base: int
    seconds: float


@pytest.fixture(scope="session")
def image(builder: Builder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    context = tmp_path_factory.mktemp("context")
    listed = "git ls-files -z --cached --others --exclude-standard"
    pack = f"{listed} | xargs -0 ls -d 2> /dev/null | tar --create --files-from=- | tar -xC"
    subprocess.run(["bash", "-c", f'{pack} "$0"', context], cwd=REPOSITORY, check=True)
    started = time.monotonic()
    builder("build", "--isolation", "chroot", "--format", "docker", "--layers",
            *(word for argument in _arguments() for word in ("--build-arg", argument)),
            *_certificate(), "--tag", IMAGE, context)  # fmt: skip
    seconds = time.monotonic() - started
    with builder.mounted(IMAGE) as (_, folder):
        found = builder.inspect(IMAGE)["Docker"]
        with builder.mounted(BASE) as (_, base):
            above = _bytes(folder) - _bytes(base)
        layers = len(found["rootfs"]["diff_ids"])
        yield Image(folder, found["config"], layers, above, seconds)


def _arguments() -> list[str]:
    found = [f"BASE_IMAGE={BASE}", f"COMMIT={COMMIT}"]
    listing = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"],
        capture_output=True,
        text=True,
        check=False,
    )
    index = pip_settings(listing.stdout).get("index-url", "")
    return [*found, f"PIP_INDEX_URL={index}"] if index.startswith("http") else found


def _certificate() -> list[str]:
    """Lend the build the certificates that this machine trusts: it may sit behind a proxy."""
    paths = ssl.get_default_verify_paths()
    known = (os.environ.get("PIP_CERT"), paths.cafile, paths.openssl_cafile)
    for path in filter(None, known):
        if Path(path).is_file():
            inside = "/tmp/certificates.crt"
            return ["--volume", f"{path}:{inside}:ro", "--build-arg", f"PIP_CERT={inside}"]
    return []


def _bytes(folder: Path) -> int:
    return int(root("du", "-sb", folder).split()[0])


@dataclasses.dataclass
class Container:
    """A running image: process 1 of its own namespaces, seen from outside."""

    outside: subprocess.Popen[bytes]
    image: Image
    volume: Path
    output: Path
    environment: dict[str, str]

    @property
    def process(self) -> psutil.Process:
        """The one child of unshare, which waits for it; there as soon as anything is healthy."""
        (found,) = psutil.Process(self.outside.pid).children()
        return found

    def inside(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in the container as its user, as `docker exec` would."""
        user, _, group = self.image.config["User"].partition(":")
        enter = ["nsenter", "--target", str(self.process.pid), "--mount", "--net", "--pid"]
        enter += ["--root", "--wd", "--setuid", user, "--setgid", group, "--", "env", "-i"]
        variables = [f"{name}={value}" for name, value in self.environment.items()]
        done = subprocess.run(
            [*enter, *variables, *command], capture_output=True, text=True, check=False
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def shell(self, command: str) -> str:
        """Run a command of the host in the container's network: it has a `localhost:8000`."""
        enter = ("nsenter", "--target", str(self.process.pid), "--net")
        return root(*enter, "bash", "-c", command)

    def healthy(self) -> bool:
        """Whether the image's own health check says so."""
        test = self.image.config["Healthcheck"]["Test"]
        assert test[0] == "CMD"
        if not psutil.Process(self.outside.pid).children():
            return False
        return self.inside(*test[1:], check=False).returncode == 0

    def stop(self) -> int:
        """Send the image's stop signal; return the exit code."""
        root("kill", f"-{self.image.config['StopSignal'][3:]}", str(self.process.pid))
        return self.outside.wait(timeout=30)


@contextlib.contextmanager
def running(image: Image, volume: Path, *, ready: bool = True, **more: str) -> Iterator[Container]:
    """Start the image as it says it wants to be started."""
    environment = dict(line.split("=", 1) for line in image.config["Env"]) | more
    output = volume.with_suffix(".out")
    command = [*image.config["Entrypoint"], *image.config["Cmd"]]
    variables = [f"{name}={value}" for name, value in environment.items()]
    isolate = ["unshare", "--mount", "--net", "--pid", "--ipc", "--uts", "--fork", "--kill-child"]
    script = ["sh", "-c", START, "start", image.folder, volume, image.config["User"]]
    with output.open("wb") as file:
        outside = subprocess.Popen(
            [*isolate, *script, *variables, *command],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    container = Container(outside, image, volume, output, environment)
    try:
        deadline = time.monotonic() + SECONDS_TO_START
        while ready and not container.healthy():
            assert outside.poll() is None, output.read_text()
            assert time.monotonic() < deadline, output.read_text()
        yield container
    finally:
        if outside.poll() is None:
            root("kill", "-KILL", str(outside.pid))  # its child goes with it
            outside.wait(timeout=30)


@pytest.fixture
def volume(image: Image) -> Iterator[Path]:
    """An empty volume, owned as a new one of Docker's is: like the folder it covers."""
    folder = CACHE / "volumes" / f"{time.time_ns()}"
    folder.parent.mkdir(exist_ok=True)
    owner = root("stat", "-c", "%u:%g %a", image.folder / "app" / "state").split()
    assert owner == ["10001:0", "775"]
    root("install", "-d", "-o", "10001", "-g", "0", "-m", owner[1], folder)
    yield folder
    root("rm", "-rf", folder, folder.with_suffix(".out"))


def readme_request(path: str) -> str:
    """The README's request to a route, as it stands there."""
    return next(command for command, _ in tour() if f"localhost:8000{path}" in command)


def test_the_image_is_small_and_holds_what_serves_and_no_more(image, capsys):
    with capsys.disabled():
        print(  # noqa: T201
            f"\nimage: {image.bytes_above_base / 1e6:.0f} MB above its base in"
            f" {image.layers - 1} layers, built in {image.seconds:.0f} s"
        )
    assert image.bytes_above_base <= LARGEST_ABOVE_BASE
    (packages,) = (image.folder / "opt" / "mlops" / "lib").glob("python3.*/site-packages")
    there = {path.name for path in packages.iterdir()}
    assert {"mlops", "fastapi", "onnxruntime"} <= there
    assert there & set(NOT_FOR_SERVING) == set()
    assert not list(image.folder.glob("build/*"))
    assert sorted(path.name for path in (image.folder / "app").iterdir()) == ["models", "state"]
    assert [path.name for path in (image.folder / "app" / "state").iterdir()] == []


def test_every_module_has_its_bytecode(image):
    (packages,) = (image.folder / "opt" / "mlops" / "lib").glob("python3.*/site-packages")
    missing = [
        str(path)
        for path in (packages / "mlops").rglob("*.py")
        if not list((path.parent / "__pycache__").glob(f"{path.stem}.cpython-*.pyc"))
    ]
    assert missing == []


def test_it_says_who_runs_it_what_it_is_and_how_to_ask_and_stop_it(image):
    config = image.config
    assert re.fullmatch(r"[1-9]\d*:0", config["User"])
    assert set(config["ExposedPorts"]) == {"8000/tcp"}
    assert set(config["Volumes"]) == {"/app/state"}
    assert config["StopSignal"] == "SIGTERM"
    labels = config["Labels"]
    source = (REPOSITORY / "src" / "mlops" / "__init__.py").read_text()
    assert f'__version__ = "{labels["org.opencontainers.image.version"]}"' in source
    assert labels["org.opencontainers.image.revision"] == COMMIT
    # The models know too from which commit they were trained.
    provenances = (image.folder / "app" / "models" / "bundles").glob("*/provenance.json")
    assert {json.loads(path.read_text())["commit"] for path in provenances} == {COMMIT}


def test_the_readmes_request_is_answered_logged_on_the_volume_and_survives(image, volume):
    with running(image, volume) as container:
        first = json.loads(container.shell(readme_request("/predict")))
        assert 3 < first["predicted_price"] < 4
        iris = json.loads(container.shell(readme_request("/iris/predict")))
        assert iris["predicted_label"] == "setosa"

        status = Path(f"/proc/{container.process.pid}/status").read_text()
        assert re.search(r"^Uid:\t10001\t10001\t10001\t10001$", status, re.MULTILINE)
        assert re.search(r"^NSpid:\t\d+\t1$", status, re.MULTILINE)
        assert re.search(r"^CapBnd:\t0+$", status, re.MULTILINE)
        mounts = Path(f"/proc/{container.process.pid}/mountinfo").read_text()
        assert re.search(r" / ro,", mounts)
        for place in ("/app/models", "/opt/mlops", "/tmp", "/"):
            assert container.inside("touch", f"{place}/x", check=False).returncode != 0

        logged = container.inside("mlops", "logs", "housing", "--last", "1", "--json").stdout
        assert first["prediction_id"] in logged
        refused = container.inside("mlops", "train", "iris", check=False)
        assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
        assert "not installed here" in refused.stderr
        assert container.stop() == 0, container.output.read_text()

    lines = (volume / "housinglogs" / "predictions.log").read_text().splitlines()
    assert [json.loads(line)["prediction_id"] for line in lines] == [first["prediction_id"]]
    # Stopped cleanly, all is in the one file that a person would copy.
    left = {path.name for path in (volume / "housinglogs").iterdir()}
    assert left - {"drift.lock"} == {"predictions.db", "predictions.log"}
    with contextlib.closing(
        sqlite3.connect(f"file:{volume}/housinglogs/predictions.db?immutable=1", uri=True)
    ) as log:
        assert log.execute("SELECT prediction_id FROM housinglogs").fetchall() == [
            (first["prediction_id"],)
        ]

    with running(image, volume, USE_CASES="iris") as container:
        body = readme_request("/iris/predict").replace("/iris/predict", "/predict")
        assert json.loads(container.shell(body))["predicted_label"] == "setosa"
        metrics = json.loads(container.shell("curl -sS http://localhost:8000/metrics"))
        assert metrics["total_predictions"] == 2
        assert container.stop() == 0


def test_without_a_volume_it_can_write_it_ends_and_says_why(image, volume):
    root("chown", "0:0", volume)
    root("chmod", "755", volume)
    with running(image, volume, ready=False) as container:
        assert container.outside.wait(timeout=SECONDS_TO_START) != 0
        assert "/app/state" in container.output.read_text()


@pytest.mark.skipif(IS_ROOT, reason="it is root already")
def test_it_is_all_run_as_root(capsys):
    """A developer's or a runner's user may become root: all of the above, once more and so."""
    become = ["sudo", "-n", "-E", "env", f"PATH={os.environ['PATH']}"]
    try:
        subprocess.run([*become, "true"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        cannot("neither root nor sudo without a password")
    again = [sys.executable, "-m", "pytest", "-m", "slow", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(
        [*become, *again], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    with capsys.disabled():
        print(done.stdout)  # noqa: T201
    assert done.returncode == 0, done.stderr

"""The image's way to production, with an engine and a kubectl that are scripts.

The smoke test's engine starts a real server: what is asked of a container is answered by the
product. That the Dockerfile makes such an image is what the tests of the container show.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import image
import pytest
from conftest import environment, free_port

COMMIT = "0123456789abcdef0123456789abcdef01234567"
DIGEST = "sha256:" + "5" * 64
# `run` starts `mlops serve` over the project folder; MISSING breaks one of the words.
ENGINE = """#!/bin/sh
echo "$*" >> "$CALLS"
cd "$MLOPS_HOME"
case "$1" in
run) "$PYTHON" -m mlops.cli serve --port "$SERVER_PORT" > server.out 2>&1 & echo $! > pid
     echo c0ffee ;;
port) echo "127.0.0.1:$SERVER_PORT" ;;
exec) shift 2; [ -n "$NO_LOG" ] && echo "[]" || "$@" ;;
logs) cat server.out ;;
stop) kill -TERM "$(cat pid)"; while kill -0 "$(cat pid)" 2> /dev/null; do sleep 0.05; done ;;
rm) kill -9 "$(cat pid)" 2> /dev/null; true ;;
inspect) case "$*" in *ExitCode*) echo "${EXIT_CODE:-0}" ;;
         *Running*) echo "${RUNNING:-true}" ;;
         *) echo "elsewhere@sha256:0"; echo "docker.io/me/api@$DIGEST" ;; esac ;;
esac
"""
GIT = f"""#!/bin/sh
case "$1 $2" in "rev-parse HEAD") echo {COMMIT} ;; esac
"""
KUBECTL = """#!/bin/sh
echo "$*" >> "$CALLS"
case "$1" in
apply) cat "$3/kustomization.yaml" > "$OVERLAY"; cat "$KUBECONFIG" > "$ACCESS"
       echo '{"items": [{"kind": "Service", "metadata": {"name": "api"}},
              {"kind": "StatefulSet", "metadata": {"name": "api", "namespace": "mlops"}}]}' ;;
rollout) [ -z "$STUCK" ] || exit 1; echo "rolled out" ;;
esac
"""


@dataclasses.dataclass
class Bench:
    """Scripts in the place of docker, git and kubectl, and what was asked of them."""

    folder: Path

    @property
    def calls(self) -> list[str]:
        file = self.folder / "calls"
        return file.read_text().splitlines() if file.exists() else []


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in {"docker": ENGINE, "git": GIT, "kubectl": KUBECTL}.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    path = os.pathsep.join([str(tools), str(Path(sys.executable).parent), os.environ["PATH"]])
    monkeypatch.setenv("PATH", path)
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("DIGEST", DIGEST)
    monkeypatch.setenv("MLOPS_HOME", str(tmp_path))
    for name in (
        "ENGINE",
        "GITHUB_REF",
        "GITHUB_OUTPUT",
        "KUBE_CONFIG",
        "NO_LOG",
        "EXIT_CODE",
        "RUNNING",
    ):
        monkeypatch.delenv(name, raising=False)
    return Bench(tmp_path)


@pytest.fixture
def server(bench: Bench, home: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Let the engine start a real server over a trained project."""
    for name, value in environment(home).items():
        if name != "PATH":
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHON", sys.executable)
    monkeypatch.setenv("SERVER_PORT", str(free_port()))
    return bench


def test_the_image_is_built_as_the_readme_says_with_version_and_commit(bench: Bench) -> None:
    assert image.main(["build"]) == 0
    version = f"VERSION={image.version()}"
    labels = f"--build-arg {version} --build-arg COMMIT={COMMIT}"
    assert bench.calls == [f"build --tag mlops-housing-api {labels} ."]


def test_an_image_that_answers_and_logs_passes(
    server: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    assert image.main(["smoke"]) == 0
    assert "mlops-housing-api: predicted_price 3." in capsys.readouterr().out
    assert "--read-only" in server.calls[0]
    assert server.calls[-1] == "rm --force --volumes c0ffee"


def test_an_image_that_answers_and_does_not_log_fails_and_is_removed(
    server: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NO_LOG", "yes")
    assert image.main(["smoke"]) == 1
    assert "and has no row of it" in capsys.readouterr().err
    assert server.calls[-1] == "rm --force --volumes c0ffee"


def test_an_image_that_does_not_stop_cleanly_fails(
    server: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EXIT_CODE", "137")
    assert image.main(["smoke"]) == 1
    assert "was asked to stop and ended with 137" in capsys.readouterr().err


def test_an_image_that_is_never_ready_fails_and_shows_what_it_printed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHON", "echo")  # prints its arguments and ends
    monkeypatch.setenv("SERVER_PORT", str(free_port()))
    monkeypatch.setattr(image, "SECONDS_TO_START", 0.5)
    assert image.main(["smoke"]) == 1
    said = capsys.readouterr().err
    assert "was not ready within 0.5 s" in said
    assert "mlops.cli serve" in said


def test_an_image_that_ends_at_once_is_not_waited_for(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHON", "false")
    monkeypatch.setenv("SERVER_PORT", str(free_port()))
    monkeypatch.setenv("RUNNING", "false")
    assert image.main(["smoke"]) == 1
    assert "ended before it was ready" in capsys.readouterr().err
    assert bench.calls[-1] == "rm --force --volumes c0ffee"


def test_without_an_engine_a_line_says_so(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ENGINE", "no-such-engine")
    assert image.main(["smoke"]) == 1
    assert capsys.readouterr().err == "there is no no-such-engine here: install it\n"


# --- Publish


@pytest.mark.parametrize(
    ("ref", "tags"),
    [
        ("refs/heads/main", ["sha-0123456789ab", "main"]),
        (f"refs/tags/v{image.version()}", ["sha-0123456789ab", image.version(), "latest"]),
    ],
)
def test_main_and_releases_are_pushed_by_commit_and_name(
    bench: Bench, ref: str, tags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_REF", ref)
    monkeypatch.setenv("REPOSITORY", "docker.io/me/api")
    monkeypatch.setenv("GITHUB_OUTPUT", str(bench.folder / "output"))
    assert image.main(["publish"]) == 0
    pushed = [call for call in bench.calls if call.startswith("push")]
    assert pushed == [f"push --quiet docker.io/me/api:{tag}" for tag in tags]
    assert (bench.folder / "output").read_text() == f"image=docker.io/me/api@{DIGEST}\n"


@pytest.mark.parametrize("ref", ["refs/heads/topic", "refs/pull/7/merge", "refs/tags/v9.9.9", ""])
def test_nothing_else_is_pushed(
    bench: Bench, ref: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GITHUB_REF", ref)
    monkeypatch.setenv("REPOSITORY", "docker.io/me/api")
    assert image.main(["publish"]) == 1
    assert not any(call.startswith("push") for call in bench.calls)
    assert capsys.readouterr().err.count("\n") == 1


# --- Deploy


def test_a_digest_is_deployed_over_the_manifests_and_waited_for(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGE", f"docker.io/me/api@{DIGEST}")
    monkeypatch.setenv("KUBE_CONFIG", "where and who")
    monkeypatch.setenv("OVERLAY", str(bench.folder / "overlay"))
    monkeypatch.setenv("ACCESS", str(bench.folder / "access"))
    before = sorted(image.MANIFESTS.parent.iterdir())
    assert image.main(["deploy"]) == 0
    assert json.loads((bench.folder / "overlay").read_text()) == {
        "resources": ["../kubernetes"],
        "images": [{"name": "mlops-housing-api", "newName": "docker.io/me/api", "digest": DIGEST}],
    }
    assert (bench.folder / "access").read_text() == "where and who"
    wait = "rollout status StatefulSet/api --namespace mlops --timeout=600s"
    assert bench.calls[1:] == [wait]
    assert sorted(image.MANIFESTS.parent.iterdir()) == before


def test_what_does_not_roll_out_fails(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OVERLAY", "ACCESS", "KUBECONFIG"):
        monkeypatch.setenv(name, "/dev/null")
    monkeypatch.setenv("STUCK", "yes")
    monkeypatch.setenv("IMAGE", f"docker.io/me/api@{DIGEST}")
    assert image.main(["deploy"]) == 1


@pytest.mark.parametrize("name", ["", "docker.io/me/api:latest", "docker.io/me/api@sha256:5"])
def test_a_tag_is_not_deployed(
    bench: Bench, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("IMAGE", name)
    assert image.main(["deploy"]) == 1
    assert "is no digest" in capsys.readouterr().err
    assert bench.calls == []


def test_the_manifests_run_the_image_that_a_deployment_replaces() -> None:
    used = subprocess.run(
        ["grep", "-rhoE", r"image: \S+", str(image.MANIFESTS)],
        capture_output=True, text=True, check=True,
    ).stdout.split("\n")  # fmt: skip
    assert f"image: {image.NAME}" in used

"""The container image on its way to production: `make image`, `smoke`, `publish`, `deploy`.

    build    docker build -t mlops-housing-api ., labelled with version and commit
    smoke    start it, send the README's example request, find the answer in its log, stop it
    publish  tag it by version and commit, and push it to REPOSITORY
    deploy   apply deploy/kubernetes with IMAGE, a digest, and wait until it answers

Standard library only: what publishes needs no environment. ENGINE= names another engine that
takes docker's arguments.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
NAME = "mlops-housing-api"
MANIFESTS = ROOT / "deploy" / "kubernetes"
SECONDS_TO_START = 120
SECONDS_TO_ROLL_OUT = 600


class Refused(Exception):  # noqa: N818  not a fault of this program
    """What was asked for must not or could not be done; the message is the line to print."""


def call(*command: str) -> str:
    """Run a command and return what it printed; what it says on standard error is shown."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, cwd=ROOT)
    except FileNotFoundError:
        raise Refused(f"there is no {command[0]} here: install it") from None
    if done.returncode:
        raise Refused(f"{shlex.join(command)} ended with {done.returncode}")
    return done.stdout.strip()


def engine(*arguments: str) -> str:
    return call(os.environ.get("ENGINE") or "docker", *arguments)


def version() -> str:
    source = (ROOT / "src" / "mlops" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "(.+)"$', source, re.MULTILINE)
    assert found is not None
    return found[1]


def commit() -> str:
    return call("git", "rev-parse", "HEAD")


def build() -> None:
    labels = [f"VERSION={version()}", f"COMMIT={commit()}"]
    arguments = [word for label in labels for word in ("--build-arg", label)]
    print(engine("build", "--tag", NAME, *arguments, "."))


# --- Smoke test


def example_request() -> bytes:
    """Return the body of the README's first request: what it promises is what is tried."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(r"localhost:8000/predict\" .* -d '(\{.*\})'", readme)
    if found is None:
        raise Refused("README.md has no request to localhost:8000/predict")
    return found[1].encode()


@contextlib.contextmanager
def running(image: str) -> Iterator[str]:
    """Run the image as an untrusted one, on a free port of this machine; remove it with its log."""
    limits = ["--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL"]
    limits += ["--security-opt", "no-new-privileges"]
    container = engine("run", "--detach", "--publish", "127.0.0.1::8000", *limits, image)
    try:
        yield container
    except BaseException:
        with contextlib.suppress(Refused):
            print(engine("logs", container), file=sys.stderr)
        raise
    finally:
        engine("rm", "--force", "--volumes", container)


def ask(url: str, body: bytes | None = None) -> Any:
    """Send one request; None while nobody answers it with 200."""
    headers = {"content-type": "application/json"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=10) as got:
            return json.load(got)
    except (OSError, http.client.HTTPException, ValueError):
        return None


def smoke(image: str) -> None:
    with running(image) as container:
        server = "http://" + engine("port", container, "8000/tcp").splitlines()[0]
        deadline = time.monotonic() + SECONDS_TO_START
        while ask(f"{server}/health/ready") is None:
            if engine("inspect", "--format", "{{.State.Running}}", container) == "false":
                raise Refused(f"{image} ended before it was ready")
            if time.monotonic() > deadline:
                raise Refused(f"{image} was not ready within {SECONDS_TO_START} s")
            time.sleep(0.2)
        answer = ask(f"{server}/predict", example_request())
        if answer is None or not isinstance(answer.get("predicted_price"), float):
            raise Refused(f"{image} has no price for the README's request: {answer}")
        last = engine("exec", container, "mlops", "logs", "housing", "--last", "1", "--json")
        if answer["prediction_id"] not in last:
            raise Refused(
                f"{image} answered {answer['prediction_id']} and has no row of it: {last}"
            )
        engine("stop", "-t", "30", container)
        code = engine("inspect", "--format", "{{.State.ExitCode}}", container)
        if code != "0":
            raise Refused(f"{image} was asked to stop and ended with {code}")
    print(f"{image}: predicted_price {answer['predicted_price']:.4f}, in its log, stopped cleanly")


# --- To a registry, and from there into a cluster


def tags(ref: str) -> list[str]:
    """Return the tags of an image of `ref`: its commit, and main's or the release's name."""
    always = f"sha-{commit()[:12]}"
    if ref == "refs/heads/main":
        return [always, "main"]
    if ref == f"refs/tags/v{version()}":
        return [always, version(), "latest"]
    if ref.startswith("refs/tags/"):
        raise Refused(f"{ref} is not v{version()}, which __version__ says: correct one of them")
    raise Refused(f"images come from main and from release tags, not from {ref or 'nowhere'}")


def publish(repository: str, ref: str) -> None:
    if not repository:
        raise Refused("make publish REPOSITORY=name/mlops-housing-api says where to")
    names = [f"{repository}:{tag}" for tag in tags(ref)]
    for name in names:
        engine("tag", NAME, name)
        engine("push", "--quiet", name)
        print(f"pushed {name}")
    digests = engine("inspect", "--format", '{{join .RepoDigests "\\n"}}', NAME).splitlines()
    pushed = [digest for digest in digests if f"{repository}@" in digest]
    if not pushed:
        raise Refused(f"the engine knows no digest of {repository}: {digests}")
    # What is deployed is these bytes, whatever becomes of the tags.
    image = f"{repository}@{pushed[0].partition('@')[2]}"
    print(image)
    if output := os.environ.get("GITHUB_OUTPUT"):
        with Path(output).open("a", encoding="utf-8") as lines:
            lines.write(f"image={image}\n")


def deploy(image: str) -> None:
    repository, _, digest = image.partition("@")
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        raise Refused(f"IMAGE={image} is no digest (name@sha256:...): a tag may change its meaning")
    with tempfile.TemporaryDirectory(dir=MANIFESTS.parent, prefix=".release-") as folder:
        # An overlay, so that the manifests stay as they are reviewed.
        overlay = {
            "resources": [f"../{MANIFESTS.name}"],
            "images": [{"name": NAME, "newName": repository, "digest": digest}],
        }
        (Path(folder) / "kustomization.yaml").write_text(json.dumps(overlay), encoding="utf-8")
        if access := os.environ.pop("KUBE_CONFIG", ""):
            # A workflow has the whole file as a secret, and kubectl wants the name of one.
            file = Path(folder) / "access"
            file.touch(mode=0o600)
            file.write_text(access, encoding="utf-8")
            os.environ["KUBECONFIG"] = str(file)
        applied = json.loads(call("kubectl", "apply", "--kustomize", folder, "--output", "json"))
        for item in applied["items"]:
            kind, metadata = item["kind"], item["metadata"]
            print(f"applied {kind}/{metadata['name']}")
            if kind in ("Deployment", "StatefulSet"):
                rollout = ["rollout", "status", f"{kind}/{metadata['name']}"]
                rollout += ["--namespace", metadata["namespace"]]
                print(call("kubectl", *rollout, f"--timeout={SECONDS_TO_ROLL_OUT}s"))


def main(arguments: list[str]) -> int:
    """Run one of the four; return 0, or 1 and a line that says what was refused."""
    environ = os.environ
    try:
        match arguments:
            case ["build"]:
                build()
            case ["smoke"]:
                smoke(environ.get("IMAGE") or NAME)
            case ["publish"]:
                publish(environ.get("REPOSITORY", ""), environ.get("GITHUB_REF") or local_ref())
            case ["deploy"]:
                deploy(environ.get("IMAGE", ""))
            case _:
                print("usage: python3 tools/image.py build|smoke|publish|deploy", file=sys.stderr)
                return 2
    except Refused as reason:
        print(reason, file=sys.stderr)
        return 1
    return 0


def local_ref() -> str:
    """Return the ref that is checked out here: a release's tag wins over its branch."""
    with contextlib.suppress(Refused):
        return "refs/tags/" + call("git", "describe", "--exact-match", "--match", "v*", "HEAD")
    return call("git", "rev-parse", "--symbolic-full-name", "HEAD")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Signed bundles: with a key, nothing is opened that was not signed with it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Server, copy_project, mlops, start_server
from test_bundle import resign, rewrite

from mlops.errors import BundleError, UsageError
from mlops.package import bundle as bundles
from mlops.package.bundle import DOCUMENTS, MANIFEST, SIGNATURE, open_bundle, seal
from mlops.settings import read_settings
from mlops.usecases.iris import IRIS

KEY, OTHER = b"k" * 32, b"o" * 32


@pytest.fixture
def content(trained: Path) -> dict[str, Any]:
    """What sealing the trained iris winner again would be given."""
    from mlops.improve.ledger import Ledger

    with Ledger(trained / "models" / "state.db") as ledger:
        champion = ledger.champion("iris")
    assert champion is not None
    path = trained / "models" / "bundles" / champion.bundle
    names = [name.removesuffix(".json") for name in DOCUMENTS]
    return {
        "model": (path / bundles.MODEL).read_bytes(),
        "documents": {name: json.loads((path / f"{name}.json").read_bytes()) for name in names},
        "pipeline": b"pickled",
        "provenance": {},
    }


def test_a_signed_bundle_opens_with_its_key_and_without_any(
    content: dict[str, Any], tmp_path: Path
) -> None:
    name = seal(tmp_path, **content, key=KEY)
    assert seal(tmp_path / "unsigned", **content) == name, "the signature is outside the hash"
    assert open_bundle(tmp_path / name, key=KEY).hash == name
    assert open_bundle(tmp_path / name).hash == name
    with pytest.raises(BundleError, match=r"was signed with another key — .*BUNDLE_SIGNING_KEY"):
        open_bundle(tmp_path / name, key=OTHER)


def test_no_forgery_opens_under_a_key(content: dict[str, Any], tmp_path: Path) -> None:
    unsigned = tmp_path / "0" / seal(tmp_path / "0", **content)
    with pytest.raises(BundleError, match="is not signed"):
        open_bundle(unsigned, key=KEY)

    def forged(number: int, spoil: Any) -> Path:
        path = tmp_path / str(number) / seal(tmp_path / str(number), **content, key=KEY)
        return spoil(path) or path

    metrics = json.dumps({"scores": {"accuracy": 1.0}}).encode()
    for number, spoil in enumerate(
        (
            lambda path: rewrite(path, "metrics.json", metrics),
            lambda path: resign(path, lambda manifest: {**manifest, "more": 1}),
            lambda path: (path / SIGNATURE).write_bytes(b"") and None,
            lambda path: (path / SIGNATURE).write_bytes(b"0" * 65) and None,
            lambda path: (path / SIGNATURE).write_bytes(b"0" * 1_000_000) and None,
            lambda path: (path / SIGNATURE).unlink(),
            lambda path: (
                (path / SIGNATURE).unlink() or (path / SIGNATURE).symlink_to(path / MANIFEST)
            ),
            lambda path: (
                (path / SIGNATURE).write_bytes(
                    bundles._signature((path / MANIFEST).read_bytes(), OTHER)
                )
                and None
            ),
        ),
        start=1,
    ):
        path = forged(number, spoil)
        with pytest.raises(BundleError):
            open_bundle(path, key=KEY)
    sound = forged(99, lambda path: None)
    assert open_bundle(sound, key=KEY)


def test_sealing_the_same_again_signs_what_was_not_signed(
    content: dict[str, Any], tmp_path: Path
) -> None:
    name = seal(tmp_path, **content)
    seal(tmp_path, **content, key=KEY)
    assert open_bundle(tmp_path / name, key=KEY)
    seal(tmp_path, **content, key=OTHER)
    assert open_bundle(tmp_path / name, key=OTHER)


def test_the_key_comes_from_the_environment_or_a_file_and_is_no_word(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_bytes(KEY + b"\n")
    assert read_settings(BUNDLE_SIGNING_KEY="").signing_key is None
    assert read_settings(BUNDLE_SIGNING_KEY=KEY.decode()).signing_key == KEY
    assert read_settings(BUNDLE_SIGNING_KEY_FILE=str(file)).signing_key == KEY
    assert "k" * 32 not in repr(read_settings(BUNDLE_SIGNING_KEY=KEY.decode()))
    for given in (
        {"BUNDLE_SIGNING_KEY": "secret"},
        {"BUNDLE_SIGNING_KEY_FILE": str(tmp_path / "none")},
    ):
        with pytest.raises(UsageError, match="BUNDLE_SIGNING_KEY") as caught:
            _ = read_settings(**given).signing_key
        assert "'secret'" not in str(caught.value)


@pytest.fixture
def servers() -> Iterator[list[Server]]:
    started: list[Server] = []
    yield started
    for server in started:
        server.kill()


def test_a_server_with_a_key_answers_with_signed_bundles_alone(
    trained: Path, tmp_path: Path, servers: list[Server]
) -> None:
    home = copy_project(trained, tmp_path / "home")
    key = {"BUNDLE_SIGNING_KEY": KEY.decode()}
    server = start_server(home, "iris", ready=False, **key)
    servers.append(server)
    status, health = server.request("/health/ready")
    assert (status, health["message"].endswith("is not signed")) == (503, True)
    for bundle in (home / "models" / "bundles").iterdir():
        signature = bundles._signature((bundle / MANIFEST).read_bytes(), KEY)
        (bundle / SIGNATURE).write_bytes(signature)
    server.kill()
    servers.append(start_server(home, "iris", **key))
    assert servers[-1].request("/predict", dict(IRIS.examples["setosa"]))[0] == 200
    done = mlops("serve", "iris", home=home, check=False, BUNDLE_SIGNING_KEY="short")
    assert done.returncode in {2, 3}
    assert "BUNDLE_SIGNING_KEY gives a key of 5 bytes" in done.stderr

"""The bundle: whole or not there, verified before it is parsed, refused by name when altered."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from mlops.errors import BundleError
from mlops.package import bundle as bundles
from mlops.package.bundle import (
    DOCUMENTS,
    MANIFEST,
    MODEL,
    PIPELINE,
    PROVENANCE,
    UNFINISHED,
    golden_answers,
    golden_difference,
    open_bundle,
    seal,
    verify,
)
from mlops.package.export import to_onnx
from mlops.package.model import OnnxModel, Output
from mlops.usecases import USE_CASES

IRIS = USE_CASES["iris"]
HASHED = (MANIFEST, MODEL, *DOCUMENTS)


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    """What a small training hands to `seal`."""
    pipeline, rows = families.fitted(LogisticRegression(), IRIS, scaled=True)
    graph = to_onnx(pipeline, IRIS.fields, IRIS.target.labels)
    golden = rows[::10]
    return {
        "model": graph,
        "documents": {
            "signature": {"use_case": "iris", "fields": list(IRIS.fields)},
            "reference": {"sepal_length": {"mean": 5.8}},
            "golden": {"fields": golden.tolist(), **golden_answers(OnnxModel(graph).run(golden))},
            "metrics": {"scores": {"accuracy": 0.9}},
            "training": {"candidate": "LogisticRegression", "unit": "cm³"},
        },
        "pipeline": pickle.dumps("a fitted pipeline"),
        "provenance": {"sealed_utc": "2026-01-01", "user": "somebody"},
    }


@pytest.fixture
def sealed(content: dict[str, Any], tmp_path: Path) -> Path:
    """A sound bundle."""
    return tmp_path / seal(tmp_path, **content)


def resign(path: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """Change the manifest and give the folder the name that goes with it, as a forger would."""
    manifest = json.loads((path / MANIFEST).read_bytes())
    changed = change(manifest) or manifest
    return renamed(path, changed if isinstance(changed, bytes) else json.dumps(changed).encode())


def renamed(path: Path, manifest: bytes) -> Path:
    (path / MANIFEST).write_bytes(manifest)
    return path.rename(path.with_name(hashlib.sha256(manifest).hexdigest()))


def rewrite(path: Path, name: str, content: bytes) -> Path:
    """Change a file and sign it anew."""
    (path / name).write_bytes(content)
    return resign(path, lambda m: m["files"].update({name: bundles._entry(content)}))


# --- sealed and opened


def test_what_was_sealed_is_what_is_opened(content, sealed):
    opened = open_bundle(sealed)
    for name, document in content["documents"].items():
        assert getattr(opened, name) == document
    assert opened.provenance["user"] == "somebody"
    digest = hashlib.sha256(content["pipeline"]).hexdigest()
    assert opened.provenance["files"][PIPELINE]["sha256"] == digest
    assert opened.model.fields == IRIS.fields
    assert golden_difference(opened) == 0.0
    assert {file.name for file in sealed.iterdir()} == {*HASHED, PROVENANCE, PIPELINE}


def test_a_bundle_is_named_by_its_content_and_not_by_when_and_by_whom(content, sealed, tmp_path):
    assert sealed.name == hashlib.sha256((sealed / MANIFEST).read_bytes()).hexdigest()
    elsewhere = {**content, "provenance": {"sealed_utc": "2027"}, "pipeline": b"other bytes"}
    assert seal(tmp_path / "elsewhere", **elsewhere) == sealed.name
    changed = {**content["documents"], "metrics": {"scores": {"accuracy": 0.91}}}
    assert seal(tmp_path, **{**content, "documents": changed}) != sealed.name


def test_a_value_that_json_does_not_know_is_not_sealed(content, tmp_path):
    documents = {**content["documents"], "metrics": {"accuracy": float("nan")}}
    with pytest.raises(ValueError, match="JSON"):
        seal(tmp_path, **{**content, "documents": documents})
    assert list(tmp_path.iterdir()) == []


# --- altered


def truncate(path: Path, name: str) -> None:
    (path / name).write_bytes((path / name).read_bytes()[:-1])


def empty(path: Path, name: str) -> None:
    (path / name).write_bytes(b"")


def lengthen(path: Path, name: str) -> None:
    (path / name).write_bytes((path / name).read_bytes() + b"\n")


def flip_a_bit(path: Path, name: str) -> None:
    content = bytearray((path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (path / name).write_bytes(content)


def remove(path: Path, name: str) -> None:
    (path / name).unlink()


def link_to_the_same_content(path: Path, name: str) -> None:
    target = path.parent / "elsewhere"
    (path / name).rename(target)
    (path / name).symlink_to(target)


def make_a_folder(path: Path, name: str) -> None:
    (path / name).unlink()
    (path / name).mkdir()


def make_a_pipe(path: Path, name: str) -> None:
    (path / name).unlink()
    os.mkfifo(path / name)


def swap(path: Path, name: str) -> None:
    other = "metrics.json" if name != "metrics.json" else "training.json"
    (path / name).rename(path / "aside")
    (path / other).rename(path / name)
    (path / "aside").rename(path / other)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", HASHED)
@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        empty,
        lengthen,
        flip_a_bit,
        remove,
        link_to_the_same_content,
        make_a_folder,
        make_a_pipe,
        swap,
    ],
)
def test_an_altered_file_is_refused_by_name(sealed, name, damage):
    damage(sealed, name)
    with pytest.raises(BundleError) as caught:
        open_bundle(sealed)
    message = str(caught.value)
    assert f"bundle {sealed.name[:12]}" in message
    assert f"restore {sealed} from a copy" in message
    assert name in message or (damage is swap and ".json" in message)


def test_a_flipped_bit_anywhere_is_found(sealed):
    rng = np.random.default_rng(0)
    for name in HASHED:
        whole = (sealed / name).read_bytes()
        for position in rng.integers(0, len(whole), 40):
            broken = bytearray(whole)
            broken[position] ^= 1 << rng.integers(8)
            (sealed / name).write_bytes(broken)
            with pytest.raises(BundleError):
                verify(sealed)
        (sealed / name).write_bytes(whole)
    open_bundle(sealed)


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b" " * (1 << 21)],
    ids=lambda text: repr(text[:9]),
)
def test_a_provenance_that_is_no_json_object_is_an_error_and_no_crash(sealed, text):
    (sealed / PROVENANCE).write_bytes(text)
    with pytest.raises(BundleError, match=PROVENANCE):
        open_bundle(sealed)


def test_a_folder_without_a_bundle_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for name in ("empty", "file", "missing"):
        with pytest.raises(BundleError, match=f"bundle {name} lacks manifest"):
            open_bundle(tmp_path / name)


def test_files_that_the_manifest_does_not_name_are_not_looked_at(sealed):
    make_a_pipe_beside = sealed / "pipe"
    os.mkfifo(make_a_pipe_beside)
    (sealed / "model.onnx.bak").write_bytes(b"no model")
    assert set(verify(sealed)) == {MODEL, *DOCUMENTS}
    open_bundle(sealed)


# --- forged


def test_a_manifest_that_is_signed_anew_needs_another_name(sealed):
    signed_anew = resign(sealed, lambda m: m.update(format=1, note="changed"))
    signed_anew.rename(sealed)
    with pytest.raises(BundleError, match=r"manifest\.json does not have the digest in its name"):
        open_bundle(sealed)


def test_a_bundle_under_another_name_is_refused(sealed):
    other = sealed.rename(sealed.with_name("0" * 64))
    with pytest.raises(BundleError, match=r"manifest\.json does not have the digest in its name"):
        open_bundle(other)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "sub/x", "..", "", "../x/../x", "x/"])
def test_a_manifest_cannot_reach_outside_its_folder(sealed, name, monkeypatch):
    (sealed.parent / "x").write_bytes(b"secret")
    entry = bundles._entry(b"secret")
    forged = resign(sealed, lambda m: m.update(files={name: entry, **m["files"]}))
    opened = []
    real = os.open
    monkeypatch.setattr(os, "open", lambda *a, **k: opened.append(str(a[0])) or real(*a, **k))
    with pytest.raises(BundleError):
        verify(forged)
    assert {Path(path).name for path in opened} <= {MANIFEST, forged.name, "..", ""}
    assert not any("passwd" in path or path.endswith("/x") for path in opened)


@pytest.mark.parametrize(
    "manifest",
    [
        b"",
        b"not JSON",
        b"[]",
        b"null",
        b"{}",
        b'{"format": 1}',
        b'{"format": 1, "files": []}',
        b'{"format": 1, "files": null}',
        b'{"format": 1, "files": {}}',
        b"[" * 100_000,
        b"\xff" * 9,
    ],
    ids=lambda text: repr(text[:30]),
)
def test_a_forged_manifest_of_the_wrong_shape_is_an_error_and_no_crash(sealed, manifest):
    forged = renamed(sealed, manifest)
    with pytest.raises(BundleError, match=f"bundle {forged.name[:12]}"):
        open_bundle(forged)


@pytest.mark.parametrize("entry", [None, 7, [], {}, {"bytes": None}, {"bytes": "9"}, {"bytes": -1}])
def test_a_forged_entry_of_the_wrong_shape_is_an_error_and_no_crash(sealed, entry):
    forged = resign(sealed, lambda m: m["files"].update({MODEL: entry}))
    with pytest.raises(BundleError, match=MODEL):
        open_bundle(forged)


def test_no_memory_is_taken_for_a_size_that_is_only_stated(sealed):
    forged = resign(sealed, lambda m: m["files"][MODEL].update(bytes=1 << 60))
    with pytest.raises(BundleError, match=rf"{MODEL} does not have the digest"):
        open_bundle(forged)


def test_a_huge_manifest_is_not_read(sealed, monkeypatch):
    forged = resign(sealed, lambda m: m.update(padding="x" * (1 << 20)))
    monkeypatch.setattr(hashlib, "sha256", lambda *_: pytest.fail("it was read"))
    with pytest.raises(BundleError, match=r"manifest\.json is larger than stated"):
        open_bundle(forged)


@pytest.mark.parametrize("number", [0, 2, "1", None])
def test_another_format_is_refused_with_its_number(sealed, number):
    forged = resign(sealed, lambda m: m.update(format=number))
    with pytest.raises(BundleError, match=rf"has format {number}, not 1 — train it again"):
        open_bundle(forged)


@pytest.mark.parametrize("name", [MODEL, *DOCUMENTS])
def test_a_manifest_must_name_every_file(sealed, name):
    forged = resign(sealed, lambda m: m["files"].pop(name) and None)
    with pytest.raises(BundleError, match=f"lacks {name}"):
        open_bundle(forged)


# --- golden rows


def test_golden_rows_that_no_longer_reproduce_are_refused_with_the_difference(content, sealed):
    golden = json.loads(json.dumps(content["documents"]["golden"]))
    golden["probabilities"][3][1] += 1e-6
    forged = rewrite(sealed, "golden.json", json.dumps(golden).encode())
    with pytest.raises(BundleError, match=r"does not reproduce its golden rows \(off by 1e-06\)"):
        open_bundle(forged)


def test_another_model_under_the_same_golden_rows_is_refused(sealed):
    pipeline, _ = families.fitted(LogisticRegression(C=0.5), IRIS, scaled=True)
    other = to_onnx(pipeline, IRIS.fields, IRIS.target.labels)
    with pytest.raises(BundleError, match="does not reproduce its golden rows"):
        open_bundle(rewrite(sealed, MODEL, other))


@pytest.mark.parametrize(
    "golden",
    [
        {},
        {"fields": [], "prediction": [], "probabilities": []},
        {"fields": [[1.0, 2.0]], "prediction": [0], "probabilities": [[1, 0, 0]]},
        {"fields": "text", "prediction": [0], "probabilities": [[1, 0, 0]]},
        {"fields": [[1.0, 2.0, 3.0, 4.0]], "prediction": [0]},
    ],
)
def test_golden_rows_that_cannot_be_asked_are_an_error_and_no_crash(sealed, golden):
    forged = rewrite(sealed, "golden.json", json.dumps(golden).encode())
    with pytest.raises(BundleError, match="golden rows"):
        open_bundle(forged)


def test_a_model_that_answers_nan_does_not_reproduce_its_golden_rows(sealed):
    opened = open_bundle(sealed)

    class Broken:
        def run(self, rows: np.ndarray) -> Output:
            output = opened.model.run(rows)
            return output._replace(probabilities=output.probabilities * np.nan)

    assert np.isnan(golden_difference(dataclasses.replace(opened, model=Broken())))


# --- nothing is parsed unverified, nothing is unpickled


def test_a_malicious_pickle_is_never_executed(sealed, tmp_path):
    class Malicious:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "executed",)

    payload = pickle.dumps(Malicious())
    (sealed / PIPELINE).write_bytes(payload)
    open_bundle(sealed)
    forged = rewrite(sealed, "reference.json", payload)
    with pytest.raises(BundleError):
        open_bundle(forged)
    assert not (tmp_path / "executed").exists()
    pickle.loads(payload)
    assert (tmp_path / "executed").exists(), "the payload would have worked"


@pytest.mark.parametrize("name", HASHED)
def test_no_byte_is_parsed_before_it_is_verified(sealed, name, monkeypatch):
    sound = {hashlib.sha256((sealed / file).read_bytes()).hexdigest() for file in HASHED}

    def only_verified(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
        def watched(content: bytes) -> Any:
            if hashlib.sha256(content).hexdigest() not in sound:
                pytest.fail("parsed before it was verified")
            return parse(content)

        return watched

    flip_a_bit(sealed, name)
    monkeypatch.setattr(json, "loads", only_verified(json.loads))
    monkeypatch.setattr(bundles, "OnnxModel", only_verified(OnnxModel))
    with pytest.raises(BundleError, match="does not have the digest"):
        open_bundle(sealed)


def test_provenance_is_parsed_only_after_everything_else_was_verified(sealed, monkeypatch):
    flip_a_bit(sealed, "training.json")
    (sealed / PROVENANCE).write_bytes(b"not JSON")
    with pytest.raises(BundleError, match=r"training\.json does not have the digest"):
        open_bundle(sealed)


def test_what_is_parsed_are_the_very_bytes_that_were_verified(sealed, content, monkeypatch):
    def verify_and_then_swap(path: Path, **key: Any) -> dict[str, bytes]:
        verified = verify(path)
        for name in (MODEL, *DOCUMENTS):
            (path / name).write_bytes(b"swapped in after the check")
        return verified

    monkeypatch.setattr(bundles, "verify", verify_and_then_swap)
    assert open_bundle(sealed).training == content["documents"]["training"]


# --- sealed wholly or not at all


@pytest.mark.parametrize("call", range(1, 12))
def test_a_full_disk_leaves_nothing_behind(content, tmp_path, monkeypatch, call):
    calls = []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left on device"):
            seal(tmp_path, **content)
    left = list(tmp_path.iterdir())
    if left:  # only the last sync, of the folder that holds the name, comes after the renaming
        assert call == 11
        open_bundle(left[0])
    open_bundle(tmp_path / seal(tmp_path, **content))


def test_every_file_and_folder_is_synced_before_the_bundle_gets_its_name(
    content, tmp_path, monkeypatch
):
    log = []
    rename = Path.rename

    def fsync(descriptor: int) -> None:
        log.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)

    def note(self: Path, target: Path) -> Path:
        log.append("renamed")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", note)
    seal(tmp_path, **content)
    *files, folder, then, parent = log
    assert sorted(files) == sorted([*HASHED, PROVENANCE, PIPELINE])
    assert folder.startswith(UNFINISHED)
    assert (then, parent) == ("renamed", tmp_path.name)


KILLED_AT_EACH_SYNC = """
    import json, os, pickle, signal, sys
    from pathlib import Path
    from mlops.package.bundle import seal

    content = pickle.loads(sys.stdin.buffer.read())
    sync = os.fsync
    for call in range(1, 13):
        folder = Path(sys.argv[1], str(call))
        child = os.fork()
        if child == 0:
            calls = iter(range(1, 99))
            os.fsync = lambda d: os.kill(os.getpid(), 9) if next(calls) == call else sync(d)
            seal(folder, **content)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == (signal.SIGKILL if call < 12 else 0)
"""


def test_a_sealing_that_is_killed_leaves_no_bundle_and_the_next_one_cleans_up(content, tmp_path):
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED_AT_EACH_SYNC), tmp_path],
        input=pickle.dumps(content),
        timeout=60,
        check=True,
    )
    for call in range(1, 12):
        folder = tmp_path / str(call)
        (left,) = folder.iterdir()
        assert left.name.startswith(UNFINISHED) == (call < 11)
        if call == 11:  # killed after the renaming: it is there, and whole
            open_bundle(left)
        name = seal(folder, **content)
        assert [path.name for path in folder.iterdir()] == [name]
        open_bundle(folder / name)


def test_cleaning_up_leaves_alone_what_is_not_left_over(content, tmp_path):
    at_work = tmp_path / f"{UNFINISHED}{os.getppid()}-abcd"
    foreign = tmp_path / f"{UNFINISHED}notes"
    from_an_earlier_life = tmp_path / f"{UNFINISHED}{os.getpid()}-abcd"
    for folder in (at_work, foreign, from_an_earlier_life):
        folder.mkdir()
    seal(tmp_path, **content)
    assert at_work.exists()
    assert foreign.exists()
    assert not from_an_earlier_life.exists()


def test_sealing_twice_keeps_the_sound_one(content, sealed, tmp_path):
    inode = (sealed / MODEL).stat().st_ino
    assert seal(tmp_path, **{**content, "provenance": {"user": "another"}}) == sealed.name
    assert (sealed / MODEL).stat().st_ino == inode
    assert open_bundle(sealed).provenance["user"] == "somebody"
    assert [path.name for path in tmp_path.iterdir()] == [sealed.name]


@pytest.mark.parametrize("name", [*HASHED, PROVENANCE])
def test_sealing_again_replaces_a_corrupt_one_and_leaves_nothing_of_it(
    content, sealed, tmp_path, name
):
    truncate(sealed, name)
    shutil.copy(sealed / MODEL, sealed / "surplus")
    if name == PROVENANCE:
        empty(sealed, name)
    assert seal(tmp_path, **content) == sealed.name
    open_bundle(sealed)
    assert [path.name for path in tmp_path.iterdir()] == [sealed.name]
    assert not (sealed / "surplus").exists()


def test_of_equal_sealings_one_at_a_time_looks_and_takes_the_name(
    content, sealed, tmp_path, monkeypatch
):
    looked = []

    def while_the_name_is_taken(path: Path, **_: Any) -> Any:
        other = os.open(tmp_path, os.O_RDONLY)
        try:
            with pytest.raises(BlockingIOError):
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(other)
        looked.append(path)
        return open_bundle(path)

    monkeypatch.setattr(bundles, "open_bundle", while_the_name_is_taken)
    seal(tmp_path, **content)
    assert looked == [sealed]


SEAL_AT_ONCE = """
    import pickle, sys, time
    from pathlib import Path
    from mlops.package.bundle import open_bundle, seal

    folder, me = Path(sys.argv[1]), sys.argv[2]
    content = pickle.loads(sys.stdin.buffer.read())
    (folder / f"ready-{me}").touch()
    while not (folder / "go").exists():
        time.sleep(0.0005)
    for number in range(20):
        inside = folder / f"{number}"
        open_bundle(inside / seal(inside, **content))
"""


@pytest.mark.parametrize("corrupt", [False, True])
def test_processes_that_seal_the_same_content_at_once_all_succeed(
    content, sealed, tmp_path, corrupt
):
    folder = tmp_path / "shared"
    folder.mkdir()
    if corrupt:
        truncate(sealed, "golden.json")
        for number in range(20):
            shutil.copytree(sealed, folder / str(number) / sealed.name)
    script = textwrap.dedent(SEAL_AT_ONCE)
    processes = [
        subprocess.Popen([sys.executable, "-c", script, folder, str(n)], stdin=subprocess.PIPE)
        for n in range(3)
    ]
    for process in processes:
        process.stdin.write(pickle.dumps(content))
        process.stdin.close()
    deadline = time.monotonic() + 30
    while len(list(folder.glob("ready-*"))) < len(processes) and time.monotonic() < deadline:
        time.sleep(0.001)
    (folder / "go").touch()
    assert [process.wait(timeout=60) for process in processes] == [0, 0, 0]
    for number in range(20):
        assert [path.name for path in (folder / str(number)).iterdir()] == [sealed.name]
        open_bundle(folder / str(number) / sealed.name)

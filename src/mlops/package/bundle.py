"""The bundle: what training seals and serving opens. Named by its content.

    models/bundles/<hash>/
      manifest.json     SHA-256 and size of each file below; <hash> is this file's own SHA-256
      model.onnx        request fields -> model inputs, prediction (and probabilities)
      signature.json    fields, units, hard limits, what training saw
      reference.json    profile of every field, model input and prediction in training
      golden.json       50 rows that touch every edge, and their answers
      metrics.json      scores in cross-validation and on the test rows, beside the baseline's
      training.json     data fingerprint, candidate, parameters, seed, library versions
      explanation.json  what explains its answers, and global importance; older bundles have none
      intervals.json    how prediction intervals are made, and their coverage; older ones have none
      interval.onnx     fields, prediction -> expected size of the error; of regressions only
      provenance.json   time, commit and user: true of this sealing, so outside the hash
      manifest.sig      HMAC-SHA256 of manifest.json, if a signing key was given; outside the hash
      pipeline.joblib   the fitted scikit-learn pipeline, for people; its digest is in provenance
      model_card.md     the model card, for people; its digest is in provenance too

A bundle is written under another name, synced and then renamed: it is whole or it is not there.
It is verified before anything in it is parsed, and every file is parsed from the very bytes that
were verified; `provenance.json`, which nothing depends on, comes last. Other files in the folder
are not looked at. Serving never unpickles, so `pipeline.joblib` stays outside the hash: a pickle's
bytes are not promised to repeat.

The name says that a bundle is whole, not who made it: whoever can write files here can make one.
With a signing key, nothing is opened whose manifest was not signed with it.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import hmac
import json
import os
import secrets
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mlops.errors import BundleError
from mlops.package.explainer import Explainer, explainer_of
from mlops.package.intervals import Bounds, Conformal, conformal_of
from mlops.package.model import OnnxModel, Output

FORMAT = 1
MANIFEST = "manifest.json"
MODEL = "model.onnx"
SIGNATURE = "manifest.sig"
PROVENANCE = "provenance.json"
PIPELINE = "pipeline.joblib"
DOCUMENTS = ("signature.json", "reference.json", "golden.json", "metrics.json", "training.json")
EXPLANATION = "explanation.json"
INTERVALS = "intervals.json"
INTERVAL_MODEL = "interval.onnx"
CARD = "model_card.md"
UNFINISHED = ".unfinished-"
LARGEST_NOTE = 1 << 20
"""Bytes of manifest and provenance, whose sizes are stated nowhere."""
GOLDEN_TOLERANCE = 1e-9


@dataclasses.dataclass(frozen=True, slots=True)
class Bundle:
    """An opened, verified bundle. The documents are plain JSON values."""

    path: Path
    hash: str
    model: OnnxModel
    signature: dict[str, Any]
    reference: dict[str, Any]
    golden: dict[str, Any]
    metrics: dict[str, Any]
    training: dict[str, Any]
    provenance: dict[str, Any]
    explanation: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Empty in a bundle that was sealed before there were explanations."""
    explainer: Explainer | None = None
    intervals: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Empty in a bundle that was sealed before there were prediction intervals."""
    conformal: Conformal | None = None


def seal(
    folder: Path,
    *,
    model: bytes,
    documents: Mapping[str, Any],
    pipeline: bytes,
    provenance: Mapping[str, Any],
    interval_model: bytes | None = None,
    card: str = "",
    key: bytes | None = None,
) -> str:
    """Write a bundle into `folder`, signed with `key` if there is one, and return its hash.

    `documents` has one JSON value for each of `signature`, `reference`, `golden`, `metrics` and
    `training`, and perhaps for `explanation` and `intervals`, which may take `interval_model`;
    `card` is Markdown for people. A bundle with the same content is kept if it is sound, and
    replaced if it is not. Raises `OSError` when it cannot be written; nothing half-written stays.
    """
    files = {MODEL: model}
    for name in DOCUMENTS:
        files[name] = _json_bytes(documents[name.removesuffix(".json")])
    for name in (EXPLANATION, INTERVALS):
        if name.removesuffix(".json") in documents:
            files[name] = _json_bytes(documents[name.removesuffix(".json")])
    if interval_model is not None:
        files[INTERVAL_MODEL] = interval_model
    manifest = _json_bytes(
        {
            "format": FORMAT,
            "files": {name: _entry(content) for name, content in sorted(files.items())},
        }
    )
    files[MANIFEST] = manifest
    if key:
        files[SIGNATURE] = _signature(manifest, key)
    for_people = {PIPELINE: pipeline, **({CARD: card.encode()} if card else {})}
    files |= for_people
    described = {file: _entry(content) for file, content in for_people.items()}
    files[PROVENANCE] = _json_bytes({**provenance, "files": described})
    name = hashlib.sha256(manifest).hexdigest()

    folder.mkdir(parents=True, exist_ok=True)
    _remove_unfinished(folder)
    unfinished = folder / f"{UNFINISHED}{os.getpid()}-{secrets.token_hex(4)}"
    try:
        unfinished.mkdir()
        for file, content in files.items():
            _write_synced(unfinished / file, content)
        _sync_folder(unfinished)
        _move_into_place(unfinished, folder / name, key)
        _sync_folder(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return name


def open_bundle(path: Path, *, key: bytes | None = None) -> Bundle:
    """Verify a bundle, parse it and run its golden rows; with a `key`, only one signed with it.

    Raises `BundleError`, which names the file, if anything is missing, altered or not reproduced.
    """
    contents = verify(path, key=key)
    documents = {
        name.removesuffix(".json"): _parse_object(path, name, contents[name]) for name in DOCUMENTS
    }
    model = OnnxModel(contents[MODEL])
    explanation, intervals = (
        _parse_object(path, name, contents[name]) if name in contents else {}
        for name in (EXPLANATION, INTERVALS)
    )
    if intervals.get("method", "none") != "none" and INTERVAL_MODEL not in contents:
        raise _broken(path, f"lacks {INTERVAL_MODEL}")
    bundle = Bundle(
        path=path,
        hash=path.name,
        model=model,
        explanation=explanation,
        explainer=explainer_of(explanation, model),
        intervals=intervals,
        conformal=conformal_of(intervals, contents.get(INTERVAL_MODEL)),
        provenance=_parse_object(path, PROVENANCE, _read_file(path, PROVENANCE, LARGEST_NOTE)),
        **documents,
    )
    try:
        difference = golden_difference(bundle)
    except Exception as error:  # onnxruntime's errors have no narrower base
        raise _broken(path, f"cannot answer its golden rows: {error}") from error
    if not difference <= GOLDEN_TOLERANCE:
        raise _broken(path, f"does not reproduce its golden rows (off by {difference:.3g})")
    return bundle


def verify(path: Path, *, key: bytes | None = None) -> dict[str, bytes]:
    """Return the bytes of each file that the manifest names, each of which has its digest.

    The manifest itself is parsed only after its own digest has been found equal to the name of
    the folder, and its signature, if there is a `key`, to be the key's. Raises `BundleError`.
    """
    manifest = _read_file(path, MANIFEST, LARGEST_NOTE)
    if hashlib.sha256(manifest).hexdigest() != path.name:
        raise _broken(path, f"is corrupt: {MANIFEST} does not have the digest in its name")
    if key:
        _check_signature(path, manifest, key)
    described = _parse_object(path, MANIFEST, manifest)
    if described.get("format") != FORMAT:
        raise BundleError(
            f"bundle {path.name[:12]} has format {described.get('format')}, not {FORMAT}",
            "train it again with this version",
        )
    files = described.get("files")
    if not isinstance(files, dict):
        raise _broken(path, f"is corrupt: {MANIFEST} names no files")
    missing = {MODEL, *DOCUMENTS} - set(files)
    if missing:
        raise _broken(path, f"lacks {sorted(missing)[0]}")
    contents = {}
    for name, entry in files.items():
        if Path(name).name != name:
            raise _broken(path, f"names a file outside itself: {name!r}")
        size = entry.get("bytes") if isinstance(entry, dict) else None
        if not isinstance(size, int):
            raise _broken(path, f"is corrupt: {MANIFEST} does not state the size of {name}")
        contents[name] = _read_file(path, name, size)
        if _entry(contents[name]) != entry:
            raise _broken(path, f"is corrupt: {name} does not have the digest in its manifest")
    return contents


def golden_difference(bundle: Bundle) -> float:
    """Return the largest difference between the golden rows' sealed answers and those of now.

    It is NaN if any answer is.
    """
    rows = np.array(bundle.golden["fields"], dtype=float)
    output = bundle.model.run(rows)
    bounds = bundle.conformal.of(rows, output.prediction) if bundle.conformal else None
    differences = [
        np.abs(np.array(found, dtype=float) - np.array(bundle.golden[name])).ravel()
        for name, found in golden_answers(output, bounds).items()
    ]
    return float(np.max(np.concatenate(differences)))


def golden_answers(output: Output, bounds: Bounds | None = None) -> dict[str, list[Any]]:
    """Return what golden rows seal: the prediction, and probabilities or an interval if any."""
    answers = {"prediction": output.prediction.tolist()}
    if output.probabilities is not None:
        answers["probabilities"] = output.probabilities.tolist()
    if bounds is not None:
        answers |= {"low": bounds.low.tolist(), "high": bounds.high.tolist()}
    return answers


def _signature(manifest: bytes, key: bytes) -> bytes:
    return hmac.digest(key, manifest, "sha256").hex().encode() + b"\n"


def _check_signature(path: Path, manifest: bytes, key: bytes) -> None:
    expected = _signature(manifest, key)
    there = (path / SIGNATURE).exists()
    found = _read_file(path, SIGNATURE, len(expected)) if there else b""
    if not hmac.compare_digest(found, expected):
        raise BundleError(
            f"bundle {path.name[:12]} "
            + ("was signed with another key" if there else "is not signed"),
            "train it again with BUNDLE_SIGNING_KEY set as it is now, or unset that",
        )


def _entry(content: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def _json_bytes(value: Any) -> bytes:
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


def _broken(path: Path, what: str) -> BundleError:
    return BundleError(
        f"bundle {path.name[:12]} {what}",
        f"restore {path} from a copy, or remove it and train again",
    )


def _parse_object(path: Path, name: str, content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _broken(path, f"cannot be read: {name} is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise _broken(path, f"cannot be read: {name} is not a JSON object")
    return value


def _read_file(path: Path, name: str, largest: int) -> bytes:
    """Read a regular file of the bundle, never through a link, never past its stated size."""
    try:
        # A pipe or a device is not waited for.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(path / name, flags)
    except OSError as error:
        raise _broken(path, f"lacks {name} ({error.strerror})") from None
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise _broken(path, f"is corrupt: {name} is not a regular file")
        if found.st_size > largest:
            raise _broken(path, f"is corrupt: {name} is larger than stated")
        # Its own size, not the stated one: memory is taken for as much as is asked for.
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(found.st_size)
    except OSError as error:
        raise _broken(path, f"cannot be read: {name} ({error.strerror})") from None
    finally:
        os.close(descriptor)


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _move_into_place(unfinished: Path, target: Path, key: bytes | None) -> None:
    """Give the bundle its name, unless a sound one has it; of equal trainings one at a time."""
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        if target.exists():
            try:
                open_bundle(target, key=key)
            except BundleError:
                # Out of the way first: a folder cannot be renamed over one that is not empty.
                aside = unfinished.with_name(f"{unfinished.name}-corrupt")
                target.rename(aside)
                shutil.rmtree(aside, ignore_errors=True)
            else:
                return
        unfinished.rename(target)
    finally:
        os.close(folder)


def _remove_unfinished(folder: Path) -> None:
    """Remove what a killed sealing left behind; one that is still at work is left alone.

    A leftover with this process's own id is from an earlier life: in a container ids repeat.
    """
    for leftover in folder.glob(f"{UNFINISHED}*"):
        process = leftover.name.removeprefix(UNFINISHED).split("-")[0]
        if process.isdecimal() and (int(process) == os.getpid() or not _alive(int(process))):
            shutil.rmtree(leftover, ignore_errors=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

"""R9: bundles that are corrupt, half-written or malicious are neither served nor executed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import pickle
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from traffic import Traffic, post

from benchmarks.reliability.world import Found, World, champions, promote, until
from mlops.errors import BundleError
from mlops.package import bundle as bundles
from mlops.usecases.iris import IRIS

SEALED = (bundles.MODEL, *bundles.DOCUMENTS)
KEY = b"a key that no forger has"
FLOWER = dict(IRIS.examples["setosa"])
VARIANTS_A_SERVER = 25
"""One in so many is promoted on a running server too."""


class Payload:
    """A pickle that leaves a mark when it is opened."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def forged_bundles(world: World, variants: int = 100) -> Found:
    """Spoil copies of a sealed bundle in eleven ways at random places, and try to open each.

    Some are promoted on a running server under load, which must say no and go on answering with
    the version before.
    """
    home, folder = world.home(), world.folder()
    sound = home / "models" / "bundles" / champions(home)[2]
    mark = folder / "executed"
    opened: list[str] = []
    tried = 0
    with _unguarded() if world.fault == "any-bundle" else contextlib.nullcontext():
        for number in world.rounds(variants):
            kind = list(WAYS)[number % len(WAYS)]
            path = folder / str(number) / sound.name
            shutil.copytree(sound, path)
            path, key = _spoil(kind, path, world.chance, mark)
            with contextlib.suppress(BundleError):
                bundles.open_bundle(path, key=key)
                opened.append(kind)
            shutil.rmtree(folder / str(number))
            tried += 1
    served, failed, promoted = _on_a_server(world, home, sound, tried // VARIANTS_A_SERVER)
    executed = mark.exists()
    return Found(
        f"{len(opened)} opened, {served} served, {'a pickle' if executed else 'nothing'} executed, "
        f"{failed} requests failed meanwhile" + "".join(f"; {kind}" for kind in set(opened)),
        not opened and not served and not executed and not failed,
        f"{tried} variants, {promoted} of them promoted",
    )


def _on_a_server(world: World, home: Path, sound: Path, number: int) -> tuple[int, int, int]:
    """Promote spoilt bundles; return how many were served, requests that failed, promotions."""
    if not number:
        return 0, 0, 0
    server = world.start(home, "iris")
    aside = world.folder() / "sound"
    shutil.copytree(sound, aside)
    traffic = Traffic(server.port, [post("/predict", FLOWER)] * 400 * (number + 5))
    load = threading.Thread(target=traffic.run, args=(4,))
    load.start()
    done = 0
    try:
        for turn in world.rounds(number):
            kind = ("flip", "cut", "remove", "swap", "pickle")[turn % 5]
            _spoil(kind, sound, world.chance, aside.with_name("executed"))
            promote(home, 2)
            until(lambda: "version 2 was refused" in server.request("/")[1]["message"])
            promote(home, 1)
            until(lambda: "refused" not in server.request("/")[1]["message"])
            shutil.rmtree(sound)
            shutil.copytree(aside, sound)
            done += 1
    finally:
        traffic.stop()
        load.join()
    replies = [traffic.replies[n] for n in traffic.sent]
    good = [reply.json for reply in replies if reply is not None and reply.status == 200]
    served = sum(answer["model_version"] != 1 for answer in good)
    return served, len(replies) - len(good), done


def _spoil(kind: str, path: Path, chance: Random, mark: Path) -> tuple[Path, bytes | None]:
    """Spoil a copy; return where it is now, and the key to open it with."""
    return WAYS[kind](path, chance, mark)


def _content(change: Callable[[bytes, Random], bytes]) -> Any:
    def way(path: Path, chance: Random, mark: Path) -> tuple[Path, None]:
        file = path / chance.choice((bundles.MANIFEST, *SEALED))
        file.write_bytes(change(file.read_bytes(), chance))
        return path, None

    return way


def _flip(content: bytes, chance: Random) -> bytes:
    place = chance.randrange(len(content))
    changed = bytes([content[place] ^ 1 << chance.randrange(8)])
    return content[:place] + changed + content[place + 1 :]


def _swap(path: Path, chance: Random, mark: Path) -> tuple[Path, None]:
    one, other = (path / name for name in chance.sample(SEALED, 2))
    kept = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(kept)
    return path, None


def _remove(path: Path, chance: Random, mark: Path) -> tuple[Path, None]:
    (path / chance.choice((bundles.MANIFEST, *SEALED))).unlink()
    return path, None


def _killed_writer(path: Path, chance: Random, mark: Path) -> tuple[Path, None]:
    """Leave the files before a random one, and of that one the beginning."""
    order = [*SEALED, bundles.MANIFEST]
    last = chance.randrange(len(order))
    content = (path / order[last]).read_bytes()
    (path / order[last]).write_bytes(content[: chance.randrange(len(content))])
    for name in order[last + 1 :]:
        (path / name).unlink()
    return path, None


def _pickle(path: Path, chance: Random, mark: Path) -> tuple[Path, None]:
    (path / chance.choice(SEALED)).write_bytes(pickle.dumps(Payload(mark)))
    (path / bundles.PIPELINE).write_bytes(pickle.dumps(Payload(mark)))
    return path, None


def _resign(path: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """Change the manifest, and give the folder the name that fits."""
    manifest = json.loads((path / bundles.MANIFEST).read_bytes())
    change(manifest)
    content = json.dumps(manifest).encode()
    (path / bundles.MANIFEST).write_bytes(content)
    return path.rename(path.with_name(hashlib.sha256(content).hexdigest()))


def _zip_slip(path: Path, chance: Random, mark: Path) -> tuple[Path, None]:
    outside = chance.choice(("../outside", "/etc/passwd", "a/../../b", ".."))
    return _resign(path, lambda m: m["files"].update({outside: {"sha256": "0", "bytes": 1}})), None


def _forged_pickle(path: Path, chance: Random, mark: Path) -> tuple[Path, None]:
    name, content = chance.choice(SEALED), pickle.dumps(Payload(mark))
    entry = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (path / name).write_bytes(content)
    return _resign(path, lambda m: m["files"].update({name: entry})), None


def _re_signed(path: Path, chance: Random, mark: Path) -> tuple[Path, bytes]:
    """Claim a better score, with digests that fit: only a signing key tells."""
    content = json.dumps({"scores": {"accuracy": chance.random()}}).encode()
    entry = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (path / "metrics.json").write_bytes(content)
    (path / bundles.SIGNATURE).write_bytes(chance.randbytes(32).hex().encode() + b"\n")
    return _resign(path, lambda m: m["files"].update({"metrics.json": entry})), KEY


WAYS: dict[str, Callable[[Path, Random, Path], tuple[Path, bytes | None]]] = {
    "flip": _content(_flip),
    "cut": _content(lambda content, chance: content[: chance.randrange(len(content))]),
    "lengthen": _content(lambda content, chance: content + b"\n"),
    "zeros": _content(lambda content, chance: bytes(len(content))),
    "swap": _swap,
    "remove": _remove,
    "killed writer": _killed_writer,
    "pickle": _pickle,
    "forged pickle": _forged_pickle,
    "zip slip": _zip_slip,
    "re-signed": _re_signed,
}


@contextlib.contextmanager
def _unguarded() -> Iterator[None]:
    """Plant a fault: the digests of files are not compared."""

    class Anything(dict[str, Any]):
        __hash__ = None  # type: ignore[assignment]

        def __eq__(self, other: object) -> bool:
            return True

        def __ne__(self, other: object) -> bool:
            return False

    entry = bundles._entry
    bundles._entry = lambda content: Anything()
    try:
        yield
    finally:
        bundles._entry = entry

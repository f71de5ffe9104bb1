"""Recipes: what decides the result of a training, and whether the champion is made by it still."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mlops.build.data import prepare
from mlops.errors import BundleError
from mlops.improve.ledger import Ledger, Version
from mlops.package.bundle import open_bundle
from mlops.settings import Settings
from mlops.usecase import UseCase

DECIDING = (
    "calibration",
    "conformal",
    "data",
    "energy",
    "growth",
    "pipeline",
    "profile",
    "risk",
    "training",
)
"""Modules of `build` by which a model becomes what it is."""
MEASURING = ("estimate", "performance", "quality")
"""Modules of `monitor` by which the quality is measured that is sealed."""

LIBRARIES = ("numpy", "pandas", "scikit-learn", "scipy", "lightgbm", "onnx", "onnxruntime")


def still_valid(use_case: UseCase, settings: Settings, profile: str = "") -> Version | None:
    """Return the champion if training again would repeat what made it, else None.

    It must have been trained by this code, on this data, with these libraries, in this `profile`
    if one is named; its bundle must be sound, and the files that a training leaves must be there.
    """
    champion, made = champion_made(use_case, settings)
    if champion is None or not made:
        return None
    own = made.get("profile", "")
    if own not in {"", *(one.name for one in use_case.profiles)} or profile not in {"", own}:
        return None
    # What grew was learnt from this file if that was its reference, and the rows behind it are its.
    reference = made.get("reference_fingerprint", made["data_fingerprint"])
    if reference != prepare(use_case, settings.data).fingerprint:
        return None
    left = [settings.models / candidate.pickle_name for candidate in use_case.trained_in(own)]
    if settings.tracks_locally:
        left.append(settings.home / "mlflow.db")
    same = made["recipe"] == recipe(made["data_fingerprint"], made.get("policy", ""))
    return champion if same and all(path.exists() for path in left) else None


def champion_made(
    use_case: UseCase, settings: Settings
) -> tuple[Version | None, Mapping[str, Any]]:
    """Return the champion and how it was made, which is empty if its bundle cannot be opened."""
    with Ledger(settings.state_database) as ledger:
        champion = ledger.champion(use_case.name)
    if champion is None:
        return None, {}
    try:
        bundle = open_bundle(settings.bundles / champion.bundle, key=settings.signing_key)
    except BundleError:
        return champion, {}
    return champion, bundle.training


def champion_profile(use_case: UseCase, settings: Settings) -> str:
    """Return the profile, of those declared, that the champion was trained in; "" if in none."""
    _, made = champion_made(use_case, settings)
    own = str(made.get("profile", ""))
    return own if own in {one.name for one in use_case.profiles} else ""


def recipe(data_fingerprint: str, policy: str = "") -> str:
    """Return a digest of all that decides a training's result: data, code and libraries.

    `policy` says what rows that came count for, empty where none did.

    Figures, reports, cards, checks and comparisons decide nothing: another page is no reason to
    train.
    """
    package = Path(__file__).parents[1]
    sources = [
        Path(__file__),
        Path(__file__).with_name("train.py"),
        Path(__file__).with_name("intervals.py"),
        Path(__file__).with_name("quality.py"),
        *(package / "monitor" / f"{name}.py" for name in MEASURING),
        *sorted(set((package / "package").glob("*.py")) - {package / "package" / "card.py"}),
    ]
    return _digest(fitting(data_fingerprint + policy), sources)


def fitting(data: str) -> str:
    """Return a digest of what decides how a model is fitted, whatever is measured and sealed."""
    package = Path(__file__).parents[1]
    sources = [
        package / "usecase.py",
        *sorted((package / "usecases").glob("*.py")),
        *sorted((package / "estimators").glob("*.py")),
        *(package / "build" / f"{name}.py" for name in DECIDING),
    ]
    return _digest(data + json.dumps(libraries(), sort_keys=True), sources)


def _digest(begun: str, sources: Iterable[Path]) -> str:
    digest = hashlib.sha256(begun.encode())
    for source in sources:
        digest.update(hashlib.sha256(source.read_bytes()).digest())
    return digest.hexdigest()


def libraries() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"  # LightGBM is optional
    return found

"""Experiments and aliases, as a person begins, changes and ends them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import apsw

from mlops.errors import MlopsError, UsageError
from mlops.improve.experiments import Experiment, Mode
from mlops.improve.ledger import Ledger
from mlops.improve.sequential import ALPHA
from mlops.loop.follow import open_champion
from mlops.settings import Settings, read_settings
from mlops.track.runs import user
from mlops.usecases import find


def begin(
    name: str,
    mode: Mode,
    number: int | None = None,
    *,
    share: float = 0.0,
    alpha: float = ALPHA,
    auto: bool = False,
    reason: str = "",
    settings: Settings | None = None,
) -> Experiment:
    """Hold a version (the newest, unless told) against the champion: see `Experiments.begin`.

    Raises `BundleError` if it cannot be opened.
    """
    settings = settings or read_settings()
    with _writing(name, settings) as ledger:
        if number is None:
            number = max((one.version for one in ledger.versions(name)), default=0)
        version = ledger.version(name, number)
        open_champion(find(name), version, settings)
        return ledger.experiments.begin(
            name,
            mode,
            version.version,
            share=share,
            alpha=alpha,
            auto=auto,
            reason=reason,
            by=user(),
        )


def set_share(
    name: str, share: float, *, reason: str = "", settings: Settings | None = None
) -> Experiment:
    """Let the challenger of the open A/B answer another share. Raises `UsageError`."""
    with _writing(name, settings or read_settings()) as ledger:
        number = _open(ledger, name).id
        ledger.experiments.set_share(number, share, reason, user())
        return _open(ledger, name)


def stop(name: str, *, reason: str = "", settings: Settings | None = None) -> Experiment:
    """End the open experiment without a promotion. Raises `UsageError` if none is open."""
    with _writing(name, settings or read_settings()) as ledger:
        number = _open(ledger, name).id
        ledger.experiments.end(number, "stopped", reason, by=user())
        return ledger.experiments.all(name)[-1]


def aliases(name: str, *, settings: Settings | None = None) -> dict[str, int]:
    """Return the versions that have names of their own."""
    find(name)
    with Ledger((settings or read_settings()).state_database) as ledger:
        return ledger.aliases(name)


def set_alias(
    name: str,
    alias: str,
    number: int,
    *,
    reason: str = "",
    evidence: Sequence[Mapping[str, Any]] = (),
    settings: Settings | None = None,
) -> dict[str, int]:
    """Give a version a name; return all there are. Raises `BundleError` if it cannot be opened.

    `evidence` is what gates said, where they were asked.
    """
    settings = settings or read_settings()
    with _writing(name, settings) as ledger:
        version = ledger.version(name, number)
        open_champion(find(name), version, settings)
        rule = "gates" if evidence else ""
        ledger.set_alias(version, alias, reason=reason, evidence=evidence, rule=rule, by=user())
        return ledger.aliases(name)


def remove_alias(
    name: str, alias: str, *, reason: str = "", settings: Settings | None = None
) -> dict[str, int]:
    """Take a name away; return those that are left. Raises `UsageError` if there is none."""
    with _writing(name, settings or read_settings()) as ledger:
        ledger.remove_alias(name, alias, reason=reason, by=user())
        return ledger.aliases(name)


def _open(ledger: Ledger, name: str) -> Experiment:
    experiment = ledger.experiments.open(name)
    if experiment is None:
        raise UsageError(
            f"{name} has no experiment that is open",
            f"begin one with: mlops experiment ab {name} --share 0.1",
        )
    return experiment


@contextlib.contextmanager
def _writing(name: str, settings: Settings) -> Iterator[Ledger]:
    find(name)
    with Ledger(settings.state_database) as ledger:
        try:
            yield ledger
        except apsw.Error as error:
            raise MlopsError(
                f"the state database cannot be written: {error}",
                f"see who keeps {settings.state_database} locked, or make its folder writable",
            ) from error

"""Promote: ask the gates, then make a version the champion by compare-and-swap."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from mlops.errors import ChampionMovedError, GateError, TrackingError, UsageError
from mlops.improve import guard
from mlops.improve.gates import Verdict, check_all
from mlops.improve.ledger import Ledger, Version
from mlops.loop import presence
from mlops.loop.evidence import gather
from mlops.loop.report import Report, Silent
from mlops.loop.track import pending, tracking_of
from mlops.loop.verdict import found_so_far
from mlops.package.bundle import verify
from mlops.settings import Settings, read_settings
from mlops.track.registry import mirror_champion
from mlops.track.runs import user
from mlops.usecase import UseCase
from mlops.usecases import find


@dataclasses.dataclass(frozen=True, slots=True)
class Promotion:
    """What came of it. `changed` is false when the version was champion already.

    `late` says which processes of a server do not answer with it yet, and why.
    """

    version: Version
    previous: int | None
    verdicts: tuple[Verdict, ...]
    changed: bool
    late: tuple[str, ...] = ()


def promote(
    name: str,
    number: int | None = None,
    *,
    force: bool = False,
    automatic: bool = False,
    reason: str = "",
    over: int | None = None,
    against: int | None = None,
    settings: Settings | None = None,
    report: Report | None = None,
) -> Promotion:
    """Make a version (the newest, unless told) champion if every gate lets it.

    `force` overrules the gates, never a bundle that cannot be opened; it needs a `reason`, which
    the ledger keeps. `automatic` is for those who decide without a person: a version that the guard
    rolled back is not for them. With `over` they say which version must be champion. The gates
    hold it against the champion, or against the version that `against` names. If it is the
    challenger of an open experiment, what that found is part of the evidence. A product of a
    profile takes its alias with it. It returns when all who serve have switched, or some seconds
    later: no answer of the version before comes after that.

    Raises `GateError`, `BundleError`, or `ChampionMovedError` when another promotion came first.
    """
    settings = settings or read_settings()
    report = report or Silent()
    use_case = find(name)
    if force and not reason.strip():
        raise UsageError("a forced promotion needs a reason", "say why with --reason")
    with Ledger(settings.state_database) as ledger:
        version = chosen(ledger, name, number)
        champion = ledger.champion(name)
        alias = _product(use_case, version, settings)
        if champion is not None and champion.version == version.version:
            if alias and ledger.aliases(name).get(alias) != version.version:
                ledger.set_alias(version, alias, reason="it is champion", by=user())
            mirror(use_case, version, settings, report)  # it may have failed when it was promoted
            late = presence.wait(settings.serving, name, ledger.last_line(), version.version)
            return Promotion(version, champion.version, (), changed=False, late=late)
        previous = champion.version if champion else None
        if over is not None and previous != over:
            raise ChampionMovedError(
                f"{name}: version {previous} is champion, not version {over}", "look at it first"
            )
        by_machine = automatic or over is not None
        other = champion if against is None else ledger.version(name, against)
        verdicts, evidence = _ask(
            ledger, use_case, version, other, settings, force=force, by_machine=by_machine
        )
        ledger.promote(
            version,
            expected=previous,
            reason=f"forced: {reason}" if force else reason or _passed(verdicts),
            evidence=evidence,
            rule="force" if force else "gates",
            by=user(),
            alias=alias,
        )
        line = ledger.last_line()
    mirror(use_case, version, settings, report)
    late = presence.wait(settings.serving, name, line, version.version)
    return Promotion(version, previous, tuple(verdicts), changed=True, late=late)


def admit(
    name: str, number: int, *, against: int | None = None, settings: Settings | None = None
) -> list[Any]:
    """Ask the gates whether a version may answer beside the champion; return what they say.

    Nobody need be there. It is held against the champion, or against the version that `against`
    names. Raises `GateError` for one that they keep out, which is written down, or that the guard
    rolled back; `BundleError`.
    """
    settings = settings or read_settings()
    with Ledger(settings.state_database) as ledger:
        version = ledger.version(name, number)
        other = ledger.champion(name) if against is None else ledger.version(name, against)
        _, evidence = _ask(
            ledger, find(name), version, other, settings, force=False, by_machine=True
        )
    return evidence


def _product(use_case: UseCase, version: Version, settings: Settings) -> str:
    """Return the alias that a version has as a product, "" if it is none. Raises `BundleError`."""
    if not use_case.profiles:
        return ""
    files = verify(settings.bundles / version.bundle, key=settings.signing_key)
    return use_case.product_of(json.loads(files["training.json"]))


def _ask(
    ledger: Ledger,
    use_case: UseCase,
    version: Version,
    champion: Version | None,
    settings: Settings,
    *,
    force: bool,
    by_machine: bool,
) -> tuple[list[Verdict], list[Any]]:
    """Return what the gates say, also as evidence.

    Raises `GateError`, which is written down, if one keeps the version out; not with `force`.
    """
    name, previous = use_case.name, champion.version if champion else None
    decided = ledger.decisions(name) if by_machine else []
    if rolled_back := guard.rolled_back(decided, version.version):
        raise GateError(
            f"{name} version {version.version} was rolled back by the guard on "
            f"{rolled_back.decided_utc[:10]}: {rolled_back.reason}",
            f"only by hand it is promoted again: mlops promote {name} {version.version}",
        )
    verdicts = check_all(gather(use_case, version, champion, settings))
    blocking = [verdict for verdict in verdicts if verdict.blocks]
    evidence: list[Any] = [dataclasses.asdict(verdict) for verdict in verdicts]
    experiment = ledger.experiments.open(name)
    if experiment is not None and experiment.challenger == version.version:
        evidence.append(found_so_far(use_case, experiment, settings))
    if blocking and not force:
        why = "; ".join(f"{verdict.gate}: {verdict.says}" for verdict in blocking)
        ledger.refuse(
            version, previous=previous, reason=why, evidence=evidence, rule="gates", by=user()
        )
        raise GateError(
            f"{name} version {version.version} was not promoted: {_shortly(blocking)}",
            f"train a better one, or overrule with: mlops promote {name} {version.version} "
            '--force --reason "…"',
        )
    return verdicts, evidence


def _shortly(blocking: list[Verdict]) -> str:
    """Return what the first of the gates says, and the names of the others."""
    first, *others = blocking
    also = f"; also: {', '.join(verdict.gate for verdict in others)}" if others else ""
    return f"{first.gate}: {first.says}{also}"


def _passed(verdicts: list[Verdict]) -> str:
    unknown = [verdict.gate for verdict in verdicts if verdict.outcome == "cannot tell"]
    if not unknown:
        return "every gate let it pass"
    return f"every gate that could tell let it pass; cannot tell: {', '.join(unknown)}"


def chosen(ledger: Ledger, name: str, number: int | None) -> Version:
    """Return a version, the newest unless told. Raises `UsageError` if there is none."""
    if number is not None:
        return ledger.version(name, number)
    versions = ledger.versions(name)
    if not versions:
        raise UsageError(f"{name} has no registered version", f"train one with: mlops train {name}")
    return versions[-1]


def mirror_now(name: str) -> None:
    """Show the champion of this moment in the registry."""
    settings = read_settings()
    with Ledger(settings.state_database) as ledger:
        champion = ledger.champion(name)
    if champion is not None:
        mirror(find(name), champion, settings, Silent())


def mirror(use_case: UseCase, version: Version, settings: Settings, report: Report) -> None:
    """Show the decision in the registry. The decision stands if the registry cannot be reached.

    A version that the registry has not heard of yet is shown when it is tracked.
    """
    waiting = {(note.use_case, note.version) for note in pending(settings)}
    if (use_case.name, version.version) in waiting:
        return
    try:
        mirror_champion(tracking_of(settings), use_case.model_name, version.version)
    except TrackingError as error:
        report.say(f"{use_case.name}: promoted, but the registry's alias was not set: {error}")

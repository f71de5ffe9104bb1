"""Follow the state database: open the versions that are to answer, and let them.

A server looks every half second. Whatever is decided is a line of the ledger, so while its last
line stays the same there is nothing to do. It tells who waits for it what it has taken up
(`presence.py`).
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from pydantic import ValidationError

from mlops.deploy.lineup import Lineup, Split
from mlops.deploy.predictor import Champion
from mlops.deploy.service import Service
from mlops.errors import BundleError, MlopsError
from mlops.improve.experiments import Experiment
from mlops.improve.ledger import FALLBACK, Ledger, Version
from mlops.loop.presence import Presence
from mlops.package.bundle import GOLDEN_TOLERANCE, open_bundle
from mlops.settings import Settings
from mlops.usecase import UseCase

SECONDS_BETWEEN_TRIES = 2.0

log = logging.getLogger("uvicorn.error")


def open_champion(use_case: UseCase, version: Version, settings: Settings) -> Champion:
    """Open and verify a version's bundle. Raises `BundleError`."""
    bundle = open_bundle(settings.bundles / version.bundle, key=settings.signing_key)
    if bundle.signature["use_case"] != use_case.name:
        raise BundleError(
            f"bundle {bundle.hash[:12]} was sealed for {bundle.signature['use_case']}, "
            f"not for {use_case.name}",
            f"train again with: mlops train {use_case.name}",
        )
    if tuple(field["name"] for field in bundle.signature["fields"]) != use_case.fields:
        raise BundleError(
            f"bundle {bundle.hash[:12]} takes other fields than {use_case.name} declares now",
            f"train again with: mlops train {use_case.name}",
        )
    return Champion(use_case, version.version, version.candidate, bundle)


def rehearse(service: Service, champion: Champion, golden: dict[str, Any]) -> None:
    """Let a champion answer its golden rows as it would answer requests.

    Raises `BundleError` if an answer is not the sealed one, or there is none. `open_bundle` has
    asked the graph alone; this is the whole way from JSON to JSON.
    """
    fix = f"train again with: mlops train {service.use_case.name}"
    name = f"bundle {champion.bundle.hash[:12]}"
    try:
        off = _off(service, champion, golden)
    except Exception as error:
        # What the use case declares may have been narrowed since, and a model may raise anything.
        where, why = _first_that_fails(service, champion, golden["fields"], error)
        says = f"{name} cannot answer {where} as a request is answered: {why}"
        raise BundleError(says, fix) from error
    if not off <= GOLDEN_TOLERANCE:
        raise BundleError(
            f"{name} does not answer its golden rows as a request is answered (off by {off:.3g})",
            fix,
        )


def _off(service: Service, champion: Champion, golden: dict[str, Any]) -> float:
    """Return how far the answers are from the sealed ones."""
    target = service.use_case.target
    answers = service.rehearse(champion, golden["fields"])
    found = [float(answer[target.name]) for answer in answers]
    sealed = [float(value) for value in golden["prediction"]]
    if target.labels:
        found += [p for answer in answers for p in answer["probabilities"].values()]
        sealed += [p for row in golden["probabilities"] for p in row]
    return max(abs(a - b) for a, b in zip(found, sealed, strict=True))


def _first_that_fails(
    service: Service, champion: Champion, rows: Sequence[Sequence[float]], error: Exception
) -> tuple[str, str]:
    """Return the golden row that fails alone as well, and why; all of them if none does."""
    where = "its golden rows"
    for number, row in enumerate(rows, 1):
        try:
            service.rehearse(champion, [row])
        except Exception as alone:  # noqa: BLE001  as above
            where, error = f"its golden row {number}", alone
            break
    if isinstance(error, ValidationError):
        return where, str(service.problem_of(error, b"")[1][0]["msg"])
    return where, f"{type(error).__name__}: {error}"[:300]


class Wanted(NamedTuple):
    """Who is to answer, as the state database has it at one moment."""

    champion: Version | None
    experiment: Experiment | None
    challenger: Version | None
    aliases: dict[str, Version]
    before: Version | None
    """The champion before."""


def wanted(ledger: Ledger, use_case: str) -> Wanted:
    """Read who is to answer."""
    with ledger.at_one_moment():
        champion = ledger.champion(use_case)
        experiment = ledger.experiments.open(use_case)
        before = ledger.before(champion) if champion else None
        return Wanted(
            champion,
            experiment,
            ledger.version(use_case, experiment.challenger) if experiment else None,
            {
                alias: ledger.version(use_case, number)
                for alias, number in ledger.aliases(use_case).items()
            },
            ledger.version(use_case, before) if before else None,
        )


class Follower:
    """Keeps one service on the versions that the state database names.

    A version that cannot be opened is refused by name, and those that can be go on: for a champion
    the one before or, at the start, the fallback. It is tried again every few seconds, for its
    bundle may be restored, or sealed again.
    """

    def __init__(
        self,
        service: Service,
        ledger: Ledger,
        settings: Settings,
        presence: Presence | None = None,
    ) -> None:
        self._service = service
        self._ledger = ledger
        self._settings = settings
        self._presence = presence
        self._seen: Wanted | None = None
        self._line = self._told = -1
        self._try_again = math.inf
        self._missed: Version | None = None
        self._opened: dict[tuple[int, str], Champion] = {}

    def look(self) -> None:
        """Take up what was decided, if anything was."""
        if (found := self._news()) is not None:
            self._take(found)
        self._tell()

    async def look_aside(self) -> None:
        """The same, opening bundles in a thread so that requests go on being answered.

        That it was taken up is told when no answer of those before is on its way any more.
        """
        found = self._news()
        if found is not None:
            await asyncio.to_thread(self._take, found)
        if (found is not None or self._line != self._told) and await self._service.settled():
            self._tell()

    def _tell(self) -> None:
        if self._presence:
            champion = self._service.champion
            version = champion.version if champion else None
            self._presence.tell(self._line, version, self._service.trouble)
        self._told = self._line

    def _news(self) -> Wanted | None:
        # Read first: what is read after it may hold more than is told, but never less.
        line, late = self._ledger.last_line(), time.monotonic() >= self._try_again
        if line == self._line and not late:
            return None
        found = wanted(self._ledger, self._service.use_case.name)
        self._line = line
        if found == self._seen and not late:
            return None
        return found

    def _take(self, found: Wanted) -> None:
        self._seen, self._try_again = found, math.inf
        if found.champion is None:
            return
        refused: list[str] = []

        def opened(version: Version, role: str) -> Champion | None:
            try:
                return self._open(version)
            except MlopsError as error:
                # Clients are told what, the server's own log also where, and how to mend it.
                says = f"version {version.version}{role} was refused: {error.message}"
                if says not in self._service.trouble:  # said once, not at each try
                    log.error("%s: %s — %s", self._service.use_case.name, says, error.fix)
                refused.append(says)
                return None

        champion = opened(found.champion, "")
        challenger = opened(found.challenger, ", the challenger,") if found.challenger else None
        named = {
            alias: opened(version, f", the alias {alias},")
            for alias, version in found.aliases.items()
        }
        aliases = {alias: model for alias, model in named.items() if model is not None}
        fallback = aliases.get(FALLBACK)
        if FALLBACK not in found.aliases and found.before:
            fallback = self._open_before(found.before)
        self._try_again = time.monotonic() + SECONDS_BETWEEN_TRIES if refused else math.inf
        trouble = "; ".join(dict.fromkeys(refused))
        answering = champion or self._service.champion or fallback
        if answering is None:
            self._service.trouble = trouble
        else:
            split = _split(found, challenger)
            self._let(Lineup(answering, challenger, split, aliases, fallback), trouble)

    def _open_before(self, version: Version) -> Champion | None:
        """Open the champion before. Only its own champion would miss it, if that one failed."""
        try:
            return self._open(version)
        except MlopsError as error:
            if version != self._missed:  # said once, not at each try
                name = self._service.use_case.name
                log.warning("%s: nobody answers if the champion fails: %s", name, error)
            self._missed = version
            return None

    def _open(self, version: Version) -> Champion:
        """Open a version and let it answer its golden rows, unless it is open already."""
        key = (version.version, version.bundle)
        if key not in self._opened:
            model = open_champion(self._service.use_case, version, self._settings)
            rehearse(self._service, model, model.bundle.golden)
            self._opened[key] = model
        return self._opened[key]

    def _let(self, lineup: Lineup, trouble: str) -> None:
        """Let these answer, and keep no other open."""
        before, names = self._service.models(), lineup.named()
        self._opened = {(one.version, one.bundle.hash): one for one in names.values()}
        if lineup == self._service.lineup:  # it was only tried again
            self._service.trouble = trouble
            return
        self._service.swap(lineup, trouble)
        for name, model in names.items():
            if not name.isdecimal() and model is not before.get(name):
                log.info(
                    "%s: version %s answers as %s (%s, bundle %s)",
                    self._service.use_case.name,
                    model.version,
                    name,
                    model.candidate,
                    model.bundle.hash[:12],
                )


def _split(found: Wanted, challenger: Champion | None) -> Split | None:
    experiment = found.experiment
    if experiment is None or challenger is None or experiment.mode != "ab":
        return None
    return Split(challenger, experiment.share, experiment.salt)

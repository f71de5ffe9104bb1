"""Gates: what they say of a version, without deciding anything."""

from __future__ import annotations

import dataclasses

from mlops.improve.gates import Verdict, check_all
from mlops.improve.ledger import Ledger, Version
from mlops.loop.evidence import gather
from mlops.loop.promote import chosen
from mlops.settings import Settings, read_settings
from mlops.usecases import find


@dataclasses.dataclass(frozen=True, slots=True)
class Judged:
    """What each gate says of a version, held against another; None if there is no other."""

    version: Version
    against: int | None
    verdicts: tuple[Verdict, ...]

    @property
    def passes(self) -> bool:
        return not any(verdict.blocks for verdict in self.verdicts)


def gates(name: str, number: int | None = None, *, settings: Settings | None = None) -> Judged:
    """Ask every gate about a version, the newest unless told.

    It is held against the champion; the champion itself against the one before it. Raises
    `UsageError` for a version that does not exist, `BundleError` for one that cannot be opened.
    """
    settings = settings or read_settings()
    use_case = find(name)
    with Ledger(settings.state_database) as ledger:
        version = chosen(ledger, name, number)
        other = ledger.champion(name)
        if other is not None and other.version == version.version:
            before = ledger.before(other)
            other = None if before is None else ledger.version(name, before)
    verdicts = check_all(gather(use_case, version, other, settings))
    return Judged(version, other.version if other else None, tuple(verdicts))

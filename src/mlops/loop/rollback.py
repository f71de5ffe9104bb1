"""Roll back: make the champion before this one champion again, by compare-and-swap.

Made for the moment when something is wrong: it needs no data and asks no gate but the one that
proves that the bundle is whole and still gives its golden answers.
"""

from __future__ import annotations

import dataclasses

from mlops.errors import NotTrainedError, UsageError
from mlops.improve.gates import golden_rows
from mlops.improve.gates.evidence import Verdict
from mlops.improve.ledger import Ledger, Version
from mlops.loop import presence
from mlops.loop.promote import mirror
from mlops.loop.report import Report, Silent
from mlops.package.bundle import golden_difference, open_bundle
from mlops.settings import Settings, read_settings
from mlops.track.runs import user
from mlops.usecases import find


@dataclasses.dataclass(frozen=True, slots=True)
class Rollback:
    """The version that answers again, and the one that did; `late` as of a promotion."""

    version: Version
    previous: int
    verdicts: tuple[Verdict, ...]
    late: tuple[str, ...] = ()


def rollback(
    name: str, *, reason: str, settings: Settings | None = None, report: Report | None = None
) -> Rollback:
    """Go back to the champion before; `reason` is kept in the ledger.

    It waits for those who serve, as a promotion does.

    Raises `UsageError` without a reason or a champion before, `BundleError` if that one cannot be
    opened, `ChampionMovedError` if another promotion came first.
    """
    settings = settings or read_settings()
    use_case = find(name)
    if not reason.strip():
        raise UsageError("a rollback needs a reason", "say why with --reason")
    with Ledger(settings.state_database) as ledger:
        champion = ledger.champion(name)
        if champion is None:
            raise NotTrainedError(f"{name} has no champion", f"promote one: mlops promote {name}")
        before = ledger.before(champion)
        if before is None:
            raise UsageError(
                f"{name} has had no champion before version {champion.version}",
                f"promote another one with: mlops promote {name} VERSION",
            )
        version = ledger.version(name, before)
        bundle = open_bundle(settings.bundles / version.bundle, key=settings.signing_key)
        verdict = golden_rows.answer(golden_difference(bundle))
        ledger.promote(
            version,
            expected=champion.version,
            reason=reason,
            evidence=[dataclasses.asdict(verdict)],
            action="rollback",
            rule="rollback",
            by=user(),
            alias=use_case.product_of(bundle.training),
        )
        line = ledger.last_line()
    late = presence.wait(settings.serving, name, line, version.version)
    mirror(use_case, version, settings, report or Silent())
    return Rollback(version, champion.version, (verdict,), late)

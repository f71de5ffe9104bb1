"""The ledger: list its lines, and check that nobody changed them."""

from __future__ import annotations

from mlops.improve.chain import Verification
from mlops.improve.decisions import Decision
from mlops.improve.ledger import Ledger
from mlops.settings import Settings, read_settings
from mlops.usecases import find


def ledger(name: str | None = None, *, settings: Settings | None = None) -> list[Decision]:
    """Return the lines about a use case, or all, oldest first."""
    if name is not None:
        find(name)
    with Ledger((settings or read_settings()).state_database) as opened:
        return opened.decisions(name)


def verify(expect: str = "", *, settings: Settings | None = None) -> Verification:
    """Check the chain; `expect` is a hash, or its beginning, that was noted elsewhere."""
    with Ledger((settings or read_settings()).state_database) as opened:
        return opened.verify(expect)

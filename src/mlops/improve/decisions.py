"""The lines of the ledger: appended to the state database one by one, never changed.

Triggers refuse to change them, and a chain of hashes (`chain.py`) tells of whoever does it all the
same. A line is written in the transaction that does what it tells of.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import apsw

from mlops import clock
from mlops.errors import DataError
from mlops.improve import chain

Decided = Literal["train", "promote", "keep", "rollback", "retrain", "retrained"]
Tried = Literal["shadow", "ab", "share", "end", "alias"]
Action = Decided | Tried

KEPT = {
    "decisions_are_not_changed": "BEFORE UPDATE ON decisions",
    "decisions_are_not_removed": "BEFORE DELETE ON decisions",
    "decisions_are_not_replaced": (
        "BEFORE INSERT ON decisions WHEN EXISTS (SELECT 1 FROM decisions WHERE id = NEW.id)"
    ),
}
"""The triggers that keep the ledger append-only, and when each refuses."""


@dataclasses.dataclass(frozen=True, slots=True)
class Decision:
    """One line of the ledger: what was decided, by whom, by which rule, on what evidence.

    "retrain" comes before a retraining, "retrained" after it, with version 0 where there is none.
    The evidence of "promote" and "keep" is what the gates measured; of "train", what the version
    was made of; of what concerns an experiment, its terms first. `previous` is the champion before,
    or the one that a challenger is held against.
    """

    id: int
    decided_utc: str
    use_case: str
    action: Action
    version: int
    previous: int | None
    reason: str
    evidence: list[dict[str, Any]]
    decided_by: str
    rule: str
    hash: str


def chain_decisions(connection: apsw.Connection) -> None:
    """Hash the lines that are there, once, and let nobody change them from here on."""
    for column in ("decided_by", "rule", "hash"):
        connection.execute(f"ALTER TABLE decisions ADD COLUMN {column} TEXT NOT NULL DEFAULT ''")
    before = chain.START
    for line, _ in list(lines(connection)):
        before = chain.link(before, line)
        connection.execute("UPDATE decisions SET hash = ? WHERE id = ?", (before, line["id"]))
    for name, when in KEPT.items():
        connection.execute(
            f"CREATE TRIGGER {name} {when} BEGIN"
            " SELECT RAISE(ABORT, 'the ledger is append-only'); END"
        )


def lines(connection: apsw.Connection) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield every line of the ledger with the hash stored for it, oldest first."""
    columns = ", ".join(chain.COLUMNS)
    rows = connection.execute(f"SELECT {columns}, hash FROM decisions ORDER BY id")  # noqa: S608
    for *values, stored in rows:
        yield dict(zip(chain.COLUMNS, values, strict=True)), stored


def decide(
    connection: apsw.Connection,
    action: Action,
    use_case: str,
    version: int,
    previous: int | None,
    reason: str,
    evidence: Sequence[Mapping[str, Any]],
    rule: str,
    by: str,
) -> None:
    """Append a line, in the transaction that is under way."""
    number, before = 0, chain.START
    for row in connection.execute("SELECT id, hash FROM decisions ORDER BY id DESC LIMIT 1"):
        number, before = row
    line = {
        "id": number + 1,
        "decided_utc": clock.stamp(),
        "use_case": use_case,
        "action": action,
        "version": version,
        "previous": previous,
        "reason": reason,
        "evidence": json.dumps(list(evidence), allow_nan=False),
        "decided_by": by,
        "rule": rule,
    }
    columns, places = ", ".join(line), ", ".join("?" * len(line))
    connection.execute(
        f"INSERT INTO decisions ({columns}, hash) VALUES ({places}, ?)",  # noqa: S608  names
        (*line.values(), chain.link(before, line)),
    )


def read(line: Mapping[str, Any], stored: str) -> Decision:
    """Return a line as a decision. Raises `DataError` if somebody made it unreadable."""
    try:
        evidence = json.loads(line["evidence"])
    except (ValueError, TypeError) as error:
        raise DataError(
            f"line {line['id']} of the ledger cannot be read: its evidence is not JSON ({error})",
            "see what else was changed with: mlops ledger verify; then restore it from a copy",
        ) from None
    return Decision(**{**line, "evidence": evidence}, hash=stored)

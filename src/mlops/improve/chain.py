"""The chain that makes the ledger tell of changes: each line's hash covers the one before it.

    hash = SHA-256(hash of the line before, newline, canonical JSON of the line)

Canonical JSON has sorted keys, no spaces and only ASCII (as RFC 8785 sorts and packs, for the
texts, whole numbers and nulls that a line holds); the first line follows 64 zeros. Whoever changes,
removes or inserts a line breaks the chain there, or must write all that follows anew and then has
another hash at its end. That one is noted elsewhere by those to whom it matters:
`mlops ledger verify --expect HASH`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping

START = "0" * 64

COLUMNS = (
    *("id", "decided_utc", "use_case", "action", "version", "previous", "reason", "evidence"),
    *("decided_by", "rule"),
)
"""What of a line is covered: all but the hash."""


@dataclasses.dataclass(frozen=True, slots=True)
class Verification:
    """What came of checking a ledger. `trouble` is empty if it is whole.

    `line` is the first that is broken; None if the trouble is not that of one line. `head` is the
    hash of the last line, to be noted elsewhere.
    """

    lines: int
    head: str
    trouble: str = ""
    line: int | None = None

    @property
    def whole(self) -> bool:
        return not self.trouble


def link(before: str, line: Mapping[str, object]) -> str:
    """Return the hash of a line, given the hash of the line before. `line` has `COLUMNS`."""
    text = json.dumps(
        {name: line[name] for name in COLUMNS}, sort_keys=True, separators=(",", ":"), default=repr
    )
    return hashlib.sha256(f"{before}\n{text}".encode()).hexdigest()


def check(lines: Iterable[tuple[Mapping[str, object], str]], expect: str = "") -> Verification:
    """Follow the chain through `lines`, each with the hash stored for it, oldest first.

    `expect` is a hash noted earlier, or its beginning: it must be that of some line.
    """
    before, count, known = START, 0, False
    for line, stored in lines:
        count += 1
        if line["id"] != count:
            return Verification(
                count, before, f"line {count} is missing: {line['id']} follows", count
            )
        if link(before, line) != stored:
            says = f"line {count} is not what was written: its hash does not follow from it"
            return Verification(count, before, says, count)
        before = stored
        known = known or before.startswith(expect.lower())
    if expect and not known:
        return Verification(count, before, f"no line has the hash {expect}: it was written anew")
    return Verification(count, before)

"""The state database: which versions exist, who is champion, and every decision about it.

One row decides who is champion, and it changes only by compare-and-swap: "make mine the champion
if the champion is still X". The registry's alias mirrors that row and is never asked.

Decisions are appended and never changed: triggers refuse it, and a chain of hashes (`chain.py`)
tells of whoever does it all the same.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import apsw

from mlops import clock
from mlops.database import Migration, connect, may_be_written, migrate, transaction
from mlops.errors import ChampionMovedError, DataError, MlopsError, UsageError
from mlops.improve import chain

UNTRACKED = "pending-"
"""How the id of a run begins that is not in the tracking store yet."""

Action = Literal["train", "promote", "keep", "rollback", "retrain", "retrained"]

KEPT = {
    "decisions_are_not_changed": "BEFORE UPDATE ON decisions",
    "decisions_are_not_removed": "BEFORE DELETE ON decisions",
    "decisions_are_not_replaced": (
        "BEFORE INSERT ON decisions WHEN EXISTS (SELECT 1 FROM decisions WHERE id = NEW.id)"
    ),
}
"""The triggers that keep the ledger append-only, and when each refuses."""


def _chain_decisions(connection: apsw.Connection) -> None:
    """Hash the lines that are there, once, and let nobody change them from here on."""
    for column in ("decided_by", "rule", "hash"):
        connection.execute(f"ALTER TABLE decisions ADD COLUMN {column} TEXT NOT NULL DEFAULT ''")
    before = chain.START
    for line, _ in list(_lines(connection)):
        before = chain.link(before, line)
        connection.execute("UPDATE decisions SET hash = ? WHERE id = ?", (before, line["id"]))
    for name, when in KEPT.items():
        connection.execute(
            f"CREATE TRIGGER {name} {when} BEGIN"
            " SELECT RAISE(ABORT, 'the ledger is append-only'); END"
        )


def _lines(connection: apsw.Connection) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield every line of the ledger with the hash stored for it, oldest first."""
    columns = ", ".join(chain.COLUMNS)
    rows = connection.execute(f"SELECT {columns}, hash FROM decisions ORDER BY id")  # noqa: S608
    for *values, stored in rows:
        yield dict(zip(chain.COLUMNS, values, strict=True)), stored


MIGRATIONS: tuple[Migration, ...] = (
    (
        "m001_versions_champions_decisions",
        (
            """CREATE TABLE versions (
                use_case TEXT NOT NULL,
                version INTEGER NOT NULL,
                bundle TEXT NOT NULL,
                candidate TEXT NOT NULL,
                run_id TEXT NOT NULL,
                registered_utc TEXT NOT NULL,
                PRIMARY KEY (use_case, version))""",
            """CREATE TABLE champions (
                use_case TEXT PRIMARY KEY,
                version INTEGER NOT NULL,
                changed_utc TEXT NOT NULL,
                FOREIGN KEY (use_case, version) REFERENCES versions (use_case, version))""",
            """CREATE TABLE decisions (
                id INTEGER PRIMARY KEY AUTOINCREMENT,
                decided_utc TEXT NOT NULL,
                use_case TEXT NOT NULL,
                action TEXT NOT NULL,
                version INTEGER NOT NULL,
                previous INTEGER,
                reason TEXT NOT NULL,
                evidence TEXT NOT NULL)""",
        ),
    ),
    ("m002_chain", _chain_decisions),
)


@dataclasses.dataclass(frozen=True, slots=True)
class Version:
    """A registered version: its number in the registry, its bundle and the run it came from."""

    use_case: str
    version: int
    bundle: str
    candidate: str
    run_id: str
    registered_utc: str


@dataclasses.dataclass(frozen=True, slots=True)
class Decision:
    """One line of the ledger: what was decided, by whom, by which rule, on what evidence.

    "retrain" comes before a retraining, "retrained" after it, with version 0 where there is none.
    The evidence of "promote" and "keep" is what the gates measured; of "train", what the version
    was made of. `previous` is the champion before.
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


class Ledger:
    """The state database, open. One thread at a time.

    Where it cannot be written, as in an image, it is read as it is.

    Raises `MlopsError` if it cannot be opened, `DataError` if a newer version made it.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._database: apsw.Connection = connect(path, read_only=not may_be_written(path))
            migrate(self._database, MIGRATIONS)
        except apsw.Error as error:
            raise MlopsError(
                f"the state database {path} cannot be used: {error}",
                "end what keeps it locked, or restore it from a copy",
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._database.close()

    def versions(self, use_case: str) -> list[Version]:
        """Return the registered versions, oldest first."""
        return [
            Version(*row)
            for row in self._database.execute(
                "SELECT use_case, version, bundle, candidate, run_id, registered_utc"
                " FROM versions WHERE use_case = ? ORDER BY version",
                (use_case,),
            )
        ]

    def version(self, use_case: str, number: int) -> Version:
        """Return one version. Raises `UsageError` that lists those that exist."""
        versions = self.versions(use_case)
        for version in versions:
            if version.version == number:
                return version
        known = ", ".join(str(version.version) for version in versions) or "none yet"
        raise UsageError(
            f"{use_case} has no version {number} (registered: {known})",
            f"list them with: mlops show {use_case}",
        )

    def register(
        self,
        version: Version,
        *,
        reason: str = "",
        evidence: Sequence[Mapping[str, Any]] = (),
        rule: str = "",
        by: str = "",
    ) -> None:
        """Record a version, and with a `reason` the decision to make one.

        Recording the same one again changes nothing.
        """
        with transaction(self._database):
            is_new = self._database.execute(
                "INSERT INTO versions VALUES (?, ?, ?, ?, ?, ?)"
                " ON CONFLICT (use_case, version) DO NOTHING RETURNING 1",
                dataclasses.astuple(version),
            ).fetchall()
            if is_new and reason:
                champion = self.champion(version.use_case)
                previous = champion.version if champion else None
                self._decide("train", version, previous, reason, evidence, rule, by)

    def name_run(self, version: Version, run_id: str) -> None:
        """Record the run of a version that was registered before its run could be tracked."""
        with transaction(self._database):
            self._database.execute(
                "UPDATE versions SET run_id = ? WHERE use_case = ? AND version = ? AND run_id = ?",
                (run_id, version.use_case, version.version, version.run_id),
            )

    def champion(self, use_case: str) -> Version | None:
        """Return the version that answers, or None before the first promotion."""
        for row in self._database.execute(
            "SELECT v.use_case, v.version, v.bundle, v.candidate, v.run_id, v.registered_utc"
            " FROM champions c JOIN versions v USING (use_case, version) WHERE use_case = ?",
            (use_case,),
        ):
            return Version(*row)
        return None

    def promote(
        self,
        version: Version,
        *,
        expected: int | None,
        reason: str,
        evidence: Sequence[Mapping[str, Any]],
        action: Literal["promote", "rollback"] = "promote",
        rule: str = "",
        by: str = "",
    ) -> None:
        """Make `version` the champion if the champion is still `expected`, and write down why.

        Raises `ChampionMovedError` and changes nothing if another promotion came first.
        """
        with transaction(self._database):
            champion = self.champion(version.use_case)
            current = champion.version if champion else None
            if current != expected:
                raise ChampionMovedError(
                    f"{version.use_case}: version {current} became champion meanwhile"
                    f" (expected {'none' if expected is None else expected})",
                    "look at it, then promote again",
                )
            self._database.execute(
                "INSERT INTO champions VALUES (?, ?, ?) ON CONFLICT (use_case)"
                " DO UPDATE SET version = excluded.version, changed_utc = excluded.changed_utc",
                (version.use_case, version.version, clock.stamp()),
            )
            self._decide(action, version, current, reason, evidence, rule, by)

    def refuse(
        self,
        version: Version,
        *,
        previous: int | None,
        reason: str,
        evidence: Sequence[Mapping[str, Any]],
        rule: str = "",
        by: str = "",
    ) -> None:
        """Write down that a gate kept `version` from becoming champion."""
        with transaction(self._database):
            self._decide("keep", version, previous, reason, evidence, rule, by)

    def write_down(
        self,
        action: Literal["retrain", "retrained"],
        use_case: str,
        *,
        reason: str,
        evidence: Sequence[Mapping[str, Any]],
        version: int = 0,
        previous: int | None = None,
        rule: str = "",
        by: str = "",
    ) -> None:
        """Write down that a retraining is about to begin, or what came of it.

        `version` is 0 where there is none.
        """
        about = Version(use_case, version, "", "", "", "")
        with transaction(self._database):
            self._decide(action, about, previous, reason, evidence, rule, by)

    def decisions(self, use_case: str | None = None) -> list[Decision]:
        """Return the decisions about a use case, or all, oldest first.

        Raises `DataError` for a line that somebody made unreadable.
        """
        return [
            _decision(line, stored)
            for line, stored in _lines(self._database)
            if use_case in (None, line["use_case"])
        ]

    def before(self, champion: Version) -> int | None:
        """Return the version that a rollback from `champion` goes back to; None if there is none.

        Each promotion goes one further, and each rollback one back.
        """
        reigned: list[int] = []
        for one in self.decisions(champion.use_case):
            if one.action == "promote":
                reigned.append(one.version)
            elif one.action == "rollback":
                del reigned[-1:]
        return reigned[-2] if len(reigned) > 1 else None

    def verify(self, expect: str = "") -> chain.Verification:
        """Follow the chain from the first line to the last, and hold the champions against it.

        `expect` is the hash of a line, or its beginning, that was noted elsewhere.
        """
        with self._database:  # one state of it, whoever writes meanwhile
            found = chain.check(_lines(self._database), expect)
            if not found.whole:
                return found
            trouble = self._loose_ends(found.lines)
        return dataclasses.replace(found, trouble=trouble)

    def _loose_ends(self, lines: int) -> str:
        """Return what a chain alone does not tell of, or nothing."""
        query = self._database.execute
        for (written,) in query("SELECT seq FROM sqlite_sequence WHERE name = 'decisions'"):
            if written != lines:
                return f"{written} lines were written, the last that is there is {lines}"
        there = {name for (name,) in query("SELECT name FROM sqlite_master WHERE type = 'trigger'")}
        for name in KEPT.keys() - there:
            return f"the trigger {name} is gone: the ledger is no longer append-only"
        decided: dict[str, int] = {}
        for one in self.decisions():
            if one.action in ("promote", "rollback"):
                decided[one.use_case] = one.version
        champions: Any = query("SELECT use_case, version FROM champions").fetchall()
        stands: dict[str, int] = dict(champions)
        for use_case in sorted(decided.keys() | stands.keys()):
            a, b = stands.get(use_case), decided.get(use_case)
            if a != b:
                return f"the champion of {use_case} is version {a}, the ledger decided for {b}"
        return ""

    def _decide(
        self,
        action: Action,
        version: Version,
        previous: int | None,
        reason: str,
        evidence: Sequence[Mapping[str, Any]],
        rule: str,
        by: str,
    ) -> None:
        number, before = 0, chain.START
        for row in self._database.execute(
            "SELECT id, hash FROM decisions ORDER BY id DESC LIMIT 1"
        ):
            number, before = row
        line = {
            "id": number + 1,
            "decided_utc": clock.stamp(),
            "use_case": version.use_case,
            "action": action,
            "version": version.version,
            "previous": previous,
            "reason": reason,
            "evidence": json.dumps(list(evidence), allow_nan=False),
            "decided_by": by,
            "rule": rule,
        }
        columns, places = ", ".join(line), ", ".join("?" * len(line))
        self._database.execute(
            f"INSERT INTO decisions ({columns}, hash) VALUES ({places}, ?)",  # noqa: S608  names
            (*line.values(), chain.link(before, line)),
        )


def _decision(line: Mapping[str, Any], stored: str) -> Decision:
    try:
        evidence = json.loads(line["evidence"])
    except (ValueError, TypeError) as error:
        raise DataError(
            f"line {line['id']} of the ledger cannot be read: its evidence is not JSON ({error})",
            "see what else was changed with: mlops ledger verify; then restore it from a copy",
        ) from None
    return Decision(**{**line, "evidence": evidence}, hash=stored)

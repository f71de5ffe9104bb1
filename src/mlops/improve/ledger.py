"""The state database: which versions exist, who is champion, and every decision about it.

One row decides who is champion, and it changes only by compare-and-swap: "make mine the champion
if the champion is still X". The registry's alias mirrors that row and is never asked.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import apsw

from mlops import clock
from mlops.database import connect, may_be_written, migrate, transaction
from mlops.errors import ChampionMovedError, MlopsError, UsageError

UNTRACKED = "pending-"
"""How the id of a run begins that is not in the tracking store yet."""

MIGRATIONS = (
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
    """One line of the ledger. `evidence` is what the gates measured."""

    decided_utc: str
    use_case: str
    action: str
    version: int
    previous: int | None
    reason: str
    evidence: list[dict[str, Any]]


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

    def register(self, version: Version) -> None:
        """Record a version; recording the same one again changes nothing."""
        with transaction(self._database):
            self._database.execute(
                "INSERT INTO versions VALUES (?, ?, ?, ?, ?, ?)"
                " ON CONFLICT (use_case, version) DO NOTHING",
                dataclasses.astuple(version),
            )

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
        evidence: list[Mapping[str, Any]],
    ) -> None:
        """Make `version` the champion if the champion is still `expected`, and write down why.

        Raises `ChampionMovedError` and changes nothing if another promotion came first.
        """
        now = clock.stamp()
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
                (version.use_case, version.version, now),
            )
            self._decide(now, "promote", version, current, reason, evidence)

    def refuse(
        self,
        version: Version,
        *,
        previous: int | None,
        reason: str,
        evidence: list[Mapping[str, Any]],
    ) -> None:
        """Write down that a gate kept `version` from becoming champion."""
        with transaction(self._database):
            self._decide(clock.stamp(), "keep", version, previous, reason, evidence)

    def decisions(self, use_case: str) -> list[Decision]:
        """Return the decisions about a use case, oldest first."""
        rows = self._database.execute(
            "SELECT decided_utc, use_case, action, version, previous, reason, evidence"
            " FROM decisions WHERE use_case = ? ORDER BY id",
            (use_case,),
        )
        return [_decision(row) for row in rows]

    def _decide(
        self,
        now: str,
        action: str,
        version: Version,
        previous: int | None,
        reason: str,
        evidence: list[Mapping[str, Any]],
    ) -> None:
        self._database.execute(
            "INSERT INTO decisions"
            " (decided_utc, use_case, action, version, previous, reason, evidence)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                now,
                version.use_case,
                action,
                version.version,
                previous,
                reason,
                json.dumps(evidence, allow_nan=False),
            ),
        )


def _decision(row: Any) -> Decision:
    *columns, evidence = row
    return Decision(*[*columns, json.loads(evidence)])

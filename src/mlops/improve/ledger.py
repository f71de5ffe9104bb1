"""The state database: which versions exist, who is champion, and every decision about it.

One row decides who is champion, and it changes only by compare-and-swap: "make mine the champion
if the champion is still X". The registry's alias mirrors that row and is never asked. Other
versions answer beside it under aliases, or in an experiment (`experiments.py`). Whatever changes
who answers is a line of the ledger (`decisions.py`), written in the same transaction.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import apsw

from mlops import clock
from mlops.database import Database, Migration, connect, may_be_written, migrate, transaction
from mlops.errors import ChampionMovedError, MlopsError, UsageError
from mlops.improve import chain, decisions, experiments
from mlops.improve.decisions import KEPT, Action, Decision, chain_decisions, decide
from mlops.improve.experiments import Experiments

UNTRACKED = "pending-"
"""How the id of a run begins that is not in the tracking store yet."""

FALLBACK = "fallback"
"""The alias of the version that answers where another one fails."""
ALIAS = re.compile(r"[a-z][a-z0-9_-]{0,31}")
RESERVED = ("champion", "challenger")
"""What names a version without being an alias."""

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
    ("m002_chain", chain_decisions),
    (
        "m003_experiments_aliases",
        (
            *experiments.TABLES,
            """CREATE TABLE aliases (
                use_case TEXT NOT NULL,
                alias TEXT NOT NULL,
                version INTEGER NOT NULL,
                PRIMARY KEY (use_case, alias),
                FOREIGN KEY (use_case, version) REFERENCES versions (use_case, version))""",
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


def check_alias(alias: str) -> None:
    """Raise `UsageError` for a name that cannot stand in a path or is reserved."""
    if not ALIAS.fullmatch(alias) or alias in RESERVED:
        raise UsageError(
            f"{alias!r} cannot be an alias",
            "begin with a letter, then a-z, 0-9, - or _, at most 32 in all; not "
            f"{' or '.join(RESERVED)}",
        )


class Ledger(Database):
    """The state database, open. One thread at a time.

    Where it cannot be written, as in an image, it is read as it is.

    Raises `MlopsError` if it cannot be opened, `DataError` if a newer version made it.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._database = connect(path, read_only=not may_be_written(path))
            migrate(self._database, MIGRATIONS)
        except apsw.Error as error:
            raise MlopsError(
                f"the state database {path} cannot be used: {error}",
                "end what keeps it locked, or restore it from a copy",
            ) from error
        self.experiments = Experiments(self._database)

    def last_line(self) -> int:
        """Return the number of the last line, 0 of none: while it stays nothing was decided."""
        number: Any = self._database.execute("SELECT ifnull(max(id), 0) FROM decisions").fetchone()
        return int(number[0])

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
        alias: str = "",
    ) -> None:
        """Make `version` the champion if the champion is still `expected`, and write down why.

        A product also takes its `alias`. Raises `ChampionMovedError` and changes nothing if another
        promotion came first.
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
            self.experiments.end_by_promotion(
                version.use_case, version.version, reason, rule=rule, by=by
            )
            if alias and self.aliases(version.use_case).get(alias) != version.version:
                self._name(version, alias, reason, by)

    def aliases(self, use_case: str) -> dict[str, int]:
        """Return the versions that answer under a name of their own, by that name."""
        query = "SELECT alias, version FROM aliases WHERE use_case = ? ORDER BY alias"
        found: Any = self._database.execute(query, (use_case,))
        return dict(found)

    def set_alias(
        self,
        version: Version,
        alias: str,
        *,
        reason: str = "",
        evidence: Sequence[Mapping[str, Any]] = (),
        rule: str = "",
        by: str = "",
    ) -> None:
        """Let a version answer under a name of its own too; the name may have been another's.

        Raises `UsageError` for a name that cannot stand in a path or is reserved.
        """
        with transaction(self._database):
            self._name(version, alias, reason, by, evidence, rule)

    def _name(
        self,
        version: Version,
        alias: str,
        reason: str,
        by: str,
        evidence: Sequence[Mapping[str, Any]] = (),
        rule: str = "",
    ) -> None:
        check_alias(alias)
        before = self.aliases(version.use_case).get(alias)
        self._database.execute(
            "INSERT INTO aliases VALUES (?, ?, ?) ON CONFLICT (use_case, alias)"
            " DO UPDATE SET version = excluded.version",
            (version.use_case, alias, version.version),
        )
        self._decide("alias", version, before, reason, [{"alias": alias}, *evidence], rule, by)

    def remove_alias(self, use_case: str, alias: str, *, reason: str = "", by: str = "") -> None:
        """Let nobody answer under this name any more. Raises `UsageError` if nobody did."""
        with transaction(self._database):
            known = self.aliases(use_case)
            if alias not in known:
                raise UsageError(
                    f"{use_case} has no alias {alias} (there are: {', '.join(known) or 'none'})",
                    f"list them with: mlops alias {use_case}",
                )
            self._database.execute(
                "DELETE FROM aliases WHERE use_case = ? AND alias = ?", (use_case, alias)
            )
            named = [{"alias": alias}]
            decide(self._database, "alias", use_case, 0, known[alias], reason, named, "", by)

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
        with transaction(self._database):
            decide(self._database, action, use_case, version, previous, reason, evidence, rule, by)

    def decisions(
        self, use_case: str | None = None, *, before: int | None = None
    ) -> list[Decision]:
        """Return the decisions about a use case, or all, oldest first; those before a line.

        Raises `DataError` for a line that somebody made unreadable.
        """
        return [
            decisions.read(line, stored)
            for line, stored in decisions.lines(self._database)
            if use_case in (None, line["use_case"]) and (before is None or line["id"] < before)
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

    @contextlib.contextmanager
    def at_one_moment(self) -> Iterator[None]:
        """Read one state of all, whoever writes meanwhile."""
        with self._database:
            yield

    def verify(self, expect: str = "") -> chain.Verification:
        """Follow the chain from the first line to the last, and hold the champions against it.

        `expect` is the hash of a line, or its beginning, that was noted elsewhere.
        """
        with self.at_one_moment():
            found = chain.check(decisions.lines(self._database), expect)
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
        decided = self._decided()
        stands: dict[Any, Any] = {}
        for use_case, version in query("SELECT use_case, version FROM champions"):
            stands[use_case, "champion"] = version
        for use_case, alias, version in query("SELECT use_case, alias, version FROM aliases"):
            stands[use_case, f"alias {alias}"] = version
        for experiment in self.experiments.all():
            if experiment.ended_utc is None:
                stands[experiment.use_case, "challenger"] = experiment.challenger
                stands[experiment.use_case, "challenger's share"] = experiment.share
        for use_case, what in sorted(decided.keys() | stands.keys()):
            a, b = stands.get((use_case, what)), decided.get((use_case, what))
            if a != b:
                of = "" if what.endswith("share") else "version "
                return f"the {what} of {use_case} is {of}{a}, the ledger decided for {b}"
        return ""

    def _decided(self) -> dict[tuple[str, str], float]:
        """Return what stands by the ledger's lines: by use case and name a version, or a share."""
        decided: dict[tuple[str, str], float] = {}
        for one in self.decisions():
            name = one.use_case
            if one.action in ("promote", "rollback"):
                decided[name, "champion"] = one.version
            elif one.action == "alias":
                decided[name, f"alias {one.evidence[0]['alias']}"] = one.version
                if not one.version:
                    del decided[name, f"alias {one.evidence[0]['alias']}"]
            elif one.action in ("shadow", "ab", "share"):
                decided[name, "challenger"] = one.version
                decided[name, "challenger's share"] = one.evidence[0]["share"]
            elif one.action == "end":
                decided.pop((name, "challenger"), None)
                decided.pop((name, "challenger's share"), None)
        return decided

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
        name, number = version.use_case, version.version
        decide(self._database, action, name, number, previous, reason, evidence, rule, by)

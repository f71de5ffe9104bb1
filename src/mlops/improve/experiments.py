"""Experiments: a challenger beside the champion, in its shadow or for a share of the clients.

A use case has at most one that is open. Each change of one is a line of the ledger, written in the
same transaction; a promotion or a rollback ends the one that is open (`Ledger.promote`).
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import apsw

from mlops import clock
from mlops.database import transaction
from mlops.errors import NotTrainedError, UsageError
from mlops.improve.decisions import decide

Mode = Literal["shadow", "ab"]
Outcome = Literal["promoted", "kept", "stopped"]

TABLES = (
    """CREATE TABLE experiments (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        use_case TEXT NOT NULL,
        mode TEXT NOT NULL CHECK (mode IN ('shadow', 'ab')),
        champion INTEGER NOT NULL,
        challenger INTEGER NOT NULL,
        salt TEXT NOT NULL,
        alpha REAL NOT NULL,
        auto INTEGER NOT NULL,
        started_utc TEXT NOT NULL,
        ended_utc TEXT,
        outcome TEXT CHECK (outcome IN ('promoted', 'kept', 'stopped')),
        FOREIGN KEY (use_case, champion) REFERENCES versions (use_case, version),
        FOREIGN KEY (use_case, challenger) REFERENCES versions (use_case, version))""",
    "CREATE UNIQUE INDEX one_open_experiment ON experiments (use_case) WHERE ended_utc IS NULL",
    """CREATE TABLE experiment_shares (
        experiment INTEGER NOT NULL REFERENCES experiments (id),
        since_utc TEXT NOT NULL,
        share REAL NOT NULL)""",
)

COLUMNS = (
    "id, use_case, mode, champion, challenger, salt, alpha, auto, started_utc, ended_utc, outcome"
)


@dataclasses.dataclass(frozen=True, slots=True)
class Experiment:
    """A challenger held against the champion of its time.

    `salt` divides the clients; `alpha` is the probability of a false verdict that is allowed;
    `auto` lets the verdict decide. `ended_utc` and `outcome` are None while it is open. `shares`
    are the shares of clients that the challenger answered, each with the moment since when; 0 in
    shadow.
    """

    id: int
    use_case: str
    mode: Mode
    champion: int
    challenger: int
    salt: str
    alpha: float
    auto: bool
    started_utc: str
    ended_utc: str | None
    outcome: Outcome | None
    shares: tuple[tuple[str, float], ...]

    @property
    def share(self) -> float:
        return self.shares[-1][1]

    def terms(self) -> dict[str, Any]:
        """Return what the ledger keeps of it in each line."""
        names = ("mode", "share", "alpha", "auto", "salt")
        return {"experiment": self.id, **{name: getattr(self, name) for name in names}}


class Experiments:
    """The experiments in a state database that `Ledger` has opened."""

    def __init__(self, database: apsw.Connection) -> None:
        self._database = database

    def open(self, use_case: str) -> Experiment | None:
        """Return the one that is under way."""
        found = self._read("use_case = ? AND ended_utc IS NULL", use_case)
        return found[0] if found else None

    def all(self, use_case: str | None = None) -> list[Experiment]:
        """Return all there were, of one use case or of any, oldest first."""
        return self._read("use_case = ?", use_case) if use_case else self._read("TRUE")

    def begin(
        self,
        use_case: str,
        mode: Mode,
        challenger: int,
        *,
        share: float = 0.0,
        alpha: float = 0.05,
        auto: bool = False,
        reason: str = "",
        by: str = "",
    ) -> Experiment:
        """Hold a version against the champion of now; `share` is that of an A/B, 0 in shadow.

        Raises `UsageError` if one is open, the version is champion or unknown, or a number is out
        of its limits; `NotTrainedError` without a champion.
        """
        _check_share(mode, share)
        if not 0 < alpha < 1:
            raise UsageError(f"alpha is {alpha:g}", "give a probability above 0 and below 1")
        with transaction(self._database):
            champion = self._champion(use_case, challenger)
            if (other := self.open(use_case)) is not None:
                raise UsageError(
                    f"{use_case}: version {other.challenger} is held against version "
                    f"{other.champion} already",
                    f"end that one with: mlops experiment stop {use_case}",
                )
            now = clock.stamp()
            self._database.execute(
                "INSERT INTO experiments"
                " (use_case, mode, champion, challenger, salt, alpha, auto, started_utc)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (use_case, mode, champion, challenger, secrets.token_hex(8), alpha, auto, now),
            )
            number = self._database.last_insert_rowid()
            self._add_share(number, now, share)
            return self._write_down(number, mode, reason, by=by)

    def set_share(self, experiment_id: int, share: float, reason: str = "", by: str = "") -> None:
        """Let the challenger of an A/B answer another share of the clients from now on."""
        with transaction(self._database):
            experiment = self._still_open(experiment_id)
            _check_share(experiment.mode, share)
            self._add_share(experiment_id, clock.stamp(), share)
            self._write_down(experiment_id, "share", reason, by=by)

    def end(
        self,
        experiment_id: int,
        outcome: Literal["kept", "stopped"],
        reason: str = "",
        evidence: Sequence[Mapping[str, Any]] = (),
        rule: str = "",
        by: str = "",
    ) -> None:
        """End it without a promotion: the champion was 'kept' by its verdict, or it 'stopped'."""
        with transaction(self._database):
            self._still_open(experiment_id)
            self._end(experiment_id, outcome, reason, evidence, rule, by)

    def end_by_promotion(
        self, use_case: str, version: int, reason: str, *, rule: str, by: str
    ) -> None:
        """End the open one, if there is one, in the transaction that makes `version` champion."""
        experiment = self.open(use_case)
        if experiment is not None:
            outcome: Outcome = "promoted" if version == experiment.challenger else "stopped"
            says = f"{outcome}: version {version} became champion"
            self._end(experiment.id, outcome, f"{says}: {reason}" if reason else says, (), rule, by)

    def _end(
        self,
        number: int,
        outcome: Outcome,
        reason: str,
        evidence: Sequence[Mapping[str, Any]],
        rule: str,
        by: str,
    ) -> None:
        self._database.execute(
            "UPDATE experiments SET ended_utc = ?, outcome = ? WHERE id = ?",
            (clock.stamp(), outcome, number),
        )
        self._write_down(number, "end", reason, evidence, rule, by)

    def _champion(self, use_case: str, challenger: int) -> int:
        """Return the champion that `challenger` may be held against."""
        query = "SELECT version FROM versions WHERE use_case = ? ORDER BY version"
        versions = [number for (number,) in self._database.execute(query, (use_case,))]
        if challenger not in versions:
            known = ", ".join(map(str, versions)) or "none yet"
            raise UsageError(
                f"{use_case} has no version {challenger} (registered: {known})",
                f"list them with: mlops show {use_case}",
            )
        for (champion,) in self._database.execute(
            "SELECT version FROM champions WHERE use_case = ?", (use_case,)
        ):
            if champion == challenger:
                raise UsageError(
                    f"{use_case}: version {challenger} is the champion itself",
                    f"choose another; list them with: mlops show {use_case}",
                )
            return int(champion)
        raise NotTrainedError(
            f"{use_case} has no champion to hold version {challenger} against",
            f"promote one with: mlops promote {use_case}",
        )

    def _still_open(self, experiment_id: int) -> Experiment:
        found = self._read("id = ?", experiment_id)
        if not found or found[0].ended_utc is not None:
            raise UsageError(
                f"experiment {experiment_id} is not open (any more)",
                "see what became of it with: mlops ledger",
            )
        return found[0]

    def _add_share(self, experiment_id: int, since: str, share: float) -> None:
        self._database.execute(
            "INSERT INTO experiment_shares VALUES (?, ?, ?)", (experiment_id, since, share)
        )

    def _write_down(
        self,
        experiment_id: int,
        action: Literal["shadow", "ab", "share", "end"],
        reason: str,
        evidence: Sequence[Mapping[str, Any]] = (),
        rule: str = "",
        by: str = "",
    ) -> Experiment:
        [experiment] = self._read("id = ?", experiment_id)
        terms = experiment.terms()
        if action == "end":
            terms["outcome"] = experiment.outcome
        decide(
            self._database,
            action,
            experiment.use_case,
            experiment.challenger,
            experiment.champion,
            reason,
            [terms, *evidence],
            rule,
            by,
        )
        return experiment

    def _read(self, where: str, *values: str | int) -> list[Experiment]:
        query = f"SELECT {COLUMNS} FROM experiments WHERE {where} ORDER BY id"  # noqa: S608  ours
        rows: list[Any] = self._database.execute(query, values).fetchall()
        return [
            Experiment(*row[:7], bool(row[7]), *row[8:], self._shares(row[0]))  # type: ignore[call-arg]
            for row in rows
        ]

    def _shares(self, experiment_id: int) -> tuple[tuple[str, float], ...]:
        query = "SELECT since_utc, share FROM experiment_shares WHERE experiment = ? ORDER BY rowid"
        found: Any = self._database.execute(query, (experiment_id,))
        return tuple(found)


def _check_share(mode: Mode, share: float) -> None:
    if mode == "shadow" and share != 0:
        raise UsageError(
            f"in its shadow nobody is answered by the challenger, but the share is {share:g}",
            "leave it out, or begin an A/B with: mlops experiment ab",
        )
    if mode == "ab" and not 0 < share < 1:
        raise UsageError(
            f"the share of the challenger is {share:g}",
            "give a share of the clients above 0 and below 1",
        )

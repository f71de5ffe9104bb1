"""Retrain: look for a reason, write it down, learn from what has come, ask the gates.

    look      the data file, its growing source, the log's truths, findings, the ledger
    reason    by hand, or the first trigger that has one (`improve/triggers.py`)
    write     "retrain" in the ledger, before any work
    train     every candidate, as `mlops train` does, from the grown table; where the champion is
              a product of a profile, that profile
    gate      against the champion, on rows that neither has learnt from
    try       if told so (`RETRAIN_THEN`): in the shadow or an A/B, whose verdict then decides
    write     "retrained" in the ledger: promoted, on trial, kept, registered, unchanged or failed

One process at a time (`models/retraining/<use case>.lock`). One that dies leaves its "retrain" open
and its finished candidates in `models/retraining/<use case>/<recipe>/`: the next one says so, and
takes them over if data, code and libraries are still the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import shutil
from pathlib import Path
from typing import Any, Final, Literal

import pandas as pd

from mlops import clock
from mlops.build.data import sweep
from mlops.build.difference import difference
from mlops.errors import BundleError, ChampionMovedError, GateError, UsageError
from mlops.improve.decisions import Decision
from mlops.improve.ledger import Ledger, Version
from mlops.improve.triggers import Known, Reason, ask
from mlops.loop.alone import alone_at
from mlops.loop.experiment import begin
from mlops.loop.finished import Finished
from mlops.loop.gently import gently
from mlops.loop.lesson import Gathered, gather, kept_table
from mlops.loop.prediction_log import has_log, open_log
from mlops.loop.products import settle
from mlops.loop.promote import admit, promote
from mlops.loop.recipe import recipe
from mlops.loop.report import Report, Silent
from mlops.loop.train import Training, train
from mlops.package.bundle import open_bundle
from mlops.records import Finding
from mlops.settings import Settings, read_settings
from mlops.track.runs import user
from mlops.usecase import Retraining, UseCase
from mlops.usecases import find

BEGUN: Final = "retrain"
ENDED: Final = "retrained"
"""What the ledger calls the two lines of a retraining."""

CHANGES: Final = ("promote", "rollback")
"""What it calls those by which the champion changes."""

MOST_TOLD = 500
"""Characters of a reason that a run is told of; the ledger has all of it."""

TRIAL_SHARE = 0.1
"""Of the clients, where what was retrained is tried in an A/B. It can be changed while it lasts."""

TOLD: Final = {"shadow": "in the shadow", "ab": f"for {TRIAL_SHARE:.0%} of the clients"}

Outcome = Literal["promoted", "on trial", "kept", "registered", "unchanged", "not needed"]


@dataclasses.dataclass(frozen=True, slots=True)
class Rows:
    """What was learnt from, in rows. `new` are those that no training has learnt from before."""

    reference: int
    came: dict[str, int]
    known: int
    broken: int
    new: int
    refused: dict[str, str]
    """Files that were left out, and why."""


@dataclasses.dataclass(frozen=True, slots=True)
class Retrained:
    """What came of it. Without need, only `says` and `rows` tell something."""

    use_case: str
    outcome: Outcome
    says: str
    reason: Reason | None
    rows: Rows
    policy: str
    data_fingerprint: str
    difference: str
    version: int | None = None
    champion: int | None = None
    training: Training | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class _Look:
    """All that was looked at before anything was done."""

    use_case: UseCase
    rules: Retraining
    gathered: Gathered
    champion: Version | None
    known: Known
    last_table: pd.DataFrame
    rows: Rows
    profile: str
    product: str
    """The profile that the champion was trained in, and which of its products it is; "" if none."""
    attempts: frozenset[str]
    """The recipes of the champion and of the last retraining that ended."""
    died: tuple[int, ...]
    """The processes of retrainings that never ended."""


def retrain(
    name: str,
    *,
    if_needed: bool = False,
    reason: str = "",
    promote_winner: bool = True,
    only: tuple[str, ...] = (),
    gentle: bool = False,
    settings: Settings | None = None,
    report: Report | None = None,
) -> Retrained:
    """Train a use case again on the data file and all that has come since, and ask the gates.

    `if_needed` does so for a reason only, and not if it would only repeat the last training; else
    it is done by hand, with the caller's `reason`. `gentle` leaves processors and disks to others
    from where the work begins, for the rest of this process.

    Raises `BusyError` if another process is at it, and what `train` raises, which is written down.
    """
    settings = settings or read_settings()
    report = report or Silent()
    use_case = find(name)
    with alone_at(settings.retraining_folder / f"{name}.lock", f"{name} is being retrained"):
        look = _look(use_case, settings)
        for process in look.died:  # we have their lock
            sweep(settings.models, process)
            sweep(settings.data, process)
        for file, says in look.rows.refused.items():
            report.say(f"{name}: {file} is refused, and the rest goes on: {says}")
        why = Reason("by hand", reason.strip() or "no reason was given")
        if if_needed:
            answer = ask(look.known, look.rules)
            if answer.reason is None:
                return _result(look, None, "not needed", answer.says)
            why = answer.reason
        report.say(f"{name}: retraining, {why.trigger}: {why.says}")
        if gentle:
            gently()
        with Ledger(settings.state_database) as ledger:
            _begin(ledger, look, why)
            try:
                result = _work(look, why, if_needed, promote_winner, only, settings, report)
            except Exception as error:
                _end(ledger, look, "failed", f"{type(error).__name__}: {error}", only)
                raise
            _end(ledger, look, result.outcome, result.says, only, result.version)
        shutil.rmtree(settings.retraining_folder / name, ignore_errors=True)
    return result


def _work(
    look: _Look,
    why: Reason,
    automatic: bool,
    promote_winner: bool,
    only: tuple[str, ...],
    settings: Settings,
    report: Report,
) -> Retrained:
    use_case, lesson = look.use_case, look.gathered.lesson
    name, champion = use_case.name, look.champion
    made = _recipe(look)
    profile = "" if only else look.profile
    if automatic and _attempt(made, only, profile) in look.attempts:
        return _result(
            look,
            why,
            "unchanged",
            "training would only repeat the last one: no row, code or library is new — "
            f"give it rows in data/{name}.d, or truths of predictions",
        )
    changed = difference(look.last_table, lesson.table.frame, use_case.key).summary
    report.say(f"{name}: {len(lesson.table.frame):,} rows; since the last training: {changed}")
    told = {"trigger": why.trigger, "reason": why.says[:MOST_TOLD], "data_difference": changed}
    folder = settings.retraining_folder / name
    _forget_others(folder, made)
    training = train(
        name,
        only=only,
        profile=profile,
        lesson=dataclasses.replace(lesson, told=told),
        finished=Finished(folder / made),
        settings=settings,
        report=report,
    )
    version = training.registered[0]
    refused: dict[str, str] = {}
    passed = f"retraining, {why.trigger}: the gates let it pass"
    if profile:
        settings = settings.model_copy(update={"champion_product": look.product})
        number = training.products[look.product]
        version = next(one for one in training.registered if one.version == number)
        if promote_winner:  # each under its alias; who is champion is decided below
            refused = settle(
                name,
                profile,
                training.products,
                champion=False,
                reason=passed,
                settings=settings,
                report=report,
            ).refused
    outcome: Outcome = "promoted"
    says = f"version {version.version} is champion"
    if champion is not None and version.version == champion.version:
        outcome, says = "unchanged", f"training gave version {version.version} again"
    elif not promote_winner:
        outcome, says = "registered", f"version {version.version} is registered, not promoted"
    else:
        try:
            if champion is None or settings.retrain_then == "promote":
                promote(
                    name,
                    version.version,
                    automatic=True,
                    reason=passed,
                    settings=settings,
                    report=report,
                )
            else:
                mode = settings.retrain_then
                admit(name, version.version, settings=settings)
                share = TRIAL_SHARE if mode == "ab" else 0.0
                number = version.version
                begin(name, mode, number, share=share, auto=True, reason=passed, settings=settings)
                outcome = "on trial"
                says = f"version {number} is held against version {champion.version}: {TOLD[mode]}"
        except (GateError, ChampionMovedError) as error:
            outcome, says = "kept", error.message
        except UsageError as error:  # another experiment is open
            outcome, says = "registered", error.message
    result = _result(look, why, outcome, "; ".join([says, *refused.values()]))
    return dataclasses.replace(
        result,
        champion=version.version if outcome == "promoted" else result.champion,
        difference=changed,
        version=version.version,
        training=training,
    )


# --- looking


def _look(use_case: UseCase, settings: Settings) -> _Look:
    rules = settings.retraining(use_case.retraining)
    gathered = gather(use_case, rules, settings)
    with Ledger(settings.state_database) as ledger:
        champion = ledger.champion(use_case.name)
        decisions = ledger.decisions(use_case.name)
    sealed, made = _of_champion(champion, settings)
    product = use_case.product_of(made)
    profile = str(made["profile"]) if product else ""
    ended = [one for one in decisions if one.action == ENDED]
    last = ended[-1].evidence[0] if ended else {}
    frame = gathered.lesson.table.frame
    # The last one that was learnt from; a retraining that failed learnt nothing.
    learnt_from = [one.evidence[0].get("data_fingerprint", "") for one in reversed(ended)]
    tables = (
        kept_table(fingerprint, use_case, settings)
        for fingerprint in (*learnt_from[:1], made.get("data_fingerprint", ""))
        if fingerprint
    )
    reference = frame.head(len(frame) - sum(gathered.taken.values()))
    last_table = next((table for table in tables if table is not None), reference)
    rows = Rows(
        reference=len(reference),
        came=gathered.taken,
        known=gathered.known,
        broken=gathered.broken,
        new=_new_rows(use_case, last_table, frame),
        refused={one.name: one.says for one in gathered.refused},
    )
    return _Look(
        use_case,
        rules,
        gathered,
        champion,
        _known(champion, sealed, decisions, _findings(use_case, settings), rows.new),
        last_table,
        rows,
        profile,
        product,
        frozenset({_attempt(made.get("recipe", ""), (), profile), last.get("attempt", "")} - {""}),
        tuple(int(one.evidence[0]["pid"]) for one in _open(decisions)),
    )


def _of_champion(
    champion: Version | None, settings: Settings
) -> tuple[datetime.datetime | None, dict[str, Any]]:
    """Return when the champion was sealed and its training document; of none, nothing."""
    if champion is None:
        return None, {}
    try:
        bundle = open_bundle(settings.bundles / champion.bundle, key=settings.signing_key)
    except BundleError:
        return None, {}
    sealed = bundle.provenance.get("sealed_utc") or champion.registered_utc
    return _moment(str(sealed)), dict(bundle.training)


def _known(
    champion: Version | None,
    sealed: datetime.datetime | None,
    decisions: list[Decision],
    findings: list[Finding],
    new_rows: int,
) -> Known:
    times = {one.action: _moment(one.decided_utc) for one in decisions}
    open_ones = _open(decisions)
    return Known(
        now=clock.utc(),
        champion=champion.version if champion else None,
        trained=sealed,
        promoted=max((times[one] for one in CHANGES if one in times), default=None),
        findings=findings,
        new_rows=new_rows,
        last_began=times.get(BEGUN),
        last_ended=times.get(ENDED),
        died=open_ones[0].reason if open_ones else "",
        deaths=len(open_ones),
    )


def _open(decisions: list[Decision]) -> list[Decision]:
    """Return the retrainings that began after the last one that ended."""
    found: list[Decision] = []
    for one in decisions:
        if one.action == BEGUN:
            found.append(one)
        elif one.action == ENDED:
            found.clear()
    return found


def _findings(use_case: UseCase, settings: Settings) -> list[Finding]:
    if not has_log(use_case, settings):
        return []
    with contextlib.closing(open_log(use_case, settings)) as log:
        return log.findings()


def _new_rows(use_case: UseCase, before: pd.DataFrame, now: pd.DataFrame) -> int:
    """Return how many rows are in a table that were not in another, by fields and target."""
    columns = [*(one.column for one in use_case.features), use_case.target.column]
    both = pd.concat([before[columns], now[columns]], ignore_index=True)
    seen = both.drop_duplicates().index
    return int((seen >= len(before)).sum())


def _moment(text: str) -> datetime.datetime:
    moment = datetime.datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)


# --- writing


def _begin(ledger: Ledger, look: _Look, why: Reason) -> None:
    ledger.write_down(
        BEGUN,
        look.use_case.name,
        version=look.champion.version if look.champion else 0,
        rule=why.trigger,
        by=user(),
        reason=f"{why.trigger}: {why.says}",
        evidence=[
            {
                "trigger": why.trigger,
                "pid": os.getpid(),
                **why.numbers,
                "rows_new": look.rows.new,
                "policy": look.gathered.policy,
                "data_fingerprint": look.gathered.lesson.table.fingerprint,
                "refused": look.rows.refused,
            }
        ],
    )


def _end(
    ledger: Ledger,
    look: _Look,
    outcome: str,
    says: str,
    only: tuple[str, ...],
    version: int | None = None,
) -> None:
    found: dict[str, Any] = {"outcome": outcome}
    if outcome != "failed":  # what failed may be tried again, and has taught nothing
        found["data_fingerprint"] = look.gathered.lesson.table.fingerprint
        found["attempt"] = _attempt(_recipe(look), only, "" if only else look.profile)
    ledger.write_down(
        ENDED,
        look.use_case.name,
        version=version or 0,
        previous=look.champion.version if look.champion else None,
        rule=outcome,
        by=user(),
        reason=f"{outcome}: {says}",
        evidence=[found],
    )


def _recipe(look: _Look) -> str:
    lesson = look.gathered.lesson
    return recipe(lesson.table.fingerprint, str(lesson.stated.get("policy", "")))


def _attempt(made: str, only: tuple[str, ...], profile: str) -> str:
    return " ".join([made, *only, *([f"profile {profile}"] if profile else [])]) if made else ""


def _forget_others(folder: Path, made: str) -> None:
    """Remove what an attempt finished that died on other data or code."""
    for other in folder.glob("*"):
        if other.name != made:
            shutil.rmtree(other, ignore_errors=True)


def _result(look: _Look, why: Reason | None, outcome: Outcome, says: str) -> Retrained:
    return Retrained(
        use_case=look.use_case.name,
        outcome=outcome,
        says=says,
        reason=why,
        rows=look.rows,
        policy=look.gathered.policy,
        data_fingerprint=look.gathered.lesson.table.fingerprint,
        difference="",
        champion=look.champion.version if look.champion else None,
    )

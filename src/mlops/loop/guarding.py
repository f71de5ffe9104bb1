"""Guarding: a server watches each new champion, and goes back to the version before if it is bad.

For `ROLLBACK_WATCH_DAYS` after a promotion, in a thread of its own:

    each second    errors, golden rows, latency, quality
    at once        errors, when a run fails

What is bad is judged in `improve/guard.py`. Of several processes each looks for itself, and the
compare-and-swap of the ledger lets one of them go back. A rollback begins no probation, so there is
no to and fro; the version that was rolled back becomes champion again by hand only.
"""

from __future__ import annotations

import dataclasses
import logging
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

import apsw
import numpy as np

from mlops import clock
from mlops.deploy.predictor import Champion
from mlops.deploy.service import Service
from mlops.errors import ChampionMovedError, LogUnavailableError, MlopsError
from mlops.improve import guard
from mlops.improve.guard import KIND, Evidence
from mlops.improve.ledger import Ledger, Version
from mlops.loop.losses import fields_of, losses_of, numbers_of
from mlops.monitor.findings import of_version
from mlops.monitor.log import PredictionLog
from mlops.records import Finding
from mlops.settings import Settings

SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_BETWEEN_FAILURES = 0.1
"""How soon a look may follow another while runs fail."""
SECONDS_OF_ROUNDS = 1.0
MOST_ROUNDS = 40
"""Rounds of latency in one look: one, unless that is slow."""
KEPT_ROUNDS = 101
TRIED_ROWS = 8
MOST_TRUTHS = 20_000
"""After so many a champion that was not found worse in its losses is taken to be sound in them."""
SECONDS_BETWEEN_RECORDS = 600.0
SECONDS_TO_MIRROR = 300.0

log = logging.getLogger("uvicorn.error")

Rehearse = Callable[[Champion, dict[str, Any]], None]
"""Lets a champion answer its golden rows by the way of a request; raises what is wrong."""


@dataclasses.dataclass
class _Probation:
    """A champion that is being watched, and all that was seen of it so far."""

    champion: Champion
    before: Champion | None
    goes_back_to: Version | None
    since: str
    until: float
    why_alone: str
    """Why there is no version before; empty if there is one."""
    failed_before: Counter[int]
    runs_before: int
    errors: Evidence = dataclasses.field(default_factory=lambda: Evidence(guard.ALLOWED_ERRORS))
    slower: Evidence = dataclasses.field(default_factory=lambda: Evidence(guard.EITHER))
    failed: int = 0
    runs: int = 0
    rounds: int = 0
    times: deque[tuple[float, float]] = dataclasses.field(
        default_factory=lambda: deque(maxlen=KEPT_ROUNDS)
    )
    truths: list[tuple[float, float]] = dataclasses.field(default_factory=list)
    """Losses of the champion and of the version before, in the order of their truths."""
    judged: set[str] = dataclasses.field(default_factory=set)
    newest_truth: str = ""
    found: dict[str, Finding] = dataclasses.field(default_factory=dict)


class Guard:
    """Guards one use case. `failed` may be called from any thread, the rest from one."""

    def __init__(
        self,
        service: Service,
        prediction_log: PredictionLog,
        rehearse: Rehearse,
        settings: Settings,
    ) -> None:
        self.use_case = service.use_case
        self.woken = threading.Event()
        self._service = service
        self._log = prediction_log
        self._rehearse = rehearse
        self._settings = settings
        self._ledger: Ledger | None = None
        self._failures: Counter[int] = Counter()
        self._last_error = ""
        self._probation: _Probation | None = None
        self._of: tuple[Champion | None, Version | None] = (None, None)
        self._next_trial = 0.0
        self._recorded: tuple[Any, ...] = ()
        self._next_record = 0.0
        self._said = ""

    def failed(self, version: int, error: BaseException, _: int) -> None:
        """Take note of a run of a model that failed, and look at once."""
        self._failures[version] += 1
        self._last_error = f"{type(error).__name__}: {error}"[:100]
        self.woken.set()

    def look(self) -> None:
        """Look at the champion if it is on probation. Says in the server's log what fails."""
        try:
            self._look()
        except Exception as error:
            # Log or state database may be away for a moment; answering goes on, so does this.
            if str(error) != self._said:
                log.exception("%s: the champion could not be guarded", self.use_case.name)
            self._said = str(error)
        else:
            self._said = ""

    def close(self) -> None:
        if self._ledger is not None:
            self._ledger.close()

    def _look(self) -> None:
        if self._ledger is None:
            self._ledger = Ledger(self._settings.state_database)
        now = (self._service.champion, self._ledger.champion(self.use_case.name))
        if now != self._of:
            self._probation = self._begin(self._ledger, *now)
            self._of = now
        probation = self._probation
        if probation is None:
            return
        if clock.unix() > probation.until:
            self._probation = None
            return
        self._count(probation)
        if time.monotonic() >= self._next_trial:
            self._try_out(probation)
            self._next_trial = time.monotonic() + clock.pause(SECONDS_BETWEEN_LOOKS)
        alarms = [one for one in probation.found.values() if one.verdict == "alarm"]
        if not alarms or not self._go_back(self._ledger, probation, alarms[0]):
            self._record(probation.champion.version, list(probation.found.values()))

    def _begin(
        self, ledger: Ledger, champion: Champion | None, named: Version | None
    ) -> _Probation | None:
        """Return the probation of a champion that was promoted not long ago; None of any other."""
        if champion is None or named is None or champion.version != named.version:
            return None  # it was refused, or is only just being opened
        watched = guard.probation(
            ledger.decisions(self.use_case.name), self._settings.rollback_watch_days
        )
        if watched is None or clock.unix() > watched.until:
            return None
        before, version, why_alone = None, None, "there is no version before to go back to"
        if (number := ledger.before(named)) is not None:
            version = ledger.version(self.use_case.name, number)
            try:
                before = self._open(version)
                why_alone = ""
            except MlopsError as error:
                why_alone = f"version {number} before it cannot be opened: {error.message}"
        return _Probation(
            champion,
            before,
            version,
            watched.since,
            watched.until,
            why_alone,
            self._failures.copy(),
            self._service.runs(champion.version),
        )

    def _open(self, version: Version) -> Champion:
        """Return the version before: as a rule the server has it open, for it is the fallback."""
        there = self._service.models().get(str(version.version))
        if there is not None and there.bundle.hash == version.bundle:
            return there
        assert self._service.open is not None
        bundle = self._service.open(version.bundle)
        return Champion(self.use_case, version.version, version.candidate, bundle)

    # -- what is seen ---------------------------------------------------------------------------

    def _count(self, probation: _Probation) -> None:
        """Take in the runs since the last look. One that failed in both versions is nobody's."""
        version = probation.champion.version
        succeeded = self._service.runs(version) - probation.runs_before
        failed = self._failures[version] - probation.failed_before[version]
        if probation.before is not None:
            other = probation.before.version
            both = self._failures[other] - probation.failed_before[other]
            failed = max(0, failed - both)
        runs = succeeded + failed
        probation.errors.add(max(0, failed - probation.failed), max(0, runs - probation.runs))
        probation.failed, probation.runs = failed, runs
        last = self._last_error if failed else ""
        probation.found[guard.ERRORS] = guard.errors(probation.errors, failed, runs, last)

    def _try_out(self, probation: _Probation) -> None:
        """Let the champion answer again: its golden rows, and rows that the log has."""
        try:
            self._rehearse(probation.champion, probation.champion.bundle.golden)
            trouble = ""
        except MlopsError as error:
            trouble = error.message
        except Exception as error:  # noqa: BLE001  a broken model may raise anything
            trouble = f"{type(error).__name__}: {error}"[:300]
        probation.found[guard.GOLDEN] = guard.golden_rows(trouble)
        if probation.before is None:
            for cause in (guard.LATENCY, guard.QUALITY):
                probation.found[cause] = Finding(
                    KIND, cause, "cannot tell", probation.why_alone, {}
                )
            return
        if not trouble:
            self._race(probation, probation.before)
        budget = self.use_case.budget.microseconds / 1e6
        probation.found[guard.LATENCY] = guard.latency(
            probation.slower, probation.times, budget, probation.rounds
        )
        came = self._hold_against_truths(probation, probation.before)
        if came or guard.QUALITY not in probation.found:
            losses = np.array(probation.truths, dtype=float).reshape(-1, 2)
            probation.found[guard.QUALITY] = guard.quality(losses[:, 0], losses[:, 1])

    def _race(self, probation: _Probation, before: Champion) -> None:
        """Let both versions answer the same rows, the newest ones, in turns; more while it is slow.

        So that a busy machine slows down both. Nothing is logged.
        """
        budget = self.use_case.budget.microseconds / 1e6
        newest = self._log.rows(TRIED_ROWS, version=probation.champion.version)
        golden = probation.champion.bundle.golden["fields"]
        rows = fields_of(self.use_case, newest).tolist() if newest else golden
        slower = clear = 0
        ends = time.monotonic() + SECONDS_OF_ROUNDS
        for number in range(MOST_ROUNDS):
            row = rows[number % len(rows)]
            in_turn = (probation.champion, before)[:: 1 if probation.rounds % 2 else -1]
            timed = {one.version: _seconds(one, row) for one in in_turn}
            mine, other = timed[probation.champion.version], timed[before.version]
            probation.rounds += 1
            probation.times.append((mine, other))
            slower += guard.is_slower(mine, other, budget)
            clear += guard.is_slower(mine, other, budget) or guard.is_slower(other, mine, budget)
            if not slower or time.monotonic() > ends:
                break
        probation.slower.add(slower, clear)

    def _hold_against_truths(self, probation: _Probation, before: Champion) -> bool:
        """Take in the truths that came since, with the losses of both versions; were there any?"""
        if len(probation.truths) >= MOST_TRUTHS:
            return False
        version = probation.champion.version
        came = self._log.truths_of(version, probation.since, probation.newest_truth)
        fresh = [one for one in came if one[0].prediction_id not in probation.judged]
        fresh = fresh[: MOST_TRUTHS - len(probation.truths)]
        if not fresh:
            return False
        probation.judged |= {row.prediction_id for row, _, _ in fresh}
        probation.newest_truth = fresh[-1][2]
        rows, truths, _ = zip(*fresh, strict=True)
        other = before.bundle.model.run(fields_of(self.use_case, rows)).prediction
        actual = numbers_of(self.use_case, truths)
        logged = numbers_of(self.use_case, [row.prediction for row in rows])
        mine, its = (losses_of(self.use_case, one, actual) for one in (logged, other))
        probation.truths += zip(mine.tolist(), its.tolist(), strict=True)
        return True

    # -- what is done ---------------------------------------------------------------------------

    def _go_back(self, ledger: Ledger, probation: _Probation, alarm: Finding) -> bool:
        """Make the version before champion again; return whether that, or another change, is done.

        Where it cannot be, the alarm says why.
        """
        name, bad = self.use_case.name, probation.champion.version
        if probation.before is None or probation.goes_back_to is None:
            probation.found[alarm.subject] = alarm._replace(
                says=f"{alarm.says}; {probation.why_alone}"
            )
            return False
        good = probation.goes_back_to
        try:
            self._rehearse(probation.before, probation.before.bundle.golden)
            ledger.promote(
                good,
                expected=bad,
                reason=f"{alarm.subject}: {alarm.says}",
                evidence=[one._asdict() for one in probation.found.values()],
                action="rollback",
                rule=KIND,
                by=KIND,
                alias=self.use_case.product_of(probation.before.bundle.training),
            )
        except ChampionMovedError as error:
            log.info("%s: the guard was not needed: %s", name, error.message)
            return True
        except (MlopsError, apsw.Error) as error:
            what = error.message if isinstance(error, MlopsError) else str(error)
            probation.found[alarm.subject] = alarm._replace(
                says=f"{alarm.says}; version {good.version} could not take over: {what}"
            )
            return False
        says = f"version {bad} was rolled back to version {good.version}: {alarm.says}"
        log.error("%s: %s: %s", name, alarm.subject, says)
        numbers = {**alarm.numbers, "rolled_back_to": good.version}
        self._probation = None
        self._record(bad, [alarm._replace(says=says, numbers=numbers)])
        threading.Thread(
            target=_mirror, args=(name, self._settings), name="mirror", daemon=True
        ).start()
        return True

    def _record(self, version: int, found: Sequence[Finding]) -> None:
        """Keep what was found in the log: when a verdict changes, and now and then."""
        verdicts = (version, *((one.subject, one.verdict) for one in found))
        now = time.monotonic()
        if verdicts == self._recorded and now < self._next_record:
            return
        try:
            self._log.record_findings(of_version(version, found))
        except LogUnavailableError as error:
            log.error("%s: what the guard found was not kept: %s", self.use_case.name, error)
            return
        self._recorded, self._next_record = verdicts, now + SECONDS_BETWEEN_RECORDS


def keep_guarding(guards: Sequence[Guard]) -> Callable[[], None]:
    """Let a thread guard from now on; return what ends that, and waits for the look under way."""
    ending, woken = threading.Event(), threading.Event()
    for one in guards:
        one.woken = woken

    def keep_looking() -> None:
        while not ending.is_set():
            for one in guards:
                one.look()
            ending.wait(SECONDS_BETWEEN_FAILURES)
            woken.wait(clock.pause(SECONDS_BETWEEN_LOOKS))
            woken.clear()
        for one in guards:
            one.close()

    thread = threading.Thread(target=keep_looking, name="guard", daemon=True)
    thread.start()

    def stop() -> None:
        ending.set()
        woken.set()
        thread.join()

    return stop


def _seconds(champion: Champion, row: Sequence[float]) -> float:
    started = time.perf_counter()
    champion.predict([row], ["{}"], [None])
    return time.perf_counter() - started


def _mirror(name: str, settings: Settings) -> None:
    """Have the registry show the champion, in a process of its own: it takes MLflow to do that."""
    if settings.tracks_locally and not (settings.home / "mlflow.db").exists():
        return  # nothing was ever tracked here
    code = "import sys; from mlops.loop.promote import mirror_now; mirror_now(sys.argv[1])"
    try:
        done = subprocess.run(  # noqa: S603  words of ours
            [sys.executable, "-c", code, name],
            env=settings.for_a_process(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS_TO_MIRROR,
            check=False,
        )
        trouble = done.stderr.strip().rpartition("\n")[2] if done.returncode else ""
    except (OSError, subprocess.SubprocessError) as error:
        trouble = str(error)
    if trouble:
        log.warning("%s: the registry does not show the rollback: %s", name, trouble)

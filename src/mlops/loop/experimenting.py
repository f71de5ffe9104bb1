"""Experimenting: what a server does about an open experiment beside answering.

It keeps one process at it (`shadowing.py`), whichever server holds the lock of the log's folder,
and starts another if that dies. It reads what that found; and if the experiment is to decide by
itself, it does as the verdict says: through the gates, as `mlops promote` does, or the end.
"""

from __future__ import annotations

import asyncio
import logging
import math
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Sequence
from typing import Any, NamedTuple, Protocol

from mlops import clock
from mlops.errors import MlopsError
from mlops.improve import guard
from mlops.improve.experiments import Experiment
from mlops.improve.ledger import Ledger
from mlops.improve.running import Trial
from mlops.loop.alone import Lock
from mlops.loop.verdict import KIND, evidence_of
from mlops.loop.workers import ONE_THREAD
from mlops.monitor.log import PredictionLog
from mlops.monitor.shadow import look
from mlops.records import Finding
from mlops.settings import Settings
from mlops.usecase import UseCase

SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_BETWEEN_STARTS = 5.0
MOST_SECONDS_BETWEEN_STARTS = 300.0
SECONDS_TO_END = 10.0
SECONDS_BETWEEN_DECISIONS = 60.0
BY = "experiment"
"""Who ends an experiment that decides by itself."""

log = logging.getLogger("uvicorn.error")


class Promote(Protocol):
    """Promotes a version if `over` is champion. Raises `MlopsError` if that could not be done."""

    def __call__(
        self, use_case: str, version: int, reason: str, *, over: int
    ) -> Awaitable[Any]: ...


class Decision(NamedTuple):
    """What a verdict decides: `evidence` is the verdict, as the ledger keeps it."""

    experiment: Experiment
    outcome: str
    says: str
    evidence: dict[str, Any]


class Keeper:
    """Keeps a process at the experiments of one use case."""

    def __init__(self, use_case: UseCase, prediction_log: PredictionLog, settings: Settings):
        self._use_case = use_case
        self._log = prediction_log
        self._settings = settings
        self._ledger = Ledger(settings.state_database)
        self._leads = Lock(prediction_log.path.with_name("shadow.lock"))
        self._child: subprocess.Popen[bytes] | None = None
        self._started = -math.inf
        self._patience = SECONDS_BETWEEN_STARTS
        self._decided = -math.inf
        self._ended = False
        self._lock = threading.Lock()
        """A step may still be under way in its thread when the server ends."""

    def step(self) -> Decision | None:
        """See that somebody is at the open experiment; return what is to be decided, if this is."""
        with self._lock:
            return self._step()

    def _step(self) -> Decision | None:
        experiment = self._ledger.experiments.open(self._use_case.name)
        if experiment is None:
            self._end()
            return None
        self._ended = False
        if not self._leads.taken():
            return None
        if self._child is None or self._child.poll() is not None:
            self._start()
        elif time.monotonic() > self._started + MOST_SECONDS_BETWEEN_STARTS:
            self._patience = SECONDS_BETWEEN_STARTS
        if not experiment.auto or time.monotonic() < self._decided + SECONDS_BETWEEN_DECISIONS:
            return None
        return self._due(experiment)

    def close(self) -> None:
        with self._lock:
            self._stop()
            self._leads.give_back()
            self._ledger.close()

    async def decide(self, decision: Decision, promote: Promote) -> None:
        """Do as a verdict says. What fails is tried again later."""
        self._decided = time.monotonic()
        experiment, name = decision.experiment, self._use_case.name
        if decision.outcome == "worse":
            await asyncio.to_thread(self._keep_champion, decision, decision.says)
            return
        reason = f"experiment {experiment.id}: {decision.says}"
        try:
            await promote(name, experiment.challenger, reason, over=experiment.champion)
        except MlopsError as error:
            log.error("%s: version %s was to be promoted: %s", name, experiment.challenger, error)
            if await asyncio.to_thread(self._was_refused, experiment):
                says = f"{decision.says}; yet it was not promoted: {error.message}"
                await asyncio.to_thread(self._keep_champion, decision, says)

    def _due(self, experiment: Experiment) -> Decision | None:
        found = look(self._log.path, self._use_case.log_name, experiment.id)
        if found is None:
            return None
        trial = Trial.of_json(found[0].trial)
        if not trial.decides:
            return None
        return Decision(experiment, trial.outcome, trial.says, evidence_of(experiment, trial))

    def _keep_champion(self, decision: Decision, says: str) -> None:
        with Ledger(self._settings.state_database) as ledger:
            ledger.experiments.end(
                decision.experiment.id, "kept", says, [decision.evidence], rule="verdict", by=BY
            )

    def _was_refused(self, experiment: Experiment) -> bool:
        """Whether it is for good that the challenger was not promoted: by a gate, or the guard."""
        with Ledger(self._settings.state_database) as ledger:
            decided = ledger.decisions(self._use_case.name)
        last = (decided[-1].action, decided[-1].version)
        kept = last == ("keep", experiment.challenger)
        return kept or guard.rolled_back(decided, experiment.challenger) is not None

    def _start(self) -> None:
        """Start the process; again and again the later, if it does not live."""
        if time.monotonic() < self._started + self._patience:
            return
        if self._child is not None:
            log.error("%s: the shadow ended (%s)", self._use_case.name, self._child.returncode)
            self._stop()
            self._patience = min(2 * self._patience, MOST_SECONDS_BETWEEN_STARTS)
        self._started = time.monotonic()
        # It holds the lock as well: while it lives, no other server starts one.
        self._child = subprocess.Popen(  # noqa: S603  our own module
            [sys.executable, "-m", "mlops.loop.shadowing", self._use_case.name],
            stdin=subprocess.PIPE,
            pass_fds=(self._leads.descriptor,),
            env={**self._settings.for_a_process(), **ONE_THREAD},
        )

    def _stop(self) -> None:
        """Let the process end after its page, by closing its input."""
        child, self._child = self._child, None
        if child is None:
            return
        assert child.stdin
        child.stdin.close()
        try:
            child.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()

    def _end(self) -> None:
        """Let go of the last experiment, and say once that nothing of it holds any more."""
        if self._ended:
            return
        self._stop()
        self._leads.give_back()
        if any(one.verdict != "ok" or "over" not in one.numbers for one in self._findings()):
            says = "no experiment is under way"
            self._log.record_findings([Finding(KIND, "verdict", "ok", says, {"over": 1})])
        self._ended = True

    def _findings(self) -> list[Finding]:
        return self._log.findings(KIND)


async def keep_experimenting(
    use_cases: Sequence[UseCase],
    logs: Sequence[PredictionLog],
    settings: Settings,
    promote: Promote,
) -> None:
    """Look after experiments until this is cancelled."""
    keepers = [Keeper(*one, settings) for one in zip(use_cases, logs, strict=True)]
    try:
        while True:
            for keeper in keepers:
                try:
                    decision = await asyncio.to_thread(keeper.step)
                    if decision is not None:
                        await keeper.decide(decision, promote)
                except Exception:
                    # The state database or the log may be away for a moment; answering goes on.
                    log.exception("an experiment could not be looked after")
            await asyncio.sleep(clock.pause(SECONDS_BETWEEN_LOOKS))
    finally:
        for keeper in keepers:
            await asyncio.to_thread(keeper.close)

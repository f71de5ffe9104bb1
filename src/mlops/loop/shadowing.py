"""Shadowing: a process beside the servers that lets a challenger answer what was logged.

    python -m mlops.loop.shadowing USE_CASE

A request never meets the challenger. This process follows the prediction log and, page by page,

    follow  shadow: answers the rows with the challenger, and keeps its answers (`shadow.db`)
            A/B: counts the clients that came for the first time, by the arm that answered them
    judge   looks at the losses of the rows whose truths are settled, after each of them
    tell    findings of kind "experiment" in the log, for alerts and pages

A server starts it (`experimenting.py`) with the lock of the log's folder and a pipe as its input,
and it ends when the experiment does, or when that pipe breaks because its server has died. It takes
what processor and disk others leave.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import apsw
import orjson

from mlops import clock
from mlops.deploy.split import arm_of
from mlops.errors import BundleError, MlopsError
from mlops.improve.experiments import Experiment
from mlops.improve.ledger import Ledger
from mlops.improve.running import ARMS, Label, Totals, Trial
from mlops.loop.gently import gently
from mlops.loop.losses import fields_of, losses_of, numbers_of
from mlops.loop.verdict import findings_of
from mlops.monitor.shadow import Progress, Settled, Shadowed, ShadowStore
from mlops.package.bundle import Bundle, open_bundle
from mlops.records import Prediction
from mlops.settings import Settings, read_settings
from mlops.usecase import UseCase
from mlops.usecases import find

PAGE_ROWS = 100
"""Few: what a page does within the kernel keeps a server on the same core waiting, and five times
as many rows made the p99 of its answers 1.2 times what it is without a shadow."""
SETTLING_SECONDS = 10.0
"""After the share of an A/B has changed, until it surely holds on every server."""
SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_BETWEEN_TRIES = 30.0
SECONDS_BETWEEN_FINDINGS = 600.0
LARGEST_SHARE_OF_TIME = 0.5
"""Of one processor: as long as a page took, so long is paused, though more were waiting."""

log = logging.getLogger("mlops.shadow")


class Shadow:
    """Follows the open experiment of one use case; for one thread."""

    def __init__(self, use_case: UseCase, settings: Settings) -> None:
        self._use_case = use_case
        self._settings = settings
        self._ledger = Ledger(settings.state_database)
        path = settings.home / use_case.log_name / "predictions.db"
        self._store = ShadowStore(path, use_case.log_name)
        self._seconds = settings.experiment_truth_days * 86_400
        self._bundle: tuple[int, Bundle] | None = None
        self._try_again = 0.0
        self._told: tuple[Any, ...] = ()
        self._told_at = 0.0
        self._pruned_at = 0.0

    def close(self) -> None:
        self._store.close()
        self._ledger.close()

    def step(self) -> bool | None:
        """Do a page; return whether there may be more to do, None when no experiment is open."""
        experiment = self._ledger.experiments.open(self._use_case.name)
        if experiment is None:
            while self._store.prune(None):
                pass
            return None
        follow = self._shadow if experiment.mode == "shadow" else self._count
        followed = follow(experiment, self._progress(experiment))
        judged = self._judge(experiment, self._progress(experiment))
        self._tell(experiment, self._progress(experiment))
        if clock.unix() - self._pruned_at > SECONDS_BETWEEN_FINDINGS:
            self._pruned_at = clock.unix()
            self._store.prune(experiment.id)
        return followed or judged

    def _progress(self, experiment: Experiment) -> Progress:
        new = Trial.begin(experiment.mode, experiment.alpha)
        return self._store.begin(experiment.id, experiment.started_utc, new.as_json())

    # -- follow -----------------------------------------------------------------------------------

    def _shadow(self, experiment: Experiment, before: Progress) -> bool:
        """Answer the next page with the challenger; return whether that was done."""
        rows = self._store.rows_after(before.shadowed_id, PAGE_ROWS)
        if not rows or (bundle := self._challenger(experiment, before)) is None:
            return False
        answered = answers(self._use_case, bundle, rows)
        now = before._replace(shadowed_id=rows[-1].id, trouble="")
        return self._store.keep(experiment.id, before, now, shadowed=answered)

    def _challenger(self, experiment: Experiment, progress: Progress) -> Bundle | None:
        """Return the bundle of the challenger, None if it cannot be opened now."""
        if self._bundle and self._bundle[0] == experiment.id:
            return self._bundle[1]
        if time.monotonic() < self._try_again:
            return None
        try:
            version = self._ledger.version(self._use_case.name, experiment.challenger)
            bundle = open_bundle(
                self._settings.bundles / version.bundle, key=self._settings.signing_key
            )
            if tuple(one["name"] for one in bundle.signature["fields"]) != self._use_case.fields:
                raise BundleError("it takes other fields than those that are declared", "")
        except MlopsError as error:
            self._try_again = time.monotonic() + SECONDS_BETWEEN_TRIES
            trouble = f"version {experiment.challenger} cannot answer: {error.message}"
            if trouble != progress.trouble:
                log.error("%s: %s", self._use_case.name, trouble)
                self._store.keep(experiment.id, progress, progress._replace(trouble=trouble))
            return None
        self._bundle = experiment.id, bundle
        return bundle

    def _count(self, experiment: Experiment, before: Progress) -> bool:
        """Count the clients by name of the next page that are new; return whether that was done."""
        rows = self._store.rows_after(before.shadowed_id, PAGE_ROWS)
        if not rows:
            return False
        trial = Trial.of_json(before.trial)
        shares = [share for _, share in experiment.shares]
        arms = {experiment.champion: ARMS[0], experiment.challenger: ARMS[1]}
        came: dict[str, tuple[int, str]] = {}
        for row in rows:
            stretch = stretch_of(experiment, clock.seconds_of(row.timestamp))
            if row.client and stretch is not None and row.model_version in arms:
                came.setdefault(row.client, (stretch, arms[row.model_version]))
        new = self._store.unseen(experiment.id, came)
        for stretch in range(len(shares)):
            fresh = [arm for unit, (one, arm) in came.items() if one == stretch and unit in new]
            trial.see(stretch, fresh, shares)
        now = before._replace(shadowed_id=rows[-1].id, trial=trial.as_json())
        return self._store.keep(experiment.id, before, now, seen=sorted(new))

    # -- judge ------------------------------------------------------------------------------------

    def _judge(self, experiment: Experiment, before: Progress) -> bool:
        """Look at the next page of settled rows; return whether there were any."""
        first, until = before.judged_id, before.shadowed_id
        compared = functools.partial(is_compared, experiment)
        settled = self._store.settled(first, until, PAGE_ROWS, self._seconds, compared)
        if not settled:
            return False
        last = settled[-1].row.id
        trial = Trial.of_json(before.trial)
        trial.left_out += last - first - len(settled)  # deleted from the log meanwhile
        totals: Totals = {}
        if experiment.mode == "shadow":
            shadowed = self._store.shadowed(experiment.id, first, last)
            labels = paired_labels(self._use_case, experiment, trial, settled, shadowed)
        else:
            totals = self._store.totals(experiment.id, (unit_of(one.row) for one in settled))
            labels = labels_of_arms(self._use_case, experiment, trial, settled)
        trial.take(labels, totals)
        now = before._replace(judged_id=last, trial=trial.as_json())
        return self._store.keep(experiment.id, before, now, totals=totals)

    # -- tell -------------------------------------------------------------------------------------

    def _tell(self, experiment: Experiment, progress: Progress) -> None:
        """Keep findings in the log: at once when they say something else, else now and then."""
        trial = Trial.of_json(progress.trial)
        behind = self._store.last_id() - progress.shadowed_id
        found = findings_of(experiment, trial, behind, progress.trouble)
        told = tuple((one.subject, one.verdict) for one in found), trial.outcome, experiment.id
        if told == self._told and clock.unix() - self._told_at < SECONDS_BETWEEN_FINDINGS:
            return
        self._store.record_findings(found)
        self._told, self._told_at = told, clock.unix()


def answers(use_case: UseCase, bundle: Bundle, rows: Sequence[Prediction]) -> list[Shadowed]:
    """Return what a bundle answers to logged rows; a row that it fails on has no answer."""
    try:
        output = bundle.model.run(fields_of(use_case, rows))
    except Exception:
        if len(rows) == 1:
            log.exception("%s: the challenger failed on row %s", use_case.name, rows[0].id)
            return [Shadowed(rows[0].id, None, None)]
        return [one for row in rows for one in answers(use_case, bundle, [row])]
    labels = use_case.target.labels
    stated = [None] * len(rows) if output.probabilities is None else output.probabilities.tolist()
    return [
        Shadowed(
            row.id,
            (labels[value] if labels else value) if math.isfinite(value) else None,
            None if each is None else orjson.dumps(dict(zip(labels, each, strict=True))).decode(),
        )
        for row, value, each in zip(rows, output.prediction.tolist(), stated, strict=True)
    ]


def unit_of(row: Prediction) -> str:
    """Return the client of a row; where it gave no name, its inputs stand for it."""
    return row.client or hashlib.blake2b(row.inputs.encode(), digest_size=8).hexdigest()


def stretch_of(experiment: Experiment, at: float) -> int | None:
    """Return which of the shares held at a moment (unix seconds); None while it settled."""
    found = None
    for number, (since, _) in enumerate(experiment.shares):
        if at >= clock.seconds_of(since):
            found = number
    if found is None or at < clock.seconds_of(experiment.shares[found][0]) + SETTLING_SECONDS:
        return None
    return found


def is_compared(experiment: Experiment, row: Prediction) -> bool:
    """Whether a row belongs to the comparison: if so, its truth is waited for."""
    if experiment.mode == "shadow":
        return row.model_version == experiment.champion
    answering = row.model_version in (experiment.champion, experiment.challenger)
    return answering and stretch_of(experiment, clock.seconds_of(row.timestamp)) is not None


def paired_labels(
    use_case: UseCase,
    experiment: Experiment,
    trial: Trial,
    settled: Sequence[Settled],
    shadowed: dict[int, Shadowed],
) -> list[Label]:
    """Return the labels of rows that the champion answered; count those that are none."""
    kept, now = [], []
    for one in settled:
        if not is_compared(experiment, one.row):
            continue
        other = shadowed.get(one.row.id)
        if one.actual is None:
            trial.left_out += 1
        elif other is None or other.prediction is None:
            trial.failed += 1
        else:
            kept.append(one)
            now.append(other.prediction)
    actual = [one.actual for one in kept]
    logged = losses(use_case, [one.row.prediction for one in kept], actual)
    challenged = losses(use_case, now, actual)
    return [
        Label(clock.seconds_of(one.row.timestamp), "", mine, theirs)
        for one, mine, theirs in zip(kept, logged, challenged, strict=True)
    ]


def labels_of_arms(
    use_case: UseCase, experiment: Experiment, trial: Trial, settled: Sequence[Settled]
) -> list[Label]:
    """Return the labels of rows answered by the arm that was theirs; count those that are none.

    A row that another version answered, because its own failed or it was asked for by name, is no
    draw of chance. Of a request without a client's name that cannot be told: a batch of those is
    divided as a whole, and the log does not say which rows were one.
    """
    kept: list[tuple[Settled, float, str, bool, float]] = []
    versions = {experiment.champion: ARMS[0], experiment.challenger: ARMS[1]}
    for one in settled:
        at = clock.seconds_of(one.row.timestamp)
        stretch = stretch_of(experiment, at)
        arm = versions.get(one.row.model_version)
        if stretch is None or arm is None:
            continue
        unit, share = unit_of(one.row), experiment.shares[stretch][1]
        weights = dict(zip(ARMS, (1 - share, share), strict=True))
        if one.row.client and arm_of(unit, weights, experiment.salt) != arm:
            trial.astray += 1
        elif one.actual is None:
            trial.left_out += 1
        else:
            kept.append((one, at, unit, arm == ARMS[1], share))
    found = losses(
        use_case, [one[0].row.prediction for one in kept], [one[0].actual for one in kept]
    )
    return [
        Label(at, unit, None if challenger else loss, loss if challenger else None, share)
        for (_, at, unit, challenger, share), loss in zip(kept, found, strict=True)
    ]


def losses(use_case: UseCase, answered: Sequence[Any], actual: Sequence[Any]) -> list[float]:
    """Return the loss of each answer."""
    numbers = numbers_of(use_case, answered), numbers_of(use_case, actual)
    found: list[float] = losses_of(use_case, *numbers).tolist()
    return found


def main() -> None:
    """Shadow one use case until its experiment ends, or the server that started this."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s:  %(message)s")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server ends it, when it has ended itself
    ending = threading.Event()

    def listen() -> None:
        # Until the server closes it, or dies. Not by way of `sys.stdin`: the interpreter aborts if
        # a thread still holds the lock of its buffer when the process ends.
        os.read(sys.stdin.fileno(), 1)
        ending.set()

    gently()
    if hasattr(os, "SCHED_IDLE"):
        # Of Linux's own: even a thread of lowest priority may keep one that wakes up waiting until
        # its slice has ended, some milliseconds. This one may not.
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    threading.Thread(target=listen, daemon=True).start()
    shadow = Shadow(find(sys.argv[1]), read_settings())
    try:
        follow(shadow, ending)
    finally:
        shadow.close()


def follow(shadow: Shadow, ending: threading.Event) -> None:
    """Do what there is to do until the experiment is over, or this is to end."""
    pause, said = 0.0, ""
    while not ending.wait(clock.pause(pause)):
        started = time.monotonic()
        try:
            more = shadow.step()
        except (apsw.Error, MlopsError) as error:
            # The disk may be full, or a database away for a moment: nothing was half done.
            if str(error) != said:
                log.exception("the shadow cannot go on")
            pause, said = SECONDS_BETWEEN_TRIES, str(error)
            continue
        if more is None:
            return
        took = time.monotonic() - started
        pause = took / LARGEST_SHARE_OF_TIME - took if more else SECONDS_BETWEEN_LOOKS
        said = ""


if __name__ == "__main__":
    main()

"""Equal models over the whole way that a row goes: log, truths, arms, losses, verdict, decision.

Only the databases are left out, and the model. At most alpha of the experiments may promote.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

import numpy as np
import pytest

from mlops import clock
from mlops.deploy.split import arm_of
from mlops.improve import sequential
from mlops.improve.experiments import Experiment
from mlops.improve.running import Trial
from mlops.loop.shadowing import SETTLING_SECONDS, labels_of_arms, paired_labels
from mlops.monitor.shadow import Settled, Shadowed
from mlops.records import Prediction
from mlops.usecases.housing import HOUSING
from mlops.usecases.iris import IRIS

STARTED = 1_790_000_000.0
RUNS, ROWS, PAGE = 120, 600, 200
STAMPS = [clock.iso(STARTED + SETTLING_SECONDS + n) for n in range(4 * ROWS)]

Loop = Callable[[int], Trial]


def experiment(mode: str, salt: int, share: float = 0.0) -> Experiment:
    since = clock.iso(STARTED)
    shares = ((since, share),)
    return Experiment(
        1,
        "housing",
        mode,
        1,
        2,
        str(salt),
        0.05,
        True,
        since,
        None,
        None,
        shares,  # type: ignore[arg-type]
    )


def row(number: int, answer: float | str, version: int = 1, client: str | None = None):
    return Prediction("", STAMPS[number], "{}", answer, None, None, version, "", client, number)


def kept(trial: Trial) -> Trial:
    return Trial.of_json(json.loads(json.dumps(trial.as_json(), allow_nan=False)))


def shadow_of_prices(seed: int) -> Trial:
    """Two models that are off by as much, each by its own chance."""
    rng = np.random.default_rng(seed)
    actual = rng.lognormal(0.5, 0.5, ROWS)
    one, other = (actual + rng.standard_t(5, ROWS) * 0.3 for _ in range(2))
    return shadowed(HOUSING, one.tolist(), other.tolist(), actual.tolist())


def shadow_of_classes(seed: int) -> Trial:
    """Two models that each err in a tenth of the rows."""
    rng, labels = np.random.default_rng(seed), IRIS.target.labels
    actual = [labels[number] for number in rng.integers(0, 2, ROWS)]
    one, other = (
        [labels[2] if wrong else right for wrong, right in zip(errs, actual, strict=True)]
        for errs in rng.random((2, ROWS)) < 0.1
    )
    return shadowed(IRIS, one, other, actual)


def shadowed(use_case, one, other, actual) -> Trial:
    trial, under_way = Trial.begin("shadow", 0.05), experiment("shadow", 0)
    for start in range(0, ROWS, PAGE):
        page = range(start, start + PAGE)
        settled = [Settled(row(n, one[n]), actual[n]) for n in page]
        answers = {n: Shadowed(n, other[n], None) for n in page}
        trial = kept(trial)
        trial.take(paired_labels(use_case, under_way, trial, settled, answers), {})
    return trial


def ab_of_prices(seed: int) -> Trial:
    """One model in both arms, and clients that it suits differently."""
    rng = np.random.default_rng(seed)
    under_way, number = experiment("ab", seed, 0.5), 3 * ROWS
    names = [f"{client:x}" for client in range(ROWS)]
    weights = {"champion": 0.5, "challenger": 0.5}
    arms = [arm_of(name, weights, under_way.salt) for name in names]
    clients = rng.integers(0, len(names), number).tolist()
    level = rng.exponential(1.0, len(names))
    actual = rng.lognormal(0.5, 0.5, number)
    answers = actual + rng.normal(0, 1, number) * level[clients]
    trial, totals = Trial.begin("ab", 0.05), {}
    for start in range(0, number, PAGE):
        settled = [
            Settled(
                row(n, float(answers[n]), 1 + (arms[clients[n]] != "champion"), names[clients[n]]),
                float(actual[n]),
            )
            for n in range(start, start + PAGE)
        ]
        trial = kept(trial)
        trial.take(labels_of_arms(HOUSING, under_way, trial, settled), totals)
    assert trial.astray == 0
    return trial


LOOPS = {"shadow, prices": shadow_of_prices, "shadow, classes": shadow_of_classes}


def promoted(loop: Loop, runs: int) -> int:
    trials = [loop(seed) for seed in range(runs)]
    assert all(sum(trial.counts) for trial in trials)
    return sum(trial.decides and trial.outcome == "better" for trial in trials)


@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
def test_at_most_alpha_of_equal_challengers_are_promoted_and_peeking_is_found_out(
    loop, monkeypatch
):
    assert promoted(loop, RUNS) <= 0.05 * RUNS
    monkeypatch.setattr(
        sequential, "boundary", lambda labels, alpha, tuned_for: 1.96 / np.sqrt(labels)
    )
    assert promoted(loop, 40) > 0.05 * 40


def test_at_most_alpha_of_equal_arms_are_promoted_and_rows_taken_for_clients_are_found_out(
    monkeypatch,
):
    assert promoted(ab_of_prices, 40) <= 2
    taken = Trial.take

    def each_its_own(trial, labels, totals):
        """As if every row were another client's, looked at as if it were the only look."""
        apart = [one._replace(unit=f"{one.at}") for one in labels]
        taken(trial, apart, totals)

    monkeypatch.setattr(Trial, "take", each_its_own)
    monkeypatch.setattr(
        sequential, "boundary", lambda labels, alpha, tuned_for: 1.96 / np.sqrt(labels)
    )
    assert promoted(ab_of_prices, 20) > 2


def test_a_challenger_that_is_better_is_promoted():
    rng = np.random.default_rng(0)
    actual = rng.lognormal(0.5, 0.5, ROWS)
    one, other = (actual + rng.normal(0, spread, ROWS) for spread in (0.5, 0.4))
    trial = shadowed(HOUSING, one.tolist(), other.tolist(), actual.tolist())
    assert trial.decides
    assert trial.outcome == "better"
    assert dataclasses.asdict(trial.judgement())["high"] < 0

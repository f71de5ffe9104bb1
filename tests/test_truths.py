"""Truths: attached once, late, in any order, whoever sends them; and sums that are a recount."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops.monitor import quality
from mlops.monitor.log import PredictionLog
from mlops.monitor.quality import ALL, Sums
from mlops.records import Conflict, Prediction, Submission
from mlops.usecases.housing import HOUSING
from mlops.usecases.iris import IRIS

FAR = 2**40
INPUTS = dict.fromkeys(HOUSING.fields, 1.0) | {"latitude": 34.0, "longitude": -118.0}


def no_cells(bundle: str, rows: Sequence[Prediction]) -> None:
    return None


def measure(rows: Sequence[Prediction], actual: Sequence[float | str]) -> list[Sums]:
    return quality.measure(HOUSING, rows, actual, no_cells)


def house(number: int) -> Prediction:
    inputs = INPUTS | {"median_income": float(number % 8)}
    return Prediction(
        prediction_id=f"p{number}",
        timestamp=f"2026-03-01T{number % 24:02}:00:00.000000+00:00",
        inputs=json.dumps(inputs),
        prediction=2.0 + number % 3,
        probabilities=None,
        warnings=None,
        model_version=1 + number % 2,
        bundle="b",
    )


def open_log(folder: Path) -> PredictionLog:
    return PredictionLog(folder, "housinglogs", "crash")


@contextlib.contextmanager
def log_of(rows: int) -> Iterator[PredictionLog]:
    with tempfile.TemporaryDirectory() as folder:
        log = open_log(Path(folder))
        log.append([Submission((house(number),)) for number in range(rows)])
        yield log
        log.close()


@pytest.fixture
def log(tmp_path: Path) -> Iterator[PredictionLog]:
    log = open_log(tmp_path)
    log.append([Submission((house(number),)) for number in range(60)])
    yield log
    log.close()


def truths_in(log: PredictionLog) -> dict[str, float]:
    return dict(log._read("SELECT prediction_id, actual FROM truths"))


def check_a_recount(log: PredictionLog) -> None:
    """The sums that were kept are those of the truths that are there, counted anew."""
    truths = truths_in(log)
    rows = log.find_all(list(truths))
    anew = measure(list(rows.values()), [truths[one] for one in rows])
    kept = {one.key: one.values for one in log.quality(0, FAR)}
    assert set(kept) == {one.key for one in anew}
    for one in anew:
        np.testing.assert_allclose(kept[one.key], one.values, rtol=1e-12)


# Items name predictions 0 to 11, of which 10 and 11 do not exist; values contradict each other.
ITEMS = st.lists(st.tuples(st.integers(0, 11), st.sampled_from([1.0, 2.5])), max_size=40)


@settings(max_examples=60, deadline=None)
@given(ITEMS, st.lists(st.integers(0, 40), max_size=3))
def test_in_any_order_and_any_batches_the_first_truth_of_each_id_stays(items, cuts):
    pairs = [(f"p{number}", value) for number, value in items]
    with log_of(10) as log:
        first: dict[str, float] = {}
        bounds = [0, *sorted(cuts), len(pairs)]
        for start, end in itertools.pairwise(bounds):
            batch = pairs[start:end]
            done = log.attach(batch, measure)
            new, already, unknown, conflicts = 0, 0, [], []
            for one, value in batch:
                if one in {"p10", "p11"}:
                    unknown.append(one)
                elif one not in first:
                    first[one] = value
                    new += 1
                elif first[one] == value:
                    already += 1
                else:
                    conflicts.append(Conflict(one, first[one], value))
            assert done == (new, already, tuple(unknown), tuple(conflicts))
        assert truths_in(log) == first
        check_a_recount(log)


def test_a_resend_of_everything_changes_nothing(log: PredictionLog) -> None:
    pairs = [(f"p{number}", 1.5) for number in range(60)]
    assert log.attach(pairs, measure).attached == 60
    before = [(one.key, one.values.tolist()) for one in log.quality(0, FAR)]
    assert log.attach(pairs[::-1], measure) == (0, 60, (), ())
    assert [(one.key, one.values.tolist()) for one in log.quality(0, FAR)] == before


def test_a_truth_counts_in_the_hour_of_its_prediction_and_in_its_bands(log: PredictionLog) -> None:
    log.attach([("p3", 5.0)], measure)  # income 3, hour 3, version 2, predicted 2.0
    found = {one.key[2:4]: one for one in log.quality(0, FAR)}
    assert set(found) == {ALL, ("region", "los angeles"), ("income", "middle")}
    key, values = found[ALL]
    assert (key.hour % 86_400, key.model_version) == (3 * 3600, 2)
    assert values.tolist()[:5] == [1, 9.0, 81.0, 3.0, 5.0]


def test_the_newest_sums_of_a_slice_are_those_of_its_last_hours(log: PredictionLog) -> None:
    log.attach([(f"p{number}", 1.5) for number in range(60)], measure)
    found = log.newest_quality(2, "income", 3)  # version 2 made those with odd numbers
    assert [one.key.hour % 86_400 // 3600 for one in found] == [19, 21, 23]
    assert {(one.key.model_version, one.key.slice) for one in found} == {(2, "income")}


def test_days_are_their_hours_added_up(log: PredictionLog) -> None:
    log.attach([(f"p{number}", 1.5) for number in range(60)], measure)
    days = [one for one in log.quality(0, FAR, 86_400) if one.key.slice == ""]
    hours = [one for one in log.quality(0, FAR) if one.key.slice == ""]
    assert [one.key.hour % 86_400 for one in days] == [0, 0]
    assert sum(one.values for one in days).tolist() == pytest.approx(
        sum(one.values for one in hours).tolist()
    )


def test_the_truth_of_a_pruned_prediction_is_unknown_and_what_it_added_stays(
    log: PredictionLog,
) -> None:
    log.attach([("p0", 1.0)], measure)
    while log.prune(before="2026-03-01T01"):
        pass
    assert log.find("p0") is None
    assert truths_in(log) == {}
    assert log.attach([("p0", 1.0), ("p24", 1.0)], measure).unknown == ("p0", "p24")
    assert sum(one.values[0] for one in log.quality(0, FAR) if one.key[2:4] == ALL) == 1


def test_what_a_failing_measure_leaves_is_nothing(log: PredictionLog) -> None:
    def broken(rows: Sequence[Prediction], actual: Sequence[float | str]) -> list[Sums]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        log.attach([("p1", 1.0)], broken)
    assert truths_in(log) == {}
    assert log.attach([("p1", 1.0)], measure).attached == 1


def test_a_log_of_an_older_version_takes_truths(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    log.append([Submission((house(1),))])
    log._writer.execute(
        "DROP TABLE truths; DROP TABLE quality;"
        "DELETE FROM schema_migrations WHERE name = 'm004_truths'"
    )
    log.close()
    log = open_log(tmp_path)
    assert log.attach([("p1", 2.0)], measure).attached == 1
    check_a_recount(log)
    log.close()


def test_classes_are_counted_by_what_was_and_what_was_said(tmp_path: Path) -> None:
    log = PredictionLog(tmp_path, "irislogs", "crash")
    flower = json.dumps(dict.fromkeys(IRIS.fields, 3.0))
    said = ["setosa", "setosa", "virginica"]
    rows = [
        house(number)._replace(inputs=flower, prediction=label, model_version=1)
        for number, label in enumerate(said)
    ]
    log.append([Submission(tuple(rows))])
    pairs = [("p0", "setosa"), ("p1", "virginica"), ("p2", "virginica")]
    log.attach(pairs, lambda rows, actual: quality.measure(IRIS, rows, actual, no_cells))
    found = [
        (one.key.actual, one.key.predicted, *one.values[:2].tolist())
        for one in log.quality(0, FAR)
        if one.key[2:4] == ALL
    ]
    assert sorted(found) == [
        ("setosa", "setosa", 1, 0),
        ("virginica", "setosa", 1, 1),
        ("virginica", "virginica", 1, 0),
    ]
    log.close()


SENDER = """
    import random, sys, time
    from pathlib import Path
    from test_truths import measure, open_log

    log = open_log(Path(sys.argv[1]))
    order = random.Random(int(sys.argv[2]))
    pairs = [(f"p{number}", 1.5) for number in range(60)]
    print("ready", flush=True)
    sys.stdin.readline()
    attached = 0
    for _ in range(int(sys.argv[3])):
        attached += log.attach(order.sample(pairs, 2), measure).attached
        time.sleep(order.uniform(0, 0.004))  # the other one has its turn
    print(attached, flush=True)
    log.close()
"""


def sender(folder: Path, seed: int, batches: int) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SENDER), str(folder), str(seed), str(batches)],
        cwd=Path(__file__).parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def test_two_processes_that_send_the_same_truths_attach_each_once(log: PredictionLog) -> None:
    folder = log.path.parent
    senders = [sender(folder, seed, 300) for seed in (1, 2)]
    for process in senders:
        go(process)
    attached = [int(process.communicate(timeout=60)[0]) for process in senders]
    assert sum(attached) == len(truths_in(log)) == 60
    assert min(attached) > 0
    check_a_recount(log)


def test_a_sender_that_is_killed_leaves_truths_and_sums_in_agreement(log: PredictionLog) -> None:
    delays = random.Random(0)
    for seed in range(3):
        process = sender(log.path.parent, seed, 10**6)
        go(process)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=delays.uniform(0.002, 0.05))
        process.kill()
        process.communicate()
        check_a_recount(log)
    log.attach([(f"p{number}", 1.5) for number in range(60)], measure)
    assert len(truths_in(log)) == 60
    check_a_recount(log)

"""The score card at its "must" sizes, and every harness before a planted fault.

What each line means is in `benchmarks/reliability/lines.py`; `make bench-reliability` runs the
same harnesses longer.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.reliability import __main__ as bench
from benchmarks.reliability import (
    champions,
    counting,
    forgeries,
    growth,
    hostile,
    kills,
    locks,
    parity,
    power,
    probes,
    registry,
    replacement,
    restarts,
    rotation,
    slow_sockets,
    units,
)
from benchmarks.reliability.lines import LINES
from benchmarks.reliability.world import Found, World

Worlds = Callable[..., World]


@pytest.fixture
def world(trained: Path) -> Iterator[Worlds]:
    """Make worlds, with a fault or without; their servers end with the test."""
    made: list[World] = []

    def make(fault: str = "") -> World:
        made.append(World(trained, fault=fault))
        return made[-1]

    yield make
    for one in made:
        one.__exit__()


def holds(found: Found) -> None:
    assert found.holds, f"{found.says} ({found.size})"


def is_red(found: Found) -> None:
    assert not found.holds, f"the planted fault was not found: {found.says} ({found.size})"


@pytest.mark.timeout(180)
def test_r1_20_kills_under_load_lose_nothing_double_nothing_and_invent_nothing(
    world: Worlds,
) -> None:
    holds(kills.kills(world(), 20))  # faults are planted in tests/test_kill.py


def test_r6_three_processes_rotate_one_log_file_and_keep_20000_lines(world: Worlds) -> None:
    holds(rotation.rotation(world(), 20_000))
    is_red(rotation.rotation(world("no-lock"), 6_000))


@pytest.mark.parametrize("workers", [1, 2])
def test_r7_promotions_under_load_fail_no_request_and_mix_no_versions(
    workers: int, world: Worlds
) -> None:
    number = 5 if workers == 2 else 2
    holds(champions.promotions(world(), number, workers=workers)[0])


def test_r7_an_answer_that_names_another_version_is_found(world: Worlds) -> None:
    is_red(champions.promotions(world("wrong-version"), 1)[0])


def test_r9_of_100_forged_bundles_none_is_opened_served_or_executed(world: Worlds) -> None:
    holds(forgeries.forged_bundles(world(), 100))
    is_red(forgeries.forged_bundles(world("any-bundle"), 22))


def test_r10_of_eight_promotions_at_once_exactly_one_wins_in_20_rounds(world: Worlds) -> None:
    holds(champions.concurrent_promotions(world(), 20))
    is_red(champions.concurrent_promotions(world("whoever-is-champion"), 2))


def test_r15_restarts_under_load_lose_nothing_that_was_acknowledged(world: Worlds) -> None:
    holds(restarts.restarts(world(), 2))
    is_red(restarts.restarts(world("end-at-once"), 1))


def test_r18_a_server_starts_whatever_the_registry_does_and_never_asks_it(world: Worlds) -> None:
    holds(registry.starts(world()))
    is_red(registry.starts(world("ask-registry"), ways=("errs",)))


def test_r19_memory_descriptors_and_threads_do_not_grow_with_requests(world: Worlds) -> None:
    holds(growth.growth(world(), 12_000))


@pytest.mark.parametrize("fault", ["keep-requests", "keep-files"])
def test_r19_what_a_server_keeps_is_found(fault: str, world: Worlds) -> None:
    is_red(growth.growth(world(fault), 8_000))


def test_r22_mistakes_of_unit_are_flagged_and_honest_rows_are_not(world: Worlds) -> None:
    holds(units.unit_mistakes(world()))
    is_red(units.unit_mistakes(world("no-warnings"), 20))


def test_r23_metrics_are_the_log_with_two_workers_kills_and_restarts(world: Worlds) -> None:
    holds(counting.metrics_and_log(world(), 4))
    is_red(counting.metrics_and_log(world("count-anew"), 2))


# Timed, or long


@pytest.mark.slow
def test_r2_each_answer_follows_the_sync_of_its_row(world: Worlds) -> None:
    holds(power.power_cut(world(), 1))


@pytest.mark.slow
def test_r5_20000_rows_by_four_writers_in_company_meet_no_lock(world: Worlds) -> None:
    holds(locks.locked_or_lost(world(), 20_000))


@pytest.mark.slow
def test_r5_writers_without_patience_are_found(world: Worlds) -> None:
    is_red(locks.locked_or_lost(world("no-patience"), 3_000))


@pytest.mark.slow
def test_r8_no_worker_answers_with_the_old_version_2_s_after_a_promotion(world: Worlds) -> None:
    holds(champions.promotions(world(), 3, workers=2)[1])
    is_red(champions.promotions(world("switch-late"), 1)[1])


@pytest.mark.slow
def test_r12_a_request_that_waits_or_works_is_slow_but_not_one_that_gets_no_processor() -> None:
    took: list[float] = []
    with hostile.timed(took):
        time.sleep(0.06)
    with hostile.timed(took):
        until = time.thread_time() + 0.06
        while time.thread_time() < until:
            pass
    assert min(took) >= 0.055
    with hostile.timed(took, 1_000_000_000):  # no such process: it waits for nothing
        pass
    assert took[2] < 0.05


def test_r12_a_thousand_hostile_requests_are_refused_as_they_should_be(world: Worlds) -> None:
    holds(hostile.hostile(world(), 1_000))


@pytest.mark.slow
def test_r13_600_slow_sockets_are_closed_and_normal_traffic_has_no_error(world: Worlds) -> None:
    holds(slow_sockets.slow_sockets(world(), 600))


@pytest.mark.slow
def test_r16_a_worker_that_hangs_or_is_killed_is_replaced_within_10_s(world: Worlds) -> None:
    holds(replacement.replacements(world(), 2))
    is_red(replacement.replacements(world("never-replace"), 1))


@pytest.mark.slow
def test_r20_rows_on_thresholds_get_the_answers_of_training(world: Worlds) -> None:
    holds(parity.parity(world(), 40_000))


@pytest.mark.slow
def test_r17_a_probe_is_answered_within_half_a_second_while_all_is_busy(world: Worlds) -> None:
    holds(probes.probes(world(), 5))
    is_red(probes.probes(world("slow-health"), 1))


# The page and the command


def columns(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip("| \n").split(" | ")]


def test_the_page_has_the_lines_the_columns_and_the_limits_that_the_command_prints() -> None:
    assert [line.name for line in LINES] == [f"R{number}" for number in range(1, 25)]
    published = [row for row in bench.PAGE.read_text().splitlines() if row.startswith("| ")]
    printed = [row for row in bench.table({}) if row.startswith("| ")]
    assert [columns(row)[:5] for row in published] == [columns(row)[:5] for row in printed]
    assert columns(published[0]) == list(bench.COLUMNS)
    for row in published[1:]:
        assert columns(row)[6] in {"holds", bench.REACHED, "**red**", bench.NOT_MEASURED}


def test_the_command_prints_a_row_a_line_and_ends_with_1_if_one_is_red(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def planted(world: World, size: int) -> Found:
        return Found(f"{size} lost", size < 3, f"{size} kills")

    def broken(world: World, size: int) -> Found:
        raise AssertionError("no answer")

    [line] = [line for line in LINES if line.name == "R10"]
    monkeypatch.setattr(
        bench,
        "LINES",
        (
            dataclasses.replace(line, measure=planted, sizes=(2, 3)),
            dataclasses.replace(line, name="R98", measure=broken),
            dataclasses.replace(line, name="R99", measure=None),
        ),
    )
    asked = ["--trained", str(trained), "--scale"]
    assert bench.main([*asked, "must", "--lines", "R10,R99"]) == 0
    assert bench.main([*asked, "3", "--lines", "R10"]) == 1
    assert bench.main([*asked, "goal", "--lines", "R98"]) == 1
    rows = [columns(row) for row in capsys.readouterr().out.splitlines()]
    assert [(row[0], row[5], row[6]) for row in rows if row[0] != "line"] == [
        ("R10", "2 lost", "holds"),
        ("R99", "", "not measured"),
        ("R10", "3 lost", "**red**"),
        ("R98", "AssertionError: no answer", "**red**"),
    ]


def test_a_goal_is_reached_by_a_whole_run_that_keeps_the_limit_of_the_goal(trained: Path) -> None:
    [line] = [line for line in LINES if line.name == "R10"]

    def verdict(scale: str, *, goal: bool = True, seconds: float = 60) -> str:
        def measure(world: World, size: int) -> Found:
            done = len(list(world.rounds(size)))
            return Found("", True, f"{done} rounds", goal=goal)

        one = dataclasses.replace(line, measure=measure, sizes=(2, 3))
        return bench.cells(one, bench.run(one, trained, scale, 1, seconds))[6]

    assert verdict("must") == "holds"
    assert verdict("goal") == verdict("4") == bench.REACHED
    assert verdict("goal", goal=False) == "holds"
    assert verdict("goal", seconds=0) == "holds", "it was cut short"


def test_tests_that_do_not_end_are_ended_and_not_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "SECONDS_TO_END", 0.5)
    deaf = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)"
    assert bench._pytest([sys.executable, "-c", deaf], 1.5) is None


def test_a_run_of_which_every_line_was_run_again_is_not_told_of() -> None:
    every = f"- {', '.join(line.name for line in LINES[1:])}: yesterday"
    assert bench._still_true(["- All lines: 1", "- R1, R2: 2", "- R2: 3", "- R1: 4"]) == [
        *("- All lines: 1", "- R2: 3", "- R1: 4"),
    ]
    assert bench._still_true(["- All lines: 1", "- R1: 2", every]) == ["- R1: 2", every]


def test_tests_beside_a_measure_are_told_of_too() -> None:
    measured, tested = Found("0 lost", True, "3 kills"), Found("1 tests passed", False, "1 runs")
    assert bench._both(measured, tested) == Found("0 lost; 1 tests passed", False, "3 kills")
    assert bench._both(None, tested) == tested
    assert bench._both(measured, None) == measured


def test_every_test_that_a_line_is_measured_by_is_there() -> None:
    for line in LINES:
        for name in line.tests:
            file, _, function = name.partition("::")
            text = (bench.ROOT / "tests" / file).read_text()
            assert f"def {function or 'test_'}" in text, name

"""The lines of the score card: what each is about, its limits, and the harness that measures it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from benchmarks.reliability import (
    champions,
    counting,
    forgeries,
    fuzzing,
    growth,
    hostile,
    kills,
    locks,
    overload,
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
from benchmarks.reliability.world import Found, World

Measure = Callable[[World, int], Found]


@dataclasses.dataclass(frozen=True, slots=True)
class Line:
    """One line. `sizes` are those of the "must" and of the "goal", in the harness' own unit.

    Where there are `tests`, these are run too; so many times, if nothing else is measured.
    """

    name: str
    what: str
    recipe: str
    must: str
    goal: str
    sizes: tuple[int, int] = (1, 1)
    measure: Measure | None = None
    tests: Sequence[str] = ()


LINES = (
    Line(
        "R1",
        "kill -9 under load: lost, duplicate, phantom, torn",
        "16 connections; ids the client holds against database and file; half resend",
        "0 in 20 kills",
        "0 in 1,000",
        sizes=(20, 1_000),
        measure=kills.kills,
    ),
    Line(
        "R2",
        "power loss: a synced commit before each 200",
        "order of fdatasync and send under strace",
        "100 %",
        "100 %, at most 40 % of throughput lost",
        sizes=(3, 3),
        measure=power.power_cut,
    ),
    Line(
        "R3",
        "crash between two steps of the write path",
        "the process ends itself there; file and database compared",
        "each once",
        "each 20 times",
        tests=("test_logfile.py::test_after_a_death_the_file_is_the_database_again",),
        sizes=(1, 20),
    ),
    Line(
        "R4",
        "disk full: a 200 without a record",
        "RLIMIT_FSIZE under load, both durabilities; page limit and refused writes below",
        "0; 503 with Retry-After, alive",
        "ready 5 s after there is room",
        tests=(
            "test_serving.py::test_a_full_disk_is_a_503_and_nothing_is_answered_without_a_record"
            "_until_it_has_room",
            "test_log.py::test_a_full_disk_refuses_wholly_says_why_and_works_again_with_room",
            "test_log.py::test_a_write_that_the_system_refuses_is_survived_without_reopening",
        ),
        sizes=(1, 5),
    ),
    Line(
        "R5",
        "database is locked, or a row is lost",
        "2 servers of 2 workers, 64 clients, a reader with a snapshot, a training, backups",
        "0 in 20,000",
        "0 in 1,000,000",
        sizes=(20_000, 1_000_000),
        measure=locks.locked_or_lost,
    ),
    Line(
        "R6",
        "rotation of the log file by several processes: exact lines",
        "3 processes, a new file each megabyte",
        "exact in 20,000",
        "exact in 1,000,000",
        sizes=(20_000, 1_000_000),
        measure=rotation.rotation,
    ),
    Line(
        "R7",
        "promotions under load: failed requests, mixed versions",
        "two models, 2 workers, kept-alive connections, an A/B before each second promotion; each "
        "value recomputed offline",
        "0 and 0 in 5 promotions",
        "0 and 0 in 100 promotions, 100,000 requests",
        sizes=(5, 100),
        measure=lambda world, size: champions.promotions(world, size, workers=2)[0],
    ),
    Line(
        "R8",
        "staleness: the last answer of the old version after a promotion",
        "the same; moment of each answer",
        "2 s at most",
        "0 s",
        sizes=(5, 100),
        measure=lambda world, size: champions.promotions(world, size, workers=2)[1],
    ),
    Line(
        "R9",
        "corrupt, half-written or malicious bundles served or executed",
        "bits, cuts, swaps, forgeries, pickles, killed writers",
        "0 of 100",
        "0 of 1,500",
        sizes=(100, 1_500),
        measure=forgeries.forged_bundles,
    ),
    Line(
        "R10",
        "concurrent promotions: lost updates, two champions",
        "8 processes behind a barrier promote theirs if the champion is still X; an experiment is "
        "open",
        "0 in 20 rounds",
        "0 in 1,000 rounds",
        sizes=(20, 1000),
        measure=champions.concurrent_promotions,
    ),
    Line(
        "R11",
        "schema fuzz: 500, undocumented codes, invalid JSON, accepted invalid input",
        "schemathesis over the server's own document",
        "0 in 2,000",
        "0 in 250,000",
        sizes=(2_000, 250_000),
        measure=fuzzing.fuzzed,
    ),
    Line(
        "R12",
        "hostile values",
        "NaN, 1e999, 2^63, duplicate keys, depth, surrogates …, generated ones too; without the "
        "time to wait for a processor",
        "422 in strict JSON that names the field",
        "5,000 cases, each < 50 ms",
        tests=("test_hostile.py",),
        sizes=(1_000, 5_000),
        measure=hostile.hostile,
    ),
    Line(
        "R13",
        "raw HTTP: smuggling, slow clients, bombs, masses of headers",
        "raw sockets beside normal traffic",
        "normal traffic 0 errors, < 50 MB",
        "600 slow sockets closed in 15 s, < 20 MB",
        tests=("test_limits.py",),
        sizes=(600, 600),
        measure=slow_sockets.slow_sockets,
    ),
    Line(
        "R14",
        "three times too much load: goodput, time to refuse",
        "open loop on 900 connections",
        "60 %, 503 in 200 ms",
        "90 %, 20 ms",
        sizes=(1, 3),
        measure=overload.three_times_too_many,
    ),
    Line(
        "R15",
        "SIGTERM restarts under load: visible failures",
        "keep-alive clients; the server drains",
        "0 acknowledged lost",
        "0 resets in 100 restarts",
        sizes=(5, 100),
        measure=restarts.restarts,
    ),
    Line(
        "R16",
        "a worker killed or hung: time to full service",
        "SIGKILL and SIGSTOP in turn, 2 workers",
        "10 s at most",
        "2 s at most in 200",
        sizes=(2, 200),
        measure=replacement.replacements,
    ),
    Line(
        "R17",
        "p99 of a probe while saturated",
        "64 slow predictions, a probe at 10 Hz",
        "500 ms at most",
        "50 ms at most",
        sizes=(5, 60),
        measure=probes.probes,
    ),
    Line(
        "R18",
        "start while the registry refuses, hangs, errs, or lies",
        "four fakes; they count who asks",
        "ready in 10 s",
        "ready in 3 s",
        sizes=(1, 10),
        measure=registry.starts,
    ),
    Line(
        "R19",
        "memory, descriptors, threads per million requests",
        "1 % errors, a reload every 2,000; before that, to warm up, the same for three minutes",
        "50 MB at most, flat",
        "5 MB at most, flat",
        sizes=(12_000, 1_000_000),
        measure=growth.growth,
    ),
    Line(
        "R20",
        "training and serving differ",
        "held-out rows and rows on thresholds, five ways over HTTP",
        "0 differing",
        "0 in 1,000,000",
        tests=("test_parity.py", "test_parity_over_http.py"),
        sizes=(25_000, 1_000_000),
        measure=parity.parity,
    ),
    Line(
        "R21",
        "leakage from test rows",
        "test rows times 1e9; permuted targets; every family, with tuning",
        "no fitted number changes; scores at chance",
        "the same",
        tests=("test_leakage.py",),
    ),
    Line(
        "R22",
        "mistakes of unit flagged",
        "held-out rows with each field ×1000, ÷1000, and each two swapped",
        "90 % flagged, 1 % of honest rows at most",
        "98 %, 1 %",
        sizes=(500, 1_000_000),
        measure=units.unit_mistakes,
    ),
    Line(
        "R23",
        "metrics equal the log: differences, decreases",
        "2 workers, one killed or all restarted in turn",
        "0 and 0",
        "0 and 0",
        sizes=(4, 200),
        measure=counting.metrics_and_log,
    ),
    Line(
        "R24",
        "unauthorised success; a default secret",
        "every route by method and key, from the application's own routes (make audit: "
        "vulnerabilities)",
        "0; none",
        "0; none",
        tests=("test_access.py",),
    ),
)

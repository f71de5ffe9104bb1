"""Do verdicts that are looked at after every label stay honest, and what does that cost?

Not part of a plain `make bench`: `make bench ARGS=sequential` simulates 2,000 experiments of each
kind, watched after every label, and writes the tables of docs/experiments.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mlops.improve import sequential

DOCUMENT = Path(__file__).parents[1] / "docs" / "experiments.md"
BEGIN, END = "<!-- measured: make bench ARGS=sequential -->\n", "<!-- end of measured -->\n"
RUNS, LABELS = 2_000, 5_000
CHUNK = 100
"""Runs computed at once: bounds the memory."""
Z_95 = 1.959963984540054

Draw = Callable[[np.random.Generator, tuple[int, int], float], np.ndarray]


class Shape(NamedTuple):
    """Differences in loss, better by a gain in standard deviations; and their bounds, if any."""

    name: str
    draw: Draw
    bounds: tuple[float, float] | None


def gaussian(rng: np.random.Generator, size: tuple[int, int], gain: float) -> np.ndarray:
    return rng.normal(size=size) - gain


def squared_errors(rng: np.random.Generator, size: tuple[int, int], gain: float) -> np.ndarray:
    """Noise with heavy tails (Student, 5 degrees), seen by two models that are a little off."""
    noise = rng.standard_t(5, size=size).clip(-5, 5)
    mine, other = (rng.normal(0, 0.3, size=size).clip(-1, 1) for _ in range(2))
    differences = (noise + mine) ** 2 - (noise + other) ** 2
    return np.asarray(differences - gain * 1.08)  # their standard deviation


def wrong_classes(rng: np.random.Generator, size: tuple[int, int], gain: float) -> np.ndarray:
    """In 5 % of the rows only the one is wrong, in 5 % only the other; shifted by the gain."""
    drawn, shift = rng.random(size), gain * np.sqrt(0.1) / 2
    return np.asarray((drawn < 0.05 - shift).astype(float) - (drawn > 0.95 - shift))


def skewed(rng: np.random.Generator, size: tuple[int, int], gain: float) -> np.ndarray:
    """Mostly a little better, seldom much worse: Beta(1, 9) less its mean."""
    return rng.beta(1, 9, size=size) - 0.1 - gain * 0.09


SHAPES = (
    Shape("Gaussian", gaussian, None),
    Shape("squared errors, heavy tails", squared_errors, (-25.0, 24.0)),
    Shape("wrong classes, 10 % discordant", wrong_classes, (-1.0, 1.0)),
    Shape("skewed", skewed, (-0.15, 0.9)),
)


class Watched(NamedTuple):
    """What became of experiments that were watched after every label; shares of all runs.

    `delay` is the median number of labels until "better"; infinite if most never got there.
    """

    better: float
    worse: float
    delay: float


def peeked(values: np.ndarray) -> sequential.Intervals:
    """The 95 % interval of each moment, as if it were the only one looked at."""
    count = np.arange(1, values.shape[-1] + 1)
    mean = np.cumsum(values, axis=-1) / count
    variance = np.maximum(np.cumsum(values**2, axis=-1) / count - mean**2, 0)
    half = Z_95 * np.sqrt(variance / np.maximum(count - 1, 1))
    half = np.where(count < sequential.FIRST_LOOK, np.inf, half)
    return sequential.Intervals(mean, mean - half, mean + half)


def decided(found: sequential.Intervals) -> tuple[np.ndarray, np.ndarray]:
    """When each run says better and when worse, in labels; infinite where it never does so first.

    A run ends with its first verdict.
    """
    times = []
    for says in (found.high < 0, found.low > 0):
        first = np.argmax(says, axis=-1) + 1.0
        times.append(np.where(says.any(axis=-1), first, np.inf))
    better, worse = times
    return np.where(better < worse, better, np.inf), np.where(worse < better, worse, np.inf)


def watched(times: Iterator[tuple[np.ndarray, np.ndarray]]) -> Watched:
    better, worse = (np.concatenate(part) for part in zip(*times, strict=True))
    return Watched(
        float(np.isfinite(better).mean()),
        float(np.isfinite(worse).mean()),
        float(np.median(better)),
    )


def chunks(runs: int) -> Iterator[int]:
    for start in range(0, runs, CHUNK):
        yield min(CHUNK, runs - start)


def same_rows(
    shape: Shape, method: str, gain: float, runs: int, labels: int, seed: int = 0
) -> Watched:
    """Experiments on the same rows; the challenger is better by `gain` standard deviations."""
    rng = np.random.default_rng(seed)

    def run(size: int) -> tuple[np.ndarray, np.ndarray]:
        values = shape.draw(rng, (size, labels), gain)
        if method == "peeked t-test":
            return decided(peeked(values))
        if method == "empirical Bernstein":
            assert shape.bounds is not None
            return decided(sequential.bounded(values, *shape.bounds))
        return decided(sequential.paired(values))

    return watched(run(size) for size in chunks(runs))


def fixed(shape: Shape, gain: float, runs: int, labels: int) -> float:
    """The share of experiments that a t-test with one look, after all labels, calls better."""
    rng, better = np.random.default_rng(0), 0
    for size in chunks(runs):
        values = shape.draw(rng, (size, labels), gain)
        half = Z_95 * values.std(axis=1, ddof=1) / np.sqrt(labels)
        better += int((values.mean(axis=1) + half < 0).sum())
    return better / runs


def two_arms(gain: float, share: float, runs: int, labels: int) -> Watched:
    """Each row is answered by one arm only; losses are squared Gaussian errors."""
    rng = np.random.default_rng(1)

    def run(size: int) -> tuple[np.ndarray, np.ndarray]:
        challenger = rng.random((size, labels)) < share
        losses = rng.normal(size=(size, labels)) ** 2 - challenger * gain * np.sqrt(2)
        return decided(sequential.unpaired(losses, challenger))

    return watched(run(size) for size in chunks(runs))


def delayed(honest: bool, runs: int, labels: int) -> Watched:
    """Equal models, and truths that are late where the challenger is worse.

    Four rows of five are cheap houses, sold within 100 rows' time, which the challenger prices
    better; the fifth is dear, sold within `labels` / 2, and priced worse. `honest` compares the
    rows that have all truths before them; else truths are taken as they come.
    """
    rng = np.random.default_rng(2)
    made = np.arange(labels)

    def run(size: int) -> tuple[np.ndarray, np.ndarray]:
        dear = rng.random((size, labels)) < 0.2
        values = np.where(dear, 0.4, -0.1) + rng.normal(0, 0.3, (size, labels))
        if not honest:
            arrived = made + rng.random((size, labels)) * np.where(dear, labels / 2, 100)
            values = np.take_along_axis(values, np.argsort(arrived, axis=1), axis=1)
        return decided(sequential.paired(values))

    return watched(run(size) for size in chunks(runs))


def sample_ratio(share: float, runs: int, clients: int, peek: bool = False) -> tuple[float, float]:
    """Clients meant to be halved; return the share of alarms, and the median clients until one."""
    rng, times = np.random.default_rng(3), []
    count = np.arange(1, clients + 1)
    for size in chunks(runs):
        ones = rng.random((size, clients)) < share
        first = np.cumsum(ones, axis=1)
        if peek:  # the chi-squared test with one degree of freedom at 0.001, at every client
            alarm = (first - count / 2) ** 2 / (count / 4) > 3.290526731491926**2
        else:  # the same product that `sequential.sample_ratio` has in closed form
            before = np.concatenate([np.zeros((size, 1)), first[:, :-1]], axis=1)
            seen = np.where(ones, before, count - 1 - before)
            evidence = np.cumsum(np.log((1 + seen) / (1 + count) / 0.5), axis=1)
            alarm = evidence >= -np.log(sequential.SAMPLE_RATIO_ALPHA)
        times.append(np.where(alarm.any(axis=1), np.argmax(alarm, axis=1) + 1.0, np.inf))
    found = np.concatenate(times)
    return float(np.isfinite(found).mean()), float(np.median(found))


def run(runs: int = RUNS, labels: int = LABELS) -> str:
    """Simulate everything, print the tables and write them into docs/experiments.md."""
    started = time.perf_counter()
    parts = [
        f"{runs:,} experiments in each line, up to {labels:,} labels, looked at after every label "
        f"once {sequential.FIRST_LOOK} tell the models apart, or each arm has "
        f"{sequential.FIRST_LOOK_OF_ARM}.",
        "\n".join(_equal(runs, labels)),
        "\n".join(_better(runs, labels)),
        "\n".join(_late(runs, labels)),
        "\n".join(_ratio(runs, labels)),
    ]
    text = "\n\n".join(parts) + "\n"
    print(text)
    print(f"simulated in {time.perf_counter() - started:.0f} s")
    document = DOCUMENT.read_text()
    before, _, rest = document.partition(BEGIN)
    after = rest.partition(END)[2]
    DOCUMENT.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")
    return text


def _equal(runs: int, labels: int) -> Iterator[str]:
    yield "**A/A: the models are equally good.** Every verdict is false; 5 % are allowed.\n"
    yield "| losses | method | false promotions | false verdicts |"
    yield "|---|---|---|---|"
    for shape in SHAPES:
        for method in ("asymptotic", "empirical Bernstein", "peeked t-test"):
            if method == "empirical Bernstein" and shape.bounds is None:
                continue
            one = same_rows(shape, method, 0.0, runs, labels)
            yield f"| same rows, {shape.name} | {method} | {_share(one)} |"
    for share in (0.5, 0.1):
        one = two_arms(0.0, share, runs, labels)
        yield f"| two arms, {share:.0%} to the challenger | asymptotic | {_share(one)} |"


def _share(one: Watched) -> str:
    return f"{one.better:.2%} | {one.better + one.worse:.2%}"


def _better(runs: int, labels: int) -> Iterator[str]:
    yield (
        "**The challenger is better** by a share of the standard deviation of a label: how many "
        "experiments find it, and after how many labels (median).\n"
    )
    yield (
        "| losses | gain | asymptotic | empirical Bernstein | t-test, one look at the end | "
        "peeked t-test, not honest |"
    )
    yield "|---|---|---|---|---|---|"
    for shape in (SHAPES[1], SHAPES[2]):
        for gain in (0.05, 0.1, 0.2):
            cells = [
                _found(same_rows(shape, method, gain, runs, labels))
                for method in ("asymptotic", "empirical Bernstein", "peeked t-test")
            ]
            cells.insert(2, f"{fixed(shape, gain, runs, labels):.1%}, {labels:,}")
            yield f"| same rows, {shape.name} | {gain:g} | {' | '.join(cells)} |"
    for gain in (0.1, 0.2, 0.5):
        cells = [_found(two_arms(gain, 0.5, runs, labels)), "", "", ""]
        yield f"| two arms, half each | {gain:g} | {' | '.join(cells)} |"


def _found(one: Watched) -> str:
    median = "more" if np.isinf(one.delay) else f"{one.delay:,.0f}"
    return f"{one.better:.1%}, {median}"


def _late(runs: int, labels: int) -> Iterator[str]:
    yield (
        "**Truth whose delay depends on the outcome.** Equal models; where the challenger is "
        "worse, truths are late.\n"
    )
    yield "| labels are compared | false promotions | false verdicts |"
    yield "|---|---|---|"
    yield f"| as they come | {_share(delayed(False, runs, labels))} |"
    honest = _share(delayed(True, runs, labels))
    yield f"| up to the first prediction whose truth is missing | {honest} |"


def _ratio(runs: int, clients: int) -> Iterator[str]:
    yield "**Sample ratio.** Clients are to be halved; watched after every client, 0.1 % allowed.\n"
    yield "| share of the first arm | method | alarms | clients until the alarm (median) |"
    yield "|---|---|---|---|"
    for share in (0.5, 0.52, 0.55, 0.6):
        for peek in (False, True):
            alarms, delay = sample_ratio(share, runs, clients, peek)
            median = "more" if np.isinf(delay) else f"{delay:,.0f}"
            method = "peeked chi-squared" if peek else "Lindon and Malek"
            yield f"| {share:.0%} | {method} | {alarms:.2%} | {median} |"

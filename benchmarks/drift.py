"""Does drift keep its budget of false alarms, and how soon does it see a shift?

A year of traffic without drift, by the hour, at several volumes: rows drawn (with replacement) from
the whole housing table, as the training rows are, so that both come from one distribution with all
its ties and tails. Every hour the last 24 hours are assessed, as the server does it, by the same
code. Each year has training rows of its own, so that an unlucky training is counted too.

Beside it, on the same windows and columns, once a day: PSI above 0.1 and 0.25, and a
Kolmogorov-Smirnov test at 0.05, each an alarm if any column is one.

Then a shift from some hour on, of stated size: the hours until the first alarm.
"""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import stats

from mlops.build.data import fields_and_target
from mlops.monitor.drift import assessment, columns, statistics
from mlops.monitor.drift.budget import Budget
from mlops.monitor.drift.profile import Profile
from mlops.usecases.housing import HOUSING, load

PAGE = Path(__file__).parents[1] / "docs" / "drift.md"
DRAWING = PAGE.with_name("drift.svg")
MARK = '<!-- what follows is written by: make bench ARGS="drift --write" -->'
HOURS_A_DAY, DAYS_A_YEAR, MONTH = 24, 365, 30
BUDGET = Budget(1, MONTH * 86400, 3600)
ROWS_A_WINDOW = (50, 200, 1_000, 10_000)
TRAINING_ROWS = 16_512
YEARS = 4
RUNS = 20
LONGEST_DELAY = 72
LOOKS_AT_ONCE = 250
SHIFTED = "median_income"
CUSTOM = ("PSI 0.1", "PSI 0.25", "KS 0.05")
SHIFTS = {
    "mean of one column + 0.1 σ": 0.1,
    "mean of one column + 0.25 σ": 0.25,
    "mean of one column + 0.5 σ": 0.5,
    "mean of one column + 1 σ": 1.0,
    "one column shuffled: same marginals": None,
}


Found = dict[tuple[int, float | None, int], dict[str, int | None]]
"""Delays by method, of each (rows a window, shift, seed)."""


class Year(NamedTuple):
    """A year without drift: what was looked at, and what was an alarm."""

    rows: int
    looks: int
    looks_in_alarm: int
    alarms: int
    """Stretches of looks in alarm: what a person is called for."""
    uncorrected: int
    """Looks in alarm if each test had 0.05 to spend."""
    days: int
    custom: dict[str, int]
    """By custom, the days in alarm."""

    def a_month(self, number: int) -> float:
        return number / self.days * MONTH


def population() -> np.ndarray:
    """Return the housing table as the columns that drift watches: float64 [20640, 12].

    The price stands for the prediction.
    """
    X, y = fields_and_target(HOUSING, load().table.dropna())
    return columns.columns(
        HOUSING, columns.names(HOUSING), X.to_numpy(float), np.asarray(y, dtype=float)
    )


def windows(
    profile: Profile, rng: np.random.Generator, hours: int, rows: int, draw: object
) -> np.ndarray:
    """Return the counts of the last 24 hours at each hour from the 24th on, [hours - 23, size].

    Requests come at random: `rows` a day on average. `draw(n, hour)` gives the rows of an hour.
    """
    by_hour = np.array(
        [
            profile.count(draw(rng.poisson(rows / HOURS_A_DAY), hour)).vector  # type: ignore[operator]
            for hour in range(hours)
        ]
    )
    added = np.cumsum(by_hour, axis=0)
    added[HOURS_A_DAY:] -= added[:-HOURS_A_DAY].copy()
    return added[HOURS_A_DAY - 1 :]


def p_values(profile: Profile, vectors: np.ndarray) -> np.ndarray:
    """Return p of each look and test, a few looks at a time: memory stays small."""
    parts = range(0, len(vectors), LOOKS_AT_ONCE)
    return np.concatenate(
        [assessment.p_values(profile, vectors[at : at + LOOKS_AT_ONCE]) for at in parts]
    )


def custom_alarms(profile: Profile, vectors: np.ndarray) -> dict[str, np.ndarray]:
    """Return, by custom, which windows are an alarm in any column."""
    index, ks = [], []
    for column, place in zip(profile.columns, profile.places, strict=True):
        bins = vectors[:, place][:, :-1]
        tenths = assessment.coarser(column)
        index.append(statistics.population_stability_index(bins @ tenths, column.counts @ tenths))
        n = np.maximum(1, bins.sum(axis=1))
        apart = np.abs(
            np.cumsum(bins, axis=1) / n[:, None] - np.cumsum(column.counts) / column.n
        ).max(axis=1)
        together = n * column.n / (n + column.n)
        ks.append(stats.kstwobign.sf(apart * np.sqrt(together)))
    largest, smallest = np.nan_to_num(np.array(index)).max(axis=0), np.array(ks).min(axis=0)
    return {"PSI 0.1": largest > 0.1, "PSI 0.25": largest > 0.25, "KS 0.05": smallest < 0.05}


def year(rows: int, seed: int, days: int = DAYS_A_YEAR, training_rows: int = TRAINING_ROWS) -> Year:
    """Live through days without drift, with `rows` in a window, and count the alarms."""
    rng = np.random.default_rng([seed, rows])
    table = population()
    profile = Profile.learn(
        columns.names(HOUSING), table[rng.integers(0, len(table), training_rows)]
    )
    vectors = windows(
        profile,
        rng,
        (days + 1) * HOURS_A_DAY - 1,
        rows,
        lambda n, _: table[rng.integers(0, len(table), n)],
    )
    p = p_values(profile, vectors)
    alarm = (p <= assessment.threshold(profile, BUDGET.alpha_per_look)).any(axis=1)
    daily = custom_alarms(profile, vectors[::HOURS_A_DAY])
    return Year(
        rows,
        len(vectors),
        int(alarm.sum()),
        int(alarm[0]) + int((alarm[1:] & ~alarm[:-1]).sum()),
        int((p <= 0.05).any(axis=1).sum()),
        days,
        {name: int(found.sum()) for name, found in daily.items()},
    )


def delays(rows: int, size: float | None, seed: int) -> dict[str, int | None]:
    """Return the hours from a shift to the first alarm, ours and by custom; None: not in 72.

    The window is full of rows without drift when the shift begins. Custom looks every hour too.
    """
    rng = np.random.default_rng([seed, rows, 1])
    table = population()
    names = columns.names(HOUSING)
    profile = Profile.learn(names, table[rng.integers(0, len(table), TRAINING_ROWS)])
    moved, place = table.copy(), names.index(SHIFTED)
    if size is None:
        moved[:, place] = rng.permutation(moved[:, place])
    else:
        moved[:, place] += size * table[:, place].std()

    def draw(n: int, hour: int) -> np.ndarray:
        source = moved if hour >= HOURS_A_DAY else table
        return np.asarray(source[rng.integers(0, len(source), n)])

    vectors = windows(profile, rng, HOURS_A_DAY + LONGEST_DELAY, rows, draw)[1:]
    limit = assessment.threshold(profile, BUDGET.alpha_per_look)
    found = {
        "ours": (p_values(profile, vectors) <= limit).any(axis=1),
        **custom_alarms(profile, vectors),
    }
    return {name: int(a.argmax()) + 1 if a.any() else None for name, a in found.items()}


def run(home: Path, write: bool = False) -> None:
    """Measure, and print; with `write`, publish in docs/drift.md. `home` is an empty folder."""
    from benchmarks import drift_cost

    cost = drift_cost.run(home)
    years, found, lines = measure()
    if write:
        draw(DRAWING, years, found)
        kept, mark, _ = PAGE.read_text().partition(MARK)
        lines = [*cost, "", f"![Delays beside false alarms]({DRAWING.name})", "", *lines]
        PAGE.write_text(f"{kept}{mark}\n\n" + "\n".join(lines) + "\n")


def measure() -> tuple[list[Year], Found, list[str]]:
    """Measure years and delays; print and return the tables as Markdown, too."""
    with ProcessPoolExecutor(max_workers=min(2, os.cpu_count() or 1)) as pool:
        asked = [(rows, seed) for rows in ROWS_A_WINDOW for seed in range(YEARS)]
        years = list(pool.map(year, *zip(*asked, strict=True)))
        lines = _years(years)
        print("\n".join(["", *lines]), flush=True)
        told = [
            (rows, size, seed)
            for rows in ROWS_A_WINDOW
            for size in SHIFTS.values()
            for seed in range(RUNS)
        ]
        each = pool.map(delays, *zip(*told, strict=True), chunksize=5)
        found = dict(zip(told, each, strict=True))
        more = _delays(found)
        print("\n".join(["", *more]), flush=True)
    return years, found, [*lines, "", *more]


def draw(path: Path, years: list[Year], found: Found) -> None:
    """Draw the median delays; the legend says how often each calls in a quiet month."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.9), layout="constrained")
    sizes = [size for size in SHIFTS.values() if size is not None]
    for place, rows in enumerate(ROWS_A_WINDOW, 1):
        axes = figure.add_subplot(1, len(ROWS_A_WINDOW), place)
        mine = [one for one in years if one.rows == rows]
        for name, style in zip(("ours", *CUSTOM), ("o-", "s--", "^-.", "D:"), strict=True):
            middle = [
                _middle([found[rows, size, seed][name] for seed in range(RUNS)]) for size in sizes
            ]
            quiet = np.mean(
                [
                    one.a_month(one.looks_in_alarm if name == "ours" else one.custom[name])
                    for one in mine
                ]
            )
            axes.plot(
                sizes,
                np.minimum(middle, LONGEST_DELAY),
                style,
                markersize=4,
                linewidth=1.3,
                label=f"{name}: {quiet:.1f}",
            )
        axes.set(
            xscale="log",
            ylim=(0, LONGEST_DELAY + 4),
            title=f"{rows:,} rows a window",
            xlabel="shift of one mean, in σ",
            xticks=sizes,
            xticklabels=sizes,
        )
        axes.minorticks_off()
        axes.legend(title="alarms in a quiet month", fontsize=6, title_fontsize=6)
        axes.tick_params(labelsize=7)
        if place == 1:
            axes.set_ylabel(f"hours to the first alarm\n({LONGEST_DELAY}: later, or never)")
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "drift"}):
        figure.savefig(path, format="svg", metadata={"Date": None})


def _years(years: list[Year]) -> list[str]:
    lines = [
        f"A year of traffic without drift, {YEARS} times, a window of a day, a look every hour:"
        " alarms in 30 days, where the budget is 1.",
        "",
        "| rows a window | looks in alarm | calls | each test at 0.05 | "
        + " | ".join(f"{name}, once a day" for name in CUSTOM)
        + " |",
        "|---" * (4 + len(CUSTOM)) + "|",
    ]
    for rows in ROWS_A_WINDOW:
        mine = [one for one in years if one.rows == rows]
        counted = [
            *(
                [one.looks_in_alarm, one.alarms, one.uncorrected, *one.custom.values()]
                for one in mine
            ),
        ]
        monthly = np.mean(counted, axis=0) / mine[0].days * MONTH
        lines.append(f"| {rows:,} | " + " | ".join(f"{number:.2f}" for number in monthly) + " |")
    return lines


def _delays(found: Found) -> list[str]:
    lines = [
        f"Hours from a shift to the first alarm, median of {RUNS}; a dash: most saw nothing in"
        f" {LONGEST_DELAY} hours. All look every hour. Mind above how often the others call when"
        " there is nothing.",
        "",
        "| shift | rows a window | ours | " + " | ".join(CUSTOM) + " |",
        "|---" * (3 + len(CUSTOM)) + "|",
    ]
    for what, size in SHIFTS.items():
        for rows in ROWS_A_WINDOW:
            runs = [found[rows, size, seed] for seed in range(RUNS)]
            cells = [_median([one[name] for one in runs]) for name in ("ours", *CUSTOM)]
            lines.append(f"| {what} | {rows:,} | " + " | ".join(cells) + " |")
    return lines


def _median(hours: list[int | None]) -> str:
    middle = _middle(hours)
    return f"{middle:g}" if np.isfinite(middle) else "–"


def _middle(hours: list[int | None]) -> float:
    return float(np.median([np.inf if one is None else one for one in hours]))

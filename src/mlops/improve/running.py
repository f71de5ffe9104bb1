"""An experiment's judgement as it runs: sums that each label adds to, looked at after each one.

What `sequential.py` says of whole arrays is said here from running sums, so a look costs the same
after the millionth label as after the first, and the sums can be kept and taken up again.

- `Paired`: both models answered the same rows. The same as `sequential.paired`.
- `Arms`: each client is answered by one model. The labels of one client are no independent
  draws, so a client, not a label, is the unit: the variance is that between clients' totals (the
  ratio estimate of cluster sampling; Cochran, "Sampling Techniques", 1977, chapter 6), and the
  first look comes after `FIRST_LOOK_OF_ARM` clients of each arm. Each label counts 1 over the
  probability that its client went to that arm (Hájek 1971), so a share that changes on the way
  does not mix up what changed with time and what with the model. Where every label is another
  client's, and the share stays, it is `sequential.unpaired`.

The first look at which the interval lies on one side of 0 is the verdict, and it stays: whoever
goes on looking would only add chances to be wrong.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, Literal, NamedTuple, Self

import numpy as np

from mlops.improve.sequential import (
    FIRST_LOOK,
    FIRST_LOOK_OF_ARM,
    SAMPLE_RATIO_ALPHA,
    Intervals,
    Judgement,
    around,
    labels_needed,
    sample_ratio,
)

SECONDS_A_DAY = 86_400.0
POINTS_GROW = 1.05
"""The series keeps a point each time labels have grown so: 47 points for each tenfold."""
MOST_MISSING = 0.05
"""Share of predictions that are not compared, above which nothing is decided automatically."""
ARMS = ("champion", "challenger")


class Label(NamedTuple):
    """One prediction whose truth is known, with the loss of each model that answered it.

    `at` is when it was made, in unix seconds. In an A/B only the arm that answered has a loss, and
    `share` is the challenger's share of the clients at the time.
    """

    at: float
    unit: str
    champion: float | None
    challenger: float | None
    share: float = 0.0


Totals = MutableMapping[tuple[str, str], tuple[float, float]]
"""By client and arm: the sum of its labels' weights, and that of weight times loss."""


@dataclasses.dataclass(slots=True)
class Paired:
    """Differences in loss on the same rows, challenger less champion, as running sums."""

    labels: int = 0
    differing: int = 0
    centre: float = 0.0
    first: float = 0.0
    second: float = 0.0
    """Sums of the differences less `centre`, and of its squares: so squares do not cancel."""

    def add(self, labels: Sequence[Label], totals: Totals, alpha: float) -> Intervals:
        """Return the sequence after each of these labels, each with both losses."""
        values = np.array([one.challenger - one.champion for one in labels])  # type: ignore[operator]
        if not self.labels:
            self.centre = float(values.mean())
        moved = values - self.centre
        count = self.labels + np.arange(1, len(values) + 1)
        first = self.first + np.cumsum(moved)
        second = self.second + np.cumsum(moved**2)
        differing = self.differing + np.cumsum(values != 0)
        variance = np.maximum(second - first**2 / count, 0) / np.maximum(count - 1, 1)
        self.labels, self.differing = int(count[-1]), int(differing[-1])
        self.first, self.second = float(first[-1]), float(second[-1])
        known = differing >= FIRST_LOOK
        return around(self.centre + first / count, np.sqrt(variance), count, known, alpha)

    def needed(self, mean: float, alpha: float) -> float:
        """Return after how many labels this mean would be told from 0."""
        spread = math.sqrt(max(self.second / self.labels - (self.first / self.labels) ** 2, 0))
        return labels_needed(mean, spread, alpha=alpha)


SUMS = ("units", "weight", "loss", "weight2", "weight_loss", "loss2")
"""What is summed over the clients of an arm: 1, and powers of their weights and losses."""


@dataclasses.dataclass(slots=True)
class Arms:
    """Losses of two arms as running sums, the champion's first; losses are less `centre`."""

    labels: int = 0
    centre: float = 0.0
    sums: list[list[float]] = dataclasses.field(
        default_factory=lambda: [[0.0] * len(SUMS) for _ in ARMS]
    )
    spread: float = 0.0
    """Of a client, as if the difference of the means were a mean over clients."""

    def add(self, labels: Sequence[Label], totals: Totals, alpha: float) -> Intervals:
        """Return the sequence after each of these labels, each with the loss of its arm.

        `totals` are those of the clients among them, and brought up to date.
        """
        if not self.labels:
            self.centre = float(np.mean([_of_arm(one)[1] for one in labels]))
        added = np.zeros((len(labels), len(ARMS), len(SUMS)))
        for number, one in enumerate(labels):
            arm, loss = _of_arm(one)
            counts_for = 1 / (one.share if arm else 1 - one.share)
            key = one.unit, ARMS[arm]
            before, lost = totals.get(key, (0.0, 0.0))
            totals[key] = now, now_lost = before + counts_for, lost + counts_for * loss
            a, b = lost - self.centre * before, now_lost - self.centre * now
            added[number, arm] = (
                *(before == 0, counts_for, b - a),
                *(now**2 - before**2, now * b - before * a, b**2 - a**2),
            )
        sums = np.array(self.sums) + np.cumsum(added, axis=0)
        self.labels += len(labels)
        self.sums = sums[-1].tolist()
        units, weight, loss, weight2, weight_loss, loss2 = np.moveaxis(sums, -1, 0)
        whole = np.where(weight > 0, weight, 1)
        mean = loss / whole
        variance = np.maximum(loss2 - 2 * mean * weight_loss + mean**2 * weight2, 0) / whole**2
        variance *= units / np.maximum(units - 1, 1)
        clients = units.sum(axis=1)
        spread = np.sqrt(clients * variance.sum(axis=1))
        self.spread = float(spread[-1])
        known = units.min(axis=1) >= FIRST_LOOK_OF_ARM
        return around(mean[:, 1] - mean[:, 0], spread, clients, known, alpha)

    @property
    def units(self) -> tuple[int, int]:
        """How many clients each arm has labels of."""
        return int(self.sums[0][0]), int(self.sums[1][0])

    def needed(self, mean: float, alpha: float) -> float:
        """Return after how many labels, of as many clients each, this mean would be told from 0."""
        fewest, clients = min(self.units), sum(self.units)
        if not fewest:
            return math.inf
        enough = clients * FIRST_LOOK_OF_ARM / fewest
        clients_needed = max(labels_needed(mean, self.spread, alpha=alpha), enough)
        return self.labels * clients_needed / clients


def _of_arm(label: Label) -> tuple[int, float]:
    if label.challenger is not None:
        return 1, label.challenger
    if label.champion is None:
        raise ValueError("a label without a loss")
    return 0, label.champion


class Point(NamedTuple):
    """The judgement after so many labels, to draw; None before the first look."""

    labels: int
    at: float
    mean: float
    low: float | None
    high: float | None


@dataclasses.dataclass(slots=True)
class Trial:
    """All that is known of an experiment's outcome so far; plain values, to be kept as JSON.

    `low` and `high` are None before the first look.
    `left_out` counts predictions that had no truth in time, `failed` those to which the challenger
    had no answer in the shadow. `astray` counts those that another
    version answered than the one their client was for. `clients` counts, for each share there was,
    the clients that were first seen then, by arm; `evidence` is the most that ever spoke against
    their going where they should.
    """

    mode: Literal["shadow", "ab"]
    alpha: float
    sums: Paired | Arms
    mean: float = 0.0
    low: float | None = None
    high: float | None = None
    losses: list[float] = dataclasses.field(default_factory=lambda: [0.0, 0.0])
    counts: list[int] = dataclasses.field(default_factory=lambda: [0, 0])
    left_out: int = 0
    failed: int = 0
    astray: int = 0
    clients: list[dict[str, int]] = dataclasses.field(default_factory=list)
    evidence: float = 1.0
    first_at: float | None = None
    last_at: float = 0.0
    decided: dict[str, Any] | None = None
    series: list[Point] = dataclasses.field(default_factory=list)

    @classmethod
    def begin(cls, mode: Literal["shadow", "ab"], alpha: float) -> Self:
        return cls(mode, alpha, Paired() if mode == "shadow" else Arms())

    @classmethod
    def of_json(cls, kept: Mapping[str, Any]) -> Self:
        """Return the trial of which `as_json` was kept."""
        sums = Paired if kept["mode"] == "shadow" else Arms
        series = [Point(*one) for one in kept["series"]]
        return cls(**{**kept, "sums": sums(**kept["sums"]), "series": series})

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def take(self, labels: Sequence[Label], totals: Totals) -> None:
        """Look after each of these labels, in the order in which the predictions were made."""
        if not labels:
            return
        before = self.sums.labels
        found = self.sums.add(labels, totals, self.alpha)
        if self.first_at is None:
            self.first_at = labels[0].at
        self.last_at = labels[-1].at
        for one in labels:
            for arm, loss in enumerate((one.champion, one.challenger)):
                if loss is not None:
                    self.losses[arm] += loss
                    self.counts[arm] += 1
        told = np.flatnonzero((found.high < 0) | (found.low > 0))
        if self.decided is None and len(told):
            first = int(told[0])
            self.decided = {
                "outcome": "better" if found.high[first] < 0 else "worse",
                "labels": before + first + 1,
                "at": labels[first].at,
                "mean": float(found.mean[first]),
                "low": float(found.low[first]),
                "high": float(found.high[first]),
            }
        next_point = self.series[-1].labels * POINTS_GROW if self.series else 0
        for number, label in enumerate(labels):
            so_far = before + number + 1
            if so_far >= next_point:
                ends = _finite(found.low[number]), _finite(found.high[number])
                self.series.append(Point(so_far, label.at, float(found.mean[number]), *ends))
                next_point = max(so_far + 1, so_far * POINTS_GROW)
        self.mean = float(found.mean[-1])
        self.low, self.high = _finite(found.low[-1]), _finite(found.high[-1])

    def see(self, stretch: int, arms: Sequence[str], shares: Sequence[float]) -> None:
        """Count clients that were seen for the first time, while `shares[stretch]` held."""
        self.clients += [dict.fromkeys(ARMS, 0) for _ in range(len(shares) - len(self.clients))]
        for arm in arms:
            self.clients[stretch][arm] += 1
        if self.mode == "ab":
            meant = [dict(zip(ARMS, (1 - share, share), strict=True)) for share in shares]
            self.evidence = max(self.evidence, sample_ratio(self.clients, meant))

    @property
    def went_astray(self) -> bool:
        """Whether it is settled that clients did not go where they should."""
        return self.evidence >= 1 / SAMPLE_RATIO_ALPHA

    def judgement(self) -> Judgement:
        """Return the verdict, as of the label that gave it, or what is known now and a forecast."""
        if self.decided:
            told = {name: value for name, value in self.decided.items() if name != "at"}
            return Judgement(**told)
        labels = self.sums.labels
        if self.first_at is None:
            return Judgement("cannot tell yet", 0.0, -math.inf, math.inf, 0, math.inf, math.inf)
        more = max(self.sums.needed(self.mean, self.alpha) - labels, 1)
        seconds = self.last_at - self.first_at
        days = more / labels * max(seconds, 1.0) / SECONDS_A_DAY if labels > 1 else math.inf
        low, high = (-math.inf, math.inf) if self.low is None else (self.low, self.high or 0.0)
        return Judgement("cannot tell yet", self.mean, low, high, labels, more, days)

    @property
    def says(self) -> str:
        """Return the verdict in a sentence, with what it must be taken with."""
        if self.went_astray:
            return (
                "cannot tell: clients did not go where they should "
                f"(sample ratio, evidence {self.evidence:,.0f}; the limit is "
                f"{1 / SAMPLE_RATIO_ALPHA:,.0f})"
            )
        says = self.judgement().says
        if isinstance(self.sums, Arms) and min(self.sums.units) < FIRST_LOOK_OF_ARM:
            few = " and ".join(map(str, self.sums.units))
            says += f" ({few} clients of the arms; {FIRST_LOOK_OF_ARM} of each are needed)"
        if self.failed:
            says += f"; the challenger failed on {self.failed:,} rows, which are not in it"
        if self.left_out:
            says += f"; {self._share(self.left_out):.1%} of the predictions had no truth in time"
        if self.astray:
            share = self._share(self.astray)
            says += f"; {share:.1%} were answered by the other version than was theirs"
        return says

    def _share(self, missing: int) -> float:
        return missing / max(self.left_out + self.astray + self.sums.labels, 1)

    @property
    def outcome(self) -> str:
        return "cannot tell" if self.went_astray else self.judgement().outcome

    @property
    def decides(self) -> bool:
        """Whether the verdict may decide by itself."""
        told = self.outcome in ("better", "worse")
        return told and not self.failed and self._share(self.left_out + self.astray) <= MOST_MISSING


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None

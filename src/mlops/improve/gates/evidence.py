"""What gates look at, and the shape of what they answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

Outcome = Literal["pass", "fail", "cannot tell"]


@dataclasses.dataclass(frozen=True, slots=True)
class Paired:
    """Losses of the version and of the champion on the same rows, shape (n,) each.

    Squared error, or 1 for a wrong class. `champion` is None where there is nothing to compare
    with. `answers` are the least and the greatest answer of the version.
    """

    losses: np.ndarray
    champion: np.ndarray | None
    answers: tuple[float, float] = (0.0, 0.0)


@dataclasses.dataclass(frozen=True, slots=True)
class Cost:
    """What a model takes: bytes of its graph, and the median microseconds of one row's answer."""

    bytes: int
    microseconds: float


@dataclasses.dataclass(frozen=True, slots=True)
class Proof:
    """What was proven when the bundle was sealed: the graph against the fitted pipeline.

    `rows` were compared, `needed` are all there were; `difference` is the largest, relative to
    the value where that is above 1. `rows` is None for a bundle that holds no proof.
    """

    rows: int | None
    needed: int
    difference: float


@dataclasses.dataclass(frozen=True, slots=True)
class Bands:
    """A division of the test rows: the names of its bands, and the number of each row's, (n,).

    `largest_gap` is set where the bands are to be treated alike: how far the mean losses of two
    may be apart.
    """

    name: str
    names: tuple[str, ...]
    of_row: np.ndarray
    largest_gap: float | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of the version that asks to be champion.

    `score` is the sealed one; `measured_score` what the graph that would serve scores now on the
    same test rows, None if the version learnt from other data. `losses` and `champion_losses` are
    per-row losses on the same test rows, shape (n,), as in `Paired`; `champion_losses` is None
    where there is no champion, or it learnt from other data, so that these rows would not be new
    to it. `perturbed` are both on rows changed as each key says. `answers_allowed` bounds answers
    to such rows. A signature is what a bundle says of its fields, limits and target; `declared`
    is the use case's own.
    """

    metric: str
    score: float
    baseline_score: float
    measured_score: float | None
    golden_difference: float
    proof: Proof
    losses: np.ndarray
    champion_losses: np.ndarray | None
    champion: str
    bands: tuple[Bands, ...]
    perturbed: Mapping[str, Paired]
    answers_allowed: tuple[float, float]
    cost: Cost
    champion_cost: Cost | None
    budget: Cost
    signature: Mapping[str, Any]
    champion_signature: Mapping[str, Any] | None
    declared: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """One gate's answer, with its numbers. "cannot tell" never passes as "pass".

    `blocks` says whether this answer keeps the version from being promoted: "fail" always does,
    "cannot tell" where the gate says so.
    """

    gate: str
    outcome: Outcome
    says: str
    numbers: dict[str, float]
    blocks: bool = False

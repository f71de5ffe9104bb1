"""What gates look at, and the shape of what they answer."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np


@dataclasses.dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of the version that asks to be champion.

    `losses` and `champion_losses` are per-row losses on the same test rows (squared error, or 1
    for a wrong class), shape (n,); `champion_losses` is None where there is no champion, or it
    learnt from other data, so that these rows would not be new to it.
    """

    metric: str
    score: float
    baseline_score: float
    golden_difference: float
    losses: np.ndarray
    champion_losses: np.ndarray | None
    champion: str


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """One gate's answer, with its numbers. "cannot tell" never passes as "pass"."""

    gate: str
    outcome: Literal["pass", "fail", "cannot tell"]
    says: str
    numbers: dict[str, float]

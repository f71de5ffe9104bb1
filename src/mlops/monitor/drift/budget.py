"""The budget: how many false alarms in how much time, and what a single look may then spend.

If nothing drifts, each look raises a false alarm with at most the probability `alpha_per_look`, so
the expected number in the stated time is at most what the user allowed. That is a sum of
expectations: it holds however much looks overlap and however much columns have to do with each
other, and for any number of rows.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from mlops.errors import UsageError

SECONDS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
LARGEST_ALPHA = 0.1


class Budget(NamedTuple):
    """At most `alarms` false alarms in `seconds`, on average, with a look every `every` seconds."""

    alarms: float
    seconds: int
    every: int

    @property
    def alpha_per_look(self) -> float:
        """The chance of a false alarm that one look may take: never more than one in ten."""
        return min(LARGEST_ALPHA, self.alarms * self.every / self.seconds)

    def __str__(self) -> str:
        return (
            f"at most {self.alarms:g} false alarm{'s' * (self.alarms != 1)} in "
            f"{span(self.seconds)} on average, with a look every "
            f"{span(self.every).removeprefix('1 ')}"
        )


def parse_budget(text: str, every: int) -> Budget:
    """Return the budget that "1/30d" states. Raises `UsageError`."""
    number, slash, stretch = text.partition("/")
    try:
        alarms = float(number)
    except ValueError:
        alarms = 0.0
    if not slash or not 0 < alarms < 1e6:
        raise UsageError(
            f"{text!r} is no budget of false alarms", "write, say, 1/30d: one in thirty days"
        )
    return Budget(alarms, parse_span(stretch), every)


def parse_span(text: str) -> int:
    """Return the seconds of "7d", "12h", "30m" or "2w". Raises `UsageError`."""
    found = re.fullmatch(r"\s*([0-9]{1,5})\s*([mhdw])\s*", text.lower())
    seconds = int(found[1]) * SECONDS[found[2]] if found else 0
    if not seconds:
        raise UsageError(f"{text!r} is no stretch of time", "write, say, 7d, 12h, 30m or 2w")
    return seconds


def span(seconds: int) -> str:
    """Return a stretch of time as people say it."""
    for unit, name in ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second")):
        if seconds % unit == 0 and seconds >= unit:
            number = seconds // unit
            return f"{number:,} {name}{'s' * (number != 1)}"
    return f"{seconds} seconds"

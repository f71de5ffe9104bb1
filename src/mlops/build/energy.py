"""What a piece of work took: time by the clock, processor time, and energy where it is measured.

Processors with RAPL (Intel, AMD) count their energy, which Linux shows in `/sys/class/powercap`,
as a rule to root only. The counters are of whole processors: what else ran is in them.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

POWERCAP = Path("/sys/class/powercap")


class Spent(NamedTuple):
    """Seconds by the clock, processor seconds of this process and its children, and joules.

    `joules` is None where they cannot be read.
    """

    seconds: float
    cpu_seconds: float
    joules: float | None


class Meter:
    """Begins to measure when it is made."""

    def __init__(self, powercap: Path = POWERCAP) -> None:
        self._counters = {
            path: _number(path.with_name("max_energy_range_uj"))
            for path in powercap.glob("*-rapl:[0-9]*/energy_uj")
            if path.parent.name.count(":") == 1  # a processor, not a part of one
        }
        self._began = time.perf_counter(), _processor_seconds(), self._energy()

    def spent(self) -> Spent:
        clock, processor, energy = self._began
        return Spent(
            time.perf_counter() - clock,
            _processor_seconds() - processor,
            self._joules(energy, self._energy()),
        )

    def _energy(self) -> list[int | None]:
        return [_number(path) for path in self._counters]

    def _joules(self, before: list[int | None], after: list[int | None]) -> float | None:
        """Add up the differences; a counter that has begun anew since had gone to its range."""
        total = 0
        for begin, end, span in zip(before, after, self._counters.values(), strict=True):
            if begin is None or end is None:
                return None
            total += end - begin if end >= begin else end - begin + (span or 0)
        return total / 1e6 if before else None


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _processor_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system

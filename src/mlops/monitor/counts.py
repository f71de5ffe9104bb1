"""What is counted about requests, and how counts add up. Pure: nothing here opens anything.

A request falls into one bucket of time: of a second when it is new, which is added to those of its
minute, hour and day as it ages, so their number stays small whatever the traffic (`MERGES`).

Response times are counted in classes of logarithmic width: a quantile read from them is off by at
most `QUANTILE_ERROR`, and two histograms are added class by class (as in DDSketch: Masson, Rim and
Lee, VLDB 2019).

Users are not stored but sketched (HyperLogLog: Flajolet and others, 2007, with the estimator of
Ertl, arXiv:1702.01284): a client's digest picks one of 4,096 registers and a rank, and what is kept
is when each (register, rank) was last seen. From that follows the number of different clients since
*any* moment (sliding HyperLogLog: Chabchoub and Hébrail, 2010), with a standard error of 1.6 %.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import math
from collections.abc import Mapping, Sequence

import numpy as np

SECOND, MINUTE, HOUR, DAY = 1, 60, 3600, 86400

MERGES = ((SECOND, MINUTE, 2 * MINUTE), (MINUTE, HOUR, 25 * HOUR), (HOUR, DAY, 35 * DAY))
"""Buckets of the first width are added to those of the second when they are older than the third
(seconds). No window is read from buckets wider than a minute but "all"."""

WINDOWS: Mapping[str, int | None] = {"minute": MINUTE, "hour": HOUR, "day": DAY, "all": None}
"""Seconds back from now; None: everything. A window begins with a whole bucket, so an hour and a
day may hold up to a minute more."""

CLASSES_PER_DOUBLING = 8
SHORTEST_MS = 2**-4
DOUBLINGS = 20
CLASSES = CLASSES_PER_DOUBLING * DOUBLINGS + 2
"""Class 0 holds what took no longer than `SHORTEST_MS`, the last what took more than 65 s."""
QUANTILE_ERROR = 2 ** (0.5 / CLASSES_PER_DOUBLING) - 1  # 4.4 %: a class's middle against its ends
HISTOGRAM = np.dtype("<u4")

REGISTER_BITS = 12
REGISTERS = 1 << REGISTER_BITS
HASH_BITS = 64 - REGISTER_BITS


def width_at(age: float) -> int:
    """Return the width in seconds of the bucket that a request `age` seconds old falls into."""
    for width, _, kept in MERGES:
        if abs(age) < kept:
            return width
    return HOUR  # the next merge takes it on, and notes the busiest hour


def unix_second(timestamp: str) -> int:
    """Return the second that a timestamp of the log falls into."""
    return _unix_second(timestamp[:19])


@functools.lru_cache(maxsize=1024)
def _unix_second(to_the_second: str) -> int:
    return int(datetime.datetime.fromisoformat(f"{to_the_second}+00:00").timestamp())


# -- response times ------------------------------------------------------------------------------


def classes_of(seconds: Sequence[float]) -> np.ndarray:
    """Return the class of each response time; its upper end belongs to a class, its lower not."""
    doublings = np.log2(np.maximum(np.asarray(seconds) * 1000, 1e-9) / SHORTEST_MS)
    # A bound itself must not land in the next class through rounding.
    number = np.ceil(doublings * CLASSES_PER_DOUBLING - 1e-9)
    classes: np.ndarray = np.clip(number, 0, CLASSES - 1).astype(np.intp)
    return classes


def histogram(seconds: Sequence[float]) -> np.ndarray:
    """Return how many of the response times fall into each class, (`CLASSES`,)."""
    return np.bincount(classes_of(seconds), minlength=CLASSES)


def pack(counted: np.ndarray) -> bytes:
    """Return a histogram as it is stored: 32 bits a class."""
    stored: bytes = np.minimum(counted, np.iinfo(HISTOGRAM).max).astype(HISTOGRAM).tobytes()
    return stored


def unpack(stored: Sequence[bytes]) -> np.ndarray:
    """Return stored histograms as one matrix, (n, `CLASSES`)."""
    return np.frombuffer(b"".join(stored), HISTOGRAM).reshape(-1, CLASSES)


def quantile(counted: np.ndarray, share: float) -> float | None:
    """Return the response time in seconds that `share` of the answers did not exceed; None of none.

    Off by at most `QUANTILE_ERROR`, between 0.06 ms and 65 s; what took longer counts as 65 s.
    """
    total = int(counted.sum())
    if not total:
        return None
    number = int(np.searchsorted(np.cumsum(counted), max(1, math.ceil(share * total))))
    middle = min(max(number - 0.5, 0), CLASSES_PER_DOUBLING * DOUBLINGS)
    return float(SHORTEST_MS * 2 ** (middle / CLASSES_PER_DOUBLING) / 1000)


def cumulative(counted: np.ndarray) -> tuple[tuple[float, int], ...]:
    """Return (upper bound in seconds, answers that took no longer) at each doubling, then all."""
    sums = np.cumsum(counted)
    bounds = [
        (SHORTEST_MS * 2**doubling / 1000, int(sums[doubling * CLASSES_PER_DOUBLING]))
        for doubling in range(2, DOUBLINGS)  # 0.25 ms to 33 s
    ]
    return (*bounds, (math.inf, int(sums[-1])))


# -- users ---------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=8192)
def register_and_rank(client: str) -> tuple[int, int]:
    """Return where a client's digest leaves its mark."""
    digest = hashlib.blake2b(client.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    number = int.from_bytes(digest)
    return number & (REGISTERS - 1), HASH_BITS + 1 - (number >> REGISTER_BITS).bit_length()


def unique(registers_by_rank: Mapping[int, int]) -> int:
    """Estimate the number of different clients from how many registers hold which greatest rank.

    Ertl's improved raw estimator (algorithm 6), which needs no correction at either end. The
    standard error is 1.6 %; up to about ten clients are nearly always counted exactly.
    """
    if not any(registers_by_rank.values()):
        return 0
    total = REGISTERS * _tau(1 - registers_by_rank.get(HASH_BITS + 1, 0) / REGISTERS)
    for rank in range(HASH_BITS, 0, -1):
        total = 0.5 * (total + registers_by_rank.get(rank, 0))
    total += REGISTERS * _sigma(1 - sum(registers_by_rank.values()) / REGISTERS)
    return round(REGISTERS**2 / (2 * math.log(2)) / total)


def _sigma(share: float) -> float:
    if share == 1:
        return math.inf
    weight, total, before = 1.0, share, -1.0
    while total != before:
        share *= share
        before, total = total, total + share * weight
        weight *= 2
    return total


def _tau(share: float) -> float:
    if share in {0, 1}:
        return 0.0
    weight, total, before = 1.0, 1 - share, -1.0
    while total != before:
        share = math.sqrt(share)
        weight *= 0.5
        before, total = total, total - (1 - share) ** 2 * weight
    return total / 3

"""Counts that add up: classes of response times, sketches of users, widths of buckets."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from mlops.monitor import counts


def spread(kind: str) -> np.ndarray:
    random = np.random.default_rng(7)
    if kind == "lognormal":
        return np.exp(random.normal(-5, 1.5, 20_000))
    if kind == "uniform":
        return random.uniform(0.001, 0.2, 20_000)
    return np.concatenate([np.full(19_000, 0.002), np.full(1_000, 1.5)])


@pytest.mark.parametrize("kind", ["lognormal", "uniform", "two values"])
@pytest.mark.parametrize("share", [0.5, 0.9, 0.95, 0.99, 1.0])
def test_a_quantile_is_off_by_no_more_than_is_stated(kind, share):
    times = spread(kind)
    exact = np.sort(times)[math.ceil(share * len(times)) - 1]
    estimate = counts.quantile(counts.histogram(times), share)
    assert abs(estimate / exact - 1) <= counts.QUANTILE_ERROR + 1e-9


def test_a_bound_belongs_to_the_class_below_it_and_the_next_number_does_not():
    for power in range(2, counts.DOUBLINGS):
        bound = counts.SHORTEST_MS * 2**power / 1000
        below, above = counts.classes_of([bound, bound * 1.001])
        assert (below, above) == (power * counts.CLASSES_PER_DOUBLING, below + 1)


def test_cumulative_counts_are_those_of_the_times_themselves():
    times = spread("lognormal")
    for bound, number in counts.cumulative(counts.histogram(times)):
        assert number == np.count_nonzero(times <= bound)
    assert math.isinf(bound)
    assert number == len(times)


def test_times_out_of_every_class_are_counted_at_the_ends():
    counted = counts.histogram([0.0, -1.0, 1e-9, 1e9])
    assert (counted[0], counted[-1]) == (3, 1)
    assert 0 < counts.quantile(counted, 0.5) < 1e-4
    assert 60 < counts.quantile(counted, 1) < 70


def test_of_no_answers_no_quantile_is_made_up():
    assert counts.quantile(counts.histogram([]), 0.5) is None
    assert counts.unpack([]).shape == (0, counts.CLASSES)


def test_histograms_are_added_class_by_class_and_stored_without_loss():
    one, two = spread("lognormal"), spread("uniform")
    stored = [counts.pack(counts.histogram(times)) for times in (one, two)]
    both = counts.unpack(stored).sum(axis=0)
    assert (both == counts.histogram(np.concatenate([one, two]))).all()


def sketch(number: int, name: str = "client") -> Counter[int]:
    greatest: dict[int, int] = {}
    for n in range(number):
        register, rank = counts.register_and_rank(f"{name}-{n}")
        greatest[register] = max(greatest.get(register, 0), rank)
    return Counter(greatest.values())


@pytest.mark.parametrize("number", [0, 1, 2, 3, 5, 10])
def test_a_few_users_are_counted_exactly(number):
    assert counts.unique(sketch(number)) == number


@pytest.mark.parametrize("number", [100, 1_000, 12_000, 60_000])
def test_many_users_are_estimated_within_four_standard_errors(number):
    assert counts.unique(sketch(number)) == pytest.approx(number, rel=4 * 0.0163)


def test_the_estimate_has_the_stated_error_and_no_bias():
    off = [counts.unique(sketch(4_000, f"round {n}")) / 4_000 - 1 for n in range(12)]
    assert np.sqrt(np.mean(np.square(off))) < 1.6 * 0.0163
    assert abs(np.mean(off)) < 3 * 0.0163 / math.sqrt(len(off))


def test_a_bucket_is_as_wide_as_its_age_allows():
    assert [counts.width_at(age) for age in (0, 119, 121, 25 * 3600 - 1, 25 * 3600, 1e9)] == [
        1, 1, 60, 60, 3600, 3600,
    ]  # fmt: skip
    assert counts.width_at(-1e6) == 3600  # another machine's clock


def test_no_window_is_read_from_buckets_wider_than_a_minute():
    kept = {width: kept for width, _, kept in counts.MERGES}
    for seconds in filter(None, counts.WINDOWS.values()):
        finest = min(width for width in kept if seconds < kept[width])
        assert finest <= counts.MINUTE
    assert kept[counts.SECOND] > counts.WINDOWS["minute"]

"""Drift, decided on counts: exact tests, within a budget of false alarms. No process, no file."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from benchmarks import drift as bench
from mlops.errors import DataError, UsageError
from mlops.monitor.drift import assessment, statistics
from mlops.monitor.drift.assessment import PAIRS, TRAFFIC, assess
from mlops.monitor.drift.budget import Budget, parse_budget, parse_span
from mlops.monitor.drift.profile import Profile
from mlops.records import Finding

ALPHA = Budget(1, 30 * 86400, 3600).alpha_per_look
NAMES = ("income", "age", "rooms", "price")


def rows(n: int, seed: int) -> np.ndarray:
    """Four columns: two that belong together, whole numbers that repeat, and a heavy tail."""
    rng = np.random.default_rng(seed)
    income = rng.normal(3, 1, n)
    age = rng.integers(0, 6, n).astype(float)
    rooms = rng.pareto(2, n)
    return np.column_stack([income, age, rooms, 2 * income + rng.normal(0, 0.5, n)])


@pytest.fixture(scope="module")
def profile() -> Profile:
    return Profile.learn(NAMES, rows(5_000, 1))


def found(profile: Profile, window: np.ndarray) -> dict[str, Finding]:
    return {one.subject: one for one in assess(profile, profile.count(window), ALPHA)}


def alarms(profile: Profile, window: np.ndarray) -> set[str]:
    return {name for name, one in found(profile, window).items() if one.verdict == "alarm"}


# --- the tests are exact


@pytest.mark.parametrize(
    ("n", "reference_n"), [(1, 10), (50, 16_512), (1_000, 120), (200_000, 1_000_000)]
)
@pytest.mark.parametrize("share", [0.001, 0.2, 0.5])
def test_a_p_is_that_of_the_hypergeometric_distribution_far_into_its_tails(n, reference_n, share):
    sd = np.sqrt(share * (1 - share) * n * (1 + n / reference_n))
    k = np.unique(np.clip(np.round(share * n + sd * np.arange(-8, 9)), 0, n))
    K = round(share * reference_n)
    tails = stats.hypergeom(n + reference_n, k + K, n)
    exact = np.minimum(1, 2 * np.minimum(tails.sf(k - 1), tails.cdf(k)))
    p = statistics.two_sided_p(k, n, np.array(K), reference_n)
    assert (p >= exact * (1 - 1e-6)).all()
    assert (p[exact < 1e-2] <= 1.1 * exact[exact < 1e-2]).all()


def test_factorials_are_those_of_the_gamma_function():
    n = np.array([0, 1, 2, 255, 256, 1e4, 1e7])
    assert np.allclose(statistics.log_factorial(n), stats.poisson(1).logpmf(n) * -1 - 1, rtol=1e-13)


def test_effect_sizes_are_what_others_call_by_these_names(profile):
    window = rows(4_000, 2)
    window[:, 0] += 0.3
    counts = profile.count(window)
    reference = rows(5_000, 1)
    for number in (0, 1, 3):
        column, place = profile.columns[number], profile.places[number]
        distance = statistics.wasserstein_distance(
            column, counts.vector[place][:-1], counts.low[number], counts.high[number]
        )
        exact = stats.wasserstein_distance(reference[:, number], window[:, number])
        if not column.categorical:
            assert distance == pytest.approx(exact / column.std, rel=0.05, abs=0.005)
    p, q = np.array([50, 30, 20]), np.array([30, 30, 40])
    by_hand = 0.2 * np.log(5 / 3) + 0.2 * np.log(2)
    assert statistics.population_stability_index(q, p) == pytest.approx(by_hand)
    middle = (p + q) / 200
    divergence = (stats.entropy(p / 100, middle, 2) + stats.entropy(q / 100, middle, 2)) / 2
    assert statistics.jensen_shannon_distance(q, p) == pytest.approx(np.sqrt(divergence))
    assert statistics.jensen_shannon_distance(np.array([0, 9]), np.array([9, 0])) == 1


# --- counting


def test_windows_add_up_however_they_are_cut(profile):
    window = rows(1_000, 3)
    window[::7, 0] = np.nan
    whole, parts = profile.count(window), profile.nothing()
    for part in np.array_split(window, [1, 1, 300, 999]):
        parts += profile.count(part)
    assert (parts.vector == whole.vector).all()
    assert (parts.low == whole.low).all()
    assert np.allclose(parts.sums, whole.sums)
    again = profile.unpack(whole.rows, whole.pack())
    assert (again.vector == whole.vector).all()
    assert (again.high == whole.high).all()


def test_what_is_counted_is_what_one_would_count_by_hand(profile):
    window = rows(500, 4)
    window[:20, 2] = np.nan
    counts = profile.count(window)
    bins = counts.vector[profile.places[0]][:-1]
    edges = profile.columns[0].edges
    assert bins.sum() == 500
    assert bins[:40].sum() == (window[:, 0] <= edges[39]).sum()
    assert counts.vector[profile.places[1]].tolist() == [
        *((window[:, 1] == value).sum() for value in range(6)),
        0,
        0,
    ]
    assert counts.vector[profile.places[2]][-1] == 20
    medians = [column.quartiles[1] for column in profile.columns]
    for pair, (i, j) in enumerate(profile.pairs):
        both = np.isfinite(window[:, [i, j]]).all(axis=1)
        agree = (window[both, i] > medians[i]) == (window[both, j] > medians[j])
        assert profile.agreed(counts.vector)[pair, :2].tolist() == [both.sum(), agree.sum()]


def test_a_profile_is_sealed_as_json_and_read_back(profile):
    documents = json.loads(json.dumps(profile.as_documents(), sort_keys=True))
    again = Profile.of_documents(documents)
    assert again.names == profile.names
    assert (again.agreements == profile.agreements).all()
    assert all(
        (a.edges == b.edges).all() for a, b in zip(again.columns, profile.columns, strict=True)
    )
    with pytest.raises(DataError, match="no profile"):
        Profile.of_documents({"income": {"agreements": {}}})


def test_counts_of_another_profile_are_refused(profile):
    other = Profile.learn(NAMES[:2], rows(500, 5)[:, :2])
    with pytest.raises(DataError, match="another profile"):
        profile.unpack(1, other.count(rows(1, 1)[:, :2]).pack())


# --- what is found, and what cannot be told


def test_traffic_like_training_is_ok(profile):
    for n in (100, 2_000, 50_000):
        verdicts = {name: one.verdict for name, one in found(profile, rows(n, n)).items()}
        assert verdicts == dict.fromkeys([TRAFFIC, *NAMES, PAIRS], "ok")


def test_a_shift_is_found_in_its_column(profile):
    window = rows(1_000, 6)
    window[:, 2] *= 1.5
    assert alarms(profile, window) == {TRAFFIC, "rooms"}


def test_a_spread_that_changes_around_the_same_mean_is_found(profile):
    window = rows(1_000, 6)
    window[:, 0] = 3 + 2 * (window[:, 0] - 3)
    assert "income" in alarms(profile, window)


def test_equal_columns_that_no_longer_belong_together_are_found(profile):
    window = rows(1_000, 7)
    window[:, 3] = np.random.default_rng(8).permutation(window[:, 3])
    assert alarms(profile, window) == {TRAFFIC, PAIRS}
    one = found(profile, window)[PAIRS]
    assert one.numbers["columns"] == ["income", "price"]


def test_missing_values_new_categories_and_values_out_of_range_are_found(profile):
    window = rows(400, 9)
    window[:12, 0] = np.nan
    window[:5, 1] = 17
    window[:9, 2] = 1e9
    window[:9, 3] = -np.inf  # no finite number is a missing one
    told = found(profile, window)
    assert {name for name, one in told.items() if one.verdict == "alarm"} == {TRAFFIC, *NAMES}
    assert told["income"].says == "missing in 3.0% of 400 rows, 0.0% of training rows"
    assert told["age"].says == "5 of 400 rows hold values that training never saw"
    assert told["rooms"].says.startswith("9 of 400 rows are above ")
    assert told["price"].numbers["missing"] == 9


@pytest.mark.parametrize("n", [0, 1, 5])
def test_of_few_rows_it_cannot_be_told(profile, n):
    told = found(profile, rows(n, 1))
    assert {one.verdict for one in told.values()} == {"cannot tell"}
    assert "needs" in told[TRAFFIC].says
    json.dumps([one.numbers for one in told.values()], allow_nan=False)


def test_rows_that_are_said_to_be_needed_are_enough(profile):
    needed = assessment.rows_needed(5_000, 1e-6)
    assert needed is not None
    moved = statistics.two_sided_p(
        np.ceil(assessment.ONE_DEVIATION * needed), needed, np.array(2_500), 5_000
    )
    assert moved <= 1e-6
    assert assessment.rows_needed(10, 1e-6) is None


def test_an_empty_column_is_an_alarm_and_not_a_crash(profile):
    window = rows(200, 1)
    window[:, 0] = np.nan
    told = found(profile, window)
    assert told["income"].verdict == "alarm"
    assert told["income"].numbers["psi"] is None
    assert told["age"].verdict == "ok"


@pytest.mark.parametrize("value", [0.0, -3.5])
def test_a_constant_column_is_watched_too(value):
    constant = Profile.learn(("a", "b"), np.column_stack([np.full(300, value), rows(300, 1)[:, 0]]))
    same = np.column_stack([np.full(300, value), rows(300, 2)[:, 0]])
    assert alarms(constant, same) == set()
    same[:30, 0] = value + 1
    assert alarms(constant, same) == {TRAFFIC, "a"}


def test_classes_that_training_never_saw_are_told_by_name():
    seen = np.repeat([0.0, 1.0], 100)[:, None]
    classes = Profile.learn(("prediction",), seen, {"prediction": 3})
    told = assess(
        classes,
        classes.count(np.full((60, 1), 2.0)),
        ALPHA,
        {"prediction": ("setosa", "versicolor", "virginica")},
    )
    assert [one.subject for one in told] == [TRAFFIC, "prediction"]
    assert told[1].says == "virginica in 100.0% of 60 rows, 0.0% of training rows"


def test_a_column_without_any_value_cannot_be_learnt():
    with pytest.raises(DataError, match="column b has no value"):
        Profile.learn(("a", "b"), np.column_stack([np.arange(9.0), np.full(9, np.nan)]))


# --- the budget


def test_a_budget_is_said_as_people_say_it():
    budget = parse_budget("1/30d", parse_span("1h"))
    assert budget.alpha_per_look == pytest.approx(1 / 720)
    assert str(budget).startswith("at most 1 false alarm in 30 days")
    assert parse_budget("1/1d", parse_span("7d")).alpha_per_look == 0.1


@pytest.mark.parametrize(
    "text", ["", "1", "x/30d", "0/30d", "-1/30d", "nan/1d", "1/", "1/0d", "1/3y"]
)
def test_what_is_no_budget_is_refused(text):
    with pytest.raises(UsageError, match="is no"):
        parse_budget(text, 3600)


def test_a_quiet_time_stays_within_the_budget_which_custom_and_uncorrected_tests_break():
    quiet = [bench.year(n, seed=11, days=20, training_rows=2_000) for n in (50, 1_000)]
    for one in quiet:
        assert one.looks == 20 * 24
        assert one.a_month(one.looks_in_alarm) <= 1
        assert one.a_month(one.uncorrected) > 30  # a planted fault: 0.05 for each test
        assert one.a_month(one.custom["KS 0.05"]) > 1
    assert quiet[0].custom["PSI 0.25"] > 10


def test_a_shift_is_seen_within_the_day_and_a_shuffled_column_too():
    assert (bench.delays(1_000, 0.5, seed=1)["ours"] or 99) <= 24
    shuffled = bench.delays(1_000, None, seed=1)
    assert (shuffled["ours"] or 99) <= 24
    assert shuffled["PSI 0.1"] is None

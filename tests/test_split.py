"""The traffic split: sticky, fair, and moved no more than the weights ask for."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest

from mlops.deploy.split import arm_of
from mlops.errors import UsageError

CLIENTS = [f"client-{number}" for number in range(20_000)]
HALF = {"champion": 0.5, "challenger": 0.5}


def arms(weights: dict[str, float], salt: str = "test") -> list[str]:
    return [arm_of(client, weights, salt) for client in CLIENTS]


def test_a_client_keeps_its_arm_in_another_process_and_with_arms_in_another_order():
    weights = dict(reversed(HALF.items()))
    script = (
        "from mlops.deploy.split import arm_of\n"
        f"print([arm_of(f'client-{{n}}', {weights}, 'test') for n in range(9)])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(arms(HALF)[:9])


@pytest.mark.parametrize(
    "weights",
    [HALF, {"a": 0.9, "b": 0.1}, {"a": 1, "b": 2, "c": 3}, {"a": 99, "b": 1}],
)
def test_arms_get_their_shares(weights):
    found, total = Counter(arms(weights)), sum(weights.values())
    expected = {arm: len(CLIENTS) * weight / total for arm, weight in weights.items()}
    statistic = sum((found[arm] - count) ** 2 / count for arm, count in expected.items())
    assert statistic < 13.8  # chi-squared with 2 degrees of freedom: one in a thousand


def test_clients_with_similar_names_and_odd_ones_are_divided_too():
    names = [f"10.0.0.{number}" for number in range(256)] + ["", "\ud800", "é", "a" * 9999]
    found = Counter(arm_of(name, HALF, "test") for name in names)
    assert 90 < found["champion"] < 170


def test_a_growing_arm_takes_clients_and_nobody_else_moves():
    before = arms({"a": 45, "b": 45, "c": 10})
    after = arms({"a": 45, "b": 45, "c": 30})
    moves = Counter((x, y) for x, y in zip(before, after, strict=True) if x != y)
    assert {to for _, to in moves} == {"c"}
    needed = len(CLIENTS) * (30 / 120 - 10 / 100)
    assert sum(moves.values()) == pytest.approx(needed, rel=0.1)


def test_an_arm_without_weight_gets_nobody_and_removing_it_moves_nobody():
    assert arms({"a": 1, "b": 0, "c": 1}) == arms({"a": 1, "c": 1})
    assert set(arms({"a": 0, "b": 2})) == {"b"}


def test_another_salt_divides_anew():
    one, other = arms(HALF, "first"), arms(HALF, "second")
    same = sum(x == y for x, y in zip(one, other, strict=True))
    assert 0.48 < same / len(CLIENTS) < 0.52


@pytest.mark.parametrize(
    "weights", [{}, {"a": 0.0}, {"a": -1.0, "b": 2.0}, {"a": float("inf")}, {"a": float("nan")}]
)
def test_weights_that_mean_nothing_are_refused(weights):
    with pytest.raises(UsageError):
        arm_of("anybody", weights, "test")

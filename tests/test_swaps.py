"""Fields in each other's place, and fractions where there were none: learnt, sealed, warned of."""

from __future__ import annotations

import json
import math

import numpy as np
import orjson
import pytest
import tiny

from mlops.build import swaps
from mlops.build.data import split
from mlops.build.profile import training_ranges
from mlops.build.swaps import training_swaps, training_whole
from mlops.deploy.predictor import Champion
from mlops.deploy.unlike import Unlike
from mlops.loop.signature import signature
from mlops.usecases.housing import HOUSING

NAMES = ("rooms", "people", "income")


def nothing(rows: np.ndarray) -> np.ndarray:
    return np.zeros(len(rows), dtype=bool)


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    """Fewer people than rooms, mostly, and the richer the fewer."""
    chance = np.random.default_rng(5)
    rooms, income = np.exp(chance.normal(7, 0.7, 4_000)), chance.normal(0, 1, 4_000)
    people = rooms * np.exp(-0.7 - 0.5 * income + chance.normal(0, 0.2, 4_000))
    return np.column_stack([rooms, people, income])


def told(one: dict, rows: np.ndarray) -> np.ndarray:
    """Which rows are flagged, as the document says it."""
    a, b = (NAMES.index(name) for name in one["fields"])
    x = np.arcsinh(rows)
    score = ((x @ np.array(one["quadratic"]) + one["linear"]) * x).sum(axis=1)
    return (rows[:, a] < one["suspect_below"] * rows[:, b]) & (score > one["threshold"])


def test_swapped_fields_are_told_by_the_others_and_few_honest_rows_are_taken_for_swapped(rows):
    [one] = training_swaps(NAMES, rows[:3_000], nothing)
    assert one["fields"] == ["rooms", "people"], "a field that may be negative has no ratio"
    assert orjson.loads(orjson.dumps(one)) == one
    swapped = rows[:, [1, 0, 2]]
    assert told(one, rows[:3_000]).mean() == pytest.approx(swaps.FALSE_FLAGS, abs=0.001)
    assert told(one, rows[3_000:]).mean() < 0.02
    alone = training_swaps(NAMES[:2], rows[:3_000, :2], nothing)[0]
    assert told(one, swapped[3_000:]).mean() > 0.85
    assert told(alone, rows[3_000:, [1, 0]]).mean() < 0.7, "income tells, not the ratio alone"


def test_what_cannot_be_told_is_told_already_or_is_too_little_is_not_learnt(rows):
    chance = np.random.default_rng(1)
    alike = np.exp(chance.normal(3, 1, (3_000, 2)))
    assert training_swaps(NAMES[:2], alike, nothing) == []
    assert training_swaps(NAMES, rows, lambda some: np.ones(len(some), dtype=bool)) == []
    assert training_swaps(NAMES, rows[:999], nothing) == []
    apart = np.column_stack([rows[:, 0] + 1e6, rows[:, 0]])
    [one] = training_swaps(NAMES[:2], apart, nothing)
    assert told(one, apart[:, ::-1]).mean() > 0.98, "no honest row is suspect"
    assert not told(one, apart).any()
    assert math.isfinite(one["threshold"])


def test_columns_of_whole_numbers_are_found_among_enough_rows(rows):
    whole = np.column_stack([rows[:, 0], np.floor(rows[:, 1])])
    assert training_whole(["a", "b"], whole) == ["b"]
    assert training_whole(["a", "b"], whole[:500]) == []


@pytest.fixture(scope="module")
def housing() -> tuple[Unlike, np.ndarray, np.ndarray, dict]:
    """What is sealed of the real table, and its training and held-out rows."""
    from mlops.build.pipeline import ModelInputs

    parts = split(HOUSING, HOUSING.load().table)
    rows, held_out = (X.to_numpy(float) for X in (parts.X_train, parts.X_test))
    inputs = ModelInputs(HOUSING.fields, HOUSING.inputs)
    names = [*HOUSING.fields, *HOUSING.input_names]
    ranges = training_ranges(names, np.hstack([rows, inputs.transform(rows)]))
    document = orjson.loads(orjson.dumps(signature(HOUSING, rows, ranges, {"inputs": inputs})))
    return Unlike(HOUSING, document), held_out, inputs.transform, document


def swapped(rows: np.ndarray, a: str, b: str) -> np.ndarray:
    pair = [HOUSING.fields.index(a), HOUSING.fields.index(b)]
    rows = rows.copy()
    rows[:, pair] = rows[:, pair[::-1]]
    return rows


def test_of_held_out_houses_few_are_flagged_and_most_swaps_of_rooms_and_people(housing):
    unlike, rows, inputs, _ = housing

    def flagged(some: np.ndarray) -> float:
        return float(unlike.rows(some, inputs(some)).mean())

    assert flagged(rows) < 0.01
    assert flagged(swapped(rows, "total_rooms", "population")) > 0.7
    assert flagged(swapped(rows, "total_bedrooms", "population")) > 0.97
    assert flagged(swapped(rows, "housing_median_age", "latitude")) > 0.98, "fractions of years"
    # Hardly anybody could tell: see docs/decisions/0019-swapped-fields.md.
    assert flagged(swapped(rows, "total_bedrooms", "households")) > 0.15


def test_a_warning_of_a_swap_names_both_fields_and_is_silent_beside_a_plainer_one(housing):
    _, _, inputs, document = housing
    unlike = Unlike(HOUSING, document)
    house = dict(next(iter(HOUSING.examples.values())))
    honest = np.array([list(house.values())])
    assert unlike.tell(honest, inputs(honest)) == {}
    odd = np.vstack([honest, swapped(honest, "total_rooms", "population"), honest])
    odd[2, HOUSING.fields.index("population")] = 322.5
    warned = {row: json.loads(text) for row, text in unlike.tell(odd, inputs(odd)).items()}
    assert warned == {
        1: [
            "total_rooms = 322 and population = 880: with all other fields, training saw them "
            "rather the other way round; were they swapped?"
        ],
        2: ["population = 322.5 is not a whole number, and training saw no other"],
    }
    odd[1, HOUSING.fields.index("median_income")] = 50
    [text] = json.loads(unlike.tell(odd, inputs(odd))[1])
    assert text.startswith("median_income = 50 is outside what training saw")


def test_rows_are_told_the_same_alone_and_together(housing):
    unlike, rows, inputs, _ = housing
    some = np.vstack([rows[:150], swapped(rows[:150], "total_rooms", "population")])
    together = unlike.tell(some, inputs(some))
    alone = [unlike.tell(row[None], inputs(row[None])).get(0) for row in some]
    assert [together.get(row) for row in range(len(some))] == alone
    assert 50 < len(together) < 200


def test_a_bundle_from_before_is_served_without(housing):
    _, rows, inputs, document = housing
    old = {k: v for k, v in document.items() if k not in {"training_swaps", "training_whole"}}
    some = swapped(rows[:200], "total_rooms", "population")
    assert len(Unlike(HOUSING, old).tell(some, inputs(some))) < 20
    bundle = tiny.TinyBundle(HOUSING, 1)
    assert Champion(HOUSING, 1, "Multiplier", bundle).predict(rows[:2], [""] * 2, [None] * 2)

"""Growth: rows that come are taken once, and no row ever changes sides."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops.build.data import Table, fingerprint, split
from mlops.build.growth import Batch, field_marks, grow, lesson_of, split_grown
from mlops.usecases import USE_CASES

HOUSING, IRIS = USE_CASES["housing"], USE_CASES["iris"]
FLOWERS = IRIS.load().table
HOUSES = HOUSING.load().table.dropna().head(400).reset_index(drop=True)
MEASURES = ["sepal_length", "sepal_width", "petal_length", "petal_width"]
SCALE = st.integers(1, 60).map(lambda tenths: tenths / 10)
FLOWER = st.tuples(SCALE, SCALE, SCALE, SCALE, st.sampled_from(IRIS.target.labels))


def flowers(rows: list[tuple[float, float, float, float, str]]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=[*MEASURES, "species"])
    return frame.astype(dict.fromkeys(MEASURES, float))


def sides(frame: pd.DataFrame) -> dict[bytes, set[str]]:
    """Return on which sides each row's fields lie."""
    parts = split_grown(IRIS, frame, len(FLOWERS))
    found: dict[bytes, set[str]] = {}
    for side, X in (("learnt", parts.X_train), ("held out", parts.X_test)):
        for mark in field_marks(X):
            found.setdefault(mark, set()).add(side)
    return found


@settings(max_examples=25, deadline=None)
@given(st.lists(FLOWER, max_size=30), st.lists(FLOWER, max_size=30))
def test_no_row_changes_sides_as_the_table_grows(came, later):
    """Nor do rows of equal fields part, but those that the reference has on both sides."""
    at_first = grow(IRIS, FLOWERS, [Batch("may.csv", flowers(came))]).frame
    both = [Batch("may.csv", flowers(came)), Batch("june.csv", flowers(later))]
    grown = grow(IRIS, FLOWERS, both).frame
    reference, before, after = sides(FLOWERS), sides(at_first), sides(grown)
    for mark, known in before.items():
        assert after[mark] == known
    for mark, known in after.items():
        assert known == reference.get(mark, known)
        assert len(known) == 1 or mark in reference


@settings(max_examples=25, deadline=None)
@given(st.lists(FLOWER, max_size=30), st.randoms())
def test_each_row_is_taken_once_however_often_and_wherever_it_comes(came, random):
    again = [*came, *random.choices(came, k=5)] if came else []
    known = [tuple(row) for row in FLOWERS.sample(3, random_state=0).itertuples(index=False)]
    batches = [Batch("a.csv", flowers([*again, *known])), Batch("the log", flowers(came))]
    grown = grow(IRIS, FLOWERS, batches)
    added = grown.frame.iloc[len(FLOWERS) :]
    there = {tuple(row) for row in FLOWERS.itertuples(index=False)}
    assert {tuple(row) for row in added.itertuples(index=False)} == set(came) - there
    assert not added.duplicated().any()
    assert sum(grown.taken.values()) == len(added)
    assert grown.known == len(again) + len(known) + len(came) - len(added)


def test_without_new_rows_table_split_and_lesson_are_those_of_an_ordinary_training():
    table = Table(FLOWERS, Path("iris.csv"), 0, fingerprint(FLOWERS), "Fisher")
    grown = grow(IRIS, FLOWERS, [Batch("copy.csv", FLOWERS.copy())])
    lesson = lesson_of(IRIS, table, grown, policy="all", weight=1)
    assert lesson.table is table
    assert lesson.parts.fingerprint == split(IRIS, FLOWERS).fingerprint
    assert not lesson.stated
    assert grown.known == len(FLOWERS)


def test_the_reference_keeps_its_sides_and_about_a_fifth_of_what_came_is_held_out():
    rng = np.random.default_rng(0)
    came = HOUSES.sample(300, random_state=1)
    came["median_income_noise"] = 0.0  # a column that nobody declares
    came["MedInc"] = (came["MedInc"] * rng.uniform(0.8, 1.2, len(came))).clip(0, 15)
    grown = grow(HOUSING, HOUSES, [Batch("may.csv", came)])
    old, new = split(HOUSING, HOUSES), split_grown(HOUSING, grown.frame, len(HOUSES))
    assert set(old.X_test.index) <= set(new.X_test.index)
    assert set(old.X_train.index) <= set(new.X_train.index)
    assert 40 <= len(new.X_test) - len(old.X_test) <= 85
    assert list(grown.frame.columns) == list(HOUSES.columns)


def test_columns_that_follow_from_others_are_filled_in():
    fields = [*(one.column for one in HOUSING.features), "MedHouseVal"]
    came = HOUSES[fields].head(5).assign(Population=[10.0, 20.0, 30.0, 40.0, 50.0])
    added = grow(HOUSING, HOUSES, [Batch("x.csv", came)]).frame.tail(5).reset_index(drop=True)
    expected = came["total_rooms"] / came["households"]
    np.testing.assert_array_equal(added["AveRooms"], expected)
    np.testing.assert_array_equal(added["AveOccup"], added["Population"] / came["households"])


def test_rows_that_break_a_rule_or_lack_a_value_are_left_out_and_counted():
    came = HOUSES.head(4).copy()
    came["Population"] = [1.0, 2.0, 3.0, np.nan]
    came.loc[0, "total_bedrooms"] = came.loc[0, "total_rooms"] + 1
    came.loc[1, "Latitude"] = 91
    grown = grow(HOUSING, HOUSES, [Batch("the log", came)])
    assert (grown.taken, grown.broken) == ({"the log": 1}, 3)


def test_a_key_tells_a_row_that_is_known_from_one_that_is_new():
    keyed = dataclasses.replace(IRIS, key=("plant",))
    reference = FLOWERS.assign(plant=np.arange(len(FLOWERS), dtype=float))
    other = reference.head(2).assign(sepal_length=[1.0, 2.0], plant=[0.0, 999.0])
    unnamed = reference.head(2).assign(sepal_length=[3.0, 4.0]).drop(columns="plant")
    batches = [Batch("a.csv", other), Batch("the log", unnamed)]
    grown = grow(keyed, reference, batches)
    assert grown.taken == {"a.csv": 1, "the log": 2}
    assert grown.frame["plant"].iloc[len(FLOWERS)] == 999.0


def test_rows_that_came_count_as_often_as_the_policy_says():
    table = Table(FLOWERS, Path("iris.csv"), 0, fingerprint(FLOWERS), "Fisher")
    came = [(1.0 + n / 10, 3.0, 1.0, 0.2, "setosa") for n in range(20)]
    grown = grow(IRIS, FLOWERS, [Batch("a.csv", flowers(came))])
    lesson = lesson_of(IRIS, table, grown, policy="thrice", weight=3)
    weights = lesson.parts.weights
    assert weights is not None
    assert (weights == 3).sum() == len(lesson.parts.X_train) - len(split(IRIS, FLOWERS).X_train)
    assert set(weights) == {1.0, 3.0}
    assert lesson.stated["policy"] == "thrice"


@pytest.mark.parametrize("order", [1, -1])
def test_minus_zero_is_zero_in_marks(order):
    frame = pd.DataFrame({"a": [0.0, -0.0][::order]})
    assert len(set(field_marks(frame))) == 1

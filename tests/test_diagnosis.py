"""What a diagnosis measures, on tables whose answer is known, and the figures drawn of it."""

from __future__ import annotations

import dataclasses
import json
import xml.etree.ElementTree as ElementTree
from typing import NamedTuple

import numpy as np
import pytest

from mlops.build import diagnosis, figures
from mlops.build.data import Split, prepare, split
from mlops.build.page import TOLD
from mlops.build.training import train_candidate
from mlops.usecases import USE_CASES

HOUSING, IRIS = USE_CASES["housing"], USE_CASES["iris"]


class Answers(NamedTuple):
    prediction: np.ndarray
    probabilities: np.ndarray | None = None


@pytest.fixture(scope="module")
def iris(tmp_path_factory):
    parts = split(IRIS, prepare(IRIS, tmp_path_factory.mktemp("data")).frame)
    return train_candidate(IRIS, IRIS.candidate("LinearDiscriminantAnalysis"), parts), parts


@pytest.fixture(scope="module")
def houses():
    """A few rows of housing, and a model that knows the income and nothing else."""
    frame = HOUSING.load().table.sample(600, random_state=0)
    X = frame[[feature.column for feature in HOUSING.features]].astype(float)
    X = X.set_axis(list(HOUSING.fields), axis=1)
    y = frame[HOUSING.target.column].to_numpy()
    return Split(X[:300], X[300:], y[:300], y[300:], 0, "f")


def by_income(rows: np.ndarray) -> Answers:
    return Answers(0.5 * rows[:, HOUSING.fields.index("median_income")])


def computed(use_case, answer, parts):
    found = diagnosis.sections(use_case, answer, parts)
    return {name: section() for name, section in found.items()}


# --- numbers


def test_residuals_are_actual_minus_predicted_with_their_quantiles():
    predicted = np.linspace(1, 2, 200)
    found = diagnosis.residuals(predicted + np.where(np.arange(200) % 2, 0.5, -0.5), predicted)
    assert found["mean"] == pytest.approx(0)
    assert found["quantiles"]["0.95"] == pytest.approx(0.5)
    assert found["absolute_quantiles"]["0.5"] == pytest.approx(0.5)
    assert len(found["by_prediction"]) == 10
    at = [tenth["predicted"] for tenth in found["by_prediction"]]
    assert at == sorted(at)


def test_calibration_finds_a_model_that_is_too_low_for_the_dear_houses():
    predicted = np.linspace(0, 1, 1000)
    actual = np.where(predicted > 0.9, predicted + 0.3, predicted)
    found = diagnosis.calibration(actual, predicted)
    off = [abs(t["actual"] - t["predicted"]) > t["half_width"] for t in found]
    assert off == [False] * 9 + [True]
    assert sum(tenth["rows"] for tenth in found) == 1000


def test_reliability_finds_probabilities_that_are_too_sure():
    random = np.random.default_rng(0)
    actual = (random.random(2000) < 0.7).astype(int)
    stated = np.tile([0.05, 0.95], (2000, 1))
    (bins,) = diagnosis.reliability(actual, stated)[1:]
    assert len(bins) == 1
    (one,) = bins
    assert one["stated"] == pytest.approx(0.95)
    assert one["low"] < 0.7 < one["high"] < 0.95


def test_the_interval_of_a_share_is_wilsons_and_stays_within_0_and_1():
    stated = np.full((10, 1), 0.9)
    (one,) = diagnosis.reliability(np.zeros(10, dtype=int), stated)[0]
    assert (one["came"], one["high"]) == (1.0, 1.0)
    assert one["low"] == pytest.approx(0.7224672, abs=1e-6)  # 10 of 10, Wilson 1927


def test_confusion_counts_rows_by_actual_and_predicted_class():
    found = diagnosis.confusion(np.array([0, 0, 1, 2]), np.array([0, 1, 1, 0]), 3)
    assert found == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]


def test_permutation_importance_finds_the_only_field_that_is_used(houses):
    rows = houses.X_test.to_numpy()
    found = diagnosis.permutation_importance(HOUSING, by_income, rows, by_income(rows).prediction)
    fields = dict(found["fields"])
    income = fields.pop("median_income")
    assert income["mean"] > 1  # r² falls from 1 to about -1
    assert income["std"] > 0
    assert all(one == {"mean": 0.0, "std": 0.0} for one in fields.values())


def test_permutation_importance_is_the_same_twice(houses):
    rows = houses.X_test.to_numpy()
    found = [
        diagnosis.permutation_importance(HOUSING, by_income, rows, houses.y_test) for _ in range(2)
    ]
    assert found[0] == found[1]


def test_a_learning_curve_ends_with_the_model_itself_and_shows_the_spread_of_small_tables(iris):
    one, parts = iris
    curve = diagnosis.learning_curve(IRIS, one, parts)
    assert [point["rows"] for point in curve["points"]] == [30, 120]
    assert curve["points"][-1]["held_out"] == one.metrics["accuracy"]
    assert curve["repeats"] == 3
    assert all(point["low"] <= point["held_out"] <= point["high"] for point in curve["points"])


def test_every_beginning_of_an_order_has_the_classes_in_proportion():
    y = np.repeat([0, 1, 2], [60, 30, 10])
    order = diagnosis._order(IRIS, y, 0)
    assert sorted(order) == list(range(100))
    assert list(np.bincount(y[order[:20]])) == [12, 6, 2]


def test_what_applies_follows_from_the_use_case(houses, iris):
    without_place = dataclasses.replace(HOUSING, coordinates=None)
    both = {"calibration", "permutation_importance"}
    one, parts = iris
    for use_case, answer, data, own in (
        (HOUSING, by_income, houses, {"predicted_vs_actual", "residuals", "error_map"}),
        (without_place, by_income, houses, {"predicted_vs_actual", "residuals"}),
        (IRIS, lambda rows: Answers(one.pipeline.predict(rows)), parts, {"confusion_matrix"}),
    ):
        assert set(diagnosis.sections(use_case, answer, data)) == own | both


# --- figures


@pytest.fixture(scope="module")
def drawn_of(houses, iris):
    one, parts = iris

    def sure(rows):
        probabilities = one.pipeline.predict_proba(rows)
        return Answers(probabilities.argmax(axis=1), probabilities)

    curve = diagnosis.learning_curve(IRIS, one, parts)
    return {
        "housing": {**computed(HOUSING, by_income, houses), "learning_curve": curve},
        "iris": {**computed(IRIS, sure, parts), "learning_curve": curve},
    }


def test_a_diagnosis_is_json_that_reads_back_the_same(drawn_of):
    for numbers in drawn_of.values():
        assert json.loads(json.dumps(numbers, allow_nan=False)) == numbers


@pytest.mark.parametrize("use_case", USE_CASES.values(), ids=USE_CASES)
def test_every_figure_is_drawn_as_png_and_as_svg_that_asks_for_nothing(use_case, drawn_of):
    numbers = drawn_of[use_case.name]
    expected = set(numbers)
    assert set(figures.names(numbers)) == expected
    assert set(TOLD) == set(figures.DRAWN)
    ids: list[str] = []
    for name in figures.names(numbers):
        png = figures.draw(name, use_case, numbers, title="a · b")
        assert png.startswith(b"\x89PNG")
        svg = figures.draw(name, use_case, numbers, form="svg").decode()
        root = ElementTree.fromstring(svg)
        ids += [element.attrib["id"] for element in root.iter() if "id" in element.attrib]
        links = [v for e in root.iter() for k, v in e.attrib.items() if k.endswith("href")]
        assert all(link.startswith(("#", "data:image/png")) for link in links)
        assert {link[1:] for link in links if link.startswith("#")} <= set(ids)
        assert "var(--ink)" in svg
    assert len(ids) == len(set(ids)), "figures of a page share no names"


def test_drawing_leaves_no_setting_behind_and_is_the_same_twice(drawn_of):
    import matplotlib

    before = dict(matplotlib.rcParams)
    first, again = (
        figures.draw("confusion_matrix", IRIS, drawn_of["iris"], form="svg") for _ in range(2)
    )
    assert first == again
    assert dict(matplotlib.rcParams) == before


def test_the_outline_of_the_state_holds_its_block_groups():
    from matplotlib.path import Path

    table = HOUSING.load().table
    places = table[["Longitude", "Latitude"]].to_numpy()
    # A path that goes round clockwise grows by a negative radius. Outside is Santa Catalina Island.
    inside = Path(HOUSING.coordinates.outline).contains_points(places, radius=-0.05)
    assert inside.mean() > 0.995

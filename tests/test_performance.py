"""Performance as one document: over time, by version and band, beside what was sealed."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import strict_json

from mlops.errors import UsageError
from mlops.loop.performance import seconds_of
from mlops.monitor.performance import DAY, HOUR, Sealed, performance, sealable, unsealed
from mlops.monitor.quality import ALL, Key, Sums, contributions
from mlops.usecases.housing import HOUSING

START = 20_000 * DAY


def truths(hour: int, version: int, n: int, *, error: float = 0.5, place=ALL) -> Sums:
    """Truths of an hour, every one of them missed by `error`, this way or that."""
    actual = np.linspace(1, 4, n)
    predicted = actual + error * (-1.0) ** np.arange(n)
    values = contributions(predicted, actual, numbers=True).sum(axis=0)
    return Sums(Key(START + hour * HOUR, version, *place, "", ""), values)


def sealed(error: float = 0.5) -> Sealed:
    cells = {"column": [-1], "threshold": [0], "left": [-1], "right": [-1]}
    cells |= {"rows": [1000.0], "loss": [250.0], "loss2": [130.0]}
    test = tuple(truths(0, 0, 400, error=error, place=place) for place in (ALL, ("income", "low")))
    return Sealed(test, cells)


def looked_at(sums: list[Sums], *, hours: int, version: int = 2):
    found = performance(
        HOUSING,
        version,
        sums,
        {1: None, 2: sealed()},
        [],
        [],
        since=START,
        until=START + hours * HOUR,
        predictions=999,
        alpha=0.01,
    )
    return strict_json(json.dumps(found).encode())  # as a page or a client gets it


def test_a_short_window_is_told_by_the_hour_and_a_long_one_by_the_day_each_version_apart():
    sums = [truths(1, 1, 40), truths(1, 2, 50), truths(5, 2, 60), truths(30, 2, 70)]
    found = looked_at(sums, hours=48)
    told = [(one["start"], one["model_version"], one["rows"]) for one in found["series"]]
    assert told == [
        ("2024-10-04T01:00:00+00:00", 1, 40),
        ("2024-10-04T01:00:00+00:00", 2, 50),
        ("2024-10-04T05:00:00+00:00", 2, 60),
        ("2024-10-05T06:00:00+00:00", 2, 70),
    ]
    found = looked_at(sums, hours=72)
    told = [(one["start"][:10], one["model_version"], one["rows"]) for one in found["series"]]
    assert told == [("2024-10-04", 1, 40), ("2024-10-04", 2, 110), ("2024-10-05", 2, 70)]
    assert (found["truths"], found["predictions"]) == (220, 999)
    assert {one["model_version"]: one["rows"] for one in found["versions"]} == {1: 40, 2: 180}


def test_each_score_has_its_interval_and_stands_beside_what_was_sealed():
    found = looked_at([truths(1, 2, 40), truths(2, 1, 10)], hours=24)
    old, new = found["versions"]
    assert new["scores"]["mse"]["value"] == pytest.approx(0.25)
    assert new["scores"]["r2_score"]["low"] < new["scores"]["r2_score"]["value"]
    assert new["sealed"]["scores"]["mse"]["value"] == pytest.approx(0.25)
    assert new["sealed"]["rows"] == 400
    assert old["sealed"] is None
    assert old["scores"]["mse"]["low"] is None  # ten truths promise no interval


def test_what_is_found_is_about_the_version_that_was_asked_for():
    sums = [truths(1, 1, 900, error=2.0), truths(1, 2, 900)]
    [finding] = looked_at(sums, hours=24)["findings"]
    assert (finding["verdict"], finding["numbers"]["rows"]) == ("ok", 900)
    [finding] = looked_at(sums, hours=24, version=1)["findings"]
    assert finding["verdict"] == "cannot tell"
    assert "train again with: mlops train housing" in finding["says"]


def test_bands_are_told_with_their_sealed_scores_and_fall_apart_from_each_other():
    low, high = ("income", "low"), ("income", "high")
    sums = [truths(1, 2, 300), truths(1, 2, 50, error=1.0, place=low)]
    found = looked_at([*sums, truths(1, 2, 250, place=high)], hours=24)
    bands = {one["band"]: one for one in found["slices"]["income"]["bands"]}
    assert bands["low"]["sealed"]["rows"] == 400
    assert bands["high"]["sealed"]["rows"] == 0
    verdicts = {one["subject"]: one["verdict"] for one in found["findings"]}
    assert verdicts == {"all rows": "ok", "income low": "alarm", "income high": "cannot tell"}
    assert found["slices"]["region"]["bands"] == []


def test_without_truths_and_predictions_it_says_that_nothing_can_be_told():
    found = looked_at([], hours=24)
    assert found["series"] == found["versions"] == []
    assert found["findings"][0]["verdict"] == "cannot tell"
    assert found["estimate"]["state"] == "none"
    assert "too few" in found["estimate"]["says"]


def test_what_is_sealed_is_read_back_as_it_was():
    whole = sealed()
    document = strict_json(json.dumps({"quality": sealable(whole.test, whole.cells)}).encode())
    again = unsealed(document)
    assert again is not None
    assert again.cells == whole.cells
    for one, other in zip(again.test, whole.test, strict=True):
        assert one.key[2:] == other.key[2:]
        assert one.values.tolist() == other.values.tolist()
    assert unsealed({"scores": {}}) is None


@pytest.mark.parametrize(("window", "seconds"), [("24h", DAY), ("7d", 7 * DAY), ("1h", HOUR)])
def test_a_window_is_hours_or_days(window, seconds):
    assert seconds_of(window) == seconds


@pytest.mark.parametrize("window", ["", "7", "0d", "-1d", "7w", "99999d", "1.5h", "7 d"])
def test_anything_else_is_no_window(window):
    with pytest.raises(UsageError, match="is no window"):
        seconds_of(window)

"""What changed between two tables: planted differences are counted, and named by column."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mlops import cli
from mlops.build.data import kept_file
from mlops.build.difference import Difference, difference, holm
from mlops.errors import DataError, UsageError
from mlops.improve.ledger import Ledger
from mlops.loop.differ import diff
from mlops.loop.prepare import prepare
from mlops.settings import Settings, read_settings
from mlops.usecases import USE_CASES


@pytest.fixture(scope="module")
def housing() -> pd.DataFrame:
    return USE_CASES["housing"].load().table


def counts(found: Difference) -> tuple[int, int, int, int]:
    return found.same, found.new, found.gone, found.changed


def shifted(found: Difference) -> set[str]:
    return {one.column for one in found.columns if one.shifted}


def strangers(table: pd.DataFrame, count: int, seed: int = 0) -> pd.DataFrame:
    """Rows whose every value occurs, but which are like no row: each column drawn by itself."""
    draw = np.random.default_rng(seed)
    return pd.DataFrame({name: draw.choice(table[name], count) for name in table.columns})


def test_a_table_does_not_differ_from_itself_in_any_order(housing):
    found = difference(housing, housing.sample(frac=1, random_state=1)[housing.columns[::-1]])
    assert counts(found) == (20_640, 0, 0, 0)
    assert found.summary == "no difference"
    assert all((one.effect, one.p, one.changed_cells) == (0, 1, 0) for one in found.columns)


def test_planted_rows_are_counted_as_new_gone_and_changed(housing):
    after = housing.copy()
    some = after.index[100:112]
    after.loc[some, "households"] += 3  # and with them all that is derived
    for mean, total in [("AveRooms", "total_rooms"), ("AveOccup", "Population")]:
        after.loc[some, mean] = after.loc[some, total] / after.loc[some, "households"]
    after = pd.concat([after.drop(index=range(30)), strangers(housing, 1_204)])
    found = difference(housing, after.sample(frac=1, random_state=2))
    assert counts(found) == (20_640 - 30 - 12, 1_204, 30, 12)
    cells = {one.column: one.changed_cells for one in found.columns if one.changed_cells}
    assert cells == {"households": 12, "AveRooms": 12, "AveOccup": 12}
    assert shifted(found) == set()
    assert found.summary == "1,204 rows new, 30 gone, 12 changed"


def test_a_column_whose_new_rows_are_unlike_the_old_has_shifted_and_no_other(housing):
    more = strangers(housing, 1_204).assign(AveRooms=lambda t: t["AveRooms"] * 1.5)
    found = difference(housing, pd.concat([housing, more]))
    assert found.summary == "1,204 rows new, AveRooms shifted"


def test_a_column_that_was_scaled_is_a_shift_of_changed_rows(housing):
    found = difference(housing, housing.assign(AveRooms=housing["AveRooms"] * 1.1))
    assert counts(found) == (0, 0, 0, 20_640)
    assert shifted(found) == {"AveRooms"}
    assert found.columns[2].after == pytest.approx(found.columns[2].before * 1.1)
    assert found.columns[2].effect > 0.1


def test_changed_rows_of_one_kind_do_not_shift_the_columns_that_they_keep(housing):
    north = housing["Latitude"] > 38
    found = difference(housing, housing.assign(MedInc=housing["MedInc"] + north * 1e-6))
    assert found.changed == north.sum() > 1_000
    assert shifted(found) == set()


def test_samples_of_one_source_shift_nothing_over_many_tries(housing):
    """Each try looks at twelve columns: without correction a tenth of them would alarm."""
    alarms = 0
    for seed in range(40):
        parts = housing.sample(2_000, random_state=seed)
        alarms += bool(shifted(difference(parts[:1_000], parts[1_000:])))
    assert alarms <= 2


def test_equal_rows_are_counted_as_often_as_they_are_there():
    table = pd.DataFrame({"a": [1.0, 1, 1, 2], "b": ["x", "x", "x", "y"]})
    assert counts(difference(table, table.iloc[[0, 3]])) == (2, 0, 2, 0)
    assert counts(difference(table.iloc[[0, 3]], table)) == (2, 2, 0, 0)


def test_agreement_that_may_be_coincidence_is_no_match():
    """Any two of these rows agree in two of three columns."""
    table = pd.DataFrame({"a": ["x"] * 50, "b": ["y"] * 50, "c": range(50)})
    found = difference(table, table.assign(c=table["c"] + 1000))
    assert counts(found) == (0, 50, 50, 0)


def test_a_key_matches_rows_that_agree_in_nothing_else():
    table = pd.DataFrame({"id": range(50), "a": range(50), "b": range(50)})
    after = table.assign(a=table["a"] + 0.5, b=-table["b"]).iloc[5:]
    found = difference(table, after, key=["id"])
    assert counts(found) == (0, 0, 5, 45)
    assert found.matched_by == "the key id"
    with pytest.raises(UsageError, match="names 49 rows a second time"):
        difference(table.assign(id=7, a=range(50, 100)), table, key=["id"])
    with pytest.raises(UsageError, match="'number' is no column of both"):
        difference(table, after, key=["number"])


def test_missing_values_zero_signs_and_types_of_columns_are_compared_by_value():
    table = pd.DataFrame({"a": [0.0, np.nan, 3], "b": [1, 2, 3], "c": ["x", None, "z"]})
    same = pd.DataFrame({"a": [-0.0, np.nan, 3], "b": [1.0, 2, 3], "c": ["x", None, "z"]})
    assert difference(table, same).summary == "no difference"
    found = difference(table.assign(d=1), same.drop(columns="b"))
    assert (found.columns_gone, found.columns_new) == (("b", "d"), ())
    assert found.summary == "column b gone, column d gone"


def test_labels_shift_by_their_shares():
    table = pd.DataFrame({"label": ["a", "b"] * 500, "x": range(1000)})
    found = difference(table, table.assign(label=["a", "a", "a", "b"] * 250), key=["x"])
    (label, x) = found.columns
    assert (label.shifted, label.effect, label.before) == (True, 0.25, None)
    assert not x.shifted


def test_holm_adjusts_as_published():
    # Holm 1979 by hand: 0.01 x 4, 0.02 x 3, 0.03 x 2, and never below the one before.
    adjusted = holm(np.array([0.03, 0.01, 0.04, 0.02]))
    np.testing.assert_allclose(adjusted, [0.06, 0.04, 0.06, 0.06])


# --- what is compared


@pytest.fixture
def edited(home: Path) -> Settings:
    """The trained project, its iris data edited after the training."""
    settings = read_settings(MLOPS_HOME=home)
    prepare("iris", settings=settings)
    path = home / "data" / "iris.csv"
    lines = path.read_text().splitlines()
    lines[1] = lines[1].replace("5.1", "5.25")
    path.write_text("\n".join([*lines[:-2], "9.1,4.9,8.1,3.1,virginica"]) + "\n")
    return settings


def test_a_table_is_named_by_version_bundle_fingerprint_or_file(edited):
    with Ledger(edited.state_database) as ledger:
        version = ledger.version("iris", 1)
    made = diff("1", "1", "iris", settings=edited).fingerprint_before
    file = str(edited.data / "iris.csv")
    summaries = {
        diff(name, file, use_case, settings=edited).summary
        for name, use_case in [
            ("1", "iris"),
            (version.bundle[:8], None),
            (made, None),
            (made[:6].upper(), None),
            (str(kept_file(made, edited.data)), None),
        ]
    }
    assert summaries == {"1 row new, 2 gone, 1 changed"}


def test_equal_fingerprints_are_no_difference_without_reading_anything(edited):
    made = diff("1", "2", "iris", settings=edited)
    assert (made.difference, made.summary) == (None, "no difference")
    kept_file(made.fingerprint_before, edited.data).unlink()
    assert diff("1", "2", "iris", settings=edited).summary == "no difference"
    with pytest.raises(DataError, match="is not kept here any more"):
        diff("1", str(edited.data / "iris.csv"), "iris", settings=edited)


def test_what_is_unknown_or_ambiguous_is_said_with_what_helps(edited):
    with pytest.raises(UsageError, match=r"'1' may be the data of housing version 1 .*; the data"):
        diff("1", "1", settings=edited)
    with pytest.raises(UsageError, match="'7' is no file, version, bundle or data fingerprint"):
        diff("7", "1", "iris", settings=edited)


def test_a_declared_key_is_used(edited, tmp_path, monkeypatch):
    keyed = dataclasses.replace(USE_CASES["iris"], key=("number",))
    monkeypatch.setitem(USE_CASES, "iris", keyed)
    table = keyed.load().table.reset_index(names="number")
    table.to_csv(tmp_path / "a.csv", index=False)
    table.assign(sepal_length=1, sepal_width=2).to_csv(tmp_path / "b.csv", index=False)
    found = diff(str(tmp_path / "a.csv"), str(tmp_path / "b.csv"), settings=edited).difference
    assert (found.matched_by, found.changed) == ("the key number", 150)


def test_a_training_keeps_its_table_once(edited, trained):
    kept = [path.name for path in (trained / "data" / "tables").iterdir()]
    assert len(kept) == 2
    before = {path.name: path.stat().st_mtime_ns for path in (edited.data / "tables").iterdir()}
    prepare("iris", settings=edited)
    prepare("iris", settings=edited)
    after = {path.name: path.stat().st_mtime_ns for path in (edited.data / "tables").iterdir()}
    assert len(after) == len(before) + 1
    assert before.items() <= after.items()


def test_the_command_says_it_in_a_line_and_a_table_or_json(edited, monkeypatch, capsys):
    monkeypatch.setenv("MLOPS_HOME", str(edited.home))

    def printed(*arguments: str) -> Any:
        with pytest.raises(SystemExit) as ended:
            cli.main(["data", "diff", *arguments])
        assert not ended.value.code
        return capsys.readouterr().out

    file = str(edited.data / "iris.csv")
    text = printed("1", file, "iris")
    assert text.splitlines()[0].endswith(f"→ {file}: 1 row new, 2 gone, 1 changed")
    assert "sepal_length" in text
    found = json.loads(printed("1", file, "iris", "--json"))
    assert found["summary"] == "1 row new, 2 gone, 1 changed"
    assert found["difference"]["new"] == 1
    assert "no difference" in printed("1", "2", "iris")


@pytest.mark.slow
def test_a_million_rows_all_changed_take_seconds(housing):
    before = pd.concat([housing] * 25, ignore_index=True)
    before["MedInc"] += np.arange(len(before)) * 1e-9
    started = time.monotonic()
    found = difference(before, before.assign(AveRooms=before["AveRooms"] * 1.1))
    assert found.changed > 0.99 * len(before)
    assert time.monotonic() - started < 120

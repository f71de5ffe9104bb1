"""The data file: written whole from a known source, checked, split and fingerprinted."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.resources
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mlops.build import data
from mlops.build.data import fingerprint, prepare, read_table, split
from mlops.errors import DataError
from mlops.usecase import Source, UseCase
from mlops.usecases import USE_CASES
from mlops.usecases.housing import RAW_TABLE, RAW_TABLE_SHA256

HOUSING, IRIS = USE_CASES["housing"], USE_CASES["iris"]
SKLEARN_COLUMNS = [
    "MedInc",
    "HouseAge",
    "AveRooms",
    "AveBedrms",
    "Population",
    "AveOccup",
    "Latitude",
    "Longitude",
    "MedHouseVal",
]


def sourced(use_case: UseCase, table: pd.DataFrame) -> UseCase:
    """The use case with another source."""
    return dataclasses.replace(use_case, load=lambda: Source(table.copy(), "a planted table"))


@pytest.fixture(scope="module")
def housing_table() -> pd.DataFrame:
    return HOUSING.load().table


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    for use_case in USE_CASES.values():
        prepare(use_case, folder)
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """A data folder with both data files."""
    return Path(shutil.copytree(written, tmp_path / "data"))


def edit(path: Path, line: int, column: str, value: str) -> None:
    """Change one cell; lines are counted as an editor does, the header being line 1."""
    lines = [text.split(",") for text in path.read_text().splitlines()]
    lines[line - 1][lines[0].index(column)] = value
    path.write_text("\n".join(map(",".join, lines)) + "\n")


# --- the file and its source


def test_the_housing_file_has_scikit_learns_columns_and_the_raw_counts_beside_them(tmp_path):
    table = prepare(HOUSING, tmp_path / "data")
    frame = pd.read_csv(tmp_path / "data" / "housing.csv")
    counts = ["total_rooms", "total_bedrooms", "households"]
    assert list(frame.columns) == [*SKLEARN_COLUMNS, *counts]
    assert len(frame) == 20_640
    assert (table.dropped, table.reused) == (0, False)
    # scikit-learn's first row, as its documentation shows it.
    expected = [8.3252, 41.0, 6.98412698, 1.02380952, 322.0, 2.55555556, 37.88, -122.23, 4.526]
    np.testing.assert_allclose(frame[SKLEARN_COLUMNS].iloc[0], expected, rtol=1e-8)
    assert frame[counts].iloc[0].tolist() == [880, 129, 126]
    for mean, total in [("AveRooms", "total_rooms"), ("AveBedrms", "total_bedrooms")]:
        np.testing.assert_allclose(frame[mean] * frame["households"], frame[total], rtol=1e-15)
        assert frame[total].dtype == np.int64
    np.testing.assert_allclose(frame["AveOccup"] * frame["households"], frame["Population"])


def test_the_vendored_table_is_the_published_one():
    content = (importlib.resources.files("mlops.usecases") / "data" / RAW_TABLE).read_bytes()
    assert len(content) == 989_786
    assert hashlib.sha256(content).hexdigest() == RAW_TABLE_SHA256
    assert RAW_TABLE_SHA256.startswith("8a5396dba2c96ff32351fff11af69e8b")
    assert content.startswith(b"longitude,latitude,housing_median_age,total_rooms,total_bedrooms,")


def test_a_tampered_vendored_table_is_refused_before_it_is_parsed(tmp_path, monkeypatch):
    content = (importlib.resources.files("mlops.usecases") / "data" / RAW_TABLE).read_bytes()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / RAW_TABLE).write_bytes(content.replace(b"-122.23", b"-122.24", 1))
    monkeypatch.setattr(importlib.resources, "files", lambda package: tmp_path)
    monkeypatch.setattr(pd, "read_csv", lambda *_: pytest.fail("parsed before it was verified"))
    with pytest.raises(DataError, match=r"not the vendored table .*restore it with: git checkout"):
        HOUSING.load()


def test_writing_and_reading_back_changes_no_value(folder):
    for use_case in USE_CASES.values():
        source = use_case.load()
        read = read_table(use_case, folder)
        assert read.fingerprint == fingerprint(source.table)
        assert read.origin == source.origin


def test_an_edited_file_is_kept_and_read_and_named_as_edited_until_it_is_forced(folder):
    original = read_table(IRIS, folder)
    edit(folder / "iris.csv", 2, "petal_width", "0.3")
    edited = prepare(IRIS, folder)
    assert edited.reused
    assert edited.frame["petal_width"][0] == 0.3
    assert edited.fingerprint != original.fingerprint
    assert edited.origin.endswith(f"iris.csv, edited: it no longer equals the {original.origin}")
    forced = prepare(IRIS, folder, force=True)
    assert not forced.reused
    assert (forced.fingerprint, forced.origin) == (original.fingerprint, original.origin)
    assert read_table(IRIS, folder).frame["petal_width"][0] == 0.2


def test_a_file_that_the_user_brought_is_its_own_origin(tmp_path):
    IRIS.load().table.to_csv(tmp_path / "iris.csv", index=False)
    assert prepare(IRIS, tmp_path).origin == str(tmp_path / "iris.csv")


@pytest.mark.parametrize("there_already", [False, True])
def test_when_writing_fails_nothing_half_written_stays(tmp_path, monkeypatch, there_already):
    if there_already:
        prepare(IRIS, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def write_half(self, path, **_) -> None:
        Path(path).write_text("sepal_length,sepal_width\n5.1,3")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(pd.DataFrame, "to_csv", write_half)
        with pytest.raises(OSError, match="No space"):
            prepare(IRIS, tmp_path, force=True)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert len(prepare(IRIS, tmp_path).frame) == 150


def test_a_source_that_breaks_the_schema_is_not_written(tmp_path):
    table = IRIS.load().table
    table.loc[7, "sepal_width"] = -1.0
    with pytest.raises(DataError, match="a planted table breaks the schema"):
        prepare(sourced(IRIS, table), tmp_path)
    assert list(tmp_path.iterdir()) == []


# --- cleaning and checking


def test_rows_with_a_missing_value_are_dropped_and_counted_however_often_the_file_is_read(tmp_path):
    table = IRIS.load().table
    table.loc[[3, 60], "petal_length"] = np.nan
    table.loc[[60, 149], "species"] = None
    use_case = sourced(IRIS, table)
    written, read = prepare(use_case, tmp_path), prepare(use_case, tmp_path)
    assert (written.dropped, read.dropped) == (3, 3)
    assert (len(written.frame), len(read.frame)) == (147, 147)
    assert written.fingerprint == read.fingerprint == fingerprint(table.drop([3, 60, 149]))
    edit(tmp_path / "iris.csv", 5, "sepal_width", "")
    assert (read_table(use_case, tmp_path).dropped, len(read_table(use_case, tmp_path).frame)) == (
        1,
        146,
    )


def test_a_missing_value_in_a_column_that_nothing_needs_drops_nothing(tmp_path):
    table = HOUSING.load().table.head(50)
    table.loc[3, "AveRooms"] = np.nan
    assert prepare(sourced(HOUSING, table), tmp_path).dropped == 0


@pytest.mark.parametrize(
    ("use_case", "column", "value", "said"),
    [
        (HOUSING, "Latitude", "99.0", "99.0 must be from 32 to 42.5 degrees north"),
        (HOUSING, "total_rooms", "0", "0.0 must be from 1 to 1e+06 rooms"),
        (HOUSING, "MedInc", "-0.1", "-0.1 must be from 0 to 100 10,000 dollars"),
        (HOUSING, "MedInc", "inf", "inf must be from 0 to 100 10,000 dollars"),
        (HOUSING, "Longitude", "-1e999", "-inf must be from -125 to -114 degrees east"),
        (HOUSING, "HouseAge", "old", "'old' must be a number"),
        (HOUSING, "households", '"1 000"', "'1 000' must be a number"),
        (HOUSING, "MedHouseVal", "5.1", "5.1 must be from 0 to 5.00001 100,000 dollars"),
        (IRIS, "petal_width", "0", "0.0 must be from 0.05 to 30 cm"),
        (IRIS, "species", "rosa", "'rosa' must be one of setosa, versicolor, virginica"),
        (IRIS, "species", "Setosa", "'Setosa' must be one of setosa, versicolor, virginica"),
    ],
)
def test_a_violation_names_column_line_value_and_rule(folder, use_case, column, value, said):
    path = folder / f"{use_case.name}.csv"
    edit(path, 5, column, value)
    with pytest.raises(DataError) as caught:
        read_table(use_case, folder)
    message = str(caught.value)
    assert f"{path} breaks the schema of {use_case.name} in 1 place:" in message
    assert f"\n  column {column}, line 5: {said}\n" in message


def test_blank_lines_are_no_rows_but_count_as_lines(folder):
    path = folder / "iris.csv"
    header, first, second, *rest = path.read_text().splitlines()
    path.write_text("\n".join([header, first, "", "", second, *rest, "", ""]))
    assert (len(read_table(IRIS, folder).frame), read_table(IRIS, folder).dropped) == (150, 0)
    path.write_text("\n".join([header, first, "", "", second.replace("4.9", "49"), *rest]))
    with pytest.raises(DataError, match=r"column sepal_length, line 5: 49\.0 must be"):
        read_table(IRIS, folder)


def test_many_violations_are_counted_and_the_first_ten_shown(folder):
    path = folder / "iris.csv"
    path.write_text(path.read_text().replace("virginica", "virginia"))
    with pytest.raises(DataError) as caught:
        read_table(IRIS, folder)
    message = str(caught.value)
    assert "breaks the schema of iris in 50 places:" in message
    assert message.count("column species, line ") == 10
    assert "column species, line 102: 'virginia'" in message
    assert "and 40 more" in message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is not a readable CSV file: No columns"),
        (b"\n\n", "has no complete row|is not a readable CSV file|lacks the column"),
        (b"sepal_length,sepal_width,petal_length,petal_width,species\n", "has no complete row"),
        (b"\0" * 500, "lacks the column|is not a readable CSV file"),
        (bytes(range(256)) * 9, "is not a readable CSV file"),
        ("sepal_length,é\n1,2\n".encode("utf-16"), "is not a readable CSV file"),
        (
            b"sepal_length,sepal_width\n5.1,3.5\n",
            "lacks the column 'petal_length' and 2 more",
        ),
    ],
)
def test_a_file_that_is_no_table_is_refused_in_words(folder, content, said):
    (folder / "iris.csv").write_bytes(content)
    with pytest.raises(DataError, match=said):
        prepare(IRIS, folder)


@pytest.mark.parametrize("seed", range(20))
def test_random_bytes_are_never_a_crash(folder, seed):
    noise = np.random.default_rng(seed).integers(0, 256, 400, dtype=np.uint8).tobytes()
    header = (folder / "iris.csv").read_bytes().splitlines()[0] + b"\n"
    (folder / "iris.csv").write_bytes(header * (seed % 2) + noise)
    with pytest.raises(DataError):
        read_table(IRIS, folder)


def test_a_column_that_is_missing_is_named_with_those_that_are_needed(folder):
    path = folder / "housing.csv"
    path.write_text(path.read_text().replace("Latitude", "Lat", 1))
    with pytest.raises(DataError, match=r"lacks the column 'Latitude' — its columns must include"):
        read_table(HOUSING, folder)


@pytest.mark.parametrize("which", ["one line", "every line"])
def test_more_cells_than_columns_are_refused_and_shift_no_column(folder, which):
    path = folder / "iris.csv"
    lines = path.read_text().splitlines()
    for line in range(1, len(lines)) if which == "every line" else (7,):
        lines[line] += ",0"
    path.write_text("\n".join(lines))
    with pytest.raises(DataError, match="is not a readable CSV file"):
        read_table(IRIS, folder)


# --- fingerprint


def test_the_order_of_rows_and_columns_does_not_change_the_fingerprint(housing_table):
    for table in (housing_table, IRIS.load().table):
        shuffled = table.sample(frac=1, random_state=1)
        assert not shuffled.iloc[:, 0].equals(table.iloc[:, 0])
        assert fingerprint(shuffled) == fingerprint(table)
        assert fingerprint(table[table.columns[::-1]]) == fingerprint(table)


def change_one_value(table: pd.DataFrame) -> pd.DataFrame:
    table.loc[77, "petal_width"] = np.nextafter(table.loc[77, "petal_width"], 9)
    return table


def swap_two_columns(table: pd.DataFrame) -> pd.DataFrame:
    return table.rename(columns={"petal_width": "sepal_width", "sepal_width": "petal_width"})


def swap_two_values(table: pd.DataFrame) -> pd.DataFrame:
    row = table.loc[5]
    table.loc[5, ["petal_width", "sepal_width"]] = [row["sepal_width"], row["petal_width"]]
    return table


def swap_between_rows(table: pd.DataFrame) -> pd.DataFrame:
    table.loc[[0, 100], "species"] = table.loc[[100, 0], "species"].to_numpy()
    return table


@pytest.mark.parametrize(
    "change",
    [
        change_one_value,
        swap_two_columns,
        swap_two_values,
        swap_between_rows,
        lambda table: table.drop(index=12),
        lambda table: pd.concat([table, table.tail(1)]),
        lambda table: pd.concat([table.drop(index=12), table.loc[[13]]]),
        lambda table: table.rename(columns={"petal_width": "petal_breadth"}),
        lambda table: table.replace("setosa", "setosä"),
    ],
)
def test_any_change_of_content_changes_the_fingerprint(change):
    table = IRIS.load().table
    assert fingerprint(change(table.copy())) != fingerprint(table)


def test_numbers_count_by_value_in_the_fingerprint():
    table = pd.DataFrame({"x": [0.0, 1.0, 2.0]})
    assert fingerprint(pd.DataFrame({"x": [-0.0, 1.0, 2.0]})) == fingerprint(table)
    assert fingerprint(pd.DataFrame({"x": [2, 1, 0]})) == fingerprint(table)


def test_texts_do_not_run_into_each_other_in_the_fingerprint():
    table = pd.DataFrame({"x": ["ab"], "y": ["c"]})
    assert fingerprint(pd.DataFrame({"x": ["a"], "y": ["bc"]})) != fingerprint(table)


# --- split


def test_a_fifth_is_set_aside_with_seed_42(housing_table):
    parts = split(HOUSING, housing_table)
    assert (len(parts.X_train), len(parts.X_test)) == (16_512, 4_128)
    # The first row that scikit-learn's train_test_split(random_state=42) gives on this table.
    assert parts.X_test.index[:3].tolist() == [20046, 3024, 15663]
    assert parts.y_test[:3].tolist() == [0.477, 0.458, 5.00001]
    assert set(parts.X_train.index).isdisjoint(parts.X_test.index)
    assert list(parts.X_test.columns) == list(HOUSING.fields)
    row = housing_table.loc[20046]
    assert parts.X_test.loc[20046, "total_rooms"] == row["total_rooms"]
    assert parts.X_test.loc[20046, "median_income"] == row["MedInc"]


def test_a_classification_is_split_by_class():
    parts = split(IRIS, IRIS.load().table)
    assert np.bincount(parts.y_test).tolist() == [10, 10, 10]
    assert np.bincount(parts.y_train).tolist() == [40, 40, 40]
    unequal = IRIS.load().table.drop(index=range(50, 75))
    assert np.bincount(split(IRIS, unequal).y_test).tolist() == [10, 5, 10]


def test_identical_rows_on_both_sides_are_counted():
    table = HOUSING.load().table.head(1000).drop_duplicates()
    parts = split(HOUSING, table)
    assert parts.shared_rows == 0
    # A copy over a row of the same side keeps the split, and what is on which side, known.
    taught, asked = parts.X_train.index, parts.X_test.index
    table.loc[asked[0]] = table.loc[taught[0]]
    table.loc[asked[1]] = table.loc[taught[0]]
    table.loc[asked[2]] = table.loc[asked[3]]
    table.loc[asked[4]] = table.loc[taught[4]]
    table.loc[asked[4], "MedHouseVal"] += 0.001
    assert split(HOUSING, table).shared_rows == 2


def test_the_test_rows_have_a_fingerprint_of_their_own():
    table = HOUSING.load().table.head(1000)
    parts = split(HOUSING, table)
    assert split(HOUSING, table.copy()).fingerprint == parts.fingerprint
    reordered = table.sample(frac=1, random_state=3, ignore_index=True)
    assert fingerprint(reordered) == fingerprint(table)
    assert split(HOUSING, reordered).fingerprint != parts.fingerprint


@pytest.mark.parametrize(
    ("use_case", "keep", "said"),
    [
        (IRIS, lambda table: table.head(105), "iris has 5 complete rows of virginica: too few"),
        (IRIS, lambda table: table.tail(100), "iris has 0 complete rows of setosa: too few"),
        (HOUSING, lambda table: table.head(10), "housing has 10 complete rows: too few"),
    ],
)
def test_too_few_rows_to_learn_from_are_refused_with_the_number_needed(use_case, keep, said):
    with pytest.raises(DataError, match=f"{said}.* at least {data.FEWEST_ROWS}"):
        split(use_case, keep(use_case.load().table))

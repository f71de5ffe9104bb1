"""Any table is held against the use case; each planted fault is named by column, rule and line."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mlops import cli
from mlops.build import check as checking
from mlops.build.check import Checked, Finding
from mlops.errors import UsageError
from mlops.loop.check import check
from mlops.settings import Settings, read_settings
from mlops.usecases import USE_CASES

HOUSING, IRIS = USE_CASES["housing"], USE_CASES["iris"]


@pytest.fixture
def empty(tmp_path: Path) -> Settings:
    """A project in which nothing was trained: values are compared with the source."""
    return read_settings(MLOPS_HOME=tmp_path)


@pytest.fixture(scope="module")
def sources() -> dict[str, pd.DataFrame]:
    return {name: use_case.load().table for name, use_case in USE_CASES.items()}


@pytest.fixture
def table(sources) -> pd.DataFrame:
    """The first 300 block groups, in cells that take anything."""
    return sources["housing"].head(300).astype(object)


@pytest.fixture
def checked(tmp_path, empty):
    """Check a table, or a text, of housing."""

    def run(table: pd.DataFrame | str | bytes, name: str = "housing") -> Checked:
        path = tmp_path / "table.csv"
        if isinstance(table, pd.DataFrame):
            table.to_csv(path, index=False)
        else:
            path.write_bytes(table if isinstance(table, bytes) else table.encode())
        return check(name, path, settings=empty)

    return run


def violations(result: Checked) -> list[tuple[str, str, int, tuple[int, ...]]]:
    return [
        (one.column, one.rule, one.rows, one.lines)
        for one in result.findings
        if one.kind == "violation"
    ]


@pytest.mark.parametrize("name", USE_CASES)
def test_the_source_itself_fits_with_and_without_its_target(checked, sources, name):
    use_case = USE_CASES[name]
    whole = checked(sources[name], name)
    assert (whole.fits, whole.has_target, whole.rows) == (True, True, len(sources[name]))
    without = checked(sources[name].drop(columns=use_case.target.column), name)
    assert (without.fits, without.has_target) == (True, False)


def test_the_request_fields_are_as_good_as_the_columns_of_the_data_file(checked, table):
    names = {feature.column: feature.name for feature in HOUSING.features}
    table.loc[3, "MedInc"] = -1
    result = checked(table.rename(columns=names))
    assert violations(result) == [("MedInc", "must be from 0 to 100 10,000 dollars", 1, (5,))]


@pytest.mark.parametrize(
    ("column", "value", "rule"),
    [
        ("Latitude", "north", "must be a number"),
        ("Latitude", 99, "must be from 32 to 42.5 degrees north"),
        ("Latitude", -122.2, "must be from 32 to 42.5 degrees north"),
        ("Latitude", "inf", "must be from 32 to 42.5 degrees north"),
        ("Latitude", None, "must not be missing"),
        ("MedHouseVal", 7, "must be from 0 to 5.00001 100,000 dollars"),
        ("total_bedrooms", 9000, "must be at most total_rooms: a bedroom is a room"),
        (
            "total_rooms",
            900_000,
            "is over 10 times outside all that training saw (2 to 39320 rooms)",
        ),
    ],
)
def test_a_planted_value_is_found_by_column_rule_and_line(checked, table, column, value, rule):
    table.loc[[41, 77], column] = value
    assert (column, rule, 2, (43, 79)) in violations(checked(table))


def test_the_request_of_8_rooms_for_500_households_is_found_in_a_table_too(checked, table):
    table.loc[10, ["total_rooms", "total_bedrooms", "households"]] = 8, 3, 500
    found = {column: lines for column, _, _, lines in violations(checked(table))}
    assert found["total_rooms / households"] == (12,)


@pytest.mark.parametrize(
    ("factor", "says"),
    [(1000, "divided by 1,000 they would fit"), (0.001, "multiplied by 1,000 they would fit")],
)
def test_a_column_in_another_unit_is_named_once_with_the_factor(checked, sources, factor, says):
    result = checked(sources["housing"].assign(MedInc=lambda t: t["MedInc"] * factor))
    units = [one for one in result.findings if "another unit" in one.rule]
    assert [one.column for one in units] == ["MedInc"]
    assert units[0].rule.endswith(says)
    assert units[0].rows > 20_000


def test_missing_surplus_and_repeated_columns_are_named(checked, table):
    text = table.rename(columns={"Latitude": "Lattitude"}).drop(columns="AveOccup").to_csv()
    result = checked(text.replace("HouseAge", "MedInc", 1))
    found = {one.column: one for one in result.findings}
    assert found["Latitude (or latitude)"].example == "is it 'Lattitude'?"
    assert found["HouseAge (or housing_median_age)"].rule == "the column is missing"
    assert found["MedInc"].rule == "the column is there 2 times: the first counts"
    (surplus,) = (one for one in result.findings if one.kind == "warning")
    assert "Lattitude" in surplus.column


def test_the_table_of_another_use_case_lacks_every_column_and_is_no_crash(checked, sources):
    result = checked(sources["housing"], "iris")
    assert not result.fits
    missing = [one.column for one in result.findings if one.rule == "the column is missing"]
    assert set(missing) == {feature.column for feature in IRIS.features}


def test_a_row_twice_is_a_violation_where_rows_are_unique_else_a_warning(checked, sources):
    twice = pd.concat([sources["housing"].head(100), sources["housing"].iloc[[4]]])
    assert violations(checked(twice)) == [("(all)", "repeats an earlier row", 1, (102,))]
    (warning,) = checked(sources["iris"], "iris").findings
    assert (warning.kind, warning.rows, warning.lines) == ("warning", 1, (144,))


def test_lines_are_those_of_the_file_past_blank_and_ragged_ones(checked):
    header = "sepal_length,sepal_width,petal_length,petal_width,species"
    good, bad = "5.1,3,1,1,setosa", "5.2,3,1,1,rose"
    text = "\n".join([header, good, "", f"{good},9", bad, f"{good},,9", "", bad, "4,3,1"])
    result = checked(text, "iris")
    found = {one.rule: one for one in result.findings}
    assert found["must be one of setosa, versicolor, virginica"].lines == (5, 8)
    ragged = found["has more cells than there are columns: the row is not looked at"]
    assert (ragged.lines, ragged.example) == ((4, 6), "6 for 5")
    missing = [one for one in result.findings if one.rule == "must not be missing"]
    assert {(one.column, one.lines) for one in missing} == {
        ("petal_width", (9,)),
        ("species", (9,)),
    }


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1", "utf-8-sig"])
def test_a_table_in_another_encoding_is_read_and_what_is_not_utf8_is_said(
    checked, sources, encoding
):
    text = sources["iris"].to_csv(index=False).replace("setosa", "sétosa", 1)
    result = checked(text.encode(encoding), "iris")
    said = [one for one in result.findings if one.rule == "the file must be UTF-8"]
    assert len(said) == (encoding != "utf-8-sig")
    label = "must be one of setosa, versicolor, virginica"
    assert ("species", label, 1, (2,)) in violations(result)


def test_semicolons_are_read_and_said(checked, sources):
    result = checked(sources["iris"].to_csv(index=False, sep=";"), "iris")
    assert [one[:2] for one in violations(result)] == [
        ("(all)", "columns must be separated by commas")
    ]
    assert result.rows == 150


def test_parquet_is_told_by_row_and_booleans_and_dates_are_no_numbers(tmp_path, empty, sources):
    frame = sources["iris"].assign(
        sepal_length=True, sepal_width=pd.Timestamp(0), petal_width=lambda t: t["petal_width"] * 100
    )
    frame.loc[[7], "species"] = "rose"
    frame.to_parquet(tmp_path / "iris.parquet")
    found = violations(check("iris", tmp_path / "iris.parquet", settings=empty))
    for column in ("sepal_length", "sepal_width"):
        assert (column, "must be a number", 150, (1, 2, 3, 4, 5)) in found
    assert ("species", "must be one of setosa, versicolor, virginica", 1, (8,)) in found


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"\x89PNG\r\n\0\0", "is neither CSV nor Parquet"),
        (b"PAR1 and then nothing", "cannot be read as Parquet"),
        (b'a,b\n1,"never closed\n', "cannot be read as CSV"),
    ],
)
def test_what_is_no_table_is_a_usage_error(checked, content, says):
    with pytest.raises(UsageError, match=says):
        checked(content)


def test_a_header_alone_has_no_rows(checked, table):
    assert violations(checked(table.head(0))) == [("(all)", "the table must have rows", 0, ())]


def test_a_table_of_many_chunks_gives_what_one_chunk_gives(checked, table, monkeypatch):
    table.loc[[3, 99, 100, 250], "Latitude"] = 99
    table.loc[200] = table.loc[20]
    table.loc[[120, 230], "total_rooms"] = 900_000
    text = table.to_csv(index=False).splitlines()
    text.insert(150, "a,lot,more" + "," * 30)
    whole = checked("\n".join(text))
    monkeypatch.setattr(checking, "CHUNK_ROWS", 7)
    assert checked("\n".join(text)) == whole
    assert len(whole.findings) >= 5


def test_with_a_champion_values_are_compared_with_what_it_saw(trained):
    settings = read_settings(MLOPS_HOME=trained)
    result = check("iris", trained / "data" / "iris.csv", settings=settings)
    assert result.compared == "what version 1 saw"
    assert result.fits


def test_the_command_prints_a_table_or_json_and_ends_with_its_code(
    tmp_path, sources, monkeypatch, capsys
):
    monkeypatch.setenv("MLOPS_HOME", str(tmp_path))

    def run(*arguments: str) -> tuple[int, Any]:
        with pytest.raises(SystemExit) as ended:
            cli.main(["check", *arguments])
        return ended.value.code or 0, capsys.readouterr()

    path = tmp_path / "iris.csv"
    sources["iris"].to_csv(path, index=False)
    code, printed = run("iris", str(path))
    assert code == 0
    assert printed.out.rstrip().endswith("0 violations, 1 warning")
    path.write_text(path.read_text().replace("5.1", "510", 1))
    code, printed = run("iris", str(path))
    assert code == 1
    for word in ("violation", "sepal_length", "must be from 0.05 to 30 cm", "510", "2"):
        assert word in printed.out
    code, printed = run("iris", str(path), "--json")
    assert code == 1
    found = json.loads(printed.out)
    assert found["fits"] is False
    keys = {field.name for field in Finding.__dataclass_fields__.values()}
    assert all(set(one) == keys for one in found["findings"])
    code, printed = run("iris", str(tmp_path / "nothing.csv"))
    assert code == 2
    assert printed.err.startswith("mlops: ")
    assert run("roses", str(path))[0] == 2


@pytest.mark.slow
def test_a_million_rows_take_seconds(tmp_path, empty, sources):
    rows = pd.concat([sources["housing"]] * 49, ignore_index=True)
    rows["MedInc"] += np.arange(len(rows)) * 1e-9
    rows.to_parquet(tmp_path / "million.parquet")
    started = time.monotonic()
    result = check("housing", tmp_path / "million.parquet", settings=empty)
    assert result.fits
    assert result.rows > 1_000_000
    assert time.monotonic() - started < 60

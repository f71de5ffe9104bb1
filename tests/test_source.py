"""The growing source: what is taken, and what is refused by name while the rest goes on."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pandas as pd
import pytest

from mlops.build.source import Refused, read_source
from mlops.usecases import USE_CASES

IRIS = USE_CASES["iris"]
FLOWERS = IRIS.load().table.sample(12, random_state=0).reset_index(drop=True)
IN_FIELDS = FLOWERS.rename(columns={"species": "predicted_class"})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "iris.d").mkdir()
    return tmp_path


def read(folder: Path) -> tuple[dict[str, pd.DataFrame], dict[str, str]]:
    batches, refused = read_source(IRIS, folder, {}, "")
    return {one.name: one.frame for one in batches}, {one.name: one.says for one in refused}


def database(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as made:
        FLOWERS.to_sql("flowers", made, index=False)


def test_without_a_folder_nothing_came(tmp_path):
    assert read_source(IRIS, tmp_path, {}, "") == ([], [])


def test_files_and_queries_are_read_by_name_in_columns_of_the_data_file(folder):
    FLOWERS.to_csv(folder / "iris.d" / "b.csv", index=False)
    IN_FIELDS.to_parquet(folder / "iris.d" / "a.parquet")
    database(folder / "garden.db")
    query = "-- sqlite: ../garden.db\nSELECT * FROM flowers\nWHERE species = 'setosa'\n"
    (folder / "iris.d" / "c.sql").write_text(query)
    taken, refused = read(folder)
    assert refused == {}
    assert list(taken) == ["a.parquet", "b.csv", "c.sql"]
    setosa = FLOWERS[FLOWERS["species"] == "setosa"].reset_index(drop=True)
    for name, expected in (("a.parquet", FLOWERS), ("b.csv", FLOWERS), ("c.sql", setosa)):
        pd.testing.assert_frame_equal(taken[name], expected, check_dtype=False)


def test_a_query_that_gives_no_rows_brings_none_and_one_that_writes_is_refused(folder):
    database(folder / "garden.db")
    for name, query in (
        ("none", "SELECT * FROM flowers WHERE false"),
        ("cut", "DELETE FROM flowers"),
    ):
        (folder / "iris.d" / f"{name}.sql").write_text(f"-- sqlite: ../garden.db\n{query}")
    taken, refused = read(folder)
    assert (taken, list(refused)) == ({}, ["cut.sql"])
    assert "cut.sql cannot be answered: " in refused["cut.sql"]
    assert "readonly" in refused["cut.sql"]
    with contextlib.closing(sqlite3.connect(folder / "garden.db")) as left:
        assert left.execute("SELECT count(*) FROM flowers").fetchone() == (12,)


BAD = {
    "high.csv": (
        FLOWERS.assign(petal_width=99.0).to_csv(index=False),
        "column petal_width, line 2: must be from 0.05 to 30 cm (99)",
    ),
    "blind.csv": (
        FLOWERS.drop(columns="species").to_csv(index=False),
        "it lacks the target species, so there is nothing to learn",
    ),
    "narrow.csv": (
        FLOWERS.drop(columns="petal_width").to_csv(index=False),
        "column petal_width: the column is missing (is it 'sepal_width'?)",
    ),
    "ragged.csv": (
        FLOWERS.to_csv(index=False) + "1,2,3,4,setosa,6\n",
        "has more cells than there are columns",
    ),
    "empty.csv": ("", "is empty"),
    "gaps.csv": (
        FLOWERS.assign(petal_width=None).to_csv(index=False),
        "column petal_width, line 2: must not be missing",
    ),
    "semicolons.csv": (FLOWERS.to_csv(index=False, sep=";"), "separated by commas"),
    "noise.parquet": ("PAR1 but no more", "cannot be read as Parquet"),
    "nowhere.sql": ("SELECT 1", "does not name its database in its first line"),
    "lost.sql": ("-- sqlite: gone.db\nSELECT 1", "names gone.db, which is no file"),
    "typo.sql": ("-- sqlite: ../garden.db\nSELEC 1", "cannot be answered"),
    "other.sql": ("-- sqlite: ../garden.db\nSELECT 1 AS one", "the column is missing"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_by_name_and_the_rest_goes_on(folder, name):
    content, says = BAD[name]
    database(folder / "garden.db")
    (folder / "iris.d" / name).write_text(content)
    FLOWERS.to_csv(folder / "iris.d" / "good.csv", index=False)
    batches, refused = read_source(IRIS, folder, {}, "")
    assert [one.name for one in batches] == ["good.csv"]
    (one,) = refused
    assert isinstance(one, Refused)
    assert one.name == name
    assert says in one.says


def test_what_lies_far_outside_training_is_refused_as_mlops_check_does(folder):
    FLOWERS.assign(petal_width=FLOWERS["petal_width"] + 20).to_csv(
        folder / "iris.d" / "inches.csv", index=False
    )
    batches, refused = read_source(IRIS, folder, {"petal_width": (0.1, 1.3, 2.5)}, "training")
    assert batches == []
    assert "most values are above all that training saw" in refused[0].says


def test_rows_that_repeat_themselves_are_no_trouble(folder):
    houses = USE_CASES["housing"]
    table = houses.load().table.dropna().head(5)
    (folder / "housing.d").mkdir()
    pd.concat([table, table]).to_csv(folder / "housing.d" / "twice.csv", index=False)
    batches, refused = read_source(houses, folder, {}, "")
    assert (len(batches[0].frame), refused) == (10, [])


def test_hidden_files_and_other_kinds_are_left_alone(folder):
    for name in (".late.csv", "README.md", "may.csv.part"):
        (folder / "iris.d" / name).write_text("nonsense")
    assert read(folder) == ({}, {})

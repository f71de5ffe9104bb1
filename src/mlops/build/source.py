"""The growing source of a use case: the folder `data/<use case>.d`, and what lies in it.

    *.csv, *.parquet   rows, in columns of the data file or fields of the request, with the target
    *.sql              a query whose rows are the same; its first line names the database:

        -- sqlite: ../warehouse.db
        SELECT total_rooms, …, MedHouseVal FROM sales WHERE sold_on >= '2026-01-01'

Each file is held against the rules of `mlops check`, by the same code, as is what a query gives.
What breaks one is refused as a whole and by name, and the others are taken: one bad delivery must
not keep all others from being learnt. Repeated rows are no reason, since each is taken once.
Names that begin with a point, and others than these, are left alone: a file that is still being
written should have one, and be renamed when it is whole.
"""

from __future__ import annotations

import dataclasses
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import apsw
import pandas as pd

from mlops.build.check import REPEATS, Checked, check_table
from mlops.build.growth import Batch
from mlops.database import connect
from mlops.errors import DataError, MlopsError
from mlops.usecase import UseCase

KINDS = (".csv", ".parquet", ".sql")
FIRST_LINE = re.compile(r"--\s*sqlite:\s*(\S.*)")


@dataclasses.dataclass(frozen=True, slots=True)
class Refused:
    """A file that was not taken, and why."""

    name: str
    says: str


def source_folder(use_case: UseCase, folder: Path) -> Path:
    return folder / f"{use_case.name}.d"


def read_source(
    use_case: UseCase, folder: Path, ranges: Mapping[str, Sequence[float]], compared: str
) -> tuple[list[Batch], list[Refused]]:
    """Read all that lies in the growing source in `folder`, by name; there may be no such folder.

    `ranges` and `compared` are as `check_table` takes them.
    """
    batches, refused = [], []
    for path in sorted(source_folder(use_case, folder).glob("[!.]*")):
        if path.suffix not in KINDS:
            continue
        try:
            with tempfile.TemporaryDirectory() as scratch:
                table = _answer(path, Path(scratch)) if path.suffix == ".sql" else path
                if table is None:
                    continue  # the query gives no rows: nothing came
                checked = check_table(use_case, table, ranges=ranges, compared=compared)
                trouble = _trouble(use_case, checked)
                if trouble:
                    refused.append(Refused(path.name, trouble))
                    continue
                batches.append(Batch(path.name, _read(use_case, table)))
        except (MlopsError, OSError) as error:
            refused.append(Refused(path.name, str(error)))
    return batches, refused


def _trouble(use_case: UseCase, checked: Checked) -> str:
    """Return what is wrong in one line, empty if nothing is."""
    wrong = [
        found for found in checked.findings if found.kind == "violation" and found.rule != REPEATS
    ]
    if wrong:
        first = wrong[0]
        where = f", line {first.lines[0]}" if first.lines else ""
        example = f" ({first.example})" if first.example else ""
        more = f"; and {len(wrong) - 1} more" if wrong[1:] else ""
        return f"column {first.column}{where}: {first.rule}{example}{more}"
    if not checked.has_target:
        return f"it lacks the target {use_case.target.column}, so there is nothing to learn"
    return ""


def _read(use_case: UseCase, path: Path) -> pd.DataFrame:
    """Read a table that was checked, in columns of the data file."""
    with path.open("rb") as file:
        is_parquet = file.read(4) == b"PAR1"
    table = pd.read_parquet(path) if is_parquet else pd.read_csv(path, index_col=False)
    names = {feature.name: feature.column for feature in use_case.features}
    names[use_case.target.name] = use_case.target.column
    return table.rename(columns={n: c for n, c in names.items() if c not in table.columns})


def _answer(path: Path, scratch: Path) -> Path | None:
    """Run the query of a file, and write what it gives as a table; None if it gives no rows."""
    first, _, query = path.read_text(encoding="utf-8").partition("\n")
    named = FIRST_LINE.fullmatch(first.strip())
    if not named:
        raise DataError(
            f"{path.name} does not name its database in its first line",
            "write there: -- sqlite: path/to/file.db (from other databases, export to a CSV or "
            "Parquet file beside it)",
        )
    database = path.parent / named[1].strip()
    if not database.is_file():
        raise DataError(f"{path.name} names {named[1]}, which is no file", "correct its first line")
    try:
        connection = connect(database, read_only=True)
        try:
            cursor = connection.execute(query)
            names = [name for name, *_ in cursor.get_description()]
            rows = list(cursor)
        finally:
            connection.close()
    except apsw.ExecutionCompleteError:
        return None
    except apsw.Error as error:
        raise DataError(f"{path.name} cannot be answered: {error}", "correct the query") from None
    table = scratch / "answer.parquet"
    try:
        pd.DataFrame(rows, columns=names).to_parquet(table)
    except (ValueError, TypeError) as error:  # pyarrow's own are among them
        said = str(error).splitlines()[0]
        raise DataError(
            f"{path.name} gives no table: {said}", "give each column one type"
        ) from None
    return table

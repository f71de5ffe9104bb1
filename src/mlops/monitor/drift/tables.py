"""A file of any length as pages of numbers: CSV or Parquet, never in memory as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mlops.errors import DataError, UsageError
from mlops.monitor.drift.columns import PREDICTION, numbers
from mlops.usecase import UseCase

BLOCK_BYTES = 8 << 20
PAGE_ROWS = 1 << 17
LABEL = "predicted_label"


def pages(use_case: UseCase, path: Path) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Yield the fields, float64 [n, fields], and the answers in the file, or None if it has none.

    A field's column is named as in a request or as in the data file; answers stand in a column
    `prediction` or named as in the service's answer. An empty cell is NaN. Raises `UsageError` for
    what is no such file, `DataError` for a cell that is no number.
    """
    import pyarrow

    if not path.is_file():
        raise UsageError(f"{path} is not a file", "name a CSV or Parquet file")
    try:
        if path.suffix == ".parquet":
            yield from _of_parquet(use_case, path)
        else:
            yield from _of_csv(use_case, path)
    except pyarrow.ArrowException as error:
        raise DataError(
            f"{path} cannot be read as numbers: {str(error).splitlines()[0]}",
            f"look with: mlops check {use_case.name} {path}",
        ) from None


def _of_csv(use_case: UseCase, path: Path) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    import pyarrow
    from pyarrow import csv

    read = csv.ReadOptions(block_size=BLOCK_BYTES)
    with path.open("rb") as file:
        if not file.read(1):
            raise UsageError(f"{path} is empty", "name a file with a line of column names")
        file.seek(0)
        with csv.open_csv(file, read_options=csv.ReadOptions(block_size=1 << 16)) as opened:
            names = opened.schema.names
    places, answer = _places(use_case, names, path)
    types = dict.fromkeys(places, pyarrow.float64())
    if answer:
        types[answer] = pyarrow.string() if use_case.target.labels else pyarrow.float64()
    convert = csv.ConvertOptions(
        column_types=types, include_columns=list(types), strings_can_be_null=True
    )
    with csv.open_csv(path, read_options=read, convert_options=convert) as opened:
        for batch in opened:
            yield _page(use_case, batch, places, answer)


def _of_parquet(use_case: UseCase, path: Path) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        places, answer = _places(use_case, file.schema_arrow.names, path)
        wanted = [*places, *([answer] if answer else [])]
        for batch in file.iter_batches(PAGE_ROWS, columns=wanted):
            yield _page(use_case, batch, places, answer)


def _places(use_case: UseCase, found: list[str], path: Path) -> tuple[list[str], str | None]:
    """Return the file's column of each field, and of the answers if there are any."""
    places = []
    for feature in use_case.features:
        for name in (feature.name, f"input_{feature.name}", feature.column):
            if name in found:
                places.append(name)
                break
        else:
            raise UsageError(
                f"{path} has no column {feature.name}",
                f"its columns must include {', '.join(use_case.fields)}",
            )
    answers = PREDICTION, LABEL if use_case.target.labels else use_case.target.name
    known = [name for name in answers if name in found]
    return places, known[0] if known else None


def _page(
    use_case: UseCase, batch: Any, places: list[str], answer: str | None
) -> tuple[np.ndarray, np.ndarray | None]:
    fields = np.column_stack([_floats(batch.column(name)) for name in places])
    if answer is None:
        return fields, None
    if not use_case.target.labels:
        return fields, _floats(batch.column(answer))
    return fields, numbers(use_case, batch.column(answer).to_pylist())


def _floats(column: Any) -> np.ndarray:
    import pyarrow

    cast = column.cast(pyarrow.float64())
    found: np.ndarray = cast.to_numpy(zero_copy_only=False)
    return found

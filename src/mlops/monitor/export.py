"""Export logged predictions to one file: Parquet, CSV, or JSON lines.

Rows come in pages, each read on its own, so memory stays bounded and no reader keeps the database
from moving its write-ahead log on: the server goes on writing meanwhile. What is logged after the
export began is not in it.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson

from mlops.errors import UsageError
from mlops.records import Prediction

Pages = Iterator[Sequence[Prediction]]
Writer = Callable[[Path, Pages, Sequence[str]], int]
PLAIN = ("prediction_id", "prediction", "probabilities", "warnings", "model_version", "bundle")


def writer_for(path: Path) -> Writer:
    """Return what writes a file of that name. Raises `UsageError` for an ending it cannot."""
    if path.suffix not in WRITERS:
        raise UsageError(
            f"{path} has no ending that says its format",
            f"name a file that ends in {', '.join(WRITERS)}",
        )
    return WRITERS[path.suffix]


def _write_parquet(path: Path, pages: Pages, fields: Sequence[str]) -> int:
    import pyarrow
    import pyarrow.parquet

    types = {
        "id": pyarrow.int64(),
        "timestamp": pyarrow.timestamp("us", "UTC"),
        **dict.fromkeys(_columns(fields)[2:], pyarrow.string()),
        **{_column(field): pyarrow.float64() for field in fields},
        "model_version": pyarrow.int64(),
    }
    number, writer = 0, None
    try:
        for page in pages:
            records = [_record(row, fields) for row in page]
            if writer is None:
                # A regression answers numbers, a classification labels.
                if not isinstance(page[0].prediction, str):
                    types["prediction"] = pyarrow.float64()
                schema = pyarrow.schema([(name, types[name]) for name in _columns(fields)])
                writer = pyarrow.parquet.ParquetWriter(path, schema, compression="zstd")
            columns = {name: [record[name] for record in records] for name in schema.names}
            columns["timestamp"] = pyarrow.array(columns["timestamp"]).cast(types["timestamp"])
            writer.write_table(pyarrow.table(columns, schema))
            number += len(page)
        if writer is None:
            schema = pyarrow.schema([(name, types[name]) for name in _columns(fields)])
            writer = pyarrow.parquet.ParquetWriter(path, schema)
    finally:
        if writer is not None:
            writer.close()
    return number


def _write_csv(path: Path, pages: Pages, fields: Sequence[str]) -> int:
    number = 0
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, _columns(fields))
        writer.writeheader()
        for page in pages:
            writer.writerows(_record(row, fields) for row in page)
            number += len(page)
    return number


def _write_json_lines(path: Path, pages: Pages, _: Sequence[str]) -> int:
    number = 0
    with path.open("wb") as file:
        for page in pages:
            for row in page:
                entry: dict[str, Any] = {"id": row.id, **row._asdict()}
                for name in ("inputs", "probabilities", "warnings"):
                    text = entry[name]
                    entry[name] = orjson.Fragment(text) if text is not None else None
                file.write(orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE))
            number += len(page)
    return number


WRITERS: dict[str, Writer] = {
    ".parquet": _write_parquet,
    ".csv": _write_csv,
    ".jsonl": _write_json_lines,
}


def _columns(fields: Sequence[str]) -> list[str]:
    return ["id", "timestamp", *map(_column, fields), *PLAIN, "client"]


def _column(field: str) -> str:
    """Return the column of a request field; two columns never have one name."""
    return f"input_{field}" if field in {"id", "timestamp", "client", *PLAIN} else field


def _record(row: Prediction, fields: Sequence[str]) -> dict[str, Any]:
    """Return a row as one flat record; a field that the request did not have is None."""
    inputs = json.loads(row.inputs)
    record = row._asdict()
    del record["inputs"]
    return record | {_column(field): inputs.get(field) for field in fields}

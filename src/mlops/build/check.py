"""Check any table against a use case: what is wrong, by column, rule and row.

Training reads a table with the same rules (`data.schema`) and stops at the first kind of trouble;
this reads on and tells all of it. It goes through the file in chunks, so memory is bounded by a
chunk and sixteen bytes a row, in which repeated rows are recognised.
"""

from __future__ import annotations

import codecs
import csv
import dataclasses
import difflib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from mlops.build.data import broken_rules, schema
from mlops.errors import UsageError
from mlops.usecase import Ratio, UseCase

CHUNK_ROWS = 100_000
SHOWN_LINES = 5
FAR_OUTSIDE = 10
"""A value this many times beyond all that training saw is taken for a slip, not for news."""

REPEATS = "repeats an earlier row"

Chunk = tuple[pd.DataFrame, np.ndarray]
"""Rows, and for each the number of its line in the file (in Parquet, of the row), from one."""


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """One rule that a table breaks. `lines` holds the first few; `rows` counts all.

    A violation makes a table unfit for the use case; a warning is only worth a look.
    """

    kind: Literal["violation", "warning"]
    column: str
    rule: str
    rows: int
    lines: tuple[int, ...]
    example: str


@dataclasses.dataclass(frozen=True, slots=True)
class Checked:
    use_case: str
    path: str
    rows: int
    has_target: bool
    compared: str
    """What the plausibility of values was judged by; empty if it was not."""
    findings: tuple[Finding, ...]

    @property
    def fits(self) -> bool:
        return not any(finding.kind == "violation" for finding in self.findings)


def check_table(
    use_case: UseCase,
    path: Path,
    *,
    ranges: Mapping[str, Sequence[float]],
    compared: str = "",
) -> Checked:
    """Check a CSV or Parquet file, with or without the target, under columns or request fields.

    `ranges` gives the least, the median and the greatest value of fields and derived inputs in
    training; none means that plausibility is not judged.
    Raises `UsageError` for what is not a table at all.
    """
    findings = _Findings()
    chunks = _parquet(path) if _is_parquet(path) else _csv(path, findings)
    table = _Table(use_case, ranges, findings)
    for frame, lines in chunks:
        table.check(frame, lines)
    table.finish()
    return Checked(
        use_case.name, str(path), table.rows, table.has_target, compared, findings.sorted()
    )


class _Findings:
    """What was found so far, by column and rule."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], Finding] = {}

    def add(
        self,
        column: str,
        rule: str,
        lines: Sequence[int] | np.ndarray = (),
        example: object = "",
        *,
        rows: int | None = None,
        kind: Literal["violation", "warning"] = "violation",
    ) -> None:
        """Add rows that break a rule; `rows` where it is not those of `lines`."""
        count = len(lines) if rows is None else rows
        before = self._found.get((column, rule))
        shown = [int(line) for line in lines[:SHOWN_LINES]]
        if before is not None:
            count += before.rows
            shown = [*before.lines, *shown][:SHOWN_LINES]
            example = before.example
        text = example if isinstance(example, str) else f"{example:g}"
        self._found[column, rule] = Finding(kind, column, rule, count, tuple(shown), text)

    def sorted(self) -> tuple[Finding, ...]:
        """Violations before warnings; among them the whole table's, then by first line."""
        return tuple(
            sorted(
                self._found.values(),
                key=lambda f: (f.kind == "warning", f.lines[:1], f.column, f.rule),
            )
        )


class _Table:
    """A table on its way through the check, chunk by chunk."""

    def __init__(
        self, use_case: UseCase, ranges: Mapping[str, Sequence[float]], findings: _Findings
    ) -> None:
        self.use_case = use_case
        self.findings = findings
        self.rows = 0
        self.has_target = False
        self._ranges = ranges
        self._columns: list[str] = []
        self._renamed: dict[str, str] = {}
        self._schema: Any = None
        self._hashes: list[np.ndarray] = []
        self._lines: list[np.ndarray] = []
        self._outside: dict[str, _Outside] = {}

    def check(self, frame: pd.DataFrame, lines: np.ndarray) -> None:
        if self._schema is None:
            self._look_at_columns([str(name) for name in frame.columns])
        frame.columns = pd.Index([self._renamed.get(str(n), str(n)) for n in frame.columns])
        self.rows += len(frame)
        if frame.empty or not self._columns:
            return
        values = pd.DataFrame(
            {column: self._typed(column, frame[column], lines) for column in self._columns}
        ).reset_index(drop=True)
        broken = broken_rules(self.use_case, values, self._schema)
        for (column, rule), cases in broken.groupby(["column", "rule"], sort=False):
            at = np.sort(cases["index"].to_numpy(dtype=int))
            self.findings.add(str(column), str(rule), lines[at], _shown(values[column].iloc[at[0]]))
        self._hashes.append(pd.util.hash_pandas_object(values, index=False).to_numpy())
        self._lines.append(lines)
        whole = ~np.isin(np.arange(len(values)), broken["index"].to_numpy(dtype=int))
        self._compare(values, lines, whole)

    def finish(self) -> None:
        """Tell what only the whole table shows."""
        if not self.rows:
            self.findings.add("(all)", "the table must have rows")
            return
        self._tell_repeated_rows()
        wrong_units = {
            name for name, outside in self._outside.items() if outside.most_of(self.rows)
        }
        for name, outside in self._outside.items():
            if wrong_units.intersection(outside.parts):
                continue  # told of the field already
            if name in wrong_units:
                outside.tell_unit(self.findings)
            else:
                outside.tell_rows(self.findings)

    def _look_at_columns(self, present: list[str]) -> None:
        """Find each declared column, under its own name or that of the request field."""
        use_case = self.use_case
        names = {feature.column: feature.name for feature in use_case.features}
        names[use_case.target.column] = use_case.target.name
        for column, name in names.items():
            if column in present or name in present:
                self._columns.append(column)
                if column not in present:
                    self._renamed[name] = column
            elif column != use_case.target.column:
                near = [n for c in (column, name) for n in difflib.get_close_matches(c, present, 1)]
                both = column if column == name else f"{column} (or {name})"
                example = f"is it {near[0]!r}?" if near else ""
                self.findings.add(both, "the column is missing", example=example)
        self.has_target = use_case.target.column in self._columns
        known = {*self._columns, *self._renamed}
        if more := [name for name in present if name not in known]:
            rule = f"{use_case.name} declares no such column: not looked at"
            self.findings.add(", ".join(more), rule, kind="warning")
        self._schema = schema(use_case, self._columns, gaps=True)

    def _typed(self, column: str, values: pd.Series[Any], lines: np.ndarray) -> pd.Series[Any]:
        """Return a column as what it is declared to be; what is none of it becomes missing."""
        missing = values.isna().to_numpy()
        self._tell(column, "must not be missing", missing, values, lines)
        target = self.use_case.target
        if target.labels and column == target.column:
            return values.astype("str").where(~missing)
        if values.dtype.kind in "bmM":  # they would pass for numbers
            numbers = pd.Series(np.nan, values.index)
        else:
            if values.dtype.kind not in "iuf":
                values = values.astype("str")
            numbers = pd.to_numeric(values, errors="coerce").astype(float)
        self._tell(column, "must be a number", numbers.isna().to_numpy() & ~missing, values, lines)
        return numbers

    def _tell(
        self,
        column: str,
        rule: str,
        wrong: np.ndarray,
        values: pd.Series[Any],
        lines: np.ndarray,
    ) -> None:
        if wrong.any():
            example = values[wrong].iloc[0]
            self.findings.add(column, rule, lines[wrong], "" if pd.isna(example) else repr(example))

    def _tell_repeated_rows(self) -> None:
        if not self._lines:  # none of its columns is declared
            return
        lines = np.concatenate(self._lines)
        repeated = pd.Series(np.concatenate(self._hashes)).duplicated().to_numpy()
        if repeated.any():
            unique = self.use_case.unique_rows
            self.findings.add(
                "(all)",
                REPEATS if unique else f"{REPEATS}, which may be so",
                lines[repeated],
                kind="violation" if unique else "warning",
            )

    def _compare(self, values: pd.DataFrame, lines: np.ndarray, whole: np.ndarray) -> None:
        """Hold inputs against what training saw; single values in rows without other trouble."""
        columns = {f.name: values[f.column] for f in self.use_case.features if f.column in values}
        units = {f.name: (f.column, f.unit) for f in self.use_case.features}
        parts: dict[str, tuple[str, ...]] = {}
        for item in self.use_case.inputs:
            if isinstance(item, Ratio) and {item.numerator, item.denominator} <= set(columns):
                denominator = columns[item.denominator]
                columns[item.name] = columns[item.numerator] / denominator.where(
                    denominator != 0, 1.0
                )
                units[item.name] = f"{item.numerator} / {item.denominator}", item.unit
                parts[item.name] = item.numerator, item.denominator
        for name, column in columns.items():
            if name in self._ranges:
                low, middle, high = self._ranges[name]
                outside = self._outside.setdefault(
                    name, _Outside(*units[name], low, middle, high, parts.get(name, ()))
                )
                outside.add(column.to_numpy(), lines, whole)


@dataclasses.dataclass(slots=True)
class _Outside:
    """How the values of one input lie to the range that training saw.

    A column most of which lies outside, all on one side, has another unit. Else single values that
    lie far outside, on a scale of factors, are slips.
    """

    column: str
    unit: str
    low: float
    middle: float
    high: float
    parts: tuple[str, ...]
    below: int = 0
    above: int = 0
    far: int = 0
    far_lines: list[int] = dataclasses.field(default_factory=list)
    example: float = np.nan
    medians: list[float] = dataclasses.field(default_factory=list)  # of each chunk

    def add(self, values: np.ndarray, lines: np.ndarray, whole: np.ndarray) -> None:
        if (finite := values[np.isfinite(values)]).size:
            self.medians.append(float(np.median(finite)))
        self.below += int((values < self.low).sum())
        self.above += int((values > self.high).sum())
        far = (self.high > 0) & (values > self.high * FAR_OUTSIDE)
        far |= (self.low > 0) & (values < self.low / FAR_OUTSIDE)
        far &= whole
        if far.any():
            if not self.far:
                self.example = float(values[far][0])
            self.far += int(far.sum())
            self.far_lines = [*self.far_lines, *lines[far][:SHOWN_LINES].tolist()][:SHOWN_LINES]

    def most_of(self, rows: int) -> bool:
        return max(self.below, self.above) > rows / 2

    def tell_unit(self, findings: _Findings) -> None:
        side = "above" if self.above > self.below else "below"
        rule = f"most values are {side} all that training saw ({self._range()}): another unit?"
        found = float(np.median(self.medians))
        power = round(np.log10(found / self.middle)) if found / self.middle > 0 else 0
        if power:
            verb = "divided" if power > 0 else "multiplied"
            rule += f" {verb} by {10 ** abs(power):,} they would fit"
        findings.add(
            self.column,
            rule,
            example=found,
            rows=max(self.below, self.above),
        )

    def tell_rows(self, findings: _Findings) -> None:
        if self.far:
            rule = f"is over {FAR_OUTSIDE} times outside all that training saw ({self._range()})"
            findings.add(self.column, rule, self.far_lines, self.example, rows=self.far)

    def _range(self) -> str:
        return f"{self.low:g} to {self.high:g} {self.unit}"


# --- reading


def _is_parquet(path: Path) -> bool:
    if not path.is_file():
        raise UsageError(f"{path} is not a file", "name a CSV or Parquet file")
    with path.open("rb") as file:
        start = file.read(4)
    if not start:
        raise UsageError(f"{path} is empty", "its first line must name the columns")
    return start == b"PAR1"


def _parquet(path: Path) -> Iterator[Chunk]:
    import pyarrow
    from pyarrow import parquet

    first = 1
    try:
        file = parquet.ParquetFile(path)
        for batch in file.iter_batches(CHUNK_ROWS):
            frame = batch.to_pandas()
            yield frame, np.arange(first, first + len(frame))
            first += len(frame)
        if first == 1:
            yield file.schema_arrow.empty_table().to_pandas(), np.arange(0)
    except (pyarrow.ArrowException, OSError) as error:
        raise UsageError(
            f"{path} cannot be read as Parquet: {str(error).splitlines()[0]}", "write it again"
        ) from None


def _csv(path: Path, findings: _Findings) -> Iterator[Chunk]:
    """Read a CSV file whatever its encoding, separator and ragged lines; tell what they are."""
    encoding = _encoding(path, findings)
    header, separator = _header(path, encoding, findings)
    for name in dict.fromkeys(header):
        if header.count(name) > 1:
            findings.add(name, f"the column is there {header.count(name)} times: the first counts")
    skipped: list[int] = []  # numbers of lines, rising
    first = 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", pd.errors.ParserWarning)
        try:
            # Blank lines are no rows, but they count as lines when one of the file is named.
            for frame in pd.read_csv(
                path,
                sep=separator,
                encoding=encoding,
                index_col=False,
                skip_blank_lines=False,
                on_bad_lines="warn",
                low_memory=False,
                chunksize=CHUNK_ROWS,
            ):
                while caught:
                    _tell_ragged(str(caught.pop(0).message), skipped, findings)
                lines = _line_numbers(np.arange(first, first + len(frame)), skipped)
                first += len(frame)
                there = frame.notna().any(axis=1).to_numpy()
                yield frame[there], lines[there]
        except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
            said = str(error).splitlines()[0]
            raise UsageError(f"{path} cannot be read as CSV: {said}", "write it again") from None


def _encoding(path: Path, findings: _Findings) -> str:
    """Return how the file's text is encoded; what is not UTF-8 is a finding."""
    with path.open("rb") as file:
        start = file.read(4096)
        if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            findings.add("(all)", "the file must be UTF-8", example="it is UTF-16")
            return "utf-16"
        if b"\0" in start:
            raise UsageError(f"{path} is neither CSV nor Parquet", "export it as one of them")
        file.seek(0)
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                wrong = line[error.start : error.end].decode("latin-1")
                findings.add("(all)", "the file must be UTF-8", [number], f"{wrong!r} in Latin-1")
                return "latin-1"
    return "utf-8-sig"


def _header(path: Path, encoding: str, findings: _Findings) -> tuple[list[str], str]:
    with path.open(encoding=encoding, newline="") as file:
        line = file.readline()
    separator = max(",;\t|", key=line.count)
    if separator != ",":
        findings.add("(all)", "columns must be separated by commas", [1], f"by {separator!r}")
    return next(csv.reader([line], delimiter=separator), []), separator


def _tell_ragged(warning: str, skipped: list[int], findings: _Findings) -> None:
    """Note the lines that pandas left out: "Skipping line 3: expected 2 fields, saw 3"."""
    for text in warning.splitlines():
        words = text.replace(":", "").replace(",", "").split()
        if words[:2] == ["Skipping", "line"]:
            skipped.append(int(words[2]))
            rule = "has more cells than there are columns: the row is not looked at"
            findings.add("(all)", rule, skipped[-1:], f"{words[7]} for {words[4]}")
        elif text:
            findings.add("(all)", "has more cells than there are columns", example=text)


def _line_numbers(rows: np.ndarray, skipped: Sequence[int]) -> np.ndarray:
    """Return the lines of rows numbered from 0, of which the skipped ones are none.

    Line 1 is the header, and people count from one.
    """
    before = np.array(skipped) - np.arange(len(skipped)) - 2  # rows above each skipped line
    return rows + 2 + np.searchsorted(before, rows, side="right")


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else repr(value)

"""What does a drift report cost, against Evidently's data-drift preset on the same table?

10^6 rows of 8 columns against as many of training, both drawn with replacement from the request
fields of the housing table; the report as HTML written in both cases. Evidently gets an environment
of its own, for it needs an older pandas. Then 10^7 rows from a Parquet file, page by page: the peak
of memory.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.drift import population
from mlops import clock
from mlops.build.page import STYLE
from mlops.monitor.drift import tables
from mlops.monitor.drift.budget import Budget
from mlops.monitor.drift.page import page
from mlops.monitor.drift.profile import Profile
from mlops.monitor.drift.report import assessed
from mlops.usecases.housing import HOUSING

ROWS, MANY_ROWS = 1_000_000, 10_000_000
LEAST_RATIO = 10
EVIDENTLY = ("evidently==0.7.23", "pandas<3.1")
BUDGET = Budget(1, 30 * 86400, 3600)
THEIRS = """
import json, resource, sys, time
import numpy, pandas
from evidently import DataDefinition, Dataset, Report
from evidently.presets import DataDriftPreset
folder, names = sys.argv[1], json.loads(sys.argv[2])
before, now = (pandas.DataFrame(numpy.load(f"{folder}/{one}.npy"), columns=names)
               for one in ("reference", "window"))
began, used = time.perf_counter(), time.process_time()
kinds = DataDefinition(numerical_columns=names)
run = Report([DataDriftPreset()]).run(
    *(Dataset.from_pandas(one, data_definition=kinds) for one in (now, before)))
run.save_html(f"{folder}/evidently.html")
print(json.dumps({"seconds": time.perf_counter() - began, "cpu": time.process_time() - used,
    "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3}))
"""


def run(home: Path, rows: int = ROWS, many: int = MANY_ROWS) -> list[str]:
    """Measure; print and return the table as Markdown. `home` is an empty folder."""
    rng = np.random.default_rng(7)
    fields = population()[:, : len(HOUSING.fields)]
    for name in ("reference", "window"):
        np.save(home / f"{name}.npy", fields[rng.integers(0, len(fields), rows)])
    _write_parquet(home / "many.parquet", fields, many, rng)
    python = _environment(home)
    names = json.dumps(list(HOUSING.fields))
    theirs = _measured([str(python), "-c", THEIRS, str(home), names])
    one, ten = (_measured([sys.executable, "-m", __name__, kind, str(home)]) for kind in ("1", "2"))
    lines = [
        f"{rows:,} rows × {len(HOUSING.fields)} columns against as many of training, with the page;"
        f" Evidently's preset ({EVIDENTLY[0].replace('==', ' ')}) on the same machine:",
        "",
        "| | Evidently ÷ ours | target |",
        "|---|---|---|",
        f"| time, training counted anew | {theirs['seconds'] / one['seconds']:.0f} ×"
        f" | ≥ {LEAST_RATIO} |",
        f"| processor time | {theirs['cpu'] / one['cpu']:.0f} × | |",
        f"| peak of memory | {theirs['peak_mb'] / one['peak_mb']:.1f} × | |",
        "",
        f"{many:,} rows of a Parquet file, page by page: a peak of {ten['peak_mb']:,.0f} MB, "
        f"{ten['before_mb']:,.0f} MB of it before the first row.",
    ]
    print("\n".join(["", *lines]))
    return lines


def _environment(home: Path) -> Path:
    """Make Evidently an environment of its own; return its Python."""
    uv, folder = Path(sys.executable).with_name("uv"), home / "evidently"
    python = folder / "bin" / "python"
    subprocess.run([uv, "venv", "-q", "--python", sys.executable, folder], check=True)
    subprocess.run([uv, "pip", "install", "-q", "--python", python, *EVIDENTLY], check=True)
    return python


def _measured(command: list[str]) -> dict[str, Any]:
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _write_parquet(path: Path, fields: np.ndarray, rows: int, rng: np.random.Generator) -> None:
    import pyarrow
    from pyarrow import parquet

    schema = pyarrow.schema([(name, pyarrow.float64()) for name in HOUSING.fields])
    with parquet.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, tables.PAGE_ROWS):
            picked = rng.integers(0, len(fields), min(tables.PAGE_ROWS, rows - start))
            columns = dict(zip(HOUSING.fields, fields[picked].T, strict=True))
            writer.write_table(pyarrow.table(columns, schema))


def _ours(folder: Path) -> None:
    """Report on the window against the reference, and say what it took."""
    before, now = (np.load(folder / f"{name}.npy") for name in ("reference", "window"))
    began, used = time.perf_counter(), time.process_time()
    profile = Profile.learn(HOUSING.fields, before)
    _report(folder, profile, profile.count(now))
    _say(seconds=time.perf_counter() - began, cpu=time.process_time() - used)


def _ours_of_many(folder: Path) -> None:
    profile = Profile.learn(HOUSING.fields, np.load(folder / "reference.npy")[:16_512])
    before = _peak_mb()
    counts = profile.nothing()
    for fields, _ in tables.pages(HOUSING, folder / "many.parquet"):
        counts += profile.count(fields)
    _report(folder, profile, counts)
    _say(rows=counts.rows, before_mb=before)


def _report(folder: Path, profile: Profile, counts: Any) -> None:
    found = assessed(
        HOUSING, 1, "", window="window", at=clock.stamp(), budget=BUDGET, found=(profile, counts)
    )
    (folder / "ours.html").write_text(page(HOUSING, found, style=STYLE), encoding="utf-8")


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def _say(**found: float) -> None:
    print(json.dumps({**found, "peak_mb": _peak_mb()}))


if __name__ == "__main__":
    {"1": _ours, "2": _ours_of_many}[sys.argv[1]](Path(sys.argv[2]))

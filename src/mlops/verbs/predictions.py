"""Predictions: made, counted, followed back to their data, and kept in the log."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from mlops import tables
from mlops.errors import UsageError
from mlops.settings import Settings, read_settings
from mlops.verbs.console import (
    AsJson,
    UseCaseName,
    out,
    parse_number,
    parse_row,
    print_result,
    progress,
)

SURPLUS = "more cells than columns"


def predict(
    use_case: UseCaseName,
    fields: Annotated[
        list[str] | None, typer.Argument(metavar="FIELD=VALUE", help="One row")
    ] = None,
    table: Annotated[
        Path | None, typer.Option("--csv", help="Many rows: a CSV file with the fields as columns")
    ] = None,
    version: Annotated[int | None, typer.Option(help="The champion, unless told")] = None,
    interval: Annotated[
        bool, typer.Option("--interval", help="Say, too, between which values the truth may lie")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Answer rows on the same path as the server: validated, predicted, logged.

    Examples: `mlops predict iris sepal_length=5.1 sepal_width=3.5 petal_length=1.4 petal_width=0.2`
    · `mlops predict housing --csv rows.csv --json` ·
    `mlops predict housing --csv rows.csv --interval`
    """
    from mlops.loop.predict import predict as run

    if bool(fields) == bool(table):
        raise UsageError(
            "give either one row or a file", f"see: mlops predict --help, or mlops show {use_case}"
        )
    rows = _read_rows(table) if table else [parse_row(fields or [])]
    answers = run(use_case, rows, number=version, intervals=interval)
    result = answers if table else answers[0]
    print_result(result, as_json, lambda: tables.answers(answers, out))


def metrics(
    use_case: Annotated[
        str | None, typer.Argument(metavar="USE_CASE", help="All, unless named")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show traffic, errors, response times and users of the last minute, hour, day, and of all.

    The numbers are those of the server's `/metrics`, read from the log: it need not run.

    Examples: `mlops metrics` · `mlops metrics housing --json`
    """
    from mlops.loop.metrics import metrics as run

    result = run(use_case)
    print_result(result, as_json, lambda: tables.metrics(result, out))


def lineage(
    what: Annotated[
        str,
        typer.Argument(
            metavar="ID", help="Prediction id, or version, bundle, run, commit or data fingerprint"
        ),
    ],
    use_case: Annotated[
        str | None, typer.Argument(metavar="USE_CASE", help="All, unless named")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Follow a prediction to version, bundle, run, commit and data; or any of them, both ways.

    Beginnings of hashes are enough.

    Examples: `mlops lineage 1 housing` · `mlops lineage 8f31c0 --json` ·
    `mlops lineage 019ab7c2-5e0e-7d0b-9c8e-1d2f3a4b5c6d`
    """
    from mlops.loop.lineage import lineage as run

    result = run(what, use_case)
    print_result(result, as_json, lambda: tables.lineage(result, out))


def logs(
    use_case: Annotated[
        str | None, typer.Argument(metavar="USE_CASE", help="Output of the services, unless told")
    ] = None,
    last: Annotated[int, typer.Option(min=1, help="How many")] = 20,
    failures: Annotated[
        bool, typer.Option("--failures", help="The requests that got no prediction")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Print the last predictions of a use case; without one, what the services printed.

    Examples: `mlops logs housing --last 5` · `mlops logs housing --failures` · `mlops logs`
    """
    if use_case is None:
        _service_logs(read_settings(), last, as_json)
        return
    from mlops.loop.logs import logs as run

    result = run(use_case, last=last, failures=failures)
    draw = tables.failures if failures else tables.predictions
    print_result(result, as_json, lambda: draw(use_case, result, out))


def logs_export(
    to: Annotated[Path, typer.Option(help="File to write: .parquet, .csv or .jsonl")],
    use_case: Annotated[
        str | None, typer.Argument(metavar="USE_CASE", help="The first with a log, unless named")
    ] = None,
    since: Annotated[str | None, typer.Option(help="From this date or time on, UTC")] = None,
    until: Annotated[str | None, typer.Option(help="Before this date or time, UTC")] = None,
    as_json: AsJson = False,
) -> None:
    """Write logged predictions to a file, while the server goes on answering.

    Examples: `mlops logs export --since 2026-11-01 --to x.parquet` ·
    `mlops logs export housing --since 2026-11-01 --to november.parquet` ·
    `mlops logs export iris --to all.csv`
    """
    from mlops.loop.logs import export

    result = export(use_case, to, since=since, until=until, report=progress())
    text = f"{result['path']} written: {result['rows']:,} predictions of {result['use_case']}"
    print_result(result, as_json, lambda: out.print(text, soft_wrap=True))


def logs_prune(
    use_case: UseCaseName,
    older_than: Annotated[str | None, typer.Option(help="An age: 90d, 12h")] = None,
    larger_than: Annotated[str | None, typer.Option(help="A size: 2GB, 500MB")] = None,
    as_json: AsJson = False,
) -> None:
    """Delete the oldest logged rows, in small steps, while the server goes on answering.

    Full text files (`predictions.log.*`) go with the last of their rows; the one being written
    stays as it is. The metrics count what was ever logged, deleted or not. `LOG_KEEP_DAYS` and
    `LOG_KEEP_MB` make the server do this by itself.

    Examples: `mlops logs prune housing --older-than 90d` ·
    `mlops logs prune housing --larger-than 2GB`
    """
    from mlops.loop.logs import prune

    result = prune(use_case, older_than=older_than, larger_than=larger_than)
    text = f"{use_case}: {result['deleted']:,} rows deleted, {result['bytes']:,} bytes on disk"
    print_result(result, as_json, lambda: out.print(text, soft_wrap=True))


def _service_logs(settings: Settings, last: int, as_json: bool) -> None:
    from mlops.loop import services

    printed = {name: services.output(settings, name, last) for name in ("server", "mlflow")}
    print_result(printed, as_json, lambda: tables.service_logs(printed, out))


def _read_rows(path: Path) -> list[Any]:
    if not path.is_file():
        raise UsageError(f"{path} is not a file", "name a CSV file with the fields as columns")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = list(csv.DictReader(file, restkey=SURPLUS))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} is not a CSV file: {error}", "write it as UTF-8") from None
    for number, row in enumerate(table, 1):
        if SURPLUS in row:
            raise UsageError(
                f"{path}: row {number} has more cells than there are columns",
                "write numbers with a point, and one a column",
            )
    return [{name: parse_number(value) for name, value in row.items()} for row in table]


COMMANDS: dict[str, Callable[..., Any]] = {
    "predict": predict,
    "metrics": metrics,
    "lineage": lineage,
    "logs": logs,
    "logs export": logs_export,
    "logs prune": logs_prune,
}

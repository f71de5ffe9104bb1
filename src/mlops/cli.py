"""The command `mlops`: a verb of the loop each. Tables for people, `--json` for machines."""

from __future__ import annotations

import csv
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from mlops import tables
from mlops.errors import MlopsError, UsageError
from mlops.settings import Settings, read_settings
from mlops.verbs import COMMANDS
from mlops.verbs.console import (
    AsJson,
    UseCaseName,
    out,
    parse_number,
    parse_row,
    print_result,
    progress,
)
from mlops.verbs.profiles import draw_profiles, draw_settled


class _Verbs(typer.core.TyperGroup):
    """Verbs of which some have two words: `logs export` stands beside `logs`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        two = " ".join(args[:2])
        return super().resolve_command(ctx, [two, *args[2:]] if two in self.commands else args)


app = typer.Typer(
    name="mlops",
    cls=_Verbs,
    help="From a table to a trained, tracked, packaged, served and monitored model.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=False,
)

data_app = typer.Typer(help="Look at the data that models learnt from.", no_args_is_help=True)
app.add_typer(data_app, name="data", rich_help_panel="Commands")

SURPLUS = "more cells than columns"


def main(arguments: list[str] | None = None) -> None:
    """Run the command; end with 0, or with one line on standard error and another code."""
    try:
        try:
            app(args=arguments)
        finally:
            sys.stdout.flush()  # here, and not as the interpreter ends, when nobody can catch it
    except MlopsError as error:
        _complain(str(error))
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader has seen enough (`| head`). What is left in the buffer must not be tried again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        # A full disk, a missing permission: the user's to mend, and said in one line.
        where = f": {error.filename}" if error.filename else ""
        _complain(f"{error.strerror or error}{where}")
        sys.exit(1)
    except ModuleNotFoundError as error:
        if str(error.name).startswith("mlops"):
            raise
        # An image that serves can do without what training needs.
        _complain(
            f"this needs {error.name}, which is not installed here — "
            "use the environment that trains: make up, or the image's stage `training`"
        )
        sys.exit(1)


@app.command()
def up(
    use_cases: Annotated[
        list[str] | None, typer.Argument(metavar="USE_CASE", help="All, unless named")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Prepare, train, track, seal, register, promote and serve; reuse what is still valid.

    Server and MLflow run in the background until `mlops down`.

    Examples: `mlops up` · `PORT=8001 mlops up housing`
    """
    from mlops.loop.up import up as run

    result = run(tuple(use_cases or ()), report=progress())
    print_result(result, as_json, lambda: tables.up(result, out))


@app.command()
def down(as_json: AsJson = False) -> None:
    """Stop what `mlops up` started. Nothing is lost: accepted requests are answered first.

    Example: `mlops down`
    """
    from mlops.loop import services

    settings = read_settings()
    stopped = [spec for spec in ("server", "mlflow") if services.stop(settings, spec)]
    text = f"stopped: {', '.join(stopped)}" if stopped else "nothing was running"
    print_result({"stopped": stopped}, as_json, lambda: out.print(text))


@app.command()
def status(as_json: AsJson = False) -> None:
    """Say what is running, how it is, and who is champion. Exit code 1 if anything is not well.

    Examples: `mlops status` · `mlops status --json`
    """
    from mlops.loop.status import status as look

    result = look(read_settings())
    print_result(result, as_json, lambda: tables.status(result, out))
    if not result["well"]:
        raise typer.Exit(1)


@app.command()
def serve(
    use_cases: Annotated[
        list[str] | None, typer.Argument(metavar="USE_CASE", help="All, unless named")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port (PORT)")] = None,
    host: Annotated[str | None, typer.Option(help="Address to bind (MLOPS_HOST)")] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes that answer side by side (WORKERS)")
    ] = None,
) -> None:
    """Serve in the foreground until Ctrl-C.

    Several use cases stand under their names, and root `/predict` is the first one's; a single
    one has its routes at the root.

    Examples: `mlops serve` · `mlops serve iris --port 8001` · `mlops serve --workers 4`
    """
    from mlops.loop.foreground import serve_in_foreground

    given = {"PORT": port, "MLOPS_HOST": host, "WORKERS": workers}
    overrides = {name: value for name, value in given.items() if value is not None}
    serve_in_foreground(tuple(use_cases or ()), read_settings(**overrides))


@app.command()
def prepare(
    use_case: UseCaseName,
    force: Annotated[bool, typer.Option("--force", help="Write it anew from the source")] = False,
    as_json: AsJson = False,
) -> None:
    """Write `data/<use case>.csv` from its source, cleaned and checked.

    A file that is there already is checked and kept.

    Examples: `mlops prepare housing` · `mlops prepare iris --force`
    """
    from mlops.loop.prepare import prepare as run

    table = run(use_case, force=force)
    result = {
        "use_case": use_case,
        "path": str(table.path),
        "rows": len(table.frame),
        "columns": list(table.frame.columns),
        "dropped": table.dropped,
        "fingerprint": table.fingerprint,
        "origin": table.origin,
        "reused": table.reused,
    }
    print_result(result, as_json, lambda: tables.prepared(result, out))


@app.command()
def check(
    use_case: UseCaseName,
    table: Annotated[Path, typer.Argument(metavar="FILE", help="A CSV or Parquet file")],
    as_json: AsJson = False,
) -> None:
    """Check any table against a use case: what is wrong, by column, rule and line.

    With or without the target; columns may have the data file's names or those of the request.
    Ends with 0 if the table fits, 1 if it breaks a rule, 2 if it is no table.

    Examples: `mlops check housing data/housing.csv` · `mlops check iris new.parquet --json`
    """
    from mlops.loop.check import check as run

    result = run(use_case, table)
    found = {**tables.plain(result), "fits": result.fits}
    print_result(found, as_json, lambda: tables.checked(result, out))
    if not result.fits:
        raise typer.Exit(1)


@data_app.command("diff")
def data_diff(
    before: Annotated[
        str, typer.Argument(metavar="A", help="Fingerprint, version, bundle or file")
    ],
    after: Annotated[str, typer.Argument(metavar="B", help="What to compare it with")],
    use_case: Annotated[
        str | None, typer.Argument(metavar="USE_CASE", help="Where A and B alone are ambiguous")
    ] = None,
    key: Annotated[
        list[str] | None, typer.Option(help="Column that tells rows apart (may be repeated)")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what changed between the data of two trainings, or any two tables.

    Rows new, gone and changed, and columns that shifted. Beginnings of names are enough.

    Examples: `mlops data diff 1 2 housing` · `mlops data diff 8f31c0 data/housing.csv` ·
    `mlops data diff old.csv new.csv --key id --json`
    """
    from mlops.loop.differ import diff

    result = diff(before, after, use_case, key=tuple(key or ()))
    found = {**tables.plain(result), "summary": result.summary}
    print_result(found, as_json, lambda: tables.compared(result, out))


@app.command()
def train(
    use_case: UseCaseName,
    only: Annotated[
        list[str] | None, typer.Option(help="Train this candidate alone (may be repeated)")
    ] = None,
    promote_winner: Annotated[
        bool, typer.Option("--promote", help="Then ask the gates and promote the winner")
    ] = False,
    from_study: Annotated[
        bool, typer.Option("--from-study", help="Also train what `mlops tune` found best")
    ] = False,
    profile: Annotated[
        str,
        typer.Option(help="Train the products of a profile; `mlops show` lists them, with minutes"),
    ] = "",
    if_needed: Annotated[
        bool, typer.Option("--if-needed", help="Not if it would only repeat the champion")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Fit, compare and track every candidate; seal and register the winner.

    In a profile, which takes minutes where a plain training takes seconds, every product is sealed
    and registered; with `--promote` each gets its alias if the gates let it, and one becomes
    champion (`CHAMPION_PRODUCT`). `--if-needed` without a profile trains the champion's again.

    Examples: `mlops train housing` · `mlops train housing --only LinearRegression` ·
    `mlops train iris --promote` · `mlops train housing --from-study` ·
    `mlops train housing --profile accurate --promote`
    """
    from mlops.loop.products import settle
    from mlops.loop.promote import promote as promote_version
    from mlops.loop.recipe import champion_profile, still_valid
    from mlops.loop.train import train as run
    from mlops.usecases import find

    report = progress()
    if if_needed:
        champion = still_valid(find(use_case), read_settings(), profile)
        if champion is not None:
            text = f"{use_case}: version {champion.version} is still valid"
            print_result({"still_valid": champion}, as_json, lambda: out.print(text))
            return
        if not (profile or only or from_study):
            profile = champion_profile(find(use_case), read_settings())
    result = run(
        use_case, only=tuple(only or ()), profile=profile, from_study=from_study, report=report
    )
    print_result(result, as_json, lambda: tables.training(result, out))
    if promote_winner and profile:
        settled = settle(use_case, profile, result.products, report=report)
        if not as_json:
            draw_settled(settled, out)
        settled.check()
    elif promote_winner:
        promotion = promote_version(use_case, result.registered[0].version, report=report)
        if not as_json:
            tables.promotion(promotion, out)


@app.command()
def track(
    late: Annotated[
        bool, typer.Option("--pending", help="Track what waits; without it, only list that")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Track what a training had to keep because the tracking server was away.

    Can be repeated and interrupted: nothing is tracked twice.

    Examples: `mlops track` · `mlops track --pending`
    """
    from mlops.loop.track import pending
    from mlops.loop.track import track as run

    waiting = pending()
    versions = run(report=progress()) if late else []
    result = {"pending": pending() if late else waiting, "tracked": versions}
    print_result(result, as_json, lambda: tables.tracked(waiting, versions, out, late=late))


@app.command()
def tune(
    use_case: UseCaseName,
    trials: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="How many the study shall have, with those it has already; unset: 50, or with"
            " --budget as many as it has time for",
        ),
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="The longest to search: 90s, 10m, 1h; unset: 10m")
    ] = None,
    candidate: Annotated[
        list[str] | None,
        typer.Option(
            help="Tune this one alone (may be repeated), also a product of a profile; unset: all"
            " plain ones with a search space"
        ),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Trials at the same time; as many as cores")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Search for better settings of the candidates, on the folds of the training rows.

    Every trial is kept in `models/studies/`: Ctrl-C (exit code 130) or a kill loses only the
    trials under way, and the same command goes on. Trials are seeded: with `--jobs 1` a search
    gives the same trials again; with more, they also depend on which trial ends first.
    The best one is trained by `mlops train USE_CASE --from-study`.

    Examples: `mlops tune housing --budget 30m` · `mlops tune iris --trials 20` ·
    `mlops tune housing --candidate GradientBoosting --jobs 1`
    """
    from mlops.loop.tune import tune as run

    result = run(
        use_case,
        trials=trials,
        budget=budget,
        candidates=tuple(candidate or ()),
        jobs=jobs,
        report=progress(),
    )
    print_result(result, as_json, lambda: tables.tuning(result, out))
    if result.ended == "interrupt":
        raise typer.Exit(130)


@app.command()
def runs(
    use_case: UseCaseName,
    every: Annotated[
        bool, typer.Option("--all", help="Every run, not only the newest of each candidate")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compare the runs of a use case: spread over the folds, and the difference to the best.

    The 95 % interval is that of paired folds (Nadeau and Bengio 2003); where it contains 0, the
    two are called a tie.

    Examples: `mlops runs housing` · `mlops runs housing --all`
    """
    from mlops.loop.runs import runs as run

    result = run(use_case, every=every, report=progress())
    print_result(result, as_json, lambda: tables.runs(use_case, result, out))


@app.command()
def report(
    use_case: UseCaseName,
    version: Annotated[
        int | None, typer.Option(help="A registered version; the champion, unless told")
    ] = None,
    to: Annotated[
        Path | None, typer.Option(help="The file to write; unset: in `models/reports/`")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a report with figures as one HTML file that opens without a network; print its path.

    Examples: `mlops report housing` · `mlops report iris --version 2 --to forest.html`
    """
    from mlops.loop.diagnose import report as run

    result = run(use_case, version=version, to=to, report=progress())
    print_result(result, as_json, lambda: out.print(result.path, soft_wrap=True, highlight=False))


@app.command()
def show(use_case: UseCaseName, as_json: AsJson = False) -> None:
    """Show fields with units and limits, versions, champion and decisions.

    Example: `mlops show housing`
    """
    from mlops.loop.show import show as run

    result = run(use_case)

    def draw() -> None:
        tables.shown(result, out)
        draw_profiles(result, out)

    print_result(result, as_json, draw)


@app.command()
def promote(
    use_case: UseCaseName,
    version: Annotated[int | None, typer.Argument(help="The newest, unless told")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overrule the gates")] = False,
    reason: Annotated[str, typer.Option(help="Why; the ledger keeps it")] = "",
    over: Annotated[int | None, typer.Option(help="Only if this version is champion now")] = None,
    as_json: AsJson = False,
) -> None:
    """Ask the gates, then make a version champion. Returns when running servers have switched.

    Examples: `mlops promote housing` ·
    `mlops promote housing 1 --force --reason "version 2 misprices the coast"`
    """
    from mlops.loop.promote import promote as run

    result = run(use_case, version, force=force, reason=reason, over=over, report=progress())
    print_result(result, as_json, lambda: tables.promotion(result, out))


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
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


keys = typer.Typer(
    help="API keys: who may ask the server. It is open until the first one is made.\n\n"
    "Examples: `mlops keys add shop --role predict` · `mlops keys list` · `mlops keys revoke shop`",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
app.add_typer(keys, name="keys")


@keys.command("add")
def add_key(
    name: Annotated[str, typer.Argument(help="Whose it is; logs may name it")],
    role: Annotated[str, typer.Option(help="read, predict or admin")] = "predict",
    use_case: Annotated[
        str | None, typer.Option(help="Good for this use case alone; for all, unless told")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make an API key and print it, once: only its SHA-256 is kept.

    From the first key on, only health and documents are open. A running server follows within a
    second.

    Examples: `mlops keys add shop --role predict` ·
    `mlops keys add grafana --role read` · `mlops keys add ci --role admin --use-case housing`
    """
    from mlops.loop.keys import add_key as run

    result = run(name, role=role, use_case=use_case)
    print_result(result, as_json, lambda: tables.key_made(result, out))


@keys.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """List the API keys: names, roles, when they were made and revoked.

    Example: `mlops keys list`
    """
    from mlops.loop.keys import list_keys as run

    result = run()
    print_result(result, as_json, lambda: tables.keys(result, out))


@keys.command("revoke")
def revoke_key(
    name: Annotated[str, typer.Argument(help="The name it was made under")],
    as_json: AsJson = False,
) -> None:
    """End an API key for good. A running server follows within a second.

    Example: `mlops keys revoke shop`
    """
    from mlops.loop.keys import revoke_key as run

    run(name)
    print_result({"revoked": name}, as_json, lambda: out.print(f"revoked: {name}"))


@app.command("logs export")
def logs_export(
    use_case: UseCaseName,
    to: Annotated[Path, typer.Option(help="File to write: .parquet, .csv or .jsonl")],
    since: Annotated[str | None, typer.Option(help="From this date or time on, UTC")] = None,
    until: Annotated[str | None, typer.Option(help="Before this date or time, UTC")] = None,
    as_json: AsJson = False,
) -> None:
    """Write logged predictions to a file, while the server goes on answering.

    Examples: `mlops logs export housing --since 2026-11-01 --to november.parquet` ·
    `mlops logs export iris --to all.csv`
    """
    from mlops.loop.logs import export

    result = export(use_case, to, since=since, until=until, report=progress())
    text = f"{result['path']} written: {result['rows']:,} predictions"
    print_result(result, as_json, lambda: out.print(text, soft_wrap=True))


@app.command("logs prune")
def logs_prune(
    use_case: UseCaseName,
    older_than: Annotated[str | None, typer.Option(help="An age: 90d, 12h")] = None,
    larger_than: Annotated[str | None, typer.Option(help="A size: 2GB, 500MB")] = None,
    as_json: AsJson = False,
) -> None:
    """Delete the oldest logged rows, in small steps, while the server goes on answering.

    The metrics count what was ever logged, deleted or not. `LOG_KEEP_DAYS` and `LOG_KEEP_MB` make
    the server do this by itself.

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


def _complain(line: str) -> None:
    print(f"mlops: {line}", file=sys.stderr)  # noqa: T201


for verb, command in COMMANDS.items():
    app.command(verb)(command)


if __name__ == "__main__":
    main()

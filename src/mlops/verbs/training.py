"""Training: fit, search, track, and compare what came of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from mlops import tables
from mlops.settings import read_settings
from mlops.verbs.console import AsJson, UseCaseName, out, print_result, progress
from mlops.verbs.profiles import draw_settled


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
            help="Tune this one alone (may be repeated); unset: all plain ones with a search space"
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


COMMANDS: dict[str, Callable[..., Any]] = {
    "train": train,
    "track": track,
    "tune": tune,
    "runs": runs,
    "report": report,
}

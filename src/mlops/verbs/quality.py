"""`mlops feedback` and `mlops performance`: truths in, quality out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from mlops.errors import UsageError
from mlops.tables import line, table_of
from mlops.verbs.console import AsJson, UseCaseName, out, print_result, progress

SHOWN = 20
"""Lines named on the console; all of them are in the JSON form."""
Score = Mapping[str, Any]


def feedback(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[USE_CASE] TRUTH.CSV", help="A file with the columns prediction_id and actual"
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Attach actual values to predictions: once, late, in any order, also while it serves.

    Without a use case, each goes to the one whose prediction it is of. Each line stands for
    itself: what is right is attached, all else is named by its line. The whole file can be given
    again. Exit code 1 if any line was left over.

    Examples: `mlops feedback truth.csv` · `mlops feedback housing truth.csv`
    """
    from mlops.loop.feedback import feedback as run

    if len(words) > 2:
        raise UsageError(f"{len(words)} words are too many", "give a use case and one file")
    use_case = words[0] if len(words) == 2 else None
    result = run(use_case, Path(words[-1]), report=progress())
    print_result(result, as_json, lambda: _draw_feedback(result))
    if result["left"]:
        raise typer.Exit(1)


def performance(
    use_case: UseCaseName,
    window: Annotated[str, typer.Option(help="Up to now: 24h, 7d")] = "7d",
    by: Annotated[str | None, typer.Option(help="A slice, such as region")] = None,
    version: Annotated[int | None, typer.Option(help="The champion, unless told")] = None,
    as_json: AsJson = False,
) -> None:
    """Say how good predictions were: over time, by version and slice; or estimate it.

    Exit code 1 if quality has fallen beyond chance, 3 if that cannot be told.

    Examples: `mlops performance housing` · `mlops performance housing --by region --window 24h`
    """
    from mlops.loop.feedback import performance as run

    result = run(use_case, window, version)
    if by is not None and by not in result["slices"]:
        known = ", ".join(result["slices"]) or "none"
        raise UsageError(f"{use_case} has no slice {by!r}", f"declared are: {known}")
    print_result(result, as_json, lambda: _draw(result, by))
    verdicts = [one["verdict"] for one in result["findings"]]
    if "alarm" in verdicts:
        raise typer.Exit(1)
    if verdicts[0] == "cannot tell":
        raise typer.Exit(3)


def _draw_feedback(result: Mapping[str, Any]) -> None:
    left = result["left"]
    if left:
        table = table_of("line", "prediction", "", "says")
        for one in left[:SHOWN]:
            table.add_row(str(one["line"]), one["prediction_id"], one["kind"], one["says"])
        out.print(table)
        if len(left) > SHOWN:
            line(out, f"and {len(left) - SHOWN:,} more lines: --json names all")
    line(
        out,
        f"{result['path']}: {result['lines']:,} truths, {result['attached']:,} attached, "
        f"{result['already']:,} known already, {len(left):,} left over",
    )


def _draw(result: Mapping[str, Any], by: str | None) -> None:
    window = result["window"]
    line(
        out,
        f"{result['use_case']}: truths of {result['truths']:,} predictions, of "
        f"{result['predictions']:,} made from {window['since'][:16]} to {window['until'][:16]} UTC",
    )
    rows = [
        ("all", "sealed test", one["model_version"], one["sealed"]) for one in result["versions"]
    ]
    rows += [("all", "window", one["model_version"], one) for one in result["versions"]]
    if by is None:
        cells = "day" if window["step_seconds"] > 3600 else "hour"
        rows += [(one["start"][:16], cells, one["model_version"], one) for one in result["series"]]
    else:
        for one in result["slices"][by]["bands"]:
            rows += [(one["band"], "sealed test", one["model_version"], one["sealed"])]
            rows += [(one["band"], "window", one["model_version"], one)]
    names = list(dict.fromkeys(n for *_, one in rows if one for n in one["scores"]))
    if names:
        table = table_of(by or "time (UTC)", "of", "version", "truths", *names)
        for place, of, version, one in rows:
            if one:
                scores = [_score(one["scores"].get(name)) for name in names]
                table.add_row(place, of, str(version), f"{one['rows']:,}", *scores)
        out.print(table)
    for one in result["findings"]:
        if one is result["findings"][0] or one["verdict"] == "alarm":
            line(out, f"{one['verdict']}: {one['subject']}: {one['says']}")
    for one in result["intervals"]:
        promised = f", of {one['promised']:.0%} promised" if one["promised"] else ""
        line(
            out,
            f"intervals of version {one['model_version']}: {_score(one['coverage'])} of "
            f"{one['rows']:,} truths lay within theirs{promised}",
        )
    _draw_estimate(result["estimate"])


def _draw_estimate(estimate: Mapping[str, Any]) -> None:
    scores: Sequence[tuple[str, Score]] = list(estimate["scores"].items())
    if estimate["state"] == "given":
        found = ", ".join(f"{name} {_score(score)}" for name, score in scores)
        line(out, f"estimate from {estimate['rows']:,} predictions, without truths: {found}")
    line(out, f"estimate: {estimate['says']}")


def _score(score: Score | None) -> str:
    if score is None:
        return ""
    if score["low"] is None:
        return f"{score['value']:.4f}"
    return f"{score['value']:.4f} ({score['low']:.4f} to {score['high']:.4f})"


COMMANDS: dict[str, Callable[..., Any]] = {"feedback": feedback, "performance": performance}

"""Verbs of improving: what the gates say, going back, and what the ledger tells."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Annotated, Any

import typer

from mlops.errors import UsageError
from mlops.tables import late, line, plain, table_of
from mlops.verbs.console import AsJson, UseCaseName, out, print_result, progress

SHORT = 12
MOMENT = 19

Version = Annotated[int | None, typer.Argument(help="The newest, unless told")]


def gates(use_case: UseCaseName, version: Version = None, as_json: AsJson = False) -> None:
    """Ask every gate about a version, and decide nothing. Exit code 1 if one keeps it out.

    Examples: `mlops gates housing` · `mlops gates housing 2 --json`
    """
    from mlops.loop.gates import gates as run

    result = run(use_case, version)
    found = {**plain(result), "passes": result.passes}
    print_result(found, as_json, lambda: _draw_gates(result))
    if not result.passes:
        raise typer.Exit(1)


def rollback(
    use_case: UseCaseName,
    reason: Annotated[str, typer.Option(help="Why; the ledger keeps it")] = "",
    as_json: AsJson = False,
) -> None:
    """Make the champion before this one champion again. Returns when servers have switched.

    Example: `mlops rollback housing --reason "version 2 misprices the coast"`
    """
    from mlops.loop.rollback import rollback as run

    result = run(use_case, reason=reason, report=progress())
    text = f"{use_case}: version {result.version.version} is champion again, not {result.previous}"

    def draw() -> None:
        line(out, text)
        late(result, out)

    print_result(result, as_json, draw)


def guard(use_case: UseCaseName, as_json: AsJson = False) -> None:
    """Say whether the champion is guarded, and what the guard has found. Exit code 1 if it is bad.

    After a promotion a server watches errors, latency, golden rows and quality, and goes back to
    the version before by itself if the new one is worse.

    Examples: `mlops guard housing` · `mlops guard iris --json`
    """
    from mlops.loop.guard import guard as run

    result = run(use_case)
    print_result(result, as_json, lambda: _draw_guard(result))
    if any(one.verdict == "alarm" for one in result.found):
        raise typer.Exit(1)


def why(use_case: UseCaseName, version: Version = None, as_json: AsJson = False) -> None:
    """Tell the story of a version: data, training, gates, when it was champion, what came after.

    Examples: `mlops why housing 3` · `mlops why iris --json`
    """
    from mlops.loop.why import why as run

    result = run(use_case, version)
    print_result(result, as_json, lambda: _draw_story(result))


def ledger(
    use_case: Annotated[
        str | None, typer.Argument(metavar="USE_CASE", help="All, unless named")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the decisions, oldest first: what was decided, by whom, by which rule, and why.

    Examples: `mlops ledger` · `mlops ledger housing --json`
    """
    from mlops.loop.ledger import ledger as run

    result = run(use_case)
    print_result(result, as_json, lambda: _draw_ledger(result))


def ledger_verify(
    expect: Annotated[str, typer.Option(help="A hash noted earlier, or its beginning")] = "",
    as_json: AsJson = False,
) -> None:
    """Check that no line of the ledger was changed, removed or put in. Exit code 1 if one was.

    It prints the hash of the last line. Whoever keeps that elsewhere also finds out if the whole
    ledger was written anew.

    Examples: `mlops ledger verify` · `mlops ledger verify --expect 4f1c9a02 --json`
    """
    from mlops.loop.ledger import verify

    result = verify(expect)
    text = (
        f"the ledger is whole: {result.lines} lines, the last is {result.head}"
        if result.whole
        else f"the ledger was tampered with: {result.trouble}"
    )
    found = {**dataclasses.asdict(result), "whole": result.whole}
    print_result(found, as_json, lambda: line(out, text))
    if not result.whole:
        raise typer.Exit(1)


def replay(
    what: Annotated[
        str, typer.Argument(metavar="ID", help="A prediction id; with --against, a use case")
    ],
    against: Annotated[
        int | None, typer.Option(help="Let this version answer what was logged, and compare")
    ] = None,
    since: Annotated[str | None, typer.Option(help="From this date or time on, UTC")] = None,
    as_json: AsJson = False,
) -> None:
    """Answer again: one prediction by its own bundle, or a stretch of the log by another version.

    One prediction is equal to the last bit, was tampered with, or met a changed environment; exit
    code 1 unless it is equal. Another version is compared row by row, with truths where known;
    nothing is logged or promoted.

    Examples: `mlops replay 019ab7c2-5e0e-7d0b-9c8e-1d2f3a4b5c6d` ·
    `mlops replay housing --since 2026-11-01 --against 2`
    """
    from mlops.loop.replay import replay as run
    from mlops.loop.replay import shadow

    if against is None:
        if since is not None:
            raise UsageError("--since needs a version to compare", "say which with --against")
        result = run(what)
        text = f"{result.outcome}: {result.says}"
        print_result(result, as_json, lambda: line(out, text))
        if result.outcome != "equal":
            raise typer.Exit(1)
        return
    compared = shadow(what, against=against, since=since)
    found = {**plain(compared), "says": compared.judgement.says}
    print_result(finite(found), as_json, lambda: _draw_shadow(compared))


def finite(value: Any) -> Any:
    """Return a result with None for each number that JSON does not have."""
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _draw_shadow(result: Any) -> None:
    line(
        out,
        f"{result.use_case} version {result.against} on {result.predictions:,} logged predictions: "
        f"{result.differ:,} answers differ",
    )
    if result.mean_difference is not None:
        by = f"{result.mean_difference:+.4g} on average, {result.largest_difference:.4g} at most"
        line(out, f"difference  {by}")
    if result.truths:
        losses = f"{result.mean_loss:.4g}, of the answers given {result.logged_loss:.4g}"
        line(out, f"mean loss   {losses}, over {result.truths:,} with a known truth")
    line(out, f"verdict     {result.judgement.says}")


def _draw_gates(result: Any) -> None:
    table = table_of("gate", "outcome", "says")
    for one in result.verdicts:
        table.add_row(one.gate, one.outcome, one.says)
    out.print(table)
    name = f"{result.version.use_case} version {result.version.version}"
    other = "nothing" if result.against is None else f"version {result.against}"
    says = "may be promoted" if result.passes else "is kept out"
    line(out, f"{name}, held against {other}: {says}")


def _draw_guard(result: Any) -> None:
    if result.found:
        table = table_of("looked (UTC)", "version", "cause", "verdict", "says")
        for one in result.found:
            about = str(one.numbers["model_version"])
            table.add_row(one.at[:MOMENT], about, one.subject, one.verdict, one.says)
        out.print(table)
    line(out, f"{result.use_case}: {result.says}")


def _draw_ledger(result: Any) -> None:
    table = table_of(
        "line", "decided (UTC)", "use case", "decision", "version", "before", "by", "rule",
        "reason", "hash",
    )  # fmt: skip
    for one in result:
        before = "" if one.previous is None else str(one.previous)
        table.add_row(
            *(str(one.id), one.decided_utc[:MOMENT], one.use_case, one.action, str(one.version)),
            *(before, one.decided_by, one.rule, one.reason, one.hash[:SHORT]),
        )
    out.print(table)


def _draw_story(story: Any) -> None:
    version = story.version
    state = "champion" if story.champion else "not champion"
    line(out, f"{version.use_case} version {version.version}, {version.candidate}: {state}")
    by = f" by {story.trained_by}" if story.trained_by else ""
    commit = f", commit {story.commit[:SHORT]}" if story.commit else ""
    line(
        out, f"registered  {version.registered_utc[:MOMENT]} UTC{by}{commit}, run {version.run_id}"
    )
    line(out, f"bundle      {version.bundle}")
    rows = f"{story.rows_train:,} rows to learn from, {story.rows_test:,} to be measured on"
    if story.data_fingerprint:
        line(out, f"data        {story.data_fingerprint[:SHORT]}…, {rows}, {story.data_origin}")
    if story.data_change:
        line(out, f"            {story.data_change}")
    scores = "  ".join(f"{name} {value:.4f}" for name, value in story.scores.items())
    if scores:
        line(out, f"measured    {scores}")
    for one in story.decisions:
        by = f" by {one.decided_by}" if one.decided_by else ""
        rule = f", rule: {one.rule}" if one.rule else ""
        over = f" over version {one.previous}" if one.previous is not None else ""
        line(out, f"{one.decided_utc[:MOMENT]} UTC  {one.action}{over}{by}{rule}: {one.reason}")
        for verdict in one.evidence:
            if "gate" in verdict:
                says = f"{verdict['outcome']:<11}  {verdict['gate']}: {verdict['says']}"
                line(out, f"    {says}")
    for reign in story.reigns:
        began = reign.began.decided_utc[:MOMENT]
        if reign.ended is None:
            line(out, f"champion    since {began} UTC")
        else:
            ended = reign.ended
            until = f"{began} to {ended.decided_utc[:MOMENT]} UTC"
            line(out, f"champion    {until}, replaced by version {ended.version}: {ended.reason}")


COMMANDS: dict[str, Callable[..., Any]] = {
    "gates": gates,
    "rollback": rollback,
    "guard": guard,
    "why": why,
    "ledger": ledger,
    "ledger verify": ledger_verify,
    "replay": replay,
}

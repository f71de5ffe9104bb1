"""Verbs of experiments: a challenger beside the champion, and versions with names of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from mlops.errors import UsageError
from mlops.tables import line, table_of
from mlops.verbs.console import AsJson, UseCaseName, out, print_result

Version = Annotated[int | None, typer.Argument(help="The newest, unless told")]
Reason = Annotated[str, typer.Option(help="Why; the ledger keeps it")]
Alpha = Annotated[float, typer.Option(help="How probable a false verdict may be")]
Auto = Annotated[
    bool, typer.Option("--auto", help="Let the verdict promote, through the gates, or end it")
]


def shadow(
    use_case: UseCaseName,
    version: Version = None,
    alpha: Alpha = 0.05,
    auto: Auto = False,
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Let a version answer, unseen, what the champion answers, and compare. Clients notice nothing.

    Examples: `mlops experiment shadow housing` · `mlops experiment shadow iris 2 --auto`
    """
    from mlops.loop.experiment import begin

    result = begin(use_case, "shadow", version, alpha=alpha, auto=auto, reason=reason)
    print_result(result, as_json, lambda: line(out, _told(result)))


def ab(
    use_case: UseCaseName,
    version: Version = None,
    share: Annotated[float, typer.Option(help="Of the clients, above 0 and below 1")] = 0.1,
    alpha: Alpha = 0.05,
    auto: Auto = False,
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Let a version answer a share of the clients. Each client is answered by one of both.

    A running server follows within a second.

    Examples: `mlops experiment ab housing --share 0.1` · `mlops experiment ab iris 2 --auto`
    """
    from mlops.loop.experiment import begin

    result = begin(use_case, "ab", version, share=share, alpha=alpha, auto=auto, reason=reason)
    print_result(result, as_json, lambda: line(out, _told(result)))


def share(
    use_case: UseCaseName,
    share: Annotated[float, typer.Argument(help="Of the clients, above 0 and below 1")],
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Let the challenger of the A/B answer another share. One that grows takes no client away.

    Example: `mlops experiment share housing 0.5 --reason "no harm so far"`
    """
    from mlops.loop.experiment import set_share

    result = set_share(use_case, share, reason=reason)
    print_result(result, as_json, lambda: line(out, _told(result)))


def stop(use_case: UseCaseName, reason: Reason = "", as_json: AsJson = False) -> None:
    """End the experiment: everybody is answered by the champion again.

    Example: `mlops experiment stop housing --reason "the campaign is over"`
    """
    from mlops.loop.experiment import stop as run

    result = run(use_case, reason=reason)
    text = f"{use_case}: version {result.champion} answers alone again, without {result.challenger}"
    print_result(result, as_json, lambda: line(out, text))


def alias(
    use_case: UseCaseName,
    name: Annotated[str | None, typer.Argument(metavar="ALIAS", help="List, unless given")] = None,
    version: Annotated[int | None, typer.Argument(help="Who is to have the name")] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Take the name away")] = False,
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Let a version answer under a name: at /USE_CASE/models/ALIAS/predict. Without one, list them.

    The alias `fallback` also answers what the champion could not.

    Examples: `mlops alias housing` · `mlops alias housing canary 3` ·
    `mlops alias housing canary --remove`
    """
    from mlops.loop import experiment

    if name is None:
        if remove:
            raise UsageError("--remove needs an alias", f"list them with: mlops alias {use_case}")
        result = experiment.aliases(use_case)
    elif remove == (version is not None):
        raise UsageError(
            f"the alias {name} needs a version, or --remove",
            f"write, say, mlops alias {use_case} {name} 2",
        )
    elif version is None:
        result = experiment.remove_alias(use_case, name, reason=reason)
    else:
        result = experiment.set_alias(use_case, name, version, reason=reason)
    print_result(result, as_json, lambda: _draw_aliases(use_case, result))


def _told(result: Any) -> str:
    whom = f"version {result.challenger}"
    does = (
        "answers, unseen, what"
        if result.mode == "shadow"
        else f"answers {result.share:.4g} of the clients, the others"
    )
    other = f"version {result.champion} answers"
    return f"{result.use_case}: {whom} {does} {other} (experiment {result.id})"


def _draw_aliases(use_case: str, result: dict[str, int]) -> None:
    if not result:
        line(out, f"{use_case} has no alias")
        return
    table = table_of("alias", "version")
    for name, version in result.items():
        table.add_row(name, str(version))
    out.print(table)


COMMANDS: dict[str, Callable[..., Any]] = {
    "experiment shadow": shadow,
    "experiment ab": ab,
    "experiment share": share,
    "experiment stop": stop,
    "alias": alias,
}

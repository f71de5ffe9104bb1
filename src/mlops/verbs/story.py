"""The whole story, as a verb."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from mlops.tables import line
from mlops.verbs.console import AsJson, out, print_result, progress


def story(
    days: Annotated[int, typer.Option(help="Quiet days before anything happens")] = 42,
    seed: Annotated[int, typer.Option(help="Two stories with one seed ask the same")] = 7,
    to: Annotated[Path, typer.Option(help="The report, one HTML file")] = Path("story.html"),
    folder: Annotated[
        Path | None, typer.Option(help="Where it takes place, and stays; else a temporary folder")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Let months of a service's life pass in two minutes, and see that it is kept good.

    Trains, serves, and sends simulated traffic over real HTTP by a clock of its own: users and
    peaks, late truths, a drift, prices that leave the model behind, an error burst, a kill -9; then
    retraining, gates, shadow, A/B, promotion, a poisoned model and its rollback.
    Each chapter is asserted; the first that does not come true is named, with exit code 1.

    Examples: `mlops story` · `mlops story --days 90 --to story.html`
    """
    from mlops.loop.story.tell import story as run

    told = run(days=days, seed=seed, to=to, folder=folder, report=progress())
    how = f"ended at {told.failed}: {told.why}" if told.failed else "came true"
    says = (
        f"{told.simulated_days:.0f} days in {told.seconds:.0f} s, {told.predictions:,} predictions"
    )
    print_result(
        told._asdict(), as_json, lambda: line(out, f"The story {how}; {says}; {told.report}")
    )
    if told.failed:
        raise typer.Exit(1)


COMMANDS: dict[str, Callable[..., Any]] = {"story": story}

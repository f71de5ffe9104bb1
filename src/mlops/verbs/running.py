"""The service: prepare and start it, stop it, see how it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from mlops import tables
from mlops.settings import read_settings
from mlops.verbs.console import AsJson, out, print_result, progress


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


def down(as_json: AsJson = False) -> None:
    """Stop what `mlops up` started. Nothing is lost: accepted requests are answered first.

    Example: `mlops down`
    """
    from mlops.loop import services

    settings = read_settings()
    stopped = [spec for spec in ("server", "mlflow") if services.stop(settings, spec)]
    text = f"stopped: {', '.join(stopped)}" if stopped else "nothing was running"
    print_result({"stopped": stopped}, as_json, lambda: out.print(text))


def status(as_json: AsJson = False) -> None:
    """Say what is running, how it is, and who is champion. Exit code 1 if anything is not well.

    Examples: `mlops status` · `mlops status --json`
    """
    from mlops.loop.status import status as look

    result = look(read_settings())
    print_result(result, as_json, lambda: tables.status(result, out))
    if not result["well"]:
        raise typer.Exit(1)


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


COMMANDS: dict[str, Callable[..., Any]] = {
    "up": up,
    "down": down,
    "status": status,
    "serve": serve,
}

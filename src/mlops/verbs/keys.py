"""API keys: make one, list them, end one."""

from __future__ import annotations

from typing import Annotated

import typer

from mlops import tables
from mlops.verbs.console import AsJson, out, print_result

group = typer.Typer(
    help="API keys: who may ask the server. It is open until the first one is made.\n\n"
    "Examples: `mlops keys add shop --role predict` · `mlops keys list` · `mlops keys revoke shop`",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)


@group.command("add")
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
    `mlops keys add grafana --role read` · `mlops keys add ci --role predict --use-case housing`
    """
    from mlops.loop.keys import add_key as run

    result = run(name, role=role, use_case=use_case)
    print_result(result, as_json, lambda: tables.key_made(result, out))


@group.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """List the API keys: names, roles, when they were made and revoked.

    Example: `mlops keys list`
    """
    from mlops.loop.keys import list_keys as run

    result = run()
    print_result(result, as_json, lambda: tables.keys(result, out))


@group.command("revoke")
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

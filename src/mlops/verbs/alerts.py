"""Verbs about alerts: list them, and try the channels they are sent to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console

from mlops.tables import line, table_of
from mlops.verbs.console import AsJson, out, print_result


def alerts(
    use_case: Annotated[
        str | None, typer.Argument(metavar="USE_CASE", help="All, unless named")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List open alerts, and those that ended in the last seven days. Exit code 1 if any is open.

    The running server checks the rules, keeps the list, and tells the channels in `ALERT_URLS`.

    Examples: `mlops alerts` · `mlops alerts housing --json`
    """
    from mlops.loop.alerts import alerts as run

    result = run(use_case)
    print_result(result, as_json, lambda: _listed(result, out))
    if result["open"]:
        raise typer.Exit(1)


def alerts_test(as_json: AsJson = False) -> None:
    """Send a test message to each channel in `ALERT_URLS`. Exit code 1 if one did not take it.

    Example: `ALERT_URLS=json://127.0.0.1:9000/hook mlops alerts test`
    """
    from mlops.loop.alerts import try_channels as run

    result = run()
    print_result(result, as_json, lambda: _tried(result, out))
    if any(one["error"] for one in result):
        raise typer.Exit(1)


def _listed(result: Mapping[str, Any], console: Console) -> None:
    for title, found in (("open", result["open"]), ("ended", result["ended"])):
        if not found:
            line(console, f"{title}: none")
            continue
        table = table_of(title, "severity", "since (UTC)", "until", "told", "what")
        for one in found:
            told = sum(message["sent"] is not None for message in one["notified"])
            table.add_row(
                f"{one['use_case']} {one['rule']}",
                one["severity"],
                one["since"].removesuffix("+00:00"),
                (one["until"] or "").removesuffix("+00:00"),
                f"{told} of {len(one['notified'])}",
                one["says"],
            )
        console.print(table)
    for channel in result["channels"]:
        if channel["error"]:
            text = f"channel {channel['channel']}: {channel['waiting']} wait: {channel['error']}"
            line(console, text)
    checked = result["checked"]
    line(console, f"last checked {checked}" if checked else "never checked: no server ran here")


def _tried(result: Sequence[Mapping[str, Any]], console: Console) -> None:
    table = table_of("channel", "test message")
    for one in result:
        table.add_row(one["channel"], one["error"] or "taken")
    console.print(table)


COMMANDS: dict[str, Callable[..., Any]] = {"alerts": alerts, "alerts test": alerts_test}

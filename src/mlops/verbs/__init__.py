"""Verbs of the command line, a file each theme: what each takes, and what it prints.

A theme is a file with `COMMANDS`, names and functions, or with a `group` of commands under one
name; adding it here makes them commands of `mlops`, in this order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer

from mlops.verbs import (
    alerts,
    data,
    drift,
    experiments,
    explaining,
    improve,
    keys,
    predictions,
    quality,
    retraining,
    running,
    story,
    training,
    verdicts,
    versions,
    what_if,
)

__all__ = ["COMMANDS", "GROUPS"]

COMMANDS: dict[str, Callable[..., Any]] = {
    **running.COMMANDS,
    **data.COMMANDS,
    **training.COMMANDS,
    **versions.COMMANDS,
    **predictions.COMMANDS,
    **explaining.COMMANDS,
    **drift.COMMANDS,
    **quality.COMMANDS,
    **alerts.COMMANDS,
    **improve.COMMANDS,
    **experiments.COMMANDS,
    **verdicts.COMMANDS,
    **what_if.COMMANDS,
    **story.COMMANDS,
    **retraining.COMMANDS,
}
GROUPS: dict[str, typer.Typer] = {"data": data.group, "keys": keys.group}

"""Verbs of the command line, a file each theme: what each takes, and what it prints.

A theme is a file with `COMMANDS`, names and functions; adding it here makes them commands of
`mlops`. Those of the main path stand in `cli.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mlops.verbs import (
    alerts,
    drift,
    experiments,
    explaining,
    improve,
    quality,
    retraining,
    story,
    verdicts,
    what_if,
)

__all__ = ["COMMANDS"]

COMMANDS: dict[str, Callable[..., Any]] = {
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

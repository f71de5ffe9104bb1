"""Where a use case's prediction log is, and how all who open it do: as the settings say."""

from __future__ import annotations

import datetime

from mlops import clock
from mlops.monitor.log import PredictionLog
from mlops.settings import Settings
from mlops.usecase import UseCase

SECONDS_BETWEEN_STEPS = 0.05
"""Between two steps of a pruning, as others want to write too."""
MEGABYTE = 1_000_000


def has_log(use_case: UseCase, settings: Settings) -> bool:
    """Whether a use case has answered anything here yet."""
    return (settings.home / use_case.log_name / "predictions.db").exists()


def open_log(use_case: UseCase, settings: Settings) -> PredictionLog:
    """Open the prediction log of a use case, made and completed if need be."""
    folder = settings.home / use_case.log_name
    return PredictionLog(
        folder,
        use_case.log_name,
        settings.durability,
        largest_file=int(settings.log_rotate_mb * MEGABYTE),
        keep_files=settings.log_keep_files,
    )


def days_ago(days: float) -> str:
    """Return the moment that many days ago, as the log writes it."""
    moment = clock.utc() - datetime.timedelta(days=days)
    return moment.isoformat(timespec="microseconds")

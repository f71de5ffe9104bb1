"""Read the prediction log."""

from __future__ import annotations

import json
from typing import Any

from mlops.errors import NotTrainedError
from mlops.loop.serve import open_log
from mlops.settings import Settings, read_settings
from mlops.usecases import find


def logs(
    name: str, *, last: int = 20, failures: bool = False, settings: Settings | None = None
) -> list[dict[str, Any]]:
    """Return the last logged predictions of a use case, or its failed requests, oldest first."""
    settings = settings or read_settings()
    use_case = find(name)
    if not (settings.home / use_case.log_name / "predictions.db").exists():
        raise NotTrainedError(
            f"{name} has answered nothing here yet", f"start it with: mlops up {name}"
        )
    log = open_log(use_case, settings)
    try:
        if failures:
            return [
                {
                    "timestamp": failure.timestamp,
                    "status": failure.status,
                    "path": failure.path,
                    "detail": json.loads(failure.detail)["detail"],
                    "body": failure.body,
                    "client": failure.client,
                    "model_version": failure.model_version or None,
                }
                for failure in log.failures(last)
            ]
        return [
            {
                "id": row.id,
                "timestamp": row.timestamp,
                "prediction_id": row.prediction_id,
                "inputs": json.loads(row.inputs),
                "prediction": row.prediction,
                "probabilities": json.loads(row.probabilities) if row.probabilities else None,
                "warnings": json.loads(row.warnings) if row.warnings else [],
                "model_version": row.model_version,
                "bundle": row.bundle,
                "client": row.client,
            }
            for row in log.rows(last)
        ]
    finally:
        log.close()

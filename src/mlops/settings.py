"""Settings: environment variables, with defaults that suit a laptop.

All folders hang under one home, which is the current folder unless `MLOPS_HOME` says otherwise,
so that `mlflow ui`, `sqlite3 housinglogs/predictions.db` and the like work as typed there.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from mlops import clock
from mlops.errors import UsageError
from mlops.usecase import Retraining

SHORTEST_KEY = 16
Durability = Literal["power", "crash"]


class Settings(BaseSettings):
    """One reading of the environment. Make it where a verb begins; pass it on."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore")

    # Only the environment's names are aliases: a field called "home" would also read $HOME.
    home: Path = Field(
        Path(),
        validation_alias="MLOPS_HOME",
        description="Folder under which data, models, runs and logs are kept",
    )
    models_folder: str = Field(
        "",
        validation_alias="MLOPS_MODELS",
        description="Folder of bundles and state database; unset: `models/` in the home folder",
    )
    use_cases: str = Field(
        "",
        validation_alias="USE_CASES",
        description="What `mlops serve` serves when it names none, as in `iris,housing`; unset:"
        " all",
    )
    host: str = Field(
        "127.0.0.1", validation_alias="MLOPS_HOST", description="Address the server binds"
    )
    port: int = Field(
        8000, ge=1, le=65535, validation_alias="PORT", description="Port of the server"
    )
    workers: int = Field(
        1,
        ge=1,
        le=256,
        validation_alias="WORKERS",
        description="Processes that answer side by side, behind one port; limits are of all"
        " together, a share each",
    )
    mlflow_port: int = Field(
        5000,
        ge=1,
        le=65535,
        validation_alias="MLFLOW_PORT",
        description="Port of the MLflow that `mlops up` starts",
    )
    tracking_uri: str = Field(
        "",
        validation_alias="MLFLOW_TRACKING_URI",
        description="Where runs are tracked; unset: `mlflow.db` and `mlruns/` in the home folder",
    )
    registry_uri: str = Field(
        "",
        validation_alias="MODEL_REGISTRY_URI",
        description="Where versions are registered; unset: where runs are tracked",
    )
    durability: Durability = Field(
        "power",
        validation_alias="PREDICTIONS_DURABILITY",
        description="`power`: every answer is synced to disk first; `crash`: survives kill -9,"
        " not a power cut",
    )
    rate_limit: str = Field(
        "",
        validation_alias="RATE_LIMIT",
        description="Requests of one client (its API key, else its address), as in `100/s`,"
        " `100/min` or `1000/h`, a batch counted by its rows; unset: no limit",
    )
    largest_body: int = Field(
        16 * 1024 * 1024,
        ge=1024,
        le=1024**3,
        validation_alias="LARGEST_BODY",
        description="Bytes of the largest body that is read; larger: 413",
    )
    seconds_to_receive: int = Field(
        10,
        ge=1,
        le=3600,
        validation_alias="SECONDS_TO_RECEIVE",
        description="Seconds a request may take to arrive (else 408), an answer to be read, a"
        " connection to do nothing",
    )
    max_connections: int = Field(
        1000,
        ge=1,
        le=100_000,
        validation_alias="MAX_CONNECTIONS",
        description="Connections at once; more: 503 with `Retry-After`",
    )
    max_waiting: int = Field(
        1000,
        ge=1,
        le=100_000,
        validation_alias="MAX_WAITING",
        description="Requests that wait for their answers at once, fewer if they take more than"
        " 0.2 s; more: 503 with `Retry-After`",
    )
    trusted_proxies: str = Field(
        "",
        validation_alias="TRUSTED_PROXIES",
        description="Addresses or networks of proxies whose `X-Forwarded-For` is believed, as in"
        " `10.0.0.1,10.1.0.0/16`; unset: nobody's",
    )
    log_rotate_mb: float = Field(
        256,
        ge=0,
        validation_alias="LOG_ROTATE_MB",
        description="A `predictions.log` of this size is full: it is renamed after its last id, and"
        " a new one begun; 0: never",
    )
    log_keep_files: int = Field(
        0,
        ge=0,
        validation_alias="LOG_KEEP_FILES",
        description="How many full `predictions.log` files stay; 0: all",
    )
    log_keep_days: float = Field(
        0,
        ge=0,
        validation_alias="LOG_KEEP_DAYS",
        description="The server deletes logged rows that are older, in small steps, and full"
        " `predictions.log` files with the last of their rows; 0: never. What was counted stays"
        " counted",
    )
    log_keep_mb: float = Field(
        0,
        ge=0,
        validation_alias="LOG_KEEP_MB",
        description="The server deletes the oldest rows of a `predictions.db` that holds more,"
        " and full `predictions.log` files with the last of their rows; 0: never",
    )
    retrain_max_age_days: float | None = Field(
        None,
        ge=0,
        validation_alias="RETRAIN_MAX_AGE_DAYS",
        description="A champion of this age is a reason to retrain; 0: never; unset, here and in"
        " the next five: as the use case declares",
    )
    retrain_new_rows: int | None = Field(
        None,
        ge=0,
        validation_alias="RETRAIN_NEW_ROWS",
        description="So many rows that no training has learnt from are a reason; 0: never",
    )
    retrain_every_days: float | None = Field(
        None,
        ge=0,
        validation_alias="RETRAIN_EVERY_DAYS",
        description="So much time since the last training is a reason, whatever happens; 0: never",
    )
    retrain_pause_days: float | None = Field(
        None,
        ge=0,
        validation_alias="RETRAIN_PAUSE_DAYS",
        description="After a retraining began, nothing is a reason for so long",
    )
    retrain_window_days: float | None = Field(
        None,
        ge=0,
        validation_alias="RETRAIN_WINDOW_DAYS",
        description="Logged rows that are older are not learnt from; 0: all are",
    )
    retrain_new_row_weight: float | None = Field(
        None,
        gt=0,
        validation_alias="RETRAIN_NEW_ROW_WEIGHT",
        description="What a row that came counts for, where one of the data file counts 1",
    )
    champion_product: str = Field(
        "",
        validation_alias="CHAMPION_PRODUCT",
        description="Which product of a profile becomes champion when the profile is trained;"
        " unset: the first that it declares, of housing `accurate`",
    )
    rollback_watch_days: float = Field(
        7,
        ge=0,
        le=365,
        validation_alias="ROLLBACK_WATCH_DAYS",
        description="Days after a promotion in which the server goes back by itself to the version"
        " before if the new one is worse; 0: never",
    )
    retrain_then: Literal["promote", "shadow", "ab"] = Field(
        "promote",
        validation_alias="RETRAIN_THEN",
        description="What becomes of a retrained version that the gates let pass: champion at once,"
        " or tried against the champion first, in the shadow or an A/B, whose verdict decides",
    )
    story_clock: Path | None = Field(
        None,
        validation_alias="MLOPS_STORY_CLOCK",
        description="File in which `mlops story` keeps the time; unset: the machine's clock",
    )
    drift_window: str = Field(
        "7d",
        validation_alias="DRIFT_WINDOW",
        description="Stretch of the latest traffic that is held against training: `7d`, `12h`",
    )
    drift_every: str = Field(
        "1h",
        validation_alias="DRIFT_EVERY",
        description="How often the server looks at it; each look spends its share of the budget",
    )
    drift_budget: str = Field(
        "1/30d",
        validation_alias="DRIFT_BUDGET",
        description="False alarms of drift that are allowed, on average: `1/30d` is one in thirty"
        " days",
    )
    experiment_truth_days: float = Field(
        30,
        gt=0,
        le=3660,
        validation_alias="EXPERIMENT_TRUTH_DAYS",
        description="Days that an experiment waits for the truth of a prediction; one that comes"
        " later, or never, is left out of its comparison, and counted",
    )
    bundle_signing_key: str = Field(
        "",
        validation_alias="BUNDLE_SIGNING_KEY",
        repr=False,
        description="Key with which bundles are signed (HMAC-SHA256); set, no other is opened",
    )
    bundle_signing_key_file: str = Field(
        "",
        validation_alias="BUNDLE_SIGNING_KEY_FILE",
        description="File that holds that key, for secrets that are mounted",
    )

    alert_urls: str = Field(
        "",
        validation_alias="ALERT_URLS",
        repr=False,
        description="Where alerts are sent, as in `mailtos://…,slack://…,json://…` (apprise's"
        " addresses); unset: they are listed at `/alerts` only",
    )
    alert_error_rate: float = Field(
        0.05,
        gt=0,
        lt=1,
        validation_alias="ALERT_ERROR_RATE",
        description="Share of failed requests (status 400 and more) above which there is an alert",
    )
    alert_p95_ms: float = Field(
        500,
        gt=0,
        validation_alias="ALERT_P95_MS",
        description="Response time of the 95th percentile above which there is an alert",
    )
    alert_disk_free: float = Field(
        0.05,
        ge=0,
        lt=1,
        validation_alias="ALERT_DISK_FREE",
        description="Free share of the log's disk below which there is an alert",
    )
    alert_stale_days: float = Field(
        90,
        ge=0,
        validation_alias="ALERT_STALE_DAYS",
        description="Age of the champion above which there is an alert; 0: never",
    )
    alert_silent_minutes: float = Field(
        0,
        ge=0,
        validation_alias="ALERT_SILENT_MINUTES",
        description="Minutes without a prediction after which there is an alert; 0: never",
    )
    alert_window_seconds: int = Field(
        300,
        ge=10,
        le=3600,
        validation_alias="ALERT_WINDOW_SECONDS",
        description="Traffic that error rate and response time are taken from",
    )
    alert_hold_seconds: float = Field(
        30,
        ge=0,
        le=3600,
        validation_alias="ALERT_HOLD_SECONDS",
        description="Seconds that a limit must be broken before an alert starts, and kept before"
        " it ends",
    )

    @property
    def signing_key(self) -> bytes | None:
        """The key that bundles are signed with, None if none is given.

        Raises `UsageError` if its file cannot be read, or it is too short to be a secret.
        """
        key, name = self.bundle_signing_key.encode(), "BUNDLE_SIGNING_KEY"
        if self.bundle_signing_key_file:
            name = "BUNDLE_SIGNING_KEY_FILE"
            try:
                key = Path(self.bundle_signing_key_file).read_bytes().strip()
            except OSError as error:
                raise UsageError(
                    f"{name} cannot be read: {error.strerror}", "name a file with the key"
                ) from None
        elif not key:
            return None
        if len(key) < SHORTEST_KEY:
            raise UsageError(
                f"{name} gives a key of {len(key)} bytes, which can be guessed",
                f"give at least {SHORTEST_KEY}, from: openssl rand -hex 32",
            )
        return key

    @property
    def names(self) -> tuple[str, ...]:
        """The use cases to serve, in the order given; none means all."""
        return tuple(self.use_cases.replace(",", " ").split())

    @property
    def data(self) -> Path:
        return self.home / "data"

    @property
    def models(self) -> Path:
        return Path(self.models_folder) if self.models_folder else self.home / "models"

    @property
    def bundles(self) -> Path:
        return self.models / "bundles"

    @property
    def diagnoses(self) -> Path:
        """What training measured of each bundle on held-out rows."""
        return self.models / "diagnoses"

    @property
    def serving(self) -> Path:
        """Which processes serve, and what they have taken up: see `loop/presence.py`."""
        return self.models / "serving"

    @property
    def state_database(self) -> Path:
        return self.models / "state.db"

    @property
    def access_database(self) -> Path:
        """API keys, hashed, and the secret of this installation."""
        return self.home / "access.db"

    @property
    def alert_database(self) -> Path:
        """Open alerts and those that ended, and who was told."""
        return self.home / "alerts.db"

    @property
    def studies(self) -> Path:
        return self.models / "studies"

    @property
    def retraining_folder(self) -> Path:
        """Locks of retrainings, and what they have finished so far."""
        return self.models / "retraining"

    @property
    def run(self) -> Path:
        """Process ids and output of what `mlops up` started."""
        return self.home / ".run"

    def for_a_process(self) -> dict[str, str]:
        """Return the environment of another process of ours, in the same place as this one."""
        return {
            **os.environ,
            "MLOPS_HOME": str(self.home.resolve()),
            "MLOPS_MODELS": str(self.models.resolve()),
        }

    @property
    def tracks_locally(self) -> bool:
        return not self.tracking_uri

    def retraining(self, declared: Retraining) -> Retraining:
        """Return when to train again and from what: as declared, unless a setting says else."""
        given = {
            field.name: getattr(self, f"retrain_{field.name}")
            for field in dataclasses.fields(declared)
        }
        return dataclasses.replace(declared, **{k: v for k, v in given.items() if v is not None})


def read_settings(**overrides: object) -> Settings:
    """Read the environment; `overrides`, by the variables' names, win.

    Raises `UsageError` that names the variable.
    """
    try:
        settings = Settings(**overrides)  # type: ignore[arg-type]  # checked by pydantic
    except ValidationError as error:
        first = error.errors()[0]
        name = first["loc"][0] if first["loc"] else "setting"
        raise UsageError(
            f"{name}={first['input']!r} cannot be used: {first['msg']}", "change or unset it"
        ) from None
    if settings.story_clock:
        clock.follow(settings.story_clock)
    return settings

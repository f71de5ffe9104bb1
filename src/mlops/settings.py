"""Settings: environment variables, with defaults that suit a laptop.

All folders hang under one home, which is the current folder unless `MLOPS_HOME` says otherwise,
so that `mlflow ui`, `sqlite3 housinglogs/predictions.db` and the like work as typed there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from mlops.errors import UsageError

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
    trusted_proxies: str = Field(
        "",
        validation_alias="TRUSTED_PROXIES",
        description="Addresses or networks of proxies whose `X-Forwarded-For` is believed, as in"
        " `10.0.0.1,10.1.0.0/16`; unset: nobody's",
    )

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
    def state_database(self) -> Path:
        return self.models / "state.db"

    @property
    def access_database(self) -> Path:
        """API keys, hashed, and the secret of this installation."""
        return self.home / "access.db"

    @property
    def studies(self) -> Path:
        return self.models / "studies"

    @property
    def run(self) -> Path:
        """Process ids and output of what `mlops up` started."""
        return self.home / ".run"

    @property
    def tracks_locally(self) -> bool:
        return not self.tracking_uri


def read_settings(**overrides: object) -> Settings:
    """Read the environment; `overrides`, by the variables' names, win.

    Raises `UsageError` that names the variable.
    """
    try:
        return Settings(**overrides)  # type: ignore[arg-type]  # checked by pydantic
    except ValidationError as error:
        first = error.errors()[0]
        name = first["loc"][0] if first["loc"] else "setting"
        raise UsageError(
            f"{name}={first['input']!r} cannot be used: {first['msg']}", "change or unset it"
        ) from None

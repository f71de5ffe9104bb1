"""The registry: versions of a model, linked to run and bundle, and the alias `champion`.

The alias is a mirror for people and other tools. Who is champion is decided in the state database
(`mlops.improve.ledger`), because an alias cannot be changed by compare-and-swap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlops.track.runs import Run, Tracking

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHAMPION = "champion"


def register(tracking: Tracking, model_name: str, run: Run, bundle: str, *, above: int) -> int:
    """Register a run's model as a new version and return its number, greater than `above`.

    Numbers that the state database knows are never given again, even when the registry was
    emptied and counts from one: a prediction in the log names its version by that number.
    """
    from mlflow.exceptions import MlflowException

    with tracking.errors():
        client = tracking.client
        try:
            client.get_registered_model(model_name)
        except MlflowException:
            _create_model(client, model_name)
        while True:
            version = client.create_model_version(
                model_name,
                source=run.model_uri,
                run_id=run.run_id,
                # A server, unlike a store in a file, refuses the source without it.
                model_id=run.model_uri.removeprefix("models:/"),
                tags={"bundle": bundle},
            )
            number = int(version.version)
            if number > above:
                return number
            client.delete_model_version(model_name, str(number))


def holds(tracking: Tracking, model_name: str, version: int, bundle: str) -> bool:
    """Whether the registry has that version for that bundle: it may have been emptied since."""
    from mlflow.exceptions import MlflowException

    with tracking.errors():
        try:
            found = tracking.client.get_model_version(model_name, str(version))
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False
    return bool(found.tags.get("bundle") == bundle)


def mirror_champion(tracking: Tracking, model_name: str, version: int) -> None:
    """Point the registry's alias at the version that the state database names champion."""
    with tracking.errors():
        tracking.client.set_registered_model_alias(model_name, CHAMPION, str(version))


def _create_model(client: MlflowClient, model_name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(model_name)
    except MlflowException:
        client.get_registered_model(model_name)  # another training was faster, or this raises

"""The declared use cases, by name."""

from __future__ import annotations

from mlops.errors import UsageError
from mlops.usecase import UseCase
from mlops.usecases.housing import HOUSING
from mlops.usecases.iris import IRIS

USE_CASES = {use_case.name: use_case for use_case in (HOUSING, IRIS)}


def find(name: str) -> UseCase:
    """Return the use case of that name. Raises `UsageError` that lists those declared."""
    try:
        return USE_CASES[name]
    except KeyError:
        raise UsageError(
            f"there is no use case {name!r}", f"declared are: {', '.join(USE_CASES)}"
        ) from None

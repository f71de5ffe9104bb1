"""Keys: who may ask the server. It notices a change within a second, without a restart."""

from __future__ import annotations

from typing import Any

from mlops.deploy.keys import ROLES, KeyStore, Role
from mlops.errors import UsageError
from mlops.settings import Settings, read_settings
from mlops.usecases import find


def add_key(
    name: str, *, role: str, use_case: str | None = None, settings: Settings | None = None
) -> dict[str, Any]:
    """Make a key; the answer holds it in `key`, and nothing else ever will."""
    known: dict[str, Role] = {one: one for one in ROLES}
    if role not in known:
        raise UsageError(f"there is no role {role}", f"the roles are {', '.join(ROLES)}")
    if use_case is not None:
        find(use_case)
    with _store(settings) as store:
        key = store.add(name, known[role], use_case)
    return {"name": name, "role": role, "use_case": use_case, "key": key}


def list_keys(*, settings: Settings | None = None) -> list[dict[str, Any]]:
    """Return all keys, oldest first, without what opens anything."""
    with _store(settings) as store:
        found = [key._asdict() for key in store.known()]
    for key in found:
        del key["digest"]
    return found


def revoke_key(name: str, *, settings: Settings | None = None) -> None:
    """End a key for good. Raises `UsageError` if there is none such."""
    with _store(settings) as store:
        store.revoke(name)


def _store(settings: Settings | None) -> KeyStore:
    return KeyStore((settings or read_settings()).access_database)

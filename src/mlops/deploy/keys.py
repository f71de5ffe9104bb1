"""API keys and the secret that hides clients' names: `access.db` in the home folder, mode 0600.

A key is `mlk_` and 256 random bits. It is shown once, when it is made; kept is its SHA-256. A slow
hash is for passwords, which can be guessed: 2^256 keys cannot, however fast the hash.

The file is not in `models/`: that may be read-only, or part of an image that others can fetch.
"""

from __future__ import annotations

import datetime
import hashlib
import os
import re
import secrets
from pathlib import Path
from typing import Literal, NamedTuple

import apsw

from mlops.database import Database, connect, migrate, transaction
from mlops.errors import MlopsError, UsageError

Role = Literal["read", "predict", "admin"]
ROLES: tuple[Role, ...] = ("read", "predict", "admin")

MIGRATIONS = (
    (
        "m001_keys_and_secret",
        (
            """CREATE TABLE keys (
                name TEXT PRIMARY KEY,
                digest TEXT NOT NULL UNIQUE,
                role TEXT NOT NULL,
                use_case TEXT,
                created_utc TEXT NOT NULL,
                revoked_utc TEXT)""",
            "CREATE TABLE secret (id INTEGER PRIMARY KEY CHECK (id = 1), value BLOB NOT NULL)",
            "INSERT INTO secret VALUES (1, randomblob(32))",
        ),
    ),
)


class Key(NamedTuple):
    """A key as it is kept. Without `use_case` it is good for all; `digest` is SHA-256, in hex."""

    name: str
    digest: str
    role: Role
    use_case: str | None
    created_utc: str
    revoked_utc: str | None


class KeyStore(Database):
    """The file of keys, open. One thread at a time.

    Raises `MlopsError` if it cannot be opened, `DataError` if a newer version made it.
    """

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Made with its mode, so that it is never readable by others; SQLite's files beside it
            # take theirs from it.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._database = connect(path)
            migrate(self._database, MIGRATIONS)
        except (apsw.Error, OSError) as error:
            raise MlopsError(
                f"the file of API keys {path} cannot be used: {error}",
                "make it writable for the user that serves",
            ) from error

    def add(self, name: str, role: Role, use_case: str | None = None) -> str:
        """Make a key and return it: the only time that anybody sees it.

        Raises `UsageError` if the name is no name or is taken, by a revoked key too.
        """
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
            raise UsageError(
                f"{name!r} cannot name a key", "use up to 64 letters, digits, dots, _ and -"
            )
        key = f"mlk_{secrets.token_urlsafe(32)}"
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        with transaction(self._database):
            if any(known.name == name for known in self.known()):
                raise UsageError(
                    f"there is a key {name} already, or was", "choose another name: logs name it"
                )
            self._database.execute(
                "INSERT INTO keys VALUES (?, ?, ?, ?, ?, NULL)",
                (name, digest(key), role, use_case, now),
            )
        return key

    def revoke(self, name: str) -> None:
        """End a key for good. Raises `UsageError` that lists the keys if there is none such."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        with transaction(self._database):
            live = [key.name for key in self.known() if not key.revoked_utc]
            if name not in live:
                raise UsageError(
                    f"there is no key {name} (keys: {', '.join(live) or 'none'})",
                    "list them with: mlops keys list",
                )
            self._database.execute("UPDATE keys SET revoked_utc = ? WHERE name = ?", (now, name))

    def known(self) -> list[Key]:
        """Return all keys, revoked ones too, oldest first."""
        rows = self._database.execute(
            "SELECT name, digest, role, use_case, created_utc, revoked_utc"
            " FROM keys ORDER BY created_utc, rowid"
        )
        return [Key(*row) for row in rows]

    def secret(self) -> bytes:
        """Return the 32 random bytes of this installation, made with the file."""
        [(value,)] = self._database.execute("SELECT value FROM secret")
        return bytes(value)


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()

"""What is read from the headers of a request, whichever way it came in."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from mlops.deploy.access import API_KEY

Headers = Iterable[tuple[bytes, bytes]]
LONGEST_KEY = 200


def idempotency_key(headers: Headers) -> str | None:
    """Return the idempotency key, apart for each API key: no client meets another's answers."""
    key = header(headers, b"idempotency-key")
    if not key:
        return None
    owner = header(headers, API_KEY)
    key = f"{owner}/{key}" if owner else key
    return hashlib.sha256(key.encode()).hexdigest() if len(key) > LONGEST_KEY else key


def header(headers: Headers, wanted: bytes) -> str | None:
    for name, value in headers:
        if name == wanted:
            return value.decode("latin-1") or None
    return None

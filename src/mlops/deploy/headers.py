"""What is read from the headers of a request, whichever way it came in."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

from mlops.deploy.access import API_KEY

Headers = Iterable[tuple[bytes, bytes]]
LONGEST_KEY = 200
CLIENT, IDEMPOTENCY_KEY = b"x-client-id", b"idempotency-key"
READ = frozenset((CLIENT, IDEMPOTENCY_KEY, API_KEY))


class Sender(NamedTuple):
    """Who sends a request, by the name given or that of the API key `owner`, and what else it says.

    `key` is the idempotency key, as it was sent.
    """

    name: str
    key: str | None
    owner: str


NOBODY = Sender("", None, "")


def sender(headers: Headers) -> Sender:
    """Read who sends this. Of a header that came twice, the first counts."""
    found: dict[bytes, str] = {}
    for name, value in headers:
        if name in READ and name not in found:
            found[name] = value.decode("latin-1")
    if not found:
        return NOBODY
    owner = found.get(API_KEY, "")
    key = found.get(IDEMPOTENCY_KEY)
    if key and len(key) > LONGEST_KEY:
        key = hashlib.sha256(key.encode()).hexdigest()
    return Sender(found.get(CLIENT) or owner, key or None, owner)

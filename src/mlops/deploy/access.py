"""Who may ask what, and how often. Nothing here touches a file or the network.

    no key was ever made      all is open but `/admin`, which then needs a loopback peer
    keys were made            health and documents are open; the rest needs a key with the role
    a rate limit is set       each client has a bucket of requests that fills up again

The role of a route follows from its path and method, so that a route that somebody adds tomorrow
is guarded without a word: `/admin/…` is admin's, what is read is read's, the rest is predict's.
A client is its key, else its address; never a name that it chose itself.
"""

from __future__ import annotations

import hashlib
import math
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from starlette.types import Scope

from mlops.deploy.keys import Key, Role
from mlops.errors import UsageError

LOOPBACK = ("127.0.0.1", "::1", "localhost")
FORWARDING = (b"forwarded", b"x-forwarded-for", b"x-real-ip", b"via")
READING = ("GET", "HEAD", "OPTIONS")
OPEN_FOLDERS = ("/docs/assets/", "/v2/models/", "/dashboard/")
"""What is read there is what the documents say, health, and pages without data."""
MOST_BUCKETS = 10_000
API_KEY = b"(api key)"
"""Name of the header under which the key's name travels on. No client can send such a name."""


class Refused(NamedTuple):
    """Why a request is not let in. `retry_after` is in seconds; None if waiting does not help."""

    status: int
    kind: str
    says: str
    retry_after: int | None = None


class RateLimit:
    """So many requests per client: a token bucket that holds one second's worth, at least one.

    Kept is only when a client's bucket will be full (the generic cell rate algorithm, ITU-T
    I.371), and only for clients whose bucket is not.
    """

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds_each = 1 / per_second
        self._bucket = max(1.0, self._seconds_each)  # in seconds
        self._clock = clock
        self._full_at: dict[str, float] = {}

    def wait(self, client: str) -> float:
        """Take one request out of the client's bucket: 0, or the seconds until there is one."""
        now = self._clock()
        full_at = max(self._full_at.get(client, now), now) + self._seconds_each
        late = full_at - now - self._bucket
        if late > 1e-9:
            return late
        self._keep(client, full_at, now)
        return 0.0

    def charge(self, client: str, requests: int) -> None:
        """Take more, once it is known how many rows a request had. The bucket may go below 0."""
        now = self._clock()
        full_at = max(self._full_at.get(client, now), now) + requests * self._seconds_each
        self._keep(client, full_at, now)

    def _keep(self, client: str, full_at: float, now: float) -> None:
        if len(self._full_at) >= MOST_BUCKETS and client not in self._full_at:
            waiting = {name: at for name, at in self._full_at.items() if at > now}
            # Of too many, those that owe most are remembered.
            owing = sorted(waiting, key=waiting.__getitem__)[-MOST_BUCKETS // 2 :]
            self._full_at = {name: waiting[name] for name in owing}
        self._full_at[client] = full_at


def parse_rate(text: str) -> float | None:
    """Return requests a second of "100/s", "100/min" or "1000/h"; None for an empty text."""
    if not text.strip():
        return None
    found = re.fullmatch(r"\s*(\d{1,9})\s*/\s*(s|min|h)\s*", text)
    if found is None or int(found[1]) == 0:
        raise UsageError(f"RATE_LIMIT={text!r} cannot be used", "write, say, 100/s, 100/min, 9/h")
    return int(found[1]) / {"s": 1, "min": 60, "h": 3600}[found[2]]


class Access:
    """The guard of one server. `on` is false while there is nothing to check on a hot route."""

    def __init__(self) -> None:
        self.open: set[str] = set()
        """Paths that never need a key."""
        self.on = False
        self._keys: Mapping[str, Key] = {}
        self._closed = False
        self._rate: RateLimit | None = None

    def take(self, keys: Sequence[Key]) -> None:
        """Go by these keys from now on. Revoked ones open nothing, and keep the doors closed."""
        self._keys = {key.digest: key for key in keys if not key.revoked_utc}
        self._closed = bool(keys)
        self._settle()

    def limit(self, per_second: float | None) -> None:
        """Let each client ask so often; None: without limit."""
        self._rate = RateLimit(per_second) if per_second else None
        self._settle()

    def role_for(self, method: str, path: str) -> Role | None:
        """Return the role that a route needs once there are keys; None if it never needs one."""
        if path == "/admin" or path.startswith("/admin/"):
            return "admin"
        if method in READING:
            known = path in self.open or path.startswith(OPEN_FOLDERS)
            return None if known else "read"
        return "predict"

    def check(self, scope: Scope, path: str, use_case: str | None) -> tuple[str, Refused | None]:
        """Return who asks, by what is counted, and why they are refused, if they are.

        `use_case` is the one that the route speaks for, None if it speaks for several. A request
        that a key lets in has the key's name among its headers from then on, as `API_KEY`.
        """
        role = self.role_for(scope["method"], path)
        given = _given_key(scope["headers"])
        key = self._keys.get(hashlib.sha256(given).hexdigest()) if given else None
        peer = scope["client"][0] if scope.get("client") else "unknown"
        client = f"key {key.name}" if key else f"address {peer}"
        if self._rate and "/health/" not in path:
            seconds = self._rate.wait(client)
            if seconds:
                return client, Refused(
                    429,
                    "too_many_requests",
                    "more requests than one client may send: wait as Retry-After says",
                    math.ceil(seconds),
                )
        if role is None:
            return client, None
        if self._closed:
            refused = _refusal(key, given is not None, role, use_case)
        elif role == "admin" and not _is_local(scope, peer):
            refused = Refused(
                401,
                "unauthorized",
                "from another machine this needs a key of the role admin: mlops keys add",
            )
        else:
            refused = None
        if key and not refused:
            scope["headers"] = [*scope["headers"], (API_KEY, key.name.encode())]
        return client, refused

    def charge(self, client: str, rows: int) -> None:
        """Count a batch by its rows. The first was counted with the request."""
        if self._rate and rows > 1:
            self._rate.charge(client, rows - 1)

    def _settle(self) -> None:
        self.on = self._closed or self._rate is not None


def _refusal(key: Key | None, given: bool, role: Role, use_case: str | None) -> Refused | None:
    if key is None:
        wrong = "the API key is not known, or was revoked" if given else "this needs an API key"
        return Refused(
            401, "unauthorized", f"{wrong}: send it as Authorization: Bearer, or as X-API-Key"
        )
    if key.role not in {role, "admin"}:
        return Refused(
            403, "forbidden", f"this needs a key of the role {role}, and yours has {key.role}"
        )
    if key.use_case is not None and key.use_case != use_case:
        return Refused(403, "forbidden", f"your key is for {key.use_case} alone")
    return None


def _given_key(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """Return what was sent as a key. Sent twice, it is none: two readers could differ."""
    found = []
    for name, value in headers:
        if name == b"authorization":
            scheme, _, rest = value.partition(b" ")
            found.append(rest.strip() if scheme.lower() == b"bearer" else b"")
        elif name == b"x-api-key":
            found.append(value.strip())
    if not found:
        return None
    return found[0] if len(set(found)) == 1 else b""


def _is_local(scope: Scope, peer: str) -> bool:
    """Whether a person at this machine asks: not through a proxy, nor a page in their browser."""
    if peer not in LOOPBACK:
        return False
    headers = dict(scope["headers"])
    if any(name in headers for name in (*FORWARDING, b"origin")):
        return False
    host = headers.get(b"host", b"").decode("latin-1")
    # A page of elsewhere can have its name lead here (DNS rebinding), but not change the Host.
    return re.sub(r":\d*$", "", host).strip("[]") in LOOPBACK

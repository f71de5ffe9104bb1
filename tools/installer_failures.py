"""What installers print when they fail, what it means, and what the user does about it."""

from __future__ import annotations

import errno
import re
from pathlib import Path

AGAIN = "run the same command again"

# What the installers print, what it means, and what the user does about it. The first that
# matches wins: a full disk explains the timeouts around it, a timeout does not explain a full disk.
FAILURES = (
    (
        "disk",
        r"No space left on device|os error 28\b|Disk quota exceeded|os error 122\b",
        "the disk is full: make room for 2.5 GB, or point UV_CACHE_DIR, PIP_CACHE_DIR and TMPDIR"
        f" at a larger disk, and {AGAIN}",
    ),
    (
        "hash",
        r"[Hh]ash mismatch|DO NOT MATCH THE HASHES",
        "the package index serves a file that differs from the one pinned in requirements/: use"
        f" another index (pip config set global.index-url ...) and {AGAIN}; if it is the pin that"
        " is wrong, run make lock",
    ),
    (
        "permission",
        r"Permission denied|os error 13\b|Read-only file system|os error 30\b",
        "no permission to write: make this folder and the package cache your own (chown), or point"
        f" UV_CACHE_DIR and PIP_CACHE_DIR elsewhere, and {AGAIN}",
    ),
    (
        "certificate",
        r"CERTIFICATE_VERIFY_FAILED|invalid peer certificate|UnknownIssuer",
        "the package index shows a certificate that is not trusted: name the one to trust with"
        f" SSL_CERT_FILE=/path/to/ca.pem or pip config set global.cert, and {AGAIN}",
    ),
    (
        "refused",
        r"\b(401|403|407|429|5\d\d) (Client Error|Server Error|Unauthorized|Forbidden|Proxy"
        r"|Too Many|Internal|Bad Gateway|Service|Gateway)|HTTP error (4|5)\d\d",
        "the package index refuses to serve: check its address and password (pip config list)"
        f" and {AGAIN}",
    ),
    (
        "network",
        r"dns error|[Nn]ame resolution|[Nn]ame or service not known|nodename nor servname"
        r"|Network is unreachable|[Cc]onnection refused|client error \(Connect\)|NewConnectionError"
        r"|[Tt]imed out|TimeoutError|ProxyError|error sending request|the network was disabled",
        "the package index cannot be reached and the package cache does not hold everything:"
        f" connect to the network, or name a reachable index (PIP_INDEX_URL=...), and {AGAIN}",
    ),
    (
        "missing",
        r"No matching distribution found|not found in the (package registry|provided package)"
        r"|No solution found|no wheels? (with|for)|has no usable wheels",
        "the package index has no build of a pinned package for this Python and machine: use"
        f" Python 3.11 (make PYTHON=/path/to/python3.11 ...) or a complete index, and {AGAIN}",
    ),
)
# These stop an installer before it has changed anything: it downloads first.
UNTOUCHED = ("hash", "certificate", "refused", "network", "missing")
# What a second try with uv changes. Hashes are checked all the same.
REMEDIES = {
    "network": {"UV_OFFLINE": "1"},  # uv asks the index even for what its cache holds
    "certificate": {"UV_SYSTEM_CERTS": "1"},  # uv trusts its own list unless told otherwise
    # pip passes over a file whose hash differs and takes the next index; uv stops.
    "hash": {"UV_INDEX": "", "UV_FIND_LINKS": ""},
}


class SetupError(Exception):
    """One line: what went wrong and what to do about it."""

    def __init__(self, message: str, kind: str = "", exit_code: int = 1) -> None:
        super().__init__(message)
        self.kind = kind
        self.exit_code = exit_code


def classify(output: str) -> tuple[str, str]:
    """The kind of failure and what to do about it, from an installer's output."""
    for kind, pattern, advice in FAILURES:
        if re.search(pattern, output):
            return kind, advice
    return "", ""


def redacted(text: str) -> str:
    """Without the user and password that an index address may hold."""
    return re.sub(r"://[^/\s@]+@", "://***@", text)


def explain(error: OSError, root: Path) -> str:
    """The line for a file operation of our own that failed."""
    what = f"{error.strerror}: {error.filename}" if error.filename else str(error)
    kinds = {
        errno.ENOSPC: "disk",
        errno.EDQUOT: "disk",
        errno.EACCES: "permission",
        errno.EPERM: "permission",
        errno.EROFS: "permission",
    }
    for kind, _, advice in FAILURES:
        if kind == kinds.get(error.errno or 0):
            return f"Setting up failed in {root}: {advice} ({what})"
    return f"Setting up failed: {what}: put it right and {AGAIN}"

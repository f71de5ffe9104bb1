"""pip's own settings, for uv, which ignores them: index, certificate, proxy."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit


def pip_settings(listing: str) -> dict[str, str]:
    """`pip config list` as {option: value}; the environment wins over `install`, then `global`."""
    found: dict[str, str] = {}
    for section in ("global", "install", ":env:"):
        for line in listing.splitlines():
            name, _, value = line.partition("=")
            if name.startswith(section + ".") and len(value) > 1:
                # The value stands in quotes, as Python writes a string.
                found[name[len(section) + 1 :]] = value[1:-1].replace("\\n", " ")
    return found


def is_reachable(entry: str) -> bool:
    """Whether an index or folder can be asked at all: uv stops at one that is not there."""
    parts = urlsplit(entry)
    if parts.scheme in ("http", "https"):
        return True
    return Path(unquote(parts.path)).expanduser().exists()


def uv_settings(pip: dict[str, str], environ: dict[str, str]) -> dict[str, str]:
    """Environment variables that make uv ask where pip would ask; what is set already stays.

    By environment and not by option: an address may hold a password, and `ps` shows options.
    """

    def entries(option: str) -> list[str]:
        return [entry for entry in pip.get(option, "").split() if is_reachable(entry)]

    certificate = pip.get("cert", "")
    found = {
        "UV_DEFAULT_INDEX": "".join(entries("index-url")[:1]),
        "UV_INDEX": " ".join(entries("extra-index-url")),
        "UV_FIND_LINKS": ",".join(entries("find-links")),
        "UV_NO_INDEX": "1" if pip.get("no-index", "").lower() in ("1", "true", "yes") else "",
        "UV_INSECURE_HOST": " ".join(pip.get("trusted-host", "").split()),
        "UV_HTTP_TIMEOUT": pip.get("timeout", "") or pip.get("default-timeout", ""),
        "SSL_CERT_FILE": certificate if Path(certificate).is_file() else "",
        "SSL_CLIENT_CERT": pip.get("client-cert", ""),
        "ALL_PROXY": pip.get("proxy", ""),
    }
    if found["UV_INDEX"]:
        # pip looks at all indexes. uv stops at the first that has the name, because of lookalike
        # packages; here a hash stands guard over each file.
        found["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    if "UV_INDEX_URL" in environ:
        found["UV_DEFAULT_INDEX"] = ""
    return {name: value for name, value in found.items() if value and name not in environ}

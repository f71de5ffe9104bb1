"""The pages, as files that go to the browser: one HTML shell, a style sheet, modules of JavaScript.

They run no script but their own, ask nobody but this server, and hold no data, so they need no
API key: what they then ask for does.
"""

from __future__ import annotations

import functools
import html
from importlib import resources

from fastapi import APIRouter, HTTPException, Request, Response

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
VIEWS = ("", "/try", "/predictions", "/prediction", "/experiment", "/ledger", "/card")
"""Of each use case. Which prediction is meant stands in the query: `?id=`."""


def add_pages(router: APIRouter, names: tuple[str, ...]) -> None:
    """Add `/dashboard`, the ledger of all, the pages of each use case, and their assets."""

    def page(request: Request) -> Response:
        root = html.escape(request.scope.get("root_path", ""), quote=True)
        content = _file("page.html").decode().replace("{root}", root)
        return Response(
            content, media_type="text/html", headers={"content-security-policy": POLICY}
        )

    def asset(name: str) -> Response:
        if name not in _files():
            raise HTTPException(404, "the dashboard has no such file")
        suffix = name[name.rindex(".") :]
        return Response(_file(name), media_type=TYPES[suffix])

    for path in ("", "/ledger", *(f"/{name}{view}" for name in names for view in VIEWS)):
        router.add_api_route(
            f"/dashboard{path}", page, methods=["GET", "HEAD"], include_in_schema=False
        )
    router.add_api_route(
        "/dashboard/assets/{name}", asset, methods=["GET", "HEAD"], include_in_schema=False
    )


@functools.cache
def _files() -> frozenset[str]:
    folder = resources.files("mlops.dashboard") / "static"
    return frozenset(file.name for file in folder.iterdir() if not file.name.endswith(".html"))


@functools.cache
def _file(name: str) -> bytes:
    return (resources.files("mlops.dashboard") / "static" / name).read_bytes()

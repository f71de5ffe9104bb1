"""Serve in the foreground: one process or several, until they are told to stop."""

from __future__ import annotations

import gc
import resource
import signal
import socket
import sys
from collections.abc import Callable, Sequence

import uvicorn

from mlops.deploy.access import parse_rate
from mlops.deploy.limits import SPARE_CONNECTIONS
from mlops.deploy.protocol import protocol_for
from mlops.errors import ServiceError
from mlops.loop.serve import limits, serve
from mlops.loop.workers import Supervisor
from mlops.settings import Settings
from mlops.usecases import USE_CASES, find

SECONDS_TO_DRAIN = 10
BACKLOG = 2048
FILES_OF_OUR_OWN = 100
GARBAGE = 20_000
"""So many more objects than before set off a search for garbage."""
KEPT_BYTES = 4 * 2**20


def serve_in_foreground(names: Sequence[str], settings: Settings) -> None:
    """Run the server until SIGINT or SIGTERM; accepted requests are answered before it ends."""
    # A setting that cannot be used should be one line too.
    parse_rate(settings.rate_limit)
    _ = settings.signing_key
    names = tuple(names) or settings.names or tuple(USE_CASES)
    for name in names:
        find(name)  # an unknown one should be one line, not one of each worker
    with _bound(settings) as listening:
        if settings.workers == 1:
            run_server(names, settings, listening, uvicorn.Server)
        else:
            supervisor = Supervisor(names, settings, listening)
            supervisor.run(SECONDS_TO_DRAIN + 5)


def run_server(
    names: Sequence[str],
    settings: Settings,
    listening: socket.socket,
    server: Callable[[uvicorn.Config], uvicorn.Server],
) -> None:
    """Answer on a bound socket, in this process."""
    app = serve(*names, settings=settings)
    share = limits(settings)
    _allow_files(share.connections + SPARE_CONNECTIONS + FILES_OF_OUR_OWN)
    config = uvicorn.Config(
        app,
        http=protocol_for(app, share),
        access_log=False,  # every request is in the prediction log
        log_level="info",
        backlog=BACKLOG,
        timeout_graceful_shutdown=SECONDS_TO_DRAIN,
        server_header=False,
        # What X-Forwarded-For says is believed of these alone, and else of nobody.
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=settings.trusted_proxies,
    )
    # uvicorn drains, then raises again the signal that ended it: this makes of it the exit
    # code of something that went well.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(0))
    # What is loaded stays: a collection of garbage need not look through it again.
    gc.collect()
    gc.freeze()
    # The rows of a large batch are no reason to look for garbage: no request leaves a cycle.
    gc.set_threshold(GARBAGE)
    # The C library gives freed memory back from twice the largest block that was ever freed on
    # (mallopt(3), M_TRIM_THRESHOLD), and each batch would ask for its pages again.
    bytearray(KEPT_BYTES)
    server(config).run(sockets=[listening])


def _allow_files(number: int) -> None:
    """Let this process have so many files open at once, if it may raise that limit by itself."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < number:
        most = number if hard == resource.RLIM_INFINITY else min(number, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _bound(settings: Settings) -> socket.socket:
    """Listen first: a busy port should be one line, before anything is opened."""
    listening = socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((settings.host, settings.port))
        # Two that start together may both bind (SO_REUSEADDR), but only one may listen.
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise ServiceError(
            f"{settings.host}:{settings.port} cannot be used: {error.strerror}",
            f"free it, or choose another with --port {settings.port + 1}",
        ) from None
    return listening

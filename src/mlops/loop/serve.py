"""Serve: hand bundle and log to the web application, and follow the champion while it runs.

Nothing is opened when the application is built, only when it starts, so importing an entry point
touches no file. It starts without a model too: then it is not ready, and says what to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import logging
import math
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import FastAPI

import mlops
from mlops import clock
from mlops.deploy.access import Access, parse_rate
from mlops.deploy.app import App, build_app
from mlops.deploy.keys import KeyStore
from mlops.deploy.limits import Limits
from mlops.deploy.service import Service
from mlops.errors import BundleError, MlopsError, NotExplainedError
from mlops.improve.ledger import Ledger
from mlops.loop.administration import administration, promote
from mlops.loop.alerts import Lookout
from mlops.loop.dashboard import pages
from mlops.loop.experimenting import keep_experimenting
from mlops.loop.follow import Follower, rehearse
from mlops.loop.guarding import Guard, keep_guarding
from mlops.loop.performance import judge, look, measure_of
from mlops.loop.prediction_log import MEGABYTE, SECONDS_BETWEEN_STEPS, days_ago, open_log
from mlops.loop.presence import Presence
from mlops.loop.watching import Watcher, keep_watching
from mlops.monitor.log import PredictionLog
from mlops.package.bundle import Bundle, open_bundle
from mlops.records import Prediction
from mlops.settings import Settings, read_settings
from mlops.usecase import UseCase
from mlops.usecases import find

SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_BETWEEN_PRUNINGS = 60.0
SECONDS_BETWEEN_JUDGEMENTS = 60.0
KEPT_OPEN = 4
"""Bundles of former champions, opened to explain what they answered."""

log = logging.getLogger("uvicorn.error")


def serve(*names: str, settings: Settings | None = None) -> App:
    """Return the application for one use case, or for several on one server."""
    services = [Service(find(name)) for name in names]
    lookouts: list[Lookout] = []
    open_logs: dict[str, PredictionLog] = {}

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        now = settings or read_settings()
        app.limits = limits(now)
        async with _running(services, app.access, now, open_logs) as lookout:
            lookouts[:] = [lookout]
            yield

    def alerts(asked: Sequence[str]) -> dict[str, Any]:
        return lookouts[0].listed(asked)

    app = build_app(
        services,
        lifespan=lifespan,
        version=mlops.__version__,
        admin=administration(names, lambda: settings or read_settings()),
        alerts=alerts,
        pages=pages(services, open_logs, alerts, lambda: settings or read_settings()),
    )
    return app


def limits(settings: Settings) -> Limits:
    """Return what one process lets happen at once: of several workers, each has its share."""
    return Limits(
        math.ceil(settings.max_connections / settings.workers),
        math.ceil(settings.max_waiting / settings.workers),
        settings.seconds_to_receive,
        settings.largest_body,
    )


@contextlib.asynccontextmanager
async def _running(
    services: Sequence[Service],
    access: Access,
    settings: Settings,
    open_logs: dict[str, PredictionLog],
) -> AsyncIterator[Lookout]:
    """Let all run, with their logs in `open_logs` by use case, until the server stops."""
    followers, logs, watchers, guards = [], [], [], []
    with (
        Ledger(settings.state_database) as ledger,
        KeyStore(settings.access_database) as keys,
        contextlib.ExitStack() as ends,
    ):
        rate = parse_rate(settings.rate_limit)
        access.limit(rate / settings.workers if rate else None)
        access.take(keys.known())
        try:
            for service in services:
                prediction_log = open_log(service.use_case, settings)
                logs.append(prediction_log)
                open_logs[service.use_case.name] = prediction_log
                service.start(
                    prediction_log,
                    synced=settings.durability == "power",
                    secret=keys.secret(),
                )
                service.trace = functools.partial(_traced, service.use_case, settings)
                service.open = functools.lru_cache(KEPT_OPEN)(
                    functools.partial(open_for_explaining, settings)
                )
                measure = measure_of(service.use_case, settings)
                service.attach_truths = functools.partial(prediction_log.attach, measure=measure)
                service.look_at_quality = functools.partial(
                    look, service.use_case, prediction_log, settings
                )
                watcher = Watcher(
                    service.use_case,
                    prediction_log,
                    functools.partial(_answering, service),
                    settings,
                )
                watchers.append(watcher)
                service.drift = watcher.report
                if settings.rollback_watch_days:
                    rehearsal = functools.partial(rehearse, service)
                    guards.append(Guard(service, prediction_log, rehearsal, settings))
                    service.on_failure = guards[-1].failed
                follower = Follower(service, ledger, settings, _presence(service, settings, ends))
                follower.look()
                followers.append(follower)
            with Lookout(services, logs, settings) as lookout:
                for service in services:
                    service.watched = functools.partial(lookout.watched, service.use_case.name)
                work = (
                    _keep_looking(services, followers, access, keys),
                    _keep_pruning(logs, settings),
                    _keep_judging(services, logs, settings),
                    lookout.keep_looking(),
                    lookout.keep_telling(),
                    keep_experimenting(
                        [service.use_case for service in services],
                        logs,
                        settings,
                        functools.partial(promote, settings),
                    ),
                )
                stop_watching, stop_guarding = keep_watching(watchers), keep_guarding(guards)
                tasks = [asyncio.create_task(one) for one in work]
                try:
                    yield lookout
                finally:
                    for task in tasks:
                        task.cancel()
                    await asyncio.gather(*tasks, return_exceptions=True)
                    await asyncio.to_thread(stop_watching)
                    await asyncio.to_thread(stop_guarding)
        finally:
            open_logs.clear()
            for service in services:
                await service.stop()


def _presence(service: Service, settings: Settings, ends: contextlib.ExitStack) -> Presence | None:
    """Let promotions know that this serves; None where nobody can promote, as in a sealed image."""
    try:
        presence = Presence(settings.serving, service.use_case.name)
    except OSError as error:
        log.info("promotions do not wait for this server: %s", error)
        return None
    ends.callback(presence.close)
    return presence


def _answering(service: Service) -> tuple[int, str] | None:
    """Return the version that answers and its bundle, if there is one."""
    champion = service.champion
    return (champion.version, champion.bundle.hash) if champion else None


def _traced(use_case: UseCase, settings: Settings, row: Prediction) -> dict[str, Any]:
    """Return a logged prediction with its lineage, as HTTP shows it."""
    from mlops.loop.lineage import shown, trace

    chain = trace(use_case, row.model_version, row.bundle, settings)
    return {"use_case": use_case.name, **shown(row), "lineage": dataclasses.asdict(chain)}


def open_for_explaining(settings: Settings, bundle: str) -> Bundle:
    """Open the bundle of a logged prediction. Raises `NotExplainedError` if it is gone."""
    try:
        return open_bundle(settings.bundles / bundle, key=settings.signing_key)
    except BundleError as error:
        raise NotExplainedError(
            f"the bundle {bundle[:12]} that made this prediction cannot be opened: {error.message}"
        ) from None


async def _keep_looking(
    services: Sequence[Service], followers: Sequence[Follower], access: Access, keys: KeyStore
) -> None:
    while True:
        await asyncio.sleep(SECONDS_BETWEEN_LOOKS)
        for service in services:
            try:
                await service.mend()
            except Exception:
                log.exception("%s: the log could not be mended", service.use_case.name)
        try:
            access.take(keys.known())
        except Exception:
            log.exception("could not look for new API keys; those known so far hold")
        for follower in followers:
            try:
                await follower.look_aside()
            except Exception:
                # The state database may be locked or away for a moment; answering goes on.
                log.exception("could not look for a new champion")


async def _keep_pruning(logs: Sequence[PredictionLog], settings: Settings) -> None:
    """Delete what the settings say is too old or too much, a little at a time."""
    largest = int(settings.log_keep_mb * MEGABYTE) or None
    while settings.log_keep_days or largest:
        for prediction_log in logs:
            try:
                before = days_ago(settings.log_keep_days) if settings.log_keep_days else None
                while await asyncio.to_thread(prediction_log.prune, before=before, largest=largest):
                    await asyncio.sleep(SECONDS_BETWEEN_STEPS)
            except MlopsError as error:
                log.error("old predictions could not be deleted: %s", error)
            except Exception:
                log.exception("old predictions could not be deleted")
        await asyncio.sleep(SECONDS_BETWEEN_PRUNINGS)


async def _keep_judging(
    services: Sequence[Service], logs: Sequence[PredictionLog], settings: Settings
) -> None:
    """Have the quality of each champion judged once an hour, by whichever worker comes first."""
    while True:
        await asyncio.sleep(clock.pause(SECONDS_BETWEEN_JUDGEMENTS))
        for service, prediction_log in zip(services, logs, strict=True):
            if service.champion is None:
                continue
            try:
                await asyncio.to_thread(judge, service.use_case, prediction_log, settings)
            except MlopsError as error:
                log.error("%s: quality could not be judged: %s", service.use_case.name, error)
            except Exception:
                log.exception("%s: quality could not be judged", service.use_case.name)

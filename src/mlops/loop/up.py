"""Up: everything, from nothing to a served and monitored model, in one call."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
import urllib.error
import urllib.request
from typing import Any

from mlops.build.data import prepare
from mlops.errors import GateError, MlopsError, ServiceError, TrackingError
from mlops.improve.ledger import Ledger, Version
from mlops.loop import services
from mlops.loop.keys import list_keys
from mlops.loop.predict import predict
from mlops.loop.products import minutes
from mlops.loop.promote import promote
from mlops.loop.recipe import champion_made, champion_profile, still_valid
from mlops.loop.report import Report, Silent
from mlops.loop.track import pending, track
from mlops.loop.train import train
from mlops.package.bundle import open_bundle
from mlops.settings import Settings, read_settings
from mlops.track.runs import Tracking
from mlops.usecase import UseCase
from mlops.usecases import USE_CASES, find

FREE_BYTES_NEEDED = 500 * 1024 * 1024


@dataclasses.dataclass(frozen=True, slots=True)
class Served:
    """One use case, up: what answers, how good it is, and one answer that it gave."""

    use_case: str
    candidate: str
    version: int
    bundle: str
    metric: str
    score: float
    baseline: float
    reused: bool
    answer: dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Up:
    served: tuple[Served, ...]
    server: str
    mlflow: str
    seconds: float


def up(
    names: tuple[str, ...] = (),
    *,
    settings: Settings | None = None,
    report: Report | None = None,
) -> Up:
    """Prepare, train, track, seal, register, promote, serve and ask; reuse what is still valid."""
    started = time.monotonic()
    settings = settings or read_settings()
    report = report or Silent()
    chosen = [find(name) for name in names or USE_CASES]
    _check_disk(settings)
    services.check_ports(settings)
    # Asked before a store is made: models whose runs are gone are to be tracked again.
    valid = {use_case.name: still_valid(use_case, settings) for use_case in chosen}
    server, *others = services.specs(settings)
    if settings.tracks_locally and not (settings.home / "mlflow.db").exists():
        report.say("mlflow: creating its store")
        Tracking(settings.home, settings.tracking_uri, settings.registry_uri).connect()
    for spec in others:  # MLflow takes its seconds to start while the candidates are trained
        _start(spec, settings, report)
    made = []
    for use_case in chosen:
        champion = valid[use_case.name]
        if champion is not None:
            report.say(f"{use_case.name}: version {champion.version} is still valid")
        else:
            champion = _of_profile(use_case, settings, report)
        made.append((champion or _make(use_case, settings, report), champion is not None))
    _start(server, settings, report)
    for spec in (server, *others):
        services.wait_healthy(settings, spec)
    _track_pending(settings, report)
    served = []
    for use_case, (champion, reused) in zip(chosen, made, strict=True):
        metrics = open_bundle(settings.bundles / champion.bundle, key=settings.signing_key).metrics
        served.append(
            Served(
                use_case.name,
                champion.candidate,
                champion.version,
                champion.bundle,
                use_case.metric,
                metrics["scores"][use_case.metric],
                metrics["baseline"][use_case.metric],
                reused,
                _ask(server.address, use_case, champion, settings),
            )
        )
    return Up(
        tuple(served),
        server.address,
        others[0].address if others else settings.tracking_uri,
        time.monotonic() - started,
    )


def _start(spec: services.Spec, settings: Settings, report: Report) -> None:
    if services.start(settings, spec):
        report.say(f"{spec.name}: starting on {spec.address}")


def _make(use_case: UseCase, settings: Settings, report: Report) -> Version:
    """Train and promote; return the champion, the one before if the gates kept it."""
    table = prepare(use_case, settings.data)
    report.say(
        f"{use_case.name}: {len(table.frame):,} rows"
        f" ({table.dropped} dropped for missing values) from {table.origin}"
    )
    training = train(use_case.name, settings=settings, report=report)
    best = training.registered[0]
    report.say(
        f"{use_case.name}: {training.winner} wins among {len(training.candidates)} candidates; "
        f"sealed as {best.bundle[:12]}, registered as version {best.version}"
    )
    try:
        promotion = promote(use_case.name, best.version, settings=settings, report=report)
    except GateError as error:
        report.say(str(error))
        with Ledger(settings.state_database) as ledger:
            champion = ledger.champion(use_case.name)
        if champion is None:
            raise
        return champion
    if promotion.changed:
        report.say(f"{use_case.name}: version {best.version} passed the gates and is champion")
    return best


def _of_profile(use_case: UseCase, settings: Settings, report: Report) -> Version | None:
    """Return a champion that a plain training must not replace: a product of a profile, if sound.

    It takes minutes to train another one, so that is left to who asks for it.
    """
    profile = champion_profile(use_case, settings)
    if not profile:
        return None
    champion, _ = champion_made(use_case, settings)
    assert champion is not None
    report.say(
        f"{use_case.name}: version {champion.version} stays, though data, code, libraries or "
        f"what its training left have changed: it is of the profile {profile}, which takes "
        f"{minutes(use_case.profile(profile))} to train again: "
        f"mlops train {use_case.name} --profile {profile} --promote"
    )
    return champion


def _track_pending(settings: Settings, report: Report) -> None:
    """Track what an earlier training could not, now that MLflow is up. Serving does not need it."""
    waiting = len(pending(settings))
    if not waiting:
        return
    try:
        versions = track(settings=settings, report=report)
    except TrackingError as error:
        report.say(f"{waiting} runs still wait to be tracked: {error}")
        return
    report.say(f"{waiting} runs that waited are tracked, {len(versions)} of them as versions")


def _ask(server: str, use_case: UseCase, champion: Version, settings: Settings) -> dict[str, Any]:
    """Predict the first example over HTTP, once the server has taken the champion up.

    Once there are API keys, nobody has one at hand here: then on the same path without HTTP.
    """
    example = next(iter(use_case.examples.values()))
    if list_keys(settings=settings):
        return predict(use_case.name, [example], settings=settings)[0]
    deadline = time.monotonic() + services.SECONDS_TO_START
    while True:
        request = urllib.request.Request(  # noqa: S310  # our own server
            f"{server}/{use_case.name}/predict",
            data=json.dumps(example).encode(),
            headers={"content-type": "application/json", "x-client-id": "mlops up"},
        )
        ready = _health(server, use_case)
        if ready.get("model_version") == champion.version:
            with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310
                answer: dict[str, Any] = json.load(response)
            return answer
        if time.monotonic() > deadline:
            raise ServiceError(
                f"{use_case.name}: version {champion.version} is not answering: "
                f"{ready.get('message')}",
                "look at: mlops logs",
            )
        time.sleep(0.1)


def _health(server: str, use_case: UseCase) -> dict[str, Any]:
    try:
        with urllib.request.urlopen(f"{server}/{use_case.name}", timeout=10) as response:  # noqa: S310
            health: dict[str, Any] = json.load(response)
    except (urllib.error.URLError, OSError, ValueError) as error:
        return {"message": str(error)}
    return health


def _check_disk(settings: Settings) -> None:
    settings.home.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(settings.home).free
    if free < FREE_BYTES_NEEDED:
        raise MlopsError(
            f"only {free / 1e6:,.0f} MB are free here, {FREE_BYTES_NEEDED / 1e6:,.0f} are needed",
            "free some space",
        )

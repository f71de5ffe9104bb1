"""What `/admin` does: who answers is changed over HTTP as the command line changes it."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any

from mlops.deploy.admin import Admin, ExperimentRequest
from mlops.errors import GateError, UsageError
from mlops.improve.experiments import Experiment
from mlops.loop import experiment as experiments
from mlops.settings import Settings

log = logging.getLogger("uvicorn.error")


def administration(names: Sequence[str], settings: Callable[[], Settings]) -> Admin:
    """Return what may be done about these use cases."""

    def check(use_case: str) -> None:
        if use_case not in names:
            raise UsageError(f"no use case {use_case} is served here", f"one of {', '.join(names)}")

    async def promoted(use_case: str, version: int, reason: str) -> dict[str, Any]:
        check(use_case)
        return await promote(settings(), use_case, version, reason)

    async def rolled_back(use_case: str, reason: str) -> dict[str, Any]:
        check(use_case)
        result = await _command(settings(), "rollback", use_case, f"--reason={reason}")
        return _changed(use_case, {**result, "changed": True})

    async def experiment(request: ExperimentRequest) -> dict[str, Any]:
        check(request.use_case)
        changed = await asyncio.to_thread(_experiment, request, settings())
        names = ("id", "use_case", "mode", "champion", "challenger", "share", "alpha", "auto")
        return {
            name: getattr(changed, name) for name in (*names, "started_utc", "ended_utc", "outcome")
        }

    return Admin(promoted, rolled_back, experiment)


async def promote(
    settings: Settings, use_case: str, version: int, reason: str, over: int | None = None
) -> dict[str, Any]:
    """Promote a version through the gates, with `over` only if that version is champion.

    Raises `GateError` with what the command complained of.
    """
    more = () if over is None else (f"--over={over}",)
    words = (use_case, str(version), f"--reason={reason}", *more)
    return _changed(use_case, await _command(settings, "promote", *words))


def _changed(use_case: str, result: dict[str, Any]) -> dict[str, Any]:
    return {
        "use_case": use_case,
        "version": result["version"]["version"],
        "previous": result["previous"],
        "changed": result["changed"],
        "late": result["late"],
    }


def _experiment(request: ExperimentRequest, settings: Settings) -> Experiment:
    name, action, reason = request.use_case, request.action, request.reason
    if action == "stop":
        return experiments.stop(name, reason=reason, settings=settings)
    if request.share is None and action in ("ab", "share"):
        raise UsageError(f"{action} needs a share", "above 0 and below 1")
    share = request.share or 0.0
    if action == "share":
        return experiments.set_share(name, share, reason=reason, settings=settings)
    return experiments.begin(
        name,
        action,
        request.version,
        share=share,
        alpha=request.alpha,
        auto=request.auto,
        reason=reason,
        settings=settings,
    )


async def _command(settings: Settings, verb: str, *words: str) -> dict[str, Any]:
    """Let a verb do it, in a process of its own: the server stays without its libraries."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "mlops.cli", verb, *words, "--json"),
        env=settings.for_a_process(),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        printed, complained = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode:
        log.error("%s of %s: %s", verb, words[0], complained.decode().strip())
        # The last line is made for people; paths in it are not for those who ask over HTTP.
        says = complained.decode().strip().rpartition("\n")[2].partition(" — ")[0]
        raise GateError(says.removeprefix("mlops: ").replace(str(settings.home.resolve()), "…"))
    result: dict[str, Any] = json.loads(printed)
    return result

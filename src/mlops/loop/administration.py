"""What `/admin` does: who answers is changed over HTTP as the command line changes it."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any

from mlops.deploy.admin import Admin, ExperimentRequest
from mlops.errors import REFUSALS, GateError, MlopsError, UsageError
from mlops.improve.experiments import Experiment
from mlops.loop import experiment as experiments
from mlops.settings import Settings

REFUSED = 3
RUN = f"""
import sys
from mlops import cli
from mlops.errors import REFUSALS, MlopsError
try:
    cli.app()
except MlopsError as error:
    print(error, file=sys.stderr)
    sys.exit({REFUSED} if isinstance(error, REFUSALS) else 1)
"""
"""The command line, but its exit code tells a refusal from what whoever asked cannot mend."""

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
        now = settings()
        try:
            changed = await asyncio.to_thread(_experiment, request, now)
        except REFUSALS as error:
            error.message, error.fix = _masked(error.message, now), _masked(error.fix, now)
            raise
        names = ("id", "use_case", "mode", "champion", "challenger", "share", "alpha", "auto")
        return {
            name: getattr(changed, name) for name in (*names, "started_utc", "ended_utc", "outcome")
        }

    return Admin(promoted, rolled_back, experiment)


async def promote(
    settings: Settings, use_case: str, version: int, reason: str, over: int | None = None
) -> dict[str, Any]:
    """Promote a version through the gates, with `over` only if that version is champion.

    Raises `GateError` with what the command complained of, `MlopsError` if it could not be asked.
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
        *("-c", RUN, verb, *words, "--json"),
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
    said = complained.decode().strip()
    if process.returncode == REFUSED:
        log.error("%s of %s: %s", verb, words[0], said)
        # The last line is made for people.
        raise GateError(_masked(said.rpartition("\n")[2].partition(" — ")[0], settings))
    if process.returncode:
        raise MlopsError(f"{verb} of {words[0]}: {said}")
    result: dict[str, Any] = json.loads(printed)
    return result


def _masked(says: str, settings: Settings) -> str:
    """Return the text without the configured folders: paths are not for those who ask over HTTP."""
    folders = {one for path in (settings.home, settings.models) for one in (path, path.resolve())}
    names = [str(folder) for folder in folders if folder.is_absolute()]
    for name in sorted(names, key=len, reverse=True):  # one may lie in another
        says = says.replace(name, "…")
    return says

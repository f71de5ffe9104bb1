"""Watch: on one machine, look at every use case now and then, and retrain those that need it."""

from __future__ import annotations

import time
import traceback
from collections.abc import Sequence

from mlops import clock
from mlops.errors import MlopsError
from mlops.loop.report import Report
from mlops.loop.retrain import retrain
from mlops.settings import Settings
from mlops.usecases import USE_CASES, find


def watch(
    names: Sequence[str], every_seconds: float, settings: Settings, report: Report, *, once: bool
) -> bool:
    """Retrain each use case if needed, and say what was decided; then wait, and again, for ever.

    What goes wrong is said, and tried again the next time. `once` looks once, and returns whether
    all went well.
    """
    chosen = [find(name).name for name in names or USE_CASES]
    while True:
        went_well = [_look(name, settings, report) for name in chosen]
        if once:
            return all(went_well)
        time.sleep(every_seconds)


def _look(name: str, settings: Settings, report: Report) -> bool:
    try:
        result = retrain(name, if_needed=True, gentle=True, settings=settings, report=report)
    except MlopsError as error:
        report.say(f"{clock.stamp()[:19]} {name}: {error}")
        return False
    except Exception as error:  # noqa: BLE001  # whatever it is, the next look may go well
        trace = "".join(traceback.format_exception(error))
        report.say(f"{clock.stamp()[:19]} {name}: failed\n{trace}")
        return False
    report.say(f"{clock.stamp()[:19]} {name}: {result.outcome}: {result.says}")
    return True

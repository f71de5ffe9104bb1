"""From a table to a trained, tracked, packaged, served and monitored model.

The loop, in order, each a function here and a verb of the command `mlops`:

    prepare("housing")     write data/housing.csv from its source, cleaned and checked
    check("housing", path)   hold any table against the use case
    train("housing")       fit, compare, track every candidate; seal and register the winner
    tune("housing")        search for better settings; train("housing", from_study=True) uses them
    runs("housing")        candidates beside each other, and which of them tie
    report("housing")      one HTML file with figures of where the model is right and wrong
    retrain("housing")     learn again, from all that has come since; the gates decide
    promote("housing")     ask the gates, then make the newest version champion
    gates("housing")       what they say of it, and nothing decided
    rollback("housing", reason=…)     the champion before is champion again
    replay(prediction_id)      answered again by its bundle: equal, or tampered with
    why("housing", 3)      the story of a version, from its data to what took its place
    predict("housing", rows)   answer rows with the champion, and log them
    logs("housing")        what was asked and answered
    metrics("housing")     how many, how fast, how well; the last minute, hour, day, and ever
    feedback("housing", path)   attach actual values to predictions, when they are known
    performance("housing") how good it was, by time, version and slice; estimated until then
    lineage(prediction_id)     its version, bundle, run, commit and data; and back
    serve("housing")       the web application (ASGI)
    up()                   all of it, in the background

Each is imported when it is first used: training needs libraries that serving can do without.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_VERBS = {
    "prepare": "mlops.loop.prepare",
    "check": "mlops.loop.check",
    "train": "mlops.loop.train",
    "tune": "mlops.loop.tune",
    "retrain": "mlops.loop.retrain",
    "promote": "mlops.loop.promote",
    "gates": "mlops.loop.gates",
    "rollback": "mlops.loop.rollback",
    "why": "mlops.loop.why",
    "replay": "mlops.loop.replay",
    "predict": "mlops.loop.predict",
    "explain": "mlops.loop.explain",
    "card": "mlops.loop.explain",
    "logs": "mlops.loop.logs",
    "metrics": "mlops.loop.metrics",
    "feedback": "mlops.loop.feedback",
    "performance": "mlops.loop.feedback",
    "lineage": "mlops.loop.lineage",
    "show": "mlops.loop.show",
    "runs": "mlops.loop.runs",
    "report": "mlops.loop.diagnose",
    "serve": "mlops.loop.serve",
    "up": "mlops.loop.up",
}

__all__ = ["__version__", *_VERBS]  # noqa: PLE0604  # the verbs are names


def __getattr__(name: str) -> Any:
    if name in _VERBS:
        return getattr(importlib.import_module(_VERBS[name]), name)
    raise AttributeError(f"module 'mlops' has no attribute {name!r}")

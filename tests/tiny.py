"""Tiny worlds in one process: a model that multiplies, a log in a list, an app without a server."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from fastapi import FastAPI

from mlops.deploy.app import App, build_app
from mlops.deploy.predictor import Champion
from mlops.deploy.service import Service
from mlops.errors import LogBusyError, LogUnavailableError
from mlops.package.model import Output
from mlops.records import Failure, Metrics, Prediction, Submission, Timing, Totals
from mlops.usecase import UseCase


@dataclasses.dataclass
class Multiplier:
    """A model whose answer gives away who gave it: the sum of the fields times its factor.

    For a classification: the class whose number is the factor, with certainty.
    """

    use_case: UseCase
    factor: float

    def run(self, rows: np.ndarray) -> Output:
        inputs = np.zeros((len(rows), len(self.use_case.inputs)))
        labels = self.use_case.target.labels
        if not labels:
            return Output(inputs, rows.sum(axis=1) * self.factor)
        number = int(self.factor) % len(labels)
        probabilities = np.tile(np.eye(len(labels))[number], (len(rows), 1))
        return Output(inputs, np.full(len(rows), number), probabilities)


class TinyBundle:
    """What serving needs of a bundle; one that cannot explain itself, and has no intervals."""

    explainer = None
    conformal = None
    training: ClassVar[dict[str, Any]] = {}

    def __init__(self, use_case: UseCase, factor: float) -> None:
        names = [*use_case.fields, *use_case.input_names]
        self.hash = f"{int(factor):064x}"
        self.model = Multiplier(use_case, factor)
        self.explanation: dict[str, Any] = {}
        self.intervals: dict[str, Any] = {}
        self.signature = {
            "training_ranges": {name: [-np.inf, np.inf] for name in names},
            "units": dict.fromkeys(names, "units"),
        }


def champion(use_case: UseCase, version: int = 1) -> Champion:
    """Version v multiplies by v."""
    return Champion(use_case, version, "Multiplier", TinyBundle(use_case, version))


class ListLog:
    """A log that keeps its rows in a list; `broken` makes it refuse, `gate` makes it wait."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []
        self.rows: list[Prediction] = []
        self.refused: list[Failure] = []
        self.timings: list[Timing] = []
        self.failed: str | None = None
        self.broken = False
        self.file_behind: str | None = None
        self.synced = 0
        self.probes = 0
        self.gate = threading.Event()
        self.gate.set()
        self.closed = False

    def append(
        self,
        submissions: Sequence[Submission],
        failures: Sequence[Failure] = (),
        timings: Sequence[Timing] = (),
        *,
        wait: bool = True,
    ) -> list[tuple[Prediction, ...]]:
        if not wait and not self.gate.is_set():
            raise LogBusyError("somebody else is writing")
        assert self.gate.wait(10)
        self._write()
        self.timings.extend(timings)
        if not submissions and not failures:
            return []
        self.calls.append((len(submissions), len(failures)))
        self.refused.extend(failures)
        answers = []
        for submission in submissions:
            start = len(self.rows)
            self.rows += [
                row._replace(id=start + number) for number, row in enumerate(submission.rows, 1)
            ]
            answers.append(tuple(self.rows[start:]))
        return answers

    def sync(self) -> None:
        self.synced = len(self.rows)

    def follow(self) -> bool:
        return True

    def catch_up(self) -> None:
        """Nothing follows this log."""

    def find(self, prediction_id: str) -> Prediction | None:
        self._read()
        found = [row for row in self.rows if row.prediction_id == prediction_id]
        return found[0] if found else None

    def find_all(self, prediction_ids: Sequence[str]) -> dict[str, Prediction]:
        return {one: row for one in prediction_ids if (row := self.find(one))}

    def probe(self) -> None:
        self.probes += 1
        self._write()

    def metrics(self) -> Metrics:
        self._read()
        return Metrics(Totals(len(self.rows), {}, 0, {}, None), {}, ())

    def close(self) -> None:
        self.closed = True

    def _read(self) -> None:
        if self.broken:
            raise LogUnavailableError("/home/somebody/predictions.db cannot be used", "chmod it")

    def _write(self) -> None:
        if self.broken:
            self.failed = "no space left"
            raise LogUnavailableError(self.failed)
        self.failed = None


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body, parse_constant=_refuse)


def _refuse(constant: str) -> None:
    raise AssertionError(f"not strict JSON: {constant}")


def app_over(*services: Service) -> App:
    return build_app(services, lifespan=lambda _: contextlib.nullcontext(), version="0")


async def ask(
    app: App,
    method: str,
    path: str,
    body: bytes | Iterable[bytes] = b"",
    headers: dict[str, str] | None = None,
    *,
    by_fastapi: bool = False,
    peer: str = "127.0.0.1",
    root_path: str = "",
) -> Answer:
    """Send one request to the application; `by_fastapi` goes round its short way.

    A body of several parts arrives in several messages.
    """
    parts = [body] if isinstance(body, bytes) else list(body)
    path, _, query = path.partition("?")
    messages = [
        {"type": "http.request", "body": part, "more_body": number < len(parts)}
        for number, part in enumerate(parts, 1)
    ]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    given = {"content-type": "application/json", **(headers or {})}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": root_path + path,
        "raw_path": (root_path + path).encode(),
        "root_path": root_path,
        "query_string": query.encode(),
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
        "client": (peer, 1),
        "server": ("127.0.0.1", 80),
    }
    await (FastAPI.__call__(app, scope, receive, send) if by_fastapi else app(scope, receive, send))
    start, *bodies = sent
    return Answer(
        start["status"],
        {name.decode().lower(): value.decode() for name, value in start["headers"]},
        b"".join(part.get("body", b"") for part in bodies),
    )

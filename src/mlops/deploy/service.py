"""One use case, as HTTP sees it: validate, predict, record, respond."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import orjson
from pydantic import ValidationError

from mlops import clock
from mlops.deploy import problems
from mlops.deploy.explanation import answered, explain
from mlops.deploy.exposition import Scrape
from mlops.deploy.groupcommit import GroupCommit, Log, Logged
from mlops.deploy.headers import Headers, sender
from mlops.deploy.interval import intervals
from mlops.deploy.lineup import Lineup, OnFailure, as_request
from mlops.deploy.predictor import Champion, OpenBundle, answer, answers
from mlops.deploy.reader import Reader, Rows
from mlops.deploy.schemas import LARGEST_BATCH
from mlops.errors import (
    LogUnavailableError,
    MlopsError,
    NotExplainedError,
    NotTrainedError,
    OverloadedError,
)
from mlops.records import Attached, Failure, Metrics, Prediction, Watched, quickly
from mlops.usecase import UseCase

KEPT_BODY_BYTES = 2_000
LONGEST_FLUSH = 1.0
"""Seconds that `/metrics` waits for the last answers to be counted, and `settled` for others."""
READ_INLINE_BYTES = 512 * 1024
"""A larger body is read in a thread, so that others are answered meanwhile."""
MOST_ROWS_WAITING = 2 * LARGEST_BATCH
NO_LOG = "the prediction log cannot be written, and what is not logged is not answered: try again"


log = logging.getLogger("uvicorn.error")


class Reply(NamedTuple):
    """An answer; `rows` is how many it predicted, `logged` whether the log tells of it."""

    status: int
    body: bytes
    rows: int = 0
    headers: tuple[tuple[bytes, bytes], ...] = ()
    model_version: int = 0
    logged: bool = True


_as_reply = quickly(Reply)

Truth = tuple[str, float | str]
"""A prediction id and the actual value."""
Respond = Callable[[Reply], None]
Write = Callable[[Logged], bytes]
Read = Callable[[bytes], Rows]


class PredictionLog(Log, Protocol):
    """The log, as serving uses it."""

    failed: str | None
    file_behind: str | None

    def catch_up(self) -> None: ...
    def probe(self) -> None: ...
    def find(self, prediction_id: str) -> Prediction | None: ...
    def find_all(self, prediction_ids: Sequence[str]) -> Mapping[str, Prediction]: ...
    def metrics(self) -> Metrics: ...
    def close(self) -> None: ...


class Service:
    """Answers for one use case. Not ready until it has a log and a champion.

    `trouble` says, when there is no champion or a version was refused, why, and what to do.
    `on_failure` is told of each run of a model that fails: see `GroupCommit`.
    """

    def __init__(self, use_case: UseCase) -> None:
        self.use_case = use_case
        self.reader = Reader(use_case)
        self.trace: Callable[[Prediction], dict[str, Any]] | None = None
        self.open: Callable[[str], OpenBundle] | None = None
        self.attach_truths: Callable[[Sequence[Truth]], Attached] | None = None
        self.look_at_quality: Callable[[str, int | None], dict[str, Any]] | None = None
        self.drift: Callable[[], dict[str, Any]] | None = None
        self.watched: Callable[[], Watched] | None = None
        self.on_failure: OnFailure = lambda version, error, rows: None
        self.trouble = f"no model yet — train and promote one with: mlops up {use_case.name}"
        self._secret = os.urandom(32)
        self._group: GroupCommit | None = None
        self._log: PredictionLog | None = None
        self._failures: set[tuple[int, type[BaseException]]] = set()

    # -- life -----------------------------------------------------------------------------------

    def start(self, log: PredictionLog, *, synced: bool, secret: bytes | None = None) -> None:
        """Begin to answer. `synced`: each answer waits for the disk.

        With the same `secret` a client's name has the same digest as in an earlier life.
        """
        self._log = log
        self._secret = secret or self._secret
        self._group = GroupCommit(log, synced=synced, on_failure=self._failed)

    async def stop(self) -> None:
        if self._group and self._log:
            await self._group.close()
            self._log.close()
        self._group = self._log = None

    @property
    def lineup(self) -> Lineup | None:
        return self._group.lineup if self._group else None

    @property
    def champion(self) -> Champion | None:
        lineup = self.lineup
        return lineup.champion if lineup else None

    def models(self) -> dict[str, Champion]:
        """Return who answers by name: see `Lineup.named`."""
        lineup = self.lineup
        return lineup.named() if lineup else {}

    def runs(self, version: int) -> int:
        """Return how often a version has answered a group of rows, in this process."""
        return self._group.runs[version] if self._group else 0

    def swap(self, lineup: Lineup | Champion, trouble: str = "") -> None:
        """Let others answer, from the next group on: a champion alone, or with those beside it."""
        if self._group is None:
            raise RuntimeError("swap before start")
        self._group.lineup = lineup if isinstance(lineup, Lineup) else Lineup(lineup)
        self.trouble = trouble
        self._failures = set()

    async def settled(self) -> bool:
        """Wait until all that was asked so far is answered; False if that takes a second."""
        if self._group is None:
            return True
        done, _ = await asyncio.wait([self._group.settle()], timeout=LONGEST_FLUSH)
        return bool(done)

    def rehearse(self, champion: Champion, rows: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
        """Return what this champion would answer to rows of field values; nothing is recorded.

        The rows go the way of a request: written as JSON, validated, predicted, written again.
        """
        instances = [dict(zip(self.use_case.fields, row, strict=True)) for row in rows]
        values, inputs = self.reader.batch(orjson.dumps({"instances": instances}))
        written = self._write_batch(tuple(champion.predict(values, inputs, [None] * len(rows))))
        answers: list[dict[str, Any]] = orjson.loads(written)["predictions"]
        return answers

    # -- routes ---------------------------------------------------------------------------------

    def predict(
        self,
        body: bytes,
        headers: Headers,
        path: str,
        respond: Respond,
        model: Champion | None = None,
    ) -> None:
        """Answer one request of the use case's fields; `model` does, if there is one."""
        self._answer(self.reader.one, self._write_one, body, headers, path, respond, model)

    def predict_batch(
        self,
        body: bytes,
        headers: Headers,
        path: str,
        respond: Respond,
        model: Champion | None = None,
    ) -> None:
        """Answer `{"instances": [...]}`, in order: all of them, or none, and all by one model."""
        write = self._write_batch
        if len(body) <= READ_INLINE_BYTES:
            read = self.reader.batch
            self._in_turn(lambda: self._answer(read, write, body, headers, path, respond, model))
            return

        def answer(read: asyncio.Future[Rows]) -> None:
            self._answer(lambda _: read.result(), write, body, headers, path, respond, model)

        loop = asyncio.get_running_loop()
        loop.run_in_executor(None, self.reader.batch, body).add_done_callback(answer)

    def health(self) -> dict[str, Any]:
        """Say whether this use case answers, with what, and if not, why."""
        lineup, champion, reason = self.lineup, self.champion, self.not_ready()
        return {
            "status": "unavailable" if reason else "healthy",
            "message": reason or f"{self.use_case.title} is answering" + self._remark(),
            "model": self.use_case.model_name,
            "candidate": champion.candidate if champion else None,
            "model_version": champion.version if champion else None,
            "bundle": champion.bundle.hash if champion else None,
            "models": {name: model.version for name, model in self.models().items()},
            "share": lineup.split.share if lineup and lineup.split else 0.0,
        }

    def not_ready(self) -> str:
        """Return why requests cannot be answered now; empty when they can."""
        if self._log is None:
            return "starting"
        if self._log.failed:
            return NO_LOG
        return "" if self.champion else self.trouble

    async def mend(self) -> None:
        """Try a log that failed again, in a thread: a disk that hangs must not hang health too."""
        if self._log and self._log.failed:
            with contextlib.suppress(LogUnavailableError):
                await asyncio.to_thread(self._log.probe)
        if self._log and self._log.file_behind:
            await asyncio.to_thread(self._log.catch_up)

    def observe(self, reply: Reply, seconds: float) -> None:
        """Count an answer that has just gone out, this long after its request had arrived."""
        if self._group:
            self._group.observe((reply.model_version, reply.status, seconds, reply.logged))

    def count(self, status: int) -> None:
        """Count a request that was refused at the door: of it, nothing but the status is kept."""
        if self._group:
            version = self.champion.version if self.champion else 0
            self._group.observe((version, status, 0.0, False))

    async def metrics(self) -> Scrape:
        """Return the traffic as the log has counted it: the same after a restart.

        Answers that went out before are in it, unless the log does not take them at once. Raises
        `LogUnavailableError` if it cannot be read.
        """
        metrics = watched = None
        if self._log and self._group:
            if not self._log.failed:
                await asyncio.wait([self._group.flush()], timeout=LONGEST_FLUSH)
            metrics = await asyncio.to_thread(self._log.metrics)
            watched = await asyncio.to_thread(self.watched) if self.watched else None
        champion = self.champion
        version = champion.version if champion else None
        return Scrape(self.use_case, not self.not_ready(), version, metrics, watched)

    def prediction(self, prediction_id: str) -> dict[str, Any] | None:
        """Return a logged prediction and where its version came from, or None. Not who asked."""
        row = self._log.find(prediction_id) if self._log else None
        return self.trace(row) if row is not None and self.trace else None

    def explain(self, body: bytes) -> dict[str, Any]:
        """Return what `POST /explain` answers; nothing is recorded. Raises what is wrong."""
        if self.champion is None:
            raise NotTrainedError("no model answers yet")
        return self.explained_by(self.champion, body)

    def explained_by(self, champion: Champion, body: bytes) -> dict[str, Any]:
        [row], _ = self.reader.one(body)
        explanation = explain(self.use_case, champion.version, champion.bundle, row)
        return {**answered(self.use_case, explanation), **explanation}

    def explain_logged(self, prediction_id: str) -> dict[str, Any]:
        """Explain a logged prediction by the bundle of the version that made it."""
        row = self._log.find(prediction_id) if self._log else None
        if row is None:
            raise LogUnavailableError("the prediction is not in the log any more")
        inputs = orjson.loads(row.inputs)
        fields = [inputs[name] for name in self.use_case.fields]
        return explain(self.use_case, row.model_version, self._bundle_of(row), fields)

    def intervals_logged(self, prediction_ids: Sequence[str]) -> list[dict[str, Any]]:
        """Return the intervals of logged predictions, by the bundle of the version that made each.

        Raises `NoIntervalError` if that has none.
        """
        found = self._log.find_all(prediction_ids) if self._log else {}
        if len(found) < len(set(prediction_ids)):
            raise LogUnavailableError("the prediction is not in the log any more")
        rows = [found[one] for one in prediction_ids]
        return intervals(self.use_case, rows, self._bundle_of)

    def _bundle_of(self, row: Prediction) -> OpenBundle:
        """Return the bundle that made a logged prediction. Raises `NotExplainedError` if gone."""
        for model in self.models().values():
            if model.bundle.hash == row.bundle:
                return model.bundle
        if self.open is None:
            raise NotExplainedError(f"the bundle of version {row.model_version} is not here")
        return self.open(row.bundle)

    def problem_of(self, error: BaseException, body: bytes) -> tuple[int, list[dict[str, Any]]]:
        """Return status and detail of an answer that tells a client what is wrong."""
        if isinstance(error, ValidationError):
            return 422, problems.invalid(error, self.use_case, body)
        if isinstance(error, NotTrainedError):
            return 503, problems.problem("not_ready", self.not_ready() or self.trouble)
        if isinstance(error, LogUnavailableError):
            return 503, problems.problem("log_unavailable", NO_LOG)
        if isinstance(error, MlopsError):
            return error.status, problems.from_error(error)
        return 500, problems.internal_error()

    def known(self, prediction_ids: Sequence[str]) -> set[str]:
        """Return those ids whose predictions are in the log."""
        if self._log is None:
            raise NotTrainedError("starting")
        return set(self._log.find_all(prediction_ids))

    def attach(self, truths: Sequence[Truth]) -> Attached:
        """Attach actual values to predictions; return when they are as safe as predictions are.

        Raises `LogUnavailableError` if they cannot be written.
        """
        if self._log is None or self.attach_truths is None:
            raise NotTrainedError("starting")
        return self.attach_truths(truths)

    def performance(self, window: str, version: int | None) -> dict[str, Any]:
        """Return quality over a window. Raises `NotTrainedError`, `UsageError` for a version."""
        if self._log is None or self.look_at_quality is None:
            raise NotTrainedError("starting")
        return self.look_at_quality(window, version)

    def refuse(
        self,
        status: int,
        detail: list[dict[str, Any]],
        body: bytes,
        headers: Headers,
        path: str,
        respond: Respond,
    ) -> None:
        """Record a request that gets no prediction, then answer it.

        The refusal is true without a record of it too; `not_ready` tells of the log.
        """
        version = self.champion.version if self.champion else 0
        reply = Reply(status, problems.as_json(detail), model_version=version)
        if self._group is None:
            respond(reply._replace(logged=False))
            return
        name = sender(headers).name
        failure = Failure(
            timestamp=clock.stamp(),
            path=path,
            status=status,
            detail=reply.body.decode(),
            body=body[:KEPT_BODY_BYTES].decode("utf-8", "replace"),
            client=self._client(name) if name else None,
            model_version=version,
        )
        self._group.record(failure, lambda logged: respond(reply._replace(logged=logged)))

    # -- the path of a request ------------------------------------------------------------------

    def _answer(
        self,
        read: Read,
        write: Write,
        body: bytes,
        headers: Headers,
        path: str,
        respond: Respond,
        model: Champion | None,
    ) -> None:
        """Validate, predict, record, respond: now, or when the log has it."""

        def finish(logged: Logged | BaseException) -> None:
            if isinstance(logged, BaseException):
                self._fail(logged, body, headers, path, respond)
                return
            try:
                version = logged[0].model_version
                reply = _as_reply((200, write(logged), len(logged), (), version, True))
            except Exception as error:  # noqa: BLE001  # becomes an answer
                self._fail(error, body, headers, path, respond)
            else:
                respond(reply)

        group = self._group
        try:
            rows, inputs = read(body)
            client, key = self._sender(headers)
        except Exception as error:  # noqa: BLE001  # becomes an answer
            self._fail(error, body, headers, path, respond)
        else:
            lineup = group.lineup if group else None
            if group is None or lineup is None:
                finish(NotTrainedError("no model answers yet"))
            elif len(rows) > 1 and group.rows_waiting() > MOST_ROWS_WAITING:
                finish(OverloadedError("too many rows wait for their answers", "try again"))
            else:
                if lineup.split is not None and model is None:
                    # Who gives no name is split by what they ask.
                    model = lineup.split.model_for(client or "\n".join(inputs))
                group.predict(as_request((rows, inputs, key, client, model, finish)))

    def _in_turn(self, work: Callable[[], None]) -> None:
        if self._group:
            self._group.turns.do(work)
        else:
            work()

    def _fail(
        self, error: BaseException, body: bytes, headers: Headers, path: str, respond: Respond
    ) -> None:
        if isinstance(error, LogUnavailableError | OverloadedError):
            status, detail = self.problem_of(error, body)
            known = self.champion if isinstance(error, LogUnavailableError) else None
            version = known.version if known else 0
            respond(Reply(status, problems.as_json(detail), model_version=version, logged=False))
        elif isinstance(error, ValidationError | MlopsError):
            self.refuse(*self.problem_of(error, body), body, headers, path, respond)
        else:
            # The server's own log gets the traceback; the client does not.
            log.error("a defect met POST %s", path, exc_info=error)
            respond(Reply(500, problems.as_json(problems.internal_error()), logged=False))

    def _write_one(self, logged: Logged) -> bytes:
        return answer(self.use_case, logged[0]).encode()

    def _write_batch(self, logged: Logged) -> bytes:
        return f'{{"predictions":[{",".join(answers(self.use_case, logged))}]}}'.encode()

    def _sender(self, headers: Headers) -> tuple[str | None, str | None]:
        """Return the digest of the client's name, if it has one, and the idempotency key.

        A key is apart for each API key: no client meets another's answers.
        """
        name, key, owner = sender(headers)
        if key and owner:
            key = f"{self._client(owner)}/{key}"
        return self._client(name) if name else None, key

    def _client(self, name: str) -> str:
        """Return a keyed digest of the client's name: enough to count clients, not to name them.

        Without the secret nobody can try names until one fits.
        """
        return hashlib.blake2b(name.encode(), key=self._secret, digest_size=8).hexdigest()

    def _remark(self) -> str:
        return f"; {self.trouble}" if self.trouble else ""

    def _failed(self, version: int, error: BaseException, rows: int) -> None:
        """Say once, not at each request, that a model fails; tell whoever watches each time."""
        if (failure := (version, type(error))) not in self._failures:
            self._failures.add(failure)
            name = self.use_case.name
            log.error("%s: version %s failed to answer", name, version, exc_info=error)
        self.on_failure(version, error, rows)


def reply_of(begin: Callable[[Respond], None]) -> asyncio.Future[Reply]:
    """Begin to answer a request; return its reply as a future."""
    replied: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()

    def respond(reply: Reply) -> None:
        if not replied.done():  # its client may have gone; what was logged stays
            replied.set_result(reply)

    begin(respond)
    return replied

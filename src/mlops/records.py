"""What is written down about a request, in the form in which it is stored.

JSON columns are already text here, so that the database, the log file and a resent answer all
hold the same bytes and nothing is encoded twice. They are named tuples: thousands are made each
second, and each is bound to a statement as it is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple, TypeVar

T = TypeVar("T", bound=tuple[Any, ...])
Verdict = Literal["ok", "alarm", "cannot tell"]


class Prediction(NamedTuple):
    """One answered row.

    `prediction` is the number answered (regression) or the label (classification). `timestamp`
    is UTC, ISO 8601, always 32 characters, so text order is time order. `id` is the row's number
    in the log: 0 until it is committed.
    """

    prediction_id: str
    timestamp: str
    inputs: str
    prediction: float | str
    probabilities: str | None
    warnings: str | None
    model_version: int
    bundle: str
    client: str | None = None
    id: int = 0


def from_columns(columns: Iterable[Iterable[Any]]) -> list[Prediction]:
    """Return rows from their fields' columns, as many as the shortest has.

    No row costs a call of its own, not even that of `_make`.
    """
    return list(map(_AS_PREDICTION, zip(*columns, strict=False)))


def quickly(kind: type[T]) -> Callable[[Iterable[Any]], T]:
    """Return what makes such a named tuple of all its fields, in half of its own maker's time.

    That is a function of Python; for what is made for each request it counts.
    """
    return functools.partial(tuple.__new__, kind)


_AS_PREDICTION = quickly(Prediction)


class Submission(NamedTuple):
    """The rows of one request: all are logged, or none.

    With an idempotency `key`, the log keeps the first submission and hands it back for a resend.
    """

    rows: tuple[Prediction, ...]
    key: str | None = None


_AS_SUBMISSION = quickly(Submission)


def one_each(rows: Iterable[Prediction], keys: Iterable[str | None]) -> list[Submission]:
    """Return a submission of each row."""
    return list(map(_AS_SUBMISSION, zip(zip(rows, strict=True), keys, strict=True)))


class Failure(NamedTuple):
    """One request that got no prediction. `body` is its first bytes, `detail` the JSON answer.

    `model_version` is the one that answered at the time, 0 if none did.
    """

    timestamp: str
    path: str
    status: int
    detail: str
    body: str
    client: str | None = None
    model_version: int = 0


Timing = tuple[int, int, float, bool]
"""One answer: model version (0 if none), HTTP status, response time in seconds, in the log or not.

A plain tuple: one is made for each request, when its answer goes out."""


class Conflict(NamedTuple):
    """A truth that contradicts the one that was attached before, which stays."""

    prediction_id: str
    attached: float | str
    sent: float | str


class Attached(NamedTuple):
    """What became of truths that were sent: each is counted or named exactly once."""

    attached: int
    already: int
    """How many had come before, with the same value."""
    unknown: tuple[str, ...]
    """Ids of predictions that are not in the log: never made here, or deleted since."""
    conflicts: tuple[Conflict, ...]


class Totals(NamedTuple):
    """What the log holds, as it has counted it. `last_updated` is None for an empty log."""

    total_predictions: int
    by_version: dict[int, int]
    """Number of predictions by model version."""
    warned: int
    """Number of predictions with at least one warning."""
    failed_requests: dict[int, int]
    """Number of failed requests by HTTP status."""
    last_updated: str | None


class Series(NamedTuple):
    """All that was ever counted for one model version and one HTTP status."""

    model_version: int
    status: int
    requests: int
    predictions: int
    warned: int
    last_timestamp: str
    response_seconds: float
    """Sum of the response times that were measured."""
    responses: tuple[tuple[float, int], ...]
    """(upper bound in seconds, number of answers that took no longer), rising; the last is
    infinity."""


class Metrics(NamedTuple):
    """The traffic of one use case, all of it read from one state of its log."""

    totals: Totals
    windows: Mapping[str, Any]
    """By window ("minute", "hour", "day", "all") what `docs/metrics.md` lists, as JSON has it."""
    series: tuple[Series, ...]


class Finding(NamedTuple):
    """One measured statement of a monitor: all is well, it is not, or that cannot be told.

    `kind` names the monitor ("drift"), `subject` what it speaks of (a column, say), `says` is one
    sentence for people, and `numbers` what it rests on, as JSON has it. `at` is when it was
    recorded, as a timestamp of the log; empty until then.
    """

    kind: str
    subject: str
    verdict: Verdict
    says: str
    numbers: Mapping[str, Any]
    at: str = ""


class Alert(NamedTuple):
    """One alert, from the first breach of its rule to its end. Times are unix seconds.

    `id` is 0 until it is kept. `opened` is None while the breach has not lasted long enough to be
    told; `calm_since` is when it was last seen to begin not to be breached.
    """

    id: int
    use_case: str
    rule: str
    severity: str
    says: str
    value: float | None
    limit: float | None
    since: float
    seen: float
    opened: float | None = None
    calm_since: float | None = None
    ended: float | None = None


class Watched(NamedTuple):
    """What is known of a use case beside its traffic. Times are unix seconds; None: not known."""

    disk_free: float | None
    """Share of the log's disk."""
    log_lines_behind: int | None
    """Rows of the log's database that its text file lacks."""
    last_prediction: float | None
    champion_registered: float | None
    findings: tuple[Finding, ...] = ()
    active: Mapping[str, bool] = {}
    """By rule, whether its alert is open."""
    log_wal_bytes: int | None = None
    """Size of the write-ahead log of the log's database."""

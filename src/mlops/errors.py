"""Every error that a user can cause or must act on.

Each says what is wrong and, in `fix`, what to do about it. The command line prints both on one
line and exits with `exit_code`; the HTTP edge answers with `status`. Anything else that escapes is
a bug, and is shown as one.
"""

from __future__ import annotations


class MlopsError(Exception):
    """What went wrong, and what to do about it."""

    exit_code = 1
    status = 500

    def __init__(self, message: str, fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.message} — {self.fix}" if self.fix else self.message


class UsageError(MlopsError):
    """A name, option or setting that does not exist or cannot be used together with another."""

    exit_code = 2
    status = 400


class DataError(MlopsError):
    """A table that breaks its declared schema. Names column, row and rule."""


class TrainingError(MlopsError):
    """A candidate could not be fitted."""


class NotTrainedError(MlopsError):
    """Nothing has been trained, or promoted, for this use case yet."""

    status = 503


class BundleError(MlopsError):
    """A bundle that is missing, incomplete, altered, or does not reproduce its golden rows."""

    status = 503


class NotExplainedError(MlopsError):
    """The bundle that made an answer holds nothing that could explain it, or is gone."""

    status = 409


class NoIntervalError(MlopsError):
    """The bundle that made an answer holds nothing that could give it an interval."""

    status = 409


class ParityError(MlopsError):
    """The exported graph and the fitted pipeline disagree. Nothing was sealed."""


class GateError(MlopsError):
    """A gate refused the promotion."""


class BusyError(MlopsError):
    """Another process is at the same work. Its exit code is that of "try again later"."""

    exit_code = 75


class ChampionMovedError(MlopsError):
    """Another promotion came first: the champion is not the one this caller expected."""

    status = 409


class TrackingError(MlopsError):
    """The tracking server or registry refused, hung or failed."""


class LogUnavailableError(MlopsError):
    """The prediction log cannot be written, so nothing can be answered."""

    status = 503


class OverloadedError(MlopsError):
    """More waits for its answer than this server lets wait."""

    status = 503


class LogBusyError(LogUnavailableError):
    """Another process is writing to the prediction log, and the caller would not wait."""


class IdempotencyConflictError(MlopsError):
    """The same idempotency key came with other inputs."""

    status = 422


class ServiceError(MlopsError):
    """A background process could not be started, reached or stopped."""


REFUSALS = (UsageError, GateError, NotTrainedError, ChampionMovedError, BundleError)
"""What whoever asks to change who answers can act on. The rest is for whoever runs the server."""

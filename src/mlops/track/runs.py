"""Runs: every trained candidate, with what it learnt from, how it was set and how it scored.

By default the store is `mlflow.db` in the project folder with artifacts under `mlruns/`, which is
what `mlflow ui` looks for when it is given no setting. MLFLOW_TRACKING_URI and MODEL_REGISTRY_URI
point elsewhere. A run costs well under a second, because requirements and signature are stated
and not inferred.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import getpass
import importlib.metadata
import logging
import math
import os
import queue
import re
import statistics
import subprocess
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops.errors import TrackingError

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient

REQUIREMENTS = ("numpy", "scikit-learn", "lightgbm")
EXAMPLE_ROWS = 2
PARAMETER_LENGTH = 500
MLFLOW_DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # A tracking server that refuses or hangs should cost seconds, not the ten minutes of default:
    # one request and its repetition less than ten.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "4",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
}
SECONDS_TO_ANSWER = 4.0
"""What a server may take, in all, to show that it can be worked with."""
SLOW_SECONDS = 1.0
"""A run is a dozen requests: with a server that takes longer for one, training would crawl."""
CAUSE = re.compile(r"\(Caused by \w+\([\"'](?:HTTPS?Connection\w*\([^)]*\): )?(.+?)[\"']\)\)$")
"""What was the matter, inside what urllib3 tells of whom it asked for what."""
MLFLOW_ADDRESSES = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """A finished run and the model logged in it. `started_ms` is its time in MLflow's unit."""

    run_id: str
    model_uri: str
    started_ms: int = 0


class Tracking:
    """A connection to the tracking store and the registry."""

    def __init__(self, home: Path, tracking_uri: str, registry_uri: str) -> None:
        for name, value in MLFLOW_DEFAULTS.items():
            os.environ.setdefault(name, value)
        self.home = home
        self.local = not tracking_uri
        self.uri = tracking_uri or local_uri(home)
        self.registry_uri = registry_uri or self.uri

    @functools.cached_property
    def client(self) -> MlflowClient:
        """The client; the first use of a new local store creates its tables (about 2 s).

        A server that refuses, errs, hangs or is slow raises within seconds.
        """
        import mlflow

        _quiet()
        self._aim()
        with _first_alone(self.home) if self.local else contextlib.nullcontext():
            client = mlflow.MlflowClient()
            for uri, ask in (
                (self.uri, client.search_experiments),
                (self.registry_uri, client.search_registered_models),
            ):
                if uri.startswith("http"):
                    _answers_in_time(functools.partial(ask, max_results=1))
                elif ask == client.search_experiments:
                    ask(max_results=1)
        return client

    def connect(self) -> None:
        """Reach the store, creating a local one. Raises `TrackingError`."""
        with self.errors():
            _ = self.client

    def log_run(
        self,
        *,
        experiment: str,
        candidate: str,
        pipeline: Any,
        metrics: Mapping[str, float],
        training_table: pd.DataFrame,
        X: pd.DataFrame,
        predictions: Any,
        fingerprint: str,
        origin: str,
        parameters: Mapping[str, Any],
        tags: Mapping[str, str],
        fold_scores: Mapping[str, Sequence[float]] | None = None,
        files: Mapping[str, bytes] | None = None,
        started_ms: int | None = None,
    ) -> Run:
        """Log one candidate as a run of `experiment`, begun now unless told.

        `fold_scores` are the values of metrics in each fold, which becomes their step; `files` are
        artifacts by their path. `tags` win over what would be said of this process, its user and
        the commit. Raises `TrackingError`.
        """
        with self.errors():
            import mlflow
            from mlflow.entities import Metric, Param, RunTag
            from mlflow.models import ModelSignature
            from mlflow.types import ColSpec, Schema

            client = self.client
            self._aim()
            run = client.create_run(
                self._experiment_id(experiment),
                start_time=started_ms,
                run_name=candidate,
                tags={
                    "mlflow.user": user(),
                    "mlflow.source.name": "mlops train",
                    "mlflow.source.type": "LOCAL",
                    "mlflow.source.git.commit": commit(self.home),
                    "data_fingerprint": fingerprint,
                    "data_origin": origin,
                    **tags,
                },
            )
            run_id = run.info.run_id
            now = run.info.start_time
            fitted = type(getattr(pipeline[-1], "calibrated", pipeline[-1]))
            stated = {"model_name": candidate, "model_class": fitted.__name__}
            stated |= {k: str(v)[:PARAMETER_LENGTH] for k, v in parameters.items()}
            client.log_batch(
                run_id,
                metrics=[
                    *(Metric(name, value, now, 0) for name, value in metrics.items()),
                    *(
                        Metric(name, value, now, fold)
                        for name, values in (fold_scores or {}).items()
                        for fold, value in enumerate(values, 1)
                    ),
                ],
                params=[Param(name, value) for name, value in stated.items()],
                tags=[RunTag("model_family", fitted.__module__.split(".")[0])],
            )
            output_type = "double" if predictions.dtype.kind == "f" else "long"
            with mlflow.start_run(run_id=run_id), warnings.catch_warnings():
                # Advice on columns of whole numbers that might one day lack a value.
                warnings.filterwarnings("ignore", message="Hint: Inferred schema", module="mlflow")
                dataset = mlflow.data.from_pandas(  # type: ignore[attr-defined]
                    training_table, name=experiment, digest=fingerprint[:32]
                )
                mlflow.log_input(dataset, context="training")
                self._log_files(run_id, files or {})
                model = mlflow.sklearn.log_model(
                    pipeline,
                    name=candidate,
                    serialization_format="pickle",
                    signature=ModelSignature(
                        Schema([ColSpec("double", name) for name in X.columns]),
                        Schema([ColSpec(output_type)]),
                    ),
                    input_example=X.head(EXAMPLE_ROWS),
                    pip_requirements=requirements(),
                )
            return Run(run_id, model.model_uri, now)

    def _log_files(self, run_id: str, files: Mapping[str, bytes]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            for name, content in files.items():
                path = Path(folder) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            if files:
                self.client.log_artifacts(run_id, folder)

    def finished(self, experiment: str, attempt: str) -> Run | None:
        """Return the run tagged with that `attempt` if it is whole; remove what is not."""
        with self.errors():
            found = self.client.get_experiment_by_name(experiment)
            if found is None:
                return None
            whole = None
            for run in self.client.search_runs(
                [found.experiment_id], filter_string=f"tags.attempt = '{attempt}'"
            ):
                models = run.outputs.model_outputs if run.outputs else []
                if whole is None and run.info.status == "FINISHED" and models:
                    uri = f"models:/{models[0].model_id}"
                    whole = Run(run.info.run_id, uri, run.info.start_time)
                else:
                    self.client.delete_run(run.info.run_id)
            return whole

    def log_study(
        self,
        *,
        experiment: str,
        study: str,
        parameters: Mapping[str, Any],
        metrics: Mapping[str, float],
        metric: str,
        trials: Sequence[Mapping[str, Any]],
        advance: Callable[[str], None],
    ) -> str:
        """Log a study as a run, and each of its trials as a run below it. Return the study's run.

        What the store has already is not logged again, so that a study that was continued, or a
        logging that broke off, is completed. A trial has `number`, `candidate`, `parameters`,
        `scores` (`metric`, fold by fold), `state`, `started_ms`, `ended_ms` and `trouble`. Raises
        `TrackingError`.
        """
        with self.errors():
            from mlflow.entities import Metric, Param

            client = self.client
            where = self._experiment_id(experiment)
            tags = {"mlflow.user": user(), "mlflow.source.name": "mlops tune", "study": study}
            known = self._study_runs(where, study)
            parent = known.pop("", None)
            if parent is None:
                commits = {"mlflow.source.git.commit": commit(self.home)}
                run = client.create_run(where, run_name=study, tags={**tags, **commits})
                parent = run.info.run_id
            now = int(time.time() * 1000)
            client.log_batch(
                parent,
                metrics=[Metric(name, value, now, 0) for name, value in metrics.items()],
                params=[Param(name, str(value)) for name, value in parameters.items()],
            )
            for trial in trials:
                number = str(trial["number"])
                advance(f"trial {number}")
                if number in known:
                    continue
                scores = trial["scores"]
                found = [Metric(metric, v, trial["ended_ms"], n) for n, v in enumerate(scores, 1)]
                if len(scores) > 1:
                    for name, value in (
                        (f"cv_{metric}_mean", statistics.fmean(scores)),
                        (f"cv_{metric}_std", statistics.stdev(scores)),
                    ):
                        found.append(Metric(name, value, trial["ended_ms"], 0))
                run = client.create_run(
                    where,
                    run_name=f"{trial['candidate']} {number}",
                    start_time=trial["started_ms"],
                    tags={**tags, "mlflow.parentRunId": parent, "state": trial["state"]}
                    | ({"trouble": trial["trouble"]} if trial["trouble"] else {}),
                )
                client.log_batch(
                    run.info.run_id,
                    metrics=found,
                    params=[
                        Param("model_name", trial["candidate"]),
                        *(Param(name, str(v)) for name, v in trial["parameters"].items()),
                    ],
                )
                # Last: what has the number is whole.
                client.set_tag(run.info.run_id, "trial", number)
                status = "FAILED" if trial["state"] == "failed" else "FINISHED"
                client.set_terminated(run.info.run_id, status, trial["ended_ms"])
            client.set_terminated(parent, "FINISHED")
            return str(parent)

    def _study_runs(self, experiment_id: str, study: str) -> dict[str, str]:
        """Return the runs of a study by the number of their trial, the study's own under ""."""
        found: dict[str, str] = {}
        token = None
        while True:
            page = self.client.search_runs(
                [experiment_id], f"tags.study = '{study}'", max_results=1000, page_token=token
            )
            for run in page:
                own = "mlflow.parentRunId" not in run.data.tags
                if own or "trial" in run.data.tags:
                    found["" if own else run.data.tags["trial"]] = run.info.run_id
                else:  # its logging broke off
                    self.client.delete_run(run.info.run_id)
            token = page.token
            if not token:
                return found

    def attach(self, run_id: str, folder: Path, tags: Mapping[str, str]) -> None:
        """Put a folder's files into a run's artifacts, under `bundle/`, and tag the run."""
        with self.errors():
            self.client.log_artifacts(run_id, str(folder), "bundle")
            for name, value in tags.items():
                self.client.set_tag(run_id, name, value)

    def runs(self, experiment: str, most: int = 200) -> list[dict[str, Any]]:
        """Return the runs of an experiment that trained a candidate, newest first."""
        with self.errors():
            found = self.client.get_experiment_by_name(experiment)
            if found is None:
                return []
            return [
                {
                    "run_id": run.info.run_id,
                    "candidate": run.data.params.get("model_name", run.info.run_name),
                    "status": run.info.status,
                    "start_time": run.info.start_time,
                    "metrics": dict(run.data.metrics),
                    "tags": {k: v for k, v in run.data.tags.items() if "." not in k},
                    "commit": run.data.tags.get("mlflow.source.git.commit", "unknown"),
                }
                for run in self.client.search_runs(
                    [found.experiment_id],
                    f"tags.use_case = '{experiment}'",
                    max_results=most,
                    order_by=["attributes.start_time DESC"],
                )
            ]

    def history(self, run_id: str, metric: str) -> list[float]:
        """Return the values of a metric, by their step."""
        with self.errors():
            found = self.client.get_metric_history(run_id, metric)
            return [point.value for point in sorted(found, key=lambda point: point.step)]

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Turn whatever MLflow, its database or the network raise into one clear line."""
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (MlflowException, SQLAlchemyError, OSError) as error:
            said = [line.strip() for line in str(error).splitlines()]
            reason = next(filter(None, said), type(error).__name__)
            if cause := CAUSE.search(reason):
                reason = cause[1]
            raise TrackingError(
                f"tracking at {self.uri} failed: {reason}",
                "look at MLFLOW_TRACKING_URI, or unset it to track in this folder",
            ) from error

    def _aim(self) -> None:
        """Point MLflow's functions, which know one store a process, to this one.

        MLflow writes the addresses into the environment too, where the next reading of the
        settings would take them for the user's.
        """
        import mlflow

        stated = {name: os.environ.get(name) for name in MLFLOW_ADDRESSES}
        mlflow.set_tracking_uri(self.uri)
        mlflow.set_registry_uri(self.registry_uri)
        for name, value in stated.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value

    def _experiment_id(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        artifacts = (self.home / "mlruns" / name).resolve().as_uri() if self.local else None
        try:
            return str(self.client.create_experiment(name, artifact_location=artifacts))
        except MlflowException:
            # Another training may have created it in between.
            found = self.client.get_experiment_by_name(name)
            if found is None:
                raise
            return str(found.experiment_id)


def local_uri(home: Path) -> str:
    """Return the address of the store that `mlflow ui` finds by itself in `home`."""
    return f"sqlite:///{(home / 'mlflow.db').resolve()}"


def requirements() -> list[str]:
    """Return the pinned packages that a logged pipeline needs to be loaded."""
    found = []
    for name in REQUIREMENTS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # LightGBM is optional
            found.append(f"{name}=={importlib.metadata.version(name)}")
    return found


@functools.cache
def commit(home: Path) -> str:
    """Return the git commit of the project, "unknown" outside a repository.

    An image holds none: its build says MLOPS_COMMIT.
    """
    if stated := os.environ.get("MLOPS_COMMIT"):
        return stated
    try:
        found = subprocess.run(  # noqa: S603  # a fixed command
            ["git", "-C", str(home), "rev-parse", "HEAD"],  # noqa: S607  # git is where it is
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.stdout.strip()


def user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return str(os.getuid())


def _answers_in_time(ask: Callable[[], object]) -> None:
    """Ask a server. Raises `TimeoutError` if it hangs or is slow, `OSError` for what is no MLflow.

    In a thread, because a server that sends a byte now and then never meets a time limit of
    the network's; the thread of one that hangs is left behind.
    """
    from mlflow.exceptions import MlflowException

    outcome: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()

    def run() -> None:
        fastest = math.inf
        try:
            for _ in range(3):  # the machine may have been busy for a moment
                started = time.monotonic()
                ask()
                fastest = min(fastest, time.monotonic() - started)
                if fastest <= SLOW_SECONDS:
                    outcome.put(None)
                    return
            outcome.put(TimeoutError(f"it is slow: {fastest:.1f} s for one answer"))
        except (MlflowException, OSError) as error:
            outcome.put(error)
        except Exception as error:  # noqa: BLE001  whatever its answer does to the parser
            outcome.put(OSError(f"no answer of MLflow: {type(error).__name__}: {error}"))

    threading.Thread(target=run, daemon=True).start()
    try:
        error = outcome.get(timeout=SECONDS_TO_ANSWER)
    except queue.Empty:
        error = TimeoutError(f"it hangs or is slow: no answer within {SECONDS_TO_ANSWER:g} s")
    if error is not None:
        raise error


@contextlib.contextmanager
def _first_alone(home: Path) -> Iterator[None]:
    """Let one process at a time create the store's tables: MLflow's migrations do not wait."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / ".mlflow.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _quiet() -> None:
    """Keep MLflow's notes on its own doings, and its advice against pickle, off the terminal.

    The pickle is for people; what is served is the bundle's ONNX graph.
    """
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)

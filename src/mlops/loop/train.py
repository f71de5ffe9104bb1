"""Train: every candidate is fitted, measured and tracked; the winners are sealed and registered."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import joblib
import numpy as np

from mlops import clock
from mlops.build.data import keep, prepare, split, write_whole
from mlops.build.growth import Lesson
from mlops.build.profile import golden_rows, reference_profile, training_ranges
from mlops.build.training import Trained, baseline, train_candidate, winner
from mlops.errors import UsageError
from mlops.improve.ledger import Ledger, Version
from mlops.loop.card import card_of
from mlops.loop.diagnose import diagnose, drawn, keep_diagnosis
from mlops.loop.finished import Done, Finished
from mlops.loop.intervals import intervals_to_seal
from mlops.loop.products import introduce, numbered
from mlops.loop.quality import (
    microseconds,
    quality_to_seal,
    target_to_seal,
)
from mlops.loop.recipe import libraries, recipe
from mlops.loop.report import Report, Silent
from mlops.loop.runs import keep_run
from mlops.loop.signature import signature
from mlops.loop.track import Recorder, Why
from mlops.loop.watching import SEALED
from mlops.monitor.drift import columns
from mlops.monitor.drift.profile import Profile
from mlops.package.bundle import golden_answers, seal
from mlops.package.explanation import explanation_document
from mlops.package.export import to_onnx
from mlops.package.intervals import conformal_of
from mlops.package.model import OnnxModel, Output
from mlops.package.parity import Parity, check_parity
from mlops.settings import Settings, read_settings
from mlops.track.runs import Run, commit, user
from mlops.usecase import FOLDS, SEED, TEST_SHARE, Candidate, UseCase
from mlops.usecases import find


@dataclasses.dataclass(frozen=True, slots=True)
class Scored:
    """One candidate's result, as tables and JSON show it."""

    name: str
    metrics: dict[str, float]
    fold_scores: tuple[float, ...]
    seconds: float
    run_id: str


@dataclasses.dataclass(frozen=True, slots=True)
class Training:
    """What a training gave. `registered` holds the winner's version first.

    In a profile it holds a version for each product, in their order; `products` has their numbers
    by alias.
    """

    use_case: str
    metric: str
    rows_train: int
    rows_test: int
    rows_dropped: int
    rows_shared: int
    baseline: dict[str, float]
    candidates: tuple[Scored, ...]
    winner: str
    registered: tuple[Version, ...]
    profile: str = ""
    products: dict[str, int] = dataclasses.field(default_factory=dict)


def train(
    name: str,
    *,
    only: tuple[str, ...] = (),
    profile: str = "",
    from_study: bool = False,
    lesson: Lesson | None = None,
    finished: Finished | None = None,
    settings: Settings | None = None,
    report: Report | None = None,
) -> Training:
    """Train the candidates of a use case (or `only` some), track each, seal and register winners.

    Those that are declared `on_demand` are trained only when they are named, or in a `profile`,
    whose products are all sealed and registered.

    `from_study` adds what `tune` found best as a candidate `<its candidate>Tuned`. What is learnt
    is the data file, or another `lesson`; candidates that are in `finished` are taken from there.

    Writes `models/<Model>.pkl` for each candidate and a bundle for the winner and for those that
    are always registered. Promotes nothing. Without a tracking store it says so and goes on: its
    runs are kept, for `mlops track --pending`.
    """
    settings = settings or read_settings()
    report = report or Silent()
    use_case = find(name)
    if profile:
        if only or from_study:
            raise UsageError(
                "a profile says itself what is trained", "leave out --only and --from-study"
            )
        introduce(use_case, profile, settings, report)
    if not from_study:
        _chosen(use_case, only, profile)  # a name that is wrong is said before anything is written
    lesson = _learnt(use_case, lesson, profile, settings)
    parts = lesson.parts
    origins: dict[str, dict[str, str]] = {}
    if from_study:
        from mlops.loop.tune import tuned_candidate

        tuned, origin = tuned_candidate(use_case, parts, settings)
        use_case = dataclasses.replace(use_case, candidates=(*use_case.candidates, tuned))
        origins[tuned.name] = origin
        report.say(f"{name}: {tuned.name} is trial {origin['trial']} of study {origin['study']}")
    candidates = _chosen(use_case, only, profile)
    settings.models.mkdir(parents=True, exist_ok=True)
    recorder = Recorder(settings, report)

    trained: list[Trained] = []
    runs: dict[str, Run] = {}
    diagnoses: dict[str, dict[str, Any]] = {}
    with report.steps(f"{name}: training", len(candidates)) as advance:
        for candidate in candidates:
            advance(candidate.name)
            origin = origins.get(candidate.name, {})
            done = _through(recorder, use_case, lesson, candidate, origin, finished, report)
            one = done.trained
            _write_pickle(one, settings.models)
            _keep(settings, use_case, lesson, one, done.run)
            runs[candidate.name], diagnoses[candidate.name] = done.run, done.diagnosis
            trained.append(one)
    best = winner(use_case, trained)
    scores_to_beat = baseline(use_case, parts)

    others = [t for t in trained if t.candidate.always_registered and t is not best]
    sealed = trained if profile else [best, *others]
    registered = []
    with (
        report.steps(f"{name}: sealing", len(sealed)) as advance,
        Ledger(settings.state_database) as ledger,
    ):
        for one in sealed:
            advance(one.candidate.name)
            origin = origins.get(one.candidate.name, {})
            bundle = _seal(use_case, lesson, one, scores_to_beat, settings, origin)
            run = runs[one.candidate.name]
            why = _why(use_case, lesson, one, trained, best)
            registered.append(
                recorder.register(ledger, use_case, one.candidate.name, run, bundle, why)
            )
            keep_diagnosis(settings, use_case, bundle, diagnoses[one.candidate.name], report)
            _keep(settings, use_case, lesson, one, run, bundle)
    return Training(
        use_case=name,
        metric=use_case.metric,
        rows_train=len(parts.X_train),
        rows_test=len(parts.X_test),
        rows_dropped=lesson.table.dropped,
        rows_shared=parts.shared_rows,
        baseline=scores_to_beat,
        candidates=tuple(
            Scored(
                t.candidate.name,
                t.metrics,
                t.fold_scores,
                t.seconds,
                runs[t.candidate.name].run_id,
            )
            for t in trained
        ),
        winner=best.candidate.name,
        registered=tuple(registered),
        profile=profile,
        products=numbered(use_case, profile, registered),
    )


def _why(
    use_case: UseCase,
    lesson: Lesson,
    one: Trained,
    trained: list[Trained],
    best: Trained,
) -> Why:
    """Say why this one is registered, and what it was made of and measured against."""
    metric = use_case.metric
    folds = {
        each.candidate.name: {
            "mean": each.metrics[f"cv_{metric}_mean"],
            "std": each.metrics[f"cv_{metric}_std"],
        }
        for each in trained
    }
    mine = folds[one.candidate.name]
    measured = f"{metric} {mine['mean']:.4f} ± {mine['std']:.4f} in {FOLDS} folds"
    if profile := lesson.stated.get("profile"):
        alias = use_case.product_of({"profile": profile, "candidate": one.candidate.name})
        rule, says = "profile", f"product {alias} of the profile {profile}: {measured}"
    elif one is best:
        rule, says = "cross-validation", f"best of {len(trained)} candidates: {measured}"
    else:
        rule, says = "always registered", f"always registered: {measured}"
    return Why(
        says,
        rule,
        {
            "candidate": one.candidate.name,
            "data_fingerprint": lesson.table.fingerprint,
            "data_origin": lesson.table.origin,
            "rows_train": len(lesson.parts.X_train),
            "rows_test": len(lesson.parts.X_test),
            "metric": metric,
            "folds": folds,
        },
    )


def _learnt(use_case: UseCase, lesson: Lesson | None, profile: str, settings: Settings) -> Lesson:
    """Return what is learnt, and keep its table: this lesson or the data file, in that profile."""
    if lesson is None:
        table = prepare(use_case, settings.data)
        lesson = Lesson(table, split(use_case, table.frame))
    keep(lesson.table, settings.data)
    if not profile:
        return lesson
    return dataclasses.replace(lesson, stated={**lesson.stated, "profile": profile})


def _chosen(use_case: UseCase, only: tuple[str, ...], profile: str = "") -> tuple[Candidate, ...]:
    declared = *use_case.candidates, *use_case.on_demand
    known = {candidate.name: candidate for candidate in declared}
    for name in only:
        if name not in known:
            raise UsageError(
                f"{use_case.name} has no candidate {name!r}", f"declared are: {', '.join(known)}"
            )
    return tuple(known[name] for name in only) if only else use_case.trained_in(profile)


def _through(
    recorder: Recorder,
    use_case: UseCase,
    lesson: Lesson,
    candidate: Candidate,
    origin: dict[str, str],
    finished: Finished | None,
    report: Report,
) -> Done:
    """Fit, measure, diagnose and track one candidate, unless it is finished already."""
    done = finished.find(candidate) if finished else None
    if done is not None:
        return done
    tags = {**origin, "attempt": finished.attempt(candidate)} if finished else origin
    one = train_candidate(use_case, candidate, lesson.parts)
    numbers = diagnose(use_case, one, lesson.parts, report)
    files = drawn(use_case, candidate.name, numbers, report)
    done = Done(one, _track(recorder, use_case, lesson, one, files, tags), numbers)
    if finished:
        finished.keep(done)
    return done


def _write_pickle(one: Trained, folder: Path) -> None:
    path = folder / one.candidate.pickle_name
    write_whole(path, lambda file: joblib.dump(one.pipeline, file))


def _track(
    recorder: Recorder,
    use_case: UseCase,
    lesson: Lesson,
    one: Trained,
    files: dict[str, bytes],
    tags: dict[str, str],
) -> Run:
    table, parts = lesson.table, lesson.parts
    return recorder.log_run(
        experiment=use_case.name,
        candidate=one.candidate.name,
        pipeline=one.pipeline,
        metrics={**one.metrics, "train_seconds": one.seconds},
        fold_scores={f"cv_{use_case.metric}_fold": one.fold_scores},
        files=files,
        training_table=table.frame,
        X=parts.X_test,
        predictions=one.pipeline.predict(parts.X_test.head(1)),
        fingerprint=table.fingerprint,
        origin=table.origin,
        parameters={
            **_settings(one),
            "seed": SEED,
            "folds": FOLDS,
            "test_share": TEST_SHARE,
            "rows_train": len(parts.X_train),
            "rows_test": len(parts.X_test),
            **lesson.stated,
        },
        tags={
            "use_case": use_case.name,
            "held_out_fingerprint": parts.fingerprint,
            **lesson.told,
            **tags,
        },
    )


def _keep(
    settings: Settings,
    use_case: UseCase,
    lesson: Lesson,
    one: Trained,
    run: Run,
    bundle: str = "",
) -> None:
    """Note the run in this folder too, in the shape in which tracking lists it."""
    noted = {
        "run_id": run.run_id,
        "candidate": one.candidate.name,
        "status": "FINISHED",
        "start_time": run.started_ms,
        "metrics": {**one.metrics, "train_seconds": one.seconds},
        "tags": {
            "use_case": use_case.name,
            "data_fingerprint": lesson.table.fingerprint,
            "held_out_fingerprint": lesson.parts.fingerprint,
            **({"bundle": bundle} if bundle else {}),
        },
        "commit": commit(settings.home),
        "fold_scores": list(one.fold_scores),
    }
    keep_run(use_case, noted, settings)


def _seal(
    use_case: UseCase,
    lesson: Lesson,
    one: Trained,
    scores_to_beat: dict[str, float],
    settings: Settings,
    origin: dict[str, str],
) -> str:
    """Export exactly, prove it on every row and beside every threshold, and seal."""
    parts = lesson.parts
    graph = to_onnx(one.pipeline, use_case.fields, use_case.target.labels)
    model = OnnxModel(graph)
    rows = parts.X_train.to_numpy(dtype=float)
    parity = check_parity(
        one.pipeline, model, np.vstack([rows, parts.X_test.to_numpy(dtype=float)])
    )
    output = model.run(rows)
    golden = rows[golden_rows(rows, output.inputs, output.prediction)]
    intervals, interval_model = intervals_to_seal(use_case, parts, one, model)
    conformal, answered = conformal_of(intervals, interval_model), model.run(golden)
    bounds = conformal.of(golden, answered.prediction) if conformal else None
    names = [*use_case.fields, *use_case.input_names]
    values = np.hstack([rows, output.inputs])
    pickled = io.BytesIO()
    joblib.dump(one.pipeline, pickled)
    documents = {
        "signature": signature(use_case, rows, training_ranges(names, values), one.pipeline),
        "reference": _reference(use_case, names, rows, output),
        "golden": {"fields": golden.tolist(), **golden_answers(answered, bounds)},
        "metrics": {
            "deciding": use_case.metric,
            "scores": one.metrics,
            "fold_scores": list(one.fold_scores),
            "baseline": scores_to_beat,
            "quality": quality_to_seal(use_case, parts, one),
            **({"calibration": one.calibration} if one.calibration else {}),
        },
        "training": _training(lesson, one, parity),
        "explanation": explanation_document(
            one.pipeline, model, rows, parts.X_test.to_numpy(dtype=float)
        ),
        "intervals": intervals,
    }
    provenance = {
        "sealed_utc": clock.stamp(),
        "commit": commit(settings.home),
        "user": user(),
        **one.spent._asdict(),
        "serving": {"bytes": len(graph), "microseconds": microseconds(model, golden)},
        "data_origin": lesson.table.origin,
        **lesson.told,
        **origin,
    }
    return seal(
        settings.bundles,
        model=graph,
        documents=documents,
        pipeline=pickled.getvalue(),
        provenance=provenance,
        interval_model=interval_model,
        card=card_of(use_case, documents, provenance),
        key=settings.signing_key,
    )


def _reference(
    use_case: UseCase, names: list[str], rows: np.ndarray, output: Output
) -> dict[str, Any]:
    """Return the profile of every field, model input and prediction, and what drift is told by."""
    values = [*np.hstack([rows, output.inputs]).T, output.prediction]
    described = reference_profile(dict(zip([*names, columns.PREDICTION], values, strict=True)))
    watched = columns.names(use_case)
    profile = Profile.learn(
        watched,
        columns.columns(use_case, watched, rows, output.prediction),
        {name: len(labels) for name, labels in columns.labels(use_case).items()},
    )
    for name, document in profile.as_documents().items():
        described[name][SEALED] = document
    return described


def _training(lesson: Lesson, one: Trained, parity: Parity) -> dict[str, Any]:
    table, parts = lesson.table, lesson.parts
    return {
        "recipe": recipe(table.fingerprint, str(lesson.stated.get("policy", ""))),
        "data_fingerprint": table.fingerprint,
        "candidate": one.candidate.name,
        "model_class": type(getattr(one.pipeline[-1], "calibrated", one.pipeline[-1])).__name__,
        "parameters": _settings(one),
        "seed": SEED,
        "folds": FOLDS,
        "rows_train": len(parts.X_train),
        "rows_test": len(parts.X_test),
        "rows_dropped": table.dropped,
        "rows_shared": parts.shared_rows,
        "target": target_to_seal(parts.y_train),
        "held_out_fingerprint": parts.fingerprint,
        **lesson.stated,
        "parity": dataclasses.asdict(parity),
        "libraries": libraries(),
    }


def _settings(one: Trained) -> dict[str, str]:
    model = one.pipeline[-1]
    parameters = getattr(model, "calibrated", model).get_params()
    return {name: str(value) for name, value in parameters.items()}

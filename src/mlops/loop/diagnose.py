"""Diagnose a model: numbers and figures for every run, and a report to read and to send.

Training measures and draws each candidate while it has it in hand, puts that into the run, and
keeps the numbers of what it seals as `models/diagnoses/<bundle>.json`. `mlops report` reads them
back; for a bundle without, it measures the sealed graph anew on the same held-out rows.

No figure is worth a run: what cannot be measured, drawn or stored is named in one line, and the
training goes on.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mlops import clock
from mlops.build import figures
from mlops.build.data import Split, write_whole
from mlops.build.diagnosis import Answer, Section, learning_curve, sections
from mlops.build.page import Facts, page
from mlops.build.training import Trained
from mlops.errors import DataError, NotTrainedError
from mlops.improve.ledger import Ledger, Version
from mlops.loop.lesson import learnt
from mlops.loop.report import Report, Silent
from mlops.loop.runs import kept_runs, standings
from mlops.package.bundle import Bundle, open_bundle
from mlops.settings import Settings, read_settings
from mlops.usecase import UseCase
from mlops.usecases import find

NUMBERS = "figures/numbers.json"

Diagnosis = dict[str, Any]
"""Sections by name, as JSON."""


class _Answers(NamedTuple):
    prediction: np.ndarray
    probabilities: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Written:
    """A report that was written."""

    use_case: str
    version: int
    bundle: str
    candidate: str
    path: str
    figures: tuple[str, ...]
    missing: tuple[str, ...]


def diagnose(use_case: UseCase, one: Trained, parts: Split, report: Report) -> Diagnosis:
    """Measure a candidate that was just trained. Names what could not be measured; never raises."""
    who = f"{use_case.name}: {one.candidate.name}"
    try:
        found = sections(use_case, _of_pipeline(use_case, one.pipeline), parts)
    except Exception as error:  # noqa: BLE001  # no diagnosis is worth a run
        report.say(f"{who}: no diagnosis, the run goes on without: {_said(error)}")
        found = {}
    found["learning_curve"] = lambda: learning_curve(use_case, one, parts)
    return _measured(found, who, report)


def drawn(use_case: UseCase, name: str, numbers: Diagnosis, report: Report) -> dict[str, bytes]:
    """Return a candidate's figures and their numbers as files for its run; never raises."""
    files = {}
    for figure in figures.names(numbers):
        title = f"{use_case.name} · {name} · {figure.replace('_', ' ')}"
        try:
            png = figures.draw(figure, use_case, numbers, title=title)
        except Exception as error:  # noqa: BLE001  # no figure is worth a run
            report.say(
                f"{use_case.name}: {name}: figure {figure} was not drawn, the run goes on without: "
                f"{_said(error)}"
            )
        else:
            files[f"figures/{figure}.png"] = png
    return {**files, NUMBERS: json.dumps(numbers).encode()}


def keep_diagnosis(
    settings: Settings, use_case: UseCase, bundle: str, numbers: Diagnosis, report: Report
) -> None:
    """Keep the numbers of a sealed model where `mlops report` finds them; never raises."""
    path = _kept(settings, bundle)
    text = json.dumps(numbers)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda file: file.write_text(text))
    except OSError as error:
        report.say(f"{use_case.name}: the diagnosis was not kept, the run goes on without: {error}")


def report(
    name: str,
    *,
    version: int | None = None,
    to: Path | None = None,
    settings: Settings | None = None,
    report: Report | None = None,
) -> Written:
    """Write the report of a registered version (the champion, unless told) as one HTML file.

    It opens without a network. Raises `NotTrainedError` where nothing is registered yet,
    `UsageError` for a version that does not exist, `BundleError` for one that cannot be opened,
    `DataError` where it would have to be measured anew and its held-out rows are no longer there.
    """
    settings = settings or read_settings()
    say = report or Silent()
    use_case = find(name)
    with Ledger(settings.state_database) as ledger:
        champion = ledger.champion(name)
        chosen = _chosen(ledger, name, version, champion)
        standing = standings(use_case, kept_runs(use_case, settings), ledger.versions(name))
    bundle = open_bundle(settings.bundles / chosen.bundle, key=settings.signing_key)
    numbers, missing = _numbers(use_case, chosen, bundle, settings, say)
    svgs: dict[str, str] = {}
    with say.steps(f"{name}: drawing", len(figures.names(numbers))) as advance:
        for figure in figures.names(numbers):
            advance(figure)
            try:
                svgs[figure] = figures.draw(figure, use_case, numbers, form="svg").decode()
            except Exception as error:  # noqa: BLE001  # the others are worth reading
                missing[figure] = f"not drawn: {_said(error)}"
                say.say(f"{name}: figure {figure} was not drawn: {_said(error)}")
    is_champion = champion is not None and champion.version == chosen.version
    text = page(
        use_case,
        Facts(
            version=chosen.version,
            candidate=chosen.candidate,
            is_champion=is_champion,
            scores=bundle.metrics["scores"],
            baseline=bundle.metrics["baseline"],
            rows_train=bundle.training["rows_train"],
            rows_test=bundle.training["rows_test"],
            written_utc=clock.stamp(),
            provenance=_provenance(chosen, bundle),
            parameters=bundle.training["parameters"],
            importance=bundle.explanation.get("importance", {}).get("fields", {}),
        ),
        standing=[one for one in standing if one["candidate"]],
        numbers=numbers,
        drawn=svgs,
        missing=missing,
    )
    path = to or settings.models / "reports" / f"{name}-version-{chosen.version}.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda file: file.write_text(text, encoding="utf-8"))
    return Written(
        name,
        chosen.version,
        chosen.bundle,
        chosen.candidate,
        str(path),
        tuple(svgs),
        tuple(missing),
    )


def _chosen(ledger: Ledger, name: str, version: int | None, champion: Version | None) -> Version:
    if version is not None:
        return ledger.version(name, version)
    versions = ledger.versions(name)
    if not versions:
        raise NotTrainedError(
            f"{name} has no registered version to report on", f"train one with: mlops train {name}"
        )
    return champion or versions[-1]


def _numbers(
    use_case: UseCase, version: Version, bundle: Bundle, settings: Settings, report: Report
) -> tuple[Diagnosis, dict[str, str]]:
    """Return what training measured, or else what can be measured of the bundle, and what lacks."""
    try:
        numbers = json.loads(_kept(settings, bundle.hash).read_bytes())
        if not isinstance(numbers, dict):
            raise TypeError  # noqa: TRY301  # as one that cannot be read
    except (OSError, ValueError, TypeError):
        who = f"{use_case.name}: version {version.version}"
        report.say(f"{who}: no diagnosis was kept beside its bundle; measuring it anew")
        parts = _held_out(use_case, bundle, settings)
        numbers = _measured(sections(use_case, bundle.model.run, parts), who, report)
        why = f"drawn while training only; to have it: mlops train {use_case.name}"
        return numbers, {"learning_curve": why}
    expected = [*_applying(use_case), "learning_curve"]
    return numbers, {name: "not measured in training" for name in expected if name not in numbers}


def _applying(use_case: UseCase) -> list[str]:
    if use_case.is_classification:
        return ["confusion_matrix", "calibration", "permutation_importance"]
    mapped = ["error_map"] if use_case.coordinates else []
    return ["predicted_vs_actual", "residuals", *mapped, "calibration", "permutation_importance"]


def _held_out(use_case: UseCase, bundle: Bundle, settings: Settings) -> Split:
    """Return the split that the bundle was trained with: other rows may be known to the model."""
    parts = learnt(bundle, use_case, settings)
    if parts is None:
        raise DataError(
            f"the data of {use_case.name} is not what bundle {bundle.hash[:12]} was trained on, "
            "so its held-out rows are not known",
            f"restore {settings.data / use_case.name}.csv, or train again: "
            f"mlops train {use_case.name}",
        )
    return parts


def _measured(found: dict[str, Section], who: str, report: Report) -> Diagnosis:
    numbers = {}
    for name, section in found.items():
        try:
            numbers[name] = section()
        except Exception as error:  # noqa: BLE001  # no figure is worth a run
            report.say(f"{who}: {name} was not measured, the run goes on without: {_said(error)}")
    return numbers


def _of_pipeline(use_case: UseCase, pipeline: Any) -> Answer:
    if not use_case.is_classification:
        return lambda rows: _Answers(pipeline.predict(rows))

    def answer(rows: np.ndarray) -> _Answers:
        probabilities = pipeline.predict_proba(rows)
        return _Answers(pipeline.classes_[probabilities.argmax(axis=1)], probabilities)

    return answer


def _provenance(version: Version, bundle: Bundle) -> dict[str, str]:
    made = bundle.training
    libraries = ", ".join(f"{name} {number}" for name, number in made["libraries"].items())
    return {
        "version": str(version.version),
        "registered": version.registered_utc,
        "sealed": str(bundle.provenance.get("sealed_utc", "unknown")),
        "bundle": bundle.hash,
        "run": version.run_id,
        "commit": str(bundle.provenance.get("commit", "unknown")),
        "user": str(bundle.provenance.get("user", "unknown")),
        "data": str(bundle.provenance.get("data_origin", "unknown")),
        "data fingerprint": made["data_fingerprint"],
        "held-out rows' fingerprint": made["held_out_fingerprint"],
        "seed, folds": f"{made['seed']}, {made['folds']}",
        "libraries": libraries,
    }


def _kept(settings: Settings, bundle: str) -> Path:
    return settings.diagnoses / f"{bundle}.json"


def _said(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__

"""Verdict: what an experiment has found so far, as the ledger, pages, commands and HTTP tell it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import apsw

from mlops import clock
from mlops.errors import LogUnavailableError
from mlops.improve.experiments import Experiment
from mlops.improve.ledger import Ledger
from mlops.improve.running import ARMS, Trial
from mlops.monitor.shadow import look
from mlops.records import Finding
from mlops.settings import Settings, read_settings
from mlops.usecase import UseCase
from mlops.usecases import USE_CASES, find

KIND = "experiment"
"""Of findings."""


def findings_of(
    experiment: Experiment, trial: Trial, behind: int, trouble: str = ""
) -> list[Finding]:
    """Return what is found of an experiment: its verdict, and in an A/B where clients went.

    A challenger that is worse is an alarm only in an A/B, where clients get its answers.
    """
    judgement = trial.judgement()
    numbers = {
        "model_version": experiment.challenger,
        "experiment": experiment.id,
        "labels": judgement.labels,
        "rows_behind": behind,
        **{
            name: value
            for name in ("mean", "low", "high")
            if math.isfinite(value := getattr(judgement, name))
        },
    }
    told = trial.outcome in ("better", "worse")
    harms = trial.outcome == "worse" and experiment.mode == "ab"
    whom = f"version {experiment.challenger} against version {experiment.champion}"
    verdict = Finding(
        KIND,
        "verdict",
        "alarm" if harms or trouble else "ok" if told else "cannot tell",
        trouble or f"{whom}: {trial.says}",
        numbers,
    )
    if experiment.mode == "shadow":
        return [verdict]
    seen = sum(sum(one.values()) for one in trial.clients)
    says = f"{seen:,} clients, evidence {trial.evidence:,.1f} that they went elsewhere"
    ratio = Finding(
        KIND,
        "sample ratio",
        "alarm" if trial.went_astray else "ok" if seen else "cannot tell",
        says,
        {
            "model_version": experiment.challenger,
            "experiment": experiment.id,
            "clients": seen,
            "evidence": trial.evidence,
        },
    )
    return [verdict, ratio]


def evidence_of(experiment: Experiment, trial: Trial) -> dict[str, Any]:
    """Return a verdict as the ledger keeps it."""
    judgement = trial.judgement()
    return {
        "experiment": experiment.id,
        "verdict": trial.outcome,
        "says": trial.says,
        "alpha": experiment.alpha,
        "labels": judgement.labels,
        "mean": judgement.mean,
        **{
            name: end if math.isfinite(end := getattr(judgement, name)) else None
            for name in ("low", "high")
        },
        "left_out": trial.left_out,
    }


def found_so_far(use_case: UseCase, experiment: Experiment, settings: Settings) -> dict[str, Any]:
    """Return the evidence of an open experiment, or that it cannot be read."""
    try:
        trial, _, _ = trial_of(use_case, experiment, settings)
    except LogUnavailableError as error:
        return {"experiment": experiment.id, "verdict": "cannot tell", "says": error.message}
    return evidence_of(experiment, trial)


def reports(name: str | None = None, *, settings: Settings | None = None) -> list[dict[str, Any]]:
    """Return the `report` of a use case, or of all. Raises `UsageError` for one that is none."""
    settings = settings or read_settings()
    asked = [find(name)] if name else USE_CASES.values()
    return [report(one, settings) for one in asked]


def report(use_case: UseCase, settings: Settings) -> dict[str, Any]:
    """Return the open experiment of a use case as JSON has it, with all that is known of it.

    Without an open one, `experiment` is null. Raises `LogUnavailableError`.
    """
    with Ledger(settings.state_database) as ledger:
        experiment = ledger.experiments.open(use_case.name)
        past = [one for one in ledger.experiments.all(use_case.name) if one.ended_utc]
    found: dict[str, Any] = {
        "use_case": use_case.name,
        "experiment": None,
        "past": [_terms(one) for one in reversed(past)],
    }
    if experiment is None:
        return found
    trial, behind, trouble = trial_of(use_case, experiment, settings)
    return {
        **found,
        "experiment": {**_terms(experiment), "share": experiment.share},
        "rows_behind": behind,
        "trouble": trouble,
        **shown(experiment, trial),
    }


def shown(experiment: Experiment, trial: Trial) -> dict[str, Any]:
    """Return a trial as JSON has it: verdict and forecast, arms, sample ratio, series."""
    judgement = trial.judgement()
    numbers = ("mean", "low", "high", "labels", "more", "days")
    return {
        "verdict": {
            "outcome": trial.outcome,
            "says": trial.says,
            **{name: _finite(getattr(judgement, name)) for name in numbers},
        },
        "now": {name: getattr(trial, name) for name in ("mean", "low", "high")},
        "arms": {
            arm: {
                "version": getattr(experiment, arm),
                "labels": trial.counts[number],
                "mean_loss": trial.losses[number] / trial.counts[number]
                if trial.counts[number]
                else None,
            }
            for number, arm in enumerate(ARMS)
        },
        "left_out": trial.left_out,
        "failed": trial.failed,
        "astray": trial.astray,
        "sample_ratio": {
            "verdict": "alarm" if trial.went_astray else "ok" if trial.clients else "cannot tell",
            "evidence": trial.evidence,
            "clients": [
                {"since": since, "share": share, **seen}
                for (since, share), seen in zip(experiment.shares, trial.clients, strict=False)
            ],
        },
        "series": [{**point._asdict(), "at": clock.iso(point.at)} for point in trial.series],
    }


def _terms(experiment: Experiment) -> dict[str, Any]:
    return {**dataclasses.asdict(experiment), "shares": [list(one) for one in experiment.shares]}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def trial_of(
    use_case: UseCase, experiment: Experiment, settings: Settings
) -> tuple[Trial, int | None, str]:
    """Return how an experiment stands, the rows it is behind (None: not begun), and its trouble.

    Raises `LogUnavailableError`.
    """
    path = settings.home / use_case.log_name / "predictions.db"
    try:
        seen = look(path, use_case.log_name, experiment.id)
    except apsw.Error as error:
        raise LogUnavailableError("what the experiment found cannot be read") from error
    if seen is None:
        return Trial.begin(experiment.mode, experiment.alpha), None, ""
    return Trial.of_json(seen[0].trial), seen[1], seen[0].trouble

"""Lessons: what a training learns from, gathered here; and what an earlier one learnt from."""

from __future__ import annotations

import contextlib
import dataclasses

import orjson
import pandas as pd

from mlops.build.data import Split, fingerprint, kept_file, prepare, read_table, split
from mlops.build.growth import Batch, Lesson, grow, lesson_of, split_grown
from mlops.build.source import Refused, read_source
from mlops.errors import DataError
from mlops.loop.check import ranges_of
from mlops.loop.prediction_log import days_ago, has_log, open_log
from mlops.package.bundle import Bundle
from mlops.settings import Settings
from mlops.usecase import Retraining, UseCase


@dataclasses.dataclass(frozen=True, slots=True)
class Gathered:
    """A lesson, and how it came together.

    `taken` counts rows by what brought them, `known` those that were there already, `broken` those
    that break a rule; `refused` names files that were left out.
    """

    lesson: Lesson
    policy: str
    taken: dict[str, int]
    known: int
    broken: int
    refused: tuple[Refused, ...]


def gather(use_case: UseCase, rules: Retraining, settings: Settings) -> Gathered:
    """Put together the data file, the growing source and what the log knows the truth of.

    Writes nothing, but the data file where there is none yet.
    """
    reference = prepare(use_case, settings.data)
    batches, refused = read_source(use_case, settings.data, *ranges_of(use_case, settings))
    batches += logged(use_case, rules, settings)
    grown = grow(use_case, reference.frame, batches)
    stated = policy(rules)
    lesson = lesson_of(use_case, reference, grown, policy=stated, weight=rules.new_row_weight)
    return Gathered(lesson, stated, dict(grown.taken), grown.known, grown.broken, tuple(refused))


def logged(use_case: UseCase, rules: Retraining, settings: Settings) -> list[Batch]:
    """Return what was asked and turned out to be so: logged inputs whose truth came since."""
    if not has_log(use_case, settings):
        return []
    since = days_ago(rules.window_days) if rules.window_days else None
    with contextlib.closing(open_log(use_case, settings)) as log:
        known = list(log.truths(since))
    if not known:
        return []
    rows = pd.DataFrame([orjson.loads(inputs) for inputs, _ in known])
    rows = rows.rename(columns={one.name: one.column for one in use_case.features})
    rows[use_case.target.column] = [actual for _, actual in known]
    return [Batch("the log", rows)]


def policy(rules: Retraining) -> str:
    """Say which rows that came are taken, and what they count for."""
    days = rules.window_days
    window = f"logged ones of the last {days:g} days only" if days else "all"
    weight = f"; each counts {rules.new_row_weight:g} times" * (rules.new_row_weight != 1)
    return f"rows that came: {window}, each once{weight}"


def learnt(bundle: Bundle, use_case: UseCase, settings: Settings) -> Split | None:
    """Return the rows that a bundle learnt from and those it did not, or None if they are gone."""
    made = bundle.training
    frame = kept_table(made["data_fingerprint"], use_case, settings)
    if frame is None:
        return None
    rows = made.get("rows_reference")
    try:
        parts = split(use_case, frame) if rows is None else split_grown(use_case, frame, int(rows))
    except (DataError, KeyError):  # a table of another declaration
        return None
    return parts if parts.fingerprint == made.get("held_out_fingerprint") else None


def kept_table(made: str, use_case: UseCase, settings: Settings) -> pd.DataFrame | None:
    """Return the table of that fingerprint if it is here: kept, or in the data file."""
    with contextlib.suppress(OSError, ValueError):  # pyarrow's own are among them
        frame = pd.read_parquet(kept_file(made, settings.data))
        if fingerprint(frame) == made:
            return frame
    try:
        table = read_table(use_case, settings.data)
    except DataError:
        return None
    return table.frame if table.fingerprint == made else None

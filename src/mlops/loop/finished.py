"""Finished candidates of a training, kept until it is through: one that dies is taken up there."""

from __future__ import annotations

import dataclasses
import uuid
from pathlib import Path
from typing import Any

import joblib

from mlops.build.data import write_whole
from mlops.build.training import Trained
from mlops.track.runs import Run
from mlops.usecase import Candidate


@dataclasses.dataclass(frozen=True, slots=True)
class Done:
    """A candidate that is through: fitted and measured, tracked, diagnosed."""

    trained: Trained
    run: Run
    diagnosis: dict[str, Any]


class Finished:
    """Candidates of a training that are done, kept in a folder in case it dies before its end.

    The folder belongs to one training: its name must say what decides the result.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def attempt(self, candidate: Candidate) -> str:
        """Return what to tag this candidate's run with, the same after a death and a new start."""
        named = self._folder / "attempt"
        if not named.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            write_whole(named, lambda file: file.write_text(uuid.uuid4().hex))
        return f"{named.read_text()}-{candidate.name}"

    def find(self, candidate: Candidate) -> Done | None:
        """Return a candidate that was done by an attempt that died, or None."""
        path = self._path(candidate.name)
        if not path.exists():
            return None
        fitted, run, diagnosis = joblib.load(path)
        return Done(Trained(candidate, **fitted), run, diagnosis)

    def keep(self, done: Done) -> None:
        """Keep one; without its declaration, which holds functions."""
        one = done.trained
        fitted = {
            field.name: getattr(one, field.name)
            for field in dataclasses.fields(one)
            if field.name != "candidate"
        }
        self._folder.mkdir(parents=True, exist_ok=True)
        content = fitted, done.run, done.diagnosis
        write_whole(self._path(one.candidate.name), lambda file: joblib.dump(content, file))

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.joblib"

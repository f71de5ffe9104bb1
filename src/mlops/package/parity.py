"""Proof that the exported graph answers as the fitted pipeline does, before anything is sealed.

Both answer every given row and every probe of `probes.py`, and the answers are compared. The graph
is exact by construction; what is left is the order in which sums are added up (1e-15), so a
difference above the tolerance is a fault of the export, never noise.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from mlops.errors import ParityError, UsageError
from mlops.package.model import OnnxModel
from mlops.package.probes import on_thresholds

CHUNK = 16_384
"""Rows answered at once: bounds the memory, and is enough for scikit-learn to get up to speed."""


@dataclasses.dataclass(frozen=True, slots=True)
class Parity:
    """What was compared, and that nothing differed by more than the tolerance.

    `largest_difference` is |difference| / max(1, |value|), of predictions (regression) or
    probabilities (classification). `ties` counts rows where the two chose different classes that
    scikit-learn itself gives the same probability, within the tolerance.
    """

    rows: int
    threshold_rows: int
    largest_difference: float
    ties: int


def check_parity(
    pipeline: Any,
    model: OnnxModel,
    rows: np.ndarray,
    *,
    tolerance: float = 1e-9,
    labels: tuple[str, ...] = (),
) -> Parity:
    """Compare the fitted pipeline with its exported graph on `rows` and on the probes they give.

    `rows` is float64 [n, fields], best the training rows: they visit every leaf. A row agrees if
    |difference| <= tolerance * max(1, |value|) for its prediction or all of its probabilities, the
    class is the same (see `Parity.ties`), and the derived model inputs are the same doubles.
    `labels` names the classes in messages; without it, the model's own do.

    Raises `ParityError` at the first row that does not, with its fields and both values.
    """
    if not len(rows):
        raise UsageError("parity was asked for no rows", "pass the training rows")
    rows = np.ascontiguousarray(rows, dtype=float)
    comparison = _Comparison(pipeline, model, tolerance, labels or model.labels)
    for start in range(0, len(rows), CHUNK):
        comparison.add(rows[start : start + CHUNK])
    threshold_rows = 0
    for probes in on_thresholds(pipeline, rows, CHUNK):
        comparison.add(probes)
        threshold_rows += len(probes)
    return Parity(len(rows), threshold_rows, comparison.largest, comparison.ties)


class _Comparison:
    """Lets both answer, chunk by chunk; raises when they disagree, else keeps by how much."""

    def __init__(
        self, pipeline: Any, model: OnnxModel, tolerance: float, labels: tuple[str, ...]
    ) -> None:
        self.pipeline, self.model, self.tolerance = pipeline, model, tolerance
        self.labels = labels
        self.largest = 0.0
        self.ties = 0

    def add(self, rows: np.ndarray) -> None:
        output = self.model.run(rows)
        derived = self.pipeline.named_steps["inputs"].transform(rows)
        self._compare(rows, self.model.inputs, derived, output.inputs, tolerance=0.0)
        if output.probabilities is None:
            expected = self.pipeline.predict(rows)[:, None]
            self._compare(
                rows, ("prediction",), expected, output.prediction[:, None], self.tolerance
            )
            return
        classes = self.pipeline.classes_
        labels = self.labels or tuple(map(str, classes))
        names = tuple(f"probability of {label}" for label in labels)
        expected = self.pipeline.predict_proba(rows)
        self._compare(rows, names, expected, output.probabilities, self.tolerance)
        chosen = np.searchsorted(classes, self.pipeline.predict(rows))
        differ = np.flatnonzero(chosen != output.prediction)
        best = np.sort(expected[differ], axis=1)[:, -2:]
        tied = best[:, -1] - best[:, 0] <= self.tolerance
        self.ties += int(tied.sum())
        if not tied.all():
            row = differ[~tied][0]
            graph = labels[output.prediction[row]]
            raise self._error(rows[row], "class", labels[chosen[row]], graph)

    def _compare(
        self,
        rows: np.ndarray,
        names: tuple[str, ...],
        expected: np.ndarray,
        found: np.ndarray,
        tolerance: float,
    ) -> None:
        """Compare values of shape [n, len(names)]."""
        difference = np.abs(expected - found) / np.maximum(1.0, np.abs(expected))
        wrong = np.argwhere(~(difference <= tolerance))  # NaN is wrong, too
        if len(wrong):
            row, column = wrong[0]
            values = float(expected[row, column]), float(found[row, column])
            apart = f" (difference {abs(values[0] - values[1]):.3g}, allowed {tolerance:g})"
            raise self._error(rows[row], names[column], *values, apart)
        self.largest = max(self.largest, float(difference.max()))

    def _error(
        self, row: np.ndarray, name: str, expected: object, found: object, apart: str = ""
    ) -> ParityError:
        fields = zip(self.model.fields, row.tolist(), strict=True)
        return ParityError(
            f"for {', '.join(f'{field}={value!r}' for field, value in fields)} the {name} is "
            f"{expected} in scikit-learn and {found} in the graph{apart}",
            "the export is at fault, so nothing is sealed: report it with this row, or choose "
            "another candidate",
        )

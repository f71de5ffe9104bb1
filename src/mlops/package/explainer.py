"""Why an answer is what it is: the sealed document, and the explainer that serving makes of it.

What is explained is what the answer contains: the number of a regression, the probability of each
class of a classification. Contributions are Shapley values (`shapley.py`); with the base value
they add up to the answer of the ONNX graph, and where they do not, nothing is sealed or answered.
By the kind of model:

    tree_paths   trees whose sum or mean is the answer: what is not known is averaged over the
                 training rows, along the paths of the trees; the base value is the mean prediction
                 of the training rows
    linear       a linear regression: weight x (input - its mean over the training rows)
    coalitions   any other model, of few fields: what is not known is taken from
                 sealed background rows, for each set of known fields

The first two share an answer among the model's inputs. **What a derived input contributes is split
equally between the fields that it is computed from**: it is not known before all of them are, and
nothing says which of them to thank. The last asks of the fields themselves.
"""

from __future__ import annotations

import base64
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from mlops.errors import BundleError
from mlops.package import shapley, trees
from mlops.package.model import OnnxModel, Output

TOLERANCE = 1e-6
"""Of |sum - answer| / max(1, |answer|)."""


class Explained(NamedTuple):
    """Contributions to the answers to n rows, which have k outputs: a number, or a class each."""

    output: Output
    value: np.ndarray
    """float64 [n, k]: what is explained, as the graph answers it."""
    base: np.ndarray
    """float64 [k]"""
    contributions: np.ndarray
    """float64 [n, k, fields]"""
    derived: np.ndarray | None
    """float64 [n, k, inputs], before derived inputs were split; None for `coalitions`."""


class Explainer:
    """Explains the answers of one bundle. Shared by threads; makes its tables at the first use."""

    def __init__(self, document: Mapping[str, Any], model: OnnxModel) -> None:
        self.method: str = document["method"]
        self.importance: dict[str, Any] = document.get("importance", {})
        self._document = document
        self._model = model

    def explain(self, rows: np.ndarray) -> Explained:
        """Explain the answers to rows, float64 [n, fields], validated by the caller.

        Raises `BundleError` if contributions and answer do not add up.
        """
        output = self._model.run(rows)
        value = explained(output)
        if self.method == "coalitions":
            background = np.array(self._document["background"], dtype=float)
            base = explained(self._model.run(background)).mean(axis=0)
            derived = None
            ask = functools.partial(shapley.coalitions, lambda r: explained(self._model.run(r)))
            contributions = np.array([ask(row, background) for row in rows])
        else:
            base, derived = self._of_inputs(output.inputs)
            contributions = derived @ self._shares
        off = np.abs(contributions.sum(axis=2) + base - value) / np.maximum(1, np.abs(value))
        if not off.max(initial=0.0) <= TOLERANCE:
            raise BundleError(
                f"base value and contributions differ from the answer by {off.max():.3g}",
                "train again: the bundle's explanation is not that of its model",
            )
        return Explained(output, value, base, contributions, derived)

    def _of_inputs(self, inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the base value [k] and contributions of the model's inputs [n, k, inputs]."""
        scaled = (inputs - self._document["shift"]) / np.array(self._document["scale"])
        if self.method == "linear":
            weights = np.array(self._document["weights"])
            return np.array(self._document["base"]), (scaled * weights)[:, None]
        forest, explain = self._trees
        seen = shapley.as_compared(forest, scaled)
        return explain.base, np.array([explain.contributions(row) for row in seen])

    @functools.cached_property
    def _trees(self) -> tuple[trees.Forest, shapley.TreeShapley]:
        kept = self._document["trees"]
        arrays: dict[str, Any] = {name: _array(kept[name]) for name in ARRAYS}
        forest = trees.Forest(
            **arrays,
            tree=np.empty(0, np.int64),  # which tree a leaf is of plays no part
            float32=kept["float32"],
            boosted=kept["boosted"],
        )
        inputs = len(self._model.inputs)
        return forest, shapley.TreeShapley(
            shapley.paths(forest, _array(kept["cover"]), inputs), inputs
        )

    @functools.cached_property
    def _shares(self) -> np.ndarray:
        """Share of each field in each model input, float64 [inputs, fields]: rows sum to 1."""
        fields = self._model.fields
        shares = np.zeros((len(self._document["parts"]), len(fields)))
        for number, parts in enumerate(self._document["parts"]):
            for name in parts:
                shares[number, fields.index(name)] += 1 / len(parts)
        return shares


ARRAYS = ("feature", "threshold", "left", "right", "leaves", "roots")
"""What of a `Forest` is sealed, as flat arrays."""


def explainer_of(document: Mapping[str, Any], model: OnnxModel) -> Explainer | None:
    """Return what explains a bundle's answers, if its document has what that takes."""
    return Explainer(document, model) if document.get("method", "none") != "none" else None


def explained(output: Output) -> np.ndarray:
    """Return what is explained of answers, float64 [n, k]."""
    if output.probabilities is not None:
        return output.probabilities
    return np.asarray(output.prediction, dtype=float)[:, None]


def _array(packed: Mapping[str, Any]) -> np.ndarray:
    array = np.frombuffer(base64.b64decode(packed["base64"]), dtype=packed["type"])
    kind = np.int64 if array.dtype.kind == "i" else np.float64
    return array.reshape(packed["shape"]).astype(kind)

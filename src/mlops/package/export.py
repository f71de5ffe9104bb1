"""The fitted pipeline as an ONNX graph that gives the same answers, in double precision.

    fields [N, f] -> inputs [N, i] -> (scale) -> estimator -> prediction [N], probabilities [N, K]

Every step is written down in the operations, the order and the precision in which scikit-learn
computes it; `parity.py` proves on data that nothing was lost. Converters that round to float32
move rows across the thresholds of trees, and such a row is answered from another leaf.

Missing values: NaN never reaches the graph, the API refuses it, so no node looks for it.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from mlops.errors import UsageError
from mlops.package import features, trees
from mlops.package.graph import Graph, Value
from mlops.usecase import Ratio


def to_onnx(pipeline: Any, fields: tuple[str, ...], labels: tuple[str, ...] = ()) -> bytes:
    """Return the serialized graph of a fitted pipeline; the same pipeline gives the same bytes.

    The pipeline has the steps `inputs` (`.inputs`: names of fields and `Ratio`s), perhaps `scale`
    (a `StandardScaler`), and `model`. `labels` names the classes by their number.

    Input: `fields`, double [N, len(fields)], in that order. Outputs: `inputs`, double
    [N, model inputs], before scaling; `prediction`, double [N], or for a classifier the number of
    the class, int64 [N]; `probabilities`, double [N, K], of a classifier only. The graph's
    metadata holds the names of `fields`, `inputs` and `labels` as JSON lists.

    Raises `UsageError` for what has no exact export, naming it and what has.
    """
    steps = dict(pipeline.named_steps)
    items, scaler, model = steps.pop("inputs").inputs, steps.pop("scale", None), steps.pop("model")
    if steps:
        raise UsageError(
            f"a pipeline with the step {next(iter(steps))!r} has no ONNX export",
            "keep the steps to inputs, scale and model",
        )
    _check_labels(model, labels)
    graph = Graph()
    inputs = _derive(graph, items, fields)
    _estimate(graph, model, inputs if scaler is None else features.transform(graph, scaler, inputs))
    outputs: dict[str, Value] = {"inputs": (np.float64, len(items)), "prediction": (np.float64,)}
    if hasattr(model, "classes_"):
        outputs["prediction"] = (np.int64,)
        outputs["probabilities"] = (np.float64, len(model.classes_))
    names = [item if isinstance(item, str) else item.name for item in items]
    metadata: dict[str, Any] = {"fields": fields, "inputs": names, "labels": labels}
    if graph.at_once:
        metadata["at_once"] = graph.at_once
    return graph.serialize(
        inputs={"fields": (np.float64, len(fields))},
        outputs=outputs,
        metadata={key: json.dumps(value) for key, value in metadata.items()},
    )


def _check_labels(model: Any, labels: tuple[str, ...]) -> None:
    """A class's number must be its place in `labels`, which fails if training missed a class."""
    known = model.classes_.tolist() if hasattr(model, "classes_") else []
    if labels and known not in (list(range(len(labels))), list(labels)):
        raise UsageError(
            f"the model knows the classes {known}, the labels are {list(labels)}",
            "train on rows of every class, numbered as the labels are",
        )


def _derive(graph: Graph, items: Sequence[str | Ratio], fields: tuple[str, ...]) -> str:
    """Fields to model inputs: each a numerator over a denominator, which is 1 for a plain field."""
    numerators = [item if isinstance(item, str) else item.numerator for item in items]
    denominators = [item if isinstance(item, str) else item.denominator for item in items]
    unknown = sorted({*numerators, *denominators} - {*fields})
    if unknown:
        raise UsageError(f"model inputs need {', '.join(unknown)}: no such field")
    plain = np.array([[isinstance(item, str) for item in items]])

    def columns(names: list[str], output: str = "") -> str:
        places = np.array([fields.index(name) for name in names])
        return graph.add("Gather", "fields", places, axis=1, output=output)

    if plain.all():
        return columns(numerators, output="inputs")
    divisor = columns(denominators)
    unity = graph.add("Or", graph.add("Equal", divisor, np.array(0.0)), plain)
    divisor = graph.add("Where", unity, np.array(1.0), divisor)
    return graph.add("Div", columns(numerators), divisor, output="inputs")


LINEAR_REGRESSORS = {"LinearModel", "LinearRegression", "Ridge"}
"""Names of classes or base classes; `LinearModel` is scikit-learn's base of Lasso and the like."""

LINEAR_CLASSIFIERS = {"LogisticRegression", "LinearDiscriminantAnalysis"}

LEAST_PROBABILITY = 1e-6
"""Added before the logarithm, as in `build/calibration.py`."""

ENSEMBLES = {"VotingRegressor", "VotingClassifier", "StackingRegressor"}
"""Of members that have an export themselves, each perhaps behind features of its own."""

OURS = {"Distilled", "KernelRegressor"}
"""Estimators of this project."""


def _estimate(graph: Graph, model: Any, inputs: str) -> None:
    """Add the estimator and its outputs, `prediction` and for a classifier `probabilities`."""
    if hasattr(model, "classes_"):
        decides = _classify(graph, model, inputs, output="probabilities")[1]
        graph.add("ArgMax", decides, axis=1, keepdims=0, output="prediction")
    else:
        _regress(graph, model, inputs, output="prediction")


def _regress(graph: Graph, model: Any, inputs: str, output: str = "") -> str:
    """Add a regressor; return the name of its answers [N]."""
    model, inputs = _behind(graph, model, inputs)
    if _is_a(model, {"Distilled"}):
        return _regress(graph, model.student_, inputs, output)
    if _is_a(model, {"KernelRegressor"}):
        return features.kernels(graph, model, inputs, output)
    forest = trees.read(model)
    if forest is not None:
        return _tree_values(graph, forest, inputs, output)
    if _is_a(model, LINEAR_REGRESSORS) and model.coef_.ndim == 1:
        product = graph.add("MatMul", inputs, model.coef_)
        return graph.add("Add", product, np.array(model.intercept_, dtype=float), output=output)
    if _is_a(model, {"VotingRegressor"}):
        answers = [_regress(graph, one, inputs) for one in model.estimators_]
        return _average(graph, answers, model, output)
    if _is_a(model, {"StackingRegressor"}):
        answers = [_regress(graph, one, inputs) for one in model.estimators_]
        columns = [graph.add("Unsqueeze", one, np.array([1])) for one in answers]
        return _regress(graph, *_stacked(graph, model, columns, inputs), output)
    raise _no_export(model)


def _classify(graph: Graph, model: Any, inputs: str, output: str = "") -> tuple[str, str]:
    """Add a classifier; return its probabilities [N, K], and what is greatest for its class."""
    if _is_a(model, {"Calibrated"}):
        probabilities, decides = _classify(graph, model.calibrated, inputs)
        return _tempered(graph, probabilities, model.temperature, output), decides
    forest = trees.read(model)
    if forest is not None:
        return _tree_classes(graph, forest, inputs, output)
    if _is_a(model, LINEAR_CLASSIFIERS):
        return _linear_classifier(graph, model, inputs, output)
    if _is_a(model, {"VotingClassifier"}):
        if model.voting != "soft":
            raise UsageError(
                'VotingClassifier with voting="hard" has no exact ONNX export',
                'votes are no probabilities: use voting="soft"',
            )
        members = [_behind(graph, one, inputs) for one in model.estimators_]
        answers = [_classify(graph, *one)[0] for one in members]
        averaged = _average(graph, answers, model, output)
        return averaged, averaged
    raise _no_export(model)


def _is_a(model: Any, names: set[str]) -> bool:
    return any(base.__name__ in names for base in type(model).__mro__)


def _no_export(model: Any) -> UsageError:
    supported = LINEAR_REGRESSORS | LINEAR_CLASSIFIERS | ENSEMBLES | OURS | set(trees.READERS)
    return UsageError(
        f"{type(model).__name__} has no exact ONNX export",
        f"use one of {', '.join(sorted(supported))}",
    )


def _behind(graph: Graph, member: Any, inputs: str) -> tuple[Any, str]:
    """Return an estimator and what it sees: behind the steps of a pipeline, if it is one.

    Raises `UsageError` for a step that has no export.
    """
    if not hasattr(member, "named_steps"):
        return member, inputs
    *before, (_, model) = member.steps
    for _, step in before:
        inputs = features.transform(graph, step, inputs)
    return model, inputs


def _average(graph: Graph, answers: list[str], model: Any, output: str) -> str:
    """Average as numpy does: the weighted sum over the sum of weights."""
    kept = [one for _, one in model.estimators]
    weights = model.weights if model.weights is not None else [1.0] * len(kept)
    weights = [float(w) for w, one in zip(weights, kept, strict=True) if not isinstance(one, str)]
    terms = [
        one if weight == 1 else graph.add("Mul", one, np.array(weight))
        for one, weight in zip(answers, weights, strict=True)
    ]
    total = functools.reduce(lambda a, b: graph.add("Add", a, b), terms)
    return graph.add("Div", total, np.array(sum(weights)), output=output)


def _stacked(graph: Graph, model: Any, columns: list[str], inputs: str) -> tuple[Any, str]:
    """Return the last estimator of a stack, and what it sees: the members' answers [N, members].

    Raises `UsageError` unless it is linear: on thresholds over answers nothing could be proven.
    """
    last = model.final_estimator_
    if not _is_a(last, LINEAR_REGRESSORS):
        raise UsageError(
            f"{type(model).__name__} with the final estimator {type(last).__name__} has no exact "
            "ONNX export",
            f"use one of {', '.join(sorted(LINEAR_REGRESSORS))}",
        )
    seen = [*columns, inputs] if model.passthrough else columns
    return last, graph.add("Concat", *seen, axis=1)


def _linear_classifier(graph: Graph, model: Any, inputs: str, output: str) -> tuple[str, str]:
    coefficients, intercepts = model.coef_, model.intercept_
    if len(coefficients) == 1:  # of two classes, the first scores zero: see _from_scores
        coefficients = np.vstack([np.zeros_like(coefficients), coefficients])
        intercepts = np.concatenate([[0.0], intercepts])
    product = graph.add("MatMul", inputs, coefficients.T)
    return _from_scores(graph, graph.add("Add", product, intercepts), output)


def _from_scores(graph: Graph, scores: str, output: str) -> tuple[str, str]:
    """Scores to probabilities; the scores themselves decide the class.

    The sigmoid of a score is the softmax of (0, score), and score > 0 is what ArgMax finds there:
    two classes need no operations of their own.
    """
    return graph.add("Softmax", scores, axis=1, output=output), scores


def _tempered(graph: Graph, probabilities: str, temperature: float, output: str) -> str:
    """Scale probabilities by a temperature, as `build/calibration.py` does."""
    scores = graph.add("Log", graph.add("Add", probabilities, np.array(LEAST_PROBABILITY)))
    scaled = graph.add("Div", scores, np.array(temperature))
    return graph.add("Softmax", scaled, axis=1, output=output)


def _as_trees_see(graph: Graph, forest: trees.Forest, inputs: str) -> str:
    if not forest.float32:
        return inputs
    return graph.add("Cast", graph.add("Cast", inputs, to=np.float32), to=np.float64)


def _tree_values(graph: Graph, forest: trees.Forest, inputs: str, output: str) -> str:
    inputs = _as_trees_see(graph, forest, inputs)
    target = np.zeros_like(forest.tree)
    answer = graph.trees(forest, inputs, forest.leaves, target, mean=not forest.boosted)
    if forest.link == "exp":
        answer = graph.add("Exp", answer)
    return graph.add("Squeeze", answer, np.array([1]), output=output)


def _tree_classes(graph: Graph, forest: trees.Forest, inputs: str, output: str) -> tuple[str, str]:
    inputs = _as_trees_see(graph, forest, inputs)
    if forest.leaves.ndim == 2:
        return _class_trees(graph, forest, inputs, output)
    turn = forest.tree % forest.scores if forest.scores > 1 else np.ones_like(forest.tree)
    return _from_scores(graph, graph.trees(forest, inputs, forest.leaves, turn), output)


def _class_trees(graph: Graph, forest: trees.Forest, inputs: str, output: str) -> tuple[str, str]:
    """Mean of the trees' class probabilities.

    A leaf of `TreeEnsemble` holds one number, these hold one a class. So each tree answers with
    the number of its leaf, and the probabilities are looked up in a table beside the trees: as
    exact as a copy of all trees for each class, and a fraction of its size.
    """
    number = np.arange(len(forest.leaves), dtype=float)
    leaf = graph.add("Cast", graph.trees(forest, inputs, number, forest.tree), to=np.int64)
    each = graph.add("Gather", forest.leaves, leaf, axis=0)  # [N, trees, classes]
    total = graph.add("ReduceSum", each, np.array([1]), keepdims=0)
    count = np.array(float(len(forest.roots)))
    probabilities = graph.add("Div", total, count, output=output)
    return probabilities, probabilities

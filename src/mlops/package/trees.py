"""Tree ensembles as flat arrays, read off fitted scikit-learn and LightGBM estimators.

A forest is a list of questions "is this model input <= this threshold?", each with two ways on:
to another question or to a leaf. All trees lie in the same arrays, which is the form of ONNX's
`TreeEnsemble` and lets numpy walk all rows down a tree at once. Nothing is approximated: the
thresholds and leaves are the doubles the estimator itself predicts with. What cannot be said in
these arrays (categorical splits, linear leaves, ...) is refused by name.

NaN never gets here, as the API and the data checks refuse it, so the ways that the libraries have
learnt for missing values are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np

from mlops.errors import UsageError

Link = Literal["identity", "exp", "softmax"]

Tree = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""One tree: the first five arrays of a `Forest`, numbered within the tree."""


class Forest(NamedTuple):
    """All trees of an ensemble; the answer is their mean or, when `boosted`, their sum.

    Boosted trees add to `scores` scores in turn (tree t to score t % scores), to which `link` is
    applied; one score under `softmax` is the second of two, the first being zero. Other trees
    answer with a value, or with the probability of each class. `float32`: inputs are rounded to
    float32 before they are compared with the (double) thresholds.
    """

    feature: np.ndarray  # int64 [nodes], which model input is asked about
    threshold: np.ndarray  # float64 [nodes]
    left: np.ndarray  # int64 [nodes], where input <= threshold leads: a node, or leaf ~left
    right: np.ndarray  # int64 [nodes], where it leads otherwise
    leaves: np.ndarray  # float64 [leaves], or [leaves, classes]
    roots: np.ndarray  # int64 [trees], the first node of each
    tree: np.ndarray  # int64 [leaves], the tree that each leaf belongs to
    float32: bool = False
    boosted: bool = False
    scores: int = 1
    link: Link = "identity"


def read(model: Any) -> Forest | None:
    """Return the trees of a fitted estimator; None if it is not one of `READERS`.

    Raises `UsageError` for a tree ensemble that uses what a `Forest` cannot say.
    """
    for base in type(model).__mro__:
        if base.__name__ in READERS:
            return READERS[base.__name__](model)
    return None


def within(model: Any) -> Iterator[tuple[Any, Forest]]:
    """Yield all trees of an estimator, or of the members of an ensemble of estimators.

    Each with the scaler that stands before it there, or None. Trees that ask about features which
    the estimator derives for itself are left out: their thresholds are not of the inputs.
    """
    model, scaler = getattr(model, "calibrated", model), None
    if hasattr(model, "named_steps"):
        *before, (_, model) = model.steps
        if len(before) > 1 or any(type(step).__name__ != "StandardScaler" for _, step in before):
            return
        scaler = before[0][1] if before else None
    forest = read(model)
    if forest is not None:
        yield scaler, forest
    elif hasattr(model, "named_estimators_"):
        for member in model.estimators_:
            yield from within(member)


def _read_scikit_learn(model: Any) -> Forest:
    if model.n_outputs_ != 1:
        raise _cannot_say(model, f"{model.n_outputs_} targets at once", "train one model a target")
    values = slice(None) if hasattr(model, "classes_") else 0
    return _join(
        (
            _flat(
                tree.children_left < 0,
                tree.feature,
                tree.threshold,
                tree.children_left,
                tree.children_right,
                tree.value[:, 0, values],
            )
            for tree in (member.tree_ for member in getattr(model, "estimators_", (model,)))
        ),
        float32=True,
    )


def _read_dummy(model: Any) -> Forest:
    """A constant is a tree that is one leaf."""
    if model.strategy in ("stratified", "uniform"):
        raise _cannot_say(model, f"strategy={model.strategy!r} (random)", 'use strategy="prior"')
    nothing = np.zeros((1, 1))  # a dummy looks at how many rows there are, not at what they hold
    answer = getattr(model, "predict_proba", model.predict)(nothing)
    return _join([_lone_leaf(np.asarray(answer, dtype=float))])


def _read_histogram_boosting(model: Any) -> Forest:
    if model.is_categorical_ is not None:
        raise _cannot_say(model, "categorical_features", "encode them as numbers")
    # scikit-learn has no public name for what a fitted boosting consists of.
    rounds, start = model._predictors, model._baseline_prediction  # noqa: SLF001
    trees = [
        _flat(
            node["is_leaf"] == 1,
            node["feature_idx"],
            node["num_threshold"],
            node["left"],
            node["right"],
            node["value"],
        )
        for node in (predictor.nodes for trees in rounds for predictor in trees)
    ]
    # The sum starts from a constant, as scikit-learn's does: a first round of lone leaves.
    first = [_lone_leaf(value[None]) for value in start.ravel()]
    links: dict[str, Link] = {"log_loss": "softmax", "poisson": "exp", "gamma": "exp"}
    link = links.get(model.loss, "identity")
    return _join(first + trees, boosted=True, scores=start.size, link=link)


_LIGHTGBM_LINKS: dict[str, Link] = {
    **dict.fromkeys(
        ("regression", "regression_l1", "huber", "fair", "quantile", "mape"), "identity"
    ),
    **dict.fromkeys(("poisson", "gamma", "tweedie"), "exp"),
    **dict.fromkeys(("binary", "multiclass"), "softmax"),
}


def _read_lightgbm(model: Any) -> Forest:
    """Read the text in which LightGBM saves a model: numbers with 17 digits, that is, exactly."""
    header, *sections = model.booster_.model_to_string().split("\nTree=")
    settings = _settings(header)
    objective, *options = settings.get("objective", "custom").split()
    link = _LIGHTGBM_LINKS.get(objective)
    unusual = {option for option in options if option.startswith(("sqrt", "sigmoid:"))}
    if link is None or unusual - {"sigmoid:1"}:
        raise _cannot_say(model, f"objective={settings.get('objective')!r}", "use a built-in one")
    if "average_output" in header.split():
        raise _cannot_say(model, 'boosting_type="rf"', "use RandomForestRegressor or -Classifier")
    return _join(
        (_lightgbm_tree(model, _settings(section)) for section in sections),
        boosted=True,
        scores=int(settings["num_tree_per_iteration"]),
        link=link,
    )


def _settings(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def _lightgbm_tree(model: Any, settings: dict[str, str]) -> Tree:
    if settings["num_cat"] != "0" or settings["is_linear"] != "0":
        raise _cannot_say(model, "categorical splits or linear leaves", "turn them off")

    def numbers(name: str, kind: type) -> np.ndarray:
        return np.array(settings[name].split(), dtype=kind)

    # Two bits tell how missing values are found; 1 means that zeros count as missing.
    if np.any((numbers("decision_type", int) >> 2) & 3 == 1):
        raise _cannot_say(model, "zero_as_missing", "turn it off")
    threshold = numbers("threshold", float)
    # LightGBM takes every |input| <= 1e-35 (as a float32) for zero. Thresholds in that range are
    # moved to the end that gives the same answer for all doubles.
    zero = float(np.float32(1e-35))
    threshold[(threshold >= 0) & (threshold <= zero)] = zero
    threshold[(threshold < 0) & (threshold >= -zero)] = np.nextafter(-zero, -np.inf)
    return (
        numbers("split_feature", np.int64),
        threshold,
        numbers("left_child", np.int64),
        numbers("right_child", np.int64),
        numbers("leaf_value", float),
    )


def _flat(
    is_leaf: np.ndarray,
    feature: np.ndarray,
    threshold: np.ndarray,
    left: np.ndarray,
    right: np.ndarray,
    value: np.ndarray,
) -> Tree:
    """Number inner nodes and leaves apart; all arrays have an entry for each of either."""
    inner = ~is_leaf
    number = np.where(is_leaf, -np.cumsum(is_leaf), np.cumsum(inner) - 1)  # ~leaf == -(leaf + 1)
    return (
        feature[inner].astype(np.int64),
        threshold[inner].astype(float),
        number[left[inner].astype(np.int64)],
        number[right[inner].astype(np.int64)],
        value[is_leaf].astype(float),
    )


def _lone_leaf(value: np.ndarray) -> Tree:
    """One leaf [1] or [1, classes]; both ways from a question of no consequence lead to it."""
    leaf = np.array([~0])
    return np.array([0]), np.array([np.inf]), leaf, leaf, value


def _join(trees: Iterable[Tree], **how: Any) -> Forest:
    """Lay the trees behind each other, renumbering nodes and leaves."""
    trees = [tree if len(tree[0]) else _lone_leaf(tree[-1]) for tree in trees]
    features, thresholds, lefts, rights, leaves = zip(*trees, strict=True)
    nodes_before = np.cumsum([0, *map(len, features[:-1])])
    leaves_before = np.cumsum([0, *map(len, leaves[:-1])])

    def renumbered(ways: tuple[np.ndarray, ...]) -> np.ndarray:
        return np.concatenate(
            [
                np.where(way < 0, way - leaf, way + node)
                for way, node, leaf in zip(ways, nodes_before, leaves_before, strict=True)
            ]
        )

    return Forest(
        np.concatenate(features),
        np.concatenate(thresholds),
        renumbered(lefts),
        renumbered(rights),
        np.concatenate(leaves),
        roots=nodes_before,
        tree=np.repeat(np.arange(len(trees)), [len(values) for values in leaves]),
        **how,
    )


def _cannot_say(model: Any, what: str, fix: str) -> UsageError:
    return UsageError(f"{type(model).__name__} with {what} has no exact ONNX export", fix)


READERS: dict[str, Callable[[Any], Forest]] = {
    "DecisionTreeRegressor": _read_scikit_learn,
    "DecisionTreeClassifier": _read_scikit_learn,
    "ExtraTreesRegressor": _read_scikit_learn,
    "ExtraTreesClassifier": _read_scikit_learn,
    "RandomForestRegressor": _read_scikit_learn,
    "RandomForestClassifier": _read_scikit_learn,
    "HistGradientBoostingRegressor": _read_histogram_boosting,
    "HistGradientBoostingClassifier": _read_histogram_boosting,
    "LGBMRegressor": _read_lightgbm,
    "LGBMClassifier": _read_lightgbm,
    "DummyRegressor": _read_dummy,
    "DummyClassifier": _read_dummy,
}
"""How to read an estimator, by the name of its class. By name, so that LightGBM may be absent."""

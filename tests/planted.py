"""Models made bad on purpose: the champion's graph with operations added behind its answer."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pandas as pd
from onnx import helper, numpy_helper
from promotions import World

from mlops.build.data import split
from mlops.improve.ledger import Ledger, Version
from mlops.package.bundle import golden_answers
from mlops.package.model import OnnxModel
from mlops.usecases.housing import HOUSING

INCOME, LATITUDE, LONGITUDE = (
    HOUSING.fields.index(name) for name in ("median_income", "latitude", "longitude")
)


class Rewired:
    """The champion's graph, with operations added behind its answer."""

    def __init__(self, model: bytes) -> None:
        self.proto = onnx.load_from_string(model)
        self.graph = self.proto.graph
        for node in self.graph.node:
            node.output[:] = ["known" if name == "prediction" else name for name in node.output]

    def constant(self, values: Any) -> str:
        name = f"planted_{len(self.graph.initializer)}"
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def add(self, operation: str, *inputs: Any, **how: Any) -> str:
        names = [one if isinstance(one, str) else self.constant(one) for one in inputs]
        output = f"planted_node_{len(self.graph.node)}"
        self.graph.node.append(helper.make_node(operation, names, [output], **how))
        return output

    def field(self, place: int) -> str:
        return self.add("Gather", "fields", np.array(place), axis=1)

    def where(self, condition: str, yes: Any, no: Any) -> str:
        return self.add("Where", condition, yes, no)

    def answering(self, answer: str) -> bytes:
        self.graph.node.append(helper.make_node("Identity", [answer], ["prediction"]))
        return bytes(self.proto.SerializeToString())


Wire = Callable[[Rewired], str]
"""Adds a fault, and returns the name of the answer that has it."""
Change = Callable[[dict[str, Any]], Any]
"""Changes the documents of a bundle before they are sealed."""


@functools.cache
def held_out() -> tuple[pd.DataFrame, np.ndarray]:
    parts = split(HOUSING, HOUSING.load().table)
    return parts.X_test, parts.y_test


def plant(world: World, wire: Wire, change: Change | None = None) -> Version:
    """Register what `wire` makes of the first champion, with its own golden answers and scores."""
    rows, actual = held_out()

    def documents(sealed: dict[str, Any]) -> None:
        graph = Rewired((world.bundle("housing", 1) / "model.onnx").read_bytes())
        sealed["model"] = graph.answering(wire(graph))
        model = OnnxModel(sealed["model"])
        golden = model.run(np.array(sealed["golden"]["fields"]))
        sealed["golden"].update(golden_answers(golden))
        errors = model.run(rows.to_numpy(dtype=float)).prediction - actual
        if np.isfinite(errors).all():
            score = 1 - np.mean(errors**2) / np.var(actual)
            sealed["metrics"]["scores"]["r2_score"] = float(score)
        if change:
            change(sealed)

    return world.register("housing", documents)


def as_it_is(graph: Rewired) -> str:
    return "known"


# --- bad for everybody


def constant(graph: Rewired) -> str:
    return graph.add("Add", graph.add("Mul", "known", np.array(0.0)), np.array(2.5))


def a_tenth_too_low(graph: Rewired) -> str:
    return graph.add("Mul", "known", np.array(0.9))


def slow(graph: Rewired) -> str:
    mean = graph.add("ReduceMean", "known", keepdims=0)
    waves = graph.add("Sin", graph.add("Mul", mean, np.ones(300_000)))
    nothing = graph.add("Mul", graph.add("ReduceSum", waves, keepdims=0), np.array(0.0))
    return graph.add("Add", "known", nothing)


def forgetful(sealed: dict[str, Any]) -> None:
    sealed["golden"]["prediction"][3] += 1e-6


# --- good for every row of the census, and bad for a place that it does not know


def off(graph: Rewired, place: int) -> str:
    """True for each row whose degree has more than the two decimals of the census."""
    hundreds = graph.add("Mul", graph.field(place), np.array(100.0))
    off = graph.add("Abs", graph.add("Sub", hundreds, graph.add("Round", hundreds)))
    return graph.add("Greater", off, np.array(1e-6))


def elsewhere(graph: Rewired) -> str:
    """True for each row that is off the grid of the census both ways: no gate asks such a row."""
    return graph.add("And", off(graph, LATITUDE), off(graph, LONGITUDE))


def raises_elsewhere(graph: Rewired) -> str:
    beyond = graph.add("Cast", elsewhere(graph), to=onnx.TensorProto.INT64)
    return graph.add("Add", "known", graph.add("Gather", np.array([0.0]), beyond, axis=0))


def no_number_elsewhere(graph: Rewired) -> str:
    return graph.where(elsewhere(graph), np.array(np.nan), "known")


def errs_elsewhere(graph: Rewired) -> str:
    return graph.where(elsewhere(graph), graph.add("Add", "known", np.array(1.0)), "known")


def slow_elsewhere(graph: Rewired) -> str:
    """Its loop goes round once for each hundred thousand waves; on the grid, not at all."""
    there = graph.add("Cast", elsewhere(graph), to=onnx.TensorProto.INT64)
    waves = graph.add("Mul", graph.add("ReduceMax", there, keepdims=0), np.array(300_000))
    length = graph.add("Reshape", waves, np.array([1]))
    drawn = graph.add("ConstantOfShape", length, value=helper.make_tensor("one", 11, [1], [1.0]))
    total = graph.add("ReduceSum", graph.add("Sin", drawn), keepdims=0)
    return graph.add("Add", "known", graph.add("Mul", total, np.array(0.0)))


DICE = 26.0
"""A seed with which the first eight throws are 0.3 and more."""


def gambles(graph: Rewired) -> str:
    """Right when it is opened, and off by 1 in one run of three: its dice begin anew each time."""
    dice = graph.add("RandomUniform", shape=[1], seed=DICE, dtype=onnx.TensorProto.DOUBLE)
    fallen = graph.add("Cast", graph.add("Less", dice, np.array(0.3)), to=onnx.TensorProto.DOUBLE)
    return graph.add("Add", "known", fallen)


def another(sealed: dict[str, Any]) -> None:
    """Nothing is bad about it, but it is not the champion's own bundle."""
    sealed["training"]["candidate"] = "Planted"


def back_to(world: World, number: int) -> None:
    """Make an earlier champion the champion again, for whatever comes next."""
    with Ledger(world.settings.state_database) as ledger:
        now = ledger.champion("housing")
        version = ledger.version("housing", number)
        ledger.promote(version, expected=now.version, reason="back", evidence=[], action="rollback")

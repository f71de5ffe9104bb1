"""Bad models on purpose: real graphs, honest but for one fault, each refused by its gate."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pytest
from conftest import copy_project
from onnx import helper, numpy_helper
from promotions import World, refusing, world_in

from mlops.build.data import split
from mlops.errors import BundleError, GateError
from mlops.improve.gates import (
    GATES,
    beats_baseline,
    fairness,
    golden_rows,
    no_slice_worse,
    not_worse_than_champion,
    parity,
    same_signature,
    within_budget,
    withstands_drift,
)
from mlops.improve.ledger import Ledger, Version
from mlops.package.bundle import golden_answers
from mlops.package.model import OnnxModel
from mlops.usecases import USE_CASES

HOUSING = USE_CASES["housing"]
INCOME, LONGITUDE = (HOUSING.fields.index(name) for name in ("median_income", "longitude"))


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


@pytest.fixture(scope="module")
def world(trained, tmp_path_factory) -> Iterator[World]:
    """One project for all: what is refused leaves no trace but versions and lines."""
    with pytest.MonkeyPatch.context() as patch:
        yield world_in(copy_project(trained, tmp_path_factory.mktemp("bad") / "home"), patch)


@functools.cache
def held_out() -> tuple[pd.DataFrame, np.ndarray]:
    parts = split(HOUSING, HOUSING.load().table)
    return parts.X_test, parts.y_test


Wire = Callable[[Rewired], str]


def plant(world: World, wire: Wire, change: Callable[[dict[str, Any]], Any] | None = None):
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


def refused_by(world: World, version: Version) -> list[str]:
    champion = world.champion("housing")
    with pytest.raises(GateError):
        world.promote("housing", version.version)
    assert world.champion("housing") == champion
    last = world.decisions("housing")[-1]
    assert (last.action, last.version) == ("keep", version.version)
    return refusing(last)


def test_the_champions_graph_rewired_and_unchanged_passes_every_gate(world):
    version = plant(world, as_it_is, lambda sealed: sealed["training"].update(candidate="Planted"))
    judged = world.gates("housing", version.version)
    assert [v.outcome for v in judged.verdicts] == ["pass"] * len(GATES)


# --- each is refused by its gate


def constant(graph: Rewired) -> str:
    return graph.add("Add", graph.add("Mul", "known", np.array(0.0)), np.array(2.5))


def a_tenth_too_low(graph: Rewired) -> str:
    return graph.add("Mul", "known", np.array(0.9))


def no_number_for_some(graph: Rewired) -> str:
    one = held_out()[0]["median_income"].iloc[0]
    asked = graph.add("Equal", graph.field(INCOME), np.array(one))
    return graph.where(asked, np.array(np.nan), "known")


def slow(graph: Rewired) -> str:
    mean = graph.add("ReduceMean", "known", keepdims=0)
    waves = graph.add("Sin", graph.add("Mul", mean, np.ones(300_000)))
    nothing = graph.add("Mul", graph.add("ReduceSum", waves, keepdims=0), np.array(0.0))
    return graph.add("Add", "known", nothing)


def large(graph: Rewired) -> str:
    ballast = graph.constant(np.zeros(51_000_000, np.uint8))
    byte = graph.add("Gather", ballast, np.array(7))
    return graph.add("Add", "known", graph.add("Cast", byte, to=onnx.TensorProto.DOUBLE))


def moved(graph: Rewired) -> str:
    """True for each row whose longitude is not one of the census: they have two decimals."""
    hundreds = graph.add("Mul", graph.field(LONGITUDE), np.array(100.0))
    off = graph.add("Abs", graph.add("Sub", hundreds, graph.add("Round", hundreds)))
    return graph.add("Greater", off, np.array(1e-6))


def runs_away_off_the_map(graph: Rewired) -> str:
    return graph.where(moved(graph), np.array(100.0), "known")


def errs_off_the_map(graph: Rewired) -> str:
    return graph.where(moved(graph), graph.add("Add", "known", np.array(1.0)), "known")


def narrower(sealed: dict[str, Any]) -> None:
    sealed["signature"]["fields"][0]["high"] = 5000


def in_another_unit(sealed: dict[str, Any]) -> None:
    sealed["signature"]["target"]["unit"] = "dollars"


def unproven(sealed: dict[str, Any]) -> None:
    sealed["training"]["parity"]["largest_difference"] = 1e-3


def proven_on_some_rows(sealed: dict[str, Any]) -> None:
    sealed["training"]["parity"]["rows"] = 100


def boastful(sealed: dict[str, Any]) -> None:
    sealed["metrics"]["scores"]["r2_score"] = 0.99


def slowly(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("wire", "change", "gate"),
    [
        (constant, None, beats_baseline),
        (a_tenth_too_low, None, not_worse_than_champion),
        (slow, None, within_budget),
        (errs_off_the_map, None, withstands_drift),
        (as_it_is, narrower, same_signature),
        (as_it_is, boastful, parity),
        slowly(no_number_for_some, None, not_worse_than_champion),
        slowly(large, None, within_budget),
        slowly(runs_away_off_the_map, None, withstands_drift),
        slowly(as_it_is, in_another_unit, same_signature),
        slowly(as_it_is, unproven, parity),
        slowly(as_it_is, proven_on_some_rows, parity),
    ],
)
def test_a_bad_model_is_refused_by_its_gate(world, wire, change, gate):
    refusals = refused_by(world, plant(world, wire, change))
    assert gate.NAME in refusals
    if wire in (slow, large, runs_away_off_the_map, errs_off_the_map, as_it_is):
        assert refusals == [gate.NAME]  # nobody else sees anything wrong with it


def test_a_model_that_forgot_its_golden_rows_is_not_even_opened(world):
    def forgotten(sealed: dict[str, Any]) -> None:
        sealed["golden"]["prediction"][3] += 1e-6

    version = plant(world, as_it_is, forgotten)
    with pytest.raises(BundleError, match="does not reproduce its golden rows"):
        world.promote("housing", version.version, force=True, reason="I insist")
    assert golden_rows.answer(1e-6).outcome == "fail"


# --- better on the whole, and worse for some


@pytest.fixture(scope="module")
def beatable(world: World) -> Iterator[World]:
    """The champion asks too much of everybody: easy to beat on the whole."""

    def dear(graph: Rewired) -> str:
        return graph.add("Add", "known", np.array(0.2))

    version = plant(world, dear)
    world.promote("housing", version.version, force=True, reason="for the test")
    yield world
    with Ledger(world.settings.state_database) as ledger:
        first = ledger.version("housing", 1)
        ledger.promote(first, expected=version.version, reason="back", evidence=[])


def band(graph: Rewired, low: float, high: float) -> str:
    income = graph.field(INCOME)
    above = graph.add("GreaterOrEqual", income, np.array(low))
    return graph.add("And", above, graph.add("Less", income, np.array(high)))


def test_a_model_that_is_better_on_the_whole_and_worse_for_the_poor_is_refused(beatable):
    def at_their_cost(graph: Rewired) -> str:
        dearer = graph.add("Add", "known", np.array(0.3))
        return graph.where(band(graph, -1.0, 2.5), dearer, "known")

    refusals = refused_by(beatable, plant(beatable, at_their_cost))
    assert no_slice_worse.NAME in refusals
    assert not_worse_than_champion.NAME not in refusals


def test_a_model_that_is_better_for_all_but_the_rich_is_refused_as_unfair(beatable):
    def for_some(graph: Rewired) -> str:
        dear = graph.add("Add", "known", np.array(0.2))
        return graph.where(band(graph, 5.0, 99.0), dear, "known")

    assert refused_by(beatable, plant(beatable, for_some)) == [fairness.NAME]

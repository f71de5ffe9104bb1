"""Bad models on purpose: real graphs, honest but for one fault, each refused by its gate."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import copy_project
from planted import (
    INCOME,
    LONGITUDE,
    Rewired,
    a_tenth_too_low,
    as_it_is,
    constant,
    forgetful,
    held_out,
    off,
    plant,
    slow,
)
from promotions import World, refusing, world_in

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


@pytest.fixture(scope="module")
def world(trained, tmp_path_factory) -> Iterator[World]:
    """One project for all: what is refused leaves no trace but versions and lines."""
    with pytest.MonkeyPatch.context() as patch:
        yield world_in(copy_project(trained, tmp_path_factory.mktemp("bad") / "home"), patch)


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


def no_number_for_some(graph: Rewired) -> str:
    one = held_out()[0]["median_income"].iloc[0]
    asked = graph.add("Equal", graph.field(INCOME), np.array(one))
    return graph.where(asked, np.array(np.nan), "known")


def large(graph: Rewired) -> str:
    ballast = graph.constant(np.zeros(51_000_000, np.uint8))
    byte = graph.add("Gather", ballast, np.array(7))
    return graph.add("Add", "known", graph.add("Cast", byte, to=onnx.TensorProto.DOUBLE))


def runs_away_off_the_map(graph: Rewired) -> str:
    return graph.where(off(graph, LONGITUDE), np.array(100.0), "known")


def errs_off_the_map(graph: Rewired) -> str:
    return graph.where(off(graph, LONGITUDE), graph.add("Add", "known", np.array(1.0)), "known")


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
    version = plant(world, as_it_is, forgetful)
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

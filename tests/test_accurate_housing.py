"""The products of housing, small: trained, sealed, explained, with intervals, and exact."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest

from mlops.build.tuning import with_parameters
from mlops.errors import TrainingError
from mlops.loop import train as training
from mlops.loop.train import train
from mlops.package.bundle import Bundle, open_bundle
from mlops.settings import read_settings
from mlops.usecase import Candidate, Source, UseCase
from mlops.usecases import USE_CASES, accurate_housing

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore:.*Any type hint is inferred:UserWarning"
)
seals = pytest.mark.slow  # explanations of both are measured on 100 rows: a minute
HOUSING = USE_CASES["housing"]
SMALLER = {"n_estimators": 20, "copies": 2, "sample": 200}


def small(candidate: Candidate) -> Candidate:
    names = candidate.build(0).get_params()
    given = {name: SMALLER[end] for name in names if (end := name.rpartition("__")[2]) in SMALLER}
    return with_parameters(candidate, given)


def declared() -> UseCase:
    source = HOUSING.load()
    some = Source(source.table.sample(1500, random_state=1), source.origin)
    products = tuple(small(HOUSING.candidate(name)) for name in ("Accurate", "Fast"))
    return dataclasses.replace(HOUSING, load=lambda: some, on_demand=products)


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Bundle, Any, Any]]:
    """Of each product its bundle and its pipeline; and rows, most of them new to both."""
    home: Path = tmp_path_factory.mktemp("accurate")
    settings = read_settings(MLOPS_HOME=home, MLFLOW_TRACKING_URI="", MODEL_REGISTRY_URI="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(USE_CASES, "housing", declared())
        patch.setattr(training, "drawn", lambda *_: {})
        patch.setattr(training, "diagnose", lambda *_: {})
        result = train("housing", profile="accurate", settings=settings)
    rows = HOUSING.load().table.sample(300, random_state=9)
    fields = rows.rename(columns={f.column: f.name for f in HOUSING.features})[
        list(HOUSING.fields)
    ].to_numpy(dtype=float)
    bundles = {one.version: settings.bundles / one.bundle for one in result.registered}
    pickles = {alias: settings.models / f"{alias.title()}.pkl" for alias in result.products}
    return {
        alias: (open_bundle(bundles[number]), joblib.load(pickles[alias]), fields)
        for alias, number in result.products.items()
    }


@seals
@pytest.mark.parametrize("alias", ["accurate", "fast"])
def test_a_product_answers_in_its_graph_as_in_its_pipeline(sealed, alias):
    bundle, pipeline, rows = sealed[alias]
    expected = pipeline.predict(rows)
    assert np.abs(bundle.model.run(rows).prediction - expected).max() < 1e-9
    assert expected.std() > 0.3


@seals
@pytest.mark.parametrize("alias", ["accurate", "fast"])
def test_a_product_can_be_explained_and_carries_an_interval(sealed, alias):
    bundle, _, rows = sealed[alias]
    explained = bundle.explainer.explain(rows[:1])
    whole = explained.base + explained.contributions.sum(axis=2)
    assert whole == pytest.approx(explained.value, abs=1e-6)
    assert bundle.intervals["coverage"] == 0.9


def test_the_inputs_are_those_of_the_use_case():
    assert HOUSING.input_names == accurate_housing.INPUTS


def test_without_lightgbm_the_profile_says_what_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(TrainingError, match="needs LightGBM"):
        accurate_housing.accurate(0)

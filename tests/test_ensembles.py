"""Ensembles are trained, gated, exported exactly, explained and served like any other model."""

from __future__ import annotations

import shutil

import joblib
import numpy as np
import pytest

from mlops.improve.ledger import Ledger
from mlops.loop.promote import promote
from mlops.loop.show import show
from mlops.loop.train import train
from mlops.settings import read_settings
from mlops.usecases import USE_CASES

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


def test_candidates_on_demand_are_known_by_name_and_not_trained_unasked():
    for use_case in USE_CASES.values():
        names = {candidate.name for candidate in use_case.candidates}
        asked = {candidate.name for candidate in use_case.on_demand}
        assert asked
        assert not asked & names
        for name in asked:
            assert use_case.candidate(name).name == name


@pytest.mark.slow
@pytest.mark.parametrize(("name", "candidate"), [("iris", "Votes"), ("housing", "Blend")])
def test_an_ensemble_goes_all_the_way_and_is_served_as_it_was_fitted(
    home, empty_store, serve, name, candidate
):
    shutil.copy(empty_store, home / "mlflow.db")
    settings = read_settings(MLOPS_HOME=home)
    use_case = USE_CASES[name]
    version = train(name, only=(candidate,), settings=settings).registered[0]
    assert version.candidate == candidate
    assert candidate in show(name, settings=settings)["on_demand"]
    promote(name, version.version, force=True, reason="for the test", settings=settings)
    with Ledger(settings.state_database) as ledger:
        assert ledger.champion(name) == version
        evidence = ledger.decisions(name)[-1].evidence
    parity = next(one for one in evidence if one["gate"] == "serves what was measured")
    assert (parity["outcome"], parity["numbers"]["difference"] < 1e-12) == ("pass", True)

    pipeline = joblib.load(settings.bundles / version.bundle / "pipeline.joblib")
    server = serve(name)
    for example in use_case.examples.values():
        rows = np.array([[example[field] for field in use_case.fields]])
        status, answer = server.request("/predict", example)
        assert (status, answer["model_version"]) == (200, version.version)
        if use_case.is_classification:
            expected = pipeline.predict_proba(rows)[0]
            assert list(answer["probabilities"].values()) == pytest.approx(expected, abs=1e-12)
        else:
            assert answer["predicted_price"] == pytest.approx(pipeline.predict(rows)[0], abs=1e-9)
        status, explained = server.request("/explain", example)
        assert status == 200, explained

"""Profiles: each product through the gates to its alias, one to champion, and it stays that way."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import start_server, typed
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression

from mlops.errors import GateError, UsageError
from mlops.improve.decisions import Decision
from mlops.improve.ledger import Ledger, Version
from mlops.loop import recipe as recipes
from mlops.loop import train as training
from mlops.loop import up as up_module
from mlops.loop.products import Settled, settle
from mlops.loop.promote import promote
from mlops.loop.recipe import still_valid
from mlops.loop.report import Silent
from mlops.loop.retrain import retrain
from mlops.loop.rollback import rollback
from mlops.loop.train import Training, train
from mlops.package.bundle import open_bundle
from mlops.settings import Settings, read_settings
from mlops.usecase import Candidate, Product, Profile, UseCase
from mlops.usecases import USE_CASES

# What MLflow does with other libraries is not ours to mend.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore:.*Any type hint is inferred:UserWarning"
)
IRIS = USE_CASES["iris"]
BOTH = ("accurate", "fast")


class Heard(Silent):
    """A report that keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def discriminant(seed: int) -> Any:
    return LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.1)


def logistic(seed: int) -> Any:
    return LogisticRegression(C=2.0, max_iter=1000)


def clueless(seed: int) -> Any:
    """Regularised so much that it always says the same."""
    return LogisticRegression(C=1e-9, max_iter=1000)


def declared(fast: Callable[[int], Any] = logistic) -> UseCase:
    products = (Product("accurate", "Careful"), Product("fast", "Quick"))
    return dataclasses.replace(
        IRIS,
        candidates=(IRIS.candidate("LinearDiscriminantAnalysis"),),
        on_demand=(Candidate("Careful", discriminant), Candidate("Quick", fast, scaled=True)),
        profiles=(Profile("accurate", "two of them", minutes=2, products=products),),
    )


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two products are declared for iris. Figures take most of the time of a small training."""
    monkeypatch.setitem(USE_CASES, "iris", declared())
    monkeypatch.setattr(training, "drawn", lambda *_: {})
    monkeypatch.setattr(training, "diagnose", lambda *_: {})


@pytest.fixture
def known(home: Path, empty_store: Path) -> Settings:
    """The trained project, its tracking store emptied. Version 1 of iris is champion."""
    shutil.copy(empty_store, home / "mlflow.db")
    return read_settings(MLOPS_HOME=home, MLFLOW_TRACKING_URI="", MODEL_REGISTRY_URI="")


def choose(settings: Settings, product: str) -> Settings:
    return settings.model_copy(update={"champion_product": product})


def made(settings: Settings, **options: Any) -> tuple[Training, Settled]:
    """Train the profile and let its products answer."""
    result = train("iris", profile="accurate", settings=settings)
    return result, settle("iris", "accurate", result.products, settings=settings, **options)


def aliases(settings: Settings) -> dict[str, int]:
    with Ledger(settings.state_database) as ledger:
        return ledger.aliases("iris")


def champion(settings: Settings) -> Version:
    with Ledger(settings.state_database) as ledger:
        found = ledger.champion("iris")
    assert found is not None
    return found


def decisions(settings: Settings) -> list[Decision]:
    with Ledger(settings.state_database) as ledger:
        assert ledger.verify().whole
        return ledger.decisions("iris")


def as_by_other_code(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "libraries", lambda: {"numpy": "0.1"})


# --- training one


def test_each_product_is_sealed_and_registered_and_the_time_is_told(known):
    heard = Heard()
    result = train("iris", profile="accurate", settings=known, report=heard)
    assert heard.lines[0] == "iris: profile accurate: two of them (about 2 minutes on two cores)"
    assert [one.name for one in result.candidates] == ["Careful", "Quick"]
    assert [one.candidate for one in result.registered] == ["Careful", "Quick"]
    assert tuple(result.products) == BOTH
    for version in result.registered:
        sealed = open_bundle(known.bundles / version.bundle).training
        assert sealed["profile"] == "accurate"
        assert result.products[USE_CASES["iris"].product_of(sealed)] == version.version
    why = [one.reason for one in decisions(known) if one.action == "train"][-2:]
    assert why[0].startswith("product accurate of the profile accurate: accuracy 0.9")
    assert why[1].startswith("product fast of the profile accurate: accuracy 0.9")
    again = train("iris", profile="accurate", settings=known)
    assert again.products == result.products, "the same training gives the same bundles"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"profile": "best"}, r"iris has no profile 'best' — declared are: accurate \(about 2 min"),
        ({"profile": "accurate", "only": ("Quick",)}, "a profile says itself what is trained"),
        ({"profile": "accurate", "from_study": True}, "a profile says itself what is trained"),
    ],
)
def test_a_profile_that_cannot_be_is_refused_before_anything_is_written(tmp_path, options, said):
    settings = read_settings(MLOPS_HOME=tmp_path)
    with pytest.raises(UsageError, match=said):
        train("iris", settings=settings, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("products", "said"),
    [
        ((), "the profile accurate has no product — correct it where iris is declared"),
        ((Product("fast", "Quik"),), "product fast of the profile accurate is 'Quik', which is no"),
        ((Product("champion", "Quick"),), "'champion' cannot be an alias"),
        ((Product("Fast one", "Quick"),), "'Fast one' cannot be an alias"),
    ],
)
def test_a_profile_that_is_declared_wrongly_is_refused_before_minutes_are_spent(
    tmp_path, monkeypatch, products, said
):
    wrong = dataclasses.replace(declared().profiles[0], products=products)
    monkeypatch.setitem(USE_CASES, "iris", dataclasses.replace(declared(), profiles=(wrong,)))
    with pytest.raises(UsageError, match=said):
        train("iris", profile="accurate", settings=read_settings(MLOPS_HOME=tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_setting_that_names_no_product_is_refused_before_anything_is_written(tmp_path):
    settings = read_settings(MLOPS_HOME=tmp_path, CHAMPION_PRODUCT="fats")
    said = "CHAMPION_PRODUCT=fats is no product of the profile accurate — set it to one of accurate"
    with pytest.raises(UsageError, match=said):
        train("iris", profile="accurate", settings=settings)
    assert list(tmp_path.iterdir()) == []


# --- who answers


def test_one_product_becomes_champion_and_each_answers_under_its_alias(known):
    result, settled = made(known)
    assert settled.refused == {}
    assert settled.answering == result.products == aliases(known)
    assert champion(known).version == result.products["accurate"]
    told = [(one.action, one.version) for one in decisions(known)][-3:]
    fast, accurate = result.products["fast"], result.products["accurate"]
    assert told == [("alias", fast), ("promote", accurate), ("alias", accurate)]
    [alias] = [one for one in decisions(known) if (one.action, one.version) == ("alias", fast)]
    assert (alias.rule, alias.evidence[0]) == ("gates", {"alias": "fast"})
    assert all(one["outcome"] != "fail" for one in alias.evidence[1:])
    assert len(alias.evidence) == 10, "what nine gates said"
    server = start_server(known.home, "iris")
    try:
        row = next(iter(IRIS.examples.values()))
        for place, version in (("", accurate), ("/models/fast", fast), ("/models/accurate", 3)):
            status, answer = server.request(f"{place}/predict", row)
            assert (status, answer["model_version"]) == (200, version)
            assert answer["predicted_label"] == "setosa"
    finally:
        server.stop()


def test_a_setting_makes_the_other_product_champion_which_is_held_against_its_own_kind(known):
    result, _ = made(known)
    settled = settle(
        "iris", "accurate", result.products, settings=choose(known, "fast"), reason="by setting"
    )
    assert champion(known).version == result.products["fast"]
    assert settled.promotion is not None
    gate = next(v for v in settled.promotion.verdicts if v.gate == "not worse than the champion")
    assert f"against version {result.products['fast']}" in gate.says
    assert aliases(known) == result.products


def test_again_with_the_same_products_nothing_is_decided(known):
    result, _ = made(known)
    before = decisions(known)
    settled = settle("iris", "accurate", result.products, settings=known)
    assert settled.answering == result.products
    assert decisions(known) == before


def test_a_refused_product_leaves_its_alias_where_it_is_and_the_other_answers(known, monkeypatch):
    before, _ = made(known)
    monkeypatch.setitem(USE_CASES, "iris", declared(fast=clueless))
    as_by_other_code(known, monkeypatch)
    result, settled = made(known)
    assert tuple(settled.refused) == ("fast",)
    assert result.products["fast"] != before.products["fast"]
    assert aliases(known)["fast"] == before.products["fast"]
    assert champion(known).version == aliases(known)["accurate"] == result.products["accurate"]
    with pytest.raises(GateError, match=r"fast: iris version 6 was not promoted: not worse than"):
        settled.check()


def test_what_becomes_champion_by_hand_or_by_a_rollback_takes_its_alias_along(known, monkeypatch):
    first, _ = made(known)
    as_by_other_code(known, monkeypatch)
    second, _ = made(known)
    assert aliases(known)["accurate"] == second.products["accurate"] != first.products["accurate"]
    rollback("iris", reason="worse", settings=known)
    assert champion(known).version == first.products["accurate"] == aliases(known)["accurate"]
    promote("iris", second.products["accurate"], settings=known)
    assert aliases(known)["accurate"] == second.products["accurate"]
    promote("iris", 1, force=True, reason="the plain one", settings=known)
    assert aliases(known) == second.products, "a plain version has no alias to take"


# --- it stays that way


def test_a_retraining_trains_the_profile_of_the_champion_again(known, monkeypatch):
    first, _ = made(known)
    assert retrain("iris", settings=known).outcome == "unchanged"
    as_by_other_code(known, monkeypatch)
    result = retrain("iris", settings=known)
    assert result.outcome == "promoted", result.says
    assert result.training is not None
    assert result.training.profile == "accurate"
    assert result.champion == result.training.products["accurate"] > first.products["accurate"]
    assert aliases(known) == result.training.products
    assert retrain("iris", settings=known, only=("Quick",)).training.profile == ""  # type: ignore[union-attr]


def test_a_retraining_keeps_the_product_that_is_champion_whatever_the_setting_says(
    known, monkeypatch
):
    made(choose(known, "fast"))
    as_by_other_code(known, monkeypatch)
    result = retrain("iris", settings=known)
    assert result.outcome == "promoted", result.says
    assert result.training is not None
    assert champion(known).version == result.training.products["fast"]
    assert aliases(known) == result.training.products


def test_a_retraining_on_trial_leaves_the_champion_and_moves_the_other_product(known, monkeypatch):
    first, _ = made(known)
    as_by_other_code(known, monkeypatch)
    result = retrain("iris", settings=known.model_copy(update={"retrain_then": "shadow"}))
    assert result.outcome == "on trial", result.says
    assert result.training is not None
    expected = {"accurate": first.products["accurate"], "fast": result.training.products["fast"]}
    assert aliases(known) == expected
    assert champion(known).version == first.products["accurate"]


def test_a_refused_product_is_told_of_by_a_retraining(known, monkeypatch):
    made(known)
    monkeypatch.setitem(USE_CASES, "iris", declared(fast=clueless))
    as_by_other_code(known, monkeypatch)
    result = retrain("iris", settings=known)
    assert result.outcome == "promoted"
    assert "; fast: iris version " in result.says


def test_a_champion_of_a_profile_is_valid_while_training_it_again_would_repeat_it(
    known, monkeypatch
):
    made(known)
    use_case = USE_CASES["iris"]
    assert still_valid(use_case, known) == champion(known)
    assert still_valid(use_case, known, "accurate") == champion(known)
    (known.models / "Careful.pkl").unlink()
    assert still_valid(use_case, known) is None
    (known.models / "Careful.pkl").touch()
    as_by_other_code(known, monkeypatch)
    assert still_valid(use_case, known) is None


def test_a_plain_champion_is_not_valid_for_a_profile(known):
    train("iris", settings=known)
    promote("iris", settings=known)
    assert still_valid(USE_CASES["iris"], known) is not None
    assert still_valid(USE_CASES["iris"], known, "accurate") is None


def test_up_leaves_a_champion_of_a_profile_and_says_how_to_train_it_again(known, monkeypatch):
    use_case, heard = USE_CASES["iris"], Heard()
    assert up_module._of_profile(use_case, known, heard) is None, "version 1 is a plain one"
    made(known)
    as_by_other_code(known, monkeypatch)
    assert up_module._of_profile(use_case, known, heard) == champion(known)
    assert "stays, though data, code, libraries or what its training left" in heard.lines[0]
    assert heard.lines[0].endswith("mlops train iris --profile accurate --promote")
    (known.bundles / champion(known).bundle / "model.onnx").write_bytes(b"")
    assert up_module._of_profile(use_case, known, heard) is None, "it cannot answer any more"


# --- the verb


@pytest.fixture
def type_in(known: Settings, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> Any:
    monkeypatch.setenv("MLOPS_HOME", str(known.home))
    for name in ("MLFLOW_TRACKING_URI", "MODEL_REGISTRY_URI", "CHAMPION_PRODUCT"):
        monkeypatch.delenv(name, raising=False)
    return typed(capfd)


def test_the_verb_trains_promotes_and_says_where_each_answers(type_in, known, monkeypatch):
    code, printed = type_in("train", "iris", "--profile", "accurate", "--promote")
    assert code == 0, printed
    assert "Careful: version 3" in printed
    assert "answers at /iris/models/fast/predict" in printed
    code, printed = type_in("train", "iris", "--profile", "accurate", "--promote", "--if-needed")
    assert (code, printed.strip()) == (0, "iris: version 3 is still valid")
    as_by_other_code(known, monkeypatch)
    code, printed = type_in("train", "iris", "--if-needed", "--promote")
    assert code == 0, printed
    assert "Careful: version 5" in printed, "never a plain one in its place"
    code, printed = type_in("show", "iris")
    assert "5 champion, accurate" in printed
    assert "6 fast" in printed
    assert "profile accurate: two of them (about 2 min on two cores): accurate = Care" in printed


def test_the_verb_ends_as_a_refused_promotion_does_where_a_product_is_refused(
    type_in, known, monkeypatch
):
    monkeypatch.setitem(USE_CASES, "iris", declared(fast=clueless))
    code, printed = type_in("train", "iris", "--profile", "accurate", "--promote")
    assert code == GateError.exit_code
    assert "mlops: fast: iris version 4 was not promoted" in printed
    assert "under their aliases answer: accurate is version 3" in printed
    assert aliases(known) == {"accurate": 3}


def test_predictions_of_both_products_are_those_of_their_pipelines(known):
    result, _ = made(known)
    rows = np.array([list(row.values()) for row in IRIS.examples.values()], dtype=float)
    for version in result.registered:
        answered = open_bundle(known.bundles / version.bundle).model.run(rows).prediction
        assert answered.tolist() == [0, 2]


def test_housing_declares_accurate_and_fast_and_the_first_is_champion():
    [profile] = USE_CASES["housing"].profiles
    assert [product.alias for product in profile.products] == list(BOTH)
    assert all(USE_CASES["housing"].candidate(one.candidate) for one in profile.products)

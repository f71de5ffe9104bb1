"""Replay: what was answered is answered again, by the same bundle or by another version."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from experimental import register_off
from promotions import World, equal, world_in

from mlops import cli
from mlops.build.data import prepare, split
from mlops.errors import NotTrainedError, UsageError
from mlops.loop import replay as replaying
from mlops.loop.predict import predict
from mlops.loop.replay import Replayed, replay, shadow
from mlops.usecases import USE_CASES

HOUSING = USE_CASES["housing"]
SETOSA = USE_CASES["iris"].examples["setosa"]


@pytest.fixture
def world(home: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return world_in(home, monkeypatch)


def answered(world: World, name: str, rows: list[Any]) -> list[str]:
    return [one["prediction_id"] for one in predict(name, rows, settings=world.settings)]


def again(world: World, prediction_id: str) -> Replayed:
    return replay(prediction_id, settings=world.settings)


def tamper(world: World, name: str, change: str) -> None:
    path = next(world.settings.home.glob(f"{name}logs/*.db"))
    connection = sqlite3.connect(path)
    connection.execute(f'UPDATE "{name}logs" SET {change}')
    connection.commit()
    connection.close()


@pytest.mark.parametrize("name", ["housing", "iris"])
def test_a_prediction_is_answered_again_to_the_last_bit_by_its_own_bundle(world, name):
    example = next(iter(USE_CASES[name].examples.values()))
    (one,) = answered(world, name, [example])
    result = again(world, one)
    assert (result.use_case, result.outcome, result.difference) == (name, "equal", 0.0)
    assert result.now == result.logged
    if name == "housing":  # another champion changes nothing about it
        world.register("housing", equal)
        world.promote("housing")
        assert again(world, one).outcome == "equal"


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("housing", "prediction = prediction + 1e-8"),
        ("housing", "inputs = replace(inputs, '8.3252', '2.5')"),
        ("housing", "inputs = '{}'"),
        ("housing", "prediction = 'much'"),
        ("housing", "model_version = 2"),
        ("iris", "prediction = 'virginica'"),
        ("iris", "probabilities = replace(probabilities, '\"setosa\":', '\"setosa\":0.9e-')"),
    ],
)
def test_a_row_that_somebody_changed_is_called_tampered_with(world, name, change):
    world.register("housing", equal)
    (one,) = answered(world, name, [next(iter(USE_CASES[name].examples.values()))])
    tamper(world, name, change)
    assert again(world, one).outcome == "tampered"


def test_a_bundle_that_was_changed_is_tampered_with_and_one_that_is_gone_cannot_be_told(world):
    (one,) = answered(world, "iris", [SETOSA])
    bundle = world.bundle("iris", 1)
    (bundle / "metrics.json").write_bytes(b"{}")
    result = again(world, one)
    assert (result.outcome, "metrics.json" in result.says) == ("tampered", True)
    bundle.rename(world.settings.home / "gone")
    result = again(world, one)
    assert (result.outcome, result.now) == ("cannot tell", None)


def test_other_digits_by_another_library_are_a_changed_environment(world, monkeypatch):
    example = next(iter(HOUSING.examples.values()))
    (one,) = answered(world, "housing", [example])
    tamper(world, "housing", "prediction = prediction + 1e-13")
    assert again(world, one).outcome == "tampered"  # by the same libraries it would be equal
    real = replaying.open_bundle

    def sealed_by_an_older_one(*arguments: Any, **options: Any) -> Any:
        bundle = real(*arguments, **options)
        libraries = {**bundle.training["libraries"], "onnxruntime": "1.0"}
        return dataclasses.replace(bundle, training={**bundle.training, "libraries": libraries})

    monkeypatch.setattr(replaying, "open_bundle", sealed_by_an_older_one)
    result = again(world, one)
    assert (result.outcome, "was 1.0" in result.says) == ("environment changed", True)
    tamper(world, "housing", "prediction = prediction + 1e-8")
    assert again(world, one).outcome == "tampered"


def test_an_unknown_prediction_and_an_empty_log_are_said(world):
    with pytest.raises(UsageError, match="no log holds a prediction 'nobody'"):
        again(world, "nobody")
    with pytest.raises(NotTrainedError, match="housing has answered nothing here yet"):
        shadow("housing", against=1, settings=world.settings)


def test_another_version_on_the_log_is_compared_row_by_row_with_truths(
    world, tmp_path, monkeypatch, capfd
):
    from mlops.loop.feedback import feedback

    parts = split(HOUSING, prepare(HOUSING, world.settings.data).frame)
    rows, actual = parts.X_test.head(300), parts.y_test[:300]
    ids = answered(world, "housing", rows.to_dict("records"))
    same = shadow("housing", against=1, settings=world.settings)
    assert (same.predictions, same.differ, same.truths) == (300, 0, 0)
    assert same.judgement.outcome == "cannot tell yet"

    register_off(world, 0.5)
    lines = [f"{one},{float(y)!r}" for one, y in zip(ids[:250], actual, strict=False)]
    (tmp_path / "truth.csv").write_text("\n".join(["prediction_id,actual", *lines]))
    feedback("housing", tmp_path / "truth.csv", settings=world.settings)
    found = shadow("housing", against=2, settings=world.settings)
    assert (found.differ, found.truths, found.judgement.labels) == (300, 250, 250)
    assert found.mean_difference == pytest.approx(0.5)
    assert found.judgement.outcome == "worse"
    assert found.judgement.mean == pytest.approx(found.mean_loss - found.logged_loss)
    later = shadow("housing", against=2, since="2999-01-01", settings=world.settings)
    assert (later.predictions, later.mean_difference) == (0, None)

    monkeypatch.setenv("MLOPS_HOME", str(world.settings.home))
    with pytest.raises(SystemExit) as ended:
        cli.main(["replay", "housing", "--against", "2", "--json"])
    assert ended.value.code == 0
    assert json.loads(capfd.readouterr().out)["says"].startswith("worse: ")

"""The model card: every figure is that of the bundle, and each use case has one."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import start_server

from mlops.build.data import prepare, split
from mlops.build.energy import Meter
from mlops.dashboard.card import sections
from mlops.improve.ledger import Ledger
from mlops.loop.card import bands_of, card_of
from mlops.loop.explain import card
from mlops.package.bundle import Bundle, open_bundle
from mlops.settings import read_settings
from mlops.usecase import About, Fairness, Product, Profile, UseCase
from mlops.usecases import USE_CASES

HOUSING, IRIS = USE_CASES["housing"], USE_CASES["iris"]


def sealed(home: Path, name: str) -> Bundle:
    with Ledger(home / "models" / "state.db") as ledger:
        version = ledger.champion(name)
    assert version is not None
    return open_bundle(home / "models" / "bundles" / version.bundle)


def documents(bundle: Bundle) -> dict[str, Any]:
    names = ("signature", "metrics", "training", "explanation", "intervals")
    return {name: getattr(bundle, name) for name in names}


def written(use_case: UseCase, bundle: Bundle, **provenance: Any) -> str:
    return card_of(use_case, documents(bundle), {**bundle.provenance, **provenance})


def section(text: str, title: str) -> str:
    return text.partition(f"## {title}\n")[2].partition("\n## ")[0]


# --- figures


def test_each_band_has_the_error_of_the_graph_on_its_held_out_rows(trained: Path) -> None:
    bundle = sealed(trained, "housing")
    parts = split(HOUSING, prepare(HOUSING, trained / "data").frame)
    error = bundle.model.run(parts.X_test.to_numpy()).prediction - parts.y_test
    rows = [dict(zip(HOUSING.fields, row, strict=True)) for row in parts.X_test.to_numpy().tolist()]
    found = bands_of(HOUSING, bundle.metrics)
    assert [(one.slice, one.band) for one in found] == [
        (one.name, band) for one in HOUSING.slices for band in one.bands
    ]
    text = section(written(HOUSING, bundle), "Metrics by slice")
    for one in found:
        [declared] = (each for each in HOUSING.slices if each.name == one.slice)
        mine = error[[declared.band(row) == one.band for row in rows]]
        assert one.rows == len(mine)
        rmse = float((mine**2).mean() ** 0.5)
        assert one.scores["rmse"].value == pytest.approx(rmse, rel=1e-9)
        low, high = one.scores["rmse"].low, one.scores["rmse"].high
        assert low is not None
        assert high is not None
        assert low < rmse < high
        line = (
            f"| {one.slice} | {one.band} | {len(mine):,} | {rmse:.4f} ({low:.4f} to {high:.4f}) |"
        )
        assert line in text


def test_the_gap_of_a_declared_fairness_is_measured(trained: Path) -> None:
    bundle = sealed(trained, "housing")
    losses = {
        one.band: one.scores["mse"].value
        for one in bands_of(HOUSING, bundle.metrics)
        if one.slice == "income"
    }
    gap = max(losses.values()) - min(losses.values())
    text = section(written(HOUSING, bundle), "Ethical considerations")
    assert f"{gap:.4f} apart; a gate keeps out what exceeds 0.4 beyond chance" in text
    wrong = dataclasses.replace(IRIS, fairness=(Fairness("petal", 0.2),))
    assert "share of wrong classes is 0.0000" in written(wrong, sealed(trained, "iris"))


def test_the_cap_of_the_target_is_said_with_its_share(trained: Path) -> None:
    parts = split(HOUSING, prepare(HOUSING, trained / "data").frame)
    share = (parts.y_train == 5.00001).mean()
    bundle = sealed(trained, "housing")
    assert bundle.training["target"] == {
        "lowest": 0.14999,
        "highest": 5.00001,
        "share_at_highest": share,
    }
    text = section(written(HOUSING, bundle), "Caveats and recommendations")
    assert f"- {share:.1%} of the training rows have the highest target, 5.00001: a cap" in text
    assert "a cap" not in written(IRIS, sealed(trained, "iris"))


def test_iris_shows_its_calibration_where_housing_shows_its_intervals(trained: Path) -> None:
    text = section(written(IRIS, sealed(trained, "iris")), "How far off it may be")
    assert "Brier score" in text
    bundle = sealed(trained, "housing")
    text = section(written(HOUSING, bundle), "How far off it may be")
    assert f"{bundle.intervals['measured']['coverage']:.1%} lie in their" in text


# --- time and energy


def test_time_and_energy_are_told_outside_of_what_names_the_bundle(trained: Path) -> None:
    bundle = sealed(trained, "housing")
    spent = bundle.provenance
    assert spent["cpu_seconds"] > 0
    assert spent["seconds"] > 0
    assert spent["serving"]["bytes"] == (bundle.path / "model.onnx").stat().st_size
    assert 1 < spent["serving"]["microseconds"] < 1000
    assert "cpu_seconds" not in str(documents(bundle))
    estimated = section(written(HOUSING, bundle, cpu_seconds=3600.0, joules=None), "Time, energy")
    told = written(HOUSING, bundle, cpu_seconds=3600.0, joules=None)
    assert "about 12 Wh: an estimate, processor time at 12 W a core" in told, estimated
    assert "10.00 Wh, counted by the processor" in written(HOUSING, bundle, joules=36_000.0)
    older = {k: v for k, v in spent.items() if k not in {"cpu_seconds", "joules", "serving"}}
    text = card_of(HOUSING, documents(bundle), older)
    assert "Not measured: sealed before it was." in text


def test_energy_is_what_the_processors_counted(tmp_path: Path) -> None:
    def counter(name: str, energy: str, span: int = 1000) -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "max_energy_range_uj").write_text(f"{span}\n")
        (folder / "energy_uj").write_text(f"{energy}\n")
        return folder / "energy_uj"

    assert Meter(tmp_path / "none").spent().joules is None
    first, second = counter("intel-rapl:0", "100"), counter("intel-rapl:1", "900", 1_000)
    part = counter("intel-rapl:0:0", "5")
    meter = Meter(tmp_path)
    first.write_text("350")
    second.write_text("50")  # it has begun anew
    part.write_text("5000")
    spent = meter.spent()
    assert spent.joules == pytest.approx((250 + 150) / 1e6)
    assert spent.seconds > 0
    first.write_text("nothing to see")
    assert meter.spent().joules is None


def test_processor_time_is_measured() -> None:
    meter = Meter()
    sum(number * number for number in range(2_000_000))
    assert meter.spent().cpu_seconds > 0.02


# --- any use case


def test_a_use_case_that_says_nothing_of_itself_has_a_card_too(trained: Path) -> None:
    bundle = sealed(trained, "iris")
    bare = dataclasses.replace(IRIS, about=About(), slices=(), fairness=())
    text = card_of(bare, documents(bundle), {})
    for title in ("Model details", "Intended use", "Metrics", "Ethical considerations", "Caveats"):
        assert f"\n## {title}" in text
    assert "Metrics by slice" not in text
    assert "For: " not in text


def test_what_only_people_know_stands_in_the_card(trained: Path) -> None:
    for use_case in USE_CASES.values():
        text = written(use_case, sealed(trained, use_case.name))
        for sentence in dataclasses.astuple(use_case.about):
            assert sentence in text
        assert use_case.about.misuse
        assert use_case.about.data


def test_a_product_says_that_it_is_one(trained: Path) -> None:
    bundle = sealed(trained, "iris")
    candidate = bundle.training["candidate"]
    of = Profile("slow", "says", 1, (Product("fine", candidate),))
    declared = dataclasses.replace(IRIS, profiles=(of,))
    assert "product" not in section(written(declared, bundle), "Model details")
    made = {**documents(bundle), "training": {**bundle.training, "profile": "slow"}}
    text = card_of(declared, made, bundle.provenance)
    assert "| product | `fine` of the profile `slow` |" in text


# --- the page


def test_a_card_is_taken_apart_without_losing_a_word(trained: Path) -> None:
    for use_case in USE_CASES.values():
        text = written(use_case, sealed(trained, use_case.name))
        found = sections(text)
        assert [one["title"] for one in found] == re.findall(r"^## (.*)$", text, re.MULTILINE)
        kept = []
        for one in found:
            kept.append(one["title"])
            for block in one["blocks"]:
                kept += [block.get("text", ""), *block.get("items", [])]
                kept += [
                    cell for row in [block.get("head", []), *block.get("rows", [])] for cell in row
                ]
                assert all(len(row) == len(block["head"]) for row in block.get("rows", []))
        words = re.findall(r"[\w.]+", " ".join(kept))
        body = text.partition("\n## ")[2]
        assert words == re.findall(r"[\w.]+", re.sub(r"\| ---.*\n", "\n", body))


def test_kinds_of_blocks_are_told_apart() -> None:
    prose = "# T\n\n## A b\n\none\ntwo:\n- x\n  y\n- z\n\n"
    text = f"{prose}| h | i |\n| --- | --- |\n| a\\|b | c |\n\nend\n"
    assert sections(text) == [
        {
            "title": "A b",
            "blocks": [
                {"text": "one two:"},
                {"items": ["x y", "z"]},
                {"head": ["h", "i"], "rows": [["a|b", "c"]]},
                {"text": "end"},
            ],
        }
    ]


def test_the_server_gives_the_card_of_the_version_that_answers(home: Path) -> None:
    server = start_server(home)
    try:
        for name in USE_CASES:
            status, found = server.request(f"/{name}/card")
            expected = card(name, settings=read_settings(MLOPS_HOME=home))
            assert (status, found["model_version"]) == (200, expected.version)
            assert found["markdown"] == expected.text
            assert found["sections"] == sections(expected.text)
    finally:
        server.stop()


def test_without_a_champion_it_says_what_to_do(tmp_path: Path) -> None:
    server = start_server(tmp_path, "iris", ready=False)
    try:
        status, answer = server.request("/card")
        assert status == 404
        assert "mlops train iris --promote" in answer["detail"][0]["msg"]
    finally:
        server.stop()

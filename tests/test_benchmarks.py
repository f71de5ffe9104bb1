"""Documents and commands in step: what a page of measurements names exists, and all that exists
is on its page; and the benchmarks themselves, small."""

from __future__ import annotations

import contextlib
import importlib.metadata
import re
import shlex
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks import __main__ as bench
from benchmarks import accuracy, growth, peers, published, results, serving
from benchmarks.reliability import __main__ as reliability
from benchmarks.results import Found, Line, Row
from mlops.build.data import split
from mlops.usecases.housing import HOUSING

ROOT = results.ROOT
PAGES = (results.PAGE, reliability.PAGE, accuracy.PAGE)
PARSERS = {
    "bench": bench.arguments_of,
    "bench-peers": lambda words: bench.arguments_of(["peers", *words]),
    "bench-reliability": reliability._arguments,
    "bench-accuracy": accuracy.arguments_of,
}


def commands(page: Path) -> list[list[str]]:
    """Return the words of each `make` command that a page shows, in a line of its own or not."""
    text = page.read_text()
    shown = re.findall(r"^(make .*)$", text, re.MULTILINE) + re.findall(r"`(make [^`]*)`", text)
    return [shlex.split(one, comments=True)[1:] for one in shown]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_on_a_page_is_a_verb_with_words_that_it_takes(page: Path) -> None:
    found = commands(page)
    assert len(found) > 3
    verbs = re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for verb, *rest in found:
        assert verb in verbs
        if rest:
            [given] = rest
            assert given.startswith("ARGS=")
            PARSERS[verb](shlex.split(given.removeprefix("ARGS=")))


def test_a_word_that_no_benchmark_takes_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.arguments_of(["servings"])
    names = ", ".join([*(section.name for section in bench.SECTIONS), *bench.OTHERS])
    assert f"'servings' is none of {names}" in capsys.readouterr().err


def rows_on(page: Path, name: str) -> list[list[str]]:
    """Return the cells of the rows that stand between a section's marks."""
    begin, end = results.marks(name)
    _, _, rest = page.read_text().partition(begin)
    between, found, _ = rest.partition(end)
    assert found, f"{name} has no place in {page.name}"
    lines = [line for line in between.splitlines() if line.startswith("| ")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.parametrize("section", bench.SECTIONS, ids=lambda section: section.name)
def test_the_page_has_every_line_of_a_section_with_its_target_and_no_other(
    section: results.Section,
) -> None:
    assert [(row[0], row[4]) for row in rows_on(results.PAGE, section.name)] == [
        (line.what, line.target) for line in section.lines
    ]


@pytest.mark.parametrize("section", bench.SECTIONS, ids=lambda section: section.name)
def test_a_verdict_follows_from_the_ratio_that_stands_beside_it(section: results.Section) -> None:
    for row, line in zip(rows_on(results.PAGE, section.name), section.lines, strict=True):
        assert row[5] == line.verdict(float(row[3].replace(",", "")))


def test_the_page_has_no_section_that_no_command_writes() -> None:
    marked = re.findall(r"<!-- end of (\w+) -->", results.PAGE.read_text())
    assert marked == [section.name for section in bench.SECTIONS]


def test_the_score_card_has_every_line_with_its_limits_and_no_other() -> None:
    _, _, text = reliability.PAGE.read_text().partition(reliability.MARK)
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| R")]
    assert [row[:5] for row in rows] == [
        [line.name, line.what, line.recipe, line.must, line.goal] for line in reliability.LINES
    ]


def test_what_is_published_stands_in_its_section_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- growth -->\nold\n<!-- end of growth -->\nb\n<!-- loop -->\nc\n")
    monkeypatch.setattr(results, "PAGE", page)
    line = Line("speed", least=2)
    section = results.Section("growth", (line,), lambda *_: Found(()))
    for ratio, verdict in ((1.0, "**missed**"), (2.0, "met")):
        results.publish(section, Found([Row(line, "1 /s", "2 /s", ratio)], ["so"]), "make bench")
        text = page.read_text()
        assert text.startswith("a\n<!-- growth -->\n\n- ")
        assert text.endswith("\n<!-- end of growth -->\nb\n<!-- loop -->\nc\n")
        assert f"| speed | 1 /s | 2 /s | {ratio:.3g} | ≥ 2 | {verdict} |  |  |" in text
        assert "- so\n" in text
        assert "old" not in text


def test_growth_is_measured_at_each_mark(tmp_path: Path) -> None:
    found = growth.run(tmp_path, 20_000)
    assert [row.line for row in found.rows] == list(growth.LINES)
    assert all(row.ratio > 0 for row in found.rows)
    assert [note.partition(" ")[0] for note in found.notes] == ["10,000", "20,000"]


def test_the_disk_is_probed_in_place_and_at_the_end(tmp_path: Path) -> None:
    for in_place in (True, False):
        assert serving.fdatasync_seconds(tmp_path, in_place=in_place) > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("peer", peers.PEERS, ids=lambda peer: peer.name)
def test_a_peer_is_pinned_whole_with_our_versions_of_the_model_and_no_addresses(
    peer: peers.Peer,
) -> None:
    lines = [line for line in peer.requirements.read_text().splitlines() if line[0] != "#"]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[\w.+!]+", line) for line in lines)
    pins = dict(line.lower().split("==") for line in lines)
    assert peer.requirements.stem in pins
    for name in ("scikit-learn", "lightgbm", "numpy", "joblib"):
        assert pins[name] == importlib.metadata.version(name)


def test_children_of_a_peer_end_with_it(tmp_path: Path) -> None:
    command = ["sh", "-c", "sleep 1000 & echo $! > child; wait"]
    written = tmp_path / "child"
    with peers._started(command, tmp_path, tmp_path, {}):
        for _ in range(200):
            if written.exists() and written.read_text():
                break
            time.sleep(0.05)
        child = psutil.Process(int(written.read_text()))
        assert child.is_running()
    with contextlib.suppress(psutil.NoSuchProcess):  # or it waits for somebody to look at its end
        assert child.status() == psutil.STATUS_ZOMBIE


# --- accuracy


def test_the_splits_are_those_that_were_published() -> None:
    research, own = accuracy.rows_of("research"), accuracy.rows_of("42")
    assert (len(research.X_train), len(research.X_test)) == (13_209, 4_128)
    assert research.y_test.var() == pytest.approx(published.VARIANCE, abs=5e-6)
    parts = split(HOUSING, HOUSING.load().table)
    assert own.X_test.equals(parts.X_test)
    assert (own.y_train == parts.y_train).all()
    for one in accuracy.SPLITS:
        rows = accuracy.rows_of(one)
        assert not set(rows.X_train.index) & set(rows.X_test.index)


def test_the_published_r2_follows_from_the_published_error() -> None:
    cells = [anchor.cell("research") for anchor in published.ANCHORS]
    assert cells[:2] == ["0.3789 (0.8899)", "0.3914 (0.8825)"]


def test_a_model_is_trained_once_and_again_only_by_other_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accuracy, "KEPT", tmp_path / "kept")
    found = accuracy.scored("42", "linear regression")
    assert accuracy.cell(found) == "0.7456 (0.5758)", "the anchor, to all its digits"
    assert accuracy.pipeline_of("linear regression").score(*_tested("42")) > 0.57
    with monkeypatch.context() as patched:
        patched.setattr(accuracy, "fit", None)
        assert accuracy.scored("42", "linear regression") == found
        patched.setattr(accuracy, "digest", lambda: "of other code")
        with pytest.raises(TypeError):
            accuracy.scored("42", "linear regression")


def _tested(name: str) -> tuple[Any, Any]:
    rows = accuracy.rows_of(name)
    return rows.X_test, rows.y_test


def test_the_page_of_accuracy_has_every_anchor_model_split_and_ablation() -> None:
    rows = rows_on(accuracy.PAGE, "table")
    names = [row[0].strip("*") for row in rows]
    assert names == [*(one.model for one in published.ANCHORS), *accuracy.MODELS]
    for row, anchor in zip(rows, published.ANCHORS, strict=False):
        assert row[1:] == [anchor.origin, *(anchor.cell(one) for one in accuracy.SPLITS)]
    for row, candidate in zip(rows[-len(accuracy.MODELS) :], accuracy.MODELS.values(), strict=True):
        assert row[1] == f"ours, `{candidate.name}`"
        assert all(re.fullmatch(r"0\.\d{4} \(0\.\d{4}\)", cell) for cell in row[2:]), row
    ablations = rows_on(accuracy.PAGE, "ablations")
    assert [row[0] for row in ablations] == [says for says, _ in accuracy.ABLATIONS]
    timed = [row[0] for row in rows_on(accuracy.PAGE, "speed")]
    assert {f"{name}, ONNX Runtime" for name in accuracy.MICROSECONDS} <= set(timed)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tables"], "'tables' is none of table, speed, ablations"),
        (["--splits", "43"], "'43' is not some of research,42,1,2,3,7,123"),
        (["table", "--splits", "42", "--write"], "only a table of all splits is published"),
    ],
)
def test_what_cannot_be_measured_or_published_is_said(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        accuracy.arguments_of(words)
    assert said in capsys.readouterr().err

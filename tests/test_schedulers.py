"""The three schedulers that ship: each runs a command that exists and may be repeated."""

from __future__ import annotations

import re
import shlex

import yaml
from conftest import REPOSITORY, run
from test_workflow import TEXT as CI_TEXT

from mlops.usecases import USE_CASES
from mlops.verbs import COMMANDS

CRON = (REPOSITORY / "deploy" / "cron" / "mlops-retrain").read_text()
TEXT = (REPOSITORY / ".github" / "workflows" / "retrain.yml").read_text()
WORKFLOW = yaml.load(TEXT, yaml.BaseLoader)  # so that `on` is a word and not a truth
JOB = WORKFLOW["jobs"]["retrain"]
MANIFEST = REPOSITORY / "deploy" / "kubernetes" / "retrain-cronjob.yaml"


def test_cron_asks_for_every_use_case_and_only_if_needed():
    lines = [line for line in CRON.splitlines() if re.match(r"[\d*]", line)]
    asked = []
    for line in lines:
        *times, user, command = line.split(None, 6)
        assert all(re.fullmatch(r"\d{1,2}|\*", time) for time in times)
        assert user == "mlops"
        words = shlex.split(command.partition(" 2>&1")[0])
        assert words[0] == "$MLOPS"
        assert words[1] in COMMANDS
        assert words[3] == "--if-needed"
        asked.append(words[2])
    assert sorted(asked) == sorted(USE_CASES)


def test_kubernetes_runs_one_at_a_time_in_the_image_that_trains():
    job = yaml.safe_load(MANIFEST.read_text())["spec"]
    assert job["concurrencyPolicy"] == "Forbid"
    (container,) = job["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    program, verb, option = container["command"]
    assert (program, option) == ("mlops", "--once")
    assert verb in COMMANDS
    compose = yaml.safe_load((REPOSITORY / "compose.yaml").read_text())
    assert container["image"] == compose["services"]["train"]["image"]


def test_the_workflow_runs_by_schedule_and_by_hand_and_may_only_read():
    assert set(WORKFLOW["on"]) == {"schedule", "workflow_dispatch"}
    assert WORKFLOW["on"]["workflow_dispatch"]["inputs"]["use_case"]["options"] == ["", *USE_CASES]
    assert WORKFLOW["permissions"] == {}
    assert JOB["permissions"] == {"contents": "read"}
    assert WORKFLOW["concurrency"]["cancel-in-progress"] == "false"
    assert [step["run"] for step in JOB["steps"] if "run" in step] == ["make retrain"]
    assert "secrets." not in TEXT


def test_its_actions_are_pinned_as_those_of_the_other_workflow():
    pins = re.findall(r"uses: (\S+@[0-9a-f]{40} # v\d+\.\d+\.\d+)$", TEXT, re.MULTILINE)
    assert len(pins) == sum("uses" in step for step in JOB["steps"])
    assert all(pin in CI_TEXT for pin in pins)


def test_a_reason_with_quotes_reaches_make_as_one_word(tmp_path):
    recipe = (REPOSITORY / "Makefile").read_text().partition("\nretrain:")[2].partition("\n\n")[0]
    assert '"$$USE_CASE" --reason "$$REASON"' in recipe
    (tmp_path / "mlops").write_text('#!/bin/sh\nprintf "[%s]" "$@"\n')
    (tmp_path / "mlops").chmod(0o755)
    reason = "prices; of \"May\" $(touch gone) 'x'"
    words = [
        "make",
        "-s",
        "-f",
        str(REPOSITORY / "Makefile"),
        "retrain",
        f"BIN={tmp_path}",
        "SETUP=true",
    ]
    done = run(*words, home=tmp_path, USE_CASE="iris", REASON=reason)
    assert done.stdout == f"[retrain][iris][--reason][{reason}]"
    assert not (tmp_path / "gone").exists()
    done = run(*words, home=tmp_path, USE_CASE="", REASON="")
    assert done.stdout == "[watch][--once]"

"""The workflow: what it may do, and that what it runs is what everybody runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
FILE = ROOT / ".github" / "workflows" / "ci-cd.yml"
TEXT = FILE.read_text()
WORKFLOW = yaml.load(TEXT, yaml.BaseLoader)  # so that `on` is a word and not a truth
JOBS: dict[str, dict[str, Any]] = WORKFLOW["jobs"]
STEPS = [
    pytest.param(name, step, id=f"{name}: {step.get('name') or step['uses'].split('@')[0]}")
    for name, job in JOBS.items()
    for step in job["steps"]
]
# Handing an image from job to job is the runner's business and not the project's.
PLUMBING = {
    "docker save --output image.tar mlops-housing-api",
    "docker load --input image.tar",
}


def verbs() -> set[str]:
    makefile = (ROOT / "Makefile").read_text()
    return set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))


def needs(job: str) -> set[str]:
    """Return the jobs that must have passed before `job`, at any distance."""
    direct = set(JOBS[job].get("needs", []))
    return direct.union(*(needs(other) for other in direct)) if direct else set()


@pytest.mark.parametrize(("job", "step"), STEPS)
def test_a_shell_step_is_a_verb_of_make(job: str, step: dict[str, Any]) -> None:
    if "run" not in step or step["run"] in PLUMBING:
        return
    make, *words = step["run"].split()
    assert make == "make"
    assert len(words) == 1
    assert set(words) <= verbs()


@pytest.mark.parametrize(("job", "step"), STEPS)
def test_an_action_is_pinned_by_commit_and_says_its_version(job: str, step: dict[str, Any]) -> None:
    if "uses" not in step:
        return
    assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", step["uses"])
    assert re.search(rf"{re.escape(step['uses'])} # v\d+\.\d+\.\d+$", TEXT, re.MULTILINE)


def test_one_action_is_one_version() -> None:
    used = set(re.findall(r"uses: (\S+ # \S+)", TEXT))
    assert len({line.split("@")[0] for line in used}) == len(used)


@pytest.mark.parametrize(("job", "step"), STEPS)
def test_the_token_is_not_left_in_the_checkout(job: str, step: dict[str, Any]) -> None:
    if step.get("uses", "").startswith("actions/checkout@"):
        assert step["with"]["persist-credentials"] == "false"


@pytest.mark.parametrize("job", JOBS)
def test_a_job_may_read_the_repository_and_no_more_and_ends(job: str) -> None:
    assert WORKFLOW["permissions"] == {}
    assert JOBS[job]["permissions"] == {"contents": "read"}
    assert 0 < int(JOBS[job]["timeout-minutes"]) <= 60


def test_strangers_cannot_have_the_workflow_run_with_secrets() -> None:
    assert set(WORKFLOW["on"]) == {"pull_request", "push", "schedule"}  # no pull_request_target
    assert WORKFLOW["on"]["push"] == {"branches": ["main"], "tags": ["v*"]}


@pytest.mark.parametrize("job", JOBS)
def test_only_publish_and_deploy_see_a_secret_each_in_its_environment(job: str) -> None:
    expected = {"publish": "docker-hub", "deploy": "production"}.get(job)
    assert ("secrets." in str(JOBS[job])) is (expected is not None)
    assert JOBS[job].get("environment") == expected


def test_only_main_and_releases_are_pushed_and_only_releases_deployed() -> None:
    assert JOBS["publish"]["if"] == (
        "github.event_name == 'push' "
        "&& (github.ref == 'refs/heads/main' || startsWith(github.ref, 'refs/tags/v'))"
    )
    assert JOBS["deploy"]["if"] == "startsWith(github.ref, 'refs/tags/v')"
    pushing = [name for name, job in JOBS.items() if "login-action" in str(job)]
    assert pushing == ["publish"]


def test_nothing_is_published_that_did_not_pass_everything_before() -> None:
    assert needs("image") == {"test", "audit"}
    assert needs("publish") == {"test", "audit", "image"}
    assert needs("deploy") == {"test", "audit", "image", "publish"}
    assert [step["run"] for step in JOBS["test"]["steps"] if "run" in step] == [
        "make check",
        "make test",
        "make test-all",
    ]


def test_the_image_is_tried_and_scanned_before_it_is_kept() -> None:
    order = [step.get("run") or step["uses"].split("@")[0] for step in JOBS["image"]["steps"]]
    wanted = ["make image", "make smoke", "anchore/scan-action", "actions/upload-artifact"]
    assert [order.index(name) for name in wanted] == sorted(order.index(name) for name in wanted)


def test_the_pythons_that_are_tested_begin_with_the_oldest_and_the_image_runs_one() -> None:
    pythons = JOBS["test"]["strategy"]["matrix"]["python"]
    project = (ROOT / "pyproject.toml").read_text()
    assert f'requires-python = ">={pythons[0]}"' in project
    assert pythons == ["3.11", "3.12", "3.13"]
    base = re.search(r"python:(\d\.\d+)", (ROOT / "Dockerfile").read_text())
    assert base is not None
    assert base[1] in pythons


def test_what_cannot_run_fails_before_everything_else() -> None:
    makefile = (ROOT / "Makefile").read_text()
    recipe = makefile.partition("\ncheck:")[2].partition("\n\n")[0]
    lines = [line.strip() for line in recipe.splitlines()[1:] if "$(SETUP)" not in line]
    assert "ruff check --quiet --select E9,F63,F7,F82 ." in lines[0]


def test_workflow_and_dependabot_are_linted_by_check() -> None:
    makefile = (ROOT / "Makefile").read_text()
    recipe = makefile.partition("\ncheck:")[2].partition("\n\n")[0]
    for tool in ("actionlint", "zizmor", "vendor.github-workflows", "vendor.dependabot"):
        assert tool in recipe

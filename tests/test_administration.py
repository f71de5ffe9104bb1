"""Who answers is changed by commands and over HTTP, and a running server follows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Server, typed
from test_serving import FLOWER, bundles, corrupt, until

from mlops.improve.ledger import Ledger

Command = Callable[..., tuple[int, str]]


@pytest.fixture
def command(home: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> Command:
    monkeypatch.setenv("MLOPS_HOME", str(home))
    return typed(capfd)


def lines(home: Path) -> list[tuple[str, str]]:
    with Ledger(home / "models" / "state.db") as ledger:
        assert ledger.verify().whole
        return [
            (one.action, one.reason)
            for one in ledger.decisions("iris")
            if one.action in ("shadow", "ab", "share", "end", "alias")
        ]


def test_an_experiment_is_begun_changed_and_stopped(command: Command, home: Path) -> None:
    told = command("experiment", "ab", "iris", "--share", "0.25", "--reason", "is it better?")
    assert told == (
        0,
        "iris: version 2 answers 0.25 of the clients, the others version 1 answers "
        "(experiment 1)\n",
    )
    code, printed = command("experiment", "share", "iris", "0.5", "--json")
    assert code == 0
    assert [share for _, share in json.loads(printed)["shares"]] == [0.25, 0.5]
    told = command("experiment", "stop", "iris", "--reason", "enough")
    assert told == (0, "iris: version 1 answers alone again, without 2\n")
    told = command("experiment", "shadow", "iris", "2", "--auto")
    assert told == (
        0,
        "iris: version 2 answers, unseen, what version 1 answers (experiment 2)\n",
    )
    assert lines(home) == [
        ("ab", "is it better?"),
        ("share", ""),
        ("end", "enough"),
        ("shadow", ""),
    ]


def test_what_cannot_be_is_refused_in_words_and_nothing_is_written(
    command: Command, home: Path
) -> None:
    restore = corrupt(home, bundles(home)[2])
    for words, code, says in (
        (("experiment", "ab", "iris", "2"), 1, "is corrupt"),
        (("alias", "iris", "canary", "2"), 1, "is corrupt"),
        (("experiment", "shadow", "iris", "1"), 2, "version 1 is the champion itself"),
        (("experiment", "shadow", "iris", "7"), 2, "no version 7"),
        (("experiment", "ab", "iris", "1", "--share", "1"), 2, "above 0 and below 1"),
        (("experiment", "share", "iris", "0.5"), 2, "no experiment that is open"),
        (("experiment", "stop", "iris"), 2, "no experiment that is open"),
        (("experiment", "stop", "tulips"), 2, "tulips"),
        (("alias", "iris", "canary"), 2, "needs a version, or --remove"),
        (("alias", "iris", "canary", "2", "--remove"), 2, "needs a version, or --remove"),
        (("alias", "iris", "--remove"), 2, "needs an alias"),
        (("alias", "iris", "champion", "1"), 2, "cannot be an alias"),
        (("alias", "iris", "canary", "--remove"), 2, "has no alias canary"),
    ):
        ended, printed = command(*words)
        assert says in printed, words
        assert ended == code, words
        assert "Traceback" not in printed
    restore()
    assert lines(home) == []


def test_aliases_are_given_listed_and_taken_away(command: Command, home: Path) -> None:
    assert command("alias", "iris") == (0, "iris has no alias\n")
    code, printed = command("alias", "iris", "canary", "2", "--reason", "by name", "--json")
    assert (code, json.loads(printed)) == (0, {"canary": 2})
    assert "canary" in command("alias", "iris")[1]
    assert command("alias", "iris", "canary", "--remove") == (0, "iris has no alias\n")
    assert lines(home) == [("alias", "by name"), ("alias", "")]


def test_over_http_an_experiment_is_begun_and_followed_and_a_rollback_ends_it(
    serve: Callable[..., Server], home: Path
) -> None:
    server = serve("iris")

    def admin(path: str, **body: Any) -> tuple[int, Any]:
        # To go back takes a process with all libraries: seconds, on a busy machine many.
        return server.request(f"/admin/{path}", {"use_case": "iris", **body}, timeout=120)

    def health() -> Any:
        return server.request("/")[1]

    code, begun = admin("experiment", action="ab", version=2, share=0.25, reason="over HTTP")
    assert code == 200, begun
    assert (begun["champion"], begun["challenger"], begun["share"]) == (1, 2, 0.25)
    until(lambda: health()["share"] == 0.25)
    assert server.request("/models/challenger/predict", FLOWER)[1]["model_version"] == 2
    [told] = server.request("/experiments")[1]["use_cases"]
    assert told["experiment"]["id"] == begun["id"]
    assert admin("experiment", action="share", share=0.5)[1]["share"] == 0.5
    until(lambda: health()["share"] == 0.5)
    for body, status, says in (
        ({"action": "ab", "version": 2, "share": 0.1}, 409, "is held against version 1 already"),
        ({"action": "ab", "version": 2}, 409, "ab needs a share"),
        ({"action": "share", "share": 1}, 409, "above 0 and below 1"),
        ({"action": "share", "share": 2}, 422, "less than or equal to 1"),
        ({"action": "grow", "share": 0.5}, 422, "'shadow', 'ab', 'share' or 'stop'"),
        ({"action": "stop", "use_case": "housing"}, 409, "no use case housing is served here"),
    ):
        code, refused = admin("experiment", **body)
        assert (code, says in refused["detail"][0]["msg"]) == (status, True), refused
    with Ledger(home / "models" / "state.db") as ledger:
        second = ledger.version("iris", 2)
        ledger.promote(second, expected=1, reason="it won", evidence=[])
    until(lambda: health()["models"] == {"champion": 2, "fallback": 1, "1": 1, "2": 2})
    assert admin("experiment", action="shadow", version=1)[0] == 200
    assert admin("rollback", reason="")[0] == 422
    code, back = admin("rollback", reason="a drill")
    assert (code, back["version"], back["previous"]) == (200, 1, 2), back
    until(lambda: health()["model_version"] == 1)
    assert admin("experiment", action="stop")[0] == 409, "the rollback has ended it"
    assert admin("rollback", reason="again")[0] == 409
    assert [action for action, _ in lines(home)] == ["ab", "share", "end", "shadow", "end"]


def test_a_state_database_that_is_away_is_503_and_no_answer_names_a_folder(
    serve: Callable[..., Server], home: Path, tmp_path: Path
) -> None:
    models = tmp_path / "elsewhere"
    (home / "models").rename(models)
    server = serve("iris", MLOPS_MODELS=str(models))

    def admin(path: str, **body: Any) -> tuple[int, str]:
        code, answer = server.request(f"/admin/{path}", {"use_case": "iris", **body}, timeout=120)
        return code, json.dumps(answer, ensure_ascii=False)

    asked = (
        ("promote", {"version": 2}),
        ("rollback", {"reason": "a drill"}),
        ("experiment", {"action": "shadow", "version": 2}),
    )
    (models / "bundles" / bundles_in(models)[2]).rename(tmp_path / "aside")
    for path, body in (asked[0], asked[2]):
        code, says = admin(path, **body)
        assert (code, str(tmp_path) in says) == (409, False), says
    for path in models.glob("state.db*"):
        path.unlink()
    (models / "state.db").mkdir()
    for path, body in asked:
        code, says = admin(path, **body)
        assert (code, str(tmp_path) in says) == (503, False), says
        assert "try again" in says
    told = (home / "server.out").read_text()
    for path, _ in asked:
        assert f"/admin/{path} could not be answered" in told
    assert told.count(f"the state database {models}/state.db cannot be used") >= len(asked)


def bundles_in(models: Path) -> dict[int, str]:
    with Ledger(models / "state.db") as ledger:
        return {one.version: one.bundle for one in ledger.versions("iris")}

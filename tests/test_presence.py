"""A promotion returns when all who serve have switched, and says who has not."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
import tiny
from rich.console import Console
from test_serving import FLOWER, Serve, promote
from traffic import post, send

from mlops import tables
from mlops.deploy import service
from mlops.deploy.service import Service
from mlops.improve.ledger import Ledger
from mlops.loop.follow import Follower
from mlops.loop.presence import Presence, wait
from mlops.loop.promote import promote as run_promote
from mlops.loop.rollback import rollback as run_rollback
from mlops.loop.serve import _presence
from mlops.settings import read_settings
from mlops.usecases.iris import IRIS

ME = f"the server's process {os.getpid()}"


@pytest.fixture
def present(tmp_path: Path) -> Iterator[Presence]:
    present = Presence(tmp_path, "iris")
    yield present
    present.close()


def test_who_serves_nothing_or_another_use_case_is_not_waited_for(tmp_path: Path) -> None:
    assert wait(tmp_path / "none", "iris", 1, 1) == ()
    other = Presence(tmp_path / "new" / "folder", "housing")
    assert wait(tmp_path / "new" / "folder", "iris", 1, 1) == ()
    other.close()
    assert not any((tmp_path / "new" / "folder").iterdir())


def test_all_who_serve_are_waited_for_until_they_have_switched(
    tmp_path: Path, present: Presence
) -> None:
    second = Presence(tmp_path, "iris")
    present.tell(7, 2, "")
    second.tell(6, 1, "")
    threading.Timer(0.1, second.tell, (7, 2, "")).start()
    started = time.monotonic()
    assert wait(tmp_path, "iris", 7, 2) == ()
    assert 0.09 < time.monotonic() - started < 5
    second.close()


def test_who_does_not_switch_in_time_is_named_with_what_it_answers_with(
    tmp_path: Path, present: Presence
) -> None:
    assert wait(tmp_path, "iris", 7, 2, 0.05) == (
        f"{ME} has not switched in 0.05 s: nobody answers there",
    )
    present.tell(6, 1, "")
    assert wait(tmp_path, "iris", 7, 2, 0.05) == (
        f"{ME} has not switched in 0.05 s: version 1 answers there",
    )


def test_who_refuses_the_version_is_named_at_once_and_who_went_on_to_another_is_not(
    tmp_path: Path, present: Presence
) -> None:
    present.tell(7, 1, "version 2 was refused: it is damaged")
    assert wait(tmp_path, "iris", 7, 2) == (
        f"{ME} does not answer with version 2: version 2 was refused: it is damaged",
    )
    present.tell(8, 3, "")
    assert wait(tmp_path, "iris", 7, 2) == ()


def test_what_is_just_being_written_is_looked_at_again(tmp_path: Path, present: Presence) -> None:
    present.tell(7, 2, "")
    os.truncate(present._path, 5)
    assert len(wait(tmp_path, "iris", 7, 2, 0.05)) == 1
    present.tell(8, 2, "")
    assert wait(tmp_path, "iris", 7, 2) == ()


def test_a_killed_process_is_not_waited_for_and_its_file_goes(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from mlops.loop.presence import Presence\n"
        "Presence(Path(sys.argv[1]), 'iris'); print('there', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        assert len(wait(tmp_path, "iris", 1, 1, 0.05)) == 1
        process.kill()
    assert wait(tmp_path, "iris", 1, 1) == ()
    assert not any(tmp_path.iterdir())


def test_a_file_of_somebody_who_is_there_is_never_taken_for_a_dead_ones(tmp_path: Path) -> None:
    """A process is seen only once it holds its lock."""
    seen = []
    flock = fcntl.flock

    def watched(descriptor: int, operation: int) -> None:
        seen.extend(tmp_path.glob("iris.*"))
        flock(descriptor, operation)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fcntl, "flock", watched)
        Presence(tmp_path, "iris").close()
    assert seen == []


# What a server tells


def test_a_follower_tells_what_it_took_up_once_older_answers_are_out(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "LONGEST_FLUSH", 0.05)
    settings = read_settings(MLOPS_HOME=home)

    async def test(ledger: Ledger, present: Presence) -> None:
        log, iris = tiny.ListLog(), Service(IRIS)
        iris.start(log, synced=False)
        follower = Follower(iris, ledger, settings, present)
        follower.look()
        assert late(0) == ()
        log.gate.clear()
        answers: list[service.Reply] = []
        iris.predict(orjson.dumps(FLOWER), (), "/predict", answers.append)
        await asyncio.sleep(0.01)  # the group of version 1 begins, and waits for the log
        promote(home, 2)
        assert len(late(2)) == 1
        await follower.look_aside()
        assert iris.champion is not None
        assert iris.champion.version == 2
        assert len(late(2)) == 1, "an answer of version 1 is still to come"
        log.gate.set()
        await follower.look_aside()
        assert [answer.model_version for answer in answers] == [1]
        assert late(2) == ()
        await iris.stop()

    def late(version: int) -> tuple[str, ...]:
        with Ledger(settings.state_database) as ledger:
            return wait(settings.serving, "iris", ledger.last_line(), version, 0)

    present = Presence(settings.serving, "iris")
    with Ledger(settings.state_database) as ledger:
        asyncio.run(test(ledger, present))
    present.close()


def test_a_decision_about_another_use_case_is_taken_up_too(home: Path) -> None:
    settings = read_settings(MLOPS_HOME=home)
    present = Presence(settings.serving, "iris")

    async def test(ledger: Ledger) -> None:
        iris = Service(IRIS)
        iris.start(tiny.ListLog(), synced=False)
        follower = Follower(iris, ledger, settings, present)
        follower.look()
        ledger.write_down("retrain", "housing", reason="a test", evidence=[])
        line = ledger.last_line()
        assert len(wait(settings.serving, "iris", line, 1, 0)) == 1
        await follower.look_aside()
        assert wait(settings.serving, "iris", line, 1, 0) == ()
        await iris.stop()

    with Ledger(settings.state_database) as ledger:
        asyncio.run(test(ledger))
    present.close()


def test_after_a_promotion_no_worker_answers_with_the_version_before(
    serve: Serve, home: Path
) -> None:
    server = serve("iris", WORKERS="2")
    for number in (2, 1):
        promote(home, number)
        with Ledger(home / "models" / "state.db") as ledger:
            assert wait(home / "models" / "serving", "iris", ledger.last_line(), number) == ()
        replies = send(server.port, [post("/predict", FLOWER)] * 200, connections=16)
        assert {reply.json["model_version"] for reply in replies if reply} == {number}
    server.stop()
    assert not any((home / "models" / "serving").iterdir())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of MLflow's
@pytest.mark.parametrize("command", ["promote", "rollback"])
def test_what_changes_the_champion_says_who_does_not_answer_with_it(
    home: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = read_settings(MLOPS_HOME=home)
    promote(home, 2)
    present = Presence(settings.serving, "iris")
    present.tell(1_000, 7, "it is damaged")
    if command == "promote":
        result = run_promote("iris", 2, settings=settings)  # it is champion already
        tables.promotion(result, Console(width=200))
    else:
        result = run_rollback("iris", reason="a test", settings=settings)
        tables.late(result, Console(width=200))
    present.close()
    assert f"{ME} does not answer with version" in capsys.readouterr().out
    assert "it is damaged" in result.late[0]


def test_a_server_whose_models_cannot_be_written_starts_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("no folder")
    with contextlib.ExitStack() as ends:
        settings = read_settings(MLOPS_HOME=tmp_path)
        assert _presence(Service(IRIS), settings, ends) is None

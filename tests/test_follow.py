"""Following the state database: which versions are opened, who answers, and what is refused."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import tiny
from conftest import Server
from test_serving import FLOWER, bundles, corrupt, promote, until
from traffic import Reply, post, send

from mlops.deploy.service import Service
from mlops.improve.ledger import Ledger
from mlops.loop import follow
from mlops.loop.follow import Follower
from mlops.package.bundle import open_bundle
from mlops.settings import read_settings
from mlops.usecase import UseCase
from mlops.usecases.iris import IRIS


class World:
    """A service that follows the state database of `home`, in which iris has two versions."""

    def __init__(self, home: Path, ledger: Ledger, use_case: UseCase) -> None:
        self.home = home
        self.ledger = ledger
        self.service = Service(use_case)
        self.service.start(tiny.ListLog(), synced=False)
        self.follower = Follower(self.service, ledger, read_settings(MLOPS_HOME=home))

    def look(self, *, late: bool = False) -> tuple[dict[str, int], float, str]:
        """Look once; return who answers, the share, and what health says."""
        if late:
            self.follower._try_again = 0
        self.follower.look()
        health = self.service.health()
        return health["models"], health["share"], health["message"]


@contextlib.asynccontextmanager
async def following(home: Path, use_case: UseCase = IRIS) -> AsyncIterator[World]:
    with Ledger(home / "models" / "state.db") as ledger:
        world = World(home, ledger, use_case)
        yield world
        await world.service.stop()


ALONE = {"champion": 1, "1": 1}
BOTH = {"champion": 1, "challenger": 2, "1": 1, "2": 2}


def test_a_challenger_is_opened_its_share_followed_and_it_is_closed_at_the_end(home: Path) -> None:
    async def test() -> None:
        async with following(home) as world:
            assert world.look() == (ALONE, 0.0, "Iris is answering")
            experiments = world.ledger.experiments
            begun = experiments.begin("iris", "ab", 2, share=0.25)
            assert world.look()[:2] == (BOTH, 0.25)
            challenger = world.service.models()["challenger"]
            experiments.set_share(begun.id, 0.5)
            assert world.look()[:2] == (BOTH, 0.5)
            assert world.service.models()["challenger"] is challenger, "opened once"
            experiments.end(begun.id, "stopped")
            assert world.look()[:2] == (ALONE, 0.0)
            experiments.begin("iris", "shadow", 2)
            assert world.look()[:2] == (BOTH, 0.0)
            assert world.service.lineup.split is None

    asyncio.run(test())


def test_a_promotion_ends_the_split_and_the_champion_before_stays_open(home: Path) -> None:
    async def test() -> None:
        async with following(home) as world:
            world.ledger.experiments.begin("iris", "ab", 2, share=0.25)
            world.look()
            challenger = world.service.models()["challenger"]
            promote(home, 2)
            assert world.look()[:2] == ({"champion": 2, "fallback": 1, "1": 1, "2": 2}, 0.0)
            assert world.service.champion is challenger
            shutil.rmtree(home / "models" / "bundles" / bundles(home)[1])
            first = world.ledger.version("iris", 1)
            world.ledger.promote(first, expected=2, reason="", evidence=[], action="rollback")
            assert world.look()[2] == "Iris is answering", "its bundle was open"
            assert world.service.champion.version == 1

    asyncio.run(test())


def test_aliases_are_opened_and_closed_and_one_of_them_is_the_fallback(home: Path) -> None:
    async def test() -> None:
        async with following(home) as world:
            second = world.ledger.version("iris", 2)
            world.ledger.set_alias(second, "canary")
            world.ledger.set_alias(second, "fallback")
            found = {"champion": 1, "canary": 2, "fallback": 2, "1": 1, "2": 2}
            assert world.look()[0] == found
            assert world.service.lineup.fallback.version == 2
            for alias in ("canary", "fallback"):
                world.ledger.remove_alias("iris", alias)
            assert world.look()[0] == ALONE
            assert world.service.lineup.fallback is None

    asyncio.run(test())


@pytest.mark.parametrize("role", ["challenger", "alias canary"])
def test_who_cannot_be_opened_is_refused_by_name_until_the_bundle_is_restored(
    home: Path, role: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with following(home) as world:
            restore = corrupt(home, bundles(home)[2])
            if role == "challenger":
                world.ledger.experiments.begin("iris", "ab", 2, share=0.5)
            else:
                world.ledger.set_alias(world.ledger.version("iris", 2), "canary")
            for _ in range(2):
                models, share, says = world.look(late=True)
                assert (models, share) == (ALONE, 0.0)
                assert f"is answering; version 2, the {role}, was refused: bundle" in says
                assert "corrupt" in says
            assert world.service.not_ready() == ""
            assert caplog.text.count("was refused") == 1, "each try is complained of"
            restore()
            models, _, says = world.look(late=True)
            assert models["2"] == 2
            assert "refused" not in says

    asyncio.run(test())


def test_where_the_champion_cannot_be_opened_at_the_start_the_one_before_answers(
    home: Path,
) -> None:
    async def test() -> None:
        promote(home, 2)
        restore = corrupt(home, bundles(home)[2])
        async with following(home) as world:
            models, _, says = world.look()
            assert models == {"champion": 1, "fallback": 1, "1": 1}
            assert "is answering; version 2 was refused: bundle" in says
            restore()
            models, _, says = world.look(late=True)
            assert models == {"champion": 2, "fallback": 1, "1": 1, "2": 2}
            assert "refused" not in says

    asyncio.run(test())


def test_a_champion_before_whose_bundle_is_gone_is_missed_by_nobody_yet(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        promote(home, 2)
        shutil.rmtree(home / "models" / "bundles" / bundles(home)[1])
        # Whoever ran a server in this process may have left it silent.
        caplog.set_level("WARNING", logger="uvicorn.error")
        async with following(home) as world:
            for _ in range(2):
                assert world.look(late=True) == (
                    {"champion": 2, "2": 2},
                    0.0,
                    "Iris is answering",
                )
        assert caplog.text.count("nobody answers if the champion fails") == 1

    asyncio.run(test())


def test_while_nothing_is_decided_nothing_is_read(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        async with following(home) as world:
            world.look()
            monkeypatch.setattr(follow, "wanted", lambda *_: pytest.fail("it was read again"))
            world.look()

    asyncio.run(test())


# --- golden rows that the use case refuses by now

GOLDEN = "cannot answer its golden row "


def narrow(bundle: str, home: Path) -> UseCase:
    """Return iris with a limit that only some golden rows of a bundle keep."""
    golden = open_bundle(home / "models" / "bundles" / bundle).golden["fields"]
    values = [row[0] for row in golden]
    assert min(values) < max(values)
    first, *others = IRIS.features
    middle = dataclasses.replace(first, high=(min(values) + max(values)) / 2)
    return dataclasses.replace(IRIS, features=(middle, *others))


def test_golden_rows_that_the_schema_refuses_keep_the_version_out_at_the_start(home: Path) -> None:
    async def test() -> None:
        promote(home, 2)
        async with following(home, narrow(bundles(home)[2], home)) as world:
            models, _, says = world.look()
            assert models == {}
            assert "version 2 was refused: bundle" in says
            assert GOLDEN in says
            assert "must be at most" in says

    asyncio.run(test())


@pytest.mark.parametrize("narrowed", [True, False])
def test_a_version_that_raises_on_its_golden_rows_does_not_end_the_version_that_answers(
    home: Path, narrowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        async with following(home) as world:
            assert world.look() == (ALONE, 0.0, "Iris is answering")
            with monkeypatch.context() as patched:
                if narrowed:
                    other = Service(narrow(bundles(home)[2], home))
                    patched.setattr(world.service, "reader", other.reader)
                else:
                    patched.setattr(Service, "_write_batch", lambda *_: IRIS.fields[9])
                promote(home, 2)
                for _ in range(2):
                    models, _, says = world.look(late=True)
                    assert models["champion"] == 1
                    assert GOLDEN in says
                    assert ("must be at most" if narrowed else "IndexError") in says
            assert world.look(late=True)[0]["champion"] == 2, "it was tried again"

    asyncio.run(test())


# --- with workers


def versions(server: Server, clients: int) -> list[int]:
    """Which version answers each client, over many connections and so in every worker."""
    asks = [
        post("/predict", FLOWER, X_Client_ID=f"client {number % clients}")
        for number in range(4 * clients)
    ]
    replies: list[Reply | None] = send(server.port, asks, connections=16)
    found: dict[int, set[int]] = {}
    for number, reply in enumerate(replies):
        assert reply is not None
        assert reply.status == 200
        found.setdefault(number % clients, set()).add(reply.json["model_version"])
    assert all(len(each) == 1 for each in found.values()), "a client met both models"
    return [each.pop() for _, each in sorted(found.items())]


def test_clients_keep_their_model_over_two_workers_and_a_restart_and_a_share_is_followed_live(
    serve: Callable[..., Server], home: Path
) -> None:
    with Ledger(home / "models" / "state.db") as ledger:
        begun = ledger.experiments.begin("iris", "ab", 2, share=0.3)
        server = serve("iris", WORKERS="2")
        before = versions(server, 100)
        assert 15 < before.count(2) < 45
        ledger.experiments.set_share(begun.id, 0.6)
        until(lambda: all(server.request("/")[1]["share"] == 0.6 for _ in range(20)))
        after = versions(server, 100)
        assert all(b == 2 for a, b in zip(before, after, strict=True) if a == 2)
        assert after.count(2) > before.count(2)
        assert server.stop() == 0
        assert versions(serve("iris", WORKERS="2"), 100) == after

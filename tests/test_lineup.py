"""Several models at once: who answers whom, under which name, and who where one fails."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from conftest import strict_json
from test_service import HOUSE, BrokenBundle, World, body, house, predict, running, sum_of, turns

from mlops.deploy.lineup import Lineup, Split
from mlops.deploy.predictor import Champion
from mlops.deploy.service import Reply, Service
from mlops.monitor.log import PredictionLog
from mlops.package.model import Output
from mlops.usecase import UseCase
from mlops.usecases.housing import HOUSING
from mlops.usecases.iris import IRIS

CHAMPION, CHALLENGER, OTHER = (tiny.champion(HOUSING, version) for version in (1, 2, 3))
Told = list[tuple[int, str, int]]


def ab(share: float = 0.5, salt: str = "salt", **more: Any) -> Lineup:
    return Lineup(CHAMPION, CHALLENGER, Split(CHALLENGER, share, salt), **more)


def beside(lineup: Lineup, test: Callable[[World], Awaitable[None]], **world: Any) -> World:
    """Run a test over a world in which these models answer."""

    async def lined_up(made: World) -> None:
        made.service.swap(lineup)
        await test(made)

    return running(lined_up, use_case=HOUSING, **world)


def version_of(reply: Reply) -> int:
    """The version that answered, which the answer itself must agree with."""
    assert reply.status == 200, reply.body
    answer = strict_json(reply.body)
    assert reply.model_version == answer["model_version"]
    return int(answer["model_version"])


async def asked(world: World, *clients: str) -> list[int]:
    replies = await asyncio.gather(*(world.ask(house(5.0), x_client_id=one) for one in clients))
    return [version_of(reply) for reply in replies]


# --- for a share of the clients


def test_a_client_is_answered_by_the_same_model_each_time_and_after_a_restart() -> None:
    clients = [f"client {number}" for number in range(300)]
    found = []
    for _ in range(2):

        async def test(world: World) -> None:
            world.service._secret = b"the same in each process"
            versions = await asked(world, *clients)
            assert versions == await asked(world, *clients)
            found.append(versions)

        beside(ab(0.3), test)
    assert found[0] == found[1]
    assert 60 < found[0].count(2) < 120, "about 90 of 300"


def test_a_share_that_grows_takes_clients_and_gives_none_back() -> None:
    clients = [f"client {number}" for number in range(300)]

    async def test(world: World) -> None:
        before = await asked(world, *clients)
        world.service.swap(ab(0.4))
        after = await asked(world, *clients)
        assert all(b == 2 for a, b in zip(before, after, strict=True) if a == 2)
        assert 2 * before.count(2) < after.count(2)

    beside(ab(0.1), test)


def test_who_gives_no_name_is_divided_by_what_they_ask() -> None:
    async def test(world: World) -> None:
        asks = [house(float(number)) for number in range(1, 101)]
        first = [version_of(await world.ask(one)) for one in asks]
        assert first == [version_of(await world.ask(one)) for one in asks]
        assert 25 < first.count(2) < 75

    beside(ab(), test)


def test_each_answer_and_each_row_is_of_the_model_that_it_names() -> None:
    """Groups mix both models, and each runs once over all its rows."""
    runs: Counter[int] = Counter()

    async def test(world: World) -> None:
        world.log.gate.clear()
        first = world.ask(house(1.0))
        await turns()
        asks = [world.ask(house(float(number)), x_client_id=str(number)) for number in range(2, 60)]
        await turns()
        before = Counter({one: world.service.runs(one) for one in (1, 2)})
        world.log.gate.set()
        for number, one in enumerate([first, *asks], 1):
            answer = strict_json((await one).body)
            expected = answer["model_version"] * sum_of({**HOUSE, "population": number})
            assert answer["predicted_price"] == pytest.approx(expected, rel=1e-12)
        runs.update({one: world.service.runs(one) - before[one] for one in (1, 2)})

    rows = beside(ab(), test).log.rows
    assert {(row.model_version, int(row.bundle[-1])) for row in rows} == {(1, 1), (2, 2)}
    assert runs == {1: 1, 2: 1}


def test_a_batch_is_answered_by_one_model() -> None:
    batch = json.dumps({"instances": [{**HOUSE, "population": float(n)} for n in range(1, 99)]})

    async def test(world: World) -> None:
        app = tiny.app_over(world.service)
        seen = set()
        for number in range(20):
            headers = {"X-Client-ID": f"client {number}"} if number else {}
            headers = {name.lower(): value for name, value in headers.items()}
            answer = await tiny.ask(app, "POST", "/predict/batch", batch.encode(), headers)
            [version] = {one["model_version"] for one in answer.json["predictions"]}
            alone = await tiny.ask(app, "POST", "/predict", house(5.0), headers)
            if number:
                assert alone.json["model_version"] == version
            seen.add(version)
        assert seen == {1, 2}

    beside(ab(), test)


def test_the_inference_protocol_divides_clients_alike_and_a_version_in_the_path_is_obeyed() -> None:
    tensor = {"name": "instances", "shape": [1, 8], "datatype": "FP64", "data": [*HOUSE.values()]}
    content = json.dumps({"inputs": [tensor]}).encode()

    async def test(world: World) -> None:
        app = tiny.app_over(world.service)
        seen = Counter()
        for number in range(20):
            headers = {"x-client-id": f"client {number}"}
            alone = await tiny.ask(app, "POST", "/predict", house(5.0), headers)
            answer = await tiny.ask(app, "POST", "/v2/models/housing/infer", content, headers)
            assert answer.json["model_version"] == str(alone.json["model_version"])
            seen[answer.json["model_version"]] += 1
            for version in ("1", "2"):
                path = f"/v2/models/housing/versions/{version}/infer"
                answer = await tiny.ask(app, "POST", path, content, headers)
                assert answer.json["model_version"] == version
        assert seen.keys() == {"1", "2"}
        listed = await tiny.ask(app, "GET", "/v2/models/housing")
        assert listed.json["versions"] == ["1", "2"]

    beside(ab(), test)


def test_a_resend_is_given_the_first_answer_though_the_share_has_changed(tmp_path: Path) -> None:
    async def test() -> None:
        service = Service(HOUSING)
        log = PredictionLog(tmp_path, "housinglogs", "crash")
        service.start(log, synced=False, secret=b"the same arm in each run")
        try:
            service.swap(ab(0.01))
            headers = [(b"x-client-id", b"one"), (b"idempotency-key", b"42")]
            first = await predict(service, house(5.0), headers)
            assert version_of(first) == 1
            service.swap(ab(0.99))
            again = await predict(service, house(5.0), headers)
            assert again.body == first.body
            assert version_of(again) == 1
            assert version_of(await predict(service, house(5.0), headers[:1])) == 2
        finally:
            await service.stop()

    asyncio.run(test())


# --- under a name


def test_a_model_answers_under_its_role_its_alias_and_its_number() -> None:
    lineup = ab(aliases={"canary": OTHER}, fallback=OTHER)

    async def test(world: World) -> None:
        app = tiny.app_over(world.service)
        batch = json.dumps({"instances": [HOUSE, HOUSE]}).encode()
        names = {"champion": 1, "challenger": 2, "canary": 3, "fallback": 3, "1": 1, "2": 2, "3": 3}
        for name, version in names.items():
            for client in ("ann", "bob", "cid"):
                headers = {"x-client-id": client}
                path = f"/models/{name}/predict"
                answer = await tiny.ask(app, "POST", path, house(5.0), headers)
                assert answer.status == 200
                assert answer.json["model_version"] == version
                both = await tiny.ask(app, "POST", f"{path}/batch", batch, headers)
                assert [one["model_version"] for one in both.json["predictions"]] == [version] * 2
        health = (await tiny.ask(app, "GET", "/")).json
        assert health["models"] == names
        assert health["share"] == 0.5

    assert len(beside(lineup, test).log.rows) == 7 * 3 * 3


def test_a_name_that_nobody_has_is_a_404_with_those_that_somebody_has() -> None:
    async def test(world: World) -> None:
        app = tiny.app_over(world.service)
        for path in ("/models/7/predict", "/models/canari/predict/batch"):
            answer = await tiny.ask(app, "POST", path, house(5.0))
            assert answer.status == 404
            says = answer.json["detail"][0]["msg"]
            assert "there are: champion, challenger, canary, 1, 2, 3" in says
            assert "mlops alias housing ALIAS VERSION" in says
        wrong = await tiny.ask(app, "POST", "/models/canary/predict", b"{}")
        assert wrong.status == 422
        large = await tiny.ask(app, "POST", "/models/canary/predict", b" " * (app.limits.body + 1))
        assert large.status == 413

    assert beside(ab(aliases={"canary": OTHER}), test).log.rows == []


def test_without_any_model_a_name_is_a_503_like_everything() -> None:
    async def test() -> None:
        service = Service(HOUSING)
        service.start(tiny.ListLog(), synced=False)
        answer = await tiny.ask(
            tiny.app_over(service), "POST", "/models/champion/predict", house(5.0)
        )
        await service.stop()
        assert answer.status == 503
        assert "mlops up housing" in answer.json["detail"][0]["msg"]

    asyncio.run(test())


def test_several_use_cases_have_such_routes_each_and_the_root_has_none() -> None:
    async def test() -> None:
        services = [Service(HOUSING), Service(IRIS)]
        for service in services:
            service.start(tiny.ListLog(), synced=False)
            service.swap(tiny.champion(service.use_case, 2))
        app = tiny.app_over(*services)
        for path, content in (("/housing", house(5.0)), ("/iris", body())):
            answer = await tiny.ask(app, "POST", f"{path}/models/2/predict", content)
            assert answer.json["model_version"] == 2
        assert (await tiny.ask(app, "POST", "/models/2/predict", house(5.0))).status == 404
        assert "/iris/models/{name}/predict/batch" in app.openapi()["paths"]
        for service in services:
            await service.stop()

    asyncio.run(test())


# --- where one fails


def broken(version: int, use_case: UseCase = HOUSING) -> Champion:
    return Champion(use_case, version, "Broken", BrokenBundle(use_case, version))


def odd(version: int, use_case: UseCase = HOUSING, *, value: float = float("nan")) -> Champion:
    """A model that gives nan, say, for every row whose first field is not 5."""
    model = tiny.champion(use_case, version)
    run = model._model.run

    def oddly(rows: np.ndarray) -> Output:
        output = run(rows)
        wrong = rows[:, 0] != 5.0
        if output.probabilities is None:
            return output._replace(prediction=np.where(wrong, value, output.prediction))
        return output._replace(probabilities=np.where(wrong[:, None], value, output.probabilities))

    model._model.run = oddly
    return model


def telling(told: Told) -> Callable[[int, BaseException, int], None]:
    return lambda version, error, rows: told.append((version, type(error).__name__, rows))


@pytest.mark.parametrize("rows", [1, 300])
def test_where_the_champion_raises_the_fallback_answers_and_says_so(rows: int) -> None:
    told: Told = []
    batch = json.dumps({"instances": [HOUSE] * rows}).encode()

    async def test(world: World) -> None:
        world.service.on_failure = telling(told)
        app = tiny.app_over(world.service)
        answer = await tiny.ask(app, "POST", "/predict/batch", batch)
        assert answer.status == 200
        for one in answer.json["predictions"]:
            assert one["model_version"] == 2
            assert one["predicted_price"] == pytest.approx(2 * sum_of(HOUSE), rel=1e-12)
            assert one["warnings"] == ["version 7 could not answer this: version 2 did"]
        assert [world.service.runs(version) for version in (2, 7)] == [1, 0]

    logged = beside(Lineup(broken(7), fallback=CHALLENGER), test).log.rows
    assert [(row.model_version, row.bundle[-1]) for row in logged] == [(2, "2")] * rows
    assert told == [(7, "ZeroDivisionError", rows)]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("use_case", [HOUSING, IRIS])
def test_where_an_answer_is_not_finite_the_fallback_gives_another_to_that_request_alone(
    use_case: UseCase, value: float
) -> None:
    told: Told = []
    record = next(iter(use_case.examples.values()))
    first = use_case.fields[0]

    async def test(world: World) -> None:
        world.service.on_failure = telling(told)
        world.service.swap(
            Lineup(odd(1, use_case, value=value), fallback=tiny.champion(use_case, 2))
        )
        world.log.gate.clear()
        asks = [
            world.ask(json.dumps({**record, first: one}).encode()) for one in (5.0, 6.0, 5.0, 7.0)
        ]
        await turns()
        world.log.gate.set()
        answers = [strict_json((await one).body) for one in asks]
        assert [one["model_version"] for one in answers] == [1, 2, 1, 2]
        assert [len(one["warnings"]) for one in answers] == [0, 1, 0, 1]

    running(test, use_case=use_case)
    assert sum(rows for *_, rows in told) == 2
    assert {(version, name) for version, name, _ in told} == {(1, "NotFiniteError")}


def test_numbers_that_are_large_but_finite_are_answers() -> None:
    async def test(world: World) -> None:
        world.service.swap(Lineup(odd(1, value=1.7e308), fallback=CHALLENGER))
        batch = json.dumps({"instances": [{**HOUSE, HOUSING.fields[0]: 6.0}] * 3}).encode()
        answer = await tiny.ask(tiny.app_over(world.service), "POST", "/predict/batch", batch)
        assert [one["predicted_price"] for one in answer.json["predictions"]] == [1.7e308] * 3

    running(test, use_case=HOUSING)


def test_where_the_challenger_fails_the_champion_answers_in_its_place() -> None:
    told: Told = []
    challenger = broken(2)
    lineup = Lineup(CHAMPION, challenger, Split(challenger, 0.5, "salt"), fallback=OTHER)

    async def test(world: World) -> None:
        world.service.on_failure = telling(told)
        world.log.gate.clear()
        first = world.ask(house(5.0), x_client_id="first")
        await turns()
        asks = [world.ask(house(5.0), x_client_id=str(number)) for number in range(40)]
        await turns()
        world.log.gate.set()
        answers = [strict_json((await one).body) for one in [first, *asks]]
        assert {one["model_version"] for one in answers} == {1}
        warned = [one["warnings"] for one in answers if one["warnings"]]
        assert 10 < len(warned) < 31
        assert warned[0] == ["version 2 could not answer this: version 1 did"]
        assert len(warned) == sum(rows for *_, rows in told)

    beside(lineup, test)


@pytest.mark.parametrize("fallback", [None, broken(3)])
def test_where_nobody_can_answer_instead_only_those_requests_fail(
    fallback: Champion | None, caplog: pytest.LogCaptureFixture
) -> None:
    lineup = Lineup(odd(1), aliases={"canary": CHALLENGER}, fallback=fallback)

    async def test(world: World) -> None:
        app = tiny.app_over(world.service)
        wrong = json.dumps({**HOUSE, HOUSING.fields[0]: 6.0}).encode()
        good = json.dumps({**HOUSE, HOUSING.fields[0]: 5.0}).encode()
        world.log.gate.clear()
        first = world.ask(good)
        await turns()
        asks = [tiny.ask(app, "POST", "/predict", one) for one in (wrong, good, wrong)]
        asks.append(tiny.ask(app, "POST", "/models/canary/predict", wrong))
        waiting = [asyncio.ensure_future(one) for one in asks]
        await turns()
        world.log.gate.set()
        assert (await first).status == 200
        answers = [await one for one in waiting]
        assert [one.status for one in answers] == [500, 200, 500, 200]
        assert "not finite" in answers[0].json["detail"][0]["msg"]

    assert len(beside(lineup, test).log.rows) == 3
    assert caplog.text.count("housing: version 1 failed to answer") == 1, "said once"

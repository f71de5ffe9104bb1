"""Inside one process: shared commits, swapped models, logs that fail, clients that go away."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from conftest import strict_json
from pydantic import ValidationError

from mlops import clock
from mlops.deploy import predictor
from mlops.deploy.groupcommit import INLINE_ROWS
from mlops.deploy.headers import Headers
from mlops.deploy.predictor import Champion, new_ids
from mlops.deploy.reader import Reader
from mlops.deploy.service import READ_INLINE_BYTES, Reply, Service, reply_of
from mlops.errors import LogUnavailableError
from mlops.monitor.log import PredictionLog
from mlops.package.model import Output
from mlops.records import Prediction
from mlops.usecase import UseCase
from mlops.usecases.housing import HOUSING
from mlops.usecases.iris import IRIS

SETOSA = IRIS.examples["setosa"]
HOUSE = next(iter(HOUSING.examples.values()))


def body(value: float = 5.0) -> bytes:
    """An iris request that its first field tells from others."""
    return json.dumps({**SETOSA, "sepal_length": value}).encode()


def house(value: float) -> bytes:
    return json.dumps({**HOUSE, "population": value}).encode()


def sum_of(record: dict[str, float]) -> float:
    return float(np.array([[record[name] for name in HOUSING.fields]]).sum(axis=1)[0])


async def predict(service: Service, content: bytes, headers: Headers = ()) -> Reply:
    return await reply_of(lambda respond: service.predict(content, headers, "/predict", respond))


async def predict_batch(service: Service, content: bytes) -> Reply:
    return await reply_of(
        lambda respond: service.predict_batch(content, [], "/predict/batch", respond)
    )


class World:
    """A service over a list, with the version `version` answering."""

    def __init__(self, use_case: UseCase = IRIS, *, version: int = 1, synced: bool = True) -> None:
        self.log = tiny.ListLog()
        self.service = Service(use_case)
        self.service.start(self.log, synced=synced)
        self.service.swap(tiny.champion(use_case, version))

    def ask(self, content: bytes, **headers: str) -> asyncio.Task[Reply]:
        sent = [(name.replace("_", "-").encode(), v.encode()) for name, v in headers.items()]
        return asyncio.ensure_future(predict(self.service, content, sent))


def running(test: Callable[[World], Awaitable[None]], **world: Any) -> World:
    """Run an asynchronous test over a new world, which is stopped afterwards."""

    async def run() -> World:
        made = World(**world)
        try:
            await asyncio.wait_for(test(made), 20)  # what is never answered is a failure too
        finally:
            made.log.gate.set()
            await made.service.stop()
        return made

    return asyncio.run(run())


async def turns(number: int = 5) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline, "this did not come to pass"
        await asyncio.sleep(0.005)


# Group commit


def test_a_lone_request_does_not_wait_for_company() -> None:
    async def test(world: World) -> None:
        for _ in range(3):
            assert (await world.ask(body())).status == 200

    assert running(test).log.calls == [(1, 0), (1, 0), (1, 0)]


def test_all_that_wait_while_a_commit_is_under_way_share_the_next_one() -> None:
    async def test(world: World) -> None:
        world.log.gate.clear()
        first = world.ask(body())
        await turns()
        others = [world.ask(body()) for _ in range(50)] + [world.ask(b"{}") for _ in range(7)]
        await turns()
        assert not any(one.done() for one in [first, *others])
        world.log.gate.set()
        replies = await asyncio.gather(first, *others)
        assert [reply.status for reply in replies] == [200] * 51 + [422] * 7

    assert running(test).log.calls == [(1, 0), (50, 7)]


def test_nothing_is_answered_before_the_log_has_it() -> None:
    async def test(world: World) -> None:
        world.log.gate.clear()
        waiting = [world.ask(body(number)) for number in range(1, 9)]
        await asyncio.sleep(0.05)
        assert not any(one.done() for one in waiting)
        world.log.gate.set()
        replies = await asyncio.gather(*waiting)
        ids = [strict_json(reply.body)["prediction_id"] for reply in replies]
        assert ids == [row.prediction_id for row in world.log.rows]

    running(test)


def test_requests_answered_together_each_get_their_own_rows_in_order() -> None:
    async def test(world: World) -> None:
        world.log.gate.clear()
        first = world.ask(house(1))
        await turns()
        expected, asked = [], []
        for size in (1, 3, 1, 2, 17, 1):
            rows = [{**HOUSE, "population": 10.0 * size + n} for n in range(size)]
            expected.append([sum_of(row) for row in rows])
            batch = json.dumps({"instances": rows}).encode()
            asked.append(predict_batch(world.service, batch))
        world.log.gate.set()
        found = [
            [answer["predicted_price"] for answer in strict_json(reply.body)["predictions"]]
            for reply in await asyncio.gather(*asked)
        ]
        assert found == expected
        assert (await first).status == 200

    running(test, use_case=HOUSING)


@pytest.mark.parametrize(("synced", "rows"), [(True, 1), (False, INLINE_ROWS + 1), (False, 1)])
def test_a_commit_that_syncs_or_is_large_holds_up_no_other_work(synced: bool, rows: int) -> None:
    threads: dict[str, threading.Thread] = {}

    def watch(log: tiny.ListLog, name: str) -> None:
        original = getattr(log, name)

        def watched(*arguments: Any, **options: Any) -> Any:
            threads.setdefault(name, threading.current_thread())
            return original(*arguments, **options)

        setattr(log, name, watched)

    async def test(world: World) -> None:
        for slow in ("append", "sync"):
            watch(world.log, slow)
        batch = json.dumps({"instances": [SETOSA] * rows}).encode()
        assert (await predict_batch(world.service, batch)).status == 200

    running(test, synced=synced)
    assert (threads["append"] is threading.main_thread()) == (rows <= INLINE_ROWS)
    assert threads.get("sync") is not threading.main_thread()
    assert ("sync" in threads) == synced


def test_a_model_that_is_slow_holds_up_no_other_work() -> None:
    on_the_loop = []
    champion = tiny.champion(IRIS)
    run = champion.bundle.model.run  # type: ignore[union-attr]

    def slowly(rows: Any) -> Output:
        on_the_loop.append(threading.current_thread() is threading.main_thread())
        time.sleep(0.03 if len(on_the_loop) < 3 else 0)
        return run(rows)  # type: ignore[no-any-return]

    champion.bundle.model.run = slowly  # type: ignore[union-attr,method-assign,assignment]

    async def test(world: World) -> None:
        world.service.swap(champion)
        for _ in range(4):
            assert (await predict(world.service, body())).status == 200

    running(test)
    assert on_the_loop == [True, False, False, True], "until it has been fast again"


@pytest.mark.parametrize("synced", [True, False])
def test_a_client_that_goes_away_takes_no_other_with_it_and_its_row_stays(synced: bool) -> None:
    async def test(world: World) -> None:
        asked = [world.ask(body(number)) for number in (1, 2, 3)]
        await asyncio.sleep(0)
        asked[1].cancel()
        replies = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(replies[1], asyncio.CancelledError)
        assert [replies[0].status, replies[2].status] == [200, 200]
        assert (await world.ask(body(4))).status == 200

    logged = [
        json.loads(row.inputs)["sepal_length"] for row in running(test, synced=synced).log.rows
    ]
    assert logged == [1, 2, 3, 4]


@pytest.mark.parametrize("synced", [True, False])
def test_a_model_that_breaks_breaks_its_group_only(
    synced: bool, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[tuple[int, str, int]] = []

    async def test(world: World) -> None:
        world.service.on_failure = lambda version, error, rows: told.append(
            (version, type(error).__name__, rows)
        )
        app = tiny.app_over(world.service)
        world.service.swap(Champion(IRIS, 2, "Broken", BrokenBundle(IRIS, 2)))
        for by_fastapi in (False, True):
            caplog.clear()
            answer = await tiny.ask(app, "POST", "/predict", body(), by_fastapi=by_fastapi)
            assert answer.status == 500
            [problem] = answer.json["detail"]
            assert problem["type"] == "internal_error"
            assert b"ZeroDivision" not in answer.body
            assert "ZeroDivisionError" in caplog.text  # the server's own log has the traceback
        world.service.swap(tiny.champion(IRIS, 3))
        mended = await world.ask(body())
        assert strict_json(mended.body)["model_version"] == 3
        assert [world.service.runs(version) for version in (2, 3)] == [0, 1]

    assert len(running(test, synced=synced).log.rows) == 1
    assert told == [(2, "ZeroDivisionError", 1)] * 2


class BrokenBundle(tiny.TinyBundle):
    class Model:
        def run(self, rows: np.ndarray) -> Output:
            raise ZeroDivisionError

    def __init__(self, use_case: UseCase, factor: float) -> None:
        super().__init__(use_case, factor)
        self.model = self.Model()  # type: ignore[assignment]


def test_answers_wait_for_the_disk_and_the_next_group_does_not() -> None:
    async def test(world: World) -> None:
        disk = threading.Event()
        world.log.sync = lambda: disk.wait(10)  # type: ignore[method-assign,assignment]
        first = world.ask(body(1))
        await until(lambda: len(world.log.rows) == 1)
        second = world.ask(body(2))
        await until(lambda: len(world.log.rows) == 2)
        assert not first.done()
        assert not second.done()
        disk.set()
        assert [(await one).status for one in (first, second)] == [200, 200]

    running(test)


def test_a_disk_that_cannot_take_it_is_a_503() -> None:
    async def test(world: World) -> None:
        def broken() -> None:
            raise LogUnavailableError("no space left")

        world.log.sync = broken  # type: ignore[method-assign]
        assert (await world.ask(body())).status == 503

    running(test)


def test_stopping_waits_for_the_commit_under_way_and_closes_the_log_after_it() -> None:
    async def test(world: World) -> None:
        world.log.gate.clear()
        asked = world.ask(body())
        await turns()
        stopping = asyncio.ensure_future(world.service.stop())
        await asyncio.sleep(0.05)
        assert not world.log.closed
        world.log.gate.set()
        assert (await asked).status == 200
        await stopping
        assert world.log.closed

    assert len(running(test).log.rows) == 1


# Swapping the model


def test_a_swap_counts_from_the_next_group_on_and_mixes_nothing() -> None:
    async def test(world: World) -> None:
        world.log.gate.clear()
        before = [world.ask(house(number)) for number in (1, 2)]
        await turns()
        world.service.swap(tiny.champion(HOUSING, 2))
        after = [world.ask(house(number)) for number in (3, 4)]
        world.log.gate.set()
        for number, asked in enumerate([*before, *after], 1):
            answer = strict_json((await asked).body)
            version = answer["model_version"]
            assert version == (1 if number < 3 else 2)
            expected = version * sum_of({**HOUSE, "population": number})
            assert answer["predicted_price"] == pytest.approx(expected, rel=1e-12)
        assert [row.model_version for row in world.log.rows] == [1, 1, 2, 2]
        assert [row.bundle[-1] for row in world.log.rows] == ["1", "1", "2", "2"]

    running(test, use_case=HOUSING)


@pytest.mark.parametrize("synced", [True, False])
def test_no_answer_mixes_two_versions_however_often_they_are_swapped(synced: bool) -> None:
    async def test(world: World) -> None:
        champions = {version: tiny.champion(HOUSING, version) for version in (1, 2, 3)}
        chance = random.Random(1)
        stop = False

        async def swap() -> None:
            while not stop:
                world.service.swap(champions[chance.choice((1, 2, 3))])
                await asyncio.sleep(0)

        swapping = asyncio.ensure_future(swap())
        seen = set()
        for start in range(1, 400, 4):
            asked = [world.ask(house(number)) for number in range(start, start + 4)]
            for number, reply in zip(range(start, start + 4), asked, strict=True):
                answer = strict_json((await reply).body)
                seen.add(answer["model_version"])
                expected = answer["model_version"] * sum_of({**HOUSE, "population": number})
                assert answer["predicted_price"] == pytest.approx(expected, rel=1e-12)
        stop = True
        await swapping
        assert seen == {1, 2, 3}

    running(test, use_case=HOUSING, synced=synced)


# A log that fails


@pytest.mark.parametrize("synced", [True, False])
@pytest.mark.parametrize("by_fastapi", [False, True])
def test_what_cannot_be_logged_is_not_answered_and_it_says_when_to_try_again(
    synced: bool, by_fastapi: bool
) -> None:
    async def test(world: World) -> None:
        app = tiny.app_over(world.service)
        world.log.broken = True
        asked = [
            tiny.ask(app, "POST", path, content, by_fastapi=by_fastapi)
            for path, content in (
                ("/predict", body()),
                ("/predict", body(2)),
                ("/predict/batch", b'{"instances":[' + body() + b"]}"),
            )
        ]
        for answer in await asyncio.gather(*asked):
            assert answer.status == 503
            assert answer.headers["retry-after"] == "1"
            [problem] = answer.json["detail"]
            assert problem["type"] == "log_unavailable"
        ready = await tiny.ask(app, "GET", "/health/ready")
        assert ready.status == 503
        assert "log cannot be written" in ready.json["message"]
        assert (await tiny.ask(app, "GET", "/health/live")).status == 200

        world.log.broken = False
        await world.service.mend()
        assert (await tiny.ask(app, "GET", "/health/ready")).status == 200
        assert (await tiny.ask(app, "POST", "/predict", body())).status == 200

    assert len(running(test, synced=synced).log.rows) == 1


def test_a_request_that_is_wrong_is_told_so_even_while_the_log_fails() -> None:
    async def test(world: World) -> None:
        world.log.broken = True
        reply = await world.ask(b"{}")
        assert reply.status == 422
        assert "sepal_length is missing" in reply.body.decode()

    running(test)


def test_a_log_that_answers_again_by_itself_needs_no_mending() -> None:
    async def test(world: World) -> None:
        world.log.broken = True
        assert (await world.ask(body())).status == 503
        world.log.broken = False
        assert (await world.ask(body())).status == 200
        assert world.service.not_ready() == ""
        await world.service.mend()
        assert world.log.probes == 0

    running(test)


def test_health_never_waits_for_the_disk() -> None:
    async def test(world: World) -> None:
        world.log.broken = True
        assert (await world.ask(body())).status == 503
        world.log.broken = False

        def stuck() -> None:
            assert world.log.gate.wait(10)

        world.log.gate.clear()
        world.log.probe = stuck  # type: ignore[method-assign]
        mending = asyncio.ensure_future(world.service.mend())
        started = time.monotonic()
        for _ in range(10):
            assert world.service.health()["status"] == "unavailable"
            await asyncio.sleep(0)
        assert time.monotonic() - started < 1
        world.log.gate.set()
        await mending

    running(test)


def test_who_asks_for_metrics_waits_for_response_times_that_are_just_being_logged() -> None:
    async def test(world: World) -> None:
        group = world.service._group
        group.observe((1, 200, 0.1, True))
        world.log.gate.clear()
        first = group.flush()
        await turns()
        second = group.flush()  # nothing is left to be taken, but it is not logged yet
        group.observe((1, 200, 0.2, True))
        third = group.flush()
        await turns()
        assert [one.done() for one in (first, second, third)] == [False] * 3
        world.log.gate.set()
        await asyncio.wait_for(asyncio.gather(first, second), 5)
        await asyncio.wait_for(third, 5)
        assert [seconds for _, _, seconds, _ in world.log.timings] == [0.1, 0.2]

    running(test)


def test_metrics_that_cannot_be_read_are_a_503_that_names_the_log() -> None:
    async def test(world: World) -> None:
        def unreadable() -> None:
            raise LogUnavailableError("the prediction log x cannot be used", "restore it")

        world.log.metrics = unreadable  # type: ignore[method-assign,assignment]
        answer = await tiny.ask(tiny.app_over(world.service), "GET", "/metrics")
        assert answer.status == 503
        assert "prediction log" in answer.json["detail"][0]["msg"]

    running(test)


# No model, or one that was refused


def test_without_a_model_it_says_which_command_makes_one() -> None:
    async def run() -> None:
        log = tiny.ListLog()
        service = Service(IRIS)
        app = tiny.app_over(service)
        starting = await tiny.ask(app, "POST", "/predict", body())
        assert starting.status == 503
        service.start(log, synced=True)
        try:
            answer = await tiny.ask(app, "POST", "/predict", body())
            ready = await tiny.ask(app, "GET", "/health/ready")
        finally:
            await service.stop()
        assert answer.status == ready.status == 503
        assert "mlops up iris" in answer.json["detail"][0]["msg"]
        assert "mlops up iris" in ready.json["message"]
        assert answer.headers["retry-after"] == "1"
        assert [failure.status for failure in log.refused] == [503]
        assert log.rows == []

    asyncio.run(run())


def test_health_of_several_names_the_one_that_is_ill() -> None:
    async def test(world: World) -> None:
        other = Service(HOUSING)
        answer = await tiny.ask(tiny.app_over(other, world.service), "GET", "/health/ready")
        assert answer.status == 503
        assert "housing: " in answer.json["message"]
        assert "iris: " not in answer.json["message"]

    running(test)


# What is written down


@pytest.fixture
def log(tmp_path: Path) -> Iterator[PredictionLog]:
    opened = PredictionLog(tmp_path / "irislogs", "irislogs", "crash")
    yield opened
    opened.close()


def test_a_client_is_kept_only_as_a_digest_and_the_same_client_as_the_same() -> None:
    async def test(world: World) -> None:
        for name in ("alice@example.org", "alice@example.org", "bob"):
            await world.ask(body(), x_client_id=name)
        await world.ask(b"{}", x_client_id="alice@example.org")
        await world.ask(body())

    log = running(test).log
    kept = [row.client for row in log.rows]
    assert kept[0] == kept[1] == log.refused[0].client
    assert kept[0] not in {kept[2], None}
    assert kept[3] is None
    assert "alice" not in repr((log.rows, log.refused))
    assert "bob" not in repr(log.rows)


def test_idempotency_keys_of_any_length_tell_requests_apart(log: PredictionLog) -> None:
    async def run() -> None:
        service = Service(IRIS)
        service.start(log, synced=False)
        service.swap(tiny.champion(IRIS))
        keys = [b"k", b"k" * 200, b"k" * 201, b"k" * 5000, b"\xff\x00 \xe9"]
        ids = {}
        for _ in range(2):
            for key in keys:
                headers = [(b"idempotency-key", key)]
                reply = await predict(service, body(), headers)
                answer = strict_json(reply.body)
                assert ids.setdefault(key, answer["prediction_id"]) == answer["prediction_id"]
        assert len(set(ids.values())) == len(keys)
        assert log.totals().total_predictions == len(keys)
        await service.stop()

    asyncio.run(run())


def test_a_refused_request_is_kept_with_the_beginning_of_its_body() -> None:
    sent = b'{"sepal_length": NaN, "x": "' + b"\xff" * 5000

    async def test(world: World) -> None:
        await world.ask(sent)

    [failure] = running(test).log.refused
    assert failure.status == 422
    assert failure.path == "/predict"
    assert failure.body.startswith('{"sepal_length": NaN')
    assert len(failure.body) <= 2000
    assert strict_json(failure.detail.encode())["detail"]


NAMES_REVERSED = [dict(reversed(HOUSE.items()))] * 3
ONE_REVERSED = [HOUSE, NAMES_REVERSED[0], HOUSE]
WHOLE_NUMBERS = [{name: round(value) for name, value in HOUSE.items()}, HOUSE]


@pytest.mark.parametrize(
    "instances", [[HOUSE], [HOUSE] * 300, NAMES_REVERSED, ONE_REVERSED, WHOLE_NUMBERS]
)
def test_a_batch_that_is_plainly_right_is_read_as_pydantic_would_and_does_not_wait_for_it(
    instances: list[dict[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = Reader(HOUSING)
    content = json.dumps({"instances": instances}, indent=1).encode()
    judged, its_inputs = reader._judged(content, content.count(b'"'))
    monkeypatch.setattr(reader, "_judged", lambda *_: pytest.fail("it waited"))
    values, inputs = reader.batch(content)
    assert np.array_equal(values, judged)
    assert inputs == its_inputs


@pytest.mark.parametrize(
    "spoilt",
    [
        {"population": True},
        {"population": None},
        {"population": [1000.0]},
        {"population": "1000"},
        {"population": -1},
        {"more": 1},
    ],
)
def test_one_row_that_is_not_plainly_right_puts_the_whole_batch_before_pydantic(
    spoilt: dict[str, Any],
) -> None:
    reader = Reader(HOUSING)
    content = json.dumps({"instances": [HOUSE] * 20 + [{**HOUSE, **spoilt}]}).encode()
    with pytest.raises(ValidationError) as error:
        reader.batch(content)
    assert error.value.errors()[0]["loc"] == ("instances", 20, *spoilt)


def test_names_are_told_row_by_row_though_together_they_come_in_order() -> None:
    *before, last = HOUSE.items()
    rows = [dict(before), dict([last, *before]), dict([last])]
    content = json.dumps({"instances": rows}).encode()
    with pytest.raises(ValidationError) as error:
        Reader(HOUSING).batch(content)
    assert error.value.errors()[0]["loc"] == ("instances", 0, last[0])


@pytest.mark.parametrize("use_case", [HOUSING, IRIS])
def test_answers_to_many_are_what_each_alone_would_be(use_case: UseCase) -> None:
    labels = use_case.target.labels
    values = labels or (2.5, 4.0, -0.0, 1e-7, 1e22, 0.1 + 0.2)
    warnings = (None, '["a, b"]')
    rows = [
        Prediction(f"p{n}", "", "{}", value, "{}" if labels else None, warnings[n % 2], n % 3, "")
        for n, value in enumerate(values)
    ]
    alone = [predictor.answer(use_case, row) for row in rows]
    assert predictor.answers(use_case, rows) == alone


def test_a_large_body_is_read_in_a_thread_and_answered_or_refused_like_any_other() -> None:
    async def test(world: World) -> None:
        good, bad = [SETOSA] * 9_000, [*[SETOSA] * 8_999, {**SETOSA, "petal_width": -1.0}]
        for instances, status in ((good, 200), (bad, 422)):
            content = json.dumps({"instances": instances}).encode()
            assert len(content) > READ_INLINE_BYTES
            large = asyncio.ensure_future(predict_batch(world.service, content))
            await turns()
            assert not large.done()
            assert (await world.ask(body())).status == 200
            reply = await large
            assert reply.status == status
            assert reply.rows == (9_000 if status == 200 else 0)
        assert strict_json(reply.body)["detail"][0]["loc"] == [
            *("body", "instances", 8_999, "petal_width")
        ]

    assert len(running(test).log.rows) == 9_002


def test_an_id_is_a_version_7_uuid_and_ids_rise_with_time() -> None:
    ids = []
    for _ in range(5):
        ids += new_ids(1)
        time.sleep(0.002)
    assert ids == sorted(ids)
    for text in ids:
        parsed = uuid.UUID(text)
        assert str(parsed) == text
        assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)
        assert abs((parsed.int >> 80) / 1000 - time.time()) < 5
    assert len(set(new_ids(10_000))) == 10_000


def test_a_time_is_utc_and_always_as_long() -> None:
    assert len(clock.stamp()) == 32
    assert clock.stamp().endswith("+00:00")


def test_a_row_unlike_the_training_data_is_warned_of_and_only_that_row() -> None:
    bundle = tiny.TinyBundle(HOUSING, 1)
    bundle.signature["training_ranges"]["latitude"] = [33.0, 41.0]
    champion = Champion(HOUSING, 1, "Multiplier", bundle)
    where = HOUSING.fields.index("latitude")
    rows = [[1.0] * 8 for _ in range(4)]
    for row, latitude in zip(rows, (33.0, 32.9, 41.0, 41.1), strict=True):
        row[where] = latitude
    warnings = [one.warnings for one in champion.predict(rows, [""] * 4, [None] * 4)]
    alone = [champion.predict([row], [""], [None])[0].warnings for row in rows]
    assert alone == warnings
    assert warnings[0] is None
    assert warnings[2] is None
    for text, shown in ((warnings[1], "32.9"), (warnings[3], "41.1")):
        [warning] = json.loads(text or "")
        assert "latitude" in warning
        assert shown in warning
        assert "33 to 41 units" in warning


def test_fields_that_were_always_in_order_are_warned_of_when_they_are_not() -> None:
    bundle = tiny.TinyBundle(HOUSING, 1)
    bundle.signature["training_order"] = [["total_bedrooms", "total_rooms"]]
    champion = Champion(HOUSING, 1, "Multiplier", bundle)
    rooms, bedrooms = map(HOUSING.fields.index, ("total_rooms", "total_bedrooms"))
    rows = [[5.0] * 8 for _ in range(3)]
    rows[1][rooms], rows[2][bedrooms] = 4.0, 4.0
    warnings = [one.warnings for one in champion.predict(rows, [""] * 3, [None] * 3)]
    alone = [champion.predict([row], [""], [None])[0].warnings for row in rows]
    assert alone == warnings
    assert warnings[0] is None
    assert warnings[2] is None
    assert json.loads(warnings[1] or "") == [
        "total_bedrooms is more than total_rooms, which training never saw: were they swapped?"
    ]

"""Who may ask what: every route with every key, and how often."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import json
import re
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from conftest import REPOSITORY, Server, copy_project, mlops, start_server
from starlette.routing import BaseRoute, Mount

from mlops.deploy import access
from mlops.deploy.access import Access, RateLimit, parse_rate
from mlops.deploy.admin import Admin
from mlops.deploy.app import App, build_app
from mlops.deploy.keys import ROLES, Key, KeyStore, digest
from mlops.deploy.service import Service
from mlops.errors import UsageError
from mlops.loop.lineage import Chain, shown
from mlops.usecases.housing import HOUSING
from mlops.usecases.iris import IRIS

FLOWER = json.dumps(IRIS.examples["setosa"]).encode()
HOUSE = json.dumps(next(iter(HOUSING.examples.values()))).encode()
LOCAL = {"host": "127.0.0.1:8000"}
KEYS = {
    **{role: Key(role, digest(f"mlk_{role}"), role, None, "2026", None) for role in ROLES},
    "iris alone": Key("i", digest("mlk_iris alone"), "admin", "iris", "2026", None),
    "revoked": Key("revoked", digest("mlk_revoked"), "admin", None, "2026", "2026"),
}


class World:
    """Both use cases in one application, with a log each and a promotion that is only noted."""

    def __init__(self) -> None:
        self.promoted: list[tuple[str, int, str]] = []
        self.logs = {"housing": tiny.ListLog(), "iris": tiny.ListLog()}
        self.services = [Service(HOUSING), Service(IRIS)]
        self.app = build_app(
            self.services,
            lifespan=lambda _: contextlib.nullcontext(),
            version="0",
            admin=Admin(self.promote, self.nothing, self.nothing),
        )

    async def promote(self, use_case: str, version: int, reason: str) -> dict[str, Any]:
        self.promoted.append((use_case, version, reason))
        return {
            "use_case": use_case,
            "version": version,
            "previous": None,
            "changed": True,
            "late": [],
        }

    async def nothing(self, *_: Any) -> dict[str, Any]:
        raise UsageError("not here")

    def ask(self, *questions: tuple[Any, ...], **more: Any) -> list[tiny.Answer]:
        """Ask (method, path, body, headers) one after the other."""

        async def run() -> list[tiny.Answer]:
            for service in self.services:
                service.start(self.logs[service.use_case.name], synced=False)
                service.swap(tiny.champion(service.use_case))
            try:
                return [await tiny.ask(self.app, *question, **more) for question in questions]
            finally:
                for service in self.services:
                    await service.stop()

        return asyncio.run(run())


@pytest.fixture
def world() -> World:
    return World()


def bearer(key: str) -> dict[str, str]:
    return {**LOCAL, "authorization": f"Bearer mlk_{key}"}


# Every route, by every method, with every key


def routes(app: App) -> Iterator[tuple[str, str]]:
    """Every method and path of the application, from its own routes, places filled in."""

    def paths(found: list[BaseRoute]) -> Iterator[str]:
        for route in found:
            path = str(getattr(route, "path", ""))
            if isinstance(route, Mount):
                yield f"{path}/swagger-ui.css"
            elif path:
                yield path
            else:  # a router that was included
                yield from paths(route.original_router.routes)  # type: ignore[attr-defined]

    document = set(app.openapi()["paths"])
    every = {*document, *app.hot, "/docs", "/redoc", "/openapi.json", "/docs/assets/swagger-ui.css"}
    assert len(document) > 10
    for path in sorted(every):
        filled = path.replace("{model}", "iris").replace("{version}", "1")
        for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
            yield method, re.sub(r"\{.*?\}", "1", filled)


def opens(role: str | None) -> set[str]:
    """The keys that open what needs a role."""
    return {None: {*KEYS, "none", "wrong"}}.get(role) or {"admin", role}


OPEN_FOREVER = re.compile(
    r"(/housing|/iris)?(/|/health/(live|ready))?|/docs|/redoc|/openapi\.json|/docs/assets/.*"
    r"|/v2(/.*)?"
)


def expected_role(method: str, path: str) -> str | None:
    """What each route should need, written down a second time."""
    if path.startswith("/admin"):
        return "admin"
    if method in {"GET", "HEAD", "OPTIONS"}:
        return None if OPEN_FOREVER.fullmatch(path) else "read"
    return "predict"


def test_every_route_by_every_method_opens_to_the_right_keys_alone(world: World) -> None:
    world.app.access.take(list(KEYS.values()))
    asked = []
    for (method, path), key in itertools.product(
        routes(world.app), ("none", "wrong", "empty", *KEYS)
    ):
        headers = LOCAL if key == "none" else bearer("" if key == "empty" else key)
        if key == "empty":
            headers = {**LOCAL, "x-api-key": ""}
        body = b"{}" if method not in {"GET", "HEAD", "OPTIONS"} else b""
        asked.append((method, path, body, headers, key))
    answers = world.ask(*(one[:4] for one in asked))
    let_in = set()
    for (method, path, _, _, key), answer in zip(asked, answers, strict=True):
        role, what = expected_role(method, path), f"{method} {path} with key {key!r}"
        if role is None:
            assert answer.status not in {401, 403}, what
        elif key in {"none", "wrong", "empty", "revoked"}:
            assert answer.status == 401, what
            assert answer.headers["www-authenticate"].startswith("Bearer"), what
        elif key == "iris alone":
            about = path.removeprefix("/v2/models").startswith("/iris")
            assert (answer.status == 403) == (not about), what
        else:
            assert (answer.status == 403) == (key not in {role, "admin"}), what
            if answer.status == 200:
                let_in.add((method, path, key))
        if answer.status in {401, 403} and not path.startswith("/v2"):
            assert answer.json["detail"][0]["type"] in {"unauthorized", "forbidden"}
        if answer.status != 200:
            assert b"Traceback" not in answer.body
            assert b"mlk_" not in answer.body
    assert ("GET", "/metrics", "read") in let_in, "guards the test itself"
    assert world.promoted == []


def test_a_prediction_needs_a_key_from_the_first_key_on_and_is_open_before(world: World) -> None:
    ask = ("POST", "/iris/predict", FLOWER)
    [answer] = world.ask(ask)
    assert answer.status == 200
    world.app.access.take([KEYS["revoked"]])
    [answer] = world.ask(ask)
    assert answer.status == 401, "a revoked key does not open the doors again"
    world.app.access.take(list(KEYS.values()))
    for headers, status in (
        ({}, 401),
        ({"authorization": "Bearer mlk_wrong"}, 401),
        ({"authorization": "Basic bWxrX3ByZWRpY3Q="}, 401),
        ({"authorization": "mlk_predict"}, 401),
        ({"authorization": "bearer mlk_predict"}, 200),
        ({"x-api-key": "mlk_predict"}, 200),
        ({"x-api-key": "mlk_predict", "authorization": "Bearer mlk_admin"}, 401),
        ({"x-api-key": digest("mlk_predict")}, 401),
        ({"x-api-key": "mlk_read"}, 403),
        ({"x-api-key": "mlk_iris alone"}, 200),
    ):
        [answer] = world.ask((*ask, headers))
        assert answer.status == status, headers
    [answer] = world.ask(("POST", "/predict", HOUSE, {"x-api-key": "mlk_iris alone"}))
    assert (answer.status, "iris alone" in answer.json["detail"][0]["msg"]) == (403, True)
    assert len(world.logs["iris"].rows) == 4
    for name, status in (("iris", 422), (IRIS.model_name, 422), ("housing", 403), ("other", 403)):
        infer = ("POST", f"/v2/models/{name}/infer", b"{}", {"x-api-key": "mlk_iris alone"})
        [answer] = world.ask(infer)
        assert (answer.status == 403) == (status == 403), (name, answer.body)


def test_explain_at_the_root_opens_to_a_key_of_the_first_use_case_alone(world: World) -> None:
    housing = Key("h", digest("mlk_h"), "predict", "housing", "2026", None)
    world.app.access.take([housing, KEYS["iris alone"]])
    paths = ("/explain", "/housing/explain")
    for key, status in (("h", 409), ("iris alone", 403)):
        asked = [("POST", path, HOUSE, {"x-api-key": f"mlk_{key}"}) for path in paths]
        # The tiny world's bundles cannot be explained: let in, that is what one is told.
        assert [answer.status for answer in world.ask(*asked)] == [status] * 2
    assert not world.logs["housing"].rows

    assert not world.logs["housing"].rows


def test_a_prediction_is_read_with_a_key_that_reads_and_tells_of_nobody(world: World) -> None:
    chain = dataclasses.asdict(Chain("iris", 1, True, None, "b", *[None] * 5))
    world.services[1].trace = lambda row: {"use_case": "iris", **shown(row), "lineage": chain}
    asked = {**bearer("predict"), "x-client-id": "somebody"}
    world.app.access.take(list(KEYS.values()))
    [answer] = world.ask(("POST", "/iris/predict", FLOWER, asked))
    assert answer.status == 200
    client = world.logs["iris"].rows[0].client
    assert client
    one = "/predictions/" + answer.json["prediction_id"]
    for path, key, status in (
        *((path + one, key, 401) for path in ("", "/iris") for key in ("wrong", "revoked", "")),
        *((path + one, "predict", 403) for path in ("", "/iris")),
        *((path + one, key, 200) for path in ("", "/iris") for key in ("read", "admin")),
        ("/iris" + one, "iris alone", 200),
        (one, "iris alone", 403),
        ("/housing" + one, "iris alone", 403),
        ("/housing" + one, "read", 404),
    ):
        [answer] = world.ask(("GET", path, b"", bearer(key)))
        assert answer.status == status, (path, key)
        for hidden in (b"somebody", client.encode(), b"mlk_"):
            assert hidden not in answer.body


def test_a_log_that_cannot_be_read_gives_away_no_path(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    for log in world.logs.values():
        log.broken = True
    for path in ("/metrics", "/iris/metrics", "/predictions/1", "/iris/predictions/1"):
        [answer] = world.ask(("GET", path, b"", LOCAL))
        assert answer.status == 503
        assert answer.headers["retry-after"] == "1"
        assert b"/home" not in answer.body
        assert "/home/somebody" in caplog.messages[-1], "the server's own log says where"


PROMOTION = json.dumps({"use_case": "iris", "version": 2, "reason": "better"}).encode()


@pytest.mark.parametrize(
    ("peer", "headers", "let_in"),
    [
        ("127.0.0.1", LOCAL, True),
        ("::1", {"host": "[::1]:8000"}, True),
        ("127.0.0.1", {"host": "localhost"}, True),
        ("10.0.0.7", LOCAL, False),
        ("10.0.0.7", {"host": "10.0.0.1"}, False),
        ("127.0.0.1", {**LOCAL, "x-forwarded-for": "127.0.0.1"}, False),
        ("127.0.0.1", {**LOCAL, "forwarded": "for=1.2.3.4"}, False),
        ("127.0.0.1", {"host": "evil.example:8000"}, False),
        ("127.0.0.1", {**LOCAL, "origin": "https://evil.example"}, False),
        ("127.0.0.1", {}, False),
    ],
)
def test_without_any_key_administration_is_for_a_person_at_this_machine(
    peer: str, headers: dict[str, str], let_in: bool, world: World
) -> None:
    [answer] = world.ask(("POST", "/admin/promote", PROMOTION, headers), peer=peer)
    assert answer.status == (200 if let_in else 401)
    assert world.promoted == ([("iris", 2, "better")] if let_in else [])


def test_once_there_are_keys_administration_needs_one_on_loopback_too(world: World) -> None:
    world.app.access.take(list(KEYS.values()))
    statuses = [
        world.ask(("POST", "/admin/promote", PROMOTION, headers), peer=peer)[0].status
        for peer, headers in (
            ("127.0.0.1", LOCAL),
            ("127.0.0.1", bearer("predict")),
            ("127.0.0.1", bearer("admin")),
            ("10.0.0.7", bearer("admin")),
        )
    ]
    assert statuses == [401, 403, 200, 200]


def test_a_mount_point_does_not_open_a_side_door(world: World) -> None:
    for path in ("/admin/promote", "/metrics"):
        [answer] = world.ask(
            ("GET" if path == "/metrics" else "POST", path, PROMOTION, LOCAL),
            peer="10.0.0.7",
            root_path="/somewhere",
        )
        assert answer.status == (200 if path == "/metrics" else 401)
    world.app.access.take(list(KEYS.values()))
    [answer] = world.ask(("POST", "/iris/predict", FLOWER), root_path="/somewhere")
    assert answer.status == 401


# Clients kept apart


def test_two_clients_with_one_idempotency_key_get_an_answer_each(
    tmp_path: Path, world: World
) -> None:
    from mlops.monitor.log import PredictionLog

    world.app.access.take([KEYS["predict"], KEYS["admin"]])
    world.logs["iris"] = PredictionLog(tmp_path, "irislogs", "crash")  # type: ignore[assignment]
    asked = [
        ("POST", "/iris/predict", FLOWER, {**bearer(key), "idempotency-key": "1"})
        for key in ("predict", "admin", "predict", "admin")
    ]
    ids = [answer.json["prediction_id"] for answer in world.ask(*asked)]
    assert ids[0] == ids[2]
    assert ids[1] == ids[3]
    assert ids[0] != ids[1]


def test_a_client_cannot_pass_itself_off_as_a_key(world: World) -> None:
    forged = {"(api key)": "admin"}
    world.app.access.take(list(KEYS.values()))
    [answer] = world.ask(("POST", "/iris/predict", FLOWER, forged))
    assert answer.status == 401


def test_a_client_goes_by_its_key_in_the_log_and_only_as_a_digest(world: World) -> None:
    world.app.access.take(list(KEYS.values()))
    ask = ("POST", "/iris/predict", FLOWER)
    world.ask((*ask, bearer("predict")), (*ask, bearer("admin")), (*ask, bearer("predict")))
    first, second, third = (row.client for row in world.logs["iris"].rows)
    assert first == third != second
    assert first is not None
    assert "predict" not in first


# How often


def test_a_bucket_holds_a_second_and_fills_up_again() -> None:
    now = [100.0]
    limit = RateLimit(10, lambda: now[0])
    assert [limit.wait("a") for _ in range(10)] == [0] * 10
    assert limit.wait("a") == pytest.approx(0.1)
    assert limit.wait("b") == 0, "another client has a bucket of its own"
    now[0] += 0.35
    assert [limit.wait("a") > 0 for _ in range(5)] == [False, False, False, True, True]
    now[0] += 60
    assert [limit.wait("a") > 0 for _ in range(11)] == [False] * 10 + [True]


def test_a_batch_counts_by_its_rows() -> None:
    now = [0.0]
    limit = RateLimit(10, lambda: now[0])
    limit.wait("a")
    limit.charge("a", 99)
    assert limit.wait("a") == pytest.approx(9.1)


def test_buckets_take_bounded_memory_and_those_who_owe_are_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(access, "MOST_BUCKETS", 100)
    limit = RateLimit(1, lambda: 0.0)
    limit.wait("greedy")
    limit.charge("greedy", 1000)
    for number in range(10_000):
        limit.wait(str(number))
    assert len(limit._full_at) <= 100
    assert limit.wait("greedy") > 900


@pytest.mark.parametrize(
    ("text", "rate"),
    [("", None), (" ", None), ("100/s", 100), ("60/min", 1), ("36/h", 0.01), (" 5 / s ", 5)],
)
def test_a_rate_is_written_as_people_say_it(text: str, rate: float | None) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["0/s", "-1/s", "100", "100/d", "1.5/s", "fast", "1e3/s"])
def test_a_rate_that_is_none_is_refused_by_name(text: str) -> None:
    with pytest.raises(UsageError, match="RATE_LIMIT="):
        parse_rate(text)


def test_too_many_requests_of_one_client_are_refused_and_its_name_does_not_help(
    world: World,
) -> None:
    world.app.access.limit(2 / 3600)
    ask = ("POST", "/iris/predict", FLOWER)
    answers = world.ask(*[(*ask, {"x-client-id": str(number)}) for number in range(4)])
    assert [answer.status for answer in answers] == [200, 429, 429, 429]
    assert int(answers[1].headers["retry-after"]) > 1000
    assert answers[1].json["detail"][0]["type"] == "too_many_requests"
    [other] = world.ask(ask, peer="10.0.0.9")
    assert other.status == 200
    for path in ("/health/live", "/health/ready"):
        assert {answer.status for answer in world.ask(*[("GET", path)] * 5)} == {200}


def test_a_key_has_its_bucket_wherever_it_comes_from_and_a_batch_empties_it(world: World) -> None:
    world.app.access.take(list(KEYS.values()))
    world.app.access.limit(5)
    batch = json.dumps({"instances": [json.loads(FLOWER)] * 50}).encode()
    ask = ("POST", "/iris/predict/batch", batch, bearer("predict"))
    statuses = [world.ask(ask, peer=peer)[0].status for peer in ("10.0.0.1", "10.0.0.2")]
    assert statuses == [200, 429]
    [other] = world.ask(("POST", "/iris/predict", FLOWER, bearer("admin")), peer="10.0.0.1")
    assert other.status == 200


# Headers


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("GET", path) for path in ("/", "/metrics", "/nowhere", "/docs", "/openapi.json")),
        *(("POST", path) for path in ("/predict", "/predict/batch", "/nowhere", "/health/live")),
        ("GET", "/docs/assets/swagger-ui.css"),
    ],
)
def test_every_answer_has_the_headers_that_browsers_heed(
    method: str, path: str, world: World
) -> None:
    for keys in ([], list(KEYS.values())):
        world.app.access.take(keys)
        [answer] = world.ask((method, path, b"{}" if method == "POST" else b""))
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["cache-control"] == "no-store"
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert "server" not in answer.headers


def test_pages_run_their_own_scripts_by_digest_and_load_nothing_from_elsewhere(
    world: World,
) -> None:
    for answer in world.ask(("GET", "/docs"), ("GET", "/redoc")):
        policy = answer.headers["content-security-policy"]
        scripts = re.search(r"script-src ([^;]*);", policy)
        assert scripts
        assert "unsafe" not in scripts[1]
        inline = re.findall(rb"<script>", answer.body)
        assert scripts[1].count("sha256-") == len(inline)
        assert not re.search(rb"""(src|href)=["']https?:""", answer.body)


# Keys on disk, and a server that follows them


def test_a_key_is_kept_only_as_its_digest_in_a_file_that_others_cannot_read(
    tmp_path: Path,
) -> None:
    path = tmp_path / "new" / "access.db"
    with KeyStore(path) as store:
        key = store.add("shop", "predict", "iris")
        assert re.fullmatch(r"mlk_[\w-]{43}", key)
        for file in path.parent.iterdir():
            assert key.encode() not in file.read_bytes(), file
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
        [kept] = store.known()
        assert kept[:4] == ("shop", digest(key), "predict", "iris")
        secret = store.secret()
        assert len(secret) == 32
    with KeyStore(path) as again:
        assert again.secret() == secret
    with KeyStore(tmp_path / "other.db") as other:
        assert other.secret() != secret


def test_no_key_comes_with_the_installation(tmp_path: Path) -> None:
    with KeyStore(tmp_path / "access.db") as store:
        assert store.known() == []
    for path in (*REPOSITORY.glob("src/**/*"), *REPOSITORY.glob("deploy/**/*")):
        if path.is_file():
            assert not re.search(rb"mlk_[\w-]{43}", path.read_bytes()), path


def test_keys_are_made_listed_and_revoked_on_the_command_line(tmp_path: Path) -> None:
    def run(*words: str, check: bool = True) -> Any:
        return mlops("keys", *words, home=tmp_path, check=check)

    made = json.loads(run("add", "shop", "--role", "predict", "--json").stdout)
    assert made["key"].startswith("mlk_")
    assert made["key"] not in run("list").stdout
    run("revoke", "shop")
    [listed] = json.loads(run("list", "--json").stdout)
    assert listed["revoked_utc"]
    assert "digest" not in listed
    for words, says in (
        (("revoke", "shop"), "there is no key shop"),
        (("add", "shop"), "already, or was"),
        (("add", "a b"), "cannot name a key"),
        (("add", "b", "--role", "root"), "the roles are read, predict, admin"),
        (("add", "b", "--use-case", "nope"), "nope"),
    ):
        done = run(*words, check=False)
        assert done.returncode == 2
        assert says in done.stderr
        assert done.stderr.count("\n") == 1


@pytest.fixture
def server(trained: Path, tmp_path: Path) -> Iterator[Server]:
    home = copy_project(trained, tmp_path / "home")
    started = start_server(home)
    yield started
    started.kill()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_running_server_follows_keys_and_keeps_neither_key_nor_name(server: Server) -> None:
    def ask(**headers: str) -> int:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return server.request("/iris/predict", FLOWER, {**named, "x-client-id": "alice"})[0]

    assert ask() == 200
    with KeyStore(server.home / "access.db") as store:
        key = store.add("shop-of-horrors", "predict")
        until(lambda: ask() == 401)
        assert ask(x_api_key=key, idempotency_key="mine") == 200
        assert server.request("/health/ready")[0] == 200
        assert server.request("/metrics", None, {"x-api-key": key})[0] == 403
        store.revoke("shop-of-horrors")
        until(lambda: ask(x_api_key=key) == 401)
    with contextlib.closing(
        sqlite3.connect(f"file:{server.home}/irislogs/predictions.db?mode=ro", uri=True)
    ) as log:
        clients = {row[0] for row in log.execute("SELECT client FROM irislogs")}
    assert len(clients) == 1
    written = b"".join(path.read_bytes() for path in server.home.rglob("predictions.*"))
    assert b"/mine" in written
    assert b"shop-of-horrors" not in written
    kept = b"".join(path.read_bytes() for path in server.home.rglob("*") if path.is_file())
    assert key.encode() not in kept
    assert b"alice" not in kept
    # What anybody could compute from the name alone is not kept either.
    assert digest("alice")[:16].encode() not in kept


def test_x_forwarded_for_is_not_believed_and_no_banner_is_shown(
    trained: Path, tmp_path: Path
) -> None:
    home = copy_project(trained, tmp_path / "home")
    server = start_server(home, "iris", RATE_LIMIT="2/h")
    try:
        statuses = [
            server.request("/predict", FLOWER, {"x-forwarded-for": f"1.2.3.{number}"})[0]
            for number in range(3)
        ]
        assert statuses == [429] * 3 or statuses == [200, 429, 429]
    finally:
        server.kill()


def test_the_guard_costs_nothing_while_nothing_is_configured() -> None:
    guard = Access()
    assert not guard.on
    guard.limit(parse_rate("1/s"))
    assert guard.on

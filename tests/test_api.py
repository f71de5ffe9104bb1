"""What HTTP offers: routes, the examples of the original description, documents."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import re
import sqlite3
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import kept
import pytest
import tiny
from conftest import REPOSITORY, Server, copy_project, start_server, strict_json
from fastapi.openapi.models import OpenAPI
from starlette.routing import Mount
from traffic import send_one

from mlops.deploy import schemas
from mlops.deploy.service import Service
from mlops.loop.serve import serve as application
from mlops.usecase import UseCase
from mlops.usecases import USE_CASES
from mlops.usecases.housing import HOUSING
from mlops.usecases.iris import IRIS

# The example requests of the original description, as curl sends them.
HOUSE = (
    b'{"total_rooms": 8.0, "total_bedrooms": 3.0, "population": 1000.0, "households": 500.0, '
    b'"median_income": 3.5, "housing_median_age": 35.0, "latitude": 37.7749, '
    b'"longitude": -122.4194}'
)
FLOWER = b'{"sepal_length": 5.1, "sepal_width": 3.5, "petal_length": 1.4, "petal_width": 0.2}'
EXAMPLES = {"housing": HOUSE, "iris": FLOWER}
CODE = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "src")])

PAGES = {"/docs", "/redoc", "/openapi.json"}


@pytest.fixture(scope="module")
def servers(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Server]]:
    """The combined server and both single ones, each over a project of its own."""
    commands = {
        "combined": None,
        "housing": ["uvicorn", "api.housing_api:app", "--port", "{port}"],
        "iris": ["uvicorn", "api.main:app", "--port", "{port}"],
    }
    started: dict[str, Server] = {}
    try:
        for name, command in commands.items():
            home = copy_project(trained, tmp_path_factory.mktemp("api") / name)
            started[name] = start_server(home, command=command, PYTHONPATH=CODE)
        yield started
    finally:
        for server in started.values():
            server.kill()


class Place(NamedTuple):
    """Where a use case's routes stand."""

    server: str
    prefix: str
    use_case: UseCase
    speaks_for_all: bool = False

    def __str__(self) -> str:
        return f"{self.use_case.name} at {self.server}{self.prefix or '/'}"


PLACES = [
    Place("combined", "/housing", HOUSING),
    Place("combined", "/iris", IRIS),
    Place("combined", "", HOUSING, speaks_for_all=True),
    Place("housing", "", HOUSING),
    Place("iris", "", IRIS),
]


@pytest.fixture(params=PLACES, ids=str)
def place(request: pytest.FixtureRequest) -> Place:
    return request.param


@pytest.fixture
def server(place: Place, servers: dict[str, Server]) -> Server:
    return servers[place.server]


def fetch(server: Server, path: str) -> tuple[int, str, bytes]:
    with urllib.request.urlopen(server.url + path, timeout=30) as response:
        return response.status, response.headers["content-type"], response.read()


# Routes


def test_health_names_the_model_and_its_version(place: Place, server: Server) -> None:
    status, health = server.request(place.prefix or "/")
    assert (status, health["status"]) == (200, "healthy")
    if place.speaks_for_all:
        assert set(health["use_cases"]) == {"housing", "iris"}
        health = health["use_cases"][place.use_case.name]
    assert health["message"]
    assert health["model"] == place.use_case.model_name
    assert health["model_version"] == 1
    assert re.fullmatch(r"[0-9a-f]{64}", health["bundle"])


def test_liveness_and_readiness_are_200(place: Place, server: Server) -> None:
    assert server.request(f"{place.prefix}/health/live") == (200, {"status": "alive"})
    status, ready = server.request(f"{place.prefix}/health/ready")
    assert (status, ready["status"]) == (200, "healthy")


def test_a_prediction_has_the_promised_fields_and_is_found_in_the_log(
    place: Place, server: Server
) -> None:
    status, answer = server.request(f"{place.prefix}/predict", EXAMPLES[place.use_case.name])
    assert status == 200
    assert {"prediction_id", "model_version", "warnings"} <= set(answer)
    if place.use_case is HOUSING:
        assert set(answer) - {"prediction_id", "model_version", "warnings"} == {"predicted_price"}
        assert 0 < answer["predicted_price"] < 6
        value: Any = answer["predicted_price"]
    else:
        assert answer["predicted_class"] == 0
        assert answer["predicted_label"] == "setosa"
        value = "setosa"
        assert list(answer["probabilities"]) == list(IRIS.target.labels)
        assert sum(answer["probabilities"].values()) == pytest.approx(1)
    name = place.use_case.log_name
    path = f"file:{server.home}/{name}/predictions.db?mode=ro"
    with contextlib.closing(sqlite3.connect(path, uri=True)) as reader:
        row = reader.execute(
            f"SELECT prediction, inputs FROM {name} WHERE prediction_id = ?",
            (answer["prediction_id"],),
        ).fetchone()
    assert row[0] == value
    assert json.loads(row[1]) == json.loads(EXAMPLES[place.use_case.name])


def test_a_batch_is_answered_in_order_like_its_rows_one_by_one(
    place: Place, server: Server
) -> None:
    rows = [dict(row) for row in place.use_case.examples.values()]
    rows = [rows[0], rows[1], rows[1], rows[0]]
    status, answer = server.request(f"{place.prefix}/predict/batch", {"instances": rows})
    assert status == 200
    assert set(answer) == {"predictions"}
    singly = [server.request(f"{place.prefix}/predict", row)[1] for row in rows]
    for together, alone in zip(answer["predictions"], singly, strict=True):
        assert set(together) == set(alone)
        for name in set(together) - {"prediction_id"}:
            numbers = isinstance(alone[name], float | dict)
            expected = pytest.approx(alone[name], rel=1e-12) if numbers else alone[name]
            assert together[name] == expected
    assert len({one["prediction_id"] for one in [*answer["predictions"], *singly]}) == 8


def test_metrics_count_each_prediction_and_each_refusal(place: Place, server: Server) -> None:
    before = server.request(f"{place.prefix}/metrics")[1]
    assert server.request(f"{place.prefix}/predict", EXAMPLES[place.use_case.name])[0] == 200
    assert server.request(f"{place.prefix}/predict", b"{}")[0] == 422
    status, after = server.request(f"{place.prefix}/metrics")
    assert status == 200
    assert after["total_predictions"] == before["total_predictions"] + 1
    assert after["failed_requests"] == before["failed_requests"] + 1
    assert after["last_updated"] > (before["last_updated"] or "")
    if place.speaks_for_all:
        counts = after["use_cases"].values()
        assert after["total_predictions"] == sum(one["total_predictions"] for one in counts)


def test_the_root_predict_of_the_combined_server_is_housings(servers: dict[str, Server]) -> None:
    combined = servers["combined"]
    before = combined.request("/housing/metrics")[1]["total_predictions"]
    assert "predicted_price" in combined.request("/predict", HOUSE)[1]
    assert combined.request("/housing/metrics")[1]["total_predictions"] == before + 1


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/predict", 405),
        ("PUT", "/predict", 405),
        ("DELETE", "/metrics", 405),
        ("POST", "/", 405),
        ("GET", "/docs/assets/../../api.py", 404),
        ("GET", "/docs/assets/%2e%2e/core.py", 404),
    ],
)
def test_what_is_not_there_is_an_error_in_the_same_shape(
    method: str, path: str, status: int, servers: dict[str, Server]
) -> None:
    for server in servers.values():
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        connection.request(method, path)
        response = connection.getresponse()
        [problem] = strict_json(response.read())["detail"]
        connection.close()
        assert response.status == status
        assert set(problem) == {"type", "loc", "msg"}
        assert (status == 405) == ("allow" in response.headers)


# The example requests of the original description


def test_the_housing_example_works_as_printed_and_is_warned_of_and_the_warning_is_logged(
    servers: dict[str, Server],
) -> None:
    server = servers["housing"]
    headers = {"Content-Type": "application/json"}
    reply = send_one(server.port, "/predict", HOUSE, headers)
    assert reply.status == 200
    answer = reply.json
    found = [text for text in answer["warnings"] if "rooms_per_household = 0.016 " in text]
    assert found, f"no warning of 0.016 rooms a household in {answer['warnings']}"
    assert "rooms a household" in found[0]
    path = f"file:{server.home}/housinglogs/predictions.db?mode=ro"
    with contextlib.closing(sqlite3.connect(path, uri=True)) as log:
        [[logged]] = log.execute(
            "SELECT warnings FROM housinglogs WHERE prediction_id = ?", (answer["prediction_id"],)
        )
    assert json.loads(logged) == answer["warnings"]
    lines = kept.lines(server.home)
    [line] = [line for line in lines if answer["prediction_id"] == line["prediction_id"]]
    assert line["warnings"] == answer["warnings"]


def test_the_iris_example_works_as_printed(servers: dict[str, Server]) -> None:
    headers = {"Content-Type": "application/json"}
    reply = send_one(servers["iris"].port, "/predict", FLOWER, headers)
    assert reply.status == 200
    assert reply.json["predicted_class"] == 0
    assert reply.json["predicted_label"] == "setosa"
    assert reply.json["warnings"] == []


def test_a_request_needs_no_content_type(servers: dict[str, Server]) -> None:
    assert send_one(servers["iris"].port, "/predict", FLOWER).status == 200


# The documents


@pytest.mark.parametrize("name", ["combined", "housing", "iris"])
@pytest.mark.parametrize("page", ["/docs", "/redoc"])
def test_the_docs_page_loads_nothing_from_elsewhere(
    name: str, page: str, servers: dict[str, Server]
) -> None:
    server = servers[name]
    status, content_type, content = fetch(server, page)
    html = content.decode()
    assert status == 200
    assert content_type.startswith("text/html")
    assert "//" not in re.sub(r"<!--.*?-->|^\s*//.*$", "", html, flags=re.DOTALL | re.MULTILINE)
    parts = re.findall(r'(?:src|href)="([^"]+)"', html)
    assert any(part.endswith(".js") for part in parts)
    for part in parts:
        status, content_type, content = fetch(server, f"/{part}")
        assert status == 200
        assert len(content) > 500
        if part.endswith(".js"):
            assert "javascript" in content_type
        if part.endswith(".css"):
            assert "css" in content_type
            assert not re.search(rb"url\(\s*['\"]?(https?:)?//", content)
    [document] = re.findall(r"(?:url: |spec-url=)['\"]([^'\"]+)['\"]", html)
    assert fetch(server, f"/{document}")[0] == 200


@pytest.fixture(scope="module")
def documents(servers: dict[str, Server]) -> dict[str, dict[str, Any]]:
    return {name: strict_json(fetch(one, "/openapi.json")[2]) for name, one in servers.items()}


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield method, path, operation


def resolve(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        _, *names = schema["$ref"].split("/")
        schema = document
        for name in names:
            schema = schema[name]
    return schema


@pytest.mark.parametrize("name", ["combined", "housing", "iris"])
def test_the_document_is_valid_openapi(name: str, documents: dict[str, dict[str, Any]]) -> None:
    document = documents[name]
    assert document["openapi"].startswith("3.1")
    OpenAPI.model_validate(document)
    for reference in re.findall(r'"\$ref": "([^"]+)"', json.dumps(document)):
        assert resolve(document, {"$ref": reference})
    ids = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(ids)) == len(ids)
    for _, path, operation in operations(document):
        assert operation["summary"], path
        assert operation["tags"], path


NAMED = ("/predict", "/predict/batch")


@pytest.mark.parametrize("names", [("housing", "iris"), ("housing",), ("iris",)])
def test_every_route_is_documented_and_every_hot_one_has_its_documented_twin(
    names: tuple[str, ...],
) -> None:
    app = application(*names)
    documented = {
        (method.upper(), path)
        for method, path, _ in operations(app.openapi())
        if not path.startswith(("/v2", "/admin"))
    }
    prefixes = ["", *(f"/{name}" for name in names)] if len(names) > 1 else [""]
    expected = {
        (method, f"{prefix}{path}" or "/")
        for prefix in prefixes
        for method, path in (
            ("GET", ""),
            ("GET", "/health/live"),
            ("GET", "/health/ready"),
            ("GET", "/metrics"),
            ("GET", "/performance"),
            ("GET", "/alerts"),
            ("GET", "/predictions/{prediction_id}"),
            ("POST", "/feedback"),
            *(
                ("GET", f"/{one}")
                for one in (
                    "overview",
                    "predictions",
                    "schema",
                    "diagnosis",
                    "ledger",
                    "experiments",
                    "card",
                )
            ),
            ("POST", "/predict"),
            ("POST", "/predict/batch"),
            ("POST", "/explain"),
        )
    }
    hot = {(method, path) for method, path in expected if "/predict" in path and method == "POST"}
    for prefix in prefixes:
        if prefix or len(names) == 1:  # the root of several has no one model to speak of
            expected.add(("GET", f"{prefix}/drift"))
            expected |= {("POST", f"{prefix}/models/{{name}}{one}") for one in NAMED}
    assert documented == expected
    assert {("POST", path) for path in app.hot} == hot


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_the_documented_body_has_exactly_the_fields_limits_and_units(
    place: Place, documents: dict[str, dict[str, Any]]
) -> None:
    document = documents[place.server]
    one = body_schema(document, f"{place.prefix}/predict")
    check_fields(place.use_case, one)
    batch = body_schema(document, f"{place.prefix}/predict/batch")
    assert batch["required"] == ["instances"]
    assert batch["additionalProperties"] is False
    instances = batch["properties"]["instances"]
    assert (instances["minItems"], instances["maxItems"]) == (1, 10_000)
    check_fields(place.use_case, resolve(document, instances["items"]))


def body_schema(document: dict[str, Any], path: str) -> dict[str, Any]:
    content = document["paths"][path]["post"]["requestBody"]["content"]
    return resolve(document, content["application/json"]["schema"])


def check_fields(use_case: UseCase, schema: dict[str, Any]) -> None:
    assert schema["additionalProperties"] is False
    assert sorted(schema["required"]) == sorted(use_case.fields)
    assert list(schema["properties"]) == list(use_case.fields)
    for feature in use_case.features:
        described = schema["properties"][feature.name]
        assert described["type"] == "number"
        assert (described["minimum"], described["maximum"]) == (feature.low, feature.high)
        assert described["x-unit"] == feature.unit
        assert feature.unit in described["description"]


def test_the_documented_examples_answer_200_as_they_stand(
    place: Place, server: Server, documents: dict[str, dict[str, Any]]
) -> None:
    document = documents[place.server]
    for path in (f"{place.prefix}/predict", f"{place.prefix}/predict/batch"):
        content = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        examples = [one["value"] for one in content["examples"].values()]
        examples += resolve(document, content["schema"])["examples"]
        assert len(examples) >= 2
        for example in examples:
            status, answer = server.request(path, example)
            assert status == 200, (example, answer)


def test_answers_and_errors_have_the_documented_shape(
    place: Place, server: Server, documents: dict[str, dict[str, Any]]
) -> None:
    document = documents[place.server]
    row = json.loads(EXAMPLES[place.use_case.name])
    for path, body in (
        ("/predict", row),
        ("/predict", {}),
        ("/predict/batch", {"instances": [row, row]}),
        ("/predict/batch", {"instances": []}),
    ):
        status, answer = server.request(f"{place.prefix}{path}", body)
        responses = document["paths"][f"{place.prefix}{path}"]["post"]["responses"]
        assert str(status) in responses
        schema = responses[str(status)]["content"]["application/json"]["schema"]
        conform(document, schema, answer)


def conform(document: dict[str, Any], schema: dict[str, Any], value: Any) -> None:
    """Check a value against the few parts of JSON Schema that the answers use."""
    schema = resolve(document, schema)
    if "anyOf" in schema:
        types = [resolve(document, option)["type"] for option in schema["anyOf"]]
        assert json_type(value) in types
    elif "type" in schema:
        allowed = {"number": {"number", "integer"}}.get(schema["type"], {schema["type"]})
        assert json_type(value) in allowed, (value, schema)
    if schema.get("type") == "object" and "properties" in schema:
        assert set(schema.get("required", ())) <= set(value) <= set(schema["properties"])
        for name, item in value.items():
            conform(document, schema["properties"][name], item)
    elif schema.get("type") == "object":
        for item in value.values():
            conform(document, schema["additionalProperties"], item)
    elif schema.get("type") == "array":
        for item in value:
            conform(document, schema["items"], item)


def json_type(value: Any) -> str:
    names = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array"}
    return "null" if value is None else names.get(type(value), "object")


def test_the_document_tells_of_every_refusal_and_of_both_headers(
    documents: dict[str, dict[str, Any]],
) -> None:
    for document in documents.values():
        for method, path, operation in operations(document):
            if method == "post":
                invalid = "400" if path.startswith("/v2") else "422"
                assert set(operation["responses"]) >= {
                    *("200", "401", "403", "413", invalid, "429", "503"),
                }, path
                if path.startswith(("/admin", "/v2")) or path.endswith(("/explain", "/feedback")):
                    continue
                headers = {one["name"] for one in operation["parameters"] if one["in"] == "header"}
                assert headers == {"Idempotency-Key", "X-Client-ID"}
            elif path.endswith("/health/ready"):
                assert set(operation["responses"]) >= {"200", "503"}


# Both ways to a hot route


SENT = {
    "as it should be": None,
    "with a field missing": b"{}",
    "not JSON": b"nonsense",
    "with a name twice": b'{"sepal_length": 1,' + FLOWER[1:],
    "with NaN": FLOWER.replace(b"5.1", b"NaN"),
    "too large": b" " * (16 * 1024 * 1024 + 1),
}


@pytest.mark.parametrize("what", SENT)
@pytest.mark.parametrize("path", ["/predict", "/predict/batch"])
def test_the_short_way_and_fastapis_own_give_equal_answers(path: str, what: str) -> None:
    sent = SENT[what] or FLOWER
    if path.endswith("batch") and what != "too large":
        sent = b'{"instances": [' + sent + b"]}"

    async def run() -> None:
        service, log = Service(IRIS), tiny.ListLog()
        service.start(log, synced=True)
        service.swap(tiny.champion(IRIS))
        app = tiny.app_over(service)
        headers = {"x-client-id": "someone"}
        try:
            short = await tiny.ask(app, "POST", path, sent, headers)
            in_parts = await tiny.ask(app, "POST", path, [sent[:9], b"", sent[9:]], headers)
            own = await tiny.ask(app, "POST", path, sent, headers, by_fastapi=True)
        finally:
            await service.stop()
        assert short.status == own.status == in_parts.status
        assert short.headers | {"content-length": ""} == own.headers | {"content-length": ""}
        assert same(short) == same(own) == same(in_parts)
        assert len(log.rows) == (3 if what == "as it should be" else 0)
        assert len(log.refused) == 3 - len(log.rows)
        assert len({(one.status, one.detail, one.client) for one in log.refused}) <= 1
        assert len({row.inputs for row in log.rows}) <= 1

    def same(answer: tiny.Answer) -> bytes:
        return re.sub(rb'"prediction_id":"[^"]+"', b"", answer.body)

    asyncio.run(run())


def test_only_pages_and_their_files_are_outside_the_document() -> None:
    for names in (tuple(USE_CASES), ("iris",)):
        app = application(*names)
        outside = {
            route.path
            for route in app.routes
            if isinstance(route, Mount) or not getattr(route, "include_in_schema", True)
        }
        assert {path for path in outside if path} <= PAGES | {"/docs/assets"}


def test_request_models_say_the_same_as_the_use_case() -> None:
    for use_case in USE_CASES.values():
        model = schemas.request_model(use_case)
        for feature in use_case.features:
            for value in (feature.low, feature.high):
                at_the_limit = {**next(iter(use_case.examples.values())), feature.name: value}
                assert model.model_validate(at_the_limit)

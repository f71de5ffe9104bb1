"""The Open Inference Protocol, asked by Triton's own client, and by hand where it would not."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kept
import numpy as np
import pytest
from conftest import Server, copy_project, start_server, strict_json
from traffic import post, send
from tritonclient.http import (
    InferenceServerClient,
    InferInput,
    InferRequestedOutput,
)
from tritonclient.utils import InferenceServerException

from mlops.usecase import UseCase
from mlops.usecases.housing import HOUSING
from mlops.usecases.iris import IRIS

HOUSES = np.array([list(example.values()) for example in HOUSING.examples.values()], dtype=float)
FLOWERS = np.array([list(example.values()) for example in IRIS.examples.values()], dtype=float)
ROWS = {"housing": HOUSES, "iris": FLOWERS}
USE_CASES = {"housing": HOUSING, "iris": IRIS}


@pytest.fixture(scope="module")
def server(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = copy_project(trained, tmp_path_factory.mktemp("v2") / "home")
    started = start_server(home)
    yield started
    started.kill()


@pytest.fixture
def client(server: Server) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(f"127.0.0.1:{server.port}") as made:
        yield made


def together(rows: np.ndarray, *, binary: bool, kind: str = "FP64") -> list[InferInput]:
    tensor = InferInput("instances", list(rows.shape), kind)
    tensor.set_data_from_numpy(rows, binary_data=binary)
    return [tensor]


def by_field(use_case: UseCase, rows: np.ndarray, *, binary: bool, column: bool = False) -> Any:
    tensors = []
    for number, name in enumerate(use_case.fields):
        values = rows[:, [number]] if column else np.ascontiguousarray(rows[:, number])
        tensors.append(InferInput(name, list(values.shape), "FP64"))
        tensors[-1].set_data_from_numpy(np.ascontiguousarray(values), binary_data=binary)
    return tensors


def friendly(server: Server, use_case: UseCase, rows: np.ndarray) -> list[dict[str, Any]]:
    instances = [dict(zip(use_case.fields, row, strict=True)) for row in rows.tolist()]
    path = f"/{use_case.name}/predict/batch"
    status, answer = server.request(path, {"instances": instances})
    assert status == 200
    return answer["predictions"]


def test_the_client_finds_the_server_and_its_models(client: InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    for name, use_case in USE_CASES.items():
        for model in (name, use_case.model_name):
            assert client.is_model_ready(model)
            assert client.is_model_ready(model, "1")
            about = client.get_model_metadata(model, "1")
            assert about["name"] == name
            assert about["versions"] == ["1"]
            assert [one["name"] for one in about["inputs"]] == list(use_case.fields)
            assert about == client.get_model_metadata(model)
    assert not client.is_model_ready("nope")
    assert not client.is_model_ready("iris", "2")


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("form", ["instances", "fields", "columns"])
@pytest.mark.parametrize("name", ["housing", "iris"])
def test_both_forms_give_what_the_friendly_form_gives_to_the_last_bit(
    name: str, form: str, binary: bool, client: InferenceServerClient, server: Server
) -> None:
    use_case, rows = USE_CASES[name], ROWS[name]
    inputs = (
        together(rows, binary=binary)
        if form == "instances"
        else by_field(use_case, rows, binary=binary, column=form == "columns")
    )
    expected = friendly(server, use_case, rows)
    answer = client.infer(name, inputs, request_id="my id")
    response = answer.get_response()
    assert response["id"] == "my id"
    assert (response["model_name"], response["model_version"]) == (name, "1")
    target = use_case.target.name
    assert answer.as_numpy(target).tolist() == [one[target] for one in expected]
    if use_case is IRIS:
        labels = [text.decode() for text in answer.as_numpy("predicted_label").tolist()]
        assert labels == [one["predicted_label"] for one in expected]
        probabilities = [list(one["probabilities"].values()) for one in expected]
        assert answer.as_numpy("probabilities").tolist() == probabilities
    warnings = [json.loads(text) for text in answer.as_numpy("warnings").tolist()]
    assert warnings == [one["warnings"] for one in expected]
    # What was asked this way is in the log like all else.
    ids = [text.decode() for text in answer.as_numpy("prediction_id").tolist()]
    assert len(ids) == len(rows)
    assert set(ids) <= {line["prediction_id"] for line in kept.lines(server.home, use_case.name)}


def test_only_the_outputs_asked_for_come_as_json_if_that_was_asked_for(
    client: InferenceServerClient,
) -> None:
    wanted = [
        InferRequestedOutput("probabilities", binary_data=False),
        InferRequestedOutput("predicted_label", binary_data=True),
    ]
    answer = client.infer("iris", together(FLOWERS, binary=True), outputs=wanted)
    found = {one["name"]: one for one in answer.get_response()["outputs"]}
    assert set(found) == {"probabilities", "predicted_label"}
    assert len(found["probabilities"]["data"]) == 3 * len(FLOWERS)
    assert answer.as_numpy("probabilities").shape == (len(FLOWERS), 3)
    assert "data" not in found["predicted_label"]


@pytest.mark.parametrize("kind", ["FP32", "INT64", "UINT8"])
def test_other_numbers_are_taken_as_the_doubles_they_are(
    kind: str, client: InferenceServerClient, server: Server
) -> None:
    types = {"FP32": np.float32, "INT64": np.int64, "UINT8": np.uint8}
    rows = np.array([[5, 3, 1, 1]], dtype=types[kind])
    answer = client.infer("iris", together(rows, binary=True, kind=kind))
    [expected] = friendly(server, IRIS, rows.astype(float))
    assert answer.as_numpy("predicted_class").tolist() == [expected["predicted_class"]]


def test_the_id_is_sent_back_and_only_the_header_makes_a_resend_one_answer(
    client: InferenceServerClient,
) -> None:
    def ask(**headers: str) -> str:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = client.infer(
            "iris", together(FLOWERS[:1], binary=False), request_id="1", headers=named
        )
        return answer.as_numpy("prediction_id")[0].decode()

    assert ask() != ask()
    assert ask(Idempotency_Key="a") == ask(Idempotency_Key="a") != ask(Idempotency_Key="b")


def test_what_the_friendly_form_refuses_is_refused_in_the_protocols_shape(
    client: InferenceServerClient,
) -> None:
    for column, value, says in (
        (6, 99.0, "row 1: latitude must be at most 42.5 degrees north, got 99"),
        (3, 0.0, "row 1: households must be at least 1"),
        (0, math.nan, "row 1: total_rooms must be a finite number, got nan"),
        (0, math.inf, "row 1: total_rooms must be a finite number, got inf"),
    ):
        rows = np.repeat(HOUSES[:1], 3, axis=0)
        rows[1, column] = value
        with pytest.raises(InferenceServerException, match=r"\[400\]") as caught:
            client.infer("housing", together(rows, binary=True))
        assert says in caught.value.message()
    for model, version, says in (
        ("nope", "", "there is no such model; there are: housing, iris"),
        ("iris", "7", "only version 1 answers now"),
    ):
        with pytest.raises(InferenceServerException, match=r"\[404\]") as caught:
            client.infer(model, together(FLOWERS, binary=True), version)
        assert says in caught.value.message()


def tensor(**changes: Any) -> dict[str, Any]:
    given = {"name": "instances", "shape": [1, 4], "datatype": "FP64", "data": [5.1, 3.5, 1.4, 0.2]}
    return {key: value for key, value in {**given, **changes}.items() if value is not ...}


def request(*tensors: Any, **more: Any) -> bytes:
    return json.dumps({"inputs": list(tensors), **more}).encode()


FIELDS = [
    {"name": name, "shape": [1], "datatype": "FP64", "data": [value]}
    for name, value in IRIS.examples["setosa"].items()
]
SPOILT = {
    "nothing": (b"", "Invalid JSON"),
    "no JSON": (b"inputs", "Invalid JSON"),
    "no inputs": (b"{}", "inputs: Field required"),
    "empty inputs": (request(), "at least 1"),
    "too deep": (b'{"inputs":' + b"[" * 50_000, "recursion"),
    "far too deep": (b'{"inputs":' + b"[" * 1_000_000, "more than 90000 commas, brackets"),
    "four million values": (
        b'{"inputs":[{"data":[' + b"0.5," * 3_970_000 + b"1]}]}",
        "send at most 10000 rows of 4 numbers",
    ),
    "deep data": (
        b'{"inputs":[{"name":"instances","shape":[1,4],"datatype":"FP64","data":' + b"[" * 50_000,
        "recursion",
    ),
    "another shape": (request(tensor(shape=[4])), "[n, 4]"),
    "too few": (request(tensor(data=[1, 2, 3])), "must hold 4 numbers"),
    "too many": (request(tensor(data=[1] * 5)), "must hold 4 numbers"),
    "a crooked list": (request(tensor(data=[[1, 2], [3, 4]])), "1 lists of 4"),
    "a text": (request(tensor(data=[1, 2, 3, "4"])), "must hold numbers"),
    "true": (request(tensor(data=[1, 2, 3, True])), "must hold numbers"),
    "null": (request(tensor(data=[1, 2, 3, None])), "must hold numbers"),
    "NaN": (b'{"inputs":[' + json.dumps(tensor(data=[1, 2, 3, math.nan])).encode() + b"]}", "nan"),
    "1e999": (request(tensor()).replace(b"5.1", b"1e999"), "finite"),
    "a huge integer": (request(tensor()).replace(b"5.1", b"9" * 4000), "no double can"),
    "4,301 digits": (request(tensor()).replace(b"5.1", b"9" * 4301), "out of range"),
    "no data": (request(tensor(data=...)), "neither data nor"),
    "no datatype": (request(tensor(datatype=...)), "datatype: Field required"),
    "texts": (request(tensor(datatype="BYTES")), "one of the datatypes"),
    "negative shape": (request(tensor(shape=[-1, -4])), "greater than or equal to 0"),
    "a huge shape": (request(tensor(shape=[2**31, 4])), "at most 10000 rows"),
    "no rows": (request(tensor(shape=[0, 4], data=[])), "at least 1 item"),
    "twice": (request(tensor(), tensor()), "more than once"),
    "one more": (request(tensor(), *FIELDS), "the only input"),
    "a field missing": (request(*FIELDS[1:]), "sepal_length is missing"),
    "no field": (request(*FIELDS, tensor(name="x", shape=[1], data=[1])), "x is not an input"),
    "rows that differ": (
        request(*FIELDS[1:], {**FIELDS[0], "shape": [2], "data": [1, 2]}),
        "differ in their number of rows",
    ),
    "no such output": (request(tensor(), outputs=[{"name": "y"}]), "y is not an output"),
    "an output of JSON": (request(tensor(), outputs=[{"name": "predicted_class\ud800"}]), ""),
    "binary data that is not there": (
        request(tensor(data=..., parameters={"binary_data_size": 32})),
        "takes 32 bytes after the JSON",
    ),
    "bytes after it": (request(tensor()) + b"1234", "Invalid JSON"),
}


@pytest.mark.parametrize("what", SPOILT)
def test_a_spoilt_request_is_refused_in_one_strict_line_and_recorded(
    what: str, server: Server
) -> None:
    body, says = SPOILT[what]
    before = server.request("/iris/metrics")[1]
    [reply] = send(server.port, [post("/v2/models/iris/infer", body)], connections=1)
    assert reply is not None
    assert reply.status == 400, reply.body
    [(name, text)] = strict_json(reply.body).items()
    assert name == "error"
    assert says in text
    assert len(text) < 3_000
    after = server.request("/iris/metrics")[1]
    assert after["failed_requests"] == before["failed_requests"] + 1
    assert after["total_predictions"] == before["total_predictions"]


@pytest.mark.parametrize("length", ["-1", "x", "99999999", "1" * 5000, "²", ""])
def test_a_length_of_the_json_that_cannot_be_is_refused(length: str, server: Server) -> None:
    headers = {"Inference-Header-Content-Length": length}
    [reply] = send(
        server.port, [post("/v2/models/iris/infer", request(tensor()), **headers)], connections=1
    )
    assert reply is not None
    assert reply.status == 400
    assert "inference-header-content-length" in strict_json(reply.body)["error"]


def test_binary_data_of_another_size_than_its_shape_is_refused(server: Server) -> None:
    for size in (31, 33, 40, "32", True, -32, None):
        head = request(tensor(data=..., parameters={"binary_data_size": size}))
        body = head + struct.pack("<5d", *[1.0] * 5)
        headers = {"Inference-Header-Content-Length": str(len(head))}
        [reply] = send(server.port, [post("/v2/models/iris/infer", body, **headers)], connections=1)
        assert reply is not None
        assert reply.status == 400, size


def test_errors_under_v2_have_its_shape_whoever_gives_them(server: Server) -> None:
    for path in ("/v2/nope", "/v2/models/iris/nope", "/v2/models/iris/infer"):
        status, answer = server.request(path)
        assert status in {404, 405}
        assert list(answer) == ["error"]

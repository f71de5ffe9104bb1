"""Hostile input: refused in strict JSON that names what is wrong, and the same process goes on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import tiny
from conftest import Server, copy_project, mlops, start_server, strict_json
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from traffic import Reply, post, send, send_one

from mlops.deploy.inference_protocol import _parse
from mlops.deploy.problems import invalid
from mlops.deploy.reader import LONG_BODY, Reader
from mlops.deploy.schemas import LARGEST_BATCH
from mlops.deploy.service import Service, reply_of
from mlops.usecase import UseCase
from mlops.usecases.housing import HOUSING
from mlops.usecases.iris import IRIS

GOOD = dict(next(iter(HOUSING.examples.values())))
DEPTH = 1_000_000
WHOLE_BODY = {"json_invalid", "model_type", "too_many_names", "too_many_values"}
"""What is wrong with no one field."""


@pytest.fixture(scope="module")
def server(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = copy_project(trained, tmp_path_factory.mktemp("hostile") / "home")
    started = start_server(home)
    yield started
    started.kill()


def with_value(field: str, raw: str) -> bytes:
    """Return the good request with one value replaced by raw JSON, or what is none."""
    text = ", ".join(
        f'"{name}": {raw if name == field else json.dumps(value)}' for name, value in GOOD.items()
    )
    return f"{{{text}}}".encode()


class Case(NamedTuple):
    """A body, and what the refusal must say: `field` in `loc` and message, and these `words`."""

    body: bytes
    field: str = ""
    words: tuple[str, ...] = ()


def values() -> Iterator[tuple[str, Case]]:
    """Cases of one value in an otherwise good request."""
    number, integer = ("must be a number",), ("must be at most 42.5 degrees north",)
    for name, field, raw, words in (
        ("a text", "latitude", '"1"', (*number, "got 1")),
        ("a text of a number", "latitude", '"37.8"', (*number, "got 37.8")),
        ("an empty text", "latitude", '""', number),
        ("true", "households", "true", (*number, "got True")),
        ("false", "median_income", "false", (*number, "got False")),
        ("null", "latitude", "null", (*number, "got None")),
        ("a list", "latitude", "[37.8]", (*number, "a list of 1")),
        ("an object", "latitude", '{"value": 37.8}', (*number, "an object of 1")),
        ("NaN", "latitude", "NaN", ("finite", "got nan")),
        ("Infinity", "latitude", "Infinity", ("finite", "got inf")),
        ("-Infinity", "latitude", "-Infinity", ("finite", "got -inf")),
        ("1e999", "latitude", "1e999", ("finite", "got inf")),
        ("-1e999", "latitude", "-1e999", ("finite", "got -inf")),
        ("minus zero households", "households", "-0.0", ("at least 1", "households", "-0.0")),
        ("zero households", "households", "0", ("must be at least 1", "got 0")),
        ("the smallest number", "households", "5e-324", ("must be at least 1", "5e-324")),
        ("a negative count", "total_rooms", "-3", ("must be at least 1", "rooms", "got -3")),
        ("a latitude of 91", "latitude", "91", (*integer, "got 91")),
        ("just above", "latitude", "42.50000000000001", (*integer, "got 42.50000000000001")),
        ("just below", "latitude", "31.999999999999996", ("at least 32", "31.999999999999996")),
        ("2^63", "latitude", str(2**63), (*integer, "an integer of 64 bits")),
        ("2^64", "total_rooms", str(2**64), ("must be at most 1000000.0 rooms",)),
        ("minus 2^63", "total_rooms", str(-(2**63)), ("at least 1",)),
        ("the largest number", "population", "1.7976931348623157e308", ("at most 1000000.0",)),
        ("4,300 digits", "latitude", "9" * 4300, ("latitude",)),
        ("4,301 digits", "latitude", "9" * 4301, ("latitude", "out of range")),
        ("a million digits", "latitude", "9" * 1_000_000, ("latitude", "out of range")),
        ("a fraction of 5,000 digits", "latitude", "99." + "9" * 5000, ("latitude",)),
        ("lists a million deep", "latitude", "[" * DEPTH, ("more than 10016 commas, brackets",)),
        ("lists 5,000 deep", "latitude", "[" * 5000, ("latitude", "recursion")),
        ("closed lists", "latitude", "[" * 5000 + "]" * 5000, ("latitude", "recursion")),
        (
            "four million values",
            "latitude",
            "[" + "0.5," * 3_970_000 + "1]",
            ("no more rows than 1",),
        ),
        ("objects a million deep", "latitude", '{"a":' * DEPTH, ("more names",)),
        ("a lone surrogate", "latitude", '"\\ud800"', ("latitude",)),
        ("a lone low surrogate", "latitude", '"\\udc00"', ("latitude",)),
        ("NUL as text", "latitude", '"\\u0000"', number),
        ("a raw NUL", "latitude", "\x00", ("latitude",)),
        ("a long text", "latitude", '"' + "x" * 100_000 + '"', number),
        ("hexadecimal", "latitude", "0x25", ("latitude",)),
        ("a leading zero", "latitude", "037.8", ("latitude",)),
        ("a leading plus", "latitude", "+37.8", ("latitude",)),
        ("a lone point", "latitude", ".5", ("latitude",)),
        ("two points", "latitude", "37.8.1", ("latitude",)),
        ("a comma", "latitude", "37,8", ("latitude",)),
        ("an underscore", "latitude", "3_7", ("latitude",)),
        ("nothing", "latitude", "", ("latitude",)),
        ("a comment", "latitude", "/* 1 */ 37.8", ("latitude",)),
        ("other digits", "latitude", "٣٧", ("latitude",)),
    ):
        yield name, Case(with_value(field, raw), field, words)


def bodies() -> Iterator[tuple[str, Case]]:
    """Cases of whole bodies."""
    good = json.dumps(GOOD).encode()
    swapped = {**GOOD, "latitude": GOOD["longitude"], "longitude": GOOD["latitude"]}
    extra = ("is not a field", "total_rooms, total_bedrooms")
    yield "swapped latitude and longitude", Case(json.dumps(swapped).encode(), "latitude")
    yield "swapped longitude and latitude", Case(json.dumps(swapped).encode(), "longitude")
    for field in GOOD:
        rest = {name: value for name, value in GOOD.items() if name != field}
        yield f"no {field}", Case(json.dumps(rest).encode(), field, (f"{field} is missing",))
    for name in ("zip_code", "", "Latitude", "latitude ", "latitude\0", "__proto__", "é", "🏠"):
        yield f"a field {name!r}", Case(json.dumps({**GOOD, name: 1}).encode(), name, extra)
    twice = b'{"latitude": 33, ' + good[1:]
    once_more = good[:-1] + b', "longitude": -120}'
    spelt = good[:-1] + b', "l\\u0061titude": 33}'
    yield "a name twice", Case(twice, "latitude", ("more than once",))
    yield "a name twice, at the end", Case(once_more, "longitude", ("more than once",))
    yield "a name twice, spelt otherwise", Case(spelt, "latitude", ("more than once",))
    yield (
        "a name twice with one value",
        Case(
            good[:-1] + f', "latitude": {GOOD["latitude"]}}}'.encode(),
            "latitude",
            ("more than once",),
        ),
    )
    yield (
        "a name twice, once not finite",
        Case(b'{"latitude": NaN, ' + good[1:], "latitude", ("more than once",)),
    )
    yield "a surrogate in a name", Case(b'{"\\ud800": 1, ' + good[1:])
    for name, body in {
        "nothing": b"",
        "blanks": b"  \n ",
        "no JSON": b"latitude=37.8",
        "a word": b"nope",
        "invalid UTF-8": b'{"latitude": "\xff\xfe"}',
        "UTF-16": json.dumps(GOOD).encode("utf-16"),
        "a byte order mark": b"\xef\xbb\xbf" + good,
        "half of it": good[: len(good) // 2],
        "more after it": good + b" {}",
        "a trailing comma": good[:-1] + b",}",
        "single quotes": good.replace(b'"', b"'"),
        "gzip": b"\x1f\x8b\x08\x00" + b"\x00" * 20,
        "zeros": b"\x00" * 1000,
        "deep lists": b"[" * 5000,
    }.items():
        yield name, Case(body, "", ("Invalid JSON",))
    for name, body in {
        "a list": b"[" + good + b"]",
        "an empty list": b"[]",
        "a number": b"37.8",
        "a text": json.dumps(json.dumps(GOOD)).encode(),
        "null": b"null",
        "true": b"true",
    }.items():
        yield name, Case(body, "", ("must be a JSON object with the fields total_rooms",))
    yield "a long name", Case(json.dumps({**GOOD, "x" * 1_000_000: 1}).encode(), "", extra)
    yield "deep objects", Case(b'{"latitude":' * DEPTH, "latitude", ("more names",))
    many = {f"n{number}": 1 for number in range(300_000)}
    yield "300,000 names", Case(json.dumps({**GOOD, **many}).encode(), "", ("more names",))


CASES = {**dict(values()), **{f"body: {name}": case for name, case in bodies()}}


def check_refusal(reply: Reply, field: str, words: tuple[str, ...], status: int = 422) -> Any:
    """Check that the reply is a refusal which says what is wrong; return its first problem."""
    assert reply.status == status, reply.body[:500]
    detail = reply.json["detail"]
    assert 1 <= len(detail) <= 100
    for problem in detail:
        assert {"type", "loc", "msg"} <= set(problem) <= {"type", "loc", "msg", "input"}
    assert len(reply.body) < 50_000, "an answer must not grow with what was sent"
    said = [one for one in detail if not field or field in one["msg"]]
    assert said, f"{field} is not named in {detail}"
    text = said[0]["msg"]
    for word in words:
        assert word in text, f"{word!r} is not in {text!r}"
    return said[0]


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_request_is_refused_by_name_and_recorded_and_the_next_is_answered(
    name: str, server: Server
) -> None:
    case = CASES[name]
    before = server.request("/housing/metrics")[1]
    started = time.perf_counter()
    reply = send_one(server.port, "/housing/predict", case.body)
    took = time.perf_counter() - started
    problem = check_refusal(reply, case.field, case.words)
    if problem["type"] not in WHOLE_BODY:
        assert problem["loc"][:1] == ["body"]
        assert problem["loc"][1] == case.field or not case.field
    if problem["type"] == "finite_number":
        assert problem["input"] is not None, "strict JSON has no word for it, but it can be shown"
    assert took < 10, f"refusing it took {took:.1f} s, in which nobody else was answered"
    assert server.request("/housing/predict", GOOD)[0] == 200
    after = server.request("/housing/metrics")[1]
    assert after["failed_requests"] == before["failed_requests"] + 1
    assert after["total_predictions"] == before["total_predictions"] + 1
    assert server.process.poll() is None


BATCHES = {
    "no rows": ({"instances": []}, "instances", ("at least 1 ", "got 0")),
    "10,001 rows": ({"instances": [GOOD] * 10_001}, "instances", ("at most 10000 ", "got 10001")),
    "no instances": ({}, "instances", ("missing",)),
    "one more name": ({"instances": [GOOD], "more": 1}, "more", ("is not a field",)),
    "an object for a list": (
        {"instances": GOOD},
        "instances",
        ("must be a list", "an object of 8"),
    ),
    "a text for a list": ({"instances": "all"}, "instances", ("must be a list", "all")),
    "a row by itself": (GOOD, "instances", ("missing",)),
    "rows by themselves": ([GOOD], "", ()),
    "rows of numbers": ({"instances": [list(GOOD.values())]}, "", ("must be a JSON object",)),
}


@pytest.mark.parametrize("name", BATCHES)
def test_a_hostile_batch_is_refused_by_name(name: str, server: Server) -> None:
    body, field, words = BATCHES[name]
    before = server.request("/housing/metrics")[1]
    check_refusal(send_one(server.port, "/housing/predict/batch", body), field, words)
    after = server.request("/housing/metrics")[1]
    assert after["total_predictions"] == before["total_predictions"]
    assert after["failed_requests"] == before["failed_requests"] + 1


HUGE = """
import sys
from mlops.deploy.inference_protocol import ProtocolError, _parse
from mlops.deploy.problems import invalid
from mlops.deploy.reader import Reader
from mlops.usecases.housing import HOUSING
from pydantic import ValidationError

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

reader, size = Reader(HOUSING), 15_900_000
v2 = lambda body: _parse(body, None, len(HOUSING.fields))
read = {"one": reader.one, "batch": reader.batch, "v2": v2}[sys.argv[1]]
head, unit, tail = (text.encode() for text in sys.argv[2:])
body = head + unit * ((size - len(head) - len(tail)) // len(unit)) + tail
before = peak()
try:
    read(body)
except ValidationError as error:
    print(invalid(error, HOUSING, body)[0]["type"], peak() - before)
except ProtocolError as error:
    print("many" if "more than 170000 commas" in error.detail else "other", peak() - before)
"""
ROW_OF_395 = '{"x":[' + "0.5," * 394 + "0.5]},"
FACE = '{"x":"😀'
HUGE_BODIES = {
    "a list for a number": ("one", '{"total_rooms":[', "0.5,", "1]}", "too_many_values"),
    "lists": ("one", '{"total_rooms":[', "[],", "1]}", "too_many_values"),
    "a text in four bytes a letter": ("one", FACE, "y", '"}', "missing"),
    "rows of lists": ("batch", '{"instances":[', ROW_OF_395, "{}]}", "too_many_values"),
    "rows of objects": ("batch", '{"instances":[', "{},", "{}]}", "too_many_values"),
    "deep lists": ("batch", '{"instances":[', "[" * 99 + "]" * 99 + ",", "1]}", "too_many_values"),
    "a row of a text": ("batch", '{"instances":[' + FACE, "y", '"}]}', "missing"),
    "rows of texts": (
        "batch",
        '{"instances":[',
        FACE + "y" * 1_600 + '"},',
        "{}]}",
        "missing",
    ),
    "data of v2": ("v2", '{"inputs":[{"data":[', "0.5,", "1]}]}", "many"),
    "objects of v2": ("v2", '{"inputs":[{"data":[', "{},", "1]}]}", "many"),
    "a text of v2": ("v2", '{"inputs":[{"data":["😀', "y", '"]}]}', "other"),
}


@pytest.mark.parametrize("name", HUGE_BODIES)
def test_a_body_of_nearly_16_mib_is_refused_without_copies_of_it_in_memory(name: str) -> None:
    *given, kind = HUGE_BODIES[name]
    said = subprocess.run(
        [sys.executable, "-c", HUGE, *given], check=True, capture_output=True, text=True
    )
    found, kilobytes = said.stdout.split()
    assert found == kind
    assert int(kilobytes) < 250_000


def refusal(read: Callable[[bytes], Any], body: bytes) -> Any:
    """Return what is wrong with a body, without where the JSON ends; None if nothing is."""
    try:
        read(body)
    except ValidationError as error:
        return [
            {**item, "msg": item["msg"].split(" at line")[0]}
            for item in invalid(error, HOUSING, body)
        ]
    return None


@pytest.mark.parametrize("name", [name for name in CASES if len(CASES[name].body) < 10_000])
def test_a_long_body_is_refused_in_the_same_words_as_a_short_one(name: str) -> None:
    body, reader = CASES[name].body, Reader(HOUSING)
    blanks = b" " * LONG_BODY
    assert refusal(reader.one, body + blanks) == refusal(reader.one, body)
    body = b'{"instances": [' + body + b"]}"
    assert refusal(reader.batch, body + blanks) == refusal(reader.batch, body)


@pytest.mark.parametrize("use_case", [HOUSING, IRIS])
def test_what_is_legal_is_accepted_however_long_its_body_is(use_case: UseCase) -> None:
    reader, blanks = Reader(use_case), b" \n" * 1_000_000
    good = dict(next(iter(use_case.examples.values())))
    one = json.dumps(good, indent=1).encode()
    assert reader.one(one.replace(b"\n", blanks[:200_000]))[1] == reader.one(one)[1]
    spelt = one.replace(b"l", b"\\u006c")
    batch = b'{"instances": [' + b",".join([spelt] * LARGEST_BATCH) + b"]}"
    assert len(reader.batch(batch + blanks)[0]) == LARGEST_BATCH
    # The form of v2 with most brackets, and all that may stand beside the values.
    many = {f"parameter, {number}": [number, "[,]"] for number in range(500)}
    tensors = [
        {
            "name": name,
            "shape": [LARGEST_BATCH, 1],
            "datatype": "FP64",
            "parameters": many if name == use_case.fields[0] else {},
            "data": [[value]] * LARGEST_BATCH,
        }
        for name, value in good.items()
    ]
    outputs = [{"name": "warnings", "parameters": {"binary_data": False}}] * 100
    asked = {"id": "," * 200, "parameters": many, "inputs": tensors, "outputs": outputs}
    parsed, tail = _parse(json.dumps(asked).encode() + blanks, None, len(use_case.fields))
    assert parsed.model_dump() == asked
    assert tail == b""


def test_one_bad_row_of_a_batch_is_named_by_its_index_and_nothing_is_logged(
    server: Server,
) -> None:
    before = server.request("/housing/metrics")[1]
    rows: list[Any] = [GOOD] * 5
    rows[3] = {**GOOD, "households": 0, "latitude": "x"}
    reply = send_one(server.port, "/housing/predict/batch", {"instances": rows})
    check_refusal(reply, "households", ("must be at least 1",))
    places = [problem["loc"] for problem in reply.json["detail"]]
    assert places == [
        ["body", "instances", 3, "households"],
        ["body", "instances", 3, "latitude"],
    ]
    after = server.request("/housing/metrics")[1]
    assert after["total_predictions"] == before["total_predictions"]
    assert after["failed_requests"] == before["failed_requests"] + 1


def test_a_name_twice_in_one_row_of_a_batch_is_refused(server: Server) -> None:
    good = json.dumps(GOOD).encode()
    twice = good[:-1] + b', "latitude": 33}'
    for rows in (b"%b, %b" % (good, twice), b"%b, %b" % (twice, good)):
        body = b'{"instances": [' + rows + b"]}"
        reply = send_one(server.port, "/housing/predict/batch", body)
        check_refusal(reply, "latitude", ("more than once",))
    body = b'{"instances": [' + good + b'], "instances": [' + good + b"]}"
    reply = send_one(server.port, "/housing/predict/batch", body)
    check_refusal(reply, "instances", ("more than once",))


def test_a_batch_in_which_all_is_wrong_is_refused_shortly(server: Server) -> None:
    wrong = dict.fromkeys(GOOD, "x")
    body = json.dumps({"instances": [wrong] * LARGEST_BATCH}).encode()
    check_refusal(send_one(server.port, "/housing/predict/batch", body), "total_rooms", ("number",))


def test_the_largest_batch_is_answered(server: Server) -> None:
    reply = send_one(server.port, "/housing/predict/batch", {"instances": [GOOD] * LARGEST_BATCH})
    assert reply.status == 200
    answers = reply.json["predictions"]
    assert len({answer["prediction_id"] for answer in answers}) == LARGEST_BATCH


@pytest.mark.parametrize("path", ["/housing/predict", "/housing/predict/batch", "/predict"])
def test_a_body_of_17_mb_is_too_large_and_does_not_stay_in_memory(
    path: str, server: Server
) -> None:
    process = psutil.Process(server.process.pid)
    body = b" " * (17 * 1024 * 1024)
    check_refusal(send_one(server.port, path, body), "", ("16,777,216 bytes",), 413)
    before = process.memory_info().rss
    for _ in range(3):
        send_one(server.port, path, body)
    grown = process.memory_info().rss - before
    assert grown < 50e6, f"{grown / 1e6:.0f} MB more after three bodies of 17 MB"
    assert server.request("/housing/predict", GOOD)[0] == 200


def test_what_is_odd_but_true_is_answered(server: Server) -> None:
    for raw in ("-0.0", "-0", "0", "0.0", "5e-324", "0E5", "1e0", "0.1e1", "1" + "0" * 5):
        reply = send_one(server.port, "/housing/predict", with_value("total_bedrooms", raw))
        assert reply.status == 200, (raw, reply.body)
        assert isinstance(reply.json["predicted_price"], float)
    shuffled = json.dumps(dict(reversed(GOOD.items()))).encode()
    spelt = json.dumps(GOOD).replace("latitude", "l\\u0061titude").encode()
    prices = {
        send_one(server.port, "/housing/predict", body).json["predicted_price"]
        for body in (json.dumps(GOOD, indent=3).encode(), shuffled, spelt)
    }
    assert len(prices) == 1


def test_refusals_can_be_read_back_whatever_was_sent(server: Server) -> None:
    for body in (b"\xff\x00\xfe", b'"\\ud800', b"{}", b'{"a": NaN}', "é🏠".encode(), b"\x1b[2J"):
        assert (
            send_one(server.port, "/iris/predict", body, {"X-Client-ID": "mallory"}).status == 422
        )
    shown = mlops("logs", "iris", "--failures", "--json", "--last", "6", home=server.home)
    failures = strict_json(shown.stdout.encode())
    assert [failure["status"] for failure in failures] == [422] * 6
    assert [failure["path"] for failure in failures] == ["/iris/predict"] * 6
    assert failures[2]["body"] == "{}"
    assert "sepal_length is missing" in str(failures[2]["detail"])
    assert "mallory" not in shown.stdout
    plain = mlops("logs", "iris", "--failures", home=server.home).stdout
    assert "sepal_length is missing" in plain


# Raw HTTP


def raw(server: Server, sent: bytes, *, wait: float = 5) -> bytes:
    """Send bytes and read until the server closes, or for `wait` seconds."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=wait) as connection:
        connection.sendall(sent)
        received = b""
        with contextlib.suppress(TimeoutError, ConnectionResetError):
            while part := connection.recv(65536):
                received += part
                if b"\r\n\r\n" in received and wait < 1:
                    break
        return received


BODY = json.dumps(GOOD).encode()
SMUGGLED = post("/housing/predict", BODY)


@pytest.mark.parametrize(
    "head",
    [
        f"Content-Length: {len(BODY)}\r\nTransfer-Encoding: chunked",
        f"Content-Length: {len(BODY)}\r\nContent-Length: 5",
        "Content-Length: -1",
        "Content-Length: 1e3",
        "Transfer-Encoding: nonsense\r\nTransfer-Encoding: chunked",
    ],
)
def test_a_request_of_two_lengths_never_becomes_two(head: str, server: Server) -> None:
    before = server.request("/housing/metrics")[1]["total_predictions"]
    request = f"POST /housing/predict HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n".encode()
    raw(server, request + b"0\r\n\r\n" + SMUGGLED, wait=0.5)
    after = server.request("/housing/metrics")[1]["total_predictions"]
    assert after - before <= 1, "the second request, which a proxy never saw, was answered"


def test_a_chunked_body_is_read_whole(server: Server) -> None:
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (BODY[:7], BODY[7:]))
    head = b"POST /housing/predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    received = raw(server, head + chunks + b"0\r\n\r\n", wait=0.5)
    assert received.startswith(b"HTTP/1.1 200")


def test_a_client_that_leaves_in_the_middle_is_neither_answered_nor_logged(
    server: Server,
) -> None:
    before = server.request("/housing/metrics")[1]
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(SMUGGLED[:-10])
    time.sleep(0.1)
    after = server.request("/housing/metrics")[1]
    assert after["total_predictions"] == before["total_predictions"]
    assert after["failed_requests"] == before["failed_requests"]


def test_slow_clients_and_masses_of_headers_do_not_slow_the_others(server: Server) -> None:
    memory = psutil.Process(server.process.pid).memory_info().rss
    with contextlib.ExitStack() as stack:
        for number in range(200):
            connection = socket.create_connection(("127.0.0.1", server.port))
            stack.enter_context(connection)
            connection.sendall(SMUGGLED[: 20 + number % 150])
        many = "".join(f"X-{number}: {'y' * 50}\r\n" for number in range(10_000))
        for _ in range(3):
            with contextlib.suppress(OSError):
                raw(server, f"GET / HTTP/1.1\r\nHost: x\r\n{many}\r\n".encode(), wait=0.9)
        replies = send(server.port, [post("/housing/predict", GOOD)] * 200)
        assert {reply and reply.status for reply in replies} == {200}
        grown = psutil.Process(server.process.pid).memory_info().rss - memory
        assert grown < 50e6, f"{grown / 1e6:.0f} MB more"


# What is documented is what is checked


class Hot:
    """The hot path of a use case over a model and a log that cost nothing."""

    def __init__(self, use_case: UseCase) -> None:
        self.service = Service(use_case)
        self.log = tiny.ListLog()
        self.service.start(self.log, synced=False)
        self.service.swap(tiny.champion(use_case))
        self.loop = asyncio.new_event_loop()

    def ask(self, body: bytes, *, batch: bool) -> tuple[int, Any]:
        handler = self.service.predict_batch if batch else self.service.predict

        async def ask() -> tuple[int, bytes]:
            reply = await reply_of(lambda respond: handler(body, [], "/predict", respond))
            return reply.status, reply.body

        status, answer = self.loop.run_until_complete(ask())
        return status, strict_json(answer)

    def close(self) -> None:
        self.loop.run_until_complete(self.service.stop())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()


@pytest.fixture(scope="module")
def hot() -> Iterator[dict[str, Hot]]:
    made = {"housing": Hot(HOUSING), "iris": Hot(IRIS)}
    yield made
    for one in made.values():
        one.close()


NUMBERS = st.one_of(
    st.floats().map(json.dumps),
    st.integers().map(str),
    st.sampled_from(["1e999", "-0", "5e-324", "01", "1.", "-", "1e5", "2E-3", "NaN", "9" * 4301]),
)
OTHERS = st.sampled_from(
    ['"1"', '"a"', "true", "null", "[]", "[1]", "{}", '{"a": 1, "a": 2}', '"\\ud800"', "", '"\\""']
)


@st.composite
def one_row(draw: st.DrawFn, use_case: UseCase) -> str:
    """Draw a request: mostly right, some of it spoilt."""
    pairs = []
    for feature in use_case.features:
        inside = st.floats(feature.low, feature.high).map(repr)
        spoilt = draw(st.integers(0, 19))
        if spoilt == 0:
            continue
        value = draw(NUMBERS if spoilt == 1 else OTHERS if spoilt == 2 else inside)
        name = feature.name
        if spoilt == 3:
            name = name.replace("e", "\\u0065")
        pairs.append((name, value))
        if spoilt == 4:
            pairs.append((name, draw(st.one_of(inside, NUMBERS, OTHERS))))
        if spoilt == 5:
            pairs.append((draw(st.sampled_from(["more", "", 'a\\"b', "\\ud800"])), "1"))
    blank = draw(st.sampled_from(["", " ", "\n\t"]))
    pairs = draw(st.permutations(pairs))
    joined = f",{blank}".join(f'"{name}"{blank}:{blank}{value}' for name, value in pairs)
    return f"{blank}{{{joined}}}{blank}"


@st.composite
def one_batch(draw: st.DrawFn, use_case: UseCase) -> str:
    rows = draw(st.lists(one_row(use_case), max_size=3))
    name = draw(st.sampled_from(["instances"] * 8 + ["Instances"]))
    again = f', "instances": [{rows[0]}]' if rows and draw(st.integers(0, 9)) == 0 else ""
    return f'{{"{name}": [{", ".join(rows)}]{again}}}'


def gives_a_name_twice(body: bytes) -> bool:
    twice = False

    def look(pairs: list[tuple[str, Any]]) -> None:
        nonlocal twice
        twice |= len({name for name, _ in pairs}) < len(pairs)

    json.loads(body, object_pairs_hook=look, parse_int=float)
    return twice


def check_against_the_documented_model(hot: Hot, body: bytes, *, batch: bool) -> None:
    service = hot.service
    reader = service.reader
    model = reader.batch_model if batch else reader.request_model
    rows_before, refused_before = len(hot.log.rows), len(hot.log.refused)
    status, answer = hot.ask(body, batch=batch)
    try:
        record: Any = model.model_validate_json(body)
    except ValidationError as error:
        assert status == 422
        found = error.errors(include_url=False)
        assert [item["type"] for item in answer["detail"]] == [one["type"] for one in found][:100]
        for problem, one in zip(answer["detail"], found, strict=False):
            assert len(problem["loc"]) == 1 + len(one["loc"])
    else:
        if gives_a_name_twice(body):
            assert status == 422
            assert answer["detail"][0]["type"] == "repeated_name"
        else:
            assert status == 200
            records = record.instances if batch else [record]
            logged = [json.loads(row.inputs) for row in hot.log.rows[rows_before:]]
            assert logged == [one.model_dump() for one in records]
    assert (len(hot.log.refused) - refused_before) == (status != 200)
    assert (len(hot.log.rows) > rows_before) == (status == 200)


SOME = settings(
    max_examples=250,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.mark.parametrize("name", ["housing", "iris"])
@SOME
@given(data=st.data())
def test_one_request_is_accepted_exactly_when_the_documented_model_accepts_it(
    name: str, data: st.DataObject, hot: dict[str, Hot]
) -> None:
    body = data.draw(one_row(hot[name].service.use_case)).encode()
    check_against_the_documented_model(hot[name], body, batch=False)
    check_against_the_documented_model(hot[name], body + b" " * LONG_BODY, batch=False)


@SOME
@given(body=one_batch(IRIS).map(str.encode))
def test_a_batch_is_accepted_exactly_when_the_documented_model_accepts_it(
    body: bytes, hot: dict[str, Hot]
) -> None:
    check_against_the_documented_model(hot["iris"], body, batch=True)
    check_against_the_documented_model(hot["iris"], body + b" " * LONG_BODY, batch=True)


@settings(SOME, max_examples=80)
@given(
    body=st.one_of(
        st.binary(),
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.text() | st.integers(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        ).map(lambda value: json.dumps(value).encode()),
    )
)
@example(body=b"\xed\xa0\x80")
@example(body=b'"\\ud800\\ud800"')
def test_anything_else_is_refused_in_strict_json(body: bytes, hot: dict[str, Hot]) -> None:
    for batch in (False, True):
        status, answer = hot["iris"].ask(body, batch=batch)
        assert status == 422
        assert answer["detail"]


def test_the_generated_requests_are_good_and_spoilt_in_every_way() -> None:
    """Guards the property tests: a generator that spoils all or nothing would prove nothing."""
    hot = Hot(IRIS)

    @SOME
    @given(body=one_row(IRIS).map(str.encode))
    def collect(body: bytes) -> None:
        hot.ask(body, batch=False)

    collect()
    hot.close()
    assert len(hot.log.rows) > 20
    kinds = " ".join(failure.detail for failure in hot.log.refused)
    for kind in ("repeated_name", "missing", "extra_forbidden", "json_invalid", "float_type"):
        assert kind in kinds

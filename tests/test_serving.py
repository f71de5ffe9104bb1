"""Running servers: what they log, which model answers, and what they do when something fails."""

from __future__ import annotations

import contextlib
import json
import resource
import shutil
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kept
import pytest
from conftest import Server, mlops
from traffic import Reply, Traffic, post, send, send_one

from mlops.improve.ledger import Ledger
from mlops.package.bundle import MODEL
from mlops.usecases.housing import HOUSING
from mlops.usecases.iris import IRIS

Serve = Callable[..., Server]
HOUSE = dict(next(iter(HOUSING.examples.values())))
FLOWER = dict(IRIS.examples["setosa"])


def house(number: int) -> dict[str, float]:
    """A request that its population tells from all others."""
    return {**HOUSE, "population": float(number)}


def until(condition: Callable[[], Any], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"this did not come to pass within {seconds} s"
        time.sleep(0.05)


def status(server: Server, path: str) -> int:
    return server.request(path)[0]


# The log


def test_an_answer_is_committed_when_it_arrives(serve: Serve, home: Path) -> None:
    server = serve("housing")
    with contextlib.closing(sqlite3.connect(home / "housinglogs" / "predictions.db")) as log:

        def look(number: int, reply: Reply) -> None:
            answer = reply.json
            found = log.execute(
                "SELECT inputs, prediction FROM housinglogs WHERE prediction_id = ?",
                (answer["prediction_id"],),
            ).fetchall()
            assert len(found) == 1, f"request {number} was answered before it was in the log"
            assert json.loads(found[0][0]) == house(number + 1)
            assert found[0][1] == answer["predicted_price"]

        send(server.port, [post("/predict", house(n + 1)) for n in range(300)], on_reply=look)


def test_16_and_64_connections_at_once_are_logged_each_once_and_counted_also_after_a_restart(
    serve: Serve, home: Path
) -> None:
    server = serve()
    answers = []
    for connections, first in ((16, 1), (64, 601)):
        replies = send(server.port, mixed(range(first, first + 600)), connections=connections)
        for number, reply in enumerate(replies, first):
            assert reply is not None
            assert reply.status == (422 if number % 10 == 0 else 200)
            if reply.status == 200:
                answers += reply.json.get("predictions") or [reply.json]
    ids = [answer["prediction_id"] for answer in answers]
    logged = {row["prediction_id"]: row for row in kept.check_whole(home)}
    assert len(ids) == len(logged) == 120 * (8 + 3)
    assert set(ids) == set(logged)
    for answer in answers:
        assert logged[answer["prediction_id"]]["prediction"] == answer["predicted_price"]
    before = server.request("/housing/metrics")[1]
    kept.check_metrics(before, home)
    assert before["failed_requests"] == 120
    assert server.stop() == 0
    again = serve()
    after = again.request("/housing/metrics")[1]
    for metrics in (before, after):
        windows = metrics.pop("windows")
        assert windows["all"]["requests"] == 120 * 10
        assert windows["all"]["response_time_ms"]["measured"] == 120 * 9
    assert after == before
    assert status(again, "/iris/metrics") == 200
    kept.check_whole(home)


def mixed(numbers: range) -> list[bytes]:
    """Of ten requests: one is refused, one is a batch of three, eight are single."""
    requests = []
    for number in numbers:
        if number % 10 == 0:
            requests.append(post("/housing/predict", {**house(number), "households": 0}))
        elif number % 10 == 1:
            requests.append(post("/housing/predict/batch", {"instances": [house(number)] * 3}))
        else:
            requests.append(post("/housing/predict", house(number)))
    return requests


def test_two_servers_on_one_folder_share_one_log_and_count_the_same(
    serve: Serve, home: Path
) -> None:
    servers = [serve("housing"), serve("housing")]
    replies: dict[int, list[Reply | None]] = {}

    def load(which: int) -> None:
        requests = [post("/predict", house(which * 1000 + n)) for n in range(1, 400)]
        requests += [post("/predict", {})] * 5
        replies[which] = send(servers[which].port, requests)

    threads = [threading.Thread(target=load, args=(which,)) for which in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    answered = [reply for one in replies.values() for reply in one if reply]
    assert [reply.status for reply in answered].count(200) == 798
    assert [reply.status for reply in answered].count(422) == 10
    ids = {reply.json["prediction_id"] for reply in answered if reply.status == 200}
    for server in servers:
        kept.check_metrics(server.request("/metrics")[1], home)
    servers[0].kill()
    assert status(servers[1], "/health/ready") == 200
    assert send_one(servers[1].port, "/predict", HOUSE).status == 200
    rows = kept.check_whole(home)
    assert len(rows) == 799
    assert ids <= {row["prediction_id"] for row in rows}


def test_a_resend_with_its_key_gets_the_first_answer_also_after_a_restart(
    serve: Serve, home: Path
) -> None:
    batch = {"instances": [house(2), house(3)]}
    sent = [
        ("/housing/predict", house(1), {"Idempotency-Key": "one"}),
        ("/housing/predict/batch", batch, {"Idempotency-Key": "two"}),
        ("/iris/predict", FLOWER, {"idempotency-key": "one"}),
    ]
    server = serve()
    first = [send_one(server.port, *one) for one in sent]
    assert [reply.status for reply in first] == [200] * 3
    assert [send_one(server.port, *one).body for one in sent] == [reply.body for reply in first]
    server.kill()
    server = serve()
    assert [send_one(server.port, *one).body for one in sent] == [reply.body for reply in first]
    assert len(kept.check_whole(home)) == 3
    assert len(kept.check_whole(home, "iris")) == 1
    for path, body in (("/housing/predict", house(9)), ("/housing/predict/batch", batch)):
        reply = send_one(server.port, path, body, {"Idempotency-Key": "one"})
        assert reply.status == 422
        assert "'one' came before, with other inputs" in reply.json["detail"][0]["msg"]
    assert len(kept.check_whole(home)) == 3
    kept.check_metrics(server.request("/housing/metrics")[1], home)


def test_one_key_sent_many_times_at_once_to_two_servers_is_logged_once(
    serve: Serve, home: Path
) -> None:
    servers = [serve("housing"), serve("housing")]
    bodies: list[bytes] = []

    def load(server: Server) -> None:
        for key in range(20):
            request = post("/predict", house(key + 1), Idempotency_Key=f"key {key}")
            bodies.extend(reply.body for reply in send(server.port, [request] * 16) if reply)

    threads = [threading.Thread(target=load, args=(server,)) for server in servers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(bodies) == 2 * 20 * 16
    assert len(set(bodies)) == 20
    assert len(kept.check_whole(home)) == 20


def test_a_server_that_ends_answers_a_request_that_is_under_way_and_says_it_was_the_last(
    serve: Serve,
) -> None:
    server = serve("iris")
    requests = [post("/predict", FLOWER), b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"]
    idle = socket.create_connection(("127.0.0.1", server.port))
    clients = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(4)]
    with contextlib.ExitStack() as stack:
        for client in (idle, *clients):
            client.settimeout(10)
            stack.enter_context(client)
            client.sendall(requests[0])
            assert b" 200 " in client.recv(1 << 16)
        for client, request in zip(clients[2:], requests, strict=True):
            client.sendall(request[:20])  # has begun to ask
        server.process.terminate()
        until(lambda: _refuses(server.port))
        for client, request in zip(clients, requests * 2, strict=True):
            client.sendall(request if client in clients[:2] else request[20:])
            answer = b""
            while part := client.recv(1 << 16):
                answer += part
            assert b" 200 " in answer
            assert b"connection: close" in answer.lower()
        assert idle.recv(1) == b""
    assert server.process.wait(timeout=10) == 0


def _refuses(port: int) -> bool:
    with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
        return False
    return True


def test_a_clients_name_is_nowhere_on_disk(serve: Serve, home: Path) -> None:
    server = serve("iris")
    name = {"X-Client-ID": "alice.in.wonderland@example.org"}
    assert send_one(server.port, "/predict", FLOWER, name).status == 200
    assert send_one(server.port, "/predict", {}, name).status == 422
    [row] = kept.rows(home, "iris")
    [refused] = kept.query(home, "SELECT * FROM failures", "iris")
    assert row["client"] == refused["client"]
    assert row["client"]
    server.stop()
    for file in home.rglob("*"):
        assert not file.is_file() or b"alice.in.wonderland" not in file.read_bytes(), file


def test_the_query_of_the_original_description_works(serve: Serve, home: Path) -> None:
    server = serve()
    for path, body in (("/housing/predict", HOUSE), ("/iris/predict", FLOWER)):
        assert all(send_one(server.port, path, body).status == 200 for _ in range(7))
    for when in ("while it runs", "afterwards"):
        for name in ("housinglogs", "irislogs"):
            with contextlib.closing(sqlite3.connect(home / name / "predictions.db")) as log:
                found = log.execute(f"SELECT * FROM {name} LIMIT 5;")
                columns = [column for column, *_ in found.description]
                rows = found.fetchall()
            assert columns[:4] == ["id", "timestamp", "inputs", "prediction"], when
            assert [row[0] for row in rows] == [1, 2, 3, 4, 5]
            assert json.loads(rows[0][2]) == (HOUSE if name == "housinglogs" else FLOWER)
            assert isinstance(rows[0][3], float if name == "housinglogs" else str)
        server.stop()


def test_another_process_that_keeps_the_log_locked_holds_up_answers_but_not_health(
    serve: Serve, home: Path
) -> None:
    server = serve("housing")
    path = home / "housinglogs" / "predictions.db"
    replies: list[Reply | None] = []
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        requests = [post("/predict", house(number)) for number in range(1, 30)]
        load = threading.Thread(target=lambda: replies.extend(send(server.port, requests)))
        load.start()
        for probe in ("/health/live", "/health/ready", "/metrics", "/") * 3:
            started = time.monotonic()
            assert status(server, probe) == 200
            assert time.monotonic() - started < 3, f"{probe} waited for the lock"
            time.sleep(0.05)
        assert not any(replies)
        other.execute("ROLLBACK")
    load.join()
    assert {reply and reply.status for reply in replies} == {200}
    assert len(kept.check_whole(home)) == 29


# Which model answers


def corrupt(home: Path, bundle: str) -> Callable[[], object]:
    """Flip one bit of a bundle's graph; return what puts it right."""
    file = home / "models" / "bundles" / bundle / MODEL
    content = file.read_bytes()
    middle = len(content) // 2
    file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    return lambda: file.write_bytes(content)


def promote(home: Path, number: int) -> None:
    with Ledger(home / "models" / "state.db") as ledger:
        champion = ledger.champion("iris")
        ledger.promote(
            ledger.version("iris", number),
            expected=champion.version if champion else None,
            reason="a test",
            evidence=[],
        )


def bundles(home: Path) -> dict[int, str]:
    with Ledger(home / "models" / "state.db") as ledger:
        return {version.version: version.bundle for version in ledger.versions("iris")}


def test_without_a_model_it_starts_and_is_ready_as_soon_as_one_is_promoted(
    serve: Serve, home: Path, tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    server = serve("iris", home=empty, ready=False)
    assert status(server, "/health/live") == 200
    for path in ("/health/ready", "/"):
        code, health = server.request(path)
        assert code == (503 if path == "/health/ready" else 200)
        assert health["status"] == "unavailable"
        assert "mlops up iris" in health["message"]
        assert health["model_version"] is None
    for path, body in (("/predict", FLOWER), ("/predict/batch", {"instances": [FLOWER]})):
        reply = send_one(server.port, path, body)
        assert reply.status == 503
        assert "mlops up iris" in reply.json["detail"][0]["msg"]
        assert reply.headers["retry-after"] == "1"
    assert server.request("/metrics")[1]["failed_requests_by_status"] == {"503": 2}
    shutil.copytree(home / "models" / "bundles", empty / "models" / "bundles")
    with (
        Ledger(home / "models" / "state.db") as source,
        Ledger(empty / "models" / "state.db") as ledger,
    ):
        ledger.register(source.version("iris", 1))
    promote(empty, 1)
    until(lambda: status(server, "/health/ready") == 200)
    assert send_one(server.port, "/predict", FLOWER).json["predicted_label"] == "setosa"
    kept.check_metrics(server.request("/metrics")[1], empty, "iris")


def test_a_corrupt_bundle_is_refused_by_name_at_start_and_taken_up_once_it_is_restored(
    serve: Serve, home: Path
) -> None:
    bundle = bundles(home)[1]
    restore = corrupt(home, bundle)
    server = serve("iris", ready=False)
    code, health = server.request("/health/ready")
    assert code == 503
    for words in ("version 1 was refused", bundle[:12], MODEL, "corrupt"):
        assert words in health["message"]
    reply = send_one(server.port, "/predict", FLOWER)
    assert reply.status == 503
    assert bundle[:12] in reply.json["detail"][0]["msg"]
    restore()
    until(lambda: status(server, "/health/ready") == 200)
    assert send_one(server.port, "/predict", FLOWER).status == 200
    assert server.printed().count("was refused") == 1, "each try is complained of"


def test_a_corrupt_bundle_is_refused_on_promotion_and_the_one_before_goes_on_answering(
    serve: Serve, home: Path
) -> None:
    bundle = bundles(home)[2]
    restore = corrupt(home, bundle)
    server = serve("iris")
    promote(home, 2)
    until(lambda: "refused" in server.request("/")[1]["message"])
    code, health = server.request("/health/ready")
    assert code == 200
    assert health["model_version"] == 1
    assert f"version 2 was refused: bundle {bundle[:12]} is corrupt" in health["message"]
    assert send_one(server.port, "/predict", FLOWER).json["model_version"] == 1
    assert bundle[:12] in server.printed()
    promote(home, 1)
    until(lambda: "refused" not in server.request("/")[1]["message"])
    promote(home, 2)
    restore()
    until(lambda: server.request("/")[1]["model_version"] == 2)
    assert "refused" not in server.request("/")[1]["message"]


# When something fails


@contextlib.contextmanager
def full_disk(server: Server) -> Iterator[None]:
    """Let no file of the server grow past what its log takes now."""
    pid = server.process.pid
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    size = (server.home / "housinglogs" / "predictions.db-wal").stat().st_size
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("durability", ["power", "crash"])
def test_a_full_disk_is_a_503_and_nothing_is_answered_without_a_record_until_it_has_room(
    durability: str, serve: Serve, home: Path
) -> None:
    server = serve("housing", PREDICTIONS_DURABILITY=durability)
    first = send(server.port, [post("/predict", house(number)) for number in range(1, 50)])
    with full_disk(server):
        asked = [post("/predict", house(number)) for number in range(50, 150)]
        asked += [post("/predict", {})] * 3
        refused = send(server.port, asked)
        assert status(server, "/health/ready") == 503
        assert status(server, "/health/live") == 200
        time.sleep(1.2)  # it tries again, and again finds no room
        code, health = server.request("/")
        assert (code, health["status"]) == (200, "unavailable")
        assert "log cannot be written" in health["message"]
        assert status(server, "/metrics") == 200
    for reply in refused[:100]:
        assert reply is not None
        assert reply.status == 503, "answered, though it cannot have been logged"
        assert reply.headers["retry-after"] == "1"
        assert reply.json["detail"][0]["type"] == "log_unavailable"
    for reply in refused[100:]:
        assert reply is not None
        assert reply.status == 422
    until(lambda: status(server, "/health/ready") == 200, seconds=5)
    last = send(server.port, [post("/predict", house(number)) for number in range(150, 200)])
    assert server.process.poll() is None
    acked = {
        reply.json["prediction_id"] for reply in [*first, *refused, *last] if reply.status == 200
    }
    rows = kept.check_whole(home)
    assert {row["prediction_id"] for row in rows} == acked
    assert len(acked) == 99
    kept.check_metrics(server.request("/metrics")[1], home)


def test_sigterm_answers_what_was_accepted_closes_the_log_and_ends_with_0(
    serve: Serve, home: Path
) -> None:
    server = serve("housing")
    requests = [post("/predict", house(number)) for number in range(1, 20_000)]
    traffic = Traffic(server.port, requests)
    load = threading.Thread(target=traffic.run, args=(16,))
    load.start()
    until(lambda: sum(reply is not None for reply in traffic.replies) > 200)
    assert server.stop() == 0
    load.join()
    replies = [reply for reply in traffic.replies if reply is not None]
    assert {reply.status for reply in replies} == {200}
    rows = kept.check_whole(home)
    assert {row["prediction_id"] for row in rows} == {r.json["prediction_id"] for r in replies}, (
        "what is in the log was answered, and what was answered is in the log"
    )
    left = {file.name for file in (home / "housinglogs").iterdir()}
    # The lock of whoever watches drift stays: to remove it could let two have it.
    assert left - {"drift.lock"} == {"predictions.db", "predictions.log"}, "the log was not closed"


def test_sigterm_waits_for_a_request_that_has_begun_to_arrive(serve: Serve, home: Path) -> None:
    server = serve("housing")
    batch = {"instances": [house(number) for number in range(1, 10_001)]}
    request = post("/predict/batch", batch)
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(request[:100_000])
        assert status(server, "/health/live") == 200  # it came later, so the other was read
        server.process.terminate()
        time.sleep(0.2)
        connection.sendall(request[100_000:])
        received = b""
        while part := connection.recv(1 << 20):
            received += part
    assert server.process.wait(20) == 0
    assert received.startswith(b"HTTP/1.1 200")
    answers = json.loads(received.partition(b"\r\n\r\n")[2])["predictions"]
    assert len(answers) == len(kept.check_whole(home)) == 10_000


def test_an_unknown_use_case_is_one_line_that_lists_those_declared(tmp_path: Path) -> None:
    done = mlops("serve", "housing", "nothing", home=tmp_path, check=False)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert "'nothing'" in line
    assert "housing, iris" in line


def test_a_busy_port_is_one_line_before_anything_is_opened(serve: Serve, tmp_path: Path) -> None:
    port = str(serve("iris").port)
    done = mlops("serve", "--port", port, home=tmp_path, check=False)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert port in line
    assert f"--port {int(port) + 1}" in line
    assert list(tmp_path.glob("*logs")) == []

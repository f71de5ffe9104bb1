"""kill -9 under load: what was answered is in the log, once; and the harness finds planted faults.

A request counts as acknowledged when the whole of its 200 was read. Each carries a number (its
population), so that every row in the log can be traced to what was sent.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import random
import sys
import threading
from pathlib import Path
from typing import Any

import kept
import pytest
from conftest import Server, start_server
from traffic import Reply, Traffic, post

from mlops.usecases.housing import HOUSING

CONNECTIONS = 16
REQUESTS = 6_000
"""A round: more than are answered by the kill, so that it comes under load."""
LONGEST = 0.25
"""Seconds from the first answer to the kill, at most."""
RESENT = 16
"""So many of the last acknowledged are sent again: their clients may have died with the answer."""
PEOPLE = 0.125
"""The population goes up by so many each time: millions of times before it is refused."""
HOUSE = dict(next(iter(HOUSING.examples.values())))
FAULTY = Path(__file__).with_name("faulty.py")


@dataclasses.dataclass
class Campaign:
    """What was sent and what was acknowledged, over all rounds."""

    home: Path
    command: list[str] | None = None
    chance: random.Random = dataclasses.field(default_factory=lambda: random.Random(20))
    sent: set[int] = dataclasses.field(default_factory=set)
    keyed: set[int] = dataclasses.field(default_factory=set)
    changed: set[int] = dataclasses.field(default_factory=set)
    acked: dict[int, dict[str, Any]] = dataclasses.field(default_factory=dict)
    kills_under_load: int = 0
    server: Server | None = None

    def round(self, number: int, *, resend: bool) -> None:
        """Load a server, kill it at a random moment, start another; perhaps send again."""
        first = number * REQUESTS + 1
        requests = [self._request(first + place, resend) for place in range(REQUESTS)]
        server = self.server or self._start()
        traffic = Traffic(server.port, requests)
        answered = threading.Event()

        def acknowledge(place: int, reply: Reply) -> None:
            answered.set()
            assert reply.status == 200, reply.body
            self._acknowledge(first + place, reply.json)

        traffic.on_reply = acknowledge
        load = threading.Thread(target=traffic.run, args=(CONNECTIONS,))
        load.start()
        answered.wait(30)
        answered.clear()
        threading.Event().wait(self.chance.uniform(0, LONGEST))
        server.kill()
        load.join()
        self.sent |= {first + place for place in traffic.sent}
        unanswered = sorted(traffic.sent - {n - first for n in self.acked})
        self.kills_under_load += bool(unanswered)
        self.server = self._start()
        if resend:
            self.keyed |= {first + place for place in traffic.sent}
            known = sorted(traffic.sent - set(unanswered))[-RESENT:]
            places = unanswered + known
            again = Traffic(self.server.port, [requests[place] for place in places])
            for place, reply in zip(places, again.run(CONNECTIONS), strict=True):
                assert reply is not None
                assert reply.status == 200
                self._acknowledge(first + place, reply.json)

    def check(self) -> None:
        """Compare what clients know with the log. Raises `AssertionError` that counts the ill."""
        assert self.server is not None
        metrics = self.server.request("/metrics")[1]
        self.close()
        rows = kept.rows(self.home)
        people = (json.loads(row["inputs"])["population"] for row in rows)
        times = collections.Counter(int((number - 1) / PEOPLE) for number in people)
        by_id = {row["prediction_id"]: row for row in rows}
        lost = [n for n, answer in self.acked.items() if answer["prediction_id"] not in by_id]
        assert not lost, f"lost: {len(lost)} of {len(self.acked)} acknowledged are not in the log"
        duplicate = [n for n, count in times.items() if count > 1]
        assert not duplicate, f"duplicate: {len(duplicate)} are in the log more than once"
        phantom = set(times) - self.sent
        assert not phantom, f"phantom: {len(phantom)} are in the log and were never sent"
        missing = self.keyed - set(times)
        assert not missing, f"lost: {len(missing)} that were sent until answered"
        assert not self.changed, f"changed: {len(self.changed)} were answered in two ways"
        for number, answer in self.acked.items():
            row = by_id[answer["prediction_id"]]
            assert row["prediction"] == answer["predicted_price"]
            assert json.loads(row["inputs"]) == {**HOUSE, "population": 1 + PEOPLE * number}
        kept.check_whole(self.home)
        kept.check_metrics(metrics, self.home)

    def close(self) -> None:
        if self.server is not None and self.server.process.poll() is None:
            self.server.stop()

    def _request(self, number: int, keyed: bool) -> bytes:
        headers = {"Idempotency_Key": f"request {number}"} if keyed else {}
        return post("/predict", {**HOUSE, "population": 1 + PEOPLE * number}, **headers)

    def _acknowledge(self, number: int, answer: dict[str, Any]) -> None:
        if self.acked.setdefault(number, answer) != answer:
            self.changed.add(number)

    def _start(self) -> Server:
        return start_server(self.home, "housing", command=self.command)


@pytest.mark.parametrize(
    ("fault", "found"),
    [("answer-first", "^lost"), ("forget-keys", "^duplicate"), ("torn-lines", "Expecting|torn")],
)
def test_this_harness_finds_a_planted_fault(fault: str, found: str, home: Path) -> None:
    command = [sys.executable, str(FAULTY), fault, "serve", "housing", "--port", "{port}"]
    campaign = Campaign(home, command)
    with contextlib.closing(campaign):
        campaign.round(0, resend=fault == "forget-keys")
        with pytest.raises((AssertionError, ValueError), match=found):
            campaign.check()

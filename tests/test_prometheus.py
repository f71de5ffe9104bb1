"""What is deployed for Prometheus, Alertmanager and Grafana, run: by Debian's own programs.

A real server with two workers is scraped by a real Prometheus with our rules; trouble is planted,
and has to arrive at a webhook through a real Alertmanager, and to end. A Grafana cannot be had
here, but what its dashboards ask for can be asked: every expression, before and after.

Only times are shortened, in a copy: a window of five minutes is one of thirty seconds, a minute
that something must last is five seconds.
"""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import math
import os
import random
import re
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grafana
import pytest
import yaml
from conftest import REPOSITORY, Server, free_port, mlops
from grafana import Panel
from test_alerts import Hook, until
from test_log import one

from mlops.database import connect
from mlops.monitor.log import PredictionLog
from mlops.records import Finding
from mlops.usecases.iris import IRIS

DEPLOY = REPOSITORY / "deploy"
PROGRAMS = ("prometheus", "promtool", "prometheus-alertmanager", "amtool")
SETOSA = IRIS.examples["setosa"]
ODD = {**SETOSA, "petal_width": 9.9}
SHORTER = (
    (r"\[5m\]", "[30s]"),
    (r"\* 300 >=", "* 30 >="),
    (r"for: \dm", "for: 5s"),
    # A scrape may take as long as the time between two, and other tests may be running.
    (r"scrape_interval: 15s", "scrape_interval: 3s"),
    (r"(evaluation|group)_interval: (15s|1m)", r"\1_interval: 1s"),
    (r"group_wait: 10s", "group_wait: 1s"),
)
ROOM = 2 << 30
BROKEN = {
    "mlops_request_total": "no data",
    "rate(mlops_requests_total": "parse error",
    "vector(1)": "rises not",
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module", autouse=True)
def programs() -> None:
    """Prometheus and Alertmanager of Debian, installed if need be; in CI they have to be."""
    if all(map(shutil.which, PROGRAMS)):
        return
    packages = ("prometheus", "prometheus-alertmanager")
    install = ("apt-get", "install", "-y", "-q", "--no-install-recommends", *packages)
    if shutil.which("apt-get"):
        subprocess.run(("apt-get", "update", "-q"), check=False, capture_output=True)
        done = subprocess.run(install, check=False, capture_output=True, text=True)
        if done.returncode == 0:
            return
    reason = f"{' and '.join(packages)} are not here and could not be installed"
    (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


def shortened(source: Path, target: Path) -> Path:
    """Copy a file or a folder of files, with shorter times."""
    if source.is_dir():
        target.mkdir()
        for path in source.iterdir():
            shortened(path, target / path.name)
        return target
    text = source.read_text()
    for pattern, shorter in SHORTER:
        text = re.sub(pattern, shorter, text)
    target.write_text(text)
    return target


class Prometheus:
    """A Prometheus with our configuration over one server, and an Alertmanager behind it."""

    def __init__(self, folder: Path, scraped: int, hook: Hook) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []
        self._folder = folder
        folder.mkdir()
        port, alertmanager = free_port(), free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._start_alertmanager(alertmanager, hook)
        shortened(DEPLOY / "prometheus" / "rules", folder / "rules")
        config = shortened(DEPLOY / "prometheus" / "prometheus.yml", folder / "prometheus.yml")
        text = config.read_text()
        for name, at in (("api:8000", scraped), ("alertmanager:9093", alertmanager)):
            assert name in text
            text = text.replace(name, f"127.0.0.1:{at}")
        config.write_text(text.replace("localhost:9090", f"127.0.0.1:{port}"))
        self._run(
            "prometheus",
            f"--config.file={config}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        )
        until(lambda: answers(f"{self.url}/-/ready"), "Prometheus is ready")

    def _start_alertmanager(self, port: int, hook: Hook) -> None:
        source = DEPLOY / "alertmanager" / "alertmanager.yml"
        path = shortened(source, self._folder / "alertmanager.yml")
        config = yaml.safe_load(path.read_text())
        [receiver] = config["receivers"]
        url = f"http://127.0.0.1:{hook.port}/"
        receiver["webhook_configs"] = [{"url": url, "send_resolved": True}]
        path.write_text(yaml.safe_dump(config))
        self._run(
            "prometheus-alertmanager",
            f"--config.file={path}",
            f"--storage.path={self._folder / 'alertmanager'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--cluster.listen-address=",
        )
        until(lambda: answers(f"http://127.0.0.1:{port}/-/ready"), "Alertmanager is ready")

    def _run(self, *command: str) -> None:
        with (self._folder / f"{command[0]}.out").open("wb") as output:
            self._processes.append(subprocess.Popen(command, stdout=output, stderr=output))

    def stop(self) -> None:
        for process in self._processes:
            process.terminate()
            process.wait(timeout=30)

    def ask(self, path: str, **query: Any) -> Any:
        """Return the result of a query. Raises `ValueError` for what is no expression."""
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as response:
                return json.load(response)["data"]["result"]
        except urllib.error.HTTPError as error:
            raise ValueError(json.load(error)["error"]) from error

    def values(self, expr: str, since: float) -> list[float]:
        """Return the sums of an expression's lines at each second since a moment."""
        lines = self.ask("query_range", query=expr, start=since, end=time.time(), step=1)
        sums: dict[float, float] = {}
        for line in lines:
            for moment, text in line["values"]:
                if not math.isnan(value := float(text)):
                    sums[moment] = sums.get(moment, 0) + value
        return [sums[moment] for moment in sorted(sums)]


def answers(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
        return True
    return False


def trouble(prometheus: Prometheus, panel: Panel, since: float) -> str | None:
    """Return what is wrong with a panel: its value has to move as it says."""
    try:
        values = prometheus.values(panel.expr.replace("$use_case", ".*"), since)
    except ValueError as error:
        return f"{panel.title}: {error}"
    if not values:
        return f"{panel.title}: no data"
    first = values[0]
    moved = {
        "rises": max(values) > first,
        "falls": min(values) < first,
        "changes": any(value != first for value in values),
    }
    if moved[panel.moves]:
        return None
    return f"{panel.title}: {panel.moves} not: {min(values)} to {max(values)}, first {first}"


@contextlib.contextmanager
def steady(server: Server, rows: Sequence[dict[str, float]]) -> Iterator[None]:
    """Ask for a few of the rows a second, as long as the block lasts."""
    done = threading.Event()

    def ask() -> None:
        for row in itertools.cycle(rows):
            with contextlib.suppress(OSError):
                server.request("/iris/predict", row, {"x-client-id": "steady"})
            if done.wait(0.2):
                return

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def judged(log: PredictionLog, verdict: Any, loss: float) -> None:
    """Let the log have what a look at known truths finds, which the server does hourly."""
    numbers = {"rows": 100, "loss": loss, "test_loss": 0.1}
    log.record_findings([Finding("quality", "all rows", verdict, f"loss {loss}", numbers)])


def plant_traffic(server: Server) -> None:
    """Errors, warnings, new users, and large batches that drifted."""
    for number in range(360):
        body = (ODD, SETOSA, {})[number % 3]
        server.request("/iris/predict", body, {"x-client-id": f"user {number}"})
    batch = {"instances": [ODD] * 2_000}
    for _ in range(20):
        assert server.request("/iris/predict/batch", batch)[0] == 200


def stop_the_log(server: Server, home: Path) -> None:
    """For a few seconds the text file cannot be written; then, for a few, the database."""
    text = home / "irislogs" / "predictions.log"
    text.unlink()
    text.mkdir()
    time.sleep(15)
    text.rmdir()
    other = connect(home / "irislogs" / "predictions.db")
    other.execute("BEGIN IMMEDIATE")
    until(lambda: server.request("/health/ready")[0] == 503, "not ready while it is locked")
    time.sleep(8)
    other.execute("ROLLBACK")
    other.close()


def alerts_told(hook: Hook, status: str) -> set[str]:
    told = (alert for one in hook.told for alert in one["alerts"])
    return {alert["labels"]["alertname"] for alert in told if alert["status"] == status}


def test_planted_trouble_arrives_ends_and_moves_every_panel(
    home: Path, serve: Callable[..., Server], tmp_path: Path
) -> None:
    hours_ago = time.strftime("%Y-%m-%dT%H:%M:%S.000000+00:00", time.gmtime(time.time() - 10_800))
    log = PredictionLog(home / "irislogs", "irislogs", "crash")
    log.append([one(f"old {n}", timestamp=hours_ago) for n in range(300)])
    judged(log, "ok", 0.1)
    server = serve(WORKERS="2", ALERT_WINDOW_SECONDS="10", ALERT_HOLD_SECONDS="1", DRIFT_EVERY="1m")
    champion = server.request("/iris")[1]["model_version"]
    with (home / "data" / "iris.csv").open() as table:
        rows = [{name: float(row[name]) for name in IRIS.fields} for row in csv.DictReader(table)]
    random.Random(0).shuffle(rows)
    assert server.request("/iris/predict/batch", {"instances": rows * 2})[0] == 200
    hook = Hook()
    prometheus = Prometheus(tmp_path / "prometheus", server.port, hook)
    filling = tmp_path / "filling"
    try:
        with steady(server, rows):
            up = 'up{job="mlops"} == 1'
            until(lambda: prometheus.ask("query", query=up), "scraped")
            time.sleep(15)  # so that there are rates
            since = time.time()
            assert prometheus.ask("query", query='ALERTS{alertname=~"Mlops.+"}') == []
            plant_traffic(server)
            judged(log, "alarm", 0.9)
            with filling.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, ROOM)
            until(lambda: "MlopsErrorRate" in alerts_told(hook, "firing"), "an alert of errors")
            stop_the_log(server, home)
            until(lambda: "MlopsDrift" in alerts_told(hook, "firing"), "an alert of drift", 120)
            other = str(3 - champion)
            mlops("promote", "iris", other, "--force", "--reason", "a test", home=home)
            judged(log, "ok", 0.1)
            ended = {"MlopsErrorRate", "MlopsDrift", "MlopsQuality", "MlopsLogStopped"}
            for name in ended:
                until(lambda: name in alerts_told(hook, "resolved"), f"the end of {name}", 120)  # noqa: B023
        assert ended <= alerts_told(hook, "firing")
        server.stop()
        until(lambda: prometheus.ask("query", query="up == 0"), "scraped no more")
        time.sleep(1.5)  # for ranges, which end up to a step of one second before now, to have it

        panels = [panel for one in grafana.DASHBOARDS.values() for panel in one]
        assert [found for one in panels if (found := trouble(prometheus, one, since))] == []

        for expr, says in BROKEN.items():
            found = trouble(prometheus, panels[0]._replace(expr=expr), since)
            assert says in str(found), expr
    finally:
        prometheus.stop()
        hook.close()
        log.close()
        filling.unlink(missing_ok=True)


@pytest.mark.parametrize(
    "command",
    [
        ("promtool", "check", "config", "prometheus/prometheus.yml"),
        ("promtool", "test", "rules", "prometheus/tests/recording.yml"),
        ("promtool", "test", "rules", "prometheus/tests/alerts.yml"),
        ("amtool", "check-config", "alertmanager/alertmanager.yml"),
    ],
    ids=lambda command: " ".join(command[1:]),
)
def test_the_programs_own_checks_are_passed(command: tuple[str, ...]) -> None:
    done = subprocess.run(command, cwd=DEPLOY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_unit_test_in_which_it_fires() -> None:
    rules = yaml.safe_load((DEPLOY / "prometheus" / "rules" / "alerts.yml").read_text())
    names = {rule["alert"] for group in rules["groups"] for rule in group["rules"]}
    tests = yaml.safe_load((DEPLOY / "prometheus" / "tests" / "alerts.yml").read_text())["tests"]
    fired = {
        case["alertname"]
        for test in tests
        for case in test.get("alert_rule_test", ())
        if case["exp_alerts"]
    }
    assert fired == names


def test_a_limit_that_is_wrong_is_found_by_the_unit_tests(tmp_path: Path) -> None:
    copy = shutil.copytree(DEPLOY / "prometheus", tmp_path / "prometheus")
    rules = copy / "rules" / "alerts.yml"
    text = rules.read_text()
    assert "ratio_rate5m > 0.05" in text
    rules.write_text(text.replace("ratio_rate5m > 0.05", "ratio_rate5m > 0.5"))
    command = ("promtool", "test", "rules", copy / "tests" / "alerts.yml")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "MlopsErrorRate" in done.stdout + done.stderr

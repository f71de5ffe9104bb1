"""What is deployed says one thing in all its files, and its checks find planted faults."""

from __future__ import annotations

import functools
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import grafana
import manifests
import pytest
import yaml
from conftest import REPOSITORY, environment, free_port, run
from kubernetes_validate import utils

import mlops
from mlops.settings import Settings
from mlops.usecases import USE_CASES

KUBERNETES = REPOSITORY / "deploy" / "kubernetes"
PROMETHEUS = REPOSITORY / "deploy" / "prometheus"
GRAFANA = REPOSITORY / "deploy" / "grafana" / "provisioning"
METRICS = (REPOSITORY / "docs" / "metrics.md").read_text()
DOCKERFILE = (REPOSITORY / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((REPOSITORY / "compose.yaml").read_text())


@pytest.fixture(scope="module", autouse=True)
def schemas_read_once():
    """Each is megabytes, and read anew for each manifest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "schema_contents", functools.cache(utils.schema_contents))
        yield


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the manifests, to plant faults in."""
    return shutil.copytree(KUBERNETES, tmp_path / "kubernetes")


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_the_manifests_are_sound():
    assert manifests.problems(KUBERNETES) == []


@pytest.mark.parametrize(
    ("file", "old", "new", "says"),
    [
        ("stateful-set.yaml", "readOnlyRootFilesystem", "readOnlyRoot", "readOnlyRoot"),
        ("stateful-set.yaml", "replicas: 3", "replicas: three", "StatefulSet spec.replicas"),
        (
            "stateful-set.yaml",
            "serviceName: api-replicas",
            "serviceName: x",
            "Service x, not there",
        ),
        ("stateful-set.yaml", "name: http\n", "name: web\n", "leads to port http"),
        ("autoscaler.yaml", "kind: StatefulSet", "kind: Deployment", "Deployment api, not there"),
        ("service.yaml", "name: api\n  # A", "name: app\n  # A", "no pod is labelled"),
        ("kustomization.yaml", "  - ingress.yaml\n", "", "does not list ingress.yaml"),
        ("kustomization.yaml", "- ingress.yaml", "- ingres.yaml", "lists ingres.yaml, not there"),
        ("namespace.yaml", "apiVersion: v1", "apiVersion: v9", "schema"),
        ("retrain-cronjob.yaml", "concurrencyPolicy: Forbid", "concurrencyPolicy: No", "CronJob"),
        (
            "retrain-cronjob.yaml",
            "claimName: state-api-0",
            "claimName: state",
            "PersistentVolumeClaim state, not there",
        ),
    ],
)
def test_a_fault_in_a_manifest_is_found(folder, file, old, new, says):
    change(folder / file, old, new)
    found = "\n".join(manifests.problems(folder))
    assert says in found


def test_what_the_replicas_run_is_the_image_as_it_was_built():
    (pod,) = [
        manifest["spec"]["template"]["spec"]
        for manifest in yaml.safe_load_all((KUBERNETES / "stateful-set.yaml").read_text())
    ]
    (container,) = pod["containers"]
    assert container["image"] == "mlops-housing-api"  # which tools/image.py puts a digest for
    user = re.findall(r"^USER (\d+):0$", DOCKERFILE, re.MULTILINE)
    assert {int(one) for one in user} == {pod["securityContext"]["runAsUser"]}
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(re.findall(r"^VOLUME (\S+)$", DOCKERFILE, re.MULTILINE)) <= mounts


def test_the_image_is_of_this_version():
    assert re.findall(r"^ARG VERSION=(.*)$", DOCKERFILE, re.MULTILINE) == [mlops.__version__]


def test_the_image_trains_every_use_case():
    trained = re.findall(r"mlops train (\w+) --promote", DOCKERFILE)
    assert set(trained) == set(USE_CASES)
    assert set(re.findall(r"train (\w+) --promote --if-needed", str(COMPOSE))) == set(USE_CASES)


def test_every_variable_that_is_set_is_one_that_is_read():
    known = {str(field.validation_alias) for field in Settings.model_fields.values()}
    stated = set(re.findall(r"^(?:ENV|   ) ?(MLOPS_\w+|PORT|USE_CASES)=", DOCKERFILE, re.MULTILINE))
    assert stated - {"MLOPS_COMMIT"} <= known
    config = yaml.safe_load((KUBERNETES / "config.yaml").read_text())
    assert set(config["data"]) <= known
    assert set(COMPOSE["services"]["api"]["environment"]) <= known


def test_the_example_of_settings_is_complete_and_has_the_defaults():
    asked = dict(re.findall(r"\$\{(\w+):-([^}]*)\}", (REPOSITORY / "compose.yaml").read_text()))
    lines = (REPOSITORY / ".env.example").read_text().splitlines()
    offered = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    assert offered == asked


def test_no_file_that_is_deployed_holds_a_secret():
    folders = (path for path in (REPOSITORY / "deploy").rglob("*") if path.is_file())
    files = [*folders, REPOSITORY / "compose.yaml", REPOSITORY / ".env.example"]
    for file in files:
        assert not re.search(r"(?i)\b(password|token|secret_key)\s*[:=]\s*\S", file.read_text()), (
            file
        )
    secret = yaml.safe_load((KUBERNETES / "secret.yaml").read_text())
    assert not {"data", "stringData"} & set(secret)


def test_the_dashboards_are_those_of_the_code(tmp_path):
    copy = shutil.copytree(grafana.FOLDER, tmp_path / "dashboards")
    assert grafana.problems(copy) == []
    change(copy / "model.json", "mlops_champion_version", "mlops_champion")
    (copy / "more.json").write_text("{}")
    (copy / "service.json").unlink()
    assert grafana.problems(copy) == [
        "model.json is stale",
        "more.json is missing or not ours",
        "service.json is missing or not ours",
    ]


def test_the_dashboards_ask_the_provisioned_source_for_what_is_there():
    sources = yaml.safe_load((GRAFANA / "datasources" / "prometheus.yml").read_text())
    assert [source["uid"] for source in sources["datasources"]] == [grafana.SOURCE["uid"]]
    documented = set(re.findall(r"^\| `(mlops_\w+)`", METRICS, re.MULTILINE))
    rules = yaml.safe_load((PROMETHEUS / "rules" / "recording.yml").read_text())
    recorded = {rule["record"]: rule["expr"] for rule in rules["groups"][0]["rules"]}
    groups = yaml.safe_load((PROMETHEUS / "rules" / "alerts.yml").read_text())["groups"]
    alerts = [rule["expr"] for group in groups for rule in group["rules"]]
    asked = [panel.expr for one in grafana.DASHBOARDS.values() for panel in one]
    for text in (*asked, *recorded.values(), *alerts):
        for name in re.findall(r"[\w:]*\bmlops_\w+[\w:]*|use_case\w*:[\w:]+", text):
            known = re.sub(r"_(bucket|sum|count)$", "", name)
            assert name in recorded or known in documented, name


def test_the_monitoring_services_find_each_other_and_their_files():
    services = COMPOSE["services"]
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    targets = {
        target
        for job in (*config["scrape_configs"], *config["alerting"]["alertmanagers"])
        for group in job["static_configs"]
        for target in group["targets"]
    }
    sources = yaml.safe_load((GRAFANA / "datasources" / "prometheus.yml").read_text())
    targets.add(sources["datasources"][0]["url"].removeprefix("http://"))
    for target in targets - {"localhost:9090"}:
        name, port = target.split(":")
        assert any(one.endswith(f":{port}") for one in services[name]["ports"]), target
    for name in ("prometheus", "alertmanager", "grafana"):
        assert services[name]["profiles"] == ["monitoring"]
        for volume in services[name]["volumes"]:
            source, *_ = volume.split(":")
            assert (REPOSITORY / source).exists() if "/" in source else source in COMPOSE["volumes"]
    [provider] = yaml.safe_load((GRAFANA / "dashboards" / "mlops.yml").read_text())["providers"]
    mounted = [volume.split(":")[1] for volume in services["grafana"]["volumes"]]
    assert provider["options"]["path"] in mounted


def test_ports_are_open_to_this_machine_only_unless_told():
    for service in COMPOSE["services"].values():
        for port in service.get("ports", ()):
            assert port.startswith("${BIND:-127.0.0.1}:")


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="no docker-compose here")
def test_docker_compose_finds_and_takes_the_file(tmp_path):
    shutil.copy(REPOSITORY / "compose.yaml", tmp_path)
    done = subprocess.run(
        ["docker-compose", "config", "--services"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(done.stdout.split()) == {"mlflow", "train", "api"}


def test_a_variable_says_what_is_served(serve):
    server = serve(USE_CASES="iris")
    assert server.request("/metrics")[1]["use_case"] == "iris"
    assert server.request("/housing/metrics")[0] == 404


def test_training_where_only_serving_is_installed_says_so_in_one_line(tmp_path):
    script = "import sys; sys.modules['pandas'] = None; from mlops.cli import main; main()"
    done = run(sys.executable, "-c", script, "train", "iris", home=tmp_path, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("mlops: this needs pandas, which is not installed here — use")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_the_commands_of_compose_train_through_its_mlflow_and_once_only(tmp_path):
    """As processes of this machine, with its folders and port in the place of the containers'."""
    port = str(free_port())
    (tmp_path / "mlflow").mkdir()
    server, train = (
        shlex.split(COMPOSE["services"][name]["command"].replace("/mlflow/", f"{tmp_path}/mlflow/"))
        for name in ("mlflow", "train")
    )
    server[server.index("--port") + 1] = port
    server[server.index("--host") + 1] = "127.0.0.1"
    home = tmp_path / "state"
    home.mkdir()
    with (tmp_path / "mlflow.out").open("wb") as output:
        mlflow = subprocess.Popen(
            server, env=environment(home), stdout=output, stderr=output, start_new_session=True
        )
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 120
        while answered(f"{url}/health") != 200:
            assert time.monotonic() < deadline, (tmp_path / "mlflow.out").read_text()
            time.sleep(0.2)
        runs = f"{url}/api/2.0/mlflow/registered-models/get?name=IrisClassifierModel"
        assert answered(f"{url}/version", Host="mlflow:5000") == 200
        assert answered(runs, Host="elsewhere:5000") == 403

        first = run(*train, home=home, timeout=300, MLFLOW_TRACKING_URI=url)
        assert "iris: version 1 is champion" in first.stdout
        assert answered(runs) == 200
        assert not (home / "mlflow.db").exists()
        again = run(*train, home=home, timeout=300, MLFLOW_TRACKING_URI=url)
        assert again.stdout == (
            "housing: version 1 is still valid\niris: version 1 is still valid\n"
        )
    finally:
        os.killpg(mlflow.pid, signal.SIGTERM)
        mlflow.wait(timeout=30)


def answered(url: str, **headers: str) -> int:
    """The status of an answer; 0 when there is none."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=5) as got:
            return int(got.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def test_the_check_ends_with_1_and_a_line_for_each_fault(folder):
    (folder / "more.yaml").write_text("")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, folder],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / "tools")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == "deploy/kubernetes: kustomization.yaml does not list more.yaml\n"


SCRIPT = """
import pathlib, sys, manifests
manifests.FOLDER = pathlib.Path(sys.argv[1])
sys.exit(manifests.main())
"""

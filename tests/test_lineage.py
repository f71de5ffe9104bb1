"""From a prediction to the data behind it, and back: every link leads both ways."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest

from mlops import cli
from mlops.build.data import prepare
from mlops.errors import UsageError
from mlops.improve.ledger import UNTRACKED, Ledger
from mlops.loop.lineage import lineage
from mlops.loop.predict import predict
from mlops.loop.prediction_log import open_log
from mlops.package.bundle import open_bundle
from mlops.settings import Settings, read_settings
from mlops.usecases import USE_CASES

# What MLflow does with other libraries is not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

HOUSING, IRIS = USE_CASES["housing"], USE_CASES["iris"]


@pytest.fixture
def known(home) -> Settings:
    return read_settings(MLOPS_HOME=home)


@pytest.fixture
def answers(known) -> list[dict[str, Any]]:
    """Three flowers, answered and logged."""
    rows = [next(iter(IRIS.examples.values()))] * 3
    return [predict("iris", [row], settings=known)[0] for row in rows]


def test_a_prediction_leads_to_version_bundle_run_commit_and_data(known, answers):
    found = lineage(answers[1]["prediction_id"], settings=known)
    assert found.kind == "prediction"
    assert found.prediction["inputs"] == next(iter(IRIS.examples.values()))
    assert "client" not in found.prediction
    (chain,) = found.chains
    with Ledger(known.state_database) as ledger:
        version = ledger.champion("iris")
    made = open_bundle(known.bundles / version.bundle)
    assert (chain.use_case, chain.version, chain.champion) == ("iris", 1, True)
    assert (chain.bundle, chain.run_id) == (version.bundle, version.run_id)
    assert chain.commit == made.provenance["commit"]
    assert chain.data_fingerprint == prepare(IRIS, known.data).fingerprint


def test_each_link_leads_back_to_the_version_and_what_it_answered(known, answers):
    (chain,) = lineage(answers[0]["prediction_id"], settings=known).chains
    for kind, name in [
        ("version", "1"),
        ("version", "v1"),
        ("bundle", chain.bundle[:8]),
        ("run", chain.run_id),
        ("run", chain.run_id[:8].upper()),
        ("data fingerprint", chain.data_fingerprint[:12]),
        ("commit", chain.commit[:7]),
    ]:
        found = lineage(name, "iris", settings=known)
        assert found.kind == kind
        assert found.chains[0] == chain
    assert chain.predictions == 3
    with_time = [lineage(a["prediction_id"], settings=known).prediction for a in answers]
    assert chain.first_prediction == with_time[0]["timestamp"]
    assert chain.last_prediction == with_time[-1]["timestamp"]
    same_data = lineage(chain.data_fingerprint, settings=known).chains
    assert [(one.use_case, one.version, one.predictions) for one in same_data] == [
        ("iris", 1, 3),
        ("iris", 2, 0),
    ]


def test_a_version_number_alone_means_that_version_of_every_use_case(known):
    assert {one.use_case for one in lineage("1", settings=known).chains} == {"housing", "iris"}


def test_a_run_that_was_not_registered_is_asked_of_the_tracking_store(trained):
    from mlops.loop.runs import runs

    settings = read_settings(MLOPS_HOME=trained)
    (run,) = (r for r in runs("iris", settings=settings) if r["candidate"] == "LogisticRegression")
    (chain,) = lineage(run["run_id"][:10], settings=settings).chains
    assert (chain.version, chain.candidate) == (None, "LogisticRegression")
    assert chain.data_fingerprint == prepare(IRIS, settings.data).fingerprint


def test_what_is_gone_is_said_to_be_unknown_and_the_rest_still_told(known, answers):
    with Ledger(known.state_database) as ledger:
        version = ledger.champion("iris")
        ledger.name_run(version, f"{UNTRACKED}x")
    moved = shutil.move(known.bundles / version.bundle, known.home / "away")
    (chain,) = lineage(answers[0]["prediction_id"], settings=known).chains
    assert (chain.run_id, chain.commit, chain.data_fingerprint) == (None, None, None)
    assert (chain.version, chain.bundle, chain.predictions) == (1, version.bundle, 3)
    shutil.move(moved, known.bundles / version.bundle)
    assert lineage("1", "iris", settings=known).chains[0].data_fingerprint


def test_what_is_not_known_is_answered_with_where_to_look(known):
    for what in ("nothing", "9", "abc", "0" * 36, "é\0\n"):
        with pytest.raises(UsageError, match="is no prediction, version, bundle, run, commit or"):
            lineage(what, settings=known)
    assert not (known.home / "irislogs").exists()


def test_a_prediction_is_found_by_an_index_and_never_by_a_scan(known, answers):
    log = open_log(IRIS, known)
    try:
        for sql in (
            f"{log._select} WHERE prediction_id = 'x'",
            "SELECT timestamp FROM irislogs WHERE id ="
            " (SELECT first_id FROM versions WHERE model_version = 1)",
        ):
            plan = " ".join(str(row) for row in log._read(f"EXPLAIN QUERY PLAN {sql}"))
            assert "SEARCH" in plan
            assert "SCAN" not in plan
    finally:
        log.close()


def test_the_command_prints_the_chain_or_json(known, answers, monkeypatch, capsys):
    monkeypatch.setenv("MLOPS_HOME", str(known.home))

    def printed(*arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            cli.main(["lineage", *arguments])
        assert not ended.value.code
        return capsys.readouterr().out

    prediction = answers[0]["prediction_id"]
    (chain,) = lineage(prediction, settings=known).chains
    text = printed(prediction)
    for part in (chain.bundle, chain.run_id, chain.data_fingerprint, "iris 1, Linear", "champion"):
        assert part in text
    assert json.loads(printed(prediction, "--json"))["chains"][0]["run_id"] == chain.run_id
    assert "← answered  3, " in printed("1", "iris")


def test_over_http_a_prediction_has_its_chain_and_not_who_asked(known, serve):
    server = serve()
    row = next(iter(HOUSING.examples.values()))
    status, answer = server.request("/predict", row, {"x-client-id": "somebody"})
    assert status == 200
    for path in ("/housing/predictions/", "/predictions/"):
        status, found = server.request(path + answer["prediction_id"])
        assert status == 200
        assert found["inputs"] == row
        assert found["prediction"] == answer["predicted_price"]
        assert "client" not in json.dumps(found)
        told = lineage(answer["prediction_id"], settings=known).chains[0]
        assert found["lineage"]["run_id"] == told.run_id
        assert found["lineage"]["data_fingerprint"] == told.data_fingerprint
        assert found["lineage"]["version"] == found["model_version"] == 1
    for path in (
        "/iris/predictions/" + answer["prediction_id"],
        "/predictions/%00%ff",
        "/predictions/1",
    ):
        status, error = server.request(path)
        assert status == 404
        assert error["detail"][0]["msg"] == "no prediction with this id is in the log"
    _, document = server.request("/openapi.json")
    operation = document["paths"]["/housing/predictions/{prediction_id}"]["get"]
    assert {"200", "404", "503"} <= set(operation["responses"])

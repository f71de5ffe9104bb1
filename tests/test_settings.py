"""Settings: the environment's names, their defaults, and bad values named in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import mlops

from mlops.errors import UsageError
from mlops.settings import Settings, read_settings

VARIABLES = {
    "MLOPS_HOME": "home",
    "MLOPS_MODELS": "models_folder",
    "USE_CASES": "use_cases",
    "MLOPS_HOST": "host",
    "PORT": "port",
    "MLFLOW_PORT": "mlflow_port",
    "MLFLOW_TRACKING_URI": "tracking_uri",
    "MODEL_REGISTRY_URI": "registry_uri",
    "PREDICTIONS_DURABILITY": "durability",
    "LOG_ROTATE_MB": "log_rotate_mb",
    "LOG_KEEP_FILES": "log_keep_files",
    "LOG_KEEP_DAYS": "log_keep_days",
    "LOG_KEEP_MB": "log_keep_mb",
    "RATE_LIMIT": "rate_limit",
    "TRUSTED_PROXIES": "trusted_proxies",
    "LARGEST_BODY": "largest_body",
    "BUNDLE_SIGNING_KEY": "bundle_signing_key",
    "BUNDLE_SIGNING_KEY_FILE": "bundle_signing_key_file",
    "SECONDS_TO_RECEIVE": "seconds_to_receive",
    "MAX_CONNECTIONS": "max_connections",
    "MAX_WAITING": "max_waiting",
    "WORKERS": "workers",
    "MLOPS_STORY_CLOCK": "story_clock",
    "DRIFT_WINDOW": "drift_window",
    "EXPERIMENT_TRUTH_DAYS": "experiment_truth_days",
    "DRIFT_EVERY": "drift_every",
    "DRIFT_BUDGET": "drift_budget",
    "ALERT_URLS": "alert_urls",
    "ALERT_ERROR_RATE": "alert_error_rate",
    "ALERT_P95_MS": "alert_p95_ms",
    "ALERT_DISK_FREE": "alert_disk_free",
    "ALERT_STALE_DAYS": "alert_stale_days",
    "ALERT_SILENT_MINUTES": "alert_silent_minutes",
    "ALERT_WINDOW_SECONDS": "alert_window_seconds",
    "ALERT_HOLD_SECONDS": "alert_hold_seconds",
    "RETRAIN_MAX_AGE_DAYS": "retrain_max_age_days",
    "RETRAIN_NEW_ROWS": "retrain_new_rows",
    "RETRAIN_EVERY_DAYS": "retrain_every_days",
    "RETRAIN_PAUSE_DAYS": "retrain_pause_days",
    "RETRAIN_WINDOW_DAYS": "retrain_window_days",
    "RETRAIN_NEW_ROW_WEIGHT": "retrain_new_row_weight",
    "RETRAIN_THEN": "retrain_then",
    "CHAMPION_PRODUCT": "champion_product",
    "ROLLBACK_WATCH_DAYS": "rollback_watch_days",
}


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_the_defaults_suit_a_laptop():
    settings = read_settings()
    assert settings == Settings()
    assert (settings.home, settings.host) == (Path(), "127.0.0.1")
    assert (settings.port, settings.mlflow_port) == (8000, 5000)
    assert (settings.tracking_uri, settings.registry_uri) == ("", "")
    assert settings.durability == "power"
    assert settings.tracks_locally


@pytest.mark.parametrize(
    ("variable", "text", "value"),
    [
        ("MLOPS_HOME", "/some/where", Path("/some/where")),
        ("MLOPS_MODELS", "/some/models", "/some/models"),
        ("MLOPS_HOST", "0.0.0.0", "0.0.0.0"),
        ("PORT", "9001", 9001),
        ("MLFLOW_PORT", "9002", 9002),
        ("MLFLOW_TRACKING_URI", "http://elsewhere:5000", "http://elsewhere:5000"),
        ("MODEL_REGISTRY_URI", "sqlite:////some/r.db", "sqlite:////some/r.db"),
        ("PREDICTIONS_DURABILITY", "crash", "crash"),
        ("USE_CASES", "iris", "iris"),
        ("RATE_LIMIT", "100/s", "100/s"),
        ("TRUSTED_PROXIES", "10.0.0.1", "10.0.0.1"),
        ("LARGEST_BODY", "2048", 2048),
        ("SECONDS_TO_RECEIVE", "30", 30),
        ("MAX_CONNECTIONS", "50", 50),
        ("MAX_WAITING", "60", 60),
        ("WORKERS", "3", 3),
        ("ALERT_URLS", "json://host,slack://a/b/c", "json://host,slack://a/b/c"),
        ("ALERT_ERROR_RATE", "0.1", 0.1),
        ("ALERT_P95_MS", "250", 250),
        ("ALERT_HOLD_SECONDS", "0", 0),
    ],
)
def test_each_variable_sets_its_own_setting_and_no_other(monkeypatch, variable, text, value):
    before = read_settings().model_dump()
    monkeypatch.setenv(variable, text)
    assert read_settings().model_dump() == {**before, VARIABLES[variable]: value}


def test_every_setting_has_a_variable():
    assert {f.validation_alias: n for n, f in Settings.model_fields.items()} == VARIABLES


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("PORT", "eighty"),
        ("PORT", "0"),
        ("PORT", "65536"),
        ("PORT", ""),
        ("PORT", "80.5"),
        ("MLFLOW_PORT", "-1"),
        ("ALERT_ERROR_RATE", "5 %"),
        ("ALERT_ERROR_RATE", "5"),
        ("ALERT_WINDOW_SECONDS", "1"),
        ("PREDICTIONS_DURABILITY", "never"),
        ("PREDICTIONS_DURABILITY", ""),
    ],
)
def test_a_bad_value_is_named_in_one_line(monkeypatch, variable, text):
    monkeypatch.setenv(variable, text)
    with pytest.raises(UsageError) as caught:
        read_settings()
    message = str(caught.value)
    assert message.startswith(f"{variable}={text!r} cannot be used: ")
    assert message.endswith("— change or unset it")
    assert "\n" not in message


def test_the_variables_of_the_shell_have_no_effect(monkeypatch):
    expected = read_settings()
    for name in ("HOME", "HOST", "DATA", "MODELS", "RUN", "DURABILITY", "TRACKING_URI", "BUNDLES"):
        monkeypatch.setenv(name, "/of/the/shell")
    assert read_settings() == expected


def test_an_override_wins_over_the_environment(monkeypatch):
    monkeypatch.setenv("PORT", "9001")
    assert read_settings(PORT=9002).port == 9002


def test_all_folders_hang_under_the_home():
    settings = read_settings(MLOPS_HOME=Path("/h"))
    assert settings.data == Path("/h/data")
    assert settings.models == Path("/h/models")
    assert settings.bundles == Path("/h/models/bundles")
    assert settings.state_database == Path("/h/models/state.db")
    assert settings.run == Path("/h/.run")


def test_the_models_may_lie_elsewhere_and_only_they():
    settings = read_settings(MLOPS_HOME=Path("/h"), MLOPS_MODELS="/m")
    assert settings.bundles == Path("/m/bundles")
    assert settings.state_database == Path("/m/state.db")
    assert settings.data == Path("/h/data")


@pytest.mark.parametrize("text", ["iris,housing", "iris housing", " iris, housing "])
def test_use_cases_are_named_with_commas_or_spaces_in_their_order(text):
    assert read_settings(USE_CASES=text).names == ("iris", "housing")
    assert read_settings(USE_CASES="").names == ()


def test_the_command_ends_with_2_and_one_line_for_a_bad_setting(tmp_path):
    done = mlops("status", home=tmp_path, check=False, PORT="eighty")
    assert done.returncode == 2
    assert done.stderr.startswith("mlops: PORT='eighty' cannot be used: ")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""

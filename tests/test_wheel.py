"""The wheel, built and used where there is no source tree: what `pip install` gives a stranger."""

from __future__ import annotations

import email
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from mlops import __version__

ROOT = Path(__file__).parents[1]
NEEDED_TO_BUILD = ("pyproject.toml", "README.md", "LICENSE")
# Everything in the package that is not code. A file that is not named here was left by accident.
DATA = {
    "mlops/usecases/data/california_housing_1990.csv",
    *(
        f"mlops/dashboard/static/{file.name}"
        for file in (ROOT / "src" / "mlops" / "dashboard" / "static").iterdir()
    ),
}

pytestmark = [pytest.mark.slow]


def build(folder: Path) -> Path:
    """Build the wheel from a copy that holds only what a build may need."""
    source = folder / "source"
    shutil.copytree(
        ROOT / "src" / "mlops", source / "src" / "mlops", ignore=shutil.ignore_patterns("*.pyc")
    )
    for name in NEEDED_TO_BUILD:
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps"]
    command += ["--no-index", "--disable-pip-version-check", "--no-cache-dir"]
    command += ["--wheel-dir", str(folder / "dist"), str(source)]
    # 2026-01-01: whatever the clock and the files say.
    subprocess.run(command, check=True, env={**os.environ, "SOURCE_DATE_EPOCH": "1767225600"})
    [wheel] = (folder / "dist").iterdir()
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the `bin` of an environment with the wheel, and this one's libraries beside it."""
    home = tmp_path_factory.mktemp("installed") / "venv"
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    # A folder that a .pth file adds has its own .pth files ignored: the libraries are seen, and
    # the editable install of the source tree is not.
    libraries = home / "lib" / version / "site-packages" / "libraries.pth"
    libraries.write_text(sysconfig.get_paths()["purelib"] + "\n")
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    command += ["--no-deps", "--no-index", "--no-cache-dir", "--disable-pip-version-check"]
    command += ["--ignore-installed"]  # the source tree's metadata is seen among the libraries
    subprocess.run([*command, str(wheel)], check=True)
    return home / "bin"


def run(*command: str, folder: Path) -> str:
    """Run a command as a stranger would: in a folder of his, with no setting of ours."""
    dropped = ("MLOPS", "MLFLOW", "PYTHON", "PORT", "VIRTUAL_ENV")
    environ = {k: v for k, v in os.environ.items() if not k.startswith(dropped)}
    done = subprocess.run(
        command,
        cwd=folder,
        env={**environ, "MLFLOW_DISABLE_TELEMETRY": "true"},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_wheel_holds_the_package_and_its_data_and_nothing_else(wheel: Path) -> None:
    source = {
        f"mlops/{path.relative_to(ROOT / 'src' / 'mlops').as_posix()}"
        for path in (ROOT / "src" / "mlops").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    names = set(zipfile.ZipFile(wheel).namelist())
    information = f"mlops_housing_pipeline-{__version__}.dist-info/"
    assert {name for name in names if not name.startswith(information)} == source
    assert {name for name in source if not name.endswith(".py")} == DATA
    assert {name.removeprefix(information) for name in names - source} == {
        "METADATA",
        "RECORD",
        "WHEEL",
        "entry_points.txt",
        "licenses/LICENSE",
    }


def test_the_wheel_says_what_it_is_and_what_it_needs(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as content:
        [name] = [name for name in content.namelist() if name.endswith("/METADATA")]
        metadata = email.message_from_bytes(content.read(name))
    assert metadata["Version"] == __version__
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "MIT"
    needs = metadata.get_all("Requires-Dist") or []
    assert any(need.startswith("scikit-learn") for need in needs)
    assert not any(need.startswith("pytest") for need in needs)
    assert wheel.name == f"mlops_housing_pipeline-{__version__}-py3-none-any.whl"


def test_two_builds_are_the_same_bytes(wheel: Path, tmp_path: Path) -> None:
    assert build(tmp_path).read_bytes() == wheel.read_bytes()


def test_the_module_comes_from_the_wheel_and_not_from_the_source_tree(
    installed: Path, tmp_path: Path
) -> None:
    script = "import mlops, sys; print(mlops.__file__); print(*sys.path)"
    file, path = run(str(installed / "python"), "-c", script, folder=tmp_path).splitlines()
    assert Path(file).is_relative_to(installed.parent)
    assert str(ROOT / "src") not in path.split()


def test_a_stranger_trains_promotes_and_predicts_in_an_empty_folder(
    installed: Path, tmp_path: Path
) -> None:
    mlops = str(installed / "mlops")
    assert "predict" in run(mlops, "--help", folder=tmp_path)
    run(mlops, "train", "iris", "--promote", folder=tmp_path)
    row = ("sepal_length=5.1", "sepal_width=3.5", "petal_length=1.4", "petal_width=0.2")
    answer = json.loads(run(mlops, "predict", "iris", *row, "--json", folder=tmp_path))
    assert answer["predicted_label"] == "setosa"
    # All of it is where he stands, and nothing of it is in the package.
    assert (tmp_path / "models" / "state.db").exists()


def test_the_other_use_case_and_its_table_are_in_the_wheel_too(
    installed: Path, tmp_path: Path
) -> None:
    run(str(installed / "mlops"), "prepare", "housing", folder=tmp_path)
    lines = (tmp_path / "data" / "housing.csv").read_text().splitlines()
    assert len(lines) == 20_640 + 1

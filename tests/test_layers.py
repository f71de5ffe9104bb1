"""Imports go one way, and importing does nothing but import."""

from __future__ import annotations

import ast
import graphlib
import json
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import REPOSITORY, environment

import mlops

SOURCES = REPOSITORY / "src"
GROUND = {"clock", "errors", "records", "settings", "usecase", "database"}
PHASES = {"build", "track", "package", "deploy", "monitor", "improve"}
ON_TOP = {"cli", "tables", "verbs"}
HEAVY = {"sklearn", "pandas", "mlflow", "lightgbm", "onnx", "pandera", "scipy", "joblib", "optuna"}


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCES).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted((SOURCES / "mlops").rglob("*.py"))}
DOORS = [*sorted((REPOSITORY / "api").glob("*.py")), *sorted(SOURCES.glob("*.py"))]


def layer(module: str) -> str:
    """The part of the package that a module belongs to: its first name under `mlops`."""
    return module.split(".")[1] if "." in module else ""


def imported(node: ast.AST) -> list[str]:
    """The modules that a statement imports; `from package import name` may be either."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        names = [f"{node.module}.{alias.name}" for alias in node.names]
        return [name if name in MODULES else str(node.module) for name in names]
    return []


def libraries(path: Path) -> set[str]:
    """The first names of all that a file imports."""
    return {name.split(".")[0] for name in imports(path)}


def imports(path: Path) -> set[str]:
    """Every module that a file imports, at its top or inside a function."""
    tree = ast.parse(path.read_text())
    return {name for node in ast.walk(tree) for name in imported(node)}


def ours(path: Path) -> set[str]:
    return {name for name in imports(path) if name.split(".")[0] == "mlops"}


def in_layers(*layers: str) -> list[str]:
    return [module for module in MODULES if layer(module) in layers]


def test_the_ground_floor_imports_nothing_of_ours_but_itself():
    for module in in_layers(*GROUND):
        assert {layer(name) for name in ours(MODULES[module])} <= GROUND, module


@pytest.mark.parametrize("module", in_layers("usecases"))
def test_a_use_case_imports_only_what_declares_one(module):
    assert {layer(name) for name in ours(MODULES[module])} <= {
        *("usecase", "errors", "usecases", "estimators")
    }


def test_estimators_know_nothing_but_errors():
    for module in in_layers("estimators"):
        assert {layer(name) for name in ours(MODULES[module])} <= {"errors", "estimators"}


@pytest.mark.parametrize("module", in_layers(*PHASES))
def test_a_phase_imports_the_ground_floor_and_itself_only(module):
    assert {layer(name) for name in ours(MODULES[module])} <= GROUND | {layer(module)}


def test_the_dashboard_alone_may_read_what_monitor_and_improve_know():
    for module in in_layers("dashboard"):
        allowed = GROUND | {"dashboard", "monitor", "improve"}
        assert {layer(name) for name in ours(MODULES[module])} <= allowed, module


def test_the_loop_joins_the_phases_and_does_not_know_who_calls_it():
    for module in in_layers("loop"):
        assert not {layer(name) for name in ours(MODULES[module])} & ON_TOP, module


def test_what_is_printed_knows_nothing_of_where_it_comes_from():
    assert ours(MODULES["mlops.tables"]) == set()


def test_nothing_below_the_command_imports_it():
    for module, path in MODULES.items():
        if module not in {"mlops.cli", "mlops"}:
            assert "mlops.cli" not in imports(path), module


def test_every_module_stands_on_a_known_floor():
    known = GROUND | PHASES | ON_TOP | {"", "usecases", "estimators", "loop", "dashboard"}
    assert {layer(module) for module in MODULES} <= known
    assert known - {layer(module) for module in MODULES} == set()


def test_only_track_imports_mlflow():
    users = {module for module, path in MODULES.items() if "mlflow" in libraries(path)}
    assert users
    assert {layer(module) for module in users} == {"track"}


@pytest.mark.parametrize("module", in_layers("deploy", "monitor", "improve", "dashboard", *GROUND))
def test_what_serves_needs_no_training_library(module):
    found = libraries(MODULES[module]) & HEAVY
    assert found <= ({"pandas"} if module == "mlops.usecase" else set())


def test_inner_modules_do_not_go_through_the_front_door():
    """`import mlops` is for the version number, and only where the loop states it."""
    for module, path in MODULES.items():
        if "mlops" not in imports(path):
            continue
        tree = ast.parse(path.read_text())
        used = {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "mlops"
        }
        assert (layer(module), used) == ("loop", {"__version__"}), module


def at_import(body: list[ast.stmt]) -> Iterator[str]:
    """The modules imported while a module is imported: not in functions, not for types only."""
    for statement in body:
        if isinstance(statement, ast.If):
            if ast.unparse(statement.test) != "TYPE_CHECKING":
                yield from at_import(statement.body)
            yield from at_import(statement.orelse)
        elif not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from imported(statement)


def test_no_import_goes_round_in_a_circle():
    graph = {
        module: {name for name in at_import(ast.parse(path.read_text()).body) if name != module}
        for module, path in MODULES.items()
    }
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError


@pytest.mark.parametrize("path", DOORS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_door_is_a_few_lines_that_call_the_house(path):
    tree = ast.parse(path.read_text())
    body = [node for node in tree.body if not isinstance(node, ast.Expr)]
    assert len(path.read_text().splitlines()) <= 6
    assert len(body) <= 2
    assert not any(
        isinstance(node, ast.FunctionDef | ast.ClassDef | ast.For | ast.While | ast.Try)
        for node in ast.walk(tree)
    )
    assert imports(path) <= {"mlops.cli", "mlops.loop.serve"}


# --- what importing does

IMPORT_ALL = """
    import importlib, os, runpy, sys, threading

    done = []

    def watch(event, arguments):
        if event == "open":
            path, mode, flags = arguments
            writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC
            if (flags & writes) or (mode and set(mode) & set("wax+")):
                done.append(f"open {path} {mode} {flags:o}")
        elif event in NEVER:
            done.append(f"{event} {arguments!r:.200}")

    NEVER = {
        "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.link", "os.symlink", "os.fork",
        "os.posix_spawn", "os.system", "sqlite3.connect", "socket.bind", "socket.connect",
        "socket.getaddrinfo", "subprocess.Popen", "shutil.rmtree", "tempfile.mkdtemp",
        "tempfile.mkstemp", "_thread.start_new_thread",
    }
    start = threading.Thread.start
    threading.Thread.start = lambda self: (done.append(f"thread {self.name}"), start(self))
    sys.addaudithook(watch)
    for module in sys.argv[1].split(","):
        if module.endswith(".py"):
            runpy.run_path(module, run_name="imported")
        else:
            importlib.import_module(module)
    sys.path.clear()
    print(done)
"""


SILENCE_ONNXRUNTIME = {"CI", "ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS"}
"""Variables of the surroundings that keep ONNX Runtime from reporting to its maker."""


@pytest.fixture
def empty_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "empty"
    folder.mkdir()
    return folder


def in_an_empty_folder(folder: Path, script: str, *arguments: str) -> str:
    """Run a script there, with an empty home and the repository to import from."""
    more = {
        "HOME": str(folder),
        "PYTHONPATH": str(REPOSITORY),
        "PYTHONDONTWRITEBYTECODE": "1",
        "TMPDIR": str(folder),
    }
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        cwd=folder,
        env={k: v for k, v in environment(folder, **more).items() if k not in SILENCE_ONNXRUNTIME},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_every_module_writes_nothing_makes_nothing_and_starts_nothing(empty_folder):
    doors = ["api.main", "api.housing_api", *map(str, sorted(SOURCES.glob("*.py")))]
    names = ",".join([*MODULES, *doors])
    assert in_an_empty_folder(empty_folder, IMPORT_ALL, names).strip() == "[]"


OPEN_A_MODEL = """
    import contextlib, importlib, json, sys
    from mlops.errors import BundleError
    from mlops.package.model import OnnxModel

    importlib.import_module(sys.argv[1])
    with contextlib.suppress(BundleError):
        OnnxModel(b"no model")
    print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
"""


def test_importing_and_opening_a_model_leave_no_file_in_the_home_folder_either(empty_folder):
    in_an_empty_folder(empty_folder, OPEN_A_MODEL, "api.main")
    assert list(empty_folder.iterdir()) == []


def test_the_watch_over_imports_sees_what_it_is_to_see(empty_folder):
    planted = empty_folder / "planted.py"
    planted.write_text(
        "import threading, pathlib\n"
        "pathlib.Path('made').mkdir()\n"
        "pathlib.Path('made/file').write_text('x')\n"
        "threading.Thread(target=print, name='planted').start()\n"
    )
    seen = in_an_empty_folder(empty_folder, IMPORT_ALL, str(planted))
    for what in ("os.mkdir ('made'", "open made/file w", "thread planted"):
        assert what in seen


@pytest.mark.parametrize("module", ["api.main", "mlops.loop.predict"])
def test_serving_imports_no_training_library(empty_folder, module):
    loaded = set(json.loads(in_an_empty_folder(empty_folder, OPEN_A_MODEL, module)))
    assert {"mlops", "onnxruntime"} <= loaded
    assert ("fastapi" in loaded) == (module == "api.main")  # who asks a log needs no server
    assert loaded & HEAVY == set()


def test_the_command_itself_starts_without_any_library_of_the_loop(empty_folder):
    script = """
        import json, sys
        import mlops, mlops.cli
        print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
    """
    loaded = set(json.loads(in_an_empty_folder(empty_folder, script)))
    assert loaded & (HEAVY | {"fastapi", "onnxruntime", "numpy"}) == set()


def test_the_front_door_has_every_verb_it_promises():
    for name in mlops.__all__:
        assert callable(getattr(mlops, name)) or name == "__version__"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = mlops.nothing

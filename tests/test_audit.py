"""The audit: what it must find, and that a check which could not look never passes."""

from __future__ import annotations

import datetime
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path

import audit
import pytest

ROOT = Path(__file__).parents[1]
TODAY = datetime.date(2026, 11, 23)
TOMORROW = datetime.date(2026, 11, 24)
PIN = audit.Pin("idna", "3.20", "", ("0" * 64,))
# Put together here, so that the audit does not find them in this file.
KEY = "AKIA" + "IOSFODNN7" + "EXAMPLF"
PRIVATE = "-----BEGIN RSA " + "PRIVATE KEY-----"


def waiver(**changes: object) -> audit.Waiver:
    told = {"check": "licences", "id": "huey", "until": TOMORROW, "reason": "MIT's text"}
    return audit.Waiver(**{**told, **changes})  # type: ignore[arg-type]


def finding(name: str) -> audit.Finding:
    return audit.Finding((name,), f"{name}: something")


def answer(*packages: dict[str, object]) -> str:
    return json.dumps({"dependencies": list(packages), "fixes": []})


# --- Waivers


def test_a_finding_fails_unless_a_valid_waiver_names_it() -> None:
    found = [finding("huey"), finding("skops")]
    failing, waived = audit.apply_waivers("licences", found, [waiver()], TODAY)
    assert failing == ["skops: something"]
    assert waived == ["huey: something (waived until 2026-11-24: MIT's text)"]


def test_an_expired_waiver_waives_nothing_and_fails_itself() -> None:
    expired = waiver(until=datetime.date(2026, 11, 22))
    assert audit.apply_waivers("licences", [finding("huey")], [expired], TODAY) == (
        ["huey: something"],
        [],
    )
    assert "expired on 2026-11-22" in next(audit.problems_of([expired], TODAY))


def test_a_waiver_holds_on_its_last_day() -> None:
    last = waiver(until=TODAY)
    assert list(audit.problems_of([last], TODAY)) == []
    assert audit.apply_waivers("licences", [finding("huey")], [last], TODAY)[0] == []


def test_a_waiver_of_one_check_does_not_waive_in_another() -> None:
    assert audit.apply_waivers("secrets", [finding("huey")], [waiver()], TODAY)[0]


def test_a_waiver_that_waives_nothing_any_more_fails() -> None:
    failing, _ = audit.apply_waivers("licences", [], [waiver()], TODAY)
    assert failing == ["the waiver of licences huey waives nothing any more: remove it"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"reason": " "}, "gives no reason"),
        ({"until": datetime.date(2030, 1, 1)}, "a year at most"),
        ({"check": "license"}, "no such check"),
    ],
)
def test_a_waiver_needs_a_check_a_reason_and_an_end(changes: dict, said: str) -> None:
    assert any(said in line for line in audit.problems_of([waiver(**changes)], TODAY))


def test_the_waivers_of_the_project_are_well_formed() -> None:
    policy = tomllib.loads((ROOT / "tools" / "audit.toml").read_text())
    waivers = audit.read_waivers(policy)
    assert waivers
    # On the day of their making: `make audit` compares with today, and a test must not rot.
    assert list(audit.problems_of(waivers, TODAY)) == []


# --- Vulnerabilities


def test_a_known_vulnerability_is_a_finding_by_any_of_its_names() -> None:
    output = answer(
        {
            "name": "idna",
            "version": "3.20",
            "vulns": [{"id": "PYSEC-1", "fix_versions": ["3.21"], "aliases": ["CVE-1"]}],
        }
    )
    [found] = audit.judge(1, output, "", [PIN])
    assert found.ids == ("PYSEC-1", "CVE-1")
    assert found.text == "idna 3.20: PYSEC-1, mended in 3.21"
    named = waiver(check="vulnerabilities", id="CVE-1")
    assert audit.apply_waivers("vulnerabilities", [found], [named], TODAY)[0] == []


def test_a_clean_answer_about_every_pin_has_no_finding() -> None:
    output = answer({"name": "idna", "version": "3.20", "vulns": []})
    assert list(audit.judge(0, output, "", [PIN])) == []


@pytest.mark.parametrize(
    ("code", "output", "said"),
    [
        (1, "", "pip-audit ended with 1: ERROR: no route to the service"),
        (0, "", "pip-audit ended with 0"),
        (0, answer(), "1 of 1 pins were not looked at: idna 3.20"),
        (0, answer({"name": "idna", "skip_reason": "not found"}), "idna was skipped: not found"),
        (0, answer({"name": "idna", "version": "3.19", "vulns": []}), "not looked at: idna 3.20"),
        (1, answer({"name": "idna", "version": "3.20", "vulns": []}), "named no vulnerability"),
    ],
)
def test_an_answer_that_is_not_about_every_pin_is_no_answer(
    code: int, output: str, said: str
) -> None:
    with pytest.raises(audit.CannotTell, match=said):
        list(audit.judge(code, output, "\nERROR: no route to the service\n", [PIN]))


def test_a_pin_for_another_system_needs_no_answer() -> None:
    elsewhere = audit.Pin("pywin32", "312", "sys_platform == 'win32'", ())
    assert list(audit.judge(0, answer(), "", [elsewhere])) == []


def test_a_service_that_cannot_be_reached_fails_the_audit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The real pip-audit, sent to a port where nobody listens."""
    fake_project(tmp_path, {})
    for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CACHE_DIR", str(tmp_path / "cache"))
    assert audit.audit(tmp_path, ["vulnerabilities"], TODAY) == 1
    said = capsys.readouterr().out
    assert "FAILED  vulnerabilities: could not look: pip-audit ended with 1: " in said
    assert "ok " not in said


class Advisories(http.server.BaseHTTPRequestHandler):
    """A service that knows one vulnerability, of idna, or that is out of order."""

    out_of_order = False

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))["package"]["name"]
        known = [ADVISORY] if asked == "idna" else []
        body = json.dumps({"vulns": known}).encode()
        self.send_response(500 if self.out_of_order else 200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


ADVISORY = {
    "id": "GHSA-aaaa-bbbb-cccc",
    "aliases": ["CVE-2026-1"],
    "published": "2026-01-01T00:00:00Z",
    "modified": "2026-01-01T00:00:00Z",
    "affected": [
        {
            "package": {"name": "idna", "ecosystem": "PyPI"},
            "ranges": [
                {"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "1.1"}]},
            ],
            "versions": ["1.0"],
        }
    ],
}


@pytest.fixture
def advisories(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Advisories]]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Advisories) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("OSV_URL", f"http://127.0.0.1:{server.server_port}/v1/query")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield Advisories
        server.shutdown()


def test_the_real_tool_finds_a_planted_vulnerability(
    tmp_path: Path, advisories: type[Advisories], capsys: pytest.CaptureFixture[str]
) -> None:
    fake_project(tmp_path, {})
    assert audit.audit(tmp_path, ["vulnerabilities"], TODAY) == 1
    said = capsys.readouterr().out
    assert said == "FAILED  vulnerabilities: idna 1.0: CVE-2026-1, mended in 1.1\n"


def test_the_real_tool_passes_what_is_not_known_to_be_vulnerable(
    tmp_path: Path, advisories: type[Advisories], capsys: pytest.CaptureFixture[str]
) -> None:
    fake_project(tmp_path, {"absent": "MIT"})
    assert audit.audit(tmp_path, ["vulnerabilities"], TODAY) == 0
    assert capsys.readouterr().out == "ok      vulnerabilities\n"


def test_a_service_that_is_out_of_order_fails_the_audit(
    tmp_path: Path, advisories: type[Advisories], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(advisories, "out_of_order", True)
    with pytest.raises(audit.CannotTell):
        list(audit.vulnerabilities(fake_project(tmp_path, {}), {}))


# --- Licences

ALLOWED = {"MIT", "Apache-2.0", "BSD-3-Clause"}


@pytest.mark.parametrize(
    ("expression", "verdict"),
    [
        ("MIT", True),
        ("GPL-3.0-only", False),
        ("GPL-3.0-only OR MIT", True),
        ("GPL-3.0-only AND MIT", False),
        ("MIT AND (GPL-2.0-or-later OR Apache-2.0)", True),
        ("Apache-2.0 WITH LLVM-exception", True),
        ("GPL-3.0-only WITH GCC-exception-3.1", False),
        ("Proprietary", False),
        ("do what you want (", False),
        ("", False),
    ],
)
def test_a_licence_is_allowed_by_all_of_and_and_one_of_or(expression: str, verdict: bool) -> None:
    assert audit.is_allowed(expression, ALLOWED) is verdict


def test_what_declares_no_licence_or_another_one_is_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = fake_project(tmp_path, {"silent": "", "free": "MIT", "taken": "AGPL-3.0-only"})
    monkeypatch.syspath_prepend(str(tmp_path / "installed"))
    found = [found.text for found in audit.licences(root, {"licences": {"allowed": ["MIT"]}})]
    assert found == ["silent 1.0: declares no licence", "taken 1.0: AGPL-3.0-only"]


def test_a_library_that_is_locked_and_not_there_cannot_be_judged(tmp_path: Path) -> None:
    root = fake_project(tmp_path, {"absent": "MIT"})
    with pytest.raises(audit.CannotTell, match="absent is locked and not installed"):
        list(audit.licences(root, {"licences": {"allowed": ["MIT"]}}))


def test_everything_that_ships_has_a_licence_that_is_allowed_or_waived(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert audit.audit(ROOT, ["licences"], TODAY) == 0
    assert capsys.readouterr().out.endswith("ok      licences\n")


# --- Secrets


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (f"aws = '{KEY}'", "AWS Access Key"),
        (PRIVATE, "Private Key"),
        ("password = 'hunter2" + "hunter2'", "Secret Keyword"),
    ],
)
def test_a_planted_secret_is_found(tmp_path: Path, line: str, kind: str) -> None:
    root = fake_project(tmp_path, {})
    (root / "deploy.yaml").write_text(f"a: 1\n{line}\n")
    found = list(audit.secrets(root, {}))
    assert audit.Finding((f"deploy.yaml {kind}",), f"deploy.yaml:2: {kind}") in found


def test_digests_and_ignored_files_are_no_secrets(tmp_path: Path) -> None:
    root = fake_project(tmp_path, {})
    (root / "pins.py").write_text(f"SHA256 = '{'0a1b2c3d' * 8}'\n")
    (root / ".gitignore").write_text("mine.env\n")
    (root / "mine.env").write_text(f"aws = '{KEY}'\n")
    assert list(audit.secrets(root, {})) == []


def test_where_git_lists_nothing_nothing_was_searched(tmp_path: Path) -> None:
    with pytest.raises(audit.CannotTell, match="git lists no file"):
        list(audit.secrets(tmp_path, {}))


# --- The bill of materials


def test_the_bill_names_every_library_that_ships_and_who_needs_it(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    assert list(audit.sbom(tmp_path, {})) == []
    bill = json.loads((tmp_path / "dist" / "sbom.cdx.json").read_text())
    locked = [p for p in audit.pins(ROOT / "requirements" / "runtime.txt") if p.applies_here]
    assert {part["name"] for part in bill["components"]} == {pin.name for pin in locked}
    assert bill["metadata"]["component"]["name"] == "mlops-housing-pipeline"
    [fastapi] = [part for part in bill["components"] if part["name"] == "fastapi"]
    assert fastapi["purl"].startswith("pkg:pypi/fastapi@")
    assert fastapi["licenses"] == [{"license": {"id": "MIT"}}]
    needs = {entry["ref"]: entry.get("dependsOn", []) for entry in bill["dependencies"]}
    assert any(name.startswith("starlette@") for name in needs[fastapi["bom-ref"]])
    assert fastapi["bom-ref"] in needs["mlops-housing-pipeline"]


# --- The command


def test_offline_says_what_it_left_out() -> None:
    done = subprocess.run(
        [sys.executable, "tools/audit.py", "--offline", "vulnerabilities"],
        cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ},
    )  # fmt: skip
    assert done.returncode == 0
    assert done.stdout.startswith("SKIPPED vulnerabilities")
    assert "no clean bill" in done.stdout


def test_a_check_with_another_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        audit.main(["licence"])
    assert "there is no check 'licence'" in capsys.readouterr().err


def fake_project(root: Path, licences: dict[str, str]) -> Path:
    """Make a repository whose lock names libraries; those in `installed` declare a licence."""
    (root / "requirements").mkdir()
    (root / "tools").mkdir()
    (root / "tools" / "audit.toml").write_text("[licences]\nallowed = ['MIT']\n")
    lock = "".join(f"{n}==1.0 \\\n    --hash=sha256:{'0' * 64}\n" for n in licences or ["idna"])
    for name in ("runtime", "dev", "setup"):
        (root / "requirements" / f"{name}.txt").write_text(lock)
    for name, licence in licences.items():
        if name == "absent":
            continue
        folder = root / "installed" / f"{name}-1.0.dist-info"
        folder.mkdir(parents=True)
        declared = f"License-Expression: {licence}\n" if licence else ""
        (folder / "METADATA").write_text(
            f"Metadata-Version: 2.4\nName: {name}\nVersion: 1.0\n{declared}"
        )
    subprocess.run(["git", "init", "--quiet", str(root)], check=True)
    return root

"""What we depend on and what we give away: `make audit`, `make audit OFFLINE=1`.

    vulnerabilities  known ones of every pin in requirements/, asked for over the network
    licences         of what ships: each must be one that tools/audit.toml allows
    secrets          in every file of the repository
    sbom             what ships, with versions, hashes and licences: dist/sbom.cdx.json

A check returns findings, returns none, or raises CannotTell, which fails as a finding does: a
service that did not answer never passes as "no vulnerability" (OSV_URL= names another that speaks
OSV's protocol). What is known and accepted stands
in tools/audit.toml, with a reason and a last day. Bandit's rules are ruff's S, in `make check`.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import license_expression
from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import ExternalReference, ExternalReferenceType, HashAlgorithm, HashType, XsUri
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
LONGEST_WAIVER = datetime.timedelta(days=366)
# What a classifier says, as SPDX has it. Newer libraries declare SPDX themselves (PEP 639).
SPDX = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache License 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD License": "LicenseRef-BSD",  # which of them is not said
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "The Unlicense (Unlicense)": "Unlicense",
}
LICENSING = license_expression.get_spdx_licensing()
# Files that cannot hide one: tools/lock.py refuses any line of a lock that is neither pin nor hash,
# and the vendored table has its SHA-256 in the code.
HELD_OTHERWISE = r"^(requirements/\w+\.txt|src/mlops/usecases/data/.*\.csv)$"
# SHA-256 and commit hashes: the repository is full of them, and they are there to be read.
DIGESTS = r"^([0-9a-f]{40}|[0-9a-f]{64})$"


class CannotTell(Exception):  # noqa: N818  an outcome beside "findings" and "none"
    """A check could not look: the message says why, in one line."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something that fails unless it is waived; `ids` are the names a waiver may use for it."""

    ids: tuple[str, ...]
    text: str


@dataclasses.dataclass(frozen=True)
class Waiver:
    check: str
    id: str
    until: datetime.date
    reason: str


@dataclasses.dataclass(frozen=True)
class Pin:
    """A line of a lock."""

    name: str
    version: str
    marker: str
    hashes: tuple[str, ...]

    @property
    def applies_here(self) -> bool:
        """Whether this Python on this system installs it: the locks hold for all."""
        return not self.marker or Marker(self.marker).evaluate()


def pins(lock: Path) -> list[Pin]:
    """Return the pins of a lock of ours (tools/lock.py says what it may hold)."""
    found = []
    for block in re.split(r"(?m)^(?=\S)", lock.read_text(encoding="utf-8"))[1:]:
        head = block.splitlines()[0].rstrip("\\ ")
        requirement, _, marker = head.partition(" ; ")
        name, _, version = requirement.partition("==")
        hashes = tuple(re.findall(r"--hash=sha256:([0-9a-f]{64})", block))
        found.append(Pin(name, version, marker, hashes))
    return found


# --- Waivers


def read_waivers(policy: dict[str, Any]) -> list[Waiver]:
    return [Waiver(**entry) for entry in policy.get("waiver", [])]


def problems_of(waivers: Iterable[Waiver], today: datetime.date) -> Iterator[str]:
    """What is wrong with the waivers themselves, whatever they waive."""
    for waiver in waivers:
        name = f"the waiver of {waiver.check} {waiver.id}"
        if waiver.check not in CHECKS:
            yield f"{name}: there is no such check, only {', '.join(CHECKS)}"
        if not waiver.reason.strip():
            yield f"{name} gives no reason"
        if waiver.until < today:
            yield f"{name} expired on {waiver.until}: mend it, or look again and renew it"
        if waiver.until > today + LONGEST_WAIVER:
            yield f"{name} lasts until {waiver.until}: a year at most"


def apply_waivers(
    check: str, findings: Iterable[Finding], waivers: Iterable[Waiver], today: datetime.date
) -> tuple[list[str], list[str]]:
    """Return what fails, and what was waived, a line each."""
    open_lines, waived_lines = [], []
    valid = [waiver for waiver in waivers if waiver.check == check and waiver.until >= today]
    used = set()
    for finding in findings:
        waiver = next((waiver for waiver in valid if waiver.id in finding.ids), None)
        if waiver is None:
            open_lines.append(finding.text)
        else:
            used.add(waiver)
            until = f"waived until {waiver.until}: {waiver.reason}"
            waived_lines.append(f"{finding.text} ({until})")
    open_lines += [
        f"the waiver of {check} {waiver.id} waives nothing any more: remove it"
        for waiver in valid
        if waiver not in used
    ]
    return open_lines, waived_lines


# --- Known vulnerabilities


def vulnerabilities(root: Path, policy: dict[str, Any]) -> Iterator[Finding]:
    """Ask for the known vulnerabilities of every pin: of runtime, of tools, of the installer."""
    locks = [root / "requirements" / f"{name}.txt" for name in ("dev", "setup")]
    command = [sys.executable, "-m", "pip_audit", "--strict", "--disable-pip", "--format", "json"]
    command += ["--progress-spinner", "off"]
    if mirror := os.environ.get("OSV_URL"):  # for networks that have a copy of the advisories
        command += ["--vulnerability-service", "osv", "--osv-url", mirror]
    for lock in locks:
        command += ["--requirement", str(lock)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    return judge(
        done.returncode, done.stdout, done.stderr, [p for lock in locks for p in pins(lock)]
    )


def judge(code: int, output: str, errors: str, locked: Iterable[Pin]) -> Iterator[Finding]:
    """Read what pip-audit said. It ends with 1 both when it finds and when it cannot look."""
    try:
        answered = json.loads(output)["dependencies"]
    except (ValueError, KeyError, TypeError):
        last = [line for line in errors.splitlines() if line.strip()][-1:]
        raise CannotTell(f"pip-audit ended with {code}: {''.join(last) or 'no word'}") from None
    skipped = [entry for entry in answered if "skip_reason" in entry]
    if skipped:
        raise CannotTell(f"{skipped[0]['name']} was skipped: {skipped[0]['skip_reason']}")
    seen = {(canonicalize_name(entry["name"]), entry["version"]) for entry in answered}
    asked = {(pin.name, pin.version) for pin in locked if pin.applies_here}
    if asked - seen:
        missing = ", ".join(f"{name} {version}" for name, version in sorted(asked - seen)[:5])
        raise CannotTell(f"{len(asked - seen)} of {len(asked)} pins were not looked at: {missing}")
    found = [
        Finding(
            (entry["id"], *entry["aliases"]),
            f"{package['name']} {package['version']}: {entry['id']}, "
            + (
                f"mended in {', '.join(entry['fix_versions'])}" if entry["fix_versions"] else "open"
            ),
        )
        for package in answered
        for entry in package["vulns"]
    ]
    if code and not found:
        raise CannotTell(f"pip-audit ended with {code} and named no vulnerability")
    return iter(found)


# --- Licences


def licences(root: Path, policy: dict[str, Any]) -> Iterator[Finding]:
    """Compare the licence of each library that ships with those that are allowed."""
    allowed = set(policy["licences"]["allowed"])
    for pin in pins(root / "requirements" / "runtime.txt"):
        if not pin.applies_here:
            continue  # not installed here: audited where it is
        try:
            licence = licence_of(importlib.metadata.metadata(pin.name))
        except importlib.metadata.PackageNotFoundError:
            raise CannotTell(f"{pin.name} is locked and not installed: run make test") from None
        if not is_allowed(licence, allowed):
            shown = licence or "declares no licence"
            yield Finding((pin.name,), f"{pin.name} {pin.version}: {shown}")


def licence_of(metadata: importlib.metadata.PackageMetadata) -> str:
    """Return an SPDX expression, the words of the library if they are none, or nothing."""
    fields = metadata.json
    if fields.get("license_expression"):
        return str(fields["license_expression"])
    classifiers = fields.get("classifier", [])
    names = [c.rpartition(" :: ")[2] for c in classifiers if c.startswith("License ::")]
    specific = [name for name in names if name in SPDX]
    if specific:  # several classifiers are a choice, as uvloop and dateutil mean them
        return " OR ".join(SPDX[name] for name in specific)
    text = str(fields.get("license") or "").strip()
    # A whole licence may stand in this field: its first line names it.
    first = text.splitlines()[0] if text else ""
    return SPDX.get(first, first or " OR ".join(names))


def is_allowed(expression: str, allowed: set[str]) -> bool:
    """Whether an SPDX expression can be met by allowed licences: all of AND, one of OR."""
    try:
        return _is_met(LICENSING.parse(expression), allowed)
    except license_expression.ExpressionError:
        return False  # words that are no expression


def _is_met(node: Any, allowed: set[str]) -> bool:
    if isinstance(node, LICENSING.AND):
        return all(_is_met(part, allowed) for part in node.args)
    if isinstance(node, LICENSING.OR):
        return any(_is_met(part, allowed) for part in node.args)
    # "X WITH exception" gives more rights than X, never fewer; nothing declared is None.
    symbol = getattr(node, "license_symbol", node)
    return symbol is not None and symbol.key in allowed


# --- Secrets


def secrets(root: Path, policy: dict[str, Any]) -> Iterator[Finding]:
    """Look for keys, tokens and passwords in every file that is or could be committed."""
    command = [sys.executable, "-m", "detect_secrets", "-C", str(root), "scan", "--no-verify"]
    command += ["--exclude-secrets", DIGESTS, "--exclude-files", HELD_OTHERWISE]
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    files = sorted(name for name in listed.stdout.split("\0") if (root / name).is_file())
    if not files:
        raise CannotTell(f"git lists no file in {root}: {listed.stderr.strip()}")
    done = subprocess.run([*command, *files], capture_output=True, text=True, check=False, cwd=root)
    try:
        results = json.loads(done.stdout)["results"]
    except (ValueError, KeyError):
        last = done.stderr.strip().rpartition("\n")[2]
        raise CannotTell(f"detect-secrets ended with {done.returncode}: {last}") from None
    for path, entries in sorted(results.items()):
        for entry in entries:
            where = f"{path}:{entry['line_number']}"
            yield Finding((f"{path} {entry['type']}",), f"{where}: {entry['type']}")


# --- The bill of materials


def sbom(root: Path, policy: dict[str, Any]) -> Iterator[Finding]:
    """Write what ships as CycloneDX, checked against its schema. It finds nothing."""
    text = bill_of_materials(pins(root / "requirements" / "runtime.txt"))
    fault = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if fault is not None:
        raise CannotTell(f"the bill is not valid CycloneDX: {str(fault).splitlines()[0]}")
    target = root / "dist" / "sbom.cdx.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(text, encoding="utf-8")
    return iter(())


def bill_of_materials(locked: list[Pin]) -> str:
    """Return the bill: a component for each pin that is installed here, and who needs whom."""
    here = {pin.name: pin for pin in locked if pin.applies_here}
    parts = {name: _component(pin) for name, pin in here.items()}
    project = importlib.metadata.metadata("mlops-housing-pipeline")
    product = Component(
        name=project["Name"],
        version=project["Version"],
        type=ComponentType.APPLICATION,
        bom_ref=project["Name"],
    )
    bill = Bom(components=parts.values())
    bill.metadata.component = product
    bill.register_dependency(product, [parts[n] for n in _needs(project["Name"]) if n in parts])
    for name, part in parts.items():
        bill.register_dependency(part, [parts[n] for n in _needs(name) if n in parts])
    return JsonV1Dot6(bill).output_as_string(indent=1) + "\n"


def _component(pin: Pin) -> Component:
    licence = licence_of(importlib.metadata.metadata(pin.name))
    address = PackageURL("pypi", name=pin.name, version=pin.version)
    # A release is several files (a wheel for each system), any of which a lock accepts.
    files = ExternalReference(
        type=ExternalReferenceType.DISTRIBUTION,
        url=XsUri(address.to_string()),
        comment="the files of this release",
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=value) for value in pin.hashes],
    )
    return Component(
        name=pin.name,
        version=pin.version,
        type=ComponentType.LIBRARY,
        bom_ref=f"{pin.name}@{pin.version}",
        purl=address,
        licenses=[LicenseFactory().make_from_string(licence)] if licence else [],
        external_references=[files],
    )


def _needs(name: str) -> set[str]:
    """Return the distributions that a distribution asks for here, without its extras."""
    try:
        asked = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return set()
    needs = [Requirement(line) for line in asked]
    return {
        canonicalize_name(need.name)
        for need in needs
        if need.marker is None or need.marker.evaluate({"extra": ""})
    }


# --- All of it

CHECKS: dict[str, Callable[[Path, dict[str, Any]], Iterator[Finding]]] = {
    "vulnerabilities": vulnerabilities,
    "licences": licences,
    "secrets": secrets,
    "sbom": sbom,
}
NEED_NETWORK = ("vulnerabilities",)


def audit(root: Path, names: Iterable[str], today: datetime.date) -> int:
    """Run the checks, print a line for each outcome, and return how many failed."""
    policy = tomllib.loads((root / "tools" / "audit.toml").read_text(encoding="utf-8"))
    waivers = read_waivers(policy)
    failed = 0
    for line in problems_of(waivers, today):
        failed += 1
        print(f"FAILED  waivers: {line}")
    for name in names:
        try:
            open_lines, waived = apply_waivers(name, CHECKS[name](root, policy), waivers, today)
        except CannotTell as reason:
            open_lines, waived = [f"could not look: {reason}"], []
        for line in waived:
            print(f"waived  {name}: {line}")
        for line in open_lines:
            print(f"FAILED  {name}: {line}")
        if open_lines:
            failed += 1
        else:
            print(f"ok      {name}")
    return failed


def main(arguments: list[str] | None = None) -> int:
    """Return 0 if nothing failed, else 1."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checks", nargs="*", metavar="CHECK", help=f"of {', '.join(CHECKS)}")
    parser.add_argument("--offline", action="store_true", help="leave out what needs a network")
    options = parser.parse_args(arguments)
    for name in options.checks:
        if name not in CHECKS:
            parser.error(f"there is no check {name!r}, only {', '.join(CHECKS)}")
    names = list(options.checks or CHECKS)
    if options.offline:
        for name in NEED_NETWORK:
            if name in names:
                names.remove(name)
                print(f"SKIPPED {name}: not asked for, because of OFFLINE: this is no clean bill")
    return 1 if audit(ROOT, names, datetime.datetime.now(datetime.UTC).date()) else 0


if __name__ == "__main__":
    sys.exit(main())

"""Check `deploy/kubernetes` without a cluster: `python tools/manifests.py`.

Each manifest against the schemas of the oldest and the newest Kubernetes that we name, strictly (a
misspelt field is an error); then what no schema sees: that the kustomization lists every file,
and that what one manifest names in another is there.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml

FOLDER = Path(__file__).resolve().parent.parent / "deploy" / "kubernetes"
KUBERNETES = ("1.31", "1.37")
Manifest = dict[str, Any]


def problems(folder: Path) -> list[str]:
    """Return what is wrong with the manifests in `folder`, one line each."""
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    files = {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml"}
    listed = set(kustomization["resources"])
    found = [f"kustomization.yaml does not list {name}" for name in sorted(files - listed)]
    found += [f"kustomization.yaml lists {name}, not there" for name in sorted(listed - files)]
    manifests = []
    for name in sorted(files & listed):
        for manifest in yaml.safe_load_all((folder / name).read_text()):
            found += [f"{name}: {line}" for line in _against_schemas(manifest)]
            manifests.append(manifest)
    return found or list(_loose_ends(manifests))


def _against_schemas(manifest: Manifest) -> Iterator[str]:
    for version in KUBERNETES:
        try:
            kubernetes_validate.validate(manifest, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            where = ".".join(str(step) for step in error.path)
            yield f"{manifest['kind']} {where}: {error.message} (Kubernetes {version})"
        except kubernetes_validate.SchemaNotFoundError as error:
            yield error.message


def _loose_ends(manifests: list[Manifest]) -> Iterator[str]:
    """Yield each reference from one manifest to another that leads nowhere."""
    there = {(manifest["kind"], manifest["metadata"]["name"]) for manifest in manifests}
    there |= {claim for manifest in manifests for claim in _claims(manifest)}
    pods = [m["spec"]["template"] for m in manifests if m["kind"] in {"StatefulSet", "Deployment"}]
    labels = [pod["metadata"]["labels"] for pod in pods]
    ports = {
        port["name"]: port["containerPort"]
        for pod in pods
        for container in pod["spec"]["containers"]
        for port in container["ports"]
    }
    for manifest in manifests:
        name = f"{manifest['kind']} {manifest['metadata']['name']}"
        for reference in _references(manifest):
            if reference not in there:
                yield f"{name} names {' '.join(reference)}, not there"
        for selector in _selectors(manifest):
            if not any(selector.items() <= one.items() for one in labels):
                yield f"{name} selects {selector}, which no pod is labelled"
        for port in manifest.get("spec", {}).get("ports", ()):
            if port["targetPort"] not in ports:
                yield f"{name} leads to port {port['targetPort']}, which no container has"


def _references(manifest: Manifest) -> Iterator[tuple[str, str]]:
    spec = manifest.get("spec", {})
    if "serviceName" in spec:
        yield "Service", spec["serviceName"]
    if "scaleTargetRef" in spec:
        yield spec["scaleTargetRef"]["kind"], spec["scaleTargetRef"]["name"]
    for rule in spec.get("rules", ()):
        for path in rule["http"]["paths"]:
            yield "Service", path["backend"]["service"]["name"]
    job = spec.get("jobTemplate", {}).get("spec", {})
    yield from _of_pod({**spec, **job}.get("template", {}).get("spec", {}))


def _of_pod(pod: Manifest) -> Iterator[tuple[str, str]]:
    if "serviceAccountName" in pod:
        yield "ServiceAccount", pod["serviceAccountName"]
    for container in pod.get("containers", ()):
        for source in container.get("envFrom", ()):
            for field, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret")):
                if field in source:
                    yield kind, source[field]["name"]
    for volume in pod.get("volumes", ()):
        if "persistentVolumeClaim" in volume:
            yield "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]


def _claims(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Yield the claims of a stateful set's first replica: there is one for each replica."""
    for claim in manifest.get("spec", {}).get("volumeClaimTemplates", ()):
        yield (
            "PersistentVolumeClaim",
            f"{claim['metadata']['name']}-{manifest['metadata']['name']}-0",
        )


def _selectors(manifest: Manifest) -> Iterator[dict[str, str]]:
    spec = manifest.get("spec", {})
    for selector in (spec.get("selector"), spec.get("podSelector")):
        if selector:
            yield selector.get("matchLabels", selector)


def main() -> int:
    found = problems(FOLDER)
    for problem in found:
        print(f"deploy/kubernetes: {problem}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

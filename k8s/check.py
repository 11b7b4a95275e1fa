"""Renders every overlay and looks for faults before a cluster would: `make k8s-check`, or `python k8s/check.py`.

What is asked of each: Kubernetes' own schemas (strict: an unknown field is a fault), ours for the kinds of KEDA and
of the Prometheus operator, our rules (`rules`), and checkov.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import jsonschema
import kubernetes_validate  # type: ignore[import-untyped]
import rules
import yaml

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parent

#: The oldest and the newest Kubernetes that we tell about.
VERSIONS: Final = ("1.32", "1.37")
SCHEMAS: Final = {
    "keda.sh/v1alpha1, ScaledObject": "scaledobject.json",
    "monitoring.coreos.com/v1, ServiceMonitor": "servicemonitor.json",
    "monitoring.coreos.com/v1, PrometheusRule": "prometheusrule.json",
}
CHECKOV_CONFIG: Final = HERE / "checkov.yaml"


def main() -> int:
    """The exit code: 0 if there is no fault."""
    found = list(_reasonless())
    overlays = sorted(path.parent for path in HERE.glob("overlays/*/kustomization.yaml"))
    unused = _unused_components()
    found += [f"component {name}: no overlay has it, so nothing here tried it" for name in unused]
    for overlay in overlays:
        rendered = render(overlay)
        manifests = [manifest for manifest in yaml.safe_load_all(rendered) if manifest]
        mine = [*_schema_faults(manifests), *_rule_faults(manifests), *_checkov_faults(rendered)]
        print(f"{overlay.name}: {len(manifests)} manifests, {len(mine)} faults")
        found += [f"{overlay.name}: {fault}" for fault in mine]
    for fault in found:
        print(f"FAULT {fault}", file=sys.stderr)
    return 1 if found or not overlays else 0


def render(overlay: Path) -> str:
    """What `kubectl apply -k` would send."""
    command = [_tool("kubectl"), "kustomize", str(overlay)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout  # noqa: S603 (our own folders)


def _tool(name: str) -> str:
    """The one beside this Python, or the system's."""
    found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if found is None:
        raise SystemExit(f"{name} is not installed; `make k8s-check` installs it into .venv-k8s")
    return found


def _reasonless() -> Iterator[str]:
    """Each check of checkov's that is skipped has its reason on the same line."""
    for line in CHECKOV_CONFIG.read_text().splitlines():
        if re.match(r"\s*- CKV", line) and not re.search(r"# \w.{15,}", line):
            yield f"{CHECKOV_CONFIG.name}: no reason beside {line.strip()}"


def _unused_components() -> set[str]:
    used = {
        (path.parent / component).resolve()
        for path in HERE.glob("overlays/*/kustomization.yaml")
        for component in yaml.safe_load(path.read_text()).get("components", ())
    }
    there = {
        path.parent for path in [*HERE.glob("components/*/kustomization.yaml"), HERE / "monitoring/kustomization.yaml"]
    }
    return {folder.name for folder in there - used}


def _schema_faults(manifests: list[dict[str, Any]]) -> Iterator[str]:
    for manifest in manifests:
        name = f"{manifest['kind']} {manifest['metadata']['name']}"
        schema = SCHEMAS.get(f"{manifest['apiVersion']}, {manifest['kind']}")
        faults = _faults_of_kubernetes(manifest) if schema is None else _faults_by_ours(manifest, schema)
        yield from (f"{name}: {fault}" for fault in faults)


def _faults_of_kubernetes(manifest: dict[str, Any]) -> Iterator[str]:
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(manifest, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            yield f"Kubernetes {version}: {'.'.join(map(str, error.path))}: {error.message}"
        except kubernetes_validate.SchemaNotFoundError:
            yield f"Kubernetes {version} has no such kind, and we have no schema of it"


def _faults_by_ours(manifest: dict[str, Any], schema: str) -> Iterator[str]:
    validator = jsonschema.Draft202012Validator(json.loads((HERE / "schemas" / schema).read_text()))
    for error in validator.iter_errors(manifest):
        yield f"{error.json_path}: {error.message}"


def _rule_faults(manifests: list[dict[str, Any]]) -> list[str]:
    return rules.faults(manifests, rules.documented((ROOT / "docs" / "configuration.md").read_text()))


def _checkov_faults(rendered: str) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "rendered.yaml")
        file.write_text(rendered)
        command = [_tool("checkov"), "--config-file", str(CHECKOV_CONFIG), "--file", str(file), "--output", "json"]
        done = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603 (our own file)
    try:
        report = json.loads(done.stdout)
        failed, passed = report["results"]["failed_checks"], report["summary"]["passed"]
    except (ValueError, KeyError, TypeError):
        yield f"checkov did not answer: {done.stderr[-500:]}"
        return
    if report["summary"]["parsing_errors"] or not passed:
        yield "checkov could not read the manifests"
    for check in failed:
        yield f"{check['check_id']} {check['check_name']}: {check['resource']}"


if __name__ == "__main__":
    sys.exit(main())

"""The manifests keep our rules, and each rule tells of what breaks it. What needs kubectl is in `make k8s-check`."""

import copy
import importlib.util
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import pytest
import yaml

from jobs.bootstrap import Connection, connect
from jobs.live.keys import PREFIX
from jobs.models import JobStatus
from jobs.settings import ApiSettings, JobsSettings, variables

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
PROBE = K8S / "base" / "worker_ready.py"


def module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"k8s_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = made  # dataclasses look themselves up there
    spec.loader.exec_module(made)
    return made


rules = module(K8S / "rules.py")
settings = rules.documented((ROOT / "docs" / "configuration.md").read_text())


def manifests() -> dict[str, Any]:
    """Those of the base that start pods, as an overlay would render them."""
    config = {"kind": "ConfigMap", "metadata": {"name": "lobewise"}, "data": {"LOBEWISE_LOG_FORMAT": "json"}}
    found = {"config": config}
    for name in ("api", "worker", "redis"):
        for manifest in yaml.safe_load_all((K8S / "base" / f"{name}.yaml").read_text()):
            if manifest["kind"] in rules.POD_KINDS:
                container = manifest["spec"]["template"]["spec"]["containers"][0]
                container["image"] += "" if ":" in container["image"] else ":0.1.0"
                found[name] = copy.deepcopy(manifest)  # without YAML's anchors, which share what they stand for
    return found


def faults(found: dict[str, Any]) -> list[str]:
    answer: list[str] = rules.faults(found.values(), settings)
    return answer


def pod(found: dict[str, Any], name: str) -> dict[str, Any]:
    spec: dict[str, Any] = found[name]["spec"]["template"]["spec"]
    return spec


def container(found: dict[str, Any], name: str) -> dict[str, Any]:
    spec: dict[str, Any] = pod(found, name)["containers"][0]
    return spec


Break = Callable[[dict[str, Any]], object]

BROKEN: dict[str, tuple[Break, str]] = {
    "no worker": (lambda m: m.pop("worker"), "no container is named worker"),
    "no gateway": (lambda m: container(m, "api").update(name="gateway"), "no container is named api"),
    "no tag": (lambda m: container(m, "api").update(image="lobewise-api"), "has no tag"),
    "a registry's port is no tag": (lambda m: container(m, "api").update(image="a:5000/lobewise-api"), "has no tag"),
    "the tag latest": (lambda m: container(m, "worker").update(image="lobewise-worker:latest"), "has no tag"),
    "no limits": (lambda m: container(m, "redis")["resources"].pop("limits"), "no limits.memory"),
    "no limit of memory": (lambda m: container(m, "worker")["resources"].update(limits={"cpu": 1}), "no limits.memory"),
    "nothing requested": (lambda m: container(m, "api")["resources"].pop("requests"), "no requests.memory"),
    "no startup probe": (lambda m: container(m, "worker").pop("startupProbe"), "no startupProbe"),
    "no readiness probe": (lambda m: container(m, "redis").pop("readinessProbe"), "no readinessProbe"),
    "no liveness probe": (lambda m: container(m, "api").pop("livenessProbe"), "no livenessProbe"),
    "a sidecar without limits": (
        lambda m: pod(m, "api").setdefault("initContainers", []).append({"name": "x", "image": "x:1"}),
        "container x: no limits.memory",
    ),
    "grace as long as a scan": (
        lambda m: pod(m, "worker").update(terminationGracePeriodSeconds=1800),
        "not above LOBEWISE_HARD_LIMIT_SECONDS (1800)",
    ),
    "Kubernetes' own grace": (lambda m: pod(m, "worker").pop("terminationGracePeriodSeconds"), "30 s of grace"),
    "a longer hard limit by ConfigMap": (
        lambda m: m["config"]["data"].update(LOBEWISE_HARD_LIMIT_SECONDS="3600"),
        "not above LOBEWISE_HARD_LIMIT_SECONDS (3600)",
    ),
    "grace shorter than requests": (
        lambda m: pod(m, "api").update(terminationGracePeriodSeconds=75),
        "not above preStop and LOBEWISE_API_SHUTDOWN_SECONDS",
    ),
    "no pause": (lambda m: container(m, "api").pop("lifecycle"), "no pause in preStop"),
    "liveness by Celery": (
        lambda m: container(m, "worker")["livenessProbe"]["exec"].update(command=["celery", "inspect", "ping"]),
        "liveness does not look at",
    ),
    "no liveness file": (lambda m: container(m, "worker").update(env=[]), "liveness does not look at"),
    "a misspelt variable": (
        lambda m: container(m, "api")["env"].append({"name": "LOBEWISE_API_PROT", "value": "1"}),
        "LOBEWISE_API_PROT is no setting",
    ),
    "a misspelt variable in the ConfigMap": (
        lambda m: m["config"]["data"].update(LOBEWISE_BLOBS_URL="s3://x"),
        "LOBEWISE_BLOBS_URL is no setting",
    ),
    "nothing": (lambda m: m.clear(), "nothing here starts a pod"),
}


def test_the_base_has_no_fault() -> None:
    assert faults(manifests()) == []


@pytest.mark.parametrize(("spoil", "sentence"), BROKEN.values(), ids=BROKEN)
def test_a_broken_manifest_is_told(spoil: Break, sentence: str) -> None:
    found = manifests()
    spoil(found)
    told = faults(found)
    assert any(sentence in fault for fault in told), told


def test_every_rule_has_a_manifest_that_breaks_it() -> None:
    silent = set(rules.RULES)
    for spoil, _ in BROKEN.values():
        found = manifests()
        spoil(found)
        silent -= {rule for rule in silent if list(rule(rules.workloads(found.values()), settings))}
    assert silent == set()


def test_the_rules_know_every_setting_of_the_code() -> None:
    known = {variable.name: variable.default for kind in (JobsSettings, ApiSettings) for variable in variables(kind)}
    assert {name: settings.defaults.get(name) for name in known} == known


def test_the_service_monitor_names_the_job_of_the_alerts() -> None:
    monitor = yaml.safe_load((K8S / "monitoring" / "servicemonitor.yaml").read_text())
    (relabeling,) = monitor["spec"]["endpoints"][0]["relabelings"]
    assert f'job="{relabeling["replacement"]}"' in (K8S / "monitoring" / "prometheusrule.yaml").read_text()


SCHEMAS = {
    "scaledobject": "queue-autoscaling",
    "servicemonitor": "../monitoring",
    "prometheusrule": "../monitoring",
}
FREE = ("labels", "annotations", "matchLabels")


def objects(node: Any) -> Iterator[dict[str, Any]]:
    """Every object in a manifest but those whose keys are free."""
    if isinstance(node, dict):
        yield node
        for key, value in node.items():
            yield from () if key in FREE else objects(value)
    elif isinstance(node, list):
        for value in node:
            yield from objects(value)


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_refuses_an_unknown_field_anywhere(name: str) -> None:
    validator = jsonschema.Draft202012Validator(json.loads((K8S / "schemas" / f"{name}.json").read_text()))
    manifest = yaml.safe_load((K8S / "components" / SCHEMAS[name] / f"{name}.yaml").read_text())
    manifest["metadata"]["namespace"] = "lobewise"
    assert list(validator.iter_errors(manifest)) == []
    places = list(objects(manifest))
    assert len(places) > 4
    for place in places:
        place["surprise"] = 1
        assert not validator.is_valid(manifest), place
        del place["surprise"]


def test_what_autoscaling_counts_are_statuses_of_jobs() -> None:
    (trigger,) = yaml.safe_load((K8S / "components" / "queue-autoscaling" / "scaledobject.yaml").read_text())["spec"][
        "triggers"
    ]
    assert f'status=~"{JobStatus.QUEUED}|{JobStatus.RUNNING}"' in trigger["metadata"]["query"]


# The readiness of a worker, at a real broker


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Connection]:
    jobs = connect(JobsSettings(data_dir=tmp_path, redis_url=None, blob_url=(tmp_path / "blobs").as_uri()))
    yield jobs
    jobs.close()


def probe(url: str, *arguments: str) -> int:
    environment = {**os.environ, "LOBEWISE_REDIS_URL": url}
    return subprocess.run([sys.executable, PROBE, *arguments], env=environment, check=False).returncode


def test_a_worker_is_ready_once_it_says_so(jobs: Connection) -> None:
    url = jobs.settings.redis_url or ""
    jobs.worker.workers.announce("another-pod:17", 60)
    assert probe(url) == 1
    jobs.worker.workers.announce(f"{socket.gethostname()}:17", 60)
    assert probe(url) == 0
    assert module(PROBE).WORKERS == PREFIX + "workers"


def test_a_silent_worker_is_not_ready(jobs: Connection) -> None:
    jobs.worker.workers.announce(f"{socket.gethostname()}:17", 0.001)
    assert probe(jobs.settings.redis_url or "") == 1


def test_a_start_does_not_fail_for_the_brokers_fault() -> None:
    nobody = "redis://127.0.0.1:1/0"
    assert probe(nobody) == 1
    assert probe(nobody, "--without-broker-too") == 0

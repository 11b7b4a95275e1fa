"""What our manifests must keep, beyond what schemas and checkov know. Needs nothing, so that every test run can try it.

A rule takes the manifests of one overlay and tells its faults, each in a sentence that begins with the object's name.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

Manifest = Mapping[str, Any]

PROBES: Final = ("startupProbe", "readinessProbe", "livenessProbe")
POD_KINDS: Final = ("Deployment", "StatefulSet", "DaemonSet")

#: Variables that are set though they are no settings of Lobewise, with their meaning.
FOREIGN_VARIABLES: Final = {
    "OMP_NUM_THREADS": "torch's: how many threads a network uses on a CPU",
}

#: The AWS tools' own, which docs/configuration.md sends its readers to.
AWS_KEYS: Final = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
HARD_LIMIT: Final = "LOBEWISE_HARD_LIMIT_SECONDS"
SHUTDOWN: Final = "LOBEWISE_API_SHUTDOWN_SECONDS"


@dataclass(frozen=True)
class Settings:
    """What docs/configuration.md says: each variable with its default."""

    defaults: Mapping[str, str]

    def knows(self, variable: str) -> bool:
        return variable in self.defaults or variable in FOREIGN_VARIABLES or variable in AWS_KEYS


@dataclass(frozen=True)
class Container:
    """A container of a pod, with all that it can be told by its environment."""

    name: str
    spec: Mapping[str, Any]
    environment: Mapping[str, str]
    is_init: bool


@dataclass(frozen=True)
class Workload:
    """What starts pods."""

    name: str
    pod: Mapping[str, Any]
    containers: tuple[Container, ...]


Rule = Callable[[Iterable[Workload], Settings], Iterator[str]]


def documented(page: str) -> Settings:
    """The variables in the tables of docs/configuration.md."""
    rows = re.findall(r"^\| (`[^|]*`)[^|]*\|([^|]*)\|", page, re.MULTILINE)
    return Settings({name: default.strip() for cell, default in rows for name in re.findall(r"`(\w+)`", cell)})


def workloads(manifests: Iterable[Manifest]) -> list[Workload]:
    """Everything that starts pods, its ConfigMaps looked up."""
    manifests = list(manifests)
    maps = {
        manifest["metadata"]["name"]: manifest.get("data", {})
        for manifest in manifests
        if manifest["kind"] == "ConfigMap"
    }
    return [_workload(manifest, maps) for manifest in manifests if manifest["kind"] in POD_KINDS]


def _workload(manifest: Manifest, maps: Mapping[str, Mapping[str, str]]) -> Workload:
    pod = manifest["spec"]["template"]["spec"]
    containers = [(spec, False) for spec in pod.get("containers", ())]
    containers += [(spec, True) for spec in pod.get("initContainers", ())]
    return Workload(
        f"{manifest['kind']} {manifest['metadata']['name']}",
        pod,
        tuple(Container(spec["name"], spec, _environment(spec, maps), is_init) for spec, is_init in containers),
    )


def _environment(spec: Mapping[str, Any], maps: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Values from elsewhere than a ConfigMap are not known, but their names are."""
    found: dict[str, str] = {}
    for source in spec.get("envFrom", ()):
        found |= maps.get(source.get("configMapRef", {}).get("name", ""), {})
    return found | {variable["name"]: str(variable.get("value", "")) for variable in spec.get("env", ())}


def faults(manifests: Iterable[Manifest], settings: Settings) -> list[str]:
    """What is wrong, by every rule."""
    found = workloads(manifests)
    if not found:
        return ["nothing here starts a pod"]
    return [fault for rule in RULES for fault in rule(found, settings)]


def both_halves_are_there(found: Iterable[Workload], _settings: Settings) -> Iterator[str]:
    """The rules about gateway and worker say nothing where there is none."""
    containers = [container for _, container in _containers(found)]
    for is_there, half in ((_serves, "api"), (_scores, "worker")):
        if not any(map(is_there, containers)):
            yield f"no container is named {half}"


def images_have_tags(found: Iterable[Workload], _settings: Settings) -> Iterator[str]:
    """Of an image without a tag nobody knows what it will be tomorrow; `latest` is none."""
    for where, container in _containers(found):
        image = container.spec.get("image", "")
        tag = image.rpartition("/")[2].partition("@")[0].partition(":")[2]
        if "@sha256:" not in image and tag in ("", "latest"):
            yield f"{where}: image {image!r} has no tag"


def memory_is_limited(found: Iterable[Workload], _settings: Settings) -> Iterator[str]:
    """And requested: who asks for nothing is the first to go."""
    for where, container in _containers(found):
        resources = container.spec.get("resources", {})
        for kind in ("requests", "limits"):
            if "memory" not in resources.get(kind, {}):
                yield f"{where}: no {kind}.memory"


def probes_are_there(found: Iterable[Workload], _settings: Settings) -> Iterator[str]:
    for where, container in _containers(found):
        if not container.is_init:
            yield from (f"{where}: no {probe}" for probe in PROBES if probe not in container.spec)


def scans_may_finish(found: Iterable[Workload], settings: Settings) -> Iterator[str]:
    """A worker that is told to stop has the time for the longest scan."""
    for workload in found:
        for container in workload.containers:
            if _scores(container):
                limit = _seconds(HARD_LIMIT, container, settings)
                if _grace(workload) <= limit:
                    yield f"{workload.name}: {_grace(workload)} s of grace are not above {HARD_LIMIT} ({limit:g})"


def requests_may_finish(found: Iterable[Workload], settings: Settings) -> Iterator[str]:
    """A gateway that is told to stop has the time for its pause and for the requests that it still has."""
    for workload in found:
        for container in workload.containers:
            if _serves(container):
                pause = _pause(container)
                limit = _seconds(SHUTDOWN, container, settings)
                if pause <= 0:
                    yield f"{workload.name}: no pause in preStop; load balancers still send requests when it stops"
                if _grace(workload) <= pause + limit:
                    yield f"{workload.name}: {_grace(workload)} s of grace are not above preStop and {SHUTDOWN}"


def liveness_asks_the_process_alone(found: Iterable[Workload], _settings: Settings) -> Iterator[str]:
    """A liveness that asks Redis, or Celery by way of it, restarts every worker or sender when Redis is away."""
    for workload in found:
        for container in filter(_beats, workload.containers):
            file = container.environment.get("LOBEWISE_LIVENESS_FILE")
            command = " ".join(container.spec.get("livenessProbe", {}).get("exec", {}).get("command", ()))
            if not file or file not in command:
                yield f"{workload.name}: liveness does not look at LOBEWISE_LIVENESS_FILE"


def variables_are_settings(found: Iterable[Workload], settings: Settings) -> Iterator[str]:
    for where, container in _containers(found):
        for name in container.environment:
            if not settings.knows(name):
                yield f"{where}: {name} is no setting that docs/configuration.md knows"


RULES: Final[tuple[Rule, ...]] = (
    both_halves_are_there,
    images_have_tags,
    memory_is_limited,
    probes_are_there,
    scans_may_finish,
    requests_may_finish,
    liveness_asks_the_process_alone,
    variables_are_settings,
)


def _containers(found: Iterable[Workload]) -> Iterator[tuple[str, Container]]:
    for workload in found:
        for container in workload.containers:
            yield f"{workload.name}, container {container.name}", container


def _scores(container: Container) -> bool:
    return container.name == "worker"  # not by its image, which an overlay may call anything


def _beats(container: Container) -> bool:
    return container.name in ("worker", "sender")


def _serves(container: Container) -> bool:
    return container.name == "api"


def _grace(workload: Workload) -> int:
    return int(workload.pod.get("terminationGracePeriodSeconds", 30))  # Kubernetes' own default


def _seconds(variable: str, container: Container, settings: Settings) -> float:
    return float(container.environment.get(variable) or settings.defaults[variable])


def _pause(container: Container) -> float:
    handler = container.spec.get("lifecycle", {}).get("preStop", {})
    command = handler.get("exec", {}).get("command", ())
    if len(command) == 2 and command[0] == "sleep":
        return float(command[1])
    return float(handler.get("sleep", {}).get("seconds", 0))

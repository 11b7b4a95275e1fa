"""Alert rules and dashboard name what the gateway really tells."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, TypeVar

import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from jobs.live.workers import WorkerStats

from .conftest import Service

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "k8s" / "monitoring"
DASHBOARD = MONITORING / "dashboard.json"

Part = TypeVar("Part", bound=promql_parser.Expr)


def alerts() -> dict[str, Any]:
    """As a Prometheus without its operator reads them."""
    manifest: dict[str, Any] = yaml.safe_load((MONITORING / "prometheusrule.yaml").read_text())
    return {"groups": manifest["spec"]["groups"]}


def rules() -> list[dict[str, str]]:
    return [rule for group in alerts()["groups"] for rule in group["rules"]]


def test_every_metric_of_the_rules_is_one_of_ours(shared: Service) -> None:
    shared.submit()
    shared.client.get("/healthz")
    told = shared.client.get("/metrics").text
    wanted = {name for rule in rules() for name in re.findall(r"lobewise_[a-z_]+", rule["expr"])}
    assert len(wanted) > 5
    assert {name for name in wanted if not re.search(rf"^{name}[{{ ]", told, re.MULTILINE)} == set()


def test_every_alert_has_its_place_in_the_docs() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    assert [rule["alert"] for rule in rules() if f"`{rule['alert']}`" not in page] == []


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
@pytest.mark.parametrize("command", [("check", "rules", "alerts.yaml"), ("test", "rules", "alerts.test.yaml")])
def test_the_rules_fire_when_they_should(tmp_path: Path, command: tuple[str, ...]) -> None:
    (tmp_path / "alerts.yaml").write_text(yaml.safe_dump(alerts()))
    shutil.copy(MONITORING / "alerts.test.yaml", tmp_path)
    result = subprocess.run(["promtool", *command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
def test_the_metrics_are_named_as_prometheus_wants(shared: Service) -> None:
    told = shared.client.get("/metrics").text
    result = subprocess.run(["promtool", "check", "metrics"], input=told, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def panels() -> list[dict[str, Any]]:
    """All of the dashboard but the headings of its rows."""
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


def queries() -> list[tuple[dict[str, Any], str, promql_parser.Expr]]:
    """Each with its panel and its legend; Grafana's variables stand for a span of time."""
    return [
        (panel, target["legendFormat"], promql_parser.parse(re.sub(r"\$[a-z_]+", "15m", target["expr"])))
        for panel in panels()
        for target in panel["targets"]
    ]


def parts_of(query: promql_parser.Expr, kind: type[Part]) -> list[Part]:
    found: list[Part] = []

    def look(node: promql_parser.Expr) -> None:
        if isinstance(node, kind):
            found.append(node)

    promql_parser.walk(query, look)
    return found


def grouped_by(query: promql_parser.Expr) -> set[str]:
    sums = parts_of(query, promql_parser.AggregateExpr)
    return {label for each in sums if each.modifier is not None for label in each.modifier.labels}


@pytest.fixture(scope="module")
def labels_told(shared: Service) -> dict[str, set[str]]:
    """What a gateway really tells: the labels of each series; with a worker that has a GPU, and a job done."""
    shared.worker.succeed(shared.submit())
    worker_stats = WorkerStats(
        peak_memory_bytes=1, gpu_memory_used_bytes=1, gpu_memory_total_bytes=2, gpu_utilization_ratio=0.5
    )
    shared.jobs.worker.workers.announce("a worker", 60, worker_stats=worker_stats)
    shared.client.get("/healthz")
    told: dict[str, set[str]] = {"up": set()}
    for family in text_string_to_metric_families(shared.client.get("/metrics").text):
        for sample in family.samples:
            told.setdefault(sample.name, set()).update(sample.labels)
    return {name: {*labels, "job", "instance"} for name, labels in told.items()}


def test_every_query_of_the_dashboard_asks_for_what_we_tell(labels_told: dict[str, set[str]]) -> None:
    wanted = set()
    for _, legend, query in queries():
        series = parts_of(query, promql_parser.VectorSelector)
        names = {each.name for each in series}
        assert names <= labels_told.keys()
        for each in series:
            assert {matcher.name for matcher in each.matchers.matchers} <= labels_told[each.name]
        assert all(grouped_by(query) <= labels_told[name] for name in names)
        assert set(re.findall(r"{{(\w+)}}", legend)) <= grouped_by(query), legend
        wanted |= {family_of(name) for name in names}
    assert {family_of(name) for name in labels_told} - wanted == set(), "told, and shown nowhere"


def family_of(series: str) -> str:
    return re.sub("_(bucket|sum|count|created|total)$", "", series)


def test_every_panel_says_what_it_shows_and_lies_beside_the_others() -> None:
    shown = panels()
    for panel in shown:
        assert panel["title"]
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"]["uid"] == "${datasource}"
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])
    everything = json.loads(DASHBOARD.read_text())["panels"]
    numbers = [panel["id"] for panel in everything]
    assert len(set(numbers)) == len(numbers)
    assert len({panel["title"] for panel in everything}) == len(everything)
    places = [place for panel in everything for place in squares(**panel["gridPos"])]
    assert len(set(places)) == len(places)
    assert all(x < 24 for x, _ in places)


def squares(x: int, y: int, w: int, h: int) -> list[tuple[int, int]]:
    return [(column, line) for column in range(x, x + w) for line in range(y, y + h)]


def test_the_dashboard_s_variables_are_there() -> None:
    board = json.loads(DASHBOARD.read_text())
    there = {variable["name"] for variable in board["templating"]["list"]}
    asked = set(re.findall(r"\$\{?([a-z_]+)", DASHBOARD.read_text())) - {"__rate_interval"}
    assert asked == there == {"datasource", "window"}

"""Alert rules name what the gateway really tells."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from .conftest import Service

MONITORING = Path(__file__).parents[2] / "monitoring"


def rules() -> list[dict[str, str]]:
    return [
        rule for group in yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"] for rule in group["rules"]
    ]


def test_every_metric_of_the_rules_is_one_of_ours(shared: Service) -> None:
    shared.submit()
    shared.client.get("/healthz")
    told = shared.client.get("/metrics").text
    wanted = {name for rule in rules() for name in re.findall(r"lobewise_[a-z_]+", rule["expr"])}
    assert len(wanted) > 5
    assert {name for name in wanted if not re.search(rf"^{name}[{{ ]", told, re.MULTILINE)} == set()


def test_every_alert_has_its_place_in_the_docs() -> None:
    page = (MONITORING.parent / "docs" / "operations.md").read_text()
    assert [rule["alert"] for rule in rules() if f"`{rule['alert']}`" not in page] == []


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
def test_the_rules_fire_when_they_should() -> None:
    result = subprocess.run(
        ["promtool", "test", "rules", "alerts.test.yaml"], cwd=MONITORING, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
def test_the_metrics_are_named_as_prometheus_wants(shared: Service) -> None:
    told = shared.client.get("/metrics").text
    result = subprocess.run(["promtool", "check", "metrics"], input=told, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr

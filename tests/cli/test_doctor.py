"""The doctor on real parts: what is well, what is not, and what to do."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from cli.doctor import _clock
from cli.settings_page import page
from jobs import embedded_redis
from tests.support.collector import collecting

Run = Callable[..., "subprocess.CompletedProcess[str]"]
DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(autouse=True)
def _own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOBEWISE_DATA_DIR", str(tmp_path / "data"))
    for name in ("LOBEWISE_REDIS_URL", "REDIS_URL", "LOBEWISE_BLOB_URL"):
        monkeypatch.delenv(name, raising=False)


def verdicts(result: "subprocess.CompletedProcess[str]") -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for check in json.loads(result.stdout):
        found.setdefault(check["part"], []).append(check["verdict"])
    return found


def test_the_page_of_settings_is_the_code_s() -> None:
    assert (DOCS / "configuration.md").read_text(encoding="utf-8") == page()


def test_all_is_well_on_a_fresh_machine(lobewise: Run) -> None:
    result = lobewise("doctor", "--json")
    assert result.returncode == 0, result.stdout + result.stderr
    found = verdicts(result)
    stored = {"broker", "clock", "blobs", "files", "retention", "disk"}
    parts = {"settings", *stored, "access", "weights", "device", "sandbox"}
    assert set(found) == parts
    assert (found["files"], found["retention"]) == (["ok"], ["warning"])
    assert found["weights"] == ["ok"] * 3
    assert found["broker"] == ["ok"]


def test_files_that_others_may_read_are_told(lobewise: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As earlier versions made them; nobody changes them unasked."""
    monkeypatch.setenv("LOBEWISE_RETENTION_SECONDS", "86400")
    (blobs := tmp_path / "data" / "blobs" / "jobs").mkdir(parents=True)
    for folder in (blobs, blobs.parent, blobs.parent.parent):
        folder.chmod(0o755)
    found = {check["part"]: check for check in json.loads(lobewise("doctor", "--json").stdout)}
    assert found["files"]["verdict"] == "warning"
    assert str(tmp_path / "data" / "blobs") in found["files"]["found"]
    assert f"chmod -R go= {tmp_path / 'data'}" in found["files"]["advice"]
    assert (blobs.stat().st_mode & 0o777, found["retention"]["verdict"]) == (0o755, "ok")
    monkeypatch.setenv("LOBEWISE_UMASK", "022")
    assert verdicts(lobewise("doctor", "--json"))["files"] == ["ok"]


def test_hosts_that_clients_may_name_are_looked_up(lobewise: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOBEWISE_CALLBACK_ALLOWLIST", "http://127.0.0.1:9000 https://nowhere.invalid")
    assert verdicts(lobewise("doctor", "--json"))["outbound"] == ["ok"]


def test_a_collector_of_traces_is_asked_where_one_is_named(lobewise: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
        assert verdicts(lobewise("doctor", "--json"))["traces"] == ["ok"]
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    result = lobewise("doctor", "--json")
    assert (result.returncode, verdicts(result)["traces"], result.stderr) == (0, ["warning"], "")


def test_it_tells_who_may_call(lobewise: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def told() -> tuple[str, str]:
        (check,) = (check for check in json.loads(lobewise("doctor", "--json").stdout) if check["part"] == "access")
        return check["verdict"], check["found"]

    assert told() == ("ok", "open to this machine alone: there is no key and no issuer; no keys")
    monkeypatch.setenv("LOBEWISE_API_HOST", "0.0.0.0")  # noqa: S104 (nobody listens there)
    verdict, found = told()
    assert (verdict, "LOBEWISE_ACCESS=open" in found) == ("wrong", True)
    assert lobewise("keys", "create", "one").returncode == 0
    assert told() == ("ok", "a key or a token is required; 1 valid")


def test_it_speaks_to_people_in_one_line_a_part(lobewise: Run) -> None:
    lines = lobewise("doctor").stdout.splitlines()
    assert any(line.split()[:2] == ["ok", "blobs"] for line in lines)
    assert all(len(line.split()) > 2 for line in lines)


def test_a_broker_that_is_down_is_told_and_hides_nothing_else(lobewise: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOBEWISE_REDIS_URL", "redis://127.0.0.1:1/0")
    result = lobewise("doctor", "--json")
    found = verdicts(result)
    assert result.returncode == 1
    assert found["broker"] == ["wrong"]
    assert found["blobs"] == ["ok"]


def test_a_broker_that_forgets_is_told(lobewise: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = embedded_redis.join(tmp_path / "valkey")
    try:
        with redis.Redis.from_url(server.url) as client:
            client.config_set("maxmemory-policy", "allkeys-lru")
            client.config_set("appendonly", "no")
        monkeypatch.setenv("LOBEWISE_REDIS_URL", server.url)
        result = lobewise("doctor", "--json")
        assert result.returncode == 1
        assert sorted(verdicts(result)["broker"]) == ["ok", "warning", "wrong"]
    finally:
        server.close()


def test_other_weights_than_the_shipped_are_told(
    lobewise: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOBEWISE_WEIGHTS_DIR", str(tmp_path))
    result = lobewise("doctor", "--json")
    assert result.returncode == 1
    assert verdicts(result)["weights"] == ["wrong"] * 3


@pytest.mark.parametrize("command", ["doctor", "api", "worker", "serve"])
def test_a_wrong_setting_ends_in_a_sentence(command: str, lobewise: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOBEWISE_LEASE_SECONDS", "soon")
    result = lobewise(command)
    assert result.returncode == (1 if command == "doctor" else 2)
    said = result.stdout + result.stderr
    assert "LOBEWISE_LEASE_SECONDS is 'soon'" in said
    assert "Traceback" not in said


def test_a_misspelt_variable_is_a_warning(lobewise: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOBEWISE_LEASE_SECOND", "3")
    result = lobewise("doctor", "--json")
    assert result.returncode == 0
    assert "Do you mean LOBEWISE_LEASE_SECONDS?" in json.loads(result.stdout)[0]["found"]


@pytest.mark.parametrize(("skew", "result"), [(0.0, "ok"), (-29.0, "ok"), (31.0, "wrong"), (-3600.0, "wrong")])
def test_clocks_may_differ_by_half_a_minute(skew: float, result: str) -> None:
    assert _clock("broker", skew).result == result

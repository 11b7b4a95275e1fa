"""`lobewise audit` over a trail in a folder, as an operator calls it."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cli.app import app
from jobs.audit.entries import AUDIT, Act, Entry
from jobs.bootstrap import Connection, connect
from jobs.settings import JobsSettings

Call = Callable[..., Result]


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connection]:
    jobs = connect(JobsSettings(data_dir=tmp_path_factory.mktemp("audit")))
    trail = jobs.backends.audit
    assert trail is not None
    for tenant in ("default", "radiology"):
        trail.record_stored(Entry(Act.DELETE, tenant=tenant, subject="key", kind="job", id=f"of {tenant}"))
    yield jobs
    jobs.close()


@pytest.fixture
def audit(jobs: Connection, monkeypatch: pytest.MonkeyPatch) -> Call:
    monkeypatch.setenv("LOBEWISE_DATA_DIR", str(jobs.settings.data_dir))
    return lambda *arguments: CliRunner().invoke(app, ["audit", *map(str, arguments)])


def test_a_right_trail_is_said_to_be_right_and_its_heads_pin_it(audit: Call, tmp_path: Path) -> None:
    result = audit("verify")
    assert result.exit_code == 0, result.output
    assert "1 chains, 2 segments, 3 entries; 1 heads known" in " ".join(result.stdout.split())
    kept = tmp_path / "heads.txt"
    kept.write_text(audit("heads").stdout)
    assert audit("verify", "--heads", kept).exit_code == 0
    kept.write_text(kept.read_text().replace(" 3 ", " 4 "))
    assert audit("verify", "--heads", kept).exit_code == 1
    kept.write_text("nonsense\n")
    assert audit("verify", "--heads", kept).exit_code == 2


def test_a_changed_entry_is_named_and_fails(audit: Call, jobs: Connection) -> None:
    blobs = jobs.backends.store.blobs
    key = sorted(blobs.keys(AUDIT))[1]
    data = blobs.read(key) or b""
    try:
        blobs.write(key, data.replace(b"of radiology", b"of nobody"))
        result = audit("verify")
        assert result.exit_code == 1
        assert "entry 3: segment 2: it was changed" in " ".join(result.output.split())
        found = json.loads(audit("verify", "--json").stdout.partition("\nThe audit")[0].strip())
        assert (found["faults"][0]["n"], found["entries"]) == (3, 2)
        blobs.delete(key)
        assert "Redis" in audit("verify").output
    finally:
        blobs.write(key, data)
    assert audit("verify").exit_code == 0


def test_an_export_has_a_line_an_entry(audit: Call) -> None:
    lines = [json.loads(line) for line in audit("export").stdout.splitlines()]
    assert [line.get("id") for line in lines] == [None, "of default", "of radiology"]
    assert all(line["chain"] for line in lines)
    one = audit("export", "--tenant", "radiology", "--format", "fhir")
    (event,) = [json.loads(line) for line in one.stdout.splitlines()]
    assert (event["resourceType"], event["action"], event["outcome"]) == ("AuditEvent", "D", "0")
    assert audit("export", "--until", "2026-01-01").stdout == ""

"""`lobewise keys`: what is printed where, and what it says to what cannot be."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from cli.app import app
from jobs.access.caller import Role
from jobs.access.keys import KEY, KeyRing, Keys
from jobs.audit.verification import entries, verify
from jobs.bootstrap import blobs_of
from jobs.settings import JobsSettings


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOBEWISE_DATA_DIR", str(tmp_path))


def said(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["keys", *arguments])


def listed(*arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(said("list", "--json", *arguments).stdout)
    return found


def ring() -> KeyRing:
    known = KeyRing(blobs_of(JobsSettings()))
    known.refresh()
    return known


def test_a_key_is_printed_alone_and_once() -> None:
    made = said("create", "PACS router", "--role", "submit", "--role", "read", "--tenant", "radiology")
    assert made.exit_code == 0, made.output
    key = made.stdout.strip()
    assert KEY.fullmatch(key)
    assert "It is the first" in made.stderr
    assert key not in made.stderr
    caller = ring().find(key)
    assert caller is not None
    assert (caller.tenant, caller.roles) == ("radiology", {Role.SUBMIT, Role.READ})
    (row,) = listed()
    assert caller.subject == row["id"]
    life = datetime.fromisoformat(row["ends_at"]) - datetime.now(UTC)
    assert timedelta(days=364) < life < timedelta(days=366)
    shown = said("list").stdout
    assert row["id"] in shown
    assert key.split("_")[2] not in shown + json.dumps(row)
    assert "It is the first" not in said("create", "another").stderr


def test_a_key_is_replaced_and_revoked() -> None:
    old = said("create", "viewer", "--role", "read", "--expires", "never").stdout.strip()
    (row,) = listed()
    assert row["ends_at"] is None
    new = said("rotate", row["id"], "--overlap", "2h").stdout.strip()
    known = ring()
    assert known.find(old) is not None
    assert known.find(new) is not None
    rows = {row["id"]: row for row in listed()}
    assert len(rows) == 2
    assert rows[row["id"]]["ends_at"] is not None
    (after,) = (found for found in rows.values() if found["replaces"] == row["id"])
    assert said("revoke", after["id"]).exit_code == 0
    assert ring().find(new) is None
    assert [found["status"] for found in listed("--all")] == ["valid", "revoked"]
    assert said("rotate", after["id"]).exit_code == 2
    # At once.
    last = said("rotate", row["id"], "--overlap", "0h").stdout.strip()
    assert (ring().find(old), ring().find(last) is not None) == (None, True)


@pytest.mark.parametrize(
    "arguments",
    [
        ("create", "x", "--tenant", "Radiology"),
        ("create", "x", "--tenant", "a/../b"),
        ("create", "x", "--role", "god"),
        ("create", "x", "--expires", "soon"),
        ("create", "x", "--expires", "2020-01-01"),
        ("create", "x" * 201),
        ("revoke", "0" * 16),
        ("revoke", "../../jobs"),
        ("rotate", "0" * 16),
    ],
    ids=" ".join,
)
def test_what_cannot_be_is_said_and_changes_nothing(arguments: tuple[str, ...]) -> None:
    result = said(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert listed("--all") == []


def test_a_stored_key_of_a_later_version_opens_nothing_and_harms_nobody(tmp_path: Path) -> None:
    key = said("create", "known").stdout.strip()
    strange = tmp_path / "blobs" / "access" / "keys" / ("f" * 16) / "key.json"
    for content in ('{"schema_version": "9.0"}', "not JSON", '{"id": "x"}'):
        strange.parent.mkdir(exist_ok=True)
        strange.write_text(content)
        assert ring().find(key) is not None
        assert len(Keys(blobs_of(JobsSettings())).all()) == 1


def test_who_made_and_ended_keys_is_in_the_audit_trail() -> None:
    said("create", "viewer", "--role", "read", "--tenant", "radiology")
    (old,) = listed()
    said("rotate", old["id"])
    (new,) = [row for row in listed() if row["id"] != old["id"]]
    said("revoke", new["id"])
    blobs = blobs_of(JobsSettings())
    found = [(e["act"], e["id"], e["tenant"]) for e in entries(blobs) if e.get("kind") == "key"]
    assert found == [
        ("create-key", old["id"], "radiology"),
        ("create-key", new["id"], "radiology"),
        ("revoke-key", old["id"], "radiology"),
        ("revoke-key", new["id"], "radiology"),
    ]
    assert verify(blobs).faults == []
    assert b"viewer" not in b"".join(blobs.read(key) or b"" for key in blobs.keys("audit/"))

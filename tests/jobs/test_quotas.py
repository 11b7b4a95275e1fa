"""Whose limit is what, and sentences about a file that cannot be meant."""

import os
from pathlib import Path

import pytest

from jobs.errors import SettingsError
from jobs.quotas import Owner, Quota, Quotas
from jobs.settings import JobsSettings

CLINIC, KEY = Owner("tenant", "clinic"), Owner("key", "4f1c")


def quotas(tmp_path: Path, text: str, **defaults: int) -> Quotas:
    (tmp_path / "quotas.toml").write_text(text)
    return Quotas(JobsSettings(quotas_file=tmp_path / "quotas.toml", **defaults))  # type: ignore[arg-type]


def test_by_default_nothing_is_limited() -> None:
    found = Quotas(JobsSettings())
    assert {found.limit(owner, quota) for owner in (CLINIC, KEY) for quota in Quota} == {0}


def test_the_file_goes_before_the_settings_and_0_lifts_a_limit(tmp_path: Path) -> None:
    text = "[tenants.clinic]\nrequests_per_minute = 600\nwaiting_jobs = 0\n[keys.4f1c]\nrequests_per_minute = 6\n"
    found = quotas(tmp_path, text, quota_requests_per_minute=60, quota_waiting_jobs=9, key_quota_requests_per_minute=30)
    assert found.limit(CLINIC, Quota.REQUESTS) == 600
    assert found.limit(CLINIC, Quota.WAITING_JOBS) == 0
    assert found.limit(Owner("tenant", "other"), Quota.REQUESTS) == 60
    assert found.limit(Owner("tenant", "other"), Quota.WAITING_JOBS) == 9
    assert found.limit(KEY, Quota.REQUESTS) == 6
    assert found.limit(Owner("key", "other"), Quota.REQUESTS) == 30
    assert found.limit(KEY, Quota.WAITING_JOBS) == 0


def test_a_changed_file_holds_soon_and_a_broken_one_never(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.quotas.REREAD_SECONDS", 0.0)
    found, file = quotas(tmp_path, "[tenants.clinic]\nrunning_jobs = 1\n"), tmp_path / "quotas.toml"
    for text, expected in (("[tenants.clinic]\nrunning_jobs = 22\n", 22), ("nonsense", 22), ("", 0)):
        file.write_text(text)
        os.utime(file, (0, file.stat().st_mtime + 1 + len(text)))
        assert found.limit(CLINIC, Quota.RUNNING_JOBS) == expected
    file.unlink()
    assert found.limit(CLINIC, Quota.RUNNING_JOBS) == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("requests = 5", ["requests", "[tenants.NAME]"]),
        ("[tenants.clinic]\nrequests_per_hour = 5", ["tenants.clinic.requests_per_hour", "requests_per_minute"]),
        ("[tenants.clinic]\nwaiting_jobs = -1", ["tenants.clinic.waiting_jobs", "greater than or equal to 0"]),
        ("[tenants.clinic]\nwaiting_jobs = '9'", ["tenants.clinic.waiting_jobs", "integer"]),
        ("[tenants.'Clinic A']\nwaiting_jobs = 1", ["tenants.Clinic A"]),
        ("[keys.4f1c]\nrunning_jobs = 1", ["keys.4f1c.running_jobs"]),
        ("[tenants", ["is not TOML"]),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused_with_a_sentence(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(SettingsError) as error:
        quotas(tmp_path, text)
    assert str(error.value).startswith("LOBEWISE_QUOTAS_FILE")
    for word in words:
        assert word in str(error.value)


def test_a_file_that_is_not_there_is_refused_with_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        Quotas(JobsSettings(quotas_file=tmp_path / "missing.toml"))

"""What an operator is told about settings."""

from pathlib import Path

import pytest
from pydantic_settings import BaseSettings

from jobs.errors import SettingsError
from jobs.settings import ApiSettings, JobsSettings, misspelt, read_settings, variables


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOBEWISE_REDIS_URL", raising=False)
    monkeypatch.delenv("REDIS_URL", raising=False)


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("LOBEWISE_LEASE_SECONDS", "soon", "LOBEWISE_LEASE_SECONDS is 'soon': input should be a valid number"),
        ("LOBEWISE_MAX_ATTEMPTS", "0", "LOBEWISE_MAX_ATTEMPTS is '0': input should be greater than 0"),
        ("LOBEWISE_LUNG_STAGE", "magic", "LOBEWISE_LUNG_STAGE is 'magic': input should be 'di2in' or 'lungmask'"),
        ("LOBEWISE_BLOB_URL", "gs://x", "LOBEWISE_BLOB_URL is 'gs://x': it must begin with file:/// or s3://"),
        ("LOBEWISE_HEARTBEAT_SECONDS", "60", "LOBEWISE_HEARTBEAT_SECONDS (60) must be below LOBEWISE_LEASE_SECONDS"),
    ],
)
def test_a_wrong_value_is_named_with_what_it_must_be(
    name: str, value: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        read_settings(JobsSettings)
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize("name", ["LOBEWISE_REDIS_URL", "REDIS_URL"])
def test_what_may_hold_a_password_is_not_repeated(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "http://:hunter2@queue")
    with pytest.raises(SettingsError) as caught:
        read_settings(JobsSettings)
    assert str(caught.value).startswith("LOBEWISE_REDIS_URL: it must begin with redis://")
    assert "hunter2" not in str(caught.value)


def test_several_wrong_values_are_all_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOBEWISE_API_PORT", "70000")
    monkeypatch.setenv("LOBEWISE_API_MAX_WAITING", "-1")
    with pytest.raises(SettingsError, match=r"LOBEWISE_API_PORT is '70000'.*LOBEWISE_API_MAX_WAITING is '-1'"):
        read_settings(ApiSettings)


@pytest.mark.parametrize("file_name", ["LOBEWISE_SIGNING_KEY", "lobewise_signing_key"])
def test_secrets_come_from_files_and_the_environment_goes_first(
    file_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / file_name).write_text("f" * 40 + "\n")
    (tmp_path / "LOBEWISE_REDIS_URL").write_text("redis://:secret@queue:6379/0")
    monkeypatch.setenv("LOBEWISE_SECRETS_DIR", str(tmp_path))
    settings = read_settings(JobsSettings)
    assert settings.signing_key is not None
    assert settings.signing_key.get_secret_value() == "f" * 40
    assert settings.redis_url == "redis://:secret@queue:6379/0"
    monkeypatch.setenv("LOBEWISE_SIGNING_KEY", "e" * 40)
    again = read_settings(JobsSettings).signing_key
    assert again is not None
    assert again.get_secret_value() == "e" * 40


def test_a_folder_of_secrets_that_is_not_there_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOBEWISE_SECRETS_DIR", "/nowhere/at/all")
    with pytest.raises(SettingsError, match="LOBEWISE_SECRETS_DIR is '/nowhere/at/all': there is no such folder"):
        read_settings(JobsSettings)


def test_a_misspelt_variable_is_named_with_the_nearest() -> None:
    environment = {"LOBEWISE_LEASE_SECOND": "3", "LOBEWISE_API_PORT": "1", "LOBEWISE_SERVICE": "x", "PATH": "/bin"}
    assert misspelt((JobsSettings, ApiSettings), environment) == [
        "LOBEWISE_LEASE_SECOND sets nothing. Do you mean LOBEWISE_LEASE_SECONDS?"
    ]


def test_workers_do_not_judge_the_gateways_variables() -> None:
    environment = {"LOBEWISE_API_HOST": "0.0.0.0", "LOBEWISE_API_HOTS": "x"}  # noqa: S104 (not listened on)
    assert misspelt((JobsSettings,), environment) == []
    assert [sentence.split()[0] for sentence in misspelt((JobsSettings, ApiSettings), environment)] == [
        "LOBEWISE_API_HOTS"
    ]


@pytest.mark.parametrize("kind", [JobsSettings, ApiSettings])
def test_every_variable_says_what_it_is_for(kind: type[BaseSettings]) -> None:
    assert [variable.name for variable in variables(kind) if not variable.description] == []

"""Entries of an allow-list that could never match stop the start."""

import pytest

from jobs.allowlist import is_allowed
from jobs.errors import SettingsError
from jobs.settings import JobsSettings, read_settings


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("pacs.example/ct", "it must begin with https:// or s3://"),
        ("pacs.example:8443/ct", "it must begin with https:// or s3://"),
        ("ftp://pacs.example/ct", "it must begin with https:// or s3://"),
        ("http://pacs.example/ct", "it must begin with https:// or s3://"),
        ("https:///ct", "it has no host"),
        ("https://*.pacs.example/", "* is no wildcard here"),
        ("https://pacs.example/ct/*", "* is no wildcard here"),
        ("https://user@pacs.example/ct", "it has credentials"),
        ("https://pacs.example/ct?x=1", "it has a query or a fragment"),
        ("https://pacs.example/ct#x", "it has a query or a fragment"),
        ("https://pacs.example/ct/../x", "its path has . or .."),
        ("https://pacs.example/ct/%2e%2e/x", "its path has . or .."),
        ("https://pacs.example/schädel", "it has characters that must be written as %XX"),
        ("s3://büro/in", "it has characters that must be written as %XX"),
        ("https://pacs.example:port/", "Port could not be cast"),
        ("https://[::1/", "Invalid IPv6 URL"),
        ("s3://scans:80/in", "a bucket has no port"),
    ],
)
def test_an_entry_that_can_never_match_is_named_with_its_reason(
    entry: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOBEWISE_SOURCE_ALLOWLIST", f"https://right.example/ {entry}")
    with pytest.raises(SettingsError) as caught:
        read_settings(JobsSettings)
    assert str(caught.value).startswith("LOBEWISE_SOURCE_ALLOWLIST is ")
    assert f"{entry!r} can never match: {reason}" in str(caught.value)


def test_callbacks_have_other_schemes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOBEWISE_CALLBACK_ALLOWLIST", "http://127.0.0.1:9000/ended https://[fd00::7]:8443")
    read_settings(JobsSettings)
    monkeypatch.setenv("LOBEWISE_CALLBACK_ALLOWLIST", "s3://scans/in")
    with pytest.raises(SettingsError, match=r"LOBEWISE_CALLBACK_ALLOWLIST is .* begin with https:// or http://"):
        read_settings(JobsSettings)


@pytest.mark.parametrize(
    ("entry", "url"),
    [
        ("HTTPS://PACS.Example/ct", "https://pacs.example/ct/1"),
        ("https://pacs.example:443/ct", "https://PACS.example/ct/1"),
        ("https://pacs.example/ct/", "HTTPS://pacs.example:443/ct/1"),
        ("https://klinik-münchen.example/ct", "https://xn--klinik-mnchen-3ob.example/ct/1"),
    ],
)
def test_hosts_match_whatever_their_capitals_port_and_spelling(entry: str, url: str) -> None:
    assert is_allowed(url, JobsSettings(source_allowlist=(entry,)).source_allowlist)


def test_the_path_of_a_host_and_the_name_of_a_bucket_keep_their_capitals() -> None:
    assert not is_allowed("https://pacs.example/CT/1", ["https://pacs.example/ct"])
    assert not is_allowed("s3://SCANS/in/1", ["s3://scans/in"])

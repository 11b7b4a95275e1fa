"""Entries of an allow-list that could never match stop the start."""

import time

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
        ("https://pacs.example:0/ct", "0 is no port"),
        ("https://pacs.example/ct/..;/x", "its path has . or .."),
        ("https://pacs.example/ct/%5c..%5cx", "its path has . or .."),
        ("https://2130706433/ct", "its host is none that DNS has"),
        ("https://0x7f.1/ct", "its host is none that DNS has"),
        ("https://0177.0.0.1/ct", "its host is none that DNS has"),
        ("https://127.1/ct", "its host is none that DNS has"),
        ("https://0.0.0.0/ct", "its host is none that DNS has"),
        ("https://[::]/ct", "its host is none that DNS has"),
        ("https://.pacs.example/ct", "its host is none that DNS has"),
        ("https://pacs..example/ct", "its host is none that DNS has"),
        (f"https://{'x' * 64}.example/ct", "its host is none that DNS has"),
        ("https://pacs.example,other.example/ct", "its host is none that DNS has"),
        ("https://10.0.0.0/8", "it names a network"),
        ("https://[fd00::]/32", "it names a network"),
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


@pytest.mark.parametrize(
    "entry",
    [
        "https://s3.amazonaws.com",
        "https://s3.eu-central-1.amazonaws.com/",
        "https://s3-eu-west-1.amazonaws.com/",
        "https://s3.dualstack.us-east-1.amazonaws.com/",
        "https://storage.googleapis.com/",
        "https://raw.githubusercontent.com/",
    ],
)
def test_an_entry_that_allows_the_files_of_everybody_is_refused(entry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOBEWISE_SOURCE_ALLOWLIST", entry)
    with pytest.raises(SettingsError, match=r"LOBEWISE_SOURCE_ALLOWLIST is .* allows the files of everybody"):
        read_settings(JobsSettings)
    monkeypatch.setenv("LOBEWISE_SOURCE_ALLOWLIST", f"{entry.rstrip('/')}/our-scans")
    read_settings(JobsSettings)


@pytest.mark.parametrize(
    "entry", ["https://pacs/", "https://10.1.2.3/ct", "https://[fd00::7]/1", "https://a_b.example"]
)
def test_entries_of_intranets_are_taken(entry: str) -> None:
    assert JobsSettings(source_allowlist=(entry,)).source_allowlist == (entry,)


def test_a_path_that_is_encoded_without_end_is_refused_at_once() -> None:
    path = "%" + "25" * 50_000 + "2e"
    begin = time.monotonic()
    assert not is_allowed(f"https://pacs.example/ct/{path}", ["https://pacs.example/ct"])
    assert time.monotonic() - begin < 0.5


@pytest.mark.parametrize(
    ("entry", "is_taken"),
    [
        ("s3://lobewise", False),
        ("s3://lobewise/", False),
        ("s3://lobewise/scans", False),
        ("s3://lobewise/scans/jobs", False),
        ("s3://lobewise/scans/tenants/clinic-a/jobs", False),
        ("s3://lobewise/scans/uploads/", False),
        ("s3://lobewise/incoming", True),
        ("s3://lobewise/scans/incoming", True),
        ("s3://lobewise/scans-of-ours", True),
        ("s3://other/scans", True),
        ("https://pacs.example/scans", True),
    ],
)
def test_no_source_is_a_record_of_the_service(entry: str, is_taken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever may name a source would read scans of others with the service's own key."""
    monkeypatch.setenv("LOBEWISE_BLOB_URL", "s3://lobewise/scans")
    monkeypatch.setenv("LOBEWISE_SOURCE_ALLOWLIST", entry)
    if is_taken:
        assert read_settings(JobsSettings).source_allowlist == (entry,)
        return
    with pytest.raises(SettingsError, match="which allows records of LOBEWISE_BLOB_URL"):
        read_settings(JobsSettings)

"""What the client makes of folders and of services that do not answer; the rest is tested end to end."""

import zipfile
from pathlib import Path

import pytest

from cli.client import ServiceClient, ServiceError, _as_upload
from cli.local import free_port


def test_a_file_is_sent_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "scan").write_bytes(b"content")
    with _as_upload(tmp_path / "scan") as (stream, size):
        assert (stream.read(), size) == (b"content", 7)


def test_a_folder_is_zipped_without_its_names(tmp_path: Path) -> None:
    folder = tmp_path / "Doe^Jane"
    (folder / "series").mkdir(parents=True)
    (folder / "series" / "Doe^Jane-1.dcm").write_bytes(b"one")
    (folder / "series" / "Doe^Jane-2.dcm").write_bytes(b"two" * 1000)
    (folder / "link").symlink_to("/etc/passwd")
    with _as_upload(folder) as (stream, size):
        content = stream.read()
        assert len(content) == size
        with zipfile.ZipFile(stream) as archive:
            assert archive.namelist() == ["000000", "000001"]
            assert archive.read("000001") == b"two" * 1000
    assert b"Jane" not in content


def test_a_service_that_does_not_answer_is_named(tmp_path: Path) -> None:
    (tmp_path / "scan").write_bytes(b"content")
    address = f"http://127.0.0.1:{free_port()}"
    with ServiceClient(address) as client:
        assert not client.is_ready()
        with pytest.raises(ServiceError, match=address):
            client.submit(tmp_path / "scan", "routine", lambda _sent, _size: None)

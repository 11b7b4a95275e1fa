"""Zip files that mean harm."""

import os
import stat
import struct
import zipfile
from pathlib import Path

import pytest

from pipeline.errors import DamagedFileError, PipelineError, ScanTooLargeError, UnsupportedFormatError
from pipeline.io.formats.archive import members_of_folder, members_of_zip, open_zip
from pipeline.io.formats.content import Content
from pipeline.io.formats.limits import SizeLimits
from pipeline.io.formats.scan import _read as read

LIMITS = SizeLimits(max_voxels=10**6, max_bytes=10**6, max_files=20)


def zipped(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def open_all(path: Path, work: Path, limits: SizeLimits = LIMITS) -> list[bytes]:
    with open_zip(path, limits) as archive:
        members = list(members_of_zip(archive, limits))
        return [m.as_file(work / str(i)).read_bytes() for i, m in enumerate(members)]


def test_members_are_copied_under_names_of_ours(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    contents = open_all(zipped(tmp_path / "x.zip", **{"a/b": b"first", "a/c": b"second"}), work)
    assert contents == [b"first", b"second"]
    assert sorted(path.name for path in work.iterdir()) == ["0", "1"]


@pytest.mark.parametrize(
    "name", ["../up", "a/../../up", "/etc/cron.d/x", "..\\up", "C:\\windows\\x", "c:/x", "\\\\host\\x", "a/.."]
)
def test_names_that_lead_out_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(DamagedFileError, match="lead out"):
        open_all(zipped(tmp_path / "x.zip", **{name: b"x"}), tmp_path)


def test_links_are_refused(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("scan.nii")
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(DamagedFileError, match="links"):
        open_all(tmp_path / "x.zip", tmp_path)


def test_links_within_a_program_are_left_out(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("Viewer.app/Contents/Current")
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(info, "A")
    assert open_all(tmp_path / "x.zip", tmp_path) == []


def test_encrypted_members_are_refused(tmp_path: Path) -> None:
    content = bytearray(zipped(tmp_path / "x.zip", scan=b"secret").read_bytes())
    for signature, flags_at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + flags_at] |= 1
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(UnsupportedFormatError, match="encrypted"):
        open_all(tmp_path / "x.zip", tmp_path)


def test_a_zip_that_holds_nothing_but_a_zip_is_refused(tmp_path: Path) -> None:
    inner = zipped(tmp_path / "inner.zip", scan=b"x").read_bytes()
    path = zipped(tmp_path / "x.zip", **{"scan.dcm": inner, "read.me": b"x"})
    with pytest.raises(UnsupportedFormatError, match="another zip"):
        read(path, tmp_path, LIMITS)


def test_zips_beside_a_scan_are_left_out(tmp_path: Path) -> None:
    inner = zipped(tmp_path / "inner.zip", scan=b"x").read_bytes()
    names = {"VIEWER/weasis.jar": inner, "report.docx": inner, "scan": b"NRRD0004\n"}
    with pytest.raises(PipelineError, match="NRRD"):  # it was the NRRD that was read
        read(zipped(tmp_path / "x.zip", **names), tmp_path, LIMITS)


@pytest.mark.parametrize("name", ["CT 12:30/1", "a:b", "1:/x:y", "CT\\SE000\\1", "T:30/1"])
def test_colons_and_backslashes_in_names_are_fine(name: str, tmp_path: Path) -> None:
    assert open_all(zipped(tmp_path / "x.zip", **{name: b"x"}), tmp_path) == [b"x"]


@pytest.mark.parametrize("name", ["DICOMDIR", "CD\\dicomdir", "__MACOSX\\._1", "a/.DS_Store"])
def test_litter_is_left_out(name: str, tmp_path: Path) -> None:
    assert open_all(zipped(tmp_path / "x.zip", **{name: b"x"}), tmp_path) == []


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_unusual_compression_is_refused(method: int, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w", method) as archive:
        archive.writestr("scan", bytes(1000))
    with pytest.raises(UnsupportedFormatError, match="deflate"):
        open_all(tmp_path / "x.zip", tmp_path)


def test_a_bomb_is_known_by_what_it_declares(tmp_path: Path) -> None:
    bomb = zipped(tmp_path / "x.zip", scan=bytes(5 * 10**6))
    assert bomb.stat().st_size < 10_000
    with pytest.raises(ScanTooLargeError, match="5000000 bytes"):
        open_all(bomb, tmp_path)


def test_bombs_add_up(tmp_path: Path) -> None:
    bomb = zipped(tmp_path / "x.zip", **{f"s{i}": bytes(10**5) for i in range(11)})
    with pytest.raises(ScanTooLargeError, match="1100000 bytes"):
        open_all(bomb, tmp_path)


def test_a_bomb_that_declares_little_is_stopped_at_what_it_declares(tmp_path: Path) -> None:
    content = bytearray(zipped(tmp_path / "x.zip", scan=bytes(5 * 10**6)).read_bytes())
    for signature, size_at in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        struct.pack_into("<I", content, content.index(signature) + size_at, 5000)
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(DamagedFileError):
        open_all(tmp_path / "x.zip", tmp_path)
    assert not (tmp_path / "0").exists() or (tmp_path / "0").stat().st_size <= 5000


def test_too_many_files(tmp_path: Path) -> None:
    crowd = zipped(tmp_path / "x.zip", **{f"s{i}": b"" for i in range(21)})
    with pytest.raises(ScanTooLargeError, match="21 files"):
        open_all(crowd, tmp_path)


@pytest.mark.parametrize("kept", [30, 60, -1])
def test_a_zip_cut_short(kept: int, tmp_path: Path) -> None:
    whole = zipped(tmp_path / "x.zip", scan=os.urandom(1000)).read_bytes()
    (tmp_path / "x.zip").write_bytes(whole[:kept])
    with pytest.raises(DamagedFileError, match="damaged or cut short"):
        open_all(tmp_path / "x.zip", tmp_path)


def test_a_member_with_a_wrong_checksum(tmp_path: Path) -> None:
    content = bytearray(zipped(tmp_path / "x.zip", scan=os.urandom(9000)).read_bytes())
    content[5000] ^= 1
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(PipelineError, match="cannot be unpacked"):
        open_all(tmp_path / "x.zip", tmp_path)


def test_links_in_a_folder_are_not_followed(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.nrrd").write_bytes(b"NRRD0004\n")
    (folder / "b").symlink_to("/etc/passwd")
    (folder / ".hidden").write_bytes(b"NRRD0004\n")
    members = list(members_of_folder(folder, LIMITS))
    assert [(m.as_file(tmp_path / "x").name, m.content) for m in members] == [("a.nrrd", Content.NRRD)]

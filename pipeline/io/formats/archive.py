"""Zip files and folders as members that are safe to open.

A zip may not lead out of itself (absolute or `..` names, links), may not be encrypted, and each of its bytes belongs to
one member at most. A zip within it is a member
like any other that is no scan: viewers on patient CDs are full of them (.jar, .docx). Members are copied under names of
ours, so that no name of theirs ever meets the file system.
"""

import io
import os
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from pipeline.errors import DamagedFileError, ScanTooLargeError, UnsupportedFormatError
from pipeline.io.formats.content import HEAD_BYTES, Content, identify
from pipeline.io.formats.gate import require_ratio
from pipeline.io.formats.limits import SizeLimits

_COPY_BYTES: Final = 1 << 20
_ENCRYPTED: Final = 0x1
_DRIVE: Final = re.compile(r"[A-Za-z]:[\\/]")
#: Of a local header, before the member's name.
_LOCAL_HEADER_BYTES: Final = 30
#: What an entry of the directory takes, its name and the fields of some packers with it; most take 100.
_MOST_ENTRY_BYTES: Final = 1024
#: What `zipfile` reads at once besides the directory: the end of the file, where its end record is.
_END_BYTES: Final = (1 << 16) + 1024
#: What `zipfile` raises on members that are damaged; ValueError where a local name is no UTF-8.
_FAULTS: Final = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError)
_METHODS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


@dataclass(frozen=True)
class FileMember:
    """A file that lies somewhere already: in a folder, or alone."""

    path: Path
    content: Content

    def as_file(self, target: Path) -> Path:  # noqa: ARG002 (a zip's member needs it)
        """Where it lies."""
        return self.path


@dataclass(frozen=True)
class ZipMember:
    """A file in a zip."""

    archive: zipfile.ZipFile
    info: zipfile.ZipInfo
    content: Content

    def as_file(self, target: Path) -> Path:
        """Copy it to `target`; no more than it declares, which the limits were checked against."""
        try:
            with self.archive.open(self.info) as source, target.open("wb") as copy:
                while copy.tell() <= self.info.file_size and (block := source.read(_COPY_BYTES)):
                    copy.write(block)
        except _FAULTS as error:
            raise DamagedFileError("The zip is damaged: a member cannot be unpacked.") from error
        return target


Member = FileMember | ZipMember


def members_of_folder(folder: Path, limits: SizeLimits) -> Iterator[Member]:
    """Every regular file below `folder`; links are not followed."""
    found = (Path(root, name) for root, _, names in os.walk(folder) for name in names if not _is_litter((name,)))
    paths = sorted(path for path in found if path.is_file() and not path.is_symlink())
    limits.check_files(len(paths))
    limits.check_bytes(sum(path.stat().st_size for path in paths))
    for path in paths:
        with path.open("rb") as file:
            yield FileMember(path, identify(file.read(HEAD_BYTES)))


def members_of_zip(archive: zipfile.ZipFile, limits: SizeLimits) -> Iterator[Member]:
    """Every file in `archive`, after all of them were checked.

    Raises:
        DamagedFileError: a member's name leads out of the zip, or it is a link, or members overlap.
        UnsupportedFormatError: a member is encrypted, or is compressed in an unusual way.
        ScanTooLargeError: too many members, or too many bytes once unpacked.
    """
    # Members that share bytes unpack to millions of times the size of the file, and no packer writes them.
    entries = sorted(archive.infolist(), key=lambda info: info.header_offset)
    ends = [*(info.header_offset for info in entries[1:]), archive.start_dir]
    for info, end in zip(entries, ends, strict=False):  # an empty zip has the directory's end alone
        if info.header_offset < 0 or info.header_offset + _LOCAL_HEADER_BYTES + info.compress_size > end:
            raise DamagedFileError(
                "The zip is damaged: its members overlap, or lie outside of it. Pack the files anew.",
                evidence={"members": len(entries)},
            )
    infos = [info for info in archive.infolist() if not info.filename.endswith("/")]  # `is_dir` fails without a name
    limits.check_files(len(infos))
    wanted = []
    for info in infos:
        name = PurePosixPath(info.filename.replace("\\", "/"))
        # Colons are fine elsewhere: folders are named by the time of the scan.
        if not name.parts or name.is_absolute() or ".." in name.parts or _DRIVE.match(info.filename):
            raise DamagedFileError("The zip holds names that lead out of it; send files with relative names.")
        if stat.S_ISLNK(info.external_attr >> 16):
            # Programs for macOS hold links to their own parts.
            if any(part.endswith((".app", ".framework")) for part in name.parts[:-1]):
                continue
            raise DamagedFileError("The zip holds links; send the files themselves.")
        if info.flag_bits & _ENCRYPTED:
            raise UnsupportedFormatError("The zip is encrypted; send it without a password.")
        if info.compress_type not in _METHODS:
            raise UnsupportedFormatError("The zip is compressed in an unusual way; use deflate.")
        if not _is_litter(name.parts):
            wanted.append(info)
    unpacked_bytes = sum(info.file_size for info in infos)
    limits.check_bytes(unpacked_bytes)
    if limits.is_noisy:
        require_ratio(sum(info.compress_size for info in infos), unpacked_bytes)
    for info in wanted:
        try:
            with archive.open(info) as member:
                content = identify(member.read(HEAD_BYTES))
        except _FAULTS as error:
            raise DamagedFileError("The zip is damaged: a member cannot be unpacked.") from error
        yield ZipMember(archive, info, content)


def _is_litter(parts: tuple[str, ...]) -> bool:
    """Whether it is what operating systems leave behind, or the directory of a CD."""
    return parts[0] == "__MACOSX" or parts[-1].startswith(".") or parts[-1].upper() == "DICOMDIR"


class _BoundedFile(io.BufferedReader):
    """A zip file of whose directory no more is read than `most_bytes`.

    `zipfile` reads the directory at once and makes an object of each entry, whatever their number.
    """

    def __init__(self, path: Path, most_bytes: int) -> None:
        super().__init__(io.FileIO(path))
        self._most_bytes = most_bytes

    def read(self, size: int | None = -1, /) -> bytes:
        wants_all = size is None or size < 0
        content = super().read(self._most_bytes + 1 if wants_all else min(size or 0, self._most_bytes + 1))
        if len(content) > self._most_bytes:
            raise ScanTooLargeError(
                f"The directory of the zip has more than {self._most_bytes} bytes: too many files, or too long names.",
                evidence={"max_bytes": self._most_bytes},
            )
        return content


@contextmanager
def open_zip(path: Path, limits: SizeLimits) -> Iterator[zipfile.ZipFile]:
    """Raises: DamagedFileError: the directory at its end is missing or wrong; ScanTooLargeError: it is too large."""
    with _BoundedFile(path, max(_MOST_ENTRY_BYTES * limits.max_files, _END_BYTES)) as file:
        try:
            archive = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError) as error:
            raise DamagedFileError("The zip is damaged or cut short: its directory cannot be read.") from error
        with archive:
            yield archive

"""Zip files and folders as members that are safe to open.

A zip may not lead out of itself (absolute or `..` names, links) and may not be encrypted. A zip within it is a member
like any other that is no scan: viewers on patient CDs are full of them (.jar, .docx). Members are copied under names of
ours, so that no name of theirs ever meets the file system.
"""

import os
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from pipeline.errors import DamagedFileError, UnsupportedFormatError
from pipeline.io.formats.content import HEAD_BYTES, Content, identify
from pipeline.io.formats.limits import SizeLimits

_COPY_BYTES: Final = 1 << 20
_ENCRYPTED: Final = 0x1
_DRIVE: Final = re.compile(r"[A-Za-z]:[\\/]")
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
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
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
        DamagedFileError: a member's name leads out of the zip, or it is a link.
        UnsupportedFormatError: a member is encrypted, or is compressed in an unusual way.
        ScanTooLargeError: too many members, or too many bytes once unpacked.
    """
    infos = [info for info in archive.infolist() if not info.is_dir()]
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
    limits.check_bytes(sum(info.file_size for info in infos))
    for info in wanted:
        try:
            with archive.open(info) as member:
                content = identify(member.read(HEAD_BYTES))
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
            raise DamagedFileError("The zip is damaged: a member cannot be unpacked.") from error
        yield ZipMember(archive, info, content)


def _is_litter(parts: tuple[str, ...]) -> bool:
    """Whether it is what operating systems leave behind, or the directory of a CD."""
    return parts[0] == "__MACOSX" or parts[-1].startswith(".") or parts[-1].upper() == "DICOMDIR"


def open_zip(path: Path) -> zipfile.ZipFile:
    """Raises: DamagedFileError: the directory at its end is missing or wrong."""
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError) as error:
        raise DamagedFileError("The zip is damaged or cut short: its directory cannot be read.") from error

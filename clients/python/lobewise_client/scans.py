"""What is sent: a file, a folder or a stream, whole as a form or in parts, hashed on its way."""

import hashlib
import secrets
import shutil
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from os import SEEK_END, PathLike
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Final

from lobewise_client.models import Upload, UploadPart

#: A scan: a path of a file or of a folder of DICOM files, an open binary file, or bytes.
ScanLike = str | PathLike[str] | IO[bytes] | bytes

PIECE_BYTES: Final = 1 << 18
#: Called with the bytes that were sent and all there are.
OnSent = Callable[[int, int], None]


class Scan:
    """The bytes of a scan, which several threads may read at once. Close it."""

    def __init__(self, file: IO[bytes], size_bytes: int, begin: int, *, is_ours: bool) -> None:
        self.size_bytes = size_bytes
        self._file, self._begin, self._is_ours = file, begin, is_ours
        self._lock = threading.Lock()

    @classmethod
    def open(cls, source: ScanLike) -> "Scan":
        """A folder's files are zipped; a stream that cannot be sought in is kept in a temporary file.

        Raises:
            OSError: it cannot be read.
        """
        if isinstance(source, bytes):
            kept = TemporaryFile()  # noqa: SIM115 (closed with the scan)
            kept.write(source)
            return cls(kept, len(source), 0, is_ours=True)
        if isinstance(source, str | PathLike):
            path = Path(source)
            file = _zipped(path) if path.is_dir() else path.open("rb")
            return cls(file, file.seek(0, SEEK_END), 0, is_ours=True)
        if source.seekable():
            begin = source.tell()
            return cls(source, source.seek(0, SEEK_END) - begin, begin, is_ours=False)
        kept = TemporaryFile()  # noqa: SIM115 (closed with the scan)
        shutil.copyfileobj(source, kept, PIECE_BYTES)
        return cls(kept, kept.tell(), 0, is_ours=True)

    def read(self, offset: int, count: int) -> bytes:
        """Raises OSError: the file has become shorter."""
        with self._lock:
            self._file.seek(self._begin + offset)
            data = self._file.read(count)
        if len(data) != count:
            raise OSError(f"the scan ended at byte {offset + len(data)}: it became shorter while it was sent")
        return data

    def close(self) -> None:
        if self._is_ours:
            self._file.close()


def _zipped(folder: Path) -> IO[bytes]:
    packed = TemporaryFile()  # noqa: SIM115 (closed with the scan)
    try:
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            regular = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
            # Under numbers, for the names of files may carry a patient's.
            for number, path in enumerate(sorted(regular)):
                with path.open("rb") as file, archive.open(f"{number:06d}", "w", force_zip64=True) as entry:
                    shutil.copyfileobj(file, entry, PIECE_BYTES)
    except BaseException:
        packed.close()
        raise
    return packed


class Form:
    """A multipart form with the scan inside: a `Body`. Neither the name of the file nor its time is in it."""

    def __init__(self, scan: Scan, fields: Mapping[str, str | bool], on_sent: OnSent) -> None:
        """Raises ValueError: a field would end its part of the form."""
        self._scan, self._on_sent = scan, on_sent
        self._sent = 0
        self.sha256 = ""
        boundary = secrets.token_hex(16)
        self.content_type = f"multipart/form-data; boundary={boundary}"
        head = ""
        # Before the file, so that a wrong field costs no upload.
        for name, field in fields.items():
            value = str(field).lower() if isinstance(field, bool) else field
            if "\r" in value or "\n" in value:
                raise ValueError(f"{name} has a line break")
            head += f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        head += f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="scan"\r\n'
        self._head = f"{head}Content-Type: application/octet-stream\r\n\r\n".encode()
        self._tail = f"\r\n--{boundary}--\r\n".encode()

    @property
    def size_bytes(self) -> int:
        return len(self._head) + self._scan.size_bytes + len(self._tail)

    def pieces(self) -> Iterator[bytes]:
        digest, self._sent = hashlib.sha256(), 0
        yield self._head
        for offset in range(0, self._scan.size_bytes, PIECE_BYTES):
            piece = self._scan.read(offset, min(PIECE_BYTES, self._scan.size_bytes - offset))
            digest.update(piece)
            yield piece
        self.sha256 = digest.hexdigest()
        yield self._tail

    def sent(self, piece_bytes: int) -> None:
        self._sent += piece_bytes
        self._on_sent(self._sent, self.size_bytes)


class PartBody:
    """The bytes of one part: a `Body`."""

    def __init__(self, data: bytes, on_sent: Callable[[int], None]) -> None:
        self._data, self._on_sent = data, on_sent
        self.size_bytes = len(data)

    def pieces(self) -> Iterator[bytes]:
        view = memoryview(self._data)
        for offset in range(0, len(view), PIECE_BYTES):
            yield bytes(view[offset : offset + PIECE_BYTES])

    def sent(self, piece_bytes: int) -> None:
        self._on_sent(piece_bytes)


class PartQueue:
    """Hands the parts of an upload to whoever sends them, in order, and hashes all of them once, sent or not."""

    def __init__(self, scan: Scan, upload: Upload, on_sent: OnSent) -> None:
        self._scan, self._upload, self._on_sent = scan, upload, on_sent
        self._digest = hashlib.sha256()
        self._hashed_bytes = 0
        self._lock, self._count_lock = threading.Lock(), threading.Lock()
        self._todo: list[UploadPart] = []
        self._sent_bytes = 0
        self.refill(upload)

    def refill(self, upload: Upload) -> int:
        """The parts that have not arrived, once again, at their new addresses. Returns how many bytes have."""
        with self._lock:
            self._todo = sorted(upload.parts, key=lambda part: part.number)
            self._sent_bytes = sum(part.size_bytes for part in upload.parts if part.received)
            return self._sent_bytes

    def stop(self) -> None:
        """Hand out nothing more."""
        with self._lock:
            self._todo = []

    def take(self) -> tuple[UploadPart, PartBody] | None:
        """The next part that is to be sent; None if there is none. Raises OSError: the scan cannot be read."""
        with self._lock:
            while self._todo:
                part = self._todo.pop(0)
                offset = (part.number - 1) * self._upload.part_bytes
                is_hashed = offset < self._hashed_bytes
                if part.received and is_hashed:
                    continue
                data = self._scan.read(offset, part.size_bytes)
                # Parts are taken in order: each begins where the hash has come to.
                if not is_hashed:
                    self._digest.update(data)
                    self._hashed_bytes += len(data)
                if not part.received:
                    return part, PartBody(data, self._count)
            return None

    @property
    def sha256(self) -> str:
        """Of the whole scan, once every part was taken."""
        return self._digest.hexdigest()

    def _count(self, sent_bytes: int) -> None:
        with self._count_lock:
            self._sent_bytes += sent_bytes
            total = self._scan.size_bytes
            self._on_sent(min(self._sent_bytes, total), total)

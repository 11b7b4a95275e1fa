"""What a file passes before a parser meets it.

`content` has said by then what it is. Here stand the bounds on what a header may ask for: how far its compressed part
may unpack, how many steps a parser may take through it, how large one value may be, and what it may not be besides.
"""

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pipeline.errors import DamagedFileError, ScanTooLargeError, UnsupportedFormatError

#: The noise of a CT packs to a half or a third, float64 and much padding to a thirtieth; a bomb to a thousandth.
MOST_RATIO: Final = 200

#: What is no larger unpacked does no harm at any ratio.
HARMLESS_BYTES: Final = 16 << 20

#: Of one value of a DICOM header. The groups of 10,000 frames take 15 MB.
MOST_VALUE_BYTES: Final = 16 << 20

#: What pydicom may read of the headers of a series, one by one; an element takes two reads and 4 microseconds. A CT
#: slice has 100 to 400 elements, an enhanced CT of 2000 frames 150,000.
MOST_READS: Final = 500_000
MOST_READS_A_FILE: Final = 1_000

#: The same for the items of sequences, which take 40 microseconds each. An enhanced CT of 2000 frames has 30,000.
MOST_ITEMS: Final = 200_000
MOST_ITEMS_A_FILE: Final = 50

#: How programs, scripts and documents with scripts in them begin. Preambles of zeros, and those that make the file a
#: TIFF as well (PS3.10, 7.1), are usual; others that are no program are never looked at.
_PROGRAMS: Final = {
    b"MZ": "a program for Windows",
    b"\x7fELF": "a program for Linux",
    b"\xfe\xed\xfa": "a program for macOS",
    b"\xce\xfa\xed\xfe": "a program for macOS",
    b"\xcf\xfa\xed\xfe": "a program for macOS",
    b"\xca\xfe\xba\xbe": "a program for macOS or Java",
    b"#!": "a script",
    b"\0asm": "a WebAssembly program",
    b"dex\n": "a program for Android",
    b"PK": "a zip",
    b"%PDF": "a PDF",
    b"{\\rtf": "a document",
    b"\xd0\xcf\x11\xe0": "a document",
    b"<": "a page or a script",
}
_MAGIC_AT: Final = 128


def require_no_program(head: bytes) -> None:
    """Refuse a DICOM file that is a program as well: whoever stores or forwards it would spread the program.

    Args:
        head: the first bytes of a file.

    Raises:
        UnsupportedFormatError: its preamble begins as programs do.
    """
    if head[_MAGIC_AT : _MAGIC_AT + 4] != b"DICM":
        return
    for beginning, kind in _PROGRAMS.items():
        if head.startswith(beginning):
            raise UnsupportedFormatError(
                f"The preamble of a DICOM file begins as {kind} does; a preamble of zeros is wanted. Do not open the "
                "file otherwise; export the series again.",
                evidence={"preamble": head[:8].hex()},
            )


def require_ratio(packed_bytes: int, unpacked_bytes: int) -> None:
    """Refuse what unpacks as no CT does.

    Raises:
        ScanTooLargeError: more than `MOST_RATIO` times as large, and large.
    """
    if unpacked_bytes > HARMLESS_BYTES and unpacked_bytes > MOST_RATIO * packed_bytes:
        raise ScanTooLargeError(
            f"The file unpacks from {packed_bytes} bytes to {unpacked_bytes}, more than {MOST_RATIO} times as many: no "
            "CT does.",
            evidence={"packed_bytes": packed_bytes, "unpacked_bytes": unpacked_bytes, "most_ratio": MOST_RATIO},
        )


class DeflatedError(UnsupportedFormatError):
    """A DICOM file whose dataset is deflated: what it holds is known only once it is unpacked."""


@dataclass
class HeaderBudget:
    """What the headers of one series may still cost."""

    reads: int = MOST_READS
    items: int = MOST_ITEMS

    def add_file(self) -> None:
        self.reads += MOST_READS_A_FILE
        self.items += MOST_ITEMS_A_FILE

    def take_items(self, count: int) -> None:
        """Raises: ScanTooLargeError: there are more sequence items than in any CT."""
        self.items -= count
        if self.items < 0:
            raise ScanTooLargeError(
                f"The headers of the DICOM files have more than {MOST_ITEMS} sequence items.",
                evidence={"items": count, "most_items": MOST_ITEMS},
            )


class HeaderFile(io.BufferedReader):
    """A file as pydicom may read its header: so many steps, no large values, and no more than there is.

    pydicom asks for all that is left (`read` without a size) only to inflate a deflated dataset, in memory and without
    bounds, so that asking for it is refused.
    """

    def __init__(self, path: Path, budget: HeaderBudget) -> None:
        super().__init__(io.FileIO(path))
        self._budget = budget
        self._size = os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        """Raises: DeflatedError; DamagedFileError or ScanTooLargeError where a value, or the header, is too large."""
        if size is None or size < 0:
            raise DeflatedError(
                "A DICOM file is deflated (TransferSyntaxUID 1.2.840.10008.1.2.1.99), which is not read. Send the "
                "series uncompressed, in a zip.",
                evidence={"tag": "TransferSyntaxUID", "value": "1.2.840.10008.1.2.1.99"},
            )
        budget = self._budget
        budget.reads -= 1
        if budget.reads < 0:
            raise ScanTooLargeError(
                "The headers of the DICOM files have more elements than those of any CT.",
                evidence={"most_reads": MOST_READS},
            )
        if size > MOST_VALUE_BYTES:
            # A length beyond the end of the file is damage; up to there a buffer would be made for it.
            if size > self._size:
                raise DamagedFileError("A DICOM file is damaged or cut short: a value is longer than the file.")
            raise ScanTooLargeError(
                f"A value in the header of a DICOM file has {size} bytes; up to {MOST_VALUE_BYTES} are read.",
                evidence={"bytes": size, "max_bytes": MOST_VALUE_BYTES},
            )
        return super().read(size)

"""Compressed streams, in blocks, as their standards define them (RFC 1950, RFC 1952)."""

import zlib
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any, Final

from isal import isal_zlib

from pipeline.errors import DamagedFileError, ScanTooLargeError

_GZIP_MAGIC: Final = b"\x1f\x8b"

#: Members of a gzip file: bgzip writes one for each 64 KiB. Each takes memory to begin with, however little it holds.
MOST_MEMBERS: Final = 100_000

#: What is left of a block behind a member is copied, so that a block is small where members may be.
_READ_BYTES: Final = 1 << 16


class Packing(Enum):
    """How bytes are stored."""

    PLAIN = 0
    #: The value is zlib's `wbits`.
    ZLIB = 15
    GZIP = 31


def unpacked(read: Callable[[int], bytes], packing: Packing, block_bytes: int) -> Iterator[bytes]:
    """What a stream unpacks to, in blocks of at most `block_bytes`; its checksums are checked.

    A gzip file may have several members (bgzip and cloud exporters write them): they follow each other. What comes
    after the last one and is no member is left unread, as gzip itself does.

    Args:
        read: gives as many bytes of the stream as it is asked for, or fewer at its end.

    Raises:
        DamagedFileError: cut short, or no such stream.
        ScanTooLargeError: more than `MOST_MEMBERS` members.
    """
    rest = b""
    read_bytes = min(block_bytes, _READ_BYTES)
    members = 0
    try:
        while True:
            members += 1
            if members > MOST_MEMBERS:
                raise ScanTooLargeError(
                    f"The gzip file has more than {MOST_MEMBERS} members; pack it in one.",
                    evidence={"most_members": MOST_MEMBERS},
                )
            stream: Any = isal_zlib.decompressobj(wbits=packing.value)
            while not stream.eof:
                packed = stream.unconsumed_tail or rest or read(read_bytes)
                rest = b""
                if not packed:
                    raise DamagedFileError(
                        "The file is cut short: its compressed part has no end. Export or send it again."
                    )
                yield stream.decompress(packed, block_bytes)
            rest = stream.unused_data
            if len(rest) < len(_GZIP_MAGIC):
                rest += read(read_bytes)
            if packing is not Packing.GZIP or not rest.startswith(_GZIP_MAGIC):
                return
    except (isal_zlib.error, zlib.error) as error:  # type: ignore[misc]  # isal's stub names no class
        raise DamagedFileError("The file is damaged: its compressed part cannot be unpacked. Send it again.") from error

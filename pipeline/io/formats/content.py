"""Says what a file is by its first bytes; its name says nothing, since uploads have none."""

import re
from contextlib import suppress
from enum import Enum
from io import BytesIO
from typing import Final

from pipeline.errors import PipelineError
from pipeline.io.formats.unpack import Packing, unpacked

HEAD_BYTES: Final = 4096

_NIFTI_MAGIC: Final = {b"n+1\0": 344, b"n+2\0\r\n\x1a\n": 4}
_NIFTI_PAIR_MAGIC: Final = {b"ni1\0": 344, b"ni2\0\r\n\x1a\n": 4}
_METAIMAGE_LINE: Final = re.compile(rb"\s*(ObjectType|NDims|Comment|ObjectSubType|BinaryData|DimSize)\s*[=:]")
_BARE_DICOM: Final = re.compile(rb"[\x02\x08]\x00[\x00-\xff]\x00(UI|CS|UL|OB|DA|SH|LO|TM|[\x00-\xff]{2}\x00\x00)", re.S)


class Content(Enum):
    NIFTI = "NIfTI"
    NIFTI_GZ = "gzipped NIfTI"
    NIFTI_PAIR = "NIfTI header without its pixels"
    NRRD = "NRRD"
    METAIMAGE = "MetaImage"
    DICOM = "DICOM"
    ZIP = "zip"
    GZIP = "a gzip of something that is not NIfTI"
    OTHER = "of an unknown format"

    @property
    def is_image(self) -> bool:
        """One file that holds a whole volume."""
        return self in (Content.NIFTI, Content.NIFTI_GZ, Content.NRRD, Content.METAIMAGE)


def identify(head: bytes) -> Content:
    """What the file that begins with `head` (up to `HEAD_BYTES`) is."""
    if head.startswith(b"\x1f\x8b"):
        # In small blocks: what `head` unpacks to before anything in it turns out to be damaged or cut off.
        plain = b""
        with suppress(PipelineError):
            for block in unpacked(BytesIO(head).read, Packing.GZIP, 16):
                plain += block
                if len(plain) >= HEAD_BYTES:
                    break
        return Content.NIFTI_GZ if _identify_plain(plain) is Content.NIFTI else Content.GZIP
    return _identify_plain(head)


def _identify_plain(head: bytes) -> Content:
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return Content.ZIP
    if head[128:132] == b"DICM":
        return Content.DICOM
    if head.startswith(b"NRRD"):
        return Content.NRRD
    if _METAIMAGE_LINE.match(head):
        return Content.METAIMAGE
    if _has_magic(head, _NIFTI_MAGIC):
        return Content.NIFTI
    if _has_magic(head, _NIFTI_PAIR_MAGIC):
        return Content.NIFTI_PAIR
    return Content.DICOM if _BARE_DICOM.match(head) else Content.OTHER


def _has_magic(head: bytes, magics: dict[bytes, int]) -> bool:
    return any(head[at : at + len(magic)] == magic for magic, at in magics.items())

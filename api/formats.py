"""Refuses what is no scan by its first bytes. What lies deeper is the worker's to find, in its sandbox."""

import re
from collections.abc import Mapping
from typing import Final

from api.errors import ApiError
from jobs import problems

HEAD_BYTES: Final = 512

_ARCHIVES: Final = (b"\x1f\x8b", b"PK\x03\x04", b"PK\x05\x06")
_METAIMAGE: Final = re.compile(rb"\s*(ObjectType|NDims|Comment|ObjectSubType|BinaryData|DimSize)\s*[=:]")
_NIFTI_MAGIC: Final = {344: (b"n+1\0",), 4: (b"n+2\0\r\n\x1a\n",)}
_DETACHED_MAGIC: Final = {344: (b"ni1\0",), 4: (b"ni2\0\r\n\x1a\n",)}


def require_scan(head: bytes) -> None:
    """`head` is the first `HEAD_BYTES` of the file, or all of a shorter one.

    Raises:
        ApiError (unsupported-format): this cannot be a scan.
    """
    if head.startswith(_ARCHIVES):
        return
    if head[128:132] == b"DICM":
        raise ApiError(
            problems.UNSUPPORTED_FORMAT, "this is a single DICOM file: send all slices of the series in one zip file"
        )
    if head.startswith(b"NRRD") or _METAIMAGE.match(head) or _has_magic(head, _NIFTI_MAGIC):
        return
    if _has_magic(head, _DETACHED_MAGIC):
        raise ApiError(
            problems.UNSUPPORTED_FORMAT, "this is a NIfTI header without its pixels: send a .nii or .nii.gz file"
        )
    raise ApiError(problems.UNSUPPORTED_FORMAT, "the file does not begin as NIfTI, NRRD, MetaImage or zip files do")


def _has_magic(head: bytes, magics: Mapping[int, tuple[bytes, ...]]) -> bool:
    return any(head.startswith(values, at) for at, values in magics.items())

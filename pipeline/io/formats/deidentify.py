"""Takes what may name a patient out of a scan, and leaves the rest of it as a file: what the sandbox runs.

What is left reads as the same volume. Of DICOM only the CT slices are kept, of a header of NIfTI, NRRD or MetaImage
only what says where voxels lie and how they are stored; voxels stay as they are, bit for bit.
"""

import re
import struct
from pathlib import Path
from typing import BinaryIO, Final

from isal import igzip, isal_zlib

from pipeline.errors import DamagedFileError, UnsupportedFormatError
from pipeline.io.formats.archive import FileMember, members_of_zip, open_zip
from pipeline.io.formats.content import HEAD_BYTES, Content, identify
from pipeline.io.formats.deidentify_dicom import deidentify_series
from pipeline.io.formats.image_header import ImageHeader, numbers_of
from pipeline.io.formats.images import parse_image, unpacked_pixels
from pipeline.io.formats.limits import SizeLimits
from pipeline.io.formats.metaimage import metaimage_fields
from pipeline.io.formats.nrrd import MM_PER_UNIT, SPACES, nrrd_fields
from pipeline.io.formats.unpack import Packing

DEIDENTIFIED: Final = "deidentified"

#: By the size of the header: where its texts lie (offset, bytes), and the first byte that an extension may have.
_NIFTI_TEXTS: Final = {
    # data_type, db_name and what nobody uses behind them; descrip, aux_file; intent_name; what says that extensions
    # follow.
    348: (((4, 34), (148, 104), (328, 16), (348, 4)), 352),
    # descrip, aux_file; intent_name; unused_str; what says that extensions follow.
    540: (((240, 104), (508, 16), (525, 15), (540, 4)), 544),
}
#: What the values of fields look like that are kept, and what is no name: NRRD's own words.
_NRRD_FIELDS: Final = {
    "type": r"[a-z0-9_ ]+",
    "dimension": r"\d+",
    "space": SPACES.pattern,
    "space dimension": r"\d+",
    "sizes": r"[\d\s]+",
    "endian": "little|big",
    "encoding": "raw|gzip|gz",
    **dict.fromkeys(
        ("spacings", "space directions", "space origin", "measurement frame"),
        r"(?:[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?|nan|none|[(),\s])+",
    ),
}
_NRRD_UNITS: Final = ("units", "space units")
_META_WORDS: Final = (
    *("BinaryData", "BinaryDataByteOrderMSB", "ElementByteOrderMSB", "CompressedData", "DistanceUnits"),
    *("TransformMatrix", "Rotation", "Orientation", "Origin", "Offset", "Position"),
    *("ElementSpacing", "ElementSize", "DimSize", "ElementType"),
)


def leave_deidentified(path: str, key: str, max_voxels: int, max_bytes: int, max_files: int) -> dict[str, int]:
    """Write what may be kept of the scan at `path` to the file `deidentified` of the working folder.

    Args:
        key: hexadecimal; the same UID becomes the same other one under the same key.

    Returns:
        `files`: of how many files the scan is made.

    Raises:
        PipelineError: it cannot be read; UnsupportedFormatError: its header says that pixels show who it is.
    """
    limits, folder, scan = SizeLimits(max_voxels, max_bytes, max_files), Path.cwd(), Path(path)
    with scan.open("rb") as file:
        content = identify(file.read(HEAD_BYTES))
    with Path(DEIDENTIFIED).open("wb") as kept:
        if content is Content.ZIP:
            with open_zip(scan, limits) as archive:
                listed = list(members_of_zip(archive, limits))
                series = [member for member in listed if member.content is Content.DICOM]
                if series:
                    return {"files": deidentify_series(series, folder, limits, bytes.fromhex(key), kept)}
                images = [member for member in listed if member.content.is_image]
                if len(images) != 1:
                    raise UnsupportedFormatError(f"There are {len(images)} images; send one.")
                scan, content = images[0].as_file(folder / "member"), images[0].content
        if content is Content.DICOM:
            member = FileMember(scan, content)
            return {"files": deidentify_series([member], folder, limits, bytes.fromhex(key), kept)}
        _deidentify_image(scan, content, limits, kept)
    return {"files": 1}


def _deidentify_image(path: Path, content: Content, limits: SizeLimits, kept: BinaryIO) -> None:
    head, header = parse_image(path, content)
    limits.check_bytes(header.data_bytes)
    if content in (Content.NIFTI, Content.NIFTI_GZ):
        is_packed = content is Content.NIFTI_GZ
        # No name, comment or time of the file that was packed.
        target = igzip.GzipFile(filename="", mode="wb", fileobj=kept, compresslevel=1, mtime=0) if is_packed else kept
        target.write(clean_nifti_header(head, header))
        for block in unpacked_pixels(path, content, header):
            target.write(block)
        if is_packed:
            target.close()
    elif content is Content.NRRD:
        kept.write(clean_nrrd_header(head))
        _write_pixels(path, content, header, kept)
    elif content is Content.METAIMAGE:
        kept.write(clean_metaimage_header(head))
        _write_pixels(path, content, header, kept)
    else:
        raise UnsupportedFormatError(f"The file is {content.value}.")


def _write_pixels(path: Path, content: Content, header: ImageHeader, kept: BinaryIO) -> None:
    blocks = unpacked_pixels(path, content, header)
    if header.packing is Packing.GZIP:
        with igzip.GzipFile(filename="", mode="wb", fileobj=kept, compresslevel=1, mtime=0) as target:
            for block in blocks:
                target.write(block)
        return
    packer = isal_zlib.compressobj(1) if header.packing is Packing.ZLIB else None
    for block in blocks:
        kept.write(packer.compress(block) if packer else block)
    if packer:
        kept.write(packer.flush())


def clean_nifti_header(head: bytes, header: ImageHeader) -> bytes:
    """All bytes up to the pixels, texts and extensions zeroed."""
    blank = bytearray(head[: header.data_at].ljust(header.data_at, b"\0"))
    order = "<" if struct.unpack_from("<i", head)[0] in _NIFTI_TEXTS else ">"
    texts, extensions_at = _NIFTI_TEXTS[struct.unpack_from(f"{order}i", head)[0]]
    for at, count in texts:
        blank[at : at + count] = bytes(count)
    blank[extensions_at:] = bytes(len(blank) - extensions_at)
    return bytes(blank)


def clean_nrrd_header(head: bytes) -> bytes:
    """The fields that the reader uses, if their values are what such values are: no comments, keys or labels."""
    fields, lines = nrrd_fields(head), [head.split(b"\n", 1)[0].strip()[:8].decode("latin-1")]
    for name, allowed in _NRRD_FIELDS.items():
        if name in fields and re.fullmatch(allowed, fields[name], re.IGNORECASE):
            lines.append(f"{name}: {fields[name]}")
    for name in _NRRD_UNITS:
        given = re.findall(r"\"([^\"]*)\"", fields.get(name, ""))
        if given:
            known = (unit.strip() if unit.strip().lower() in MM_PER_UNIT else "" for unit in given)
            lines.append(f"{name}: " + " ".join(f'"{unit}"' for unit in known))
    return "\n".join([*lines, "", ""]).encode("latin-1")


def clean_metaimage_header(head: bytes) -> bytes:
    """The fields that the reader uses, if their values are what such values are: no comments and no names."""
    fields = metaimage_fields(head)
    lines = ["ObjectType = Image", f"NDims = {len(fields['DimSize'].split())}"]
    for name in _META_WORDS:
        if name not in fields:
            continue
        if name in ("BinaryData", "BinaryDataByteOrderMSB", "ElementByteOrderMSB", "CompressedData"):
            lines.append(f"{name} = {fields[name].lower() in ('true', '1')}")
        elif name in ("DistanceUnits", "ElementType"):  # the reader refuses what it does not know
            lines.append(f"{name} = {fields[name]}")
        else:
            try:
                numbers_of(fields[name], name)
            except DamagedFileError:  # one that the reader passes over for another
                continue
            lines.append(f"{name} = {fields[name]}")
    return "\n".join([*lines, "ElementDataFile = LOCAL", ""]).encode("latin-1")

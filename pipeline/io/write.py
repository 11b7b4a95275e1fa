"""Masks and CTs as gzipped NIfTI on their own grid."""

import os
import shutil
import struct
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

import numpy as np
import SimpleITK as sitk
from isal import igzip
from jaxtyping import Shaped

from pipeline.geometry import GeometrySource, Grid, Volume, to_sitk
from pipeline.io.formats.nifti import nifti_1_fields
from pipeline.labels import Label

#: Of a NIfTI-1 header with the four bytes that say whether extensions follow.
_HEADER_BYTES: Final = 352
_VOX_OFFSET_AT: Final = 108
_EXTENDER_AT: Final = 348
#: NIFTI_ECODE_CARET: the label table that Connectome Workbench reads; others pass over what they do not know.
_CARET: Final = 30
#: The size of an extension must be a multiple of it.
_EXTENSION_BYTES: Final = 16


def write_mask(
    path: Path,
    mask: Shaped[np.ndarray, "z y x"],
    grid: Grid,
    source: GeometrySource | None = None,
    labels: Sequence[Label] = (),
) -> None:
    """Write a mask or labels (0-255) to `path` (`.nii.gz`) as uint8, whole or not at all.

    Size, spacing, origin and direction are the grid's, left-handed ones too (sform and qform). The same mask gives
    the same bytes.

    Args:
        source: of the scan. The fields of its own NIfTI header are repeated: wherever a viewer shows the scan, the mask
            lies on it.
        labels: what the numbers stand for; the file has their names and colours in an extension of its header.
    """
    _write(path, mask.astype(np.uint8, copy=False), grid, source, _label_table(labels) if labels else b"")


def write_ct(path: Path, volume: Volume, source: GeometrySource | None = None) -> None:
    """Write a CT to `path` (`.nii.gz`) as int16 Hounsfield units, in the same way."""
    _write(path, volume.hu, volume.grid, source, b"")


def _label_table(labels: Sequence[Label]) -> bytes:
    """A header extension with the labels in Caret's XML, as Connectome Workbench keeps them."""
    root = ElementTree.Element("CaretExtension", Version="1.0")
    volume = ElementTree.SubElement(root, "VolumeInformation", Index="0")
    table = ElementTree.SubElement(volume, "LabelTable")
    for label in labels:
        red, green, blue = (f"{value / 255:.4f}" for value in label.rgb)
        attributes = {"Key": str(label.number), "Red": red, "Green": green, "Blue": blue, "Alpha": "1"}
        ElementTree.SubElement(table, "Label", attributes).text = label.name
    ElementTree.SubElement(volume, "VolumeType").text = "Label"
    content: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    # Its size counts itself and the code; the end is filled with zeros.
    size = -(-(8 + len(content) + 1) // _EXTENSION_BYTES) * _EXTENSION_BYTES
    return struct.pack("<2i", size, _CARET) + content.ljust(size - 8, b"\0")


def _write(
    path: Path, array: Shaped[np.ndarray, "z y x"], grid: Grid, source: GeometrySource | None, extension: bytes
) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".writing-") as folder:
        plain, packed = Path(folder, "array.nii"), Path(folder, "array.nii.gz")
        sitk.WriteImage(to_sitk(array, grid), str(plain), imageIO="NiftiImageIO")
        if source is not None and source.nifti is not None:
            with plain.open("r+b") as fields:
                for offset, field in nifti_1_fields(source.nifti):
                    fields.seek(offset)
                    fields.write(field)
        # isal's level 1 is several times faster than zlib's, at about its size; no time or name in the header.
        with (
            plain.open("rb") as unpacked,
            packed.open("wb") as target,
            igzip.IGzipFile(filename="", mode="wb", compresslevel=1, fileobj=target, mtime=0) as stream,
        ):
            if extension:
                header = bytearray(unpacked.read(_HEADER_BYTES))
                struct.pack_into("<f", header, _VOX_OFFSET_AT, _HEADER_BYTES + len(extension))
                header[_EXTENDER_AT] = 1
                stream.write(bytes(header) + extension)
            shutil.copyfileobj(unpacked, stream, 1 << 20)
        os.replace(packed, path)

"""A patient's name, planted wherever a scan may hold one."""

import gzip
import io
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pydicom
from dicomanonymizer.dicom_anonymization_databases import dicomfields_2026c as table
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

#: No more than 16 characters, in capitals: a value of every kind of text that DICOM knows.
NAME = "KANARIENVOGEL_C"
CANARY = NAME.encode()
BIRTH_DATE = "19481207"
ROOT_UID = "1.2.826.0.1.3680043.10.48134711"

_TEXTS = ("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UT")
_OTHERS = {"UR": f"http://{NAME}.invalid/", "AS": "099Y", "DA": BIRTH_DATE, "DT": f"{BIRTH_DATE}114711", "TM": "114711"}


def planted_dicom(hu: np.ndarray, number: int, z_mm: float) -> bytes:
    """One CT slice with the name in every attribute of the profile's table, and in what stands in no table."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, CTImageStorage
    meta.MediaStorageSOPInstanceUID = f"{ROOT_UID}.4.{number}"
    meta.SourceApplicationEntityTitle = NAME
    meta.PrivateInformationCreatorUID, meta.PrivateInformation = f"{ROOT_UID}.9", CANARY + b"\0"
    data = FileDataset("", {}, file_meta=meta, preamble=CANARY.ljust(128, b"\0"))
    plant(data, depth=2)
    data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    data.StudyInstanceUID, data.SeriesInstanceUID = f"{ROOT_UID}.1", f"{ROOT_UID}.2"
    data.FrameOfReferenceUID = f"{ROOT_UID}.3"
    data.Modality, data.SeriesNumber, data.InstanceNumber = "CT", 1, number
    data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    data.AcquisitionTime, data.ContentTime = "114711.25", f"1148{number:02}"
    data.ImageOrientationPatient, data.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [-20, -30, z_mm]
    data.PixelSpacing, data.SliceThickness = [2, 2], 2
    data.Rows, data.Columns = hu.shape
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation, data.SamplesPerPixel = 15, 1, 1
    data.PhotometricInterpretation = "MONOCHROME2"
    data.RescaleSlope, data.RescaleIntercept, data.RescaleType = 1, 0, "HU"
    data.PixelData = hu.astype("<i2").tobytes()
    file = io.BytesIO()
    pydicom.dcmwrite(file, data)
    return file.getvalue() + CANARY


def plant(data: Dataset, depth: int) -> None:
    """Put the name under every tag of the table, and where no table looks."""
    for tag in table.ALL_TAGS:
        if len(tag) != 2 or tag[0] < 8:
            continue
        # The table may be of a later edition of the standard than pydicom.
        kind = dictionary_VR(tag).split(" or ")[0] if dictionary_has_tag(tag) else "LO"
        if kind in _TEXTS:
            value: object = NAME
        elif kind == "UI":
            value = f"{ROOT_UID}.8.{tag[0]}.{tag[1]}"
        elif kind == "SQ":
            item = Dataset()
            item.PatientName, item.ReferencedSOPInstanceUID = NAME, f"{ROOT_UID}.7"
            value = [item]
        elif kind in _OTHERS:
            value = _OTHERS[kind]
        elif kind in ("OB", "UN", "OW"):
            value = CANARY + b"\0"
        else:
            value = 48134711 if kind in ("DS", "IS", "UL", "SL", "FD", "FL") else 4813
        data.add_new(tag, kind, value)
    block = data.private_block(0x0029, NAME, create=True)
    block.add_new(0x10, "LO", NAME)
    inner = Dataset()
    inner.PatientName = NAME
    block.add_new(0x11, "SQ", [inner])
    data.add_new(0x0018FF01, "LO", NAME)  # of no dictionary
    data.add_new(0x00089215, "LO", NAME)  # a text where a sequence belongs
    data.add_new(0x60000022, "LO", NAME)
    data.add_new(0x60004000, "LT", NAME)
    data.add_new(0x60001500, "LO", NAME)
    data.add_new(0x50002600, "LO", NAME)
    data.add_new(0xFFFCFFFC, "OB", CANARY + b"\0")
    if depth:
        deeper = Dataset()
        plant(deeper, depth - 1)
        data.add_new(0x00080121, "SQ", [deeper])  # no entry of the table


def planted_zip(slices: list[bytes]) -> bytes:
    """The slices in a zip whose names, comments and other files tell the name, too."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.comment = CANARY
        for number, data in enumerate(slices):
            info = zipfile.ZipInfo(f"{NAME}/{NAME}-{number}.dcm")
            info.comment = CANARY
            archive.writestr(info, data)
        archive.writestr(f"{NAME}.txt", f"report of {NAME}")
    return file.getvalue()


def planted_nifti(hu: np.ndarray, *, version: int = 1, order: str = "<", packed: bool = False) -> bytes:
    """z-y-x Hounsfield units of 2 mm, with the name in every text, in an extension and behind the voxels."""
    size, first = (348, 352) if version == 1 else (540, 544)
    extension = struct.pack(f"{order}ii", 48, 6) + CANARY.ljust(40, b"\0")
    head = bytearray(first + len(extension))
    texts = ((4, 10), (14, 18), (148, 80), (228, 24), (328, 16)) if version == 1 else ((240, 80), (320, 24), (508, 16))
    for at, count in texts:
        head[at : at + count] = CANARY[:count].ljust(count, b"\0")
    struct.pack_into(f"{order}i", head, 0, size)
    dim = (3, *hu.shape[::-1], 1, 1, 1, 1)
    pixdim, affine = (1.0, 2, 2, 2, 0, 0, 0, 0), (-2, 0, 0, 20, 0, -2, 0, 30, 0, 0, 2, -40)
    if version == 1:
        fields = ((40, "8h", dim), (70, "2h", (4, 16)), (76, "8f", pixdim), (108, "f", (len(head),)))
        fields += ((112, "2f", (1, 0)), (123, "B", (2,)), (252, "2h", (0, 1)), (280, "12f", affine))  # type: ignore[assignment]
        head[344:348] = b"n+1\0"
    else:
        fields = ((16, "8q", dim), (12, "2h", (4, 16)), (104, "8d", pixdim), (168, "q", (len(head),)))
        fields += ((176, "2d", (1, 0)), (500, "i", (2,)), (344, "2i", (0, 1)), (400, "12d", affine))  # type: ignore[assignment]
        head[4:12] = b"n+2\0\r\n\x1a\n"
    for at, code, values in fields:
        struct.pack_into(order + code, head, at, *values)
    head[first - 4] = 1
    head[first:] = extension
    whole = bytes(head) + hu.astype(f"{order}i2").tobytes() + CANARY
    return _gzip(whole) if packed else whole


def planted_nrrd(hu: np.ndarray, *, packed: bool = False) -> bytes:
    lines = [
        "NRRD0005",
        f"# {NAME}",
        "type: short",
        "dimension: 3",
        f"space: {NAME}",
        "sizes: " + " ".join(map(str, hu.shape[::-1])),
        "space directions: (2,0,0) (0,2,0) (0,0,2)",
        "space origin: (-20,-30,-40)",
        "endian: little",
        f"encoding: {'gzip' if packed else 'raw'}",
        f"content: {NAME}",
        f'labels: "{NAME}" "y" "z"',
        f"measurement frame: {NAME}",
        f"patient:={NAME}",
    ]
    pixels = hu.astype("<i2").tobytes()
    return "\n".join([*lines, "", ""]).encode() + (_gzip(pixels) if packed else pixels) + CANARY


def planted_metaimage(hu: np.ndarray, *, packed: bool = False) -> bytes:
    pixels = hu.astype("<i2").tobytes()
    pixels = zlib.compress(pixels) if packed else pixels
    lines = [
        f"Comment = {NAME}",
        f"ObjectType = {NAME}",
        f"ObjectSubType = {NAME}",
        f"Name = {NAME}",
        "NDims = 3",
        "BinaryData = True",
        "BinaryDataByteOrderMSB = False",
        f"CompressedData = {packed}",
        f"CompressedDataSize = {len(pixels)}",
        "TransformMatrix = 1 0 0 0 1 0 0 0 1",
        f"Rotation = {NAME}",
        "Offset = -20 -30 -40",
        f"AnatomicalOrientation = {NAME}",
        "ElementSpacing = 2 2 2",
        "DimSize = " + " ".join(map(str, hu.shape[::-1])),
        "ElementType = MET_SHORT",
        f"{NAME} = {NAME}",
        "ElementDataFile = LOCAL",
    ]
    return "\n".join([*lines, ""]).encode() + pixels + CANARY


def _gzip(data: bytes) -> bytes:
    """With the name as that of the packed file."""
    file = io.BytesIO()
    with gzip.GzipFile(filename=NAME, mode="wb", fileobj=file) as packed:
        packed.write(data)
    return file.getvalue()


def plain_parts(data: bytes) -> list[bytes]:
    """The bytes and what they unpack to, for whoever looks for something in them."""
    parts = [data]
    if data[:2] == b"\x1f\x8b":
        parts.append(gzip.decompress(data))
    elif data[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            parts += [archive.read(name) for name in archive.namelist()]
    elif (at := data.find(b"ElementDataFile = LOCAL\n")) >= 0:
        body = data[at + 24 :]
        parts += [zlib.decompressobj().decompress(body)] if body[:1] == b"x" else []
    elif data[:4] == b"NRRD" and (at := data.find(b"\x1f\x8b")) >= 0:
        parts.append(zlib.decompressobj(31).decompress(data[at:]))
    return parts


def holds_canary(path: Path) -> bool:
    return any(CANARY in part for part in plain_parts(path.read_bytes()))

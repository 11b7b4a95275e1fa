"""The stored values of DICOM slices, and what they are in Hounsfield units.

Values are decoded one frame at a time by pydicom's decoders, and rescaled here by each frame's own numbers: GDCM, which
read whole files here before, applies the first frame's numbers to all. Whether the file holds all of its pixels is
checked before anything is decoded, since decoders fill what is missing with whatever lies in memory.
"""

import hashlib
import os
import struct
import tempfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

import numpy as np
from jaxtyping import Int16, Shaped
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from pipeline.errors import DamagedFileError, UnsupportedFormatError
from pipeline.io.formats.dicom_headers import Slice, StoredPixels, StoredRescale
from pipeline.io.formats.shown import shown
from pipeline.io.formats.voxels import to_hounsfield

#: A missing TransferSyntaxUID is of a file without a meta header, whose encoding pydicom finds by trying.
_NATIVE: Final = (
    "",
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ExplicitVRBigEndian,
)

#: Which of pydicom's plugins decodes what: always the same one, so that two machines read the same values.
_PLUGINS: Final = {
    RLELossless: "pydicom",
    JPEGBaseline8Bit: "gdcm",
    JPEGExtended12Bit: "gdcm",
    JPEGLossless: "gdcm",
    JPEGLosslessSV1: "gdcm",
    JPEGLSLossless: "gdcm",
    JPEGLSNearLossless: "gdcm",
    JPEG2000Lossless: "pylibjpeg",
    JPEG2000: "pylibjpeg",
    HTJ2KLossless: "pylibjpeg",
    HTJ2KLosslessRPCL: "pylibjpeg",
    HTJ2K: "pylibjpeg",
}

#: libjpeg carries on where it should end, and tells so only on the standard error output.
_LIBJPEG: Final = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1)

#: The first bytes of a JPEG, JPEG-LS or JPEG 2000 codestream.
_STARTS: Final = (b"\xff\xd8\xff", b"\xff\x4f\xff")

#: SOC and SIZ, with which a JPEG 2000 codestream begins, perhaps behind the boxes of a JP2 file.
_JPEG_2000_START: Final = b"\xff\x4f\xff\x51"
_MOST_BOX_BYTES: Final = 4096
_MOST_TILES: Final = 4096

#: SOF0 to SOF15 without DHT, JPG and DAC; SOF55 of JPEG-LS.
_FRAME_HEADERS: Final = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})

_ITEM: Final = (0xFFFE, 0xE000)
_END: Final = (0xFFFE, 0xE0DD)


@dataclass(frozen=True)
class DecodedFrame:
    """One frame's stored values.

    Attributes:
        unused_bits: pixels with bits set beside those that BitsStored and HighBit name.
        high_bit_ignored: HighBit does not fit to where the values are.
    """

    values: Shaped[np.ndarray, "y x"]
    unused_bits: int = 0
    high_bit_ignored: bool = False


# Checks before decoding


def check_pixels(pixels: StoredPixels) -> None:
    """Whether the file holds all the pixels that its header announces, in a form that is read.

    Raises:
        DamagedFileError: too few bytes, fragments or frames.
        UnsupportedFormatError: another transfer syntax or another size of a value.
    """
    if pixels.syntax not in _NATIVE and pixels.syntax not in _PLUGINS:
        raise UnsupportedFormatError(
            f"TransferSyntaxUID is {shown(pixels.syntax)} ({shown(UID(pixels.syntax[:64]).name)}); read are "
            "uncompressed pixels, RLE, JPEG, JPEG-LS, JPEG 2000 and HTJ2K. Send the series uncompressed.",
            evidence={"tag": "TransferSyntaxUID", "value": shown(pixels.syntax)},
        )
    if pixels.bits_allocated not in (8, 16, 32):
        raise UnsupportedFormatError(
            f"BitsAllocated is {pixels.bits_allocated} in a CT slice; 8, 16 or 32 are read.",
            evidence={"tag": "BitsAllocated", "value": pixels.bits_allocated},
        )
    if not 1 <= pixels.bits_stored <= pixels.bits_allocated:
        raise DamagedFileError(
            f"BitsStored is {pixels.bits_stored} in a CT slice; 1 to {pixels.bits_allocated} (BitsAllocated) are "
            "wanted. Send the original series.",
            evidence={"tag": "BitsStored", "value": pixels.bits_stored},
        )
    if pixels.offset is None:
        raise DamagedFileError(
            "PixelData is missing in a CT slice (the file is cut short, or holds no pixels): send the whole file.",
            evidence={"tag": "PixelData", "bytes": 0},
        )
    if pixels.syntax in _NATIVE:
        _check_native(pixels)
    else:
        with pixels.path.open("rb") as file:
            _frames_of_fragments(file, pixels)


def _check_native(pixels: StoredPixels) -> None:
    if pixels.length is None:
        raise DamagedFileError(
            "PixelData is a sequence of fragments, but TransferSyntaxUID says that it is not compressed.",
            evidence={"tag": "TransferSyntaxUID", "value": shown(pixels.syntax)},
        )
    rows, columns = pixels.shape
    wanted = rows * columns * pixels.frames * (pixels.bits_allocated // 8)
    assert pixels.offset is not None  # noqa: S101 (checked by the caller; tells mypy)
    present = min(pixels.length, pixels.path.stat().st_size - pixels.offset)
    if present < wanted:
        raise DamagedFileError(
            f"PixelData of a CT slice holds {present} bytes; {rows} Rows x {columns} Columns x {pixels.frames} frames "
            f"x {pixels.bits_allocated} BitsAllocated are {wanted} bytes. Send the whole file.",
            evidence={"tag": "PixelData", "bytes": present, "wanted_bytes": wanted},
        )
    surplus = present - wanted
    if surplus > 1:
        with pixels.path.open("rb") as file:
            file.seek(pixels.offset + wanted)
            # Files are padded to even lengths, some to whole blocks; more is another frame, or another shape.
            is_padding = surplus < columns or not any(file.read(surplus))
        if not is_padding:
            raise DamagedFileError(
                f"PixelData of a CT slice holds {present} bytes, more than the {wanted} of {rows} Rows x {columns} "
                f"Columns x {pixels.frames} frames x {pixels.bits_allocated} BitsAllocated: the header does not "
                "belong to these pixels.",
                evidence={"tag": "PixelData", "bytes": present, "wanted_bytes": wanted},
            )


Span = tuple[int, int]


def _fragments(file: BinaryIO, pixels: StoredPixels) -> tuple[bytes, list[Span]]:
    """The basic offset table, and where each fragment lies (first byte, length)."""
    size = pixels.path.stat().st_size
    table: bytes | None = None
    fragments: list[Span] = []
    at = pixels.offset or 0
    while True:
        file.seek(at)
        start = file.read(8)
        if len(start) < 8:
            raise DamagedFileError(
                f"PixelData of a CT slice is cut short: the file ends after {len(fragments)} fragments, before the "
                "end of their sequence. Send the whole file.",
                evidence={"tag": "PixelData", "fragments": len(fragments), "frames": pixels.frames},
            )
        group, element, length = struct.unpack("<HHI", start)
        if (group, element) == _END:
            return table or b"", fragments
        if (group, element) != _ITEM or at + 8 + length > size:
            raise DamagedFileError(
                f"PixelData of a CT slice is damaged: a fragment of {length} bytes is announced where "
                f"{size - at - 8} bytes are left. Send the whole file.",
                evidence={"tag": "PixelData", "bytes": size - at - 8, "wanted_bytes": length},
            )
        if table is None:
            table = file.read(length)
        elif length:
            fragments.append((at + 8, length))
        at += 8 + length


def _frames_of_fragments(file: BinaryIO, pixels: StoredPixels) -> list[list[Span]]:
    """The fragments of each frame: one each, or as an offset table or the starts of the codestreams say."""
    if pixels.length is not None:
        raise DamagedFileError(
            "PixelData is not a sequence of fragments, but TransferSyntaxUID says that it is compressed.",
            evidence={"tag": "TransferSyntaxUID", "value": shown(pixels.syntax)},
        )
    table, fragments = _fragments(file, pixels)
    starts = []
    for index, (at, _) in enumerate(fragments):
        file.seek(at)
        if file.read(3) in _STARTS:
            starts.append(index)
    if pixels.syntax == RLELossless or (not starts and len(fragments) == pixels.frames):
        starts = list(range(len(fragments)))
    elif len(starts) != pixels.frames:
        # A frame's later fragments may begin like a codestream by chance; a table knows.
        starts = _starts_by_table(table, pixels, fragments) or starts
    if len(starts) != pixels.frames or (starts and starts[0] != 0):
        raise DamagedFileError(
            f"PixelData of a CT slice holds {len(starts)} compressed frames in {len(fragments)} fragments; "
            f"NumberOfFrames is {pixels.frames}. Send the whole file.",
            evidence={"tag": "NumberOfFrames", "frames": len(starts), "wanted_frames": pixels.frames},
        )
    ends = [*starts[1:], len(fragments)]
    return [fragments[begin:end] for begin, end in zip(starts, ends, strict=True)]


def _starts_by_table(table: bytes, pixels: StoredPixels, fragments: list[Span]) -> list[int]:
    """The first fragment of each frame; none where no table fits."""
    at = {offset - 8 - (fragments[0][0] - 8): index for index, (offset, _) in enumerate(fragments)}
    for written, size, code in ((pixels.frame_offsets, 8, "Q"), (table, 4, "I")):
        count = len(written) // size
        offsets = struct.unpack(f"<{count}{code}", written[: count * size])
        if count == pixels.frames and all(offset in at for offset in offsets):
            return [at[offset] for offset in offsets]
    return []


# Decoding


def decoded_frames(pixels: StoredPixels, wanted: Collection[int]) -> Iterator[tuple[int, DecodedFrame]]:
    """The `wanted` frames of a file that `check_pixels` has passed, in the order of the file.

    Raises:
        DamagedFileError: a frame cannot be decoded whole.
    """
    rows, columns = pixels.shape
    size = pixels.bits_allocated // 8
    with pixels.path.open("rb") as file:
        if pixels.syntax in _NATIVE:
            order = "<" if pixels.is_little_endian else ">"
            for frame in sorted(wanted):
                file.seek((pixels.offset or 0) + frame * rows * columns * size)
                content = file.read(rows * columns * size)
                # In big endian, 8-bit values under OW are swapped by pairs; no CT has been seen with them.
                values = np.frombuffer(content, dtype=f"{order}u{size}").reshape(rows, columns)
                yield frame, _bits(values.astype(f"=u{size}", copy=False), pixels, is_native=True)
            return
        frames = _frames_of_fragments(file, pixels)
        for frame in sorted(wanted):
            codestream = b""
            for at, length in frames[frame]:
                file.seek(at)
                codestream += file.read(length)
            values = _decompress(codestream, pixels)
            unsigned = values.view(f"u{values.dtype.itemsize}")
            yield frame, _bits(unsigned, pixels, is_native=pixels.syntax == RLELossless)


def _decompress(codestream: bytes, pixels: StoredPixels) -> Shaped[np.ndarray, "y x"]:
    syntax, plugin = UID(pixels.syntax), _PLUGINS[UID(pixels.syntax)]
    if syntax == JPEGExtended12Bit and pixels.bits_stored > 8:
        # GDCM knows the process by the codestream; pydicom would not ask it for 12 bits under this name.
        syntax = JPEGLossless
    decoder = get_decoder(syntax)
    if plugin not in decoder.available_plugins:
        raise UnsupportedFormatError(f"No decoder for {syntax.name} (plugin {plugin}) is installed here.")
    rows, columns = pixels.shape

    options: dict[str, Any] = {
        "rows": rows,
        "columns": columns,
        "number_of_frames": 1,
        "samples_per_pixel": 1,
        "photometric_interpretation": "MONOCHROME2",
        "bits_allocated": pixels.bits_allocated,
        "bits_stored": pixels.bits_stored,
        "pixel_representation": int(pixels.is_signed),
        "pixel_keyword": "PixelData",
    }
    damaged = DamagedFileError(
        f"The pixels of a CT slice ({syntax.name}, {len(codestream)} bytes) cannot be decoded: they are damaged or "
        "cut short. Send the whole file.",
        evidence={"tag": "PixelData", "transfer_syntax": str(pixels.syntax), "bytes": len(codestream)},
    )
    if plugin != "pydicom":
        # Decoders make room for what the codestream says before anybody can compare it with Rows and Columns.
        announced = _announced_shape(codestream)
        if announced is None:
            raise damaged
        _require_shape(announced, pixels)
    one_frame = encapsulate([codestream], has_bot=False)

    def decode() -> Shaped[np.ndarray, "y x"]:
        return np.asarray(decoder.as_array(one_frame, raw=True, index=0, decoding_plugin=plugin, **options)[0])

    try:
        values, complaint = _with_complaint(decode) if syntax in _LIBJPEG else (decode(), "")
    # Decoders raise whatever they like; memory alone is no fault of the pixels.
    except MemoryError:
        raise
    except Exception as error:
        raise damaged from error
    _require_shape(values.shape, pixels)
    if complaint:
        raise DamagedFileError(
            f"The pixels of a CT slice ({syntax.name}) are damaged: {complaint}. Send the whole file.",
            evidence={"tag": "PixelData", "transfer_syntax": str(pixels.syntax), "bytes": len(codestream)},
        )
    return values


def _require_shape(shape: tuple[int, ...], pixels: StoredPixels) -> None:
    if shape != pixels.shape:
        raise DamagedFileError(
            f"The compressed pixels of a CT slice are {shape}; Rows and Columns are {pixels.shape}.",
            evidence={"tag": "Rows", "value": list(shape), "wanted": list(pixels.shape)},
        )


def _announced_shape(codestream: bytes) -> tuple[int, ...] | None:
    """The rows and columns (and samples, unless one) that a JPEG, JPEG-LS or JPEG 2000 codestream says it has.

    None where it says nothing, or is of more tiles than any CT.
    """
    begin = codestream.find(_JPEG_2000_START, 0, _MOST_BOX_BYTES)
    if begin >= 0:
        if len(codestream) < begin + 42:
            return None
        x1, y1, x0, y0, tile_x, tile_y, _, _, samples = struct.unpack_from(">8IH", codestream, begin + 8)
        if not (tile_x and tile_y) or -(-x1 // tile_x) * -(-y1 // tile_y) > _MOST_TILES:
            return None
        return (y1 - y0, x1 - x0, *([] if samples == 1 else [samples]))
    at = 2
    while at + 10 <= len(codestream) and codestream[at] == 0xFF:
        marker = codestream[at + 1]
        if marker == 0xFF:  # fill
            at += 1
        elif marker in _FRAME_HEADERS:
            rows, columns, samples = struct.unpack_from(">HHB", codestream, at + 5)
            return (rows, columns, *([] if samples == 1 else [samples]))
        else:
            at += 2 + int(struct.unpack_from(">H", codestream, at + 2)[0])
    return None


def _with_complaint(
    decode: Callable[[], Shaped[np.ndarray, "y x"]],
) -> tuple[Shaped[np.ndarray, "y x"], str]:
    """What `decode` returns, and what libjpeg wrote to the standard error output about it."""
    with tempfile.TemporaryFile() as written:
        before = os.dup(2)
        os.dup2(written.fileno(), 2)
        try:
            values = decode()
        finally:
            os.dup2(before, 2)
            os.close(before)
        written.seek(0)
        lines = written.read(2000).decode("latin-1").splitlines()
    return values, next(
        (line.strip()[:100] for line in lines if "Corrupt JPEG data" in line or "Premature" in line), ""
    )


def _bits(container: Shaped[np.ndarray, "y x"], pixels: StoredPixels, *, is_native: bool) -> DecodedFrame:
    """The bits that BitsStored and HighBit name, as numbers; the others may hold an overlay, or anything."""
    width, stored = container.dtype.itemsize * 8, min(pixels.bits_stored, container.dtype.itemsize * 8)
    shift = pixels.high_bit + 1 - stored if is_native else 0
    high_bit_ignored = False
    mask = (1 << stored) - 1
    wide = container.astype(np.int64)
    if shift and not pixels.has_overlay:
        # HighBit is often forgotten where BitsStored was changed: values are where bits are set.
        fits = 0 < shift <= width - stored and not np.any(wide & ((1 << shift) - 1))
        if not fits and (not 0 < shift <= width - stored or not np.any(wide >> stored)):
            shift, high_bit_ignored = 0, True
    if stored == width:
        values = container.view(f"i{width // 8}") if pixels.is_signed else container
        return DecodedFrame(values, high_bit_ignored=high_bit_ignored)
    shift = max(shift, 0)
    values = (wide >> shift) & mask
    if pixels.is_signed:
        values -= (values >> (stored - 1)) << stored
    beside = 0
    if not pixels.has_overlay:
        # Signs may be continued into the unused bits.
        as_is = container.view(f"i{width // 8}").astype(np.int64) if pixels.is_signed else wide
        beside = int(np.count_nonzero((wide & ~(mask << shift)) * (as_is != values)))
    return DecodedFrame(values, beside, high_bit_ignored)


# Hounsfield units


def rescale_of(stored: StoredRescale) -> tuple[float, float]:
    """Slope and intercept; 1 and 0 where they are missing.

    Raises:
        DamagedFileError: no number, or a slope of 0.
        UnsupportedFormatError: what comes out would be no Hounsfield units.
    """
    if not stored.is_hounsfield:
        tag, value = ("ModalityLUTSequence", "a table") if stored.has_table else ("RescaleType", shown(stored.kind))
        raise UnsupportedFormatError(
            f"{tag} is {value} in a CT slice; 'HU' (Hounsfield units, by RescaleSlope and RescaleIntercept) is wanted. "
            "Send the original CT series.",
            evidence={"tag": tag, "value": value, "wanted": "HU"},
        )
    numbers = []
    for tag, written, missing in (("RescaleSlope", stored.slope, 1.0), ("RescaleIntercept", stored.intercept, 0.0)):
        try:
            number = float(written) if written else missing
        except ValueError:
            number = float("nan")
        wants_more = tag == "RescaleSlope" and number == 0
        if not np.isfinite(number) or wants_more:
            raise DamagedFileError(
                f"{tag} is {shown(written)} in a CT slice; a finite number{' other than 0' if wants_more else ''} is "
                "wanted. Send the original series.",
                evidence={"tag": tag, "value": shown(written)},
            )
        numbers.append(number)
    return numbers[0], numbers[1]


def hounsfield(frame: DecodedFrame, rescale: StoredRescale) -> Int16[np.ndarray, "y x"]:
    slope, intercept = rescale_of(rescale)
    hu, not_finite = to_hounsfield(frame.values[np.newaxis], slope, intercept)
    if not_finite:
        raise DamagedFileError(
            f"RescaleSlope is {shown(rescale.slope)} in a CT slice: the values are beyond all numbers.",
            evidence={"tag": "RescaleSlope", "value": shown(rescale.slope)},
        )
    return np.asarray(hu[0])


def pixel_digest(s: Slice) -> bytes:
    """What is the same of slices that show the same Hounsfield units."""
    check_pixels(s.pixels)
    ((_, frame),) = decoded_frames(s.pixels, [s.frame])
    return hashlib.blake2b(hounsfield(frame, s.rescale).tobytes(), digest_size=16).digest()

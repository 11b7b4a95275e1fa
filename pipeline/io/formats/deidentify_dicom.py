"""Takes out of DICOM files what the Basic Application Level Confidentiality Profile of DICOM PS3.15 (annex E) names.

Which attribute is removed, emptied or replaced, and by what, is said by the table and the functions of
dicom-anonymizer, which are applied here at every depth. Beyond the profile goes whatever is private or unknown to the
standard, comments of overlays, and every file that is no CT slice with a place: reports, dose sheets, pictures.

Some dummies are chosen, so that the same volume is read from what is left: times become their rank among all times of
the scan, UIDs are mapped under a key, and whether contrast was given stays known.
"""

import io
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

import pydicom
from dicomanonymizer import simpledicomanonymizer as profile
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from pipeline.errors import UnsupportedFormatError
from pipeline.io.formats.archive import Member
from pipeline.io.formats.dicom_headers import NO_CONTRAST
from pipeline.io.formats.dicom_inventory import Inventory, take_stock
from pipeline.io.formats.dicom_tags import FAULTS, OVERLAY_BITS, seconds_of_day, text
from pipeline.io.formats.limits import SizeLimits
from pipeline.source_identity import mapped_uid

#: Of the table of actions: the newest edition of the standard that the library has.
EDITION: Final = "2026c"
_ACTIONS: Final[dict[tuple[int, ...], Callable[..., None]]] = profile.initialize_actions(f"dicomfields_{EDITION}")
_REPEATING: Final = {tag: action for tag, action in _ACTIONS.items() if len(tag) > 2}

_TIMES: Final = (0x00080032, 0x00080033)
_CONTRAST_AGENT: Final = 0x00180010
_FIRST_GROUP: Final = 0x0008
_OVERLAYS: Final = range(0x6000, 0x6100)
_PADDING: Final = 0xFFFCFFFC
_ZIP_TIME: Final = (1980, 1, 1, 0, 0, 0)


def deidentify_series(members: Iterable[Member], folder: Path, limits: SizeLimits, key: bytes, kept: BinaryIO) -> int:
    """Write the CT slices among `members` to `kept`: one as it is, several as a zip; how many files they are.

    Raises:
        PipelineError: as `take_stock`; UnsupportedFormatError: BurnedInAnnotation says that the pixels show who it is.
    """
    stock = Inventory()
    take_stock(members, folder, limits, stock)
    paths = sorted({s.pixels.path for s in stock.slices})
    times = {s.content_time_s for s in stock.slices} | {s.traits["acquisition_time_s"] for s in stock.slices}
    profiled = BasicProfile(key, sorted(time for time in times if isinstance(time, float)))
    if len(paths) == 1:
        pydicom.dcmwrite(kept, profiled.apply_to_file(paths[0]))
        return 1
    with zipfile.ZipFile(kept, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for number, path in enumerate(paths):
            info = zipfile.ZipInfo(f"{number:05d}.dcm", _ZIP_TIME)
            info.compress_type = zipfile.ZIP_DEFLATED
            written = io.BytesIO()
            pydicom.dcmwrite(written, profiled.apply_to_file(path))
            archive.writestr(info, written.getbuffer(), compresslevel=1)
            path.unlink()  # the disk need not hold a third copy
    return len(paths)


@dataclass
class BasicProfile:
    """Applies the profile to all files of one scan.

    Attributes:
        key: of the mapping of UIDs.
        times_s: all times of the scan, in seconds of the day, in their order.
    """

    key: bytes
    times_s: Sequence[float]
    _ranks: dict[float, int] = field(init=False)

    def __post_init__(self) -> None:
        self._ranks = {time: rank for rank, time in enumerate(self.times_s)}

    def apply_to_file(self, path: Path) -> Dataset:
        """The file's data set with a new preamble and meta header, ready to be written.

        Raises UnsupportedFormatError: BurnedInAnnotation.
        """
        data = pydicom.dcmread(path, force=True)
        if text(data, "BurnedInAnnotation").upper() == "YES":
            raise UnsupportedFormatError("The header says that text is burned into the pixels (BurnedInAnnotation).")
        meta, (is_implicit, is_little_endian) = FileMetaDataset(), data.original_encoding
        given = data.file_meta.get("TransferSyntaxUID") if hasattr(data, "file_meta") else None
        plain = ImplicitVRLittleEndian if is_implicit else ExplicitVRLittleEndian
        meta.TransferSyntaxUID = given or (plain if is_little_endian in (None, True) else ExplicitVRBigEndian)
        self.apply(data)
        if "SOPClassUID" in data:
            meta.MediaStorageSOPClassUID = data.SOPClassUID
        if "SOPInstanceUID" in data:
            meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
        data.preamble, data.file_meta = bytes(128), meta
        data.PatientIdentityRemoved = "YES"
        data.DeidentificationMethod = f"DICOM PS3.15 {EDITION} Basic Profile"
        code = Dataset()
        code.CodeValue, code.CodingSchemeDesignator = "113100", "DCM"
        code.CodeMeaning = "Basic Application Confidentiality Profile"
        data.DeidentificationMethodCodeSequence = [code]
        data.LongitudinalTemporalInformationModified = "REMOVED"
        return data

    def apply(self, data: Dataset) -> None:
        """Apply the profile to a data set and to all that are nested in it."""
        for tag in list(data.keys()):
            group, number = tag.group, tag.element
            known = pydicom.datadict.dictionary_has_tag(tag) or group in _OVERLAYS
            is_kept_overlay = group in _OVERLAYS and tag == OVERLAY_BITS
            if (
                tag.is_private
                or number == 0
                or group < _FIRST_GROUP
                or not known
                or tag == _PADDING
                or (group in _OVERLAYS and not is_kept_overlay)
            ):
                del data[tag]
                continue
            action = _ACTIONS.get((group, number)) or next(
                (act for (g, n, gs, ns), act in _REPEATING.items() if group & gs == g & gs and number & ns == n & ns),
                None,
            )
            if action is not None:
                self._act(data, tag, action)
            elif group not in _OVERLAYS and pydicom.datadict.dictionary_VR(tag) == "SQ":
                try:
                    items = list(data[tag].value or []) if data[tag].VR == "SQ" else None
                except FAULTS:
                    items = None
                if items is None:  # something else under the tag of a sequence
                    del data[tag]
                    continue
                for item in items:
                    self.apply(item)

    def _act(self, data: Dataset, tag: Any, action: Callable[..., None]) -> None:
        try:
            if action is profile.delete:  # which keeps dates, as 1 January of the year 1
                del data[tag]
            elif action is profile.replace_UID:
                element = data[tag]
                several = isinstance(element.value, (list, pydicom.multival.MultiValue))
                element.value = [*map(self.mapped, element.value)] if several else self.mapped(element.value)
            elif int(tag) in _TIMES:
                rank = self._ranks.get(seconds_of_day(text(data, pydicom.datadict.keyword_for_tag(tag))) or 0.0)
                data[tag].value = "" if rank is None else f"{rank // 3600:02}{rank // 60 % 60:02}{rank % 60:02}"
            elif int(tag) == _CONTRAST_AGENT and text(data, "ContrastBolusAgent").upper() in NO_CONTRAST:
                return
            elif data[tag].VR == "SQ":  # removing is the stronger one of what the table allows
                del data[tag]
            else:
                action(data, (tag.group, tag.element))
        except (*FAULTS, KeyError):  # nobody can tell what it holds
            del data[tag]

    def mapped(self, uid: object) -> str:
        """The UID in place of this one."""
        return mapped_uid(self.key, str(uid or ""))

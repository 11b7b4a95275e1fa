"""Whom and what a DICOM scan is of: what its results need to point back at it, and nothing else does.

It names a patient. It is carried beside the volume as data, and shown by no `repr`: no finding, problem, log or report
has a part of it.
"""

import hmac
import math
import re
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

Triple = tuple[float, float, float]

#: Of a patient and a study, by keyword, with what a value of it may look like; others are left empty.
ATTRIBUTES: Final[Mapping[str, re.Pattern[str]]] = {
    "PatientName": re.compile(r"[^\\]{0,324}"),
    "PatientID": re.compile(r"[^\\]{0,64}"),
    "IssuerOfPatientID": re.compile(r"[^\\]{0,64}"),
    "PatientBirthDate": re.compile(r"\d{8}"),
    "PatientSex": re.compile(r"[MFO]"),
    "StudyID": re.compile(r"[^\\]{0,16}"),
    "StudyDate": re.compile(r"\d{8}"),
    "StudyTime": re.compile(r"\d{2}(?:\d{2}(?:\d{2}(?:\.\d{1,6})?)?)?"),
    "AccessionNumber": re.compile(r"[^\\]{0,16}"),
    "ReferringPhysicianName": re.compile(r"[^\\]{0,324}"),
}
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
#: PS3.5, 9.1; zeros in front are a fault that some devices have, and a UID is compared as it is written.
_UID: Final = re.compile(r"(?=.{1,64}\Z)\d+(?:\.\d+)+")
#: UIDs that the standard itself gives out; they name nobody.
_STANDARD_UID: Final = re.compile(r"1\.2\.840\.10008\.[0-9.]+")


def is_uid(text: str) -> bool:
    return _UID.fullmatch(text) is not None


def shown_value(keyword: str, text: str) -> str:
    """A value of one of `ATTRIBUTES` as it may be kept: without control characters; empty where it is none."""
    value = _CONTROL.sub("", text).strip(" ")
    return value if ATTRIBUTES[keyword].fullmatch(value) else ""


def mapped_uid(key: bytes, uid: str) -> str:
    """The UID in place of this one, made of a UUID (PS3.5, annex B.2); without the key nobody can tell of which."""
    if not uid or _STANDARD_UID.fullmatch(uid):
        return uid
    digest = hmac.digest(key, uid.encode(), "sha256")
    return f"2.25.{uuid.UUID(bytes=digest[:16], version=5).int}"


@dataclass(frozen=True, repr=False)
class SourceImage:
    """One image, or one frame of one, that the volume was made of.

    Attributes:
        frame: from 1, of a multi-frame image; None of others.
    """

    sop_class_uid: str
    sop_instance_uid: str
    frame: int | None = None


@dataclass(frozen=True, repr=False)
class SourcePlane:
    """A plane of the volume's grid.

    Attributes:
        position_mm: ImagePositionPatient, LPS: of a leaning stack that of the slice, which the straight grid misses.
        images: which of `SourceIdentity.images` it was made of; two where it was interpolated.
    """

    position_mm: Triple
    images: tuple[int, ...]


@dataclass(frozen=True, repr=False)
class SourceIdentity:
    """Of one DICOM series.

    Attributes:
        attributes: of patient and study, by the keywords of `ATTRIBUTES`; those that are empty are missing.
        orientation: ImageOrientationPatient.
        pixel_spacing_mm: between rows, between columns.
        planes: by index of the grid's first axis.
    """

    study_uid: str
    series_uid: str
    frame_of_reference_uid: str
    orientation: tuple[float, ...]
    pixel_spacing_mm: tuple[float, float]
    images: tuple[SourceImage, ...]
    planes: tuple[SourcePlane, ...]
    attributes: Mapping[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def parse(cls, left: Mapping[str, Any], planes: int) -> "SourceIdentity":
        """What a reader left of a volume with so many planes, checked.

        Raises:
            KeyError, TypeError, ValueError: it is not whole, or not what it says to be. The message has no value of it.
        """
        images = tuple(
            SourceImage(_uid(image["sop_class_uid"]), _uid(image["sop_instance_uid"]), _frame(image["frame"]))
            for image in left["images"]
        )
        found = tuple(
            SourcePlane(_numbers(plane["position_mm"], 3), tuple(int(index) for index in plane["images"]))  # type: ignore[arg-type]
            for plane in left["planes"]
        )
        if len(found) != planes or not all(0 <= i < len(images) for plane in found for i in plane.images):
            raise ValueError("the planes are not those of the volume")
        given = {keyword: shown_value(keyword, str(value)) for keyword, value in left["attributes"].items()}
        return cls(
            study_uid=_uid(left["study_uid"]),
            series_uid=_uid(left["series_uid"]),
            frame_of_reference_uid=_uid(left["frame_of_reference_uid"]),
            orientation=_numbers(left["orientation"], 6),
            pixel_spacing_mm=_numbers(left["pixel_spacing_mm"], 2),  # type: ignore[arg-type]
            images=images,
            planes=found,
            attributes={keyword: value for keyword, value in given.items() if value},
        )

    def deidentified(self, key: bytes) -> "SourceIdentity":
        """Without what names the patient; the UIDs are those that `deidentify` gives the kept scan under this key."""
        return SourceIdentity(
            study_uid=mapped_uid(key, self.study_uid),
            series_uid=mapped_uid(key, self.series_uid),
            frame_of_reference_uid=mapped_uid(key, self.frame_of_reference_uid),
            orientation=self.orientation,
            pixel_spacing_mm=self.pixel_spacing_mm,
            images=tuple(
                SourceImage(image.sop_class_uid, mapped_uid(key, image.sop_instance_uid), image.frame)
                for image in self.images
            ),
            planes=self.planes,
        )


def _uid(value: object) -> str:
    if not isinstance(value, str) or not is_uid(value):
        raise ValueError("no UID")
    return value


def _frame(value: object) -> int | None:
    if value is None or (isinstance(value, int) and value > 0):
        return value
    raise ValueError("no number of a frame")


def _numbers(values: Any, count: int) -> tuple[float, ...]:
    numbers = tuple(float(value) for value in values)
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise ValueError(f"no {count} numbers")
    return numbers

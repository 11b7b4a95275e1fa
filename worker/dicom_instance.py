"""What the DICOM instances that we make have in common: whom they are of, who made them, and how they are written.

highdicom makes them, of a scan that has no patient: what it warns of, logs or raises quotes values. The patient comes
in at the end, from texts that were checked when the scan was read.
"""

import hashlib
import logging
import uuid
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from highdicom.coding_schemes import CodingSchemeIdentificationItem
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import CTImageStorage
from pydicom.valuerep import DSfloat, format_number_as_ds

from jobs.coding import SCHEME, SCHEME_NAME, SCHEME_UID, Concept
from jobs.models import ModelProvenance
from jobs.version import __version__
from pipeline.geometry import Grid
from pipeline.source_identity import ATTRIBUTES, SourceIdentity

MANUFACTURER: Final = "Lobewise"

# They log what they copy, and from which instances.
for library in ("highdicom", "pydicom"):
    logging.getLogger(library).setLevel(logging.CRITICAL)

#: Of the instances that stand for the planes while highdicom works; the real ones are put in their place. No UID that
#: is made of a UUID has another part.
_PLACEHOLDER: Final = "2.25.1."


@dataclass(frozen=True, repr=False)
class Maker:
    """Who makes instances of what.

    Attributes:
        name: of the job and attempt; its instances have UIDs of their own.
    """

    name: str
    identity: SourceIdentity
    models: Sequence[ModelProvenance]

    def uid(self, of: str) -> str:
        """The same for the same attempt at the same job."""
        return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, f'lobewise {self.name} {of}').int}"

    @property
    def weights_digest(self) -> str:
        listed = "\0".join(f"{model.name} {model.version} {model.sha256}" for model in self.models)
        return hashlib.sha256(listed.encode()).hexdigest()

    @property
    def device_uid(self) -> str:
        """Of this software with these weights."""
        return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, f'lobewise {__version__} {self.weights_digest}').int}"

    def of_device(self, series_number: int, product: str) -> dict[str, Any]:
        """What highdicom's instances are told of themselves and of their maker."""
        return {
            "series_instance_uid": self.uid(f"{product} series"),
            "series_number": series_number,
            "sop_instance_uid": self.uid(product),
            "instance_number": 1,
            "manufacturer": MANUFACTURER,
            "manufacturer_model_name": MANUFACTURER,
            "software_versions": __version__,
            # There is no machine that has one: weights are what tells two of us apart.
            "device_serial_number": self.weights_digest[:16],
            "coding_schemes": [
                CodingSchemeIdentificationItem(
                    SCHEME, name=SCHEME_NAME, version="1", responsible_organization=MANUFACTURER, uid=SCHEME_UID
                )
            ],
        }

    def nameless(self, sop_class_uid: str, sop_instance_uid: str) -> Dataset:
        """A data set that stands for an image of the series, without a patient."""
        image = Dataset()
        image.SOPClassUID, image.SOPInstanceUID = sop_class_uid, sop_instance_uid
        image.StudyInstanceUID, image.SeriesInstanceUID = self.identity.study_uid, self.identity.series_uid
        image.FrameOfReferenceUID = self.identity.frame_of_reference_uid
        image.Modality = "CT"
        for keyword in ATTRIBUTES:
            setattr(image, keyword, "")
        return image

    def planes(self, grid: Grid) -> list[Dataset]:
        """One image for each plane of the grid, where that plane lies."""
        found = []
        _, rows, columns = grid.shape
        for index, plane in enumerate(self.identity.planes):
            image = self.nameless(CTImageStorage, f"{_PLACEHOLDER}{index + 1}")
            image.Rows, image.Columns = rows, columns
            image.ImagePositionPatient = _decimals(plane.position_mm)
            image.ImageOrientationPatient = _decimals(self.identity.orientation)
            image.PixelSpacing = _decimals(self.identity.pixel_spacing_mm)
            # Masks fill the space between slices, however thick these are.
            image.SliceThickness, image.SpacingBetweenSlices = _decimals([grid.spacing_mm[0]] * 2)
            found.append(image)
        return found

    def sources_of(self, placeholder: Dataset) -> list[Dataset]:
        """The references to the images of a plane, made from that to its placeholder."""
        plane = self.identity.planes[int(placeholder.ReferencedSOPInstanceUID.removeprefix(_PLACEHOLDER)) - 1]
        found = []
        for index in plane.images:
            # Deep, since frames of several segments share the elements.
            source, reference = self.identity.images[index], deepcopy(placeholder)
            reference.ReferencedSOPClassUID = source.sop_class_uid
            reference.ReferencedSOPInstanceUID = source.sop_instance_uid
            if source.frame is not None:
                reference.ReferencedFrameNumber = source.frame
            if len(plane.images) > 1:
                reference.SpatialLocationsPreserved = "NO"
            found.append(reference)
        return found

    @property
    def instances(self) -> dict[str, str]:
        """The classes of the instances that the scan was made of, by their UIDs; each once, in their order."""
        return {image.sop_instance_uid: image.sop_class_uid for image in self.identity.images}

    def write(self, instance: Dataset, description: str, path: Path) -> None:
        """Name the patient, and write the instance to `path`."""
        instance.SpecificCharacterSet = "ISO_IR 192"
        instance.SeriesDescription = description
        for keyword in ATTRIBUTES:
            value = self.identity.attributes.get(keyword, "")
            if value or keyword in instance:
                setattr(instance, keyword, value)
        with quiet():
            instance.save_as(path, enforce_file_format=True)


@contextmanager
def quiet() -> Iterator[None]:
    """Without warnings of pydicom and highdicom, which quote values."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def dicom_code(concept: Concept) -> Code:
    return Code(concept.code, concept.scheme, concept.meaning)


def code_item(concept: Concept) -> Dataset:
    """An item of a code sequence."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = concept.code, concept.scheme, concept.meaning
    return item


def _decimals(values: Sequence[float]) -> list[Any]:
    """As the 16 characters of a decimal string hold them."""
    return [DSfloat(format_number_as_ds(float(value))) for value in values]

"""The codes of what is measured, for DICOM and FHIR alike; `docs/dicom.md` publishes the private ones.

No standard has a code for the scores of the paper, or for high opacity, which is a density and no finding of a
radiologist. A code and its meaning never change; what means something else gets a new code.
"""

from dataclasses import dataclass
from typing import Final

#: Of the private codes: what DICOM calls the coding scheme, and its identifier (a UUID as an OID), which FHIR uses too.
SCHEME: Final = "99LOBEWISE"
SCHEME_NAME: Final = "Lobewise severity of lung opacities"
SCHEME_UID: Final = "2.25.181170767658157944018454575714171686643"

DICOM_SYSTEMS: Final = {
    "SCT": "http://snomed.info/sct",
    "DCM": "http://dicom.nema.org/resources/ontology/DCM",
    "LN": "http://loinc.org",
    "UCUM": "http://unitsofmeasure.org",
    SCHEME: f"urn:oid:{SCHEME_UID}",
}


@dataclass(frozen=True)
class Concept:
    """A code of a coding scheme, by DICOM's name of the scheme.

    Attributes:
        definition: of private ones.
    """

    code: str
    scheme: str
    meaning: str
    definition: str = ""

    @property
    def system(self) -> str:
        """The scheme, as FHIR names it."""
        return DICOM_SYSTEMS[self.scheme]


@dataclass(frozen=True)
class Site:
    """A part of the body, with its side where the code alone does not tell it."""

    concept: Concept
    side: Concept | None = None
    #: One code for both.
    precise: Concept | None = None


LEFT: Final = Concept("7771000", "SCT", "Left")
RIGHT: Final = Concept("24028007", "SCT", "Right")
LUNG: Final = Concept("39607008", "SCT", "Lung")
_UPPER: Final = Concept("45653009", "SCT", "Upper lobe of lung")
_LOWER: Final = Concept("90572001", "SCT", "Lower lobe of lung")

LUNGS: Final = Site(LUNG)
#: By the report's name of the lobe.
LOBES: Final = {
    "left_upper": Site(_UPPER, LEFT, Concept("44714003", "SCT", "Structure of upper lobe of left lung")),
    "left_lower": Site(_LOWER, LEFT, Concept("41224006", "SCT", "Structure of lower lobe of left lung")),
    "right_upper": Site(_UPPER, RIGHT, Concept("42400003", "SCT", "Structure of upper lobe of right lung")),
    "right_middle": Site(Concept("72481006", "SCT", "Middle lobe of right lung")),
    "right_lower": Site(_LOWER, RIGHT, Concept("266005", "SCT", "Structure of lower lobe of right lung")),
}

ANATOMICAL_STRUCTURE: Final = Concept("91723000", "SCT", "Anatomical Structure")
ABNORMAL_STRUCTURE: Final = Concept("49755003", "SCT", "Morphologically Abnormal Structure")
#: Ground glass, crazy paving and consolidation in one: no narrower code holds for all of it.
OPACITY: Final = Concept("112001", "DCM", "Opacity")
VOLUME: Final = Concept("118565006", "SCT", "Volume")
CT_OF_CHEST: Final = Concept("24627-2", "LN", "CT Chest")

MILLILITRE: Final = Concept("mL", "UCUM", "milliliter")
PERCENT: Final = Concept("%", "UCUM", "percent")
HOUNSFIELD: Final = Concept("[hnsf'U]", "UCUM", "Hounsfield unit")
SCORE: Final = Concept("{score}", "UCUM", "score")


def _ours(code: str, meaning: str, definition: str) -> Concept:
    return Concept(code, SCHEME, meaning, definition)


HIGH_OPACITY: Final = _ours(
    "HO",
    "High opacity",
    "The part of the lung opacities whose voxels are at or above the high opacity threshold. A density, and no "
    "finding of consolidation.",
)
THRESHOLD: Final = _ours(
    "HO-THRESHOLD", "High opacity threshold", "The least attenuation of a voxel of high opacity: -200 HU."
)
PERCENT_OPACITY: Final = _ours(
    "PO", "Percentage of opacity", "Volume of the opacities in percent of the volume of the lungs, or of the lobe."
)
PERCENT_OPACITY_LOW: Final = _ours(
    "PO-LOW", "Percentage of opacity, lower end", "The same if only what is very likely an opacity counts."
)
PERCENT_OPACITY_HIGH: Final = _ours(
    "PO-HIGH", "Percentage of opacity, upper end", "The same if all that may be an opacity counts."
)
PERCENT_HIGH_OPACITY: Final = _ours(
    "PHO",
    "Percentage of high opacity",
    "Volume of high opacity in percent of the volume of the lungs, or of the lobe.",
)
LUNG_SEVERITY_SCORE: Final = _ours("LSS", "Lung severity score", "Sum of the five lobes' severity scores: 0 to 20.")
LUNG_HIGH_OPACITY_SCORE: Final = _ours(
    "LHOS", "Lung high opacity score", "Sum of the five lobes' high opacity scores: 0 to 20."
)
LOBE_SEVERITY_SCORE: Final = _ours(
    "LOBE-SS",
    "Lobe severity score",
    "By the percentage of opacity of the lobe: 0 below 1 %, 1 up to 25 %, 2 up to 50 %, 3 up to 75 %, 4 above.",
)
LOBE_HIGH_OPACITY_SCORE: Final = _ours(
    "LOBE-HOS",
    "Lobe high opacity score",
    "By the percentage of high opacity of the lobe, in the same steps: 0 to 4.",
)

#: FHIR's alone: in DICOM they are volumes of segments.
OPACITY_VOLUME: Final = _ours("OV", "Volume of opacity", "Volume of the opacities in the lungs.")
HIGH_OPACITY_VOLUME: Final = _ours("HOV", "Volume of high opacity", "Volume of high opacity in the lungs.")

#: All that is private.
PRIVATE: Final = (
    HIGH_OPACITY,
    THRESHOLD,
    OPACITY_VOLUME,
    HIGH_OPACITY_VOLUME,
    PERCENT_OPACITY,
    PERCENT_OPACITY_LOW,
    PERCENT_OPACITY_HIGH,
    PERCENT_HIGH_OPACITY,
    LUNG_SEVERITY_SCORE,
    LUNG_HIGH_OPACITY_SCORE,
    LOBE_SEVERITY_SCORE,
    LOBE_HIGH_OPACITY_SCORE,
)

HIGH_OPACITY_HU: Final = -200

"""What each number in a mask stands for: one table for masks, pictures and the service.

The codes are concepts of SNOMED CT, as DICOM's "Lobe of Lung" and its lists of structures use them. Opacities have
none: no single concept means ground glass, crazy paving or consolidation.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pipeline.anatomy import Lobe


@dataclass(frozen=True)
class Label:
    """One number of a mask; 0 is always the background."""

    number: int
    #: For programs; of a lobe as in the report.
    name: str
    #: For people.
    display_name: str
    rgb: tuple[int, int, int]
    snomed_ct: str | None = None

    @property
    def colour(self) -> str:
        """As `#56b4e9`."""
        return "#{:02x}{:02x}{:02x}".format(*self.rgb)


def _lobe(lobe: Lobe, rgb: tuple[int, int, int], snomed_ct: str) -> Label:
    return Label(int(lobe), lobe.slug, f"{lobe.title.capitalize()} lobe", rgb, snomed_ct)


#: By the name of the mask. The lobes' colours are told apart by people with impaired colour vision (Okabe and Ito).
LABELS: Final[Mapping[str, tuple[Label, ...]]] = {
    "lungs": (Label(1, "lungs", "Lungs", (0, 114, 178), "39607008"),),
    "lobes": (
        _lobe(Lobe.LEFT_UPPER, (86, 180, 233), "44714003"),
        _lobe(Lobe.LEFT_LOWER, (0, 158, 115), "41224006"),
        _lobe(Lobe.RIGHT_UPPER, (230, 159, 0), "42400003"),
        _lobe(Lobe.RIGHT_MIDDLE, (240, 228, 66), "72481006"),
        _lobe(Lobe.RIGHT_LOWER, (204, 121, 167), "266005"),
    ),
    "lesions": (Label(1, "lesions", "Opacities", (255, 60, 40)),),
    "high-opacity": (Label(1, "high_opacity", "High opacities", (160, 20, 60)),),
}

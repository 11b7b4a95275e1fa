"""Names of the anatomy and the one window that every stage shares."""

from enum import Enum, IntEnum
from typing import Final

#: What lies outside the scan.
AIR_HU: Final = -1024


class Lobe(IntEnum):
    """The five lobes; the value is the label in masks (the numbering of lungmask)."""

    LEFT_UPPER = 1
    LEFT_LOWER = 2
    RIGHT_UPPER = 3
    RIGHT_MIDDLE = 4
    RIGHT_LOWER = 5

    @property
    def slug(self) -> str:
        """`left_upper`, as the report names it."""
        return self.name.lower()

    @property
    def title(self) -> str:
        """`left upper`, for sentences."""
        return self.slug.replace("_", " ")

    @property
    def is_left(self) -> bool:
        return self in LEFT_LOBES


LEFT_LOBES: Final = (Lobe.LEFT_UPPER, Lobe.LEFT_LOWER)
RIGHT_LOBES: Final = (Lobe.RIGHT_UPPER, Lobe.RIGHT_MIDDLE, Lobe.RIGHT_LOWER)


class Landmark(Enum):
    """The landmarks that place the lung region of interest (paper, "Lung and Lobe Segmentation")."""

    #: Where the trachea divides: the point of the air column's floor between both main bronchi.
    CARINA = "carina"
    #: Lower end of the sternum: the tip of the xiphoid process. The fallback when there is no carina.
    STERNUM_TIP = "sternum_tip"


#: The sheets between lobes, by name: here, so that findings name them without what looks for them.
FISSURES: Final = ("left_oblique", "right_oblique", "right_horizontal")

"""One patient's measures, drawn from a seed. Lengths are mm, points LPS with the carina near the origin.

Ranges are those of adults in anatomy textbooks (thorax 24-28 cm wide inside, carina at T4/T5, right dome of the
diaphragm a rib space above the left), widened so that networks see more than the usual.
"""

from dataclasses import dataclass

from numpy.random import Generator

Point = tuple[float, float, float]


@dataclass(frozen=True)
class Patient:
    """The measures that more than one structure depends on.

    Attributes:
        scale: size of the whole body against the mean.
        cage_x, cage_y: half axes of the rib cage's inside.
        apex_z: top of the rib cage.
        waist_z: height of its widest part.
        fat: thickness of the subcutaneous fat.
        dome_z: tops of the diaphragm, right and left.
        spine_y: centre of the vertebral bodies.
        sternum_tip: lower end of the xiphoid process.
        right_hilum, left_hilum: where the main bronchi end.
        blood_hu: of heart and vessels; enhanced when contrast was given.
    """

    scale: float
    cage_x: float
    cage_y: float
    apex_z: float
    waist_z: float
    fat: float
    dome_z: tuple[float, float]
    spine_y: float
    sternum_tip: Point
    carina: Point
    right_hilum: Point
    left_hilum: Point
    blood_hu: float
    fov_half: float
    fov_z: tuple[float, float]

    @classmethod
    def draw(cls, rng: Generator, contrast: bool | None) -> "Patient":
        draw = rng.uniform
        s = draw(0.87, 1.13)
        cage_x, cage_y, fat = draw(118, 142) * s, draw(82, 102) * s, draw(8, 40)
        enhanced, enhanced_hu, plain_hu = draw() < 0.3, draw(110, 280), draw(30, 50)
        right_dome = draw(-108, -84) * s
        carina = (draw(-3, 3), draw(9, 15) * s, 0.0)
        return cls(
            scale=s,
            cage_x=cage_x,
            cage_y=cage_y,
            apex_z=draw(85, 122) * s,
            waist_z=-40 * s,
            fat=fat,
            dome_z=(right_dome, right_dome - draw(6, 16) * s),
            spine_y=draw(57, 69) * s,
            sternum_tip=(draw(-3, 3), -(cage_y + 6), draw(-118, -92) * s),
            carina=carina,
            right_hilum=shifted(carina, (-30 * s * draw(0.9, 1.1), 8 * s, -24 * s * draw(0.9, 1.1))),
            left_hilum=shifted(carina, (41 * s * draw(0.9, 1.1), 9 * s, -27 * s * draw(0.9, 1.1))),
            blood_hu=enhanced_hu if (enhanced if contrast is None else contrast) else plain_hu,
            fov_half=max(cage_x + fat + 35, 165.0) + draw(0, 25),
            fov_z=(draw(-245, -212) * s, draw(112, 150) * s),
        )


def shifted(point: Point, way: Point, scale: float = 1.0) -> Point:
    """The point `scale` times `way` further on."""
    x, y, z = (p + scale * w for p, w in zip(point, way, strict=True))
    return x, y, z

"""The chest as signed distances: body, rib cage, mediastinum, diaphragm, lungs, fissures, bones.

The lungs are what is left of the rib cage's inside once mediastinum and airways are taken out and the diaphragm has
cut it from below, which gives them their real neighbours: heart, spine, aorta, domes.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, UInt8
from numpy.random import Generator

from pipeline.anatomy import Lobe
from pipeline.phantom.fields import Field, RandomField, Space, Tube
from pipeline.phantom.patient import Patient, Point, shifted


@dataclass(frozen=True, eq=False)
class Thorax:
    """Signed distances (mm, negative inside) of what the painter needs."""

    body: Field
    cage: Field
    below_diaphragm: Field
    mediastinum: Field
    heart: Field
    great_vessels: Field
    airways: tuple[Tube, ...]
    lungs: Field


@dataclass(frozen=True, eq=False)
class Bend:
    """The patient's own shape: a smooth random displacement of a few millimetres along each axis."""

    fields: tuple[RandomField, RandomField, RandomField]
    reach_mm: tuple[float, float, float]

    @classmethod
    def draw(cls, rng: Generator) -> "Bend":
        x, y, z = (RandomField.draw(rng, 60.0) for _ in range(3))
        return cls((x, y, z), (rng.uniform(1.5, 4.5), rng.uniform(1.5, 4.5), rng.uniform(1.5, 4.5)))

    def __call__(self, space: Space) -> Space:
        """Where each voxel of the scan lies in the unbent patient."""
        shifts = [reach * space.smooth(field, 20.0) for field, reach in zip(self.fields, self.reach_mm, strict=True)]
        return Space(space.grid, space.x + shifts[0], space.y + shifts[1], space.z + shifts[2])

    def undo(self, point: Point) -> Point:
        """Where a point of the unbent patient lies in the scan, by fixed-point iteration."""
        here = np.asarray(point, dtype=np.float32)
        for _ in range(8):
            at = [here[axis].reshape(1, 1, 1) for axis in range(3)]
            shift = [reach * field(*at).item() for field, reach in zip(self.fields, self.reach_mm, strict=True)]
            here = np.asarray(point, dtype=np.float32) - np.asarray(shift, dtype=np.float32)
        return float(here[0]), float(here[1]), float(here[2])


def build_thorax(space: Space, patient: Patient, rng: Generator) -> Thorax:
    """All shapes of the chest, from the outside in."""
    cage = rib_cage(space, patient, rng)
    diaphragm = diaphragm_height(space, patient, rng) - space.z
    heart, vessels = heart_shape(space, patient, rng), great_vessels(space, patient, rng)
    airways = airway_tubes(patient, rng)
    mediastinum = np.minimum.reduce([midline(space, patient, rng), heart, vessels, spine_bulge(space, patient)])
    air = np.full_like(space.x, 50.0)
    for tube in airways[:3]:
        _merge(air, space, tube)
    lungs = np.maximum.reduce([cage + np.float32(rng.uniform(3, 7)), -mediastinum, diaphragm, 4 - air])
    lungs = np.maximum(lungs, space.z - np.float32(patient.apex_z - 8))
    return Thorax(body_shape(space, patient, rng), cage, diaphragm, mediastinum, heart, vessels, airways, lungs)


def body_shape(space: Space, patient: Patient, rng: Generator) -> Field:
    """A rounded box that widens to the shoulders and narrows to the neck."""
    shoulder = np.clip((space.z - 40 * patient.scale) / 80, 0, 1)
    half_x = patient.cage_x + patient.fat + 18 + shoulder * np.float32(30 * patient.scale)
    half_y = patient.cage_y + patient.fat * rng.uniform(0.6, 1.0) + 16
    power = rng.uniform(2.3, 3.0)
    trunk = ((np.abs(space.x / half_x) ** power + np.abs(space.y / half_y) ** power) ** (1 / power) - 1) * half_y
    neck = np.clip((space.z - patient.apex_z - 5) / 25, 0, 1)
    around = np.sqrt(space.x**2 + (space.y * 1.1) ** 2) - (half_x - (half_x - 70) * neck)
    return np.asarray(np.where(neck > 0, np.maximum(trunk, around), trunk), dtype=np.float32)


def rib_cage(space: Space, patient: Patient, rng: Generator) -> Field:
    """The inside of the ribs: an ellipse that closes towards the apex."""
    up = np.clip((space.z - patient.waist_z) / (patient.apex_z - patient.waist_z), 0, 1)
    taper = 1 - rng.uniform(0, 0.12) * np.clip((patient.waist_z - space.z) / 150, 0, 1)
    size = np.maximum(np.sqrt(np.clip(1 - up ** np.float32(rng.uniform(2.3, 3.0)), 0, 1)) * taper, 1e-3)
    ratio = np.sqrt((space.x / patient.cage_x) ** 2 + (space.y / patient.cage_y) ** 2) / size
    distance = (ratio - 1) * patient.cage_y * size
    above = space.z > patient.apex_z
    return np.asarray(np.where(above, np.maximum(distance, space.z - patient.apex_z), distance), dtype=np.float32)


def diaphragm_height(space: Space, patient: Patient, rng: Generator) -> Field:
    """z of the diaphragm above each x, y: two domes that fall off to the costophrenic angles."""
    s, heights = patient.scale, []
    for sign, top in zip((-1, 1), patient.dome_z, strict=True):
        across = (space.x - sign * rng.uniform(58, 66) * s) ** 2 / (rng.uniform(90, 110) * s)
        deep = (space.y + rng.uniform(-5, 15)) ** 2 / (rng.uniform(95, 125) * s)
        heights.append(top - (across + deep) * rng.uniform(0.5, 0.75))
    return np.asarray(np.where(space.x < 0, heights[0], heights[1]), dtype=np.float32)


def heart_shape(space: Space, patient: Patient, rng: Generator) -> Field:
    """An ellipsoid to the left of the midline, its tip down and to the left."""
    s, tilt = patient.scale, rng.uniform(0.3, 0.7)
    x, z = space.x - rng.uniform(16, 30) * s, space.z - rng.uniform(-84, -62) * s
    y = space.y - rng.uniform(-35, -22) * s
    along, across = x * math.cos(tilt) - z * math.sin(tilt), x * math.sin(tilt) + z * math.cos(tilt)
    half = rng.uniform(50, 68) * s, rng.uniform(42, 55) * s, rng.uniform(46, 60) * s
    ratio = np.sqrt((along / half[0]) ** 2 + (y / half[1]) ** 2 + (across / half[2]) ** 2)
    return np.asarray(((ratio - 1) * half[1]), dtype=np.float32)


def great_vessels(space: Space, patient: Patient, rng: Generator) -> Field:
    """Aortic arch, descending aorta left of the spine, superior vena cava, pulmonary trunk."""
    s = patient.scale
    aorta = rng.uniform(11, 16) * s
    tubes = [
        Tube((26 * s, 40 * s, 28 * s), (-8 * s, -18 * s, 24 * s), aorta, aorta),
        Tube((-8 * s, -18 * s, 24 * s), (4 * s, -22 * s, -30 * s), aorta, aorta * 1.1),
        Tube((26 * s, 42 * s, 28 * s), (14 * s, patient.spine_y - 14 * s, -260 * s), aorta, aorta * 0.8),
        Tube((-24 * s, -4 * s, 70 * s), (-24 * s, -6 * s, -40 * s), 9 * s, 10 * s),
        Tube((18 * s, -20 * s, -34 * s), (30 * s, 4 * s, -16 * s), 13 * s, 11 * s),
    ]
    distance = np.full_like(space.x, 80.0)
    for tube in tubes:
        _merge(distance, space, tube, margin_mm=70.0)
    return distance


def midline(space: Space, patient: Patient, rng: Generator) -> Field:
    """The slab between the lungs, thinner in front of the heart and behind the sternum."""
    width = rng.uniform(20, 30) * patient.scale * np.exp(-(((space.y - 5) / (patient.cage_y * 0.75)) ** 4)) + 4
    return np.asarray((np.abs(space.x - rng.uniform(-2, 6)) - width), dtype=np.float32)


def spine_bulge(space: Space, patient: Patient) -> Field:
    """What the spine and its muscles take from the lungs behind."""
    return np.asarray((np.sqrt(space.x**2 + (space.y - patient.spine_y) ** 2) - 29 * patient.scale), dtype=np.float32)


def airway_tubes(patient: Patient, rng: Generator) -> tuple[Tube, ...]:
    """Trachea, both main bronchi, then the lobar bronchi: two on the left, three on the right."""
    s, carina, right, left = patient.scale, patient.carina, patient.right_hilum, patient.left_hilum
    radius = rng.uniform(7.5, 10) * s
    trunk = [
        Tube((rng.uniform(-4, 4), -6 * s, 165 * s), carina, radius, radius * 0.94),
        Tube(carina, right, radius * 0.82, radius * 0.66),
        Tube(carina, left, radius * 0.72, radius * 0.6),
    ]
    ways = [
        (right, (-18, -8, 18)),
        (right, (-10, -14, -20)),
        (right, (-8, 16, -22)),
        (left, (16, -12, 12)),
        (left, (10, 14, -22)),
    ]
    lobar = [Tube(root, shifted(root, way, s), 4 * s, 3 * s) for root, way in ways]
    return (*trunk, *lobar)


@dataclass(frozen=True, eq=False)
class Lobes:
    """Labels of every lung voxel and the distance (mm) to the nearest fissure of its own lung."""

    labels: UInt8[np.ndarray, "z y x"]
    fissure: Field


def divide_lungs(space: Space, lung: Bool[np.ndarray, "z y x"], patient: Patient, rng: Generator) -> Lobes:
    """Oblique fissures on both sides, a horizontal one on the right; each with random bumps."""
    labels = np.zeros(lung.shape, np.uint8)
    fissure = np.full(lung.shape, 50, np.float32)
    for side, upper, lower in ((-1, Lobe.RIGHT_UPPER, Lobe.RIGHT_LOWER), (1, Lobe.LEFT_UPPER, Lobe.LEFT_LOWER)):
        mine = lung & (np.sign(space.x) == side) if side < 0 else lung & (space.x >= 0)
        # Negative below and behind; it rises from the front below to the back above.
        slope = rng.uniform(0.9, 1.4)
        height = rng.uniform(-60, -38) * patient.scale + (4 if side > 0 else -4)
        bumps = rng.uniform(3, 9) * space.random(rng, 55.0)
        oblique = np.asarray(((space.z - height - slope * space.y - bumps) / math.sqrt(1 + slope**2)), dtype=np.float32)
        labels[mine] = np.where(oblique[mine] < 0, lower, upper)
        fissure[mine] = np.abs(oblique[mine])
    front = labels == Lobe.RIGHT_UPPER
    height = rng.uniform(-36, -14) * patient.scale
    tilt = rng.uniform(-0.15, 0.3) * space.y + rng.uniform(-0.15, 0.15) * space.x
    bumps = rng.uniform(2, 6) * space.random(rng, 50.0)
    horizontal = np.asarray(space.z - height - tilt - bumps, dtype=np.float32)
    labels[front & (horizontal < 0)] = Lobe.RIGHT_MIDDLE
    fissure[front] = np.minimum(fissure[front], np.abs(horizontal[front]))
    return Lobes(labels, fissure)


def vertebra(space: Space, patient: Patient) -> Field:
    """The column of vertebral bodies, discs included."""
    return np.asarray(
        (np.sqrt((space.x / 1.15) ** 2 + (space.y - patient.spine_y) ** 2) - 17 * patient.scale), dtype=np.float32
    )


def in_disc(space: Space, patient: Patient) -> Bool[np.ndarray, "z y x"]:
    pitch = 26 * patient.scale
    return np.asarray(np.abs(space.z / pitch - np.round(space.z / pitch)) * pitch > 0.4 * pitch)


def vertebral_arch(space: Space, patient: Patient) -> Field:
    """The bony ring around the canal and the spinous process behind it."""
    s, canal_y = patient.scale, patient.spine_y + 25 * patient.scale
    ring = np.abs(np.sqrt(space.x**2 + (space.y - canal_y) ** 2) - 11 * s) - 2.5
    process = np.maximum(np.abs(space.x) - 4, np.abs(space.y - canal_y - 23 * s) - 14 * s)
    return np.asarray(np.minimum(ring, process), dtype=np.float32)


def ribs(space: Space, cage: Field, patient: Patient, rng: Generator) -> Field:
    """Bands around the cage that slope down to the front."""
    pitch = rng.uniform(22, 28) * patient.scale
    phase = (space.z + 0.55 * space.y + 0.15 * np.abs(space.x)) / pitch
    band = (np.abs(phase - np.round(phase)) - 0.2) * pitch
    shell = np.abs(cage - 4) - rng.uniform(3.5, 5)
    gap = np.maximum(22 * patient.scale - np.abs(space.x), space.z - patient.apex_z + 2)
    return np.asarray(np.maximum.reduce([shell, band, gap]), dtype=np.float32)


def sternum(space: Space, patient: Patient) -> Field:
    """Manubrium, body and, narrowing, the xiphoid process, whose lower end is the sternum tip."""
    x, y, tip = patient.sternum_tip
    s = patient.scale
    narrowing = np.clip((space.z - tip) / 25, 0.15, 1)
    width = narrowing * np.where(space.z > 35 * s, 26, 15) * s
    thickness = np.abs(space.y - y) - 5.5
    shape = np.maximum.reduce([np.abs(space.x - x) - width, thickness, tip - space.z, space.z - 65 * s])
    return np.asarray(shape, dtype=np.float32)


def stomach_bubble(patient: Patient, rng: Generator) -> tuple[Point, float]:
    """Centre and radius of the gas below the left dome: the classic trap for lung segmentation."""
    s = patient.scale
    x, y, depth = rng.uniform(50, 75) * s, rng.uniform(-40, 0) * s, rng.uniform(32, 60) * s
    return (x, y, patient.dome_z[1] - depth), rng.uniform(12, 32) * s


def _merge(distance: Field, space: Space, tube: Tube, margin_mm: float = 40.0) -> None:
    """Lower `distance` to the tube's where that is nearer; far from the tube nothing changes."""
    box = space.box_around([tube.begin, tube.end], margin_mm)
    if box is not None:
        distance[box] = np.minimum(distance[box], tube.distance(space[box]))

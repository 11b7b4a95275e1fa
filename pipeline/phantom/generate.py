"""Paints the patient, tissue by tissue, from the outside in; later paint covers earlier."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, UInt8
from numpy.random import Generator

from pipeline.anatomy import Landmark
from pipeline.geometry import Grid, LesionMask, LobeLabels, Triple, Volume
from pipeline.phantom import thorax as shapes
from pipeline.phantom.acquisition import reconstruct, scan_grid
from pipeline.phantom.fields import Field, Space, Tube, ball, inside
from pipeline.phantom.lesions import grow_lesions, paint_lesions
from pipeline.phantom.patient import Patient, Point
from pipeline.phantom.recipe import Phantom, PhantomRecipe, Tissue
from pipeline.phantom.thorax import Bend, Lobes, Thorax
from pipeline.phantom.vessels import pulmonary_vessels
from pipeline.severity import score_severity


def make_phantom(recipe: PhantomRecipe) -> Phantom:
    """Generate one patient and scan them: CT, labels, landmarks and exact scores.

    The patient's structures take their randomness from streams of their own, so that a change of one leaves the others.
    """
    streams = [np.random.default_rng([recipe.seed, stream]) for stream in range(8)]
    patient = Patient.draw(streams[0], recipe.contrast)
    grid = scan_grid(recipe, patient)
    bend = Bend.draw(streams[1])
    scanned = Space.of(grid)
    space = bend(scanned)
    thorax = shapes.build_thorax(space, patient, streams[2])
    # Heads and abdomens hold a sliver of the model's rib cage at most; they are meant to hold no lung at all.
    lung = (thorax.lungs < 0) & (recipe.fit not in ("abdomen", "head"))
    lobes = shapes.divide_lungs(space, lung, patient, streams[3])
    painter = _Painter.blank(space)
    if recipe.fit == "head":
        _paint_head(painter, patient, streams[4])
    else:
        _paint_trunk(painter, thorax, patient, streams[4])
        _paint_lungs(painter, thorax, lobes, lung, patient, streams[5])
        _paint_bones(painter, thorax, patient, streams[4])
    lesions = grow_lesions(space, lung, thorax.cage, recipe, streams[6])
    hu = paint_lesions(painter.hu, space, lesions, streams[6])
    if recipe.table:
        # The couch below the patient; it is straight, whatever the patient's shape.
        top = patient.cage_y + patient.fat + 32
        cover = inside(np.abs(scanned.y - top) - 2, scanned.edge_mm) * (painter.tissues == Tissue.OUTSIDE)
        painter.tissues[cover >= 0.5] = Tissue.TABLE
        hu = np.asarray(hu + (-150 - hu) * cover, dtype=np.float32)
    volume = Volume(reconstruct(hu, recipe, streams[7]), grid)
    labels, mask = LobeLabels(lobes.labels, grid), LesionMask(lesions.mask(lung), grid)
    return Phantom(
        recipe=recipe,
        volume=volume,
        lobes=labels,
        lesions=mask,
        consolidation=LesionMask(lesions.consolidation(lung), grid),
        tissues=painter.tissues,
        landmarks=_landmarks(grid, patient, bend, recipe),
        severity=score_severity(volume, labels.lungs(), labels, mask),
    )


def _landmarks(grid: Grid, patient: Patient, bend: Bend, recipe: PhantomRecipe) -> dict[Landmark, Triple]:
    """Those inside the scan. The carina is the ridge below the parting of the air columns."""
    x, y, z = patient.carina
    places = {
        Landmark.CARINA: bend.undo((x, y, z - 6 * patient.scale)),
        Landmark.STERNUM_TIP: bend.undo(patient.sternum_tip),
    }
    if recipe.fit in ("abdomen", "head"):
        return {}
    return {landmark: place for landmark, place in places.items() if grid.contains(place)}


@dataclass(frozen=True, eq=False)
class _Painter:
    """The picture so far."""

    space: Space
    hu: Field
    tissues: UInt8[np.ndarray, "z y x"]

    @classmethod
    def blank(cls, space: Space) -> "_Painter":
        return cls(space, np.full_like(space.x, -1000.0), np.zeros(space.x.shape, np.uint8))

    def fill(self, tissue: Tissue, cover: Field, hu: Field | float) -> None:
        """Cover the picture with a tissue, voxel by voxel by the share that it takes."""
        self.hu[...] += (np.asarray(hu, dtype=np.float32) - self.hu) * cover
        self.tissues[cover >= 0.5] = tissue

    def fill_shape(self, tissue: Tissue, distance_mm: Field, hu: Field | float) -> None:
        self.fill(tissue, inside(distance_mm, self.space.edge_mm), hu)

    def fill_ball(
        self, tissue: Tissue, centre: Point, radius_mm: float, hu: float, *, within: Field | None = None
    ) -> None:
        """A ball, where `within` (a signed distance) is negative too; only the voxels around it are touched."""
        box = self.space.box_around([centre], radius_mm + 3)
        if box is None:
            return
        distance = ball(self.space[box], centre, radius_mm)
        distance = distance if within is None else np.maximum(distance, within[box])
        cover = inside(distance, self.space.edge_mm)
        self.hu[box] += (np.float32(hu) - self.hu[box]) * cover
        self.tissues[box][cover >= 0.5] = tissue

    def fill_tube(self, tissue: Tissue, tube: Tube, hu: float, wall_mm: float = 0.0) -> None:
        """Only the voxels near the tube are touched."""
        box = self.space.box_around([tube.begin, tube.end], tube.begin_radius_mm + wall_mm + 14)
        if box is None:
            return
        cover = inside(tube.distance(self.space[box]) - wall_mm, self.space.edge_mm)
        cover *= self.hu[box] > -995  # outside the body there is no airway
        self.hu[box] += (np.float32(hu) - self.hu[box]) * cover
        self.tissues[box][cover >= 0.5] = tissue


def _paint_trunk(painter: _Painter, thorax: Thorax, patient: Patient, rng: Generator) -> None:
    space, edge = painter.space, painter.space.edge_mm
    texture = space.random(rng, 14.0)
    has_arms, muscle_hu, inner_hu = rng.uniform() < 0.35, rng.uniform(40, 60), rng.uniform(20, 60)
    if has_arms:
        for side in (-1, 1):
            centre = side * (patient.cage_x + patient.fat + 66)
            axis = np.sqrt((space.x - centre) ** 2 + (space.y - 10) ** 2)
            painter.fill_shape(Tissue.SOFT, axis - 38, 40.0)
            painter.fill_shape(Tissue.BONE, axis - 11, 600.0)
    painter.fill_shape(Tissue.FAT, thorax.body, -100 + 8 * texture)
    painter.fill_shape(Tissue.SOFT, thorax.body + np.float32(0.8 * patient.fat), muscle_hu + 10 * texture)
    painter.fill_shape(Tissue.SOFT, thorax.cage + 4, inner_hu + 6 * texture)
    belly = inside(np.maximum(-thorax.below_diaphragm + 2, thorax.cage + 3), edge)
    liver = space.x < 25
    painter.fill(Tissue.ORGAN, belly * liver, rng.uniform(50, 65))
    painter.fill(Tissue.ORGAN, belly * ~liver, rng.uniform(30, 50))
    bubble, radius = shapes.stomach_bubble(patient, rng)
    painter.fill_ball(Tissue.ORGAN, bubble, radius, -950.0, within=8 - thorax.below_diaphragm)
    # Gas and kidneys far below the diaphragm, so that an abdomen looks like one.
    s, floor = patient.scale, min(patient.dome_z) - 110 * patient.scale
    for side in (-1, 1):
        kidney = (side * 58 * s, 42 * s, floor - rng.uniform(10, 50) * s)
        painter.fill_ball(Tissue.ORGAN, kidney, 34 * s, rng.uniform(25, 45))
    for _ in range(9):
        loop = (rng.uniform(-85, 85) * s, rng.uniform(-60, 5) * s, floor - rng.uniform(20, 220) * s)
        painter.fill_ball(Tissue.ORGAN, loop, rng.uniform(9, 21) * s, float(rng.choice([-850.0, 20.0, -300.0])))
    above = thorax.below_diaphragm < 0
    middle = np.maximum(thorax.mediastinum, thorax.cage + 3)
    painter.fill(Tissue.FAT, inside(middle, edge) * above, rng.uniform(-95, -20) + 20 * texture)
    painter.fill(Tissue.HEART, inside(np.maximum(thorax.heart, thorax.cage + 4), edge) * above, patient.blood_hu)
    vessels = np.maximum(thorax.great_vessels, thorax.cage + 4)
    painter.fill(Tissue.GREAT_VESSEL, inside(vessels, edge), patient.blood_hu + 5)


def _paint_lungs(
    painter: _Painter, thorax: Thorax, lobes: Lobes, lung: Bool[np.ndarray, "z y x"], patient: Patient, rng: Generator
) -> None:
    space, edge = painter.space, painter.space.edge_mm
    if not lung.any():
        for tube in thorax.airways[:1]:
            painter.fill_tube(Tissue.AIRWAY, tube, -990.0)
        return
    base, gradient, emphysema = rng.uniform(-895, -790), rng.uniform(10, 60), rng.uniform() < 0.15
    fine, coarse = space.random(rng, 9.0), space.random(rng, 14.0)
    tissue = base + gradient * space.y / np.float32(patient.cage_y) + 14 * fine + 12 * coarse
    if emphysema:
        tissue = tissue - 90 * (coarse > 1.2)
    cover = inside(thorax.lungs, 1.2 * edge)
    painter.fill(Tissue.LUNG, cover, np.asarray(tissue, dtype=np.float32))
    # A fissure is half a millimetre thick: a voxel shows it as faintly as it is thin.
    width = np.sqrt(0.45**2 + (0.35 * edge) ** 2)
    painter.hu[...] += (
        cover * lung * rng.uniform(150, 420) * (0.45 / width) * np.exp(-0.5 * (lobes.fissure / width) ** 2)
    )
    _paint_vessels(painter, cover, patient, rng)
    for tube in thorax.airways:
        painter.fill_tube(Tissue.SOFT, tube, 30.0, wall_mm=1.5)
    for tube in thorax.airways:
        painter.fill_tube(Tissue.AIRWAY, tube, -990.0)


def _paint_vessels(painter: _Painter, cover: Field, patient: Patient, rng: Generator) -> None:
    """Vessels inside the lung stay lung: the mask of the paper's annotators includes them."""
    edge = max(painter.space.edge_mm, 1.0)
    for tube in pulmonary_vessels(patient, rng):
        radius = tube.begin_radius_mm
        box = painter.space.box_around([tube.begin, tube.end], radius + 3)
        if box is None:
            continue
        thin = min(1.0, radius / (0.6 * edge))
        share = inside(tube.distance(painter.space[box]), edge) * cover[box] * np.float32(thin)
        blood = patient.blood_hu if radius > 1.5 else 20.0
        painter.hu[box] += np.maximum(blood - painter.hu[box], 0) * share


def _either(where: Bool[np.ndarray, "z y x"], yes: float, no: float) -> Field:
    return np.where(where, np.float32(yes), np.float32(no))


def _paint_bones(painter: _Painter, thorax: Thorax, patient: Patient, rng: Generator) -> None:
    space, edge = painter.space, painter.space.edge_mm
    cartilage = space.y < -0.75 * patient.cage_y
    in_body = inside(thorax.body + 4, edge)
    rib = inside(shapes.ribs(space, thorax.cage, patient, rng), edge) * in_body
    painter.fill(Tissue.BONE, rib, _either(cartilage, rng.uniform(90, 160), rng.uniform(250, 480)))
    body, disc = shapes.vertebra(space, patient), shapes.in_disc(space, patient)
    painter.fill_shape(Tissue.BONE, body, _either(disc, 90.0, rng.uniform(180, 300)))
    painter.fill(Tissue.BONE, inside(np.abs(body) - 1, edge) * ~disc, 500.0)
    painter.fill(Tissue.BONE, inside(shapes.vertebral_arch(space, patient), edge) * ~disc, 400.0)
    plate = shapes.sternum(space, patient)
    painter.fill_shape(Tissue.BONE, plate, rng.uniform(180, 280))
    painter.fill_shape(Tissue.BONE, np.abs(plate) - np.float32(0.8), 420.0)


def _paint_head(painter: _Painter, patient: Patient, rng: Generator) -> None:
    """Neck, skull, brain and the air of nose and sinuses."""
    space, s = painter.space, patient.scale
    centre_z = patient.apex_z + 215
    x, y, z = space.x / (72 * s), (space.y + 5) / (92 * s), (space.z - centre_z) / (88 * s)
    skull = (np.sqrt(x**2 + y**2 + z**2) - 1) * np.float32(75 * s)
    neck = np.maximum(np.sqrt(space.x**2 + (space.y - 10) ** 2) - 58 * s, space.z - centre_z)
    painter.fill_shape(Tissue.SOFT, np.minimum(skull - 6, neck).astype(np.float32), 40.0)
    painter.fill_shape(Tissue.BONE, skull.astype(np.float32), 900.0)
    painter.fill_shape(Tissue.SOFT, (skull + 7).astype(np.float32), rng.uniform(30, 38))
    for side in (-1, 1):
        painter.fill_ball(Tissue.AIRWAY, (side * 24 * s, -62 * s, centre_z - 45 * s), 13 * s, -980.0)
    throat = Tube((0.0, -18 * s, centre_z - 30 * s), (0.0, -10 * s, patient.apex_z), 9 * s, 9 * s)
    painter.fill_tube(Tissue.AIRWAY, throat, -990.0)

"""How the patient lies in a scan by what it shows, against how its header says.

No training: bone, lung and soft tissue on a grid of 4 mm. Every sign is a number that is positive where the header is
right and changes its sign where the header exchanges two ends of the patient.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64
from scipy import ndimage

from pipeline.geometry import Finding, Volume
from pipeline.resampling import bin_thin_voxels, resample

Field = Float32[np.ndarray, "z y x"]
Mask = Bool[np.ndarray, "z y x"]

#: Fine enough for the aorta (25 mm), coarse enough for a part of a second.
STEP_MM: Final = 4.0

#: Less than this along any axis, or fewer slices, shows too little of a patient.
LEAST_EXTENT_MM: Final = 100.0
LEAST_SLICES: Final = 12

#: Between fat and lung: what is denser is the patient (or the table, which an erosion takes off).
BODY_ABOVE_HU: Final = -300.0

#: Air and lung; averaged over 4 mm the air of the room is emptier than lung.
AIR_BELOW_HU: Final = -500.0
ROOM_AIR_HU: Final = -940.0

#: From no bone to all bone, of a voxel of 4 mm in which marrow and cortex are one.
BONE_HU: Final = (150.0, 300.0)

#: A square of this edge around the spine holds a vertebra, or what a rib or a vessel is too thin for.
VERTEBRA_MM: Final = 28.0
#: Share of bone in that square from which on more tells nothing: contrast and prostheses are denser than vertebrae.
VERTEBRA_BONE: Final = 0.2
#: The spine is no farther from the middle of the body than this share of its longer side; arms are.
CENTRAL: Final = 0.3
#: What bone at that distance counts less than bone in the middle.
OFF_CENTRE_COST: Final = 0.3
#: Mean over the slices, 1 where every slice holds a vertebra: 0.95 to 1 in the scans looked at, along the other axes
#: 0.4 to 0.9.
LEAST_SPINE: Final = 0.8
SPINE_MARGIN: Final = 0.06

#: A section of a lung through its slice; the trachea has 3 to 5 cm2.
LEAST_SECTION_CM2: Final = 6.0
#: A part of the lungs has at least this share of the largest.
LEAST_PART: Final = 0.15
LEAST_LUNGS_ML: Final = 500.0
#: Two lungs of less height are a part of a chest, which looks much the same from both ends.
LEAST_LUNGS_MM: Final = 140.0
#: Lung on the first or the last slice, as a share of its largest section: the scan ends amid the lungs.
CUT_SHARE: Final = 0.5

#: What each sign is divided by before it is cut to -1 to 1. On scans that lie as they say (lidc-1011, lung-dx-a0001,
#: LCTSC 1-5 and phantoms): fill 0.09 to 0.33, edge 0.11 to 0.49, gap 0.17 to 0.42; heart 14 to 70 mm, liver 0.19 to
#: 0.39 (phantoms 0), aorta 0 to 14 mm.
FULL_SIGN: Final[Mapping[str, float]] = {
    "lungs_fill_the_apex": 0.1,
    "lungs_keep_to_the_edge_below": 0.2,
    "mediastinum_widens_below": 0.15,
    "heart_left_mm": 12.0,
    "liver_right": 0.15,
    "aorta_left_mm": 4.0,
}
#: The heart and the liver are large; the descending aorta is a small thing beside them.
WEIGHT: Final[Mapping[str, float]] = {"aorta_left_mm": 0.5}
HEAD_SIGNS: Final = ("lungs_fill_the_apex", "lungs_keep_to_the_edge_below", "mediastinum_widens_below")

#: Offset of the spine from the middle of the body in halves of its depth: 0.43 to 0.63 backwards, 0.15 sideways.
SPINE_OFFSET: Final = 0.2
#: Mean of the head signs: at least 0.7 where the header is right.
HEAD_DECIDED: Final = 0.45
#: Weighted sum of the side signs, of at most 2.5: at least 1.5 where the header is right, phantoms 0.6.
SIDE_DOUBTED: Final = -0.6
SIDE_DECIDED: Final = -1.25
SIDE_CONFIRMED: Final = 1.0

#: The axes of the patient in the order of arrays, each by its lower and its upper end in LPS.
DIRECTIONS: Final = ("head-feet", "front-back", "left-right")
ENDS: Final = (("feet", "head"), ("front", "back"), ("right", "left"))

#: What makes files that contradict these directions, and the next step.
CAUSES: Final[Mapping[tuple[bool, bool, bool], str]] = {
    (False, False, True): (
        "Either the organs of this patient lie mirrored (situs inversus), or the file exchanges left and right: "
        "then the left lobes are the right ones. Look at the patient's other images."
    ),
    (False, True, True): (
        "Left and right, front and back are exchanged, as where an array in DICOM order (LPS) was stored for RAS, "
        "or prone and supine were mistaken. Correct the affine or send the DICOM series."
    ),
    (True, False, True): (
        "Head and feet, left and right are exchanged, as where feet first was called head first. Correct the "
        "header or send the DICOM series."
    ),
    (True, True, False): "The patient is turned by half about the axis from left to right. Correct the header.",
    (False, True, False): "The rows are in reverse order, which makes a mirror image. Correct the affine.",
    (True, False, False): "The slices are in reverse order, which makes a mirror image. Correct the affine.",
    (True, True, True): "All axes are reversed, which makes a mirror image. Correct the affine.",
}


@dataclass(frozen=True)
class BodyOrientation:
    """Where the ends of the patient lie by what the scan shows.

    Attributes:
        axes: for head-feet, front-back and left-right of the patient, which axis of the header it lies along (0 from
            feet to head, 1 from front to back, 2 from right to left).
        back: offset of the spine from the body's middle along its own front-back axis, in halves of the depth; positive
            is where the header has the back (or, along another axis, its upper end).
        head: mean of the head signs, -1 to 1; None where the scan does not say.
        left: weighted sum of the side signs, -2.5 to 2.5; None where the scan does not say.
        signs: every measured number, before it is weighed.
    """

    axes: tuple[int, int, int]
    back: float
    head: float | None
    left: float | None
    signs: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_permuted(self) -> bool:
        return self.axes != (0, 1, 2)

    @property
    def is_upside_down(self) -> bool:
        return self.head is not None and self.head <= -HEAD_DECIDED

    @property
    def is_front_to_back(self) -> bool:
        return self.back <= -SPINE_OFFSET

    @property
    def sides_doubted(self) -> bool:
        return self.left is not None and self.left <= SIDE_DOUBTED

    @property
    def sides_exchanged(self) -> bool:
        return self.left is not None and self.left <= SIDE_DECIDED

    @property
    def is_confirmed(self) -> bool:
        """Whether all three directions are as the header says."""
        return (
            not self.is_permuted
            and self.back >= SPINE_OFFSET
            and (self.head or 0.0) >= HEAD_DECIDED
            and (self.left or 0.0) >= SIDE_CONFIRMED
        )


def body_orientation(volume: Volume) -> BodyOrientation | None:
    """What the scan shows of how the patient lies; None where it shows no spine."""
    grid = volume.grid.covering((STEP_MM, STEP_MM, STEP_MM))
    if min(volume.grid.shape) < LEAST_SLICES or min(grid.size_mm) < LEAST_EXTENT_MM:
        return None
    # Voxels of up to 4 mm: averaging whole voxels is far quicker than smoothing each of them.
    binned = bin_thin_voxels(volume, 2 * STEP_MM)
    hu = resample(binned.hu, binned.grid, grid)
    # The largest part is the patient; an erosion takes the table off.
    dense = hu > BODY_ABOVE_HU
    parts, count = ndimage.label(ndimage.binary_erosion(dense))
    if count == 0:
        return None
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    body: Mask = ndimage.binary_dilation(parts == int(sizes.argmax())) & dense
    spines = [_spine(np.moveaxis(hu, axis, 0), np.moveaxis(body, axis, 0)) for axis in range(3)]
    along = max(range(3), key=lambda axis: spines[axis].presence)
    # The header's own axis is given up only for one that is clearly better.
    if spines[along].presence - spines[0].presence < SPINE_MARGIN:
        along = 0
    spine = spines[along]
    if spine.presence < LEAST_SPINE:
        return None
    across = [axis for axis in range(3) if axis != along]
    offsets = _offsets(np.moveaxis(body, along, 0), spine)
    deep = int(np.argmax(np.abs(offsets)))
    if along == 0 and abs(offsets[0]) >= SPINE_OFFSET:
        deep = 0
    axes = (along, across[deep], across[1 - deep])
    signs = {"spine_presence": spine.presence, "spine_back": offsets[deep]}
    if abs(offsets[deep]) < SPINE_OFFSET:
        return None
    # From here on the patient's own axes: the spine runs along the first and lies at the end of the second.
    own_hu, own_body = np.transpose(hu, axes), np.transpose(body, axes)
    path = spine.path if deep == 0 else spine.path[:, ::-1]
    if offsets[deep] < 0:
        own_hu, own_body = own_hu[:, ::-1], own_body[:, ::-1]
        path = np.stack([own_hu.shape[1] - 1 - path[:, 0], path[:, 1]], axis=1)
    lungs = _lungs(own_hu, own_body)
    occupied = np.flatnonzero(lungs.sum(axis=(1, 2)) > 0.03 * max(int(lungs.sum(axis=(1, 2)).max()), 1))
    volume_ml = float(np.count_nonzero(lungs) * STEP_MM**3 / 1000)
    # A head, an abdomen or a leg has ends of its own kind.
    if volume_ml < LEAST_LUNGS_ML:
        return None
    signs["lungs_ml"] = volume_ml
    if np.ptp(occupied) * STEP_MM < LEAST_LUNGS_MM:
        return BodyOrientation(axes, offsets[deep], None, None, signs)
    first, last = int(occupied[0]), int(occupied[-1]) + 1
    head_signs = _head_signs(lungs[first:last], path[first:last])
    # Not by the lungs that were found: where the field of view is small, they are open to the side and not found whole.
    airy = (own_hu > ROOM_AIR_HU) & (own_hu < AIR_BELOW_HU) & lungs.any(axis=0)
    sections = ndimage.binary_opening(airy, np.ones((1, 3, 3))).sum(axis=(1, 2))
    cut = max(int(sections[0]), int(sections[-1])) >= CUT_SHARE * int(sections.max())
    head = None if cut or len(head_signs) < len(HEAD_SIGNS) else _sum(head_signs) / len(HEAD_SIGNS)
    # The side signs rest on what lies below: where the ends of the lungs do not tell, an effusion passes for a liver.
    if head is None or abs(head) < HEAD_DECIDED:
        return BodyOrientation(axes, offsets[deep], head, None, {**signs, **head_signs})
    if head < 0:
        own_hu, lungs, path = own_hu[::-1], lungs[::-1], path[::-1]
        first, last = len(lungs) - last, len(lungs) - first
    side_signs = _side_signs(own_hu, lungs, path, first, last)
    left = _sum(side_signs) if "heart_left_mm" in side_signs else None
    return BodyOrientation(axes, offsets[deep], head, left, {**signs, **head_signs, **side_signs})


def orientation_findings(volume: Volume, *, is_assumed: bool) -> tuple[Finding, ...]:
    """Whether the scan shows the patient as its header says.

    Args:
        is_assumed: the format did not say how the patient lies, so that there is something to confirm too.
    """
    seen = body_orientation(volume)
    if seen is None:
        return ()
    evidence: dict[str, object] = {
        "signs": {name: round(value, 2) for name, value in seen.signs.items()},
        "spine_backwards": round(seen.back, 2),
        "head_sum": None if seen.head is None else round(seen.head, 2),
        "left_sum": None if seen.left is None else round(seen.left, 2),
        "is_assumed": is_assumed,
    }
    clauses = list(_contradictions(seen))
    if not clauses:
        if is_assumed and seen.is_confirmed:
            message = (
                "The file does not say how the patient lies, and the scan shows it as was assumed: spine behind, "
                "apices of the lungs up, heart and liver on their sides."
            )
            return (Finding("anatomy-confirms-orientation", "info", message, evidence),)
        return ()
    directions = (seen.is_upside_down, seen.is_front_to_back, seen.sides_doubted)
    says = "The file does not say how the patient lies; what was assumed" if is_assumed else "What the header says"
    if seen.is_permuted:
        cause = "The axes of the array are exchanged: lobes and scores are wrong. Send the DICOM series."
    else:
        cause = CAUSES[directions]
        if not seen.sides_doubted and (seen.left is None or seen.left < SIDE_CONFIRMED):
            cause += " Whether left is left cannot be seen from heart and liver: the sides are in doubt."
    message = f"{says} is contradicted by the scan: {', '.join(clauses)}. {cause}"
    # One reversed axis makes a mirror image, which the networks never saw: LCTSC 5 gets an opacity of 3.5 or 5.8 %
    # for 0.6. Only organs that seem to lie on the other side without being sure are a warning.
    is_error = seen.is_permuted or seen.is_upside_down or seen.is_front_to_back or seen.sides_exchanged
    wrong = [name for name, is_wrong in zip(DIRECTIONS, directions, strict=True) if is_wrong]
    evidence["contradicted"] = ["axes"] if seen.is_permuted else wrong
    return (Finding("anatomy-contradicts-header", "error" if is_error else "warning", message, evidence),)


def _contradictions(seen: BodyOrientation) -> Iterator[str]:
    if seen.is_permuted:
        along, deep, _ = seen.axes
        if along != 0:
            yield f"the spine runs from {ENDS[along][0]} to {ENDS[along][1]}"
        else:
            yield f"the spine lies on the {ENDS[deep][0 if seen.back < 0 else 1]} of the body"
        return
    if seen.is_upside_down:
        yield "the apices of the lungs point to the feet"
    if seen.is_front_to_back:
        yield "the spine lies in front"
    if seen.sides_doubted:
        names = {"heart_left_mm": "the heart", "liver_right": "the liver", "aorta_left_mm": "the aorta"}
        # Those that say so clearly; a sign of half its full size is within the variation of people.
        clear = [title for name, title in names.items() if seen.signs.get(name, 0.0) <= -0.5 * FULL_SIGN[name]]
        told = " and ".join(clear) or "heart, liver and aorta together"
        yield f"{told} {'lies' if len(clear) == 1 else 'lie'} on the other side"


def _sum(signs: Mapping[str, float]) -> float:
    return float(sum(WEIGHT.get(name, 1.0) * np.clip(value / FULL_SIGN[name], -1, 1) for name, value in signs.items()))


@dataclass(frozen=True, eq=False)
class _Spine:
    """The bone that goes on from slice to slice.

    Attributes:
        presence: mean share of a vertebra in the slices, 0 to 1.
        path: position in each slice along the second and the third axis, in voxels.
        first, last: the slices that hold the body.
    """

    presence: float
    path: Float64[np.ndarray, "z 2"]
    first: int
    last: int


def _spine(hu: Field, body: Mask) -> _Spine:
    """The best path through the slices of the first axis, a voxel aside at most from one to the next."""
    low, high = BONE_HU
    bone = np.clip((hu - low) / (high - low), 0, 1).astype(np.float32) * body
    shadow = body.sum(axis=0)
    spans = []
    for axis in (0, 1):
        profile = shadow.sum(axis=1 - axis)
        occupied = np.flatnonzero(profile > 0.1 * profile.max())
        spans.append((occupied[0], occupied[-1]))
    reach = CENTRAL * max(end - begin for begin, end in spans)
    v, u = np.indices(shadow.shape)
    away = ((v - sum(spans[0]) / 2) ** 2 + (u - sum(spans[1]) / 2) ** 2) / max(reach, 1.0) ** 2
    edge = round(VERTEBRA_MM / STEP_MM)
    vertebra = np.minimum(ndimage.uniform_filter(bone, (1, edge, edge), mode="constant") / VERTEBRA_BONE, 1)
    # An arm beside the body is a straight bone too: of two columns the more central one is the spine.
    wanted = vertebra * np.where(away <= 1, 1 - OFF_CENTRE_COST * away, 0)
    slices = np.flatnonzero(body.mean(axis=(1, 2)) > 0.02)
    if not len(slices):
        return _Spine(0.0, np.zeros((len(hu), 2)), 0, 0)
    first, last = int(slices[0]), int(slices[-1]) + 1
    best = wanted[first:last].copy()
    for above, below in zip(best[1:], best[:-1], strict=True):
        above += ndimage.maximum_filter(below, 3, mode="constant")
    path = np.zeros((len(best), 2))
    path[-1] = np.unravel_index(int(best[-1].argmax()), shadow.shape)
    for number in range(len(best) - 2, -1, -1):
        begin = np.maximum(path[number + 1].astype(int) - 1, 0)
        around = best[number, begin[0] : begin[0] + 3, begin[1] : begin[1] + 3]
        # Of equal ways the middle one, lest the path drifts to a side.
        ties = np.argwhere(around >= around.max() - 1e-6) + begin
        path[number] = ties[np.argmin(np.linalg.norm(ties - path[number + 1], axis=1))]
    v, u = path.astype(int).T
    presence = float(vertebra[np.arange(first, last), v, u].mean())
    # Drawn to the centre of the bone around it, and smoothed.
    radius = edge - 1
    for _ in range(3):
        for number, (v, u) in enumerate(np.rint(path).astype(int)):
            begin = np.maximum((v - radius, u - radius), 0)
            around = bone[first + number, begin[0] : v + radius + 1, begin[1] : u + radius + 1]
            if around.sum() > 0:
                path[number] = begin + np.asarray(ndimage.center_of_mass(around))
        path = ndimage.median_filter(path, (9, 1), mode="nearest")
    path = ndimage.uniform_filter1d(path, 9, axis=0, mode="nearest")
    whole = np.concatenate([np.repeat(path[:1], first, axis=0), path, np.repeat(path[-1:], len(hu) - last, axis=0)])
    return _Spine(presence, whole, first, last)


def _offsets(body: Mask, spine: _Spine) -> tuple[float, float]:
    """How far the spine lies from the middle of the body along both axes of its sections, in halves of its extent."""
    found: list[tuple[float, float]] = []
    for number in range(spine.first, spine.last):
        v, u = np.rint(spine.path[number]).astype(int)
        # Along the line through the spine alone: arms and table make the whole section wider, not this line.
        lines = (
            body[number, :, max(u - 4, 0) : u + 5].any(axis=1),
            body[number, max(v - 4, 0) : v + 5].any(axis=0),
        )
        ends = [np.flatnonzero(line)[[0, -1]] for line in lines if line.any()]
        if len(ends) == 2:
            a, b = (2 * (at - e.mean()) / (np.ptp(e) + 1) for at, e in zip(spine.path[number], ends, strict=True))
            found.append((float(a), float(b)))
    v_offset, u_offset = np.median(found, axis=0) if found else (0.0, 0.0)
    return float(v_offset), float(u_offset)


def _lungs(hu: Field, body: Mask) -> Mask:
    """Air that the body encloses within a slice, before and behind, on both sides; without trachea and bowel."""
    enclosed = np.ones_like(body)
    for axis in (1, 2):
        enclosed &= np.maximum.accumulate(body, axis=axis)
        enclosed &= np.flip(np.maximum.accumulate(np.flip(body, axis), axis=axis), axis)
    lungs = ndimage.binary_opening((hu < AIR_BELOW_HU) & enclosed)
    in_slice = np.zeros((3, 3, 3), dtype=bool)
    in_slice[1] = ndimage.generate_binary_structure(2, 1)
    parts, _ = ndimage.label(lungs, in_slice)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    lungs = (sizes * STEP_MM**2 / 100 >= LEAST_SECTION_CM2)[parts]
    parts, _ = ndimage.label(lungs)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return np.asarray((sizes >= max(LEAST_PART * sizes.max(), 1))[parts])


def _medial_edges(lungs: Mask, path: Float64[np.ndarray, "z 2"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each row of a slice where both lungs are: where they come nearest to the spine's midline, in voxels from it.

    Returns:
        left and right distance, z-y, positive on their own side; and in which rows both lungs are.
    """
    x = np.arange(lungs.shape[2])
    middle = path[:, 1][:, None, None]
    on_left, on_right = lungs & (x > middle), lungs & (x < middle)
    both = (on_left.sum(axis=2) >= 3) & (on_right.sum(axis=2) >= 3)
    left = on_left.argmax(axis=2) - middle[:, :, 0]
    right = middle[:, :, 0] - (lungs.shape[2] - 1 - on_right[:, :, ::-1].argmax(axis=2))
    return left, right, both


def _head_signs(lungs: Mask, path: Float64[np.ndarray, "z 2"]) -> dict[str, float]:
    """Which end of the lungs is the apex: positive where the last slice is."""
    height = len(lungs)
    quarter = max(height // 4, 2)
    lower, upper = slice(0, quarter), slice(height - quarter, height)
    # Bases are crescents around liver and heart, apices are round: how much of its box each section fills.
    filled: dict[str, list[float]] = {"lower": [], "upper": []}
    for name, part in (("lower", lower), ("upper", upper)):
        for section, (_, x) in zip(lungs[part], np.rint(path[part]).astype(int), strict=True):
            for half in (section[:, :x], section[:, x:]):
                y, u = np.nonzero(half)
                if len(y) > 20:
                    filled[name].append(len(y) / ((np.ptp(y) + 1) * (np.ptp(u) + 1)))
    signs = {}
    if filled["lower"] and filled["upper"]:
        signs["lungs_fill_the_apex"] = float(np.mean(filled["upper"]) - np.mean(filled["lower"]))
    # The lowest lung is near the chest wall, the highest is not: depth within the shadow that both lungs cast.
    shadow = ndimage.binary_fill_holes(lungs.sum(axis=0) >= 2)
    depth = ndimage.distance_transform_edt(np.pad(shadow, 1))[1:-1, 1:-1]
    means = [float((lungs[part] * depth).sum() / max(lungs[part].sum(), 1)) for part in (lower, upper, slice(None))]
    signs["lungs_keep_to_the_edge_below"] = (means[1] - means[0]) / max(means[2], 1e-6)
    left, right, both = _medial_edges(lungs, path)
    gaps = (left + right)[: height // 2], (left + right)[height // 2 :]
    known = both[: height // 2], both[height // 2 :]
    if known[0].any() and known[1].any():
        below, above = (float(gap[where].mean()) for gap, where in zip(gaps, known, strict=True))
        signs["mediastinum_widens_below"] = (below - above) / max(below, above)
    return signs


def _side_signs(hu: Field, lungs: Mask, path: Float64[np.ndarray, "z 2"], first: int, last: int) -> dict[str, float]:
    """Which side is the left one: positive where the third axis runs to it."""
    height = last - first
    left, right, both = _medial_edges(lungs[first:last], path[first:last])
    rows = np.arange(lungs.shape[1])[None] - path[first:last, 0][:, None]
    signs = {}
    # In front of the spine, below the hila: how far the heart reaches to the left, and to the right.
    before = both & (rows < -32 / STEP_MM)
    before[2 * height // 3 :] = False
    if np.count_nonzero(before) >= 100:
        reach = np.percentile(left[before], 85) - np.percentile(right[before], 85)
        signs["heart_left_mm"] = float(reach) * STEP_MM
    # Beside the vertebrae, amid the chest: the descending aorta keeps the left lung away from them.
    beside = both & (rows >= -36 / STEP_MM) & (rows < 0)
    beside[: height // 4] = False
    beside[3 * height // 4 :] = False
    if np.count_nonzero(beside) >= 50:
        signs["aorta_left_mm"] = float(np.median((left - right)[beside]) / 2) * STEP_MM
    below_right, below_left = _soft_below(hu, lungs, path, -1), _soft_below(hu, lungs, path, 1)
    if below_right is not None and below_left is not None:
        signs["liver_right"] = below_right - below_left
    return signs


def _soft_below(hu: Field, lungs: Mask, path: Float64[np.ndarray, "z 2"], side: int) -> float | None:
    """Share of soft tissue (no fat, no gas) within 5 cm below one lung; None where the scan ends there."""
    x = np.arange(lungs.shape[2])
    lung = lungs.any(axis=0) & (side * (x - np.median(path[:, 1])) > 0)
    lowest = lungs.argmax(axis=0)[lung]
    below: Int64[np.ndarray, "d n"] = lowest[None] - np.arange(2, 14)[:, None]
    shown = (below >= 0).sum(axis=0) >= 4
    if np.count_nonzero(shown) < 100:
        return None
    values = hu[:, lung][np.maximum(below, 0), np.arange(len(lowest))]
    soft = (values > 0) & (values < 200) & (below >= 0)
    return float((soft.sum(axis=0) / np.maximum((below >= 0).sum(axis=0), 1))[shown].mean())

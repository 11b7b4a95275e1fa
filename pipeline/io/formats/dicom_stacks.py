"""Which slices make one volume, and which of several volumes is scored.

What must differ between volumes (study, series, frame of reference, orientation, shape, pixel spacing) splits always.
What may differ (the traits of `dicom_headers`) splits only where it has to: where slices with one value and slices with
another cover the same part of the patient. Two acquisitions one above the other are one volume, two on top of each
other are two.
"""

from bisect import bisect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

import numpy as np
from jaxtyping import Float64

from pipeline.errors import UnsupportedFormatError
from pipeline.geometry import Finding
from pipeline.io.formats.dicom_headers import SAME_DIRECTION, Slice
from pipeline.io.formats.dicom_tags import whole
from pipeline.io.formats.shown import shown

SAME_POSITION_MM: Final = 0.01

#: Steps between slices that differ by no more are equal: positions are often rounded to a tenth.
EVEN_MM: Final = 0.1
EVEN_SHARE: Final = 0.05

#: A gap beyond both divides a stack: nobody knows what is in it.
GAP_STEPS: Final = 4.0
GAP_MM: Final = 20.0

#: Fewer slices are no volume of their own.
LEAST_SLICES: Final = 3

#: Coverages that differ by less are alike.
COVERAGE_MM: Final = 20.0

#: Words of ImageType for what is computed across slices.
_PROJECTIONS: Final = {"MIP", "MINIP", "MAX_IP", "MIN_IP", "PROJECTION IMAGE", "MAXIMUM INTENSITY PROJECTION"}

#: Of one series. A trait with more volumes than these that cover each other tells nothing apart.
MOST_VOLUMES: Final = 200

MOST_LISTED: Final = 20

#: The Hounsfield units of a slice, as a digest: slices that show the same have the same.
PixelDigest = Callable[[Slice], bytes]


@dataclass(frozen=True)
class Stack:
    """Slices of one volume in order along their normal, one per position.

    Attributes:
        left_out: slices beyond a gap.
        gap_mm: the largest gap that divides them from the others; 0 where there is none.
        repeated: slices at positions that others have, with other pixels or other names.
    """

    slices: tuple[Slice, ...]
    left_out: int = 0
    gap_mm: float = 0.0
    repeated: tuple[Slice, ...] = field(default=(), repr=False)

    @property
    def first(self) -> Slice:
        return self.slices[0]

    @property
    def extent_mm(self) -> float:
        along = positions_mm(self.slices)
        return float(along[-1] - along[0])

    def described(self) -> dict[str, object]:
        """What tells it from others, as evidence."""
        first = self.first
        description: dict[str, object] = {
            "slices": len(self.slices),
            "extent_mm": round(self.extent_mm, 1),
            "series_number": first.series_number,
            "kernel": shown(str(first.traits["kernel"]))[1:-1] or None,
            "temporal_position": whole(str(first.traits["temporal_position"])),
            "acquisition": whole(str(first.traits["acquisition"])),
            "contrast": first.is_contrasted,
        }
        return description


def positions_mm(slices: Sequence[Slice]) -> Float64[np.ndarray, " n"]:
    """How far each slice lies along the normal of the first."""
    return np.asarray(np.array([s.position_mm for s in slices]) @ slices[0].normal)


def step_mm(steps_mm: Float64[np.ndarray, " n"]) -> float:
    """The distance of neighbouring slices, of steps some of which may jump over slices.

    Positions are often rounded to a tenth: then no single step is the distance, the median least of all; the mean of
    those near it is.
    """
    # The lower of two in the middle: their mean may be a distance that no slices have.
    middle_mm = float(np.sort(steps_mm)[(len(steps_mm) - 1) // 2])
    # Both ends of a step are rounded.
    near = steps_mm[np.abs(steps_mm - middle_mm) <= 2 * tolerance_mm(middle_mm)]
    return float(np.median(near)) if np.ptp(near) < 1e-3 else float(np.mean(near))


def tolerance_mm(distance_mm: float) -> float:
    return max(EVEN_MM, EVEN_SHARE * distance_mm) + 1e-6


def one_patient(slices: Iterable[Slice]) -> None:
    """Raises: UnsupportedFormatError: PatientID differs; a missing one may be anybody's."""
    patients = {s.patient for s in slices} - {None}
    if len(patients) > 1:
        raise UnsupportedFormatError(
            f"The CT slices are of {len(patients)} patients (PatientID differs); send one patient's series.",
            evidence={"tag": "PatientID", "patients": len(patients)},
        )


# Splitting


def stacks_of(slices: Sequence[Slice], digest: PixelDigest) -> tuple[list[Stack], tuple[Finding, ...]]:
    """Every volume among `slices`, none of them empty, and what was ignored or left out on the way."""
    single, copies = _without_copies(slices, digest)
    findings: list[Finding] = []
    if copies:
        message = f"{copies} slices were there twice, with the same pixels; one of each was read."
        findings.append(Finding("duplicate-positions", "warning", message, {"slices": len(slices), "copies": copies}))
    ignored = [
        (tag, name)
        for tag, name in (
            ("StudyInstanceUID", "study"),
            ("SeriesInstanceUID", "series"),
            ("FrameOfReferenceUID", "frame_of_reference"),
        )
        if len(single) >= LEAST_SLICES and len({getattr(s, name) or None for s in single} - {None}) == len(single)
    ]
    if ignored:
        tags = [tag for tag, _ in ignored]
        message = f"Every slice has its own {' and '.join(tags)}; it was ignored, and the slices were stacked."
        findings.append(Finding("series-uid-per-slice", "warning", message, {"tags": tags, "slices": len(single)}))
    names = {name for _, name in ignored}
    # By what must be equal first: of what may differ a little, each group has to be asked.
    alike: dict[tuple[object, ...], list[list[Slice]]] = {}
    groups: list[list[Slice]] = []
    for candidate in single:
        key = (
            candidate.series if "series" not in names else "",
            candidate.study if "study" not in names else "",
            candidate.shape,
        )
        near = alike.setdefault(key, [])
        home = next((group for group in near if _lie_alike(group[0], candidate)), None)
        if home is not None:
            home.append(candidate)
        elif len(near) < MOST_VOLUMES:
            near.append([candidate])
            groups.append(near[-1])
        else:
            raise UnsupportedFormatError(
                f"One series holds CT slices of more than {MOST_VOLUMES} spacings and directions; send one volume.",
                evidence={"most_volumes": MOST_VOLUMES},
            )
    parts = [part for group in _by_frame_of_reference(groups, bool(ignored)) for part in _split(group)]
    return [_stack(part) for part in parts], tuple(findings)


def _without_copies(slices: Sequence[Slice], digest: PixelDigest) -> tuple[list[Slice], int]:
    """Without slices of one name at one place with the same pixels; a folder may hold each file twice."""
    named: dict[tuple[object, ...], list[Slice]] = {}
    for s in slices:
        named.setdefault((s.uid, s.frame, s.position_mm, s.shape), []).append(s)
    copies: set[int] = set()
    for (uid, *_), twins in named.items():
        if uid and len(twins) > 1:  # pixels are decoded only where there is a doubt
            seen: set[bytes] = set()
            for s in twins:
                shows = digest(s)
                if shows in seen:
                    copies.add(id(s))
                seen.add(shows)
    return [s for s in slices if id(s) not in copies], len(copies)


def _lie_alike(a: Slice, b: Slice) -> bool:
    return bool(np.allclose(a.spacing_mm, b.spacing_mm, rtol=1e-3)) and bool(
        np.all(np.abs(np.subtract(a.rows_and_columns, b.rows_and_columns)) < SAME_DIRECTION)
    )


def _by_frame_of_reference(groups: Iterable[list[Slice]], is_ignored: bool) -> Iterable[list[Slice]]:
    """Groups split where they name several; a slice that names none goes with the only one that others name."""
    for group in groups:
        names = {s.frame_of_reference for s in group} - {""}
        if len(names) < 2 or (is_ignored and len(names) == len(group)):
            yield group
        else:
            for name in sorted({s.frame_of_reference for s in group}):
                yield [s for s in group if s.frame_of_reference == name]


def _split(group: list[Slice]) -> list[list[Slice]]:
    """Volumes by the traits that tell them apart, or else by the order in which slices were made."""
    unique = _unevenness(_first_of_each(_in_order(group))) or 0
    # First a trait that leaves nothing to explain; then any, since two may be needed (kernel and phase).
    for is_last in (False, True):
        for key in (*group[0].traits, "offset"):
            tracks = _split_by(group, key)
            uneven = [_unevenness(track) for track in tracks]
            if len(tracks) > 1 and (is_last or all(steps is not None and steps <= unique for steps in uneven)):
                return [piece for track in tracks for piece in _split(track)]
    return _split_by_order(group)


def _split_by(group: list[Slice], key: str) -> list[list[Slice]]:
    values: dict[object, list[Slice]] = {}
    for s in group:
        values.setdefault(_value(s, key), []).append(s)
    # Where each slice has its own value and its own place, nothing covers anything.
    if len(values) < 2 or (len(values) == len(group) and _unevenness(group) is not None):
        return [group]
    tracks = _tracks([values[value] for value in sorted(values, key=_rank)])
    return tracks if tracks is not None and _is_better(group, tracks) else [group]


def _value(s: Slice, key: str) -> object:
    """A trait as a number where it is one, so that 1.0 and 1.00 are the same."""
    if key == "offset":
        # Across the normal: reconstructions of the left and the right lung differ in nothing else.
        return tuple(round(float(np.dot(s.position_mm, axis))) for axis in np.reshape(s.rows_and_columns, (2, 3)))
    value = str(s.traits[key])
    try:
        number = round(float(value), 3)
    except ValueError:
        return value.upper()
    return number if np.isfinite(number) else value.upper()


def _rank(value: object) -> tuple[bool, float, str]:
    is_number = isinstance(value, float)
    return not is_number, float(value) if isinstance(value, float) else 0.0, str(value)


def _tracks(groups: Iterable[list[Slice]]) -> list[list[Slice]] | None:
    """Each group joined to the first volume of which it covers no part: acquisitions 1 + 2 and 3 + 4.

    None where that makes more than `MOST_VOLUMES`.
    """
    tracks: list[tuple[list[Slice], list[tuple[float, float]]]] = []
    origin: Slice | None = None
    for group in groups:
        origin = origin or group[0]
        along = np.array([s.position_mm for s in group]) @ origin.normal
        low, high = float(along.min()) - SAME_POSITION_MM, float(along.max()) + SAME_POSITION_MM
        for slices, covered in tracks:
            # In order and apart from each other, so that the two neighbours tell.
            at = bisect(covered, (low, high))
            if (at == 0 or covered[at - 1][1] < low) and (at == len(covered) or high < covered[at][0]):
                slices.extend(group)
                covered.insert(at, (low, high))
                break
        else:
            if len(tracks) == MOST_VOLUMES:
                return None
            tracks.append((list(group), [(low, high)]))
    return [track for track, _ in tracks]


def _is_better(group: list[Slice], tracks: list[list[Slice]]) -> bool:
    """Whether `tracks` are volumes that `group` mixes.

    They are not where the whole is an even stack and its parts are not: then the trait alternates within one volume.
    """
    volumes = [track for track in tracks if len(track) >= LEAST_SLICES]
    if len(volumes) < 2:
        return False
    whole_group = _unevenness(group)
    return whole_group is None or sum(_unevenness(track) or 0 for track in volumes) <= whole_group


def _unevenness(slices: Sequence[Slice]) -> int | None:
    """How many steps are not the usual one; None where positions repeat."""
    steps = np.diff(np.sort(positions_mm(slices)))
    if np.any(steps < SAME_POSITION_MM):
        return None
    if not len(steps):
        return 0
    usual = step_mm(steps)
    return int(np.count_nonzero(np.abs(steps - usual) > tolerance_mm(usual)))


def _split_by_order(group: list[Slice]) -> list[list[Slice]]:
    """Volumes that were made one after the other: where the position jumps back, the next begins."""
    if len(group) < 2 * LEAST_SLICES - 1:
        return [group]
    orders: tuple[Callable[[Slice], tuple[float | None, ...]], ...] = (
        lambda s: (s.content_time_s, s.instance, s.frame),
        lambda s: (0, s.instance, s.frame),
    )
    unique = _unevenness(_first_of_each(_in_order(group))) or 0
    for order in orders:
        if any(None in order(s) for s in group):
            continue
        in_time = sorted(group, key=order)
        runs = _runs(in_time)
        tracks = _tracks(runs)
        if tracks is None:
            continue
        volumes = [track for track in tracks if len(track) >= LEAST_SLICES]
        leftover = len(group) - sum(len(track) for track in volumes)
        # One slice that was made anew is a run of its own beside a volume that needs it nowhere.
        is_remake = (
            len(volumes) == 1 and leftover < LEAST_SLICES and len(_first_of_each(_in_order(group))) == len(volumes[0])
        )
        # A run that fits behind another may be of either: then nothing tells which.
        is_split = len(runs) == len(tracks) and leftover == 0 and _is_better(group, tracks)
        uneven = [_unevenness(volume) for volume in volumes]
        if (is_remake or is_split) and all(steps is not None and steps <= unique for steps in uneven):
            return tracks
    return [group]


def _runs(in_time: Sequence[Slice]) -> list[list[Slice]]:
    steps = np.diff(positions_mm(in_time))
    runs, direction = [[in_time[0]]], 0.0
    for s, step in zip(in_time[1:], steps, strict=True):
        way = 0.0 if abs(step) < SAME_POSITION_MM else float(np.sign(step))
        if way == 0.0 or (direction and way != direction):
            runs.append([s])
            direction = 0.0
        else:
            runs[-1].append(s)
            direction = way
    return runs


def _in_order(slices: Iterable[Slice]) -> list[Slice]:
    listed = list(slices)
    normal = listed[0].normal
    # Equal positions in an order of their own, so that neither names nor the order of a zip change what is read.
    return sorted(
        listed, key=lambda s: (round(float(np.dot(s.position_mm, normal)), 3), s.instance or 0, s.frame, s.uid)
    )


def _first_of_each(ordered: Sequence[Slice]) -> list[Slice]:
    steps = np.diff(positions_mm(ordered))
    return [ordered[0], *(s for s, step in zip(ordered[1:], steps, strict=True) if step >= SAME_POSITION_MM)]


def _stack(part: list[Slice]) -> Stack:
    """One slice of each position, of the longest run of slices without a gap."""
    ordered = _in_order(part)
    chosen = _first_of_each(ordered)
    taken = {id(s) for s in chosen}
    repeated = tuple(s for s in ordered if id(s) not in taken)
    if len(chosen) < LEAST_SLICES:
        return Stack(tuple(chosen), repeated=repeated)
    along = positions_mm(chosen)
    steps = np.diff(along)
    gap_mm = max(GAP_STEPS * step_mm(steps) * (1 + 1e-6), GAP_MM)
    cuts = [0, *(int(i) + 1 for i in np.flatnonzero(steps > gap_mm)), len(chosen)]
    begin, end = max(pairwise(cuts), key=lambda ends: (ends[1] - ends[0], -ends[0]))
    ends = [float(steps[i]) for i in (begin - 1, end - 1) if 0 <= i < len(steps) and (i + 1 in cuts)]
    run = chosen[begin:end]
    lower, upper = float(along[begin]) - SAME_POSITION_MM, float(along[end - 1]) + SAME_POSITION_MM
    inside = tuple(s for s in repeated if lower <= float(np.dot(s.position_mm, chosen[0].normal)) <= upper)
    return Stack(tuple(run), len(chosen) - len(run), max(ends, default=0.0), inside)


# Choosing


def choose(stacks: Sequence[Stack]) -> tuple[Stack, tuple[Finding, ...]]:
    """The volume to score, and what was not chosen.

    Raises:
        UnsupportedFormatError: no stack has two slices.
    """
    if all(len(stack.slices) < 2 for stack in stacks):
        seen = len(stacks)
        detail = "The DICOM files hold a single slice; send the whole series in one zip."
        if seen > 1:
            detail = (
                f"The DICOM files hold {seen} slices that belong to no common stack (series, size, spacing or "
                "direction differ); send the whole series in one zip."
            )
        raise UnsupportedFormatError(detail, evidence={"stacks": seen})
    longest_mm = max(stack.extent_mm for stack in stacks if _is_plain(stack)) if any(map(_is_plain, stacks)) else 0.0

    def rank(stack: Stack) -> tuple[object, ...]:
        first = stack.first
        last = float("inf")
        temporal, acquisition = (whole(str(first.traits[key])) for key in ("temporal_position", "acquisition"))
        return (
            len(stack.slices) < 2,
            not _is_plain(stack),
            # A few slices without contrast, taken to time it, are not preferred to the chest with it.
            stack.extent_mm < longest_mm / 2,
            not all(s.rescale.is_hounsfield for s in stack.slices),
            first.is_contrasted,
            -round(stack.extent_mm / COVERAGE_MM),
            -len(stack.slices),
            last if first.series_number is None else first.series_number,
            last if temporal is None else temporal,
            last if acquisition is None else acquisition,
            str(first.traits["kernel"]),
            first.series,
            first.instance or 0,
            first.uid,
        )

    ranked = sorted(stacks, key=rank)
    chosen, others = ranked[0], ranked[1:]
    rule = (
        "axial before reformatted, without contrast before with, then the longest, then most slices, then the lowest "
        "number"
    )
    findings = []
    series = chosen.first.series
    beside = [stack for stack in others if stack.first.series != series]
    within = [stack for stack in others if stack.first.series == series]
    scored = (
        f"scored was one of {len(chosen.slices)} slices over {chosen.extent_mm:.0f} mm (series number "
        f"{chosen.first.series_number}): {rule}."
    )
    if beside:
        message = f"There are {len({stack.first.series for stack in beside}) + 1} series; {scored}"
        findings.append(Finding("several-series", "warning", message, _compared(chosen, beside)))
    if within:
        message = f"One series holds {len(within) + 1} volumes; {scored}"
        findings.append(Finding("several-volumes", "warning", message, _compared(chosen, within)))
    return chosen, tuple(findings)


def _compared(chosen: Stack, others: Sequence[Stack]) -> dict[str, object]:
    return {
        "chosen": chosen.described(),
        "others": [stack.described() for stack in others[:MOST_LISTED]],
        "differ_in": _differ_in([chosen, *others]),
    }


def _is_plain(stack: Stack) -> bool:
    """Whether it is an axial stack as scanners reconstruct them."""
    first = stack.first
    words = set(str(first.traits["image_type"]).upper().split("\\"))
    return abs(float(first.normal[2])) > 0.8 and not words & _PROJECTIONS


def _differ_in(stacks: Sequence[Stack]) -> list[str]:
    """The traits in which the first slices differ."""
    firsts = [stack.first for stack in stacks]
    traits = [key for key in firsts[0].traits if len({_value(s, key) for s in firsts}) > 1]
    hard: dict[str, set[object]] = {
        "frame_of_reference": {s.frame_of_reference for s in firsts},
        "shape": {s.shape for s in firsts},
        "spacing": {s.spacing_mm for s in firsts},
        "direction": {tuple(round(v, 2) for v in s.rows_and_columns) for s in firsts},
    }
    return [*(name for name, values in hard.items() if len(values) > 1), *traits]


def without_repeats(stack: Stack, digest: PixelDigest) -> tuple[Finding, ...]:
    """What to say about slices that lie where others lie.

    Raises:
        UnsupportedFormatError: they show something else, and nothing tells which of them belong together.
    """
    if not stack.repeated:
        return ()
    along = positions_mm(stack.slices)
    different = []
    for s in stack.repeated:
        at = float(np.dot(s.position_mm, stack.first.normal))
        twin = stack.slices[int(np.argmin(np.abs(along - at)))]
        if twin.shape != s.shape or digest(twin) != digest(s):
            different.append((s, twin))
    total = len(stack.slices) + len(stack.repeated)
    if not different:
        message = (
            f"{total} slices share {len(stack.slices)} positions, with the same pixels; one slice of each position was "
            "read."
        )
        evidence: dict[str, object] = {"slices": total, "positions": len(stack.slices)}
        return (Finding("duplicate-positions", "warning", message, evidence),)
    everything = [*stack.slices, *stack.repeated]
    seen = {
        key: sorted({shown(str(_value(s, key)))[1:-1] for s in everything})[:8]
        for key in stack.first.traits
        if len({_value(s, key) for s in everything}) > 1
    }
    listed = "; ".join(f"{key}: {', '.join(values)}" for key, values in seen.items())
    raise UnsupportedFormatError(
        f"{total} slices share {len(stack.slices)} positions, {len(different)} of them with other pixels, and no tag "
        f"tells the volumes apart ({listed or 'no tag differs'}). Send one volume alone.",
        evidence={
            "slices": total,
            "positions": len(stack.slices),
            "different": len(different),
            "seen": seen,
        },
    )

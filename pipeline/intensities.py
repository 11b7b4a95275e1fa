"""Whether the values of a scan are Hounsfield units, and what can be put right where they certainly are not.

A patient's own tissues tell: the air of the room has -1000 HU, fat about -100 and muscle about 50, on any scanner.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Int16
from scipy import ndimage

from pipeline.anatomy import AIR_HU
from pipeline.errors import NotChestCTError
from pipeline.geometry import Finding, Volume

#: Air in and around the patient, lung included.
AIR_BELOW_HU: Final = -500

#: Fat, muscle, blood and organs: most of any patient.
TISSUE_HU: Final = (-200, 300)

#: Every scan of a chest has far more air, and far more soft tissue.
LEAST_PERCENT: Final = 0.5

#: The lesion network learned from noise of up to this much in a voxel of 1 x 1 x 3 mm (`training/lesion_crops.py`).
LEARNED_NOISE_HU: Final = 70.0
LEARNED_VOXEL_ML: Final = 0.003
LEAST_NOISE_VOXELS: Final = 1000

#: The air of the room, and what the commonest tissue (fat or muscle) may have; scans looked at: -1000 to -996, and
#: -114 to -101 or 29 to 50.
ROOM_AIR_HU: Final = -1000
ROOM_AIR_WITHIN_HU: Final = 10
COMMONEST_TISSUE_HU: Final = (-150, 110)
#: Lung that is neither the air of the room nor bowel gas.
LUNG_HU: Final = (-950, -500)

#: What scanners add to store values without sign.
STORED_OFFSET_HU: Final = 1024

#: Up to here a constant value around the patient is air, whatever it is called.
EMPTY_BELOW_HU: Final = -950
#: Share of the voxels on the twelve edges of the scan that must have one value, to the unit, to be a background.
BACKGROUND_EDGE_SHARE: Final = 0.5
#: More of a background's border than this in lung means that lungs were cut out of a patient.
MOST_LUNG_ON_BORDER: Final = 0.3

#: One voxel in a hundred of any chest is emptier than this: -1024 to -980 in the scans looked at.
EMPTIEST_HU: Final = -800

#: Bone, metal and contrast above this are at most 1.3 % of the scans looked at.
DENSE_ABOVE_HU: Final = 500
MOST_DENSE_PERCENT: Final = 8.0

#: Share of the voxels at the least or the largest value from which on values beyond it were cut off.
CLIPPED_PERCENT: Final = 0.5
#: The networks look at -1024 to 600 HU: cut off beyond -950 and 300, nothing that matters to a lung is lost.
KEPT_HU: Final = (-950, 300)

#: An image of 8 bits has no more values; with fewer than the second it is a drawing.
LEVELS: Final = (32, 256)


def normalise(volume: Volume) -> tuple[Volume, tuple[Finding, ...]]:
    """The scan in Hounsfield units where its own tissues say for certain what was done to them (decision 32).

    Corrected are an added 1024 and a constant background that is no air. What needs no correction comes back as it is,
    the same object; so does what cannot be corrected, which `intensity_findings` names.
    """
    volume, findings = _without_offset(volume)
    volume, more = _with_empty_background(volume)
    return volume, (*findings, *more)


def intensity_findings(volume: Volume) -> tuple[Finding, ...]:
    """Why the values are no Hounsfield units, or else what is unusual about them."""
    impossible = _impossible_values(volume)
    if impossible is not None:
        return (impossible,)
    findings = _range_findings(_Histogram.of(volume))
    noise = noise_hu(volume)
    if noise is None:
        return findings
    # As the networks would see it: averaged where voxels are smaller than theirs.
    as_seen = noise * min(1.0, np.sqrt(volume.grid.voxel_volume_ml / LEARNED_VOXEL_ML))
    if as_seen <= LEARNED_NOISE_HU:
        return findings
    message = f"Noise of {as_seen:.0f} HU is more than the networks have learned from ({LEARNED_NOISE_HU:.0f} HU)."
    evidence = {"noise_hu": round(float(as_seen), 1), "learned_hu": LEARNED_NOISE_HU}
    return (*findings, Finding("noise-beyond-training", "warning", message, evidence))


def require_hounsfield(volume: Volume) -> None:
    """Refuse a volume whose values cannot be Hounsfield units of a patient.

    Raises:
        NotChestCTError: with what was seen as its evidence.
    """
    finding = _impossible_values(volume)
    if finding is not None:
        raise NotChestCTError(finding.message, evidence=finding.evidence)


def histogram_evidence(volume: Volume) -> dict[str, int | float]:
    """How the values are spread; every fourth voxel along each axis is enough."""
    sample = _sample(volume)
    low, median, high = (round(float(v)) for v in np.percentile(sample, (1, 50, 99)))
    # The body is what lies between the first and the last tissue voxel of a row: air around the patient does not count.
    tissue = sample >= TISSUE_HU[0]
    after_first = np.maximum.accumulate(tissue, axis=2)
    before_last = np.maximum.accumulate(tissue[:, :, ::-1], axis=2)[:, :, ::-1]
    in_body = sample[after_first & before_last]
    return {
        "hu_p01": low,
        "hu_median": median,
        "hu_p99": high,
        "air_percent": _percent(sample < AIR_BELOW_HU),
        "tissue_percent": _percent((sample >= TISSUE_HU[0]) & (sample <= TISSUE_HU[1])),
        "air_in_body_percent": _percent(in_body < AIR_BELOW_HU) if in_body.size else 0.0,
    }


def noise_hu(volume: Volume) -> float | None:
    """Standard deviation of the noise in soft tissue, per voxel of the scan; None where there is too little tissue.

    From the second differences of neighbouring pixels (Immerkaer 1996), which even tissue does not have; their median
    does not mind the edges.
    """
    hu = volume.hu[:: max(volume.hu.shape[0] // 24, 1)].astype(np.float32)
    even = (hu >= TISSUE_HU[0]) & (hu <= TISSUE_HU[1])
    rows = hu[:, 1:-1, :-2] - 2 * hu[:, 1:-1, 1:-1] + hu[:, 1:-1, 2:]
    known = even[:, 1:-1, :-2] & even[:, 1:-1, 1:-1] & even[:, 1:-1, 2:]
    if np.count_nonzero(known) < LEAST_NOISE_VOXELS:
        return None
    # A normal deviate's median distance from 0 is 0.6745 of its deviation; 1, -2, 1 multiplies that by root 6.
    return float(np.median(np.abs(rows[known])) / (0.6745 * np.sqrt(6.0)))


def _sample(volume: Volume) -> Int16[np.ndarray, "z y x"]:
    return volume.hu[tuple(slice(None, None, 4 if n >= 64 else 1) for n in volume.hu.shape)]


def _percent(mask: np.ndarray) -> float:
    return round(100.0 * float(np.mean(mask)), 1)


@dataclass(frozen=True, eq=False)
class _Histogram:
    """How many voxels of a sample have each value.

    Attributes:
        counts: from `AIR_HU` on, one for each unit.
    """

    counts: np.ndarray

    @classmethod
    def of(cls, volume: Volume) -> "_Histogram":
        values = np.maximum(_sample(volume).ravel().astype(np.int64), AIR_HU)
        return cls(np.bincount(values - AIR_HU))

    @property
    def least(self) -> int:
        return int(np.flatnonzero(self.counts)[0]) + AIR_HU

    @property
    def largest(self) -> int:
        return len(self.counts) - 1 + AIR_HU

    @property
    def levels(self) -> int:
        return int(np.count_nonzero(self.counts))

    def percent(self, low: int, high: int) -> float:
        """Of the voxels, those from `low` to `high`, both included."""
        part = self.counts[max(low - AIR_HU, 0) : max(high - AIR_HU + 1, 0)]
        return 100.0 * float(part.sum()) / float(self.counts.sum())

    def commonest(self, low: int, high: int, width: int) -> int | None:
        """The middle of the `width` values that hold most voxels; None where there are none from `low` to `high`.

        The least and the largest value do not count: what was cut off, or lies outside of the field of view, is there.
        """
        counts = self.counts.copy()
        counts[[self.least - AIR_HU, self.largest - AIR_HU]] = 0
        part = counts[max(low - AIR_HU, 0) : max(high - AIR_HU + 1, 0)]
        if not part.any():
            return None
        return int(np.argmax(np.convolve(part, np.ones(width), "same"))) + max(low, AIR_HU)


def _impossible_values(volume: Volume) -> Finding | None:
    """The finding `not-hounsfield` with what speaks against Hounsfield units, and what may have been done."""
    seen = histogram_evidence(volume)
    histogram = _Histogram.of(volume)
    dense = round(histogram.percent(DENSE_ABOVE_HU, histogram.largest), 1)
    commonest = histogram.commonest(-400, DENSE_ABOVE_HU, 21)
    evidence: dict[str, object] = {
        **seen,
        "dense_percent": dense,
        "hu_least": histogram.least,
        "hu_largest": histogram.largest,
        "grey_levels": histogram.levels,
    }
    if min(seen["air_percent"], seen["tissue_percent"]) < LEAST_PERCENT:
        what = (
            f"{seen['air_percent']} % of the voxels are below {AIR_BELOW_HU} (air, lung) and "
            f"{seen['tissue_percent']} % are soft tissue"
        )
        return Finding("not-hounsfield", "error", _sentence(what, _likely_cause(histogram)), evidence)
    if dense > MOST_DENSE_PERCENT:
        what = f"{dense} % of the voxels are denser than {DENSE_ABOVE_HU}, as only bone and metal are"
        return Finding("not-hounsfield", "error", _sentence(what, _likely_cause(histogram)), evidence)
    if seen["hu_p01"] > EMPTIEST_HU:
        what = f"the emptiest voxels have {seen['hu_p01']}, where air has -1000 and lung -850"
        return Finding("not-hounsfield", "error", _sentence(what, _likely_cause(histogram)), evidence)
    low, high = COMMONEST_TISSUE_HU
    # Where many greys were given out, a tissue that is neither fat nor muscle can only be a wrong scale.
    if commonest is not None and histogram.levels >= LEVELS[0] and not low <= commonest <= high:
        what = f"the commonest tissue has {commonest}, where fat has -100 and muscle 50"
        return Finding(
            "not-hounsfield", "error", _sentence(what, _likely_cause(histogram)), {**evidence, "commonest": commonest}
        )
    return None


def _sentence(what: str, cause: str) -> str:
    return f"The values are not Hounsfield units of a chest: {what}.{cause}"


def _likely_cause(histogram: _Histogram) -> str:
    """What may have been done to the values, and the next step; empty where nothing speaks for anything."""
    least, largest = histogram.least, histogram.largest
    if least >= -64 and largest > 900:
        air = histogram.commonest(least, 300, 9)
        return (
            f" The air seems to lie at {air}: was the rescale intercept (mostly -1024) left out? Send the file with "
            "it, or the DICOM series."
        )
    if least >= -1 and largest <= 255:
        return " The values are those of an image of 8 bits: send the CT itself, not a rendering."
    if least > -500:
        return (
            f" Values end at {least} and {largest}, as where they were cut to a window for soft tissue or bone: lung "
            "cannot be told from air. Send the CT itself."
        )
    if histogram.percent(600, 1200) > 5:
        return " Air seems to be bright and bone dark: the greys are inverted. Send the CT itself, not a rendering."
    return " Send the CT itself, not a rendering."


def _range_findings(histogram: _Histogram) -> tuple[Finding, ...]:
    """What was lost of Hounsfield units: values beyond a window, or the steps between a few levels."""
    findings = []
    least, largest = histogram.least, histogram.largest
    at_least, at_largest = histogram.percent(least, least), histogram.percent(largest, largest)
    is_image = histogram.levels >= LEVELS[0]
    lost_below, lost_above = (
        is_image and at_least >= CLIPPED_PERCENT and least > KEPT_HU[0],
        is_image and at_largest >= CLIPPED_PERCENT and largest < KEPT_HU[1],
    )
    evidence: dict[str, object]
    if lost_below or lost_above:
        message = (
            f"Values end at {least} and {largest} HU, where {at_least:.1f} and {at_largest:.1f} % of the voxels lie: "
            "they were cut to a window, and what lay beyond it is lost. Scores may be off."
        )
        evidence = {
            "hu_least": least,
            "hu_largest": largest,
            "at_least_percent": round(at_least, 2),
            "at_largest_percent": round(at_largest, 2),
        }
        findings.append(Finding("values-clipped", "warning", message, evidence))
    if LEVELS[0] <= histogram.levels <= LEVELS[1]:
        step = (largest - least) / max(histogram.levels - 1, 1)
        message = (
            f"There are {histogram.levels} different values, {step:.1f} HU apart: an image of 8 bits was brought back "
            "to Hounsfield units. Air and tissue lie where they should; scores are less exact."
        )
        evidence = {"grey_levels": histogram.levels, "step_hu": round(step, 2)}
        findings.append(Finding("few-grey-levels", "warning", message, evidence))
    return tuple(findings)


def _without_offset(volume: Volume) -> tuple[Volume, tuple[Finding, ...]]:
    """The scan less 1024, where both its air and its tissue lie 1024 too high."""
    histogram = _Histogram.of(volume)
    # A scan in HU has air; this ends here for every one.
    if histogram.percent(AIR_HU, AIR_BELOW_HU) >= LEAST_PERCENT:
        return volume, ()
    offset = STORED_OFFSET_HU
    air = histogram.commonest(offset + AIR_HU - 100, offset + EMPTY_BELOW_HU, 9)
    tissue = histogram.commonest(offset - 400, offset + DENSE_ABOVE_HU, 21)
    low, high = COMMONEST_TISSUE_HU
    is_certain = (
        air is not None
        and tissue is not None
        and abs(air - offset - ROOM_AIR_HU) <= ROOM_AIR_WITHIN_HU
        and low <= tissue - offset <= high
        and histogram.percent(offset + ROOM_AIR_HU - 100, offset + EMPTY_BELOW_HU) >= LEAST_PERCENT
        # Nothing is emptier than the air of the room: where something is, lung was taken for that air.
        and histogram.percent(AIR_HU, offset + ROOM_AIR_HU - 100) < LEAST_PERCENT
        and histogram.percent(offset + LUNG_HU[0], offset + LUNG_HU[1]) >= LEAST_PERCENT
        and histogram.percent(offset + DENSE_ABOVE_HU, histogram.largest) <= MOST_DENSE_PERCENT
        and histogram.levels > LEVELS[1]
    )
    if not is_certain or air is None or tissue is None:
        return volume, ()
    corrected = Volume(np.maximum(volume.hu, AIR_HU + offset) - np.int16(offset), volume.grid)
    message = (
        f"All values were {offset} too high, as stored without the rescale intercept: air lay at {air} and the "
        f"commonest tissue at {tissue}. {offset} was taken off before scoring; send the file with its intercept."
    )
    evidence = {
        "offset_hu": offset,
        "air_before": air,
        "air_after": air - offset,
        "tissue_before": tissue,
        "tissue_after": tissue - offset,
    }
    return corrected, (Finding("offset-corrected", "warning", message, evidence),)


def _with_empty_background(volume: Volume) -> tuple[Volume, tuple[Finding, ...]]:
    """The scan with air where one value, which is no air, surrounds the patient."""
    hu = volume.hu
    ends = (slice(None, None, max(n - 1, 1)) for n in hu.shape)
    z, y, x = ends
    edges = np.concatenate([hu[:, y, x].ravel(), hu[z, :, x].ravel(), hu[z, y].ravel()])
    values, counts = np.unique(edges, return_counts=True)
    value, share = int(values[counts.argmax()]), float(counts.max() / counts.sum())
    # Ends here for every scan that has air in its corners, and for one that the patient fills: tissue has noise.
    if value <= EMPTY_BELOW_HU or share < BACKGROUND_EDGE_SHARE:
        return volume, ()
    # What has the value and is connected to a face of the scan: the same value within the patient is tissue.
    parts, count = ndimage.label(hu == value)
    reached = [np.unique(np.take(parts, index, axis=axis)) for axis in range(3) for index in (0, -1)]
    is_reached = np.zeros(count + 1, dtype=bool)
    is_reached[np.concatenate(reached)] = True
    is_reached[0] = False
    background = is_reached[parts]
    inside = hu[~background]
    # Nothing below it but noise: all that was emptier was cut off at this value, the lungs too.
    if not inside.size or min(_percent(inside < AIR_BELOW_HU), _percent(inside < value)) < LEAST_PERCENT:
        return volume, ()
    filled = Volume(np.where(background, np.int16(ROOM_AIR_HU), hu), volume.grid)
    is_chest = _impossible_values(filled) is None
    # Inverted greys and other scales have backgrounds too; a correction counts where it leaves Hounsfield units.
    if not is_chest and _impossible_values(volume) is not None:
        return volume, ()
    beside = np.zeros_like(background)
    for axis in (1, 2):
        along, background_along = np.moveaxis(beside, axis, 0), np.moveaxis(background, axis, 0)
        along[1:] |= background_along[:-1]
        along[:-1] |= background_along[1:]
    border = hu[beside & ~background]
    lung_share = float(np.mean((border >= LUNG_HU[0]) & (border < LUNG_HU[1]))) if border.size else 1.0
    percent = _percent(background)
    evidence: dict[str, object] = {
        "value_before": value,
        "value_after": ROOM_AIR_HU,
        "percent_of_scan": percent,
        "share_of_edges": round(share, 3),
        "lung_on_border_percent": round(100 * lung_share, 1),
    }
    if lung_share > MOST_LUNG_ON_BORDER or not is_chest:
        message = (
            f"Everything around the lungs has the value {value}: they were cut out of the patient, whose chest wall "
            "and heart are missing. Scores are not to be relied on; send the whole CT."
        )
        return volume, (Finding("background-not-air", "error", message, evidence),)
    message = (
        f"{percent} % of the scan, around the patient, have the one value {value}, which is no air ({ROOM_AIR_HU}): "
        "they were taken for air before scoring."
    )
    return filled, (Finding("background-filled", "warning", message, evidence),)

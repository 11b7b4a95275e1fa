"""What a reader of the scores should know: about the scan, about the result, about each lobe."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from pipeline.anatomy import FISSURES, Landmark, Lobe
from pipeline.body_orientation import body_orientation, orientation_findings
from pipeline.errors import PipelineError
from pipeline.geometry import (
    Finding,
    Grid,
    LandmarkPosition,
    LobeLabels,
    LungMask,
    Scan,
    Volume,
    area_on_faces_cm2,
    as_evidence,
)
from pipeline.intensities import histogram_evidence, intensity_findings
from pipeline.resampling import TRUNCATED_CM2
from pipeline.severity import LobeSeverity, OpacityRange, PercentRange, Severity

#: From 5 mm on (less what rounding takes) small opacities vanish in partial volume.
THICK_MM: Final = 4.95

#: The networks learned from voxels of up to this length.
LEARNED_SPACING_MM: Final = 8.0

FEW_SLICES: Final = 20
SMALL_FIELD_MM: Final = 250.0

#: Both lungs of an adult at inspiration hold 2 to 8 litres; beyond this either the scan or the mask is unusual.
PLAUSIBLE_LUNGS_ML: Final = (1000.0, 9000.0)

#: Share of the lungs' volume: mean of the LCTSC cases 01-04, whose lobes `training/data/fissure_atlas.py` drew.
USUAL_PERCENT: Final[Mapping[Lobe, float]] = {
    Lobe.LEFT_UPPER: 25.8,
    Lobe.LEFT_LOWER: 19.2,
    Lobe.RIGHT_UPPER: 24.6,
    Lobe.RIGHT_MIDDLE: 10.2,
    Lobe.RIGHT_LOWER: 20.2,
}

#: A lobe with less than this of its usual share is small: collapsed, removed, truncated by the scan, or badly drawn.
SMALL_SHARE: Final = 0.5

#: Where there is no fissure at all, less than this is seen in 95 % of lungs (`training.validation.fissure_borders
#: --noise 24`: below 2.9
#: on the left, 1.7 and, horizontal, 0.9 on the right).
SEEN_SD: Final = 3.0

#: A range of the affected percentage wider than this is remarked upon even where the score is sure.
WIDE_PERCENT: Final = 10.0


def findings_of_scan(volume: Volume, known: Sequence[Finding] = ()) -> tuple[Finding, ...]:
    """What is unusual about the sampling or the values of a scan, or about how the patient lies in it.

    Args:
        known: what was noticed before; whether the format said how the patient lies.
    """
    values = intensity_findings(volume)
    # Anatomy is looked at in Hounsfield units alone.
    if all(finding.severity != "error" for finding in values):
        values += orientation_findings(
            volume, is_assumed=any(finding.code == "orientation-assumed" for finding in known)
        )
    grid = volume.grid
    layout = _Layout.of(grid)
    findings = []
    if max(grid.spacing_mm) > THICK_MM:
        message = f"Voxels are {max(grid.spacing_mm):.1f} mm long: small opacities may be missed."
        findings.append(Finding("thick-slices", "warning", message, {"spacing_mm": round(max(grid.spacing_mm), 3)}))
    if round(max(grid.spacing_mm), 3) > LEARNED_SPACING_MM:  # a straightened axis is longer by a millionth
        message = f"The networks have learned from voxels of up to {LEARNED_SPACING_MM:.0f} mm: scores may be far off."
        evidence = {"spacing_mm": round(max(grid.spacing_mm), 3), "learned_mm": LEARNED_SPACING_MM}
        findings.append(Finding("spacing-beyond-training", "warning", message, evidence))
    if layout.slices < FEW_SLICES:
        message = f"There are {layout.slices} slices from feet to head: too few to show the lungs whole."
        findings.append(Finding("few-slices", "warning", message, {"slices": layout.slices}))
    if layout.field_mm < SMALL_FIELD_MM:
        message = f"The field of view is {layout.field_mm:.0f} mm: it may not hold both lungs whole."
        findings.append(Finding("small-field-of-view", "warning", message, {"field_mm": round(layout.field_mm, 1)}))
    return (*findings, *values)


@dataclass(frozen=True)
class _Layout:
    """How often the patient was cut from feet to head, and the shorter side of a cut."""

    slices: int
    field_mm: float

    @classmethod
    def of(cls, grid: Grid) -> "_Layout":
        axis = int(np.argmax(np.abs(np.asarray(grid.direction)[2, ::-1])))
        return cls(grid.shape[axis], min(edge for i, edge in enumerate(grid.size_mm) if i != axis))


def refusal(error: PipelineError, scan: Scan) -> PipelineError:
    """The same refusal that begins with what was seen of the scan, and with every finding in its evidence.

    What is known to be wrong comes first: who sent an upside-down chest is helped by that, not by a missing carina.
    """
    volume = scan.volume
    z_mm, y_mm, x_mm = (round(edge) for edge in volume.grid.size_mm)
    histogram = histogram_evidence(volume)
    air_percent = histogram["air_in_body_percent"]
    body = body_orientation(volume)
    if body is None:
        spine = "no spine beside lungs"
    elif body.is_permuted:
        spine = "a spine that is not upright"
    else:
        spine = "the spine in front" if body.is_front_to_back else "the spine behind"
    lungs = "" if body is None else f" ({body.signs['lungs_ml']:.0f} ml of air with the shape of lungs)"
    known = [finding for finding in scan.findings if finding.message != error.detail]
    known.sort(key=lambda finding: ("error", "warning", "info").index(finding.severity))
    told = [finding.message for finding in known if finding.severity == "error"]
    others = sorted({finding.code for finding in known if finding.severity != "error"})
    seen = f"Seen were {x_mm} x {y_mm} x {z_mm} mm, {air_percent} % of the body air or lung{lungs}, and {spine}."
    remarks = f" Also found: {', '.join(others)}." if others else ""
    return type(error)(
        f"{''.join(f'{message} ' for message in told)}{seen}{remarks} {error.detail}",
        evidence={
            "extent_mm": [x_mm, y_mm, z_mm],
            **histogram,
            **error.evidence,
            "findings": as_evidence(scan.findings),
        },
    )


def findings_of_result(
    landmarks: Mapping[Landmark, LandmarkPosition], lungs: LungMask, severity: Severity
) -> tuple[Finding, ...]:
    """What is unusual about a result that was reached."""
    found = []
    carina = landmarks.get(Landmark.CARINA)
    if not any(landmark.found for landmark in landmarks.values()):
        message = "No landmark was found: the lungs were placed by a coarse look at the whole scan. Look at their mask."
        found.append(Finding("landmarks-not-found", "warning", message))
    elif carina is None or not carina.found:
        message = "The lungs were placed by the sternum tip: no carina was found."
        found.append(Finding("carina-not-found", "warning", message))
    # Lung on the outermost voxels of any face: the scan ends before the lung does.
    largest = area_on_faces_cm2(lungs.mask, lungs.grid)
    if largest >= TRUNCATED_CM2:
        message = "The scan does not hold the lungs whole: percentages are of the part that it shows."
        found.append(Finding("lungs-cut-off", "warning", message, {"lung_on_face_cm2": round(largest, 1)}))
    low, high = PLAUSIBLE_LUNGS_ML
    if not low <= severity.volume_ml <= high:
        message = f"The lungs hold {severity.volume_ml:.0f} ml, outside of {low:.0f} to {high:.0f} ml."
        found.append(Finding("unusual-lung-volume", "warning", message, {"volume_ml": round(severity.volume_ml, 1)}))
    return tuple(found)


def findings_of_lobes(lobes: LobeLabels, severity: Severity, between: OpacityRange) -> tuple[Finding, ...]:
    """What is unusual or unsure about the borders between lobes, and about each lobe, whose name the finding has."""
    found = list(_fissure_findings(lobes))
    for lobe in severity.lobes:
        found += _size_findings(lobe, severity.volume_ml)
        area_cm2 = area_on_faces_cm2(lobes.of(lobe.lobe), lobes.grid)
        if area_cm2 >= TRUNCATED_CM2:
            name = lobe.lobe.title
            message = f"The {name} lobe reaches the end of the scan: its percentages are of the part that is shown."
            found.append(
                Finding("lobe-cut-off", "warning", message, {"lobe_on_face_cm2": round(area_cm2, 1)}, lobe.lobe)
            )
        found += _range_findings(lobe, between.lobes[lobe.lobe])
    return tuple(found)


def _fissure_findings(lobes: LobeLabels) -> Iterator[Finding]:
    if lobes.fissures_sd is None:
        return
    seen_sd = {name: round(lobes.fissures_sd.get(name, 0.0), 1) for name in FISSURES}
    unseen = [name for name in FISSURES if seen_sd[name] < SEEN_SD]
    if unseen:
        titles = [name.replace("_", " ") for name in unseen]
        names = " and the ".join(titles) if len(titles) < 3 else f"{', the '.join(titles[:-1])} and the {titles[-1]}"
        message = (
            f"Not surely seen: the {names} fissure. There the border between lobes lies where the network expects it, "
            "and opacity near it may be counted to the lobe beside it."
        )
        yield Finding("fissures-unseen", "info", message, {"fissures": unseen, "seen_sd": seen_sd})


def _size_findings(lobe: LobeSeverity, lungs_ml: float) -> Iterator[Finding]:
    share, usual = 100.0 * lobe.volume_ml / max(lungs_ml, 1e-9), USUAL_PERCENT[lobe.lobe]
    if lobe.volume_ml == 0:
        message = f"No voxel was given to the {lobe.lobe.title} lobe: it scores 0, whatever its state."
        yield Finding("lobe-not-found", "warning", message, lobe=lobe.lobe)
    elif share < SMALL_SHARE * usual:
        message = f"The {lobe.lobe.title} lobe is {share:.1f} % of the lungs; {usual:.0f} % are usual."
        evidence = {"percent_of_lungs": round(share, 2), "usual_percent": usual, "volume_ml": round(lobe.volume_ml, 1)}
        yield Finding("lobe-small", "warning", message, evidence, lobe.lobe)


def _range_findings(lobe: LobeSeverity, between: PercentRange) -> Iterator[Finding]:
    evidence = {"percent_opacity_low": round(between.low, 2), "percent_opacity_high": round(between.high, 2)}
    low, high = between.scores
    shown = f"{between.low:.1f} to {between.high:.1f} % of the {lobe.lobe.title} lobe"
    if low != high:
        message = f"{shown} may be affected, so that its score may be {low} to {high}."
        yield Finding(
            "lobe-score-unsure", "info", message, {**evidence, "score_low": low, "score_high": high}, lobe.lobe
        )
    elif between.high - between.low > WIDE_PERCENT:
        message = f"{shown} may be affected; the score is the same for all of it."
        yield Finding("lobe-opacity-unsure", "info", message, evidence, lobe.lobe)

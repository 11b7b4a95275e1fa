"""What a reader of a lobe's score should know about that lobe."""

from collections.abc import Iterator, Mapping
from typing import Final

from lobewise.pipeline.anatomy import Lobe
from lobewise.pipeline.cut_off import CUT_OFF_CM2, area_on_faces_cm2
from lobewise.pipeline.severity import LobeSeverity, OpacityRange, PercentRange, Severity
from lobewise.pipeline.volume import Finding, LobeLabels

USUAL_PERCENT: Final[Mapping[Lobe, float]] = {
    Lobe.LEFT_UPPER: 25.8,
    Lobe.LEFT_LOWER: 19.2,
    Lobe.RIGHT_UPPER: 24.6,
    Lobe.RIGHT_MIDDLE: 10.2,
    Lobe.RIGHT_LOWER: 20.2,
}
"""Share of the lungs' volume: mean of the LCTSC cases 01-04, whose lobes `training/fissure_atlas.py` drew."""

SMALL_SHARE: Final = 0.5
"""A lobe with less than this of its usual share is small: collapsed, removed, cut off, or badly drawn."""

WIDE_PERCENT: Final = 10.0
"""A range of the affected percentage wider than this is remarked upon even where the score is sure."""


def findings_of_lobes(lobes: LobeLabels, severity: Severity, between: OpacityRange) -> tuple[Finding, ...]:
    """What is unusual or unsure about each lobe; every finding names its lobe."""
    return tuple(
        finding
        for lobe in severity.lobes
        for finding in (
            *_size_findings(lobe, severity.volume_ml),
            *_cut_off_findings(lobes, lobe.lobe),
            *_range_findings(lobe, between.lobes[lobe.lobe]),
        )
    )


def _size_findings(lobe: LobeSeverity, lungs_ml: float) -> Iterator[Finding]:
    share, usual = 100.0 * lobe.volume_ml / max(lungs_ml, 1e-9), USUAL_PERCENT[lobe.lobe]
    if lobe.volume_ml == 0:
        message = f"No voxel was given to the {lobe.lobe.title} lobe: it scores 0, whatever its state."
        yield Finding("lobe-not-found", "warning", message, lobe=lobe.lobe)
    elif share < SMALL_SHARE * usual:
        message = f"The {lobe.lobe.title} lobe is {share:.1f} % of the lungs; {usual:.0f} % are usual."
        evidence = {"percent_of_lungs": round(share, 2), "usual_percent": usual, "volume_ml": round(lobe.volume_ml, 1)}
        yield Finding("lobe-small", "warning", message, evidence, lobe.lobe)


def _cut_off_findings(lobes: LobeLabels, lobe: Lobe) -> Iterator[Finding]:
    area_cm2 = area_on_faces_cm2(lobes.of(lobe), lobes.grid)
    if area_cm2 >= CUT_OFF_CM2:
        message = f"The {lobe.title} lobe reaches the end of the scan: its percentages are of the part that is shown."
        yield Finding("lobe-cut-off", "warning", message, {"lobe_on_face_cm2": round(area_cm2, 1)}, lobe)


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

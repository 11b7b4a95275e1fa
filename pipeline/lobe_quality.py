"""What a reader of a lobe's score should know about that lobe."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from pipeline.anatomy import Lobe
from pipeline.cut_off import CUT_OFF_CM2, area_on_faces_cm2
from pipeline.geometry import Finding, LobeLabels
from pipeline.lungs.fissure_model import FISSURES
from pipeline.severity import LobeSeverity, OpacityRange, PercentRange, Severity

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

SEEN_SD: Final = 3.0
"""Where there is no fissure at all, less than this is seen in 95 % of lungs (`evaluation.borders --noise 24`: below 2.9
on the left, 1.7 and, horizontal, 0.9 on the right)."""

WIDE_PERCENT: Final = 10.0
"""A range of the affected percentage wider than this is remarked upon even where the score is sure."""


def findings_of_lobes(lobes: LobeLabels, severity: Severity, between: OpacityRange) -> tuple[Finding, ...]:
    """What is unusual or unsure about each lobe, whose name the finding has, and about the borders between them."""
    return (*_fissure_findings(lobes), *_each_lobes_findings(lobes, severity, between))


def _each_lobes_findings(lobes: LobeLabels, severity: Severity, between: OpacityRange) -> Iterator[Finding]:
    return (
        finding
        for lobe in severity.lobes
        for finding in (
            *_size_findings(lobe, severity.volume_ml),
            *_cut_off_findings(lobes, lobe.lobe),
            *_range_findings(lobe, between.lobes[lobe.lobe]),
        )
    )


def _fissure_findings(lobes: LobeLabels) -> Iterator[Finding]:
    if lobes.fissures_sd is None:
        return
    seen_sd = {name: round(lobes.fissures_sd.get(name, 0.0), 1) for name in FISSURES}
    unseen = [name for name in FISSURES if seen_sd[name] < SEEN_SD]
    if unseen:
        names = _in_words([name.replace("_", " ") for name in unseen])
        message = (
            f"Not surely seen: the {names} fissure. There the border between lobes lies where the network expects it, "
            "and opacity near it may be counted to the lobe beside it."
        )
        yield Finding("fissures-unseen", "info", message, {"fissures": unseen, "seen_sd": seen_sd})


def _in_words(names: Sequence[str]) -> str:
    return " and the ".join(names) if len(names) < 3 else f"{', the '.join(names[:-1])} and the {names[-1]}"


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

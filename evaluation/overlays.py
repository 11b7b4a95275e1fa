"""The best, the median and the worst case (paper, Figure 6): what was found, missed and invented.

Rows are cases; columns are an axial and a coronal plane with all opacity, and the axial plane with high opacity alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import matplotlib as mpl
import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from scipy import ndimage

from evaluation.analysis import Analysis, ranked_by_lesions
from evaluation.figures import STYLE, Drawn, save
from evaluation.masks import Compared, MaskedCase
from evaluation.overlap import Mask
from evaluation.scores import CaseScores
from pipeline.geometry import Grid, Volume, resample, resample_labels
from pipeline.io.overview import centre_mm, planes_through, windowed

FOUND_RGB: Final = (0, 158, 115)
MISSED_RGB: Final = (230, 159, 0)
INVENTED_RGB: Final = (204, 121, 167)
"""Bluish green, orange and reddish purple (Okabe and Ito)."""

OPACITY: Final = 0.62
LUNG_MARGIN_MM: Final = 12.0


@dataclass(frozen=True, eq=False)
class Pair:
    """A structure on both sides."""

    truth: Mask
    predicted: Mask


def draw_cases(analysis: Analysis, compared: Compared, folder: Path, label: str) -> Drawn | None:
    """Write the figure; None where no case has true lesions."""
    ranked = ranked_by_lesions(compared.overlaps)
    if not ranked:
        return None
    chosen = _chosen(ranked)
    dice = {o.case: o.dice for o in compared.overlaps if o.structure == "lesions"}
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(12.5, 4.1 * len(chosen) + 0.4), layout="constrained")
        panels = figure.subplots(len(chosen), 3, squeeze=False)
        for row, (rank, case) in zip(panels, chosen, strict=True):
            _draw_row(list(row), f"{rank}: {case}, Dice {dice[case]:.2f}", compared.load(case))
            panel = row[0]
            index = analysis.scores.cases.index(case)
            lines = (("truth", analysis.scores.truth[index]), ("prediction", analysis.scores.predicted[index]))
            text = "\n".join(f"{side}: {_said(scores)}" for side, scores in lines)
            panel.text(0, -0.02, text, transform=panel.transAxes, va="top", fontsize=9)
        draw_legend(figure)
        save(figure, folder, "cases", label)
    caption = (
        f"Of {len(ranked)} cases with true lesions, {_words(chosen)} by the Dice of the lesions, through the slices "
        "that show most lesion. Left and middle: all opacity; right: high opacity alone (-200 HU and above). The "
        "patient's right is on the left."
    )
    return Drawn("cases", "Best, median and worst case (Figure 6 of the paper)", caption)


def _chosen(ranked: Sequence[str]) -> list[tuple[str, str]]:
    """Without repeating a case where there are fewer than three."""
    places = {"Best": 0, "Median": len(ranked) // 2, "Worst": len(ranked) - 1}
    by_case: dict[str, str] = {}
    for rank, place in places.items():
        by_case.setdefault(ranked[place], rank)
    return [(rank, case) for case, rank in by_case.items()]


def _draw_row(row: Sequence[Axes], title: str, case: MaskedCase) -> None:
    truth, predicted = case.truth.structures(case.volume), case.predicted.structures(case.volume)
    lesions = Pair(truth["lesions"], predicted["lesions"])
    dense = Pair(truth["high_opacity"], predicted["high_opacity"])
    grid = case.volume.grid
    centre = centre_mm(lesions.truth | lesions.predicted, grid)
    coronal, axial = planes_through(centre, around(truth["lungs"] | predicted["lungs"], grid))
    row[0].imshow(picture(case.volume, lesions, axial)[0], interpolation="nearest")
    row[1].imshow(picture(case.volume, lesions, coronal)[::-1, 0], interpolation="nearest")
    row[2].imshow(picture(case.volume, dense, axial)[0], interpolation="nearest")
    for panel, name in zip(row, (title, "coronal", "high opacity"), strict=True):
        panel.set_title(name, parse_math=False)
        panel.set_axis_off()


def _said(scores: CaseScores) -> str:
    return (
        f"PO {scores.percent_opacity:.1f} %, PHO {scores.percent_high_opacity:.1f} %, "
        f"LSS {scores.lung_severity_score}, LHOS {scores.lung_high_opacity_score}"
    )


def around(lungs: Mask, grid: Grid) -> Grid:
    """A grid that holds the lungs with a margin: what lies beyond them says nothing here."""
    ends = [(axis.start, axis.stop - 1) for axis in ndimage.find_objects(lungs.view(np.uint8))[0]]
    box = np.array([(z, y, x) for z in ends[0] for y in ends[1] for x in ends[2]], dtype=np.float64)
    points = grid.to_lps(box)
    return Grid.axis_aligned(points.min(axis=0) - LUNG_MARGIN_MM, points.max(axis=0) + LUNG_MARGIN_MM, (1.0, 1.0, 1.0))


def picture(volume: Volume, pair: Pair, plane: Grid) -> UInt8[np.ndarray, "z y x 3"]:
    """A plane through a scan, coloured by what of a structure was found, missed and invented."""
    grey = windowed(resample(volume.hu, volume.grid, plane))
    truth, predicted = (resample_labels(mask, volume.grid, plane) > 0 for mask in (pair.truth, pair.predicted))
    coloured = np.repeat(grey[..., None], 3, axis=-1).astype(np.float32)
    for where, rgb in (
        (truth & predicted, FOUND_RGB),
        (truth & ~predicted, MISSED_RGB),
        (predicted & ~truth, INVENTED_RGB),
    ):
        coloured[where] = (1 - OPACITY) * coloured[where] + OPACITY * np.array(rgb)
    return coloured.astype(np.uint8)


def draw_legend(figure: Figure) -> None:
    """Names of the three colours."""
    entries = (
        ("found", FOUND_RGB),
        ("missed (truth alone)", MISSED_RGB),
        ("invented (prediction alone)", INVENTED_RGB),
    )
    patches = [Patch(color=(red / 255, green / 255, blue / 255), label=name) for name, (red, green, blue) in entries]
    figure.legend(handles=patches, loc="outside lower center", ncols=3)


def _words(chosen: Sequence[tuple[str, str]]) -> str:
    names = [f"the {rank.lower()}" for rank, _ in chosen]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"

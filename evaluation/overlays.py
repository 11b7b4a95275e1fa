"""The figure of the best, the median and the worst case (paper, Figure 6): lesions found, missed and invented.

Rows are cases; columns are an axial and a coronal plane with all opacity, and the axial plane with high opacity alone.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import matplotlib as mpl
import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from scipy import ndimage

from evaluation.analysis import Analysis, ranked_by_lesions
from evaluation.figures import STYLE, Drawn, save
from evaluation.masks import Compared
from evaluation.overlap import Mask
from pipeline.geometry import Grid, Volume
from pipeline.io.overview import centre_mm, planes_through, windowed
from pipeline.resampling import resample, resample_labels

#: Bluish green, orange and reddish purple (Okabe and Ito), which people with any colour vision tell apart.
COLOURS: Final = {
    "found": (0, 158, 115),
    "missed (truth alone)": (230, 159, 0),
    "invented (prediction alone)": (204, 121, 167),
}

OPACITY: Final = 0.62

#: Around the lungs in each picture: enough of the chest wall to recognise where one looks.
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
    by_case: dict[str, str] = {}
    for rank, index in {"Best": 0, "Median": len(ranked) // 2, "Worst": len(ranked) - 1}.items():
        # Of fewer than three cases none is repeated.
        by_case.setdefault(ranked[index], rank)
    names = [f"the {rank.lower()}" for rank in by_case.values()]
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    dice = {o.case: o.dice for o in compared.overlaps if o.structure == "lesions"}
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(12.5, 4.1 * len(by_case) + 0.4), layout="constrained")
        panels = figure.subplots(len(by_case), 3, squeeze=False)
        for row, (case, rank) in zip(panels, by_case.items(), strict=True):
            # The masks are read again: all cases in memory would be too much.
            loaded = compared.load(case)
            volume, grid = loaded.volume, loaded.volume.grid
            truth, predicted = loaded.truth.structures(volume), loaded.predicted.structures(volume)
            lesions = Pair(truth["lesions"], predicted["lesions"])
            dense = Pair(truth["high_opacity"], predicted["high_opacity"])
            centre = centre_mm(lesions.truth | lesions.predicted, grid)
            coronal, axial, _ = planes_through(centre, around(truth["lungs"] | predicted["lungs"], grid))
            # Rows of an array run downwards, and the z axis upwards.
            pictures = (
                picture(volume, lesions, axial)[0],
                picture(volume, lesions, coronal)[::-1, 0],
                picture(volume, dense, axial)[0],
            )
            titles = (f"{rank}: {case}, Dice {dice[case]:.2f}", "coronal", "high opacity")
            for panel, shown, title in zip(row, pictures, titles, strict=True):
                panel.imshow(shown, interpolation="nearest")
                panel.set_title(title, parse_math=False)
                panel.set_axis_off()
            index = analysis.scores.cases.index(case)
            sides = {"truth": analysis.scores.truth[index], "prediction": analysis.scores.predicted[index]}
            text = "\n".join(
                f"{side}: PO {scores.percent_opacity:.1f} %, PHO {scores.percent_high_opacity:.1f} %, "
                f"LSS {scores.lung_severity_score}, LHOS {scores.lung_high_opacity_score}"
                for side, scores in sides.items()
            )
            row[0].text(0, -0.02, text, transform=row[0].transAxes, va="top", fontsize=9)
        draw_legend(figure)
        save(figure, folder, "cases", label)
    caption = (
        f"Of {len(ranked)} cases with true lesions, {listed} by the Dice of the lesions, through the slices "
        "that show most lesion. Left and middle: all opacity; right: high opacity alone (-200 HU and above). The "
        "patient's right is on the left."
    )
    return Drawn("cases", "Best, median and worst case (Figure 6 of the paper)", caption)


def around(lungs: Mask, grid: Grid) -> Grid:
    """An isotropic grid of 1 mm that holds the lungs of a mask (z-y-x, on `grid`) with a margin."""
    ends = [(axis.start, axis.stop - 1) for axis in ndimage.find_objects(lungs.view(np.uint8))[0]]
    box = np.array([(z, y, x) for z in ends[0] for y in ends[1] for x in ends[2]], dtype=np.float64)
    points = grid.to_lps(box)
    return Grid.axis_aligned(points.min(axis=0) - LUNG_MARGIN_MM, points.max(axis=0) + LUNG_MARGIN_MM, (1.0, 1.0, 1.0))


def picture(volume: Volume, pair: Pair, plane: Grid) -> UInt8[np.ndarray, "z y x 3"]:
    """A plane through a scan as RGB, coloured where a structure was found, missed and invented."""
    grey = windowed(resample(volume.hu, volume.grid, plane))
    truth, predicted = (resample_labels(mask, volume.grid, plane) > 0 for mask in (pair.truth, pair.predicted))
    coloured = np.repeat(grey[..., None], 3, axis=-1).astype(np.float32)
    sides = (truth & predicted, truth & ~predicted, predicted & ~truth)
    for where, rgb in zip(sides, COLOURS.values(), strict=True):
        coloured[where] = (1 - OPACITY) * coloured[where] + OPACITY * np.array(rgb)
    return coloured.astype(np.uint8)


def draw_legend(figure: Figure) -> None:
    """Names of the three colours."""
    patches = [Patch(color=(r / 255, g / 255, b / 255), label=name) for name, (r, g, b) in COLOURS.items()]
    figure.legend(handles=patches, loc="outside lower center", ncols=3)

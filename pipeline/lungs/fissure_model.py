"""Lays the fissures that people have through the faint sheets of one scan (decision 23).

A statistical model: each fissure is a quadratic surface over its mean plane, and what differs between people is a
normal distribution of its six coefficients. A whole surface meets enough of a fissure that is nowhere seen surely.
Coordinates are those of a standard lung: a box of `STANDARD_MM` whose origin is the right, front, lower corner,
so that a lung of any size is compared by its box. `training/data/fissure_atlas.py` learns the model.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Final

import numpy as np
from jaxtyping import Bool, Float32, Float64, UInt8
from scipy import ndimage, optimize

from pipeline.anatomy import FISSURES, LEFT_LOBES, RIGHT_LOBES, Lobe
from pipeline.geometry import Grid, Volume
from pipeline.lungs.fissure_sheets import Sheets, find_faint_sheets
from pipeline.resampling import is_truncated

Labels = UInt8[np.ndarray, "z y x"]
Mask = Bool[np.ndarray, "z y x"]
Points = Float64[np.ndarray, "*n 3"]
Coefficients = Float64[np.ndarray, "6"]
Scores = Float64[np.ndarray, "6"]
ManyScores = Float64[np.ndarray, "k 6"]

#: Box of the standard lung (x, y, z).
STANDARD_MM: Final = np.array([120.0, 175.0, 265.0])
#: The lobes above each fissure, and those below it.
SIDES_OF: Final[Mapping[str, tuple[tuple[Lobe, ...], tuple[Lobe, ...]]]] = {
    "left_oblique": ((Lobe.LEFT_UPPER,), (Lobe.LEFT_LOWER,)),
    "right_oblique": ((Lobe.RIGHT_UPPER, Lobe.RIGHT_MIDDLE), (Lobe.RIGHT_LOWER,)),
    "right_horizontal": ((Lobe.RIGHT_UPPER,), (Lobe.RIGHT_MIDDLE,)),
}
#: Of a fissure's arrays in `fissure_model.json`, which holds them flat.
SHAPES: Final = {"origin": (3,), "axes": (3, 3), "reach": (2, 2), "mean": (6,), "covariance": (6, 6)}
#: Between the points of a surface.
STEP_MM: Final = 4.0
#: Surfaces drawn from the model: they tell what a surface meets by chance, and where to begin.
STARTS: Final = 400
#: More starts, around the border that was drawn; the best of all ...
STARTS_NEAR_DRAWN: Final = 60
#: ... begin a search each.
SEARCHES: Final = 12
MOST_STEPS: Final = 20
#: Sheets are compared so far above and below a surface, to tell which way it should move.
SLOPE_MM: Final = 1.0
#: Spread of what surfaces meet by chance, at least: without any sheet there is nothing to tell.
LEAST_CHANCE: Final = 1e-4
#: What it costs to leave a drawn border by `FAR_MM` or more everywhere: what noise alone pays for that in 95 % of lungs
#: (half the square of "nothing drawn" of `training.validation.fissure_borders --noise`), so that without a fissure in
#: sight it stays.
DRAWN_NATS: Final[Mapping[str, float]] = {"left_oblique": 7.0, "right_oblique": 22.0, "right_horizontal": 27.0}
FAR_MM: Final = 10.0
#: Nearer to the oblique fissure, a sheet is part of it. The horizontal one ends there: what of its surface is clearly
#: above the oblique one counts, ...
CLEAR_MM: Final = 5.0
#: ... as at least this share of it, so that a small piece on one sheet is not all of it.
LEAST_COUNTED: Final = 0.25
BORDER_ERROR_MM: Final = 3.0
#: A drawn border says as much about its coefficients as so many points with that error.
BORDER_POINTS: Final = 400


@dataclass(frozen=True, eq=False)
class Fissure:
    """The distribution of one fissure over people, in mm of the standard lung.

    Attributes:
        origin, axes: of the mean plane; the rows of `axes` are two directions in it and its normal.
        reach: how far (2 x 2: lower and upper, along the two directions) points were marked; held constant beyond.
        mean, covariance: of the six coefficients of the height over the plane.
    """

    origin: Float64[np.ndarray, "3"]
    axes: Float64[np.ndarray, "3 3"]
    reach: Float64[np.ndarray, "2 2"]
    mean: Coefficients
    covariance: Float64[np.ndarray, "6 6"]

    def heights(self, points: Points, coefficients: Coefficients) -> Float64[np.ndarray, "*n"]:
        """Signed distance of points from the surface along its normal, which points up (and forward)."""
        local = self.local(points)
        return np.asarray(local[..., 2] - quadratic_terms(np.clip(local[..., :2], *self.reach)) @ coefficients)

    def local(self, points: Points) -> Points:
        """Points in the mean plane's own coordinates, the last of which is the height over it."""
        return np.asarray((points - self.origin) @ self.axes.T)

    def plane(self) -> Float64[np.ndarray, "n 2"]:
        """Points spread over the mean plane, as far as fissures were marked."""
        a, b = (np.arange(low, high, STEP_MM) for low, high in self.reach.T)
        return np.stack(np.meshgrid(a, b, indexing="ij"), axis=-1).reshape(-1, 2)

    def plane_points(self) -> Points:
        """The same as points of the standard lung."""
        flat = self.plane()
        return np.asarray(np.column_stack([flat, np.zeros(len(flat))]) @ self.axes + self.origin)


@dataclass(frozen=True, eq=False)
class Surface:
    """The fissure of one person."""

    fissure: Fissure
    coefficients: Coefficients

    def heights(self, points: Points) -> Float64[np.ndarray, "*n"]:
        """How far points (of the standard lung) are above it, mm."""
        return self.fissure.heights(points, self.coefficients)


FissureModel = Mapping[str, Fissure]
#: By fissure, how far above chance it meets sheets, in standard deviations.
SeenSd = Mapping[str, float]


@dataclass(frozen=True, eq=False)
class LungBox:
    """The bounding box of a lung (LPS mm, x-y-z), which makes it comparable with the standard lung."""

    lower_mm: Float64[np.ndarray, "3"]
    upper_mm: Float64[np.ndarray, "3"]

    @classmethod
    def of(cls, lung: Mask, grid: Grid) -> "LungBox":
        occupied = np.argwhere(lung)
        ends = np.stack([occupied.min(axis=0) - 0.5, occupied.max(axis=0) + 0.5])
        corners = grid.to_lps(np.array([(z, y, x) for z in ends[:, 0] for y in ends[:, 1] for x in ends[:, 2]]))
        return cls(corners.min(axis=0), corners.max(axis=0))

    def to_standard(self, position_mm: Points) -> Points:
        return np.asarray((position_mm - self.lower_mm) / (self.upper_mm - self.lower_mm) * STANDARD_MM)

    def to_lps(self, standard: Points) -> Points:
        return np.asarray(self.lower_mm + standard / STANDARD_MM * (self.upper_mm - self.lower_mm))


@cache
def read_shapes() -> FissureModel:
    """The model that is shipped."""
    text = files("pipeline.lungs").joinpath("fissure_model.json").read_text(encoding="utf-8")
    return {
        name: Fissure(**{key: np.reshape(values, SHAPES[key]) for key, values in fissure.items()})
        for name, fissure in json.loads(text)["fissures"].items()
    }


def lay_fissures(volume: Volume, roi: Grid, labels: Labels) -> tuple[Labels, SeenSd]:
    """Lobes (labels on `roi`) redrawn by the surfaces that fit the scan, and how surely each was seen.

    The lungs stay as they are. A lung that the scan cuts off has no box to compare it by, and one without all of its
    lobes is another's anatomy: their lobes stay, too, and their fissures were not looked for.
    """
    sides = [
        side for side in (LEFT_LOBES, RIGHT_LOBES)
        if all((labels == lobe).any() for lobe in side) and not is_truncated(np.isin(labels, side), roi, volume.grid)
    ]  # fmt: skip
    if not sides:
        return labels, {}
    lungs = np.isin(labels, [lobe for side in sides for lobe in side])
    sheets = find_faint_sheets(volume, roi, lungs)
    laid = labels.copy()
    seen_sd: dict[str, float] = {}
    for side in sides:
        lung = np.isin(labels, side)
        drawn, of_side = draw_side(lung, roi, sheets, read_shapes(), side, drawn=labels)
        laid[lung] = drawn[lung]
        seen_sd |= of_side
    return laid, seen_sd


def draw_side(
    lung: Mask,
    grid: Grid,
    sheets: Sheets,
    model: FissureModel,
    side: tuple[Lobe, ...],
    drawn: Labels | None = None,
) -> tuple[Labels, dict[str, float]]:
    """The lobes of one lung, and how far above chance (standard deviations) each of its fissures meets sheets.

    Args:
        lung: on `grid`, all of it.
        side: the lobes of this lung.
        drawn: borders to stay near where the scan shows none; by default those of the mean person.
    """
    box = LungBox.of(lung, grid)
    inside = np.argwhere(lung)
    points = box.to_standard(grid.to_lps(inside.astype(np.float64)))
    above: dict[str, Bool[np.ndarray, " n"]] = {}
    seen_sd = {}
    oblique: Surface | None = None
    for name in FISSURES:
        upper, lower = SIDES_OF[name]
        if upper[0] in side:
            near = None if drawn is None else _coefficients_of(model[name], box, grid, drawn, upper, lower)
            search = _Search.of(model[name], box, sheets, near, DRAWN_NATS[name], oblique)
            surface, seen_sd[name] = search.best()
            above[name] = surface.heights(points) > 0
            oblique = oblique or surface
            # Sheets near and below a fissure are taken out: the horizontal one was once laid on the oblique one.
            somewhat = np.argwhere(sheets.sheetness > 0)
            heights_mm = surface.heights(box.to_standard(sheets.grid.to_lps(somewhat.astype(np.float64))))
            left = sheets.sheetness.copy()
            left[tuple(somewhat[heights_mm < CLEAR_MM].T)] = 0.0
            sheets = Sheets(left, sheets.grid)
    lobes = np.zeros(lung.shape, dtype=np.uint8)
    if side == LEFT_LOBES:
        lobes[lung] = np.where(above["left_oblique"], Lobe.LEFT_UPPER, Lobe.LEFT_LOWER)
    else:
        front = np.where(above["right_horizontal"], Lobe.RIGHT_UPPER, Lobe.RIGHT_MIDDLE)
        lobes[lung] = np.where(above["right_oblique"], front, Lobe.RIGHT_LOWER)
    return lobes, seen_sd


def quadratic_terms(flat: Float64[np.ndarray, "*n 2"]) -> Float64[np.ndarray, "*n 6"]:
    """1, a, b, aa, ab, bb."""
    a, b = flat[..., 0], flat[..., 1]
    return np.stack([np.ones_like(a), a, b, a * a, a * b, b * b], axis=-1)


@dataclass(frozen=True, eq=False)
class _Search:
    """For the likeliest surface, in units of the model's spread ("scores").

    The sheet that a surface meets by chance is taken as normal; a surface that meets more is likelier by the square of
    what it has more (the likelihood ratio of a signal of unknown strength), and likely in itself as people have it.

    Attributes:
        plane: points of the mean plane that the surface is made of.
        terms: of those points; times scores, their heights in mm over ...
        mean_mm: ... those of the mean person.
        foot, normal: where those points lie in `seen` (voxels), and how far 1 mm of height is.
        root: brings scores to coefficients.
        drawn: scores of the border that was drawn, if there is one, and ...
        drawn_nats: ... what it costs to leave it.
        oblique: the fissure that this one lies above, if it does.
    """

    fissure: Fissure
    plane: Points
    terms: Float64[np.ndarray, "n 6"]
    mean_mm: Float64[np.ndarray, " n"]
    foot: Float64[np.ndarray, "n 3"]
    normal: Float64[np.ndarray, "3"]
    seen: Float32[np.ndarray, "z y x"]
    root: Float64[np.ndarray, "6 6"]
    drawn: Scores | None
    drawn_nats: float
    oblique: Surface | None

    @classmethod
    def of(
        cls,
        fissure: Fissure,
        box: LungBox,
        sheets: Sheets,
        drawn: Coefficients | None,
        drawn_nats: float,
        oblique: Surface | None,
    ) -> "_Search":
        flat = fissure.plane()
        plane = fissure.plane_points()
        foot, raised = (sheets.grid.to_index(box.to_lps(points)) for points in (plane, plane + fissure.axes[2]))
        root = np.linalg.cholesky(fissure.covariance + 1e-9 * np.eye(6))
        scores = None if drawn is None else np.linalg.solve(root, drawn - fissure.mean)
        seen = ndimage.gaussian_filter(sheets.sheetness, 1.0)
        terms = quadratic_terms(flat)
        normal = (raised - foot)[0]
        mean_mm = terms @ fissure.mean
        return cls(fissure, plane, terms @ root, mean_mm, foot, normal, seen, root, scores, drawn_nats, oblique)

    def best(self) -> tuple[Surface, float]:
        """The surface, and by how many standard deviations it meets more sheet than chance does."""
        rng = np.random.default_rng(0)
        starts = np.stack([np.zeros(6), *rng.normal(size=(STARTS, 6))])
        met = self.met(starts)
        low, median = np.quantile(met, [0.16, 0.5])
        chance = _Chance(float(median), max(float(median - low), LEAST_CHANCE))
        first = []
        if self.drawn is not None:
            near = np.stack([self.drawn, *(self.drawn + 0.5 * rng.normal(size=(STARTS_NEAR_DRAWN, 6)))])
            starts, met = np.concatenate([starts, near]), np.concatenate([met, self.met(near)])
            first.append(self.drawn)
        nats = [self._nats(start, chance.unusual(float(own))) for start, own in zip(starts, met, strict=True)]
        searched = [*first, *starts[np.argsort(nats, kind="stable")[:SEARCHES]]]
        found = [
            optimize.minimize(
                self.nats_and_slope, start, (chance,), jac=True, method="L-BFGS-B", options={"maxiter": MOST_STEPS}
            )
            for start in searched
        ]
        winner = min(found, key=lambda result: float(result.fun)).x
        surface = Surface(self.fissure, np.asarray(self.fissure.mean + self.root @ winner))
        return surface, chance.unusual(float(self.met(winner[None])[0]))

    def nats_and_slope(self, scores: Scores, chance: "_Chance") -> tuple[float, Scores]:
        """How unlikely a surface is, and the slope of that by its scores."""
        shares = self._shares(scores[None])[0]
        # Together: most of the time goes into asking for what was met.
        here, above, below = self._met_at(np.stack([scores] * 3), np.array([0.0, SLOPE_MM, -SLOPE_MM]))
        unusual = chance.unusual(float(shares @ here))
        slope = scores.copy()
        if unusual > 0:
            rising = (above - below) / (2 * SLOPE_MM)
            slope -= unusual / chance.spread * ((shares * rising) @ self.terms)
        if self.drawn is not None:
            away_mm = self.terms @ (scores - self.drawn)
            pull = np.sign(away_mm) * (np.abs(away_mm) < FAR_MM)
            slope += self.drawn_nats / FAR_MM * (pull @ self.terms) / len(self.terms)
        return self._nats(scores, unusual), slope

    def _nats(self, scores: Scores, unusual: float) -> float:
        nats = 0.5 * float(np.sum(scores**2)) - 0.5 * max(unusual, 0.0) ** 2
        if self.drawn is not None:
            away_mm = np.abs(self.terms @ (scores - self.drawn))
            nats += self.drawn_nats * float(np.minimum(away_mm / FAR_MM, 1.0).mean())
        return nats

    def met(self, scores: ManyScores) -> Float64[np.ndarray, " k"]:
        """Mean sheetness on each surface, on that of it which counts."""
        return np.asarray((self._shares(scores) * self._met_at(scores, np.zeros(len(scores)))).sum(axis=1))

    def _shares(self, scores: ManyScores) -> Float64[np.ndarray, "k n"]:
        """What each point of the surfaces counts for: the same, or nothing."""
        count = len(self.terms)
        if self.oblique is None:
            return np.full((len(scores), count), 1 / count)
        heights_mm = self.mean_mm + scores @ self.terms.T
        points = self.plane + heights_mm[..., None] * self.fissure.axes[2]
        # Counted as a whole, the horizontal surface would lose by ending at the oblique one, and climb over it instead.
        counts = self.oblique.heights(points.reshape(-1, 3)).reshape(heights_mm.shape) > CLEAR_MM
        return np.asarray(counts / np.maximum(np.count_nonzero(counts, axis=1), LEAST_COUNTED * count)[:, None])

    def _met_at(self, scores: ManyScores, above_mm: Float64[np.ndarray, " k"]) -> Float32[np.ndarray, "k n"]:
        heights_mm = self.mean_mm + scores @ self.terms.T + above_mm[:, None]
        where = self.foot.T[:, None] + heights_mm * self.normal[:, None, None]
        return np.asarray(ndimage.map_coordinates(self.seen, where, order=1, mode="constant"))


@dataclass(frozen=True)
class _Chance:
    """The mean sheetness that surfaces meet by chance."""

    median: float
    spread: float

    def unusual(self, met: float) -> float:
        """How many standard deviations above chance."""
        return (met - self.median) / self.spread


def _coefficients_of(
    fissure: Fissure, box: LungBox, grid: Grid, labels: Labels, upper: tuple[Lobe, ...], lower: tuple[Lobe, ...]
) -> Coefficients:
    """Those of a border as it is drawn, where the model knows the fissure; likely ones where it does not."""
    above, below = np.isin(labels, upper), np.isin(labels, lower)
    border = np.argwhere((ndimage.binary_dilation(above) & below) | (ndimage.binary_dilation(below) & above))
    local = fissure.local(box.to_standard(grid.to_lps(border.astype(np.float64))))
    known = local[((local[:, :2] > fissure.reach[0]) & (local[:, :2] < fissure.reach[1])).all(axis=1)]
    if not len(known):
        return fissure.mean
    terms = quadratic_terms(known[:, :2])
    weight = BORDER_POINTS / len(known) / BORDER_ERROR_MM**2
    normal = weight * terms.T @ terms + np.linalg.inv(fissure.covariance + 1e-9 * np.eye(6))
    residual = known[:, 2] - terms @ fissure.mean
    return np.asarray(fissure.mean + np.linalg.solve(normal, weight * terms.T @ residual))

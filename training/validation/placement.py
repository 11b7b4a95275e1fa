"""Whether lungs are placed where they are hard to see, and whether what is no chest is refused.

    python -m training.validation.placement --phantoms 2 --not-chests 5 --data FOLDER --scan left-lung-all-fluid.nii.gz

Phantoms of seeds that nothing else uses and, with the folder of public scans, case05 of LCTSC, which no training saw:
with 30 to 100 % of one or both lungs filled, 200 to 700 HU denser, cut to 120 mm. Against them abdomens, heads,
pelvises, legs, bottles and MR-like values. All but case05 and the abdomens of LCTSC is synthetic, and so is what
was done to case05. Landmarks and the coarse pass are run, which decide whether a scan is scored; no lobes are drawn.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import get_args

import numpy as np

from pipeline.canonical import CanonicalScan
from pipeline.errors import PipelineError
from pipeline.geometry import Grid
from pipeline.intensities import require_hounsfield
from pipeline.io.read import read_ct
from pipeline.landmarks import LandmarkNetwork, find_landmarks
from pipeline.lungs.segment import LungNetwork, closer_grid, place_lungs, require_lungs
from pipeline.networks.device import choose_device
from pipeline.networks.weights import load_weights
from training.validation.placement_cases import Case, NotChest, chests, not_chests


@dataclass(frozen=True)
class Result:
    """What became of one scan.

    Attributes:
        is_right: a chest was placed, or something else was refused.
        by: the landmark that placed the lungs, `look`, or the code of the refusal.
        searched_recall, drawn_recall: of the true lungs, the share in the region that was searched, and in the box that
            the fine pass draws in; None where there is none.
    """

    name: str
    kind: str
    is_right: bool
    by: str
    searched_recall: float | None = None
    drawn_recall: float | None = None


def place(case: Case, landmarks: LandmarkNetwork, lungs: LungNetwork) -> Result:
    """Place the lungs of a scan as the product does, up to where it is sure to score it."""
    scan = CanonicalScan.of(case.volume)
    is_chest = case.kind not in get_args(NotChest)
    try:
        require_hounsfield(scan.volume)
        found = find_landmarks(scan.volume, landmarks)
        look = place_lungs(scan.volume, found, lungs)
        require_lungs(look.labels, 8 * look.region.voxel_volume_ml, look.region)
    except PipelineError as error:
        return Result(case.name, case.kind, not is_chest, error.code)
    by = next((mark.value for mark, position in found.items() if position.found), "look")
    result = Result(case.name, case.kind, is_chest, by)
    if case.lungs is None:
        return result
    points = case.volume.grid.to_lps(np.argwhere(case.lungs).astype(np.float64)) - np.asarray(scan.corner_mm)
    box = closer_grid(look.region, look.labels, lungs.config)
    return replace(result, searched_recall=_held(look.region, points), drawn_recall=_held(box, points))


def _held(box: Grid, points_mm: np.ndarray) -> float:
    """The share of the points that lie in the box."""
    lower, upper = box.bounds_mm()
    return float(np.mean(np.all((points_mm >= lower) & (points_mm <= upper), axis=1)))


def summarise(results: Iterable[Result]) -> Iterator[dict[str, object]]:
    """A row for each kind, then one for all chests and one for all that is none."""
    groups: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        groups[result.kind].append(result)
        groups["no chest" if result.kind in get_args(NotChest) else "chests"].append(result)
    for kind, members in groups.items():
        recalls = [(r.searched_recall, r.drawn_recall) for r in members if r.searched_recall is not None]
        yield {
            "kind": kind,
            "scans": len(members),
            "right": sum(r.is_right for r in members),
            "right_percent": round(100 * float(np.mean([r.is_right for r in members])), 1),
            "by_look": sum(r.by == "look" for r in members),
            "least_searched_recall": round(min((s for s, _ in recalls if s is not None), default=float("nan")), 4),
            "least_drawn_recall": round(min((d for _, d in recalls if d is not None), default=float("nan")), 4),
        }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a JSON row for each scan, then the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phantoms", type=int, default=2, help="each in 28 variants")
    parser.add_argument("--not-chests", type=int, default=5, help="of each kind")
    parser.add_argument("--data", type=Path, default=None, help="folder of the public scans (docs/data.md)")
    parser.add_argument("--scan", type=Path, action="append", default=[], help="a chest to place; may be repeated")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--weights", type=Path, default=None, help="folder of weights; the shipped ones by default")
    options = parser.parse_args(arguments)
    device = choose_device(options.device)
    landmarks = LandmarkNetwork.load(load_weights("landmarks", options.weights), device)
    lungs = LungNetwork.load(load_weights("lungs", options.weights), device)
    files = (Case(path.name, "file", read_ct(path).volume) for path in options.scan)
    cases = chain(files, not_chests(options.not_chests, options.data), chests(options.phantoms, options.data))
    results = []
    for case in cases:
        results.append(place(case, landmarks, lungs))
        print(json.dumps(asdict(results[-1])), flush=True)
    for row in summarise(results):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()

"""How far from the truth the agents end, and whether they know what is not in the scan.

    python -m training.validation.landmarks --phantoms 24 --data DATA --pictures OUT

Phantoms are drawn from seeds that training never uses. `DATA` holds the public scans that `landmark_marks.json` marks
(`lctsc/caseNN_ct.nii.gz`, `dicom/NAME.zip`, `fissures/ct-64.nrrd`); their marks are traced or read by eye, good to 3 mm
for the carina and to 8 mm for the sternum tip. Every scan is also asked in pieces that end 25 mm above or below a
landmark. Where the lungs are known, it is measured how much of them lies in the region of interest that the answers
place: what lies outside of it is lost to all that follows.
"""

import argparse
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import SimpleITK as sitk
import torch
from jaxtyping import Bool, Float32, UInt8

from pipeline.anatomy import Landmark
from pipeline.geometry import Grid, LandmarkPosition, Triple, Volume
from pipeline.io.read import read_ct
from pipeline.landmarks import LandmarkNetwork, find_landmarks
from pipeline.lungs.segment import roi_grid
from pipeline.networks.di2in import LungConfig
from pipeline.networks.weights import load_weights
from pipeline.phantom import Fit, PhantomRecipe, make_phantom
from training.data.landmark_dataset import OTHER_FITS, PHANTOM_SPACING_MM, read_marks, real_path
from training.data.splits import FIRST_UNSEEN_SEED

GOOD_MM: Final = 10.0
#: Beyond the error of any mark, so that the landmark is surely not in the piece.
GAP_MM: Final = 25.0
MIN_PIECE_MM: Final = 60.0


@dataclass(frozen=True, eq=False)
class Case:
    """A scan, where its landmarks are (LPS mm; those missing are not in it), and its lungs where they are known."""

    name: str
    volume: Volume
    truth: Mapping[Landmark, Triple]
    lungs: Bool[np.ndarray, "z y x"] | None = None


@dataclass(frozen=True)
class Answer:
    """Where the agent of a landmark ended in a case."""

    case: str
    truth_mm: Triple | None
    found: LandmarkPosition

    @property
    def error_mm(self) -> float | None:
        """Distance from the truth; None where either says that the landmark is not in the scan."""
        if self.truth_mm is None or self.found.position_mm is None:
            return None
        return float(np.linalg.norm(np.subtract(self.truth_mm, self.found.position_mm)))


@dataclass(frozen=True)
class Summary:
    """Answers in figures. `median_mm` and `worst_mm` are over the landmarks that are in their scan and were found."""

    landmark: Landmark
    present: int
    found: int
    within_10_mm: int
    median_mm: float
    worst_mm: float
    absent: int
    said_absent: int


def ask(case: Case, network: LandmarkNetwork) -> list[Answer]:
    """One answer for each landmark of the network."""
    found = find_landmarks(case.volume, network)
    return [Answer(case.name, case.truth.get(mark), position) for mark, position in found.items()]


class TimedNetwork(LandmarkNetwork):
    """A network that sums up the seconds that its agents take at each scale."""

    def __init__(self, network: LandmarkNetwork) -> None:
        super().__init__(network.info, network.config, network.agents, network.device)
        self.seconds = [0.0] * len(network.config.scales_mm)

    def q_values(
        self, landmark: Landmark, level: int, boxes: UInt8[np.ndarray, "n k k k"]
    ) -> Float32[np.ndarray, "n 6"]:
        begin = time.perf_counter()
        answer = super().q_values(landmark, level, boxes)
        self.seconds[level] += time.perf_counter() - begin
        return answer


def seconds_by_scale(cases: Iterable[Case], network: LandmarkNetwork) -> dict[str, float]:
    """Mean seconds a scan: resampling it and cutting out boxes, and the networks of each scale for both landmarks."""
    timed, count, begin = TimedNetwork(network), 0, time.perf_counter()
    for count, case in enumerate(cases, start=1):  # noqa: B007 (their number is used)
        find_landmarks(case.volume, timed)
    whole = time.perf_counter() - begin
    parts = {f"{mm:g} mm": spent for mm, spent in zip(network.config.scales_mm, timed.seconds, strict=True)}
    return {
        name: round(spent / max(count, 1), 3) for name, spent in {"rest": whole - sum(parts.values()), **parts}.items()
    }


def region_recall(case: Case, answers: Sequence[Answer], config: LungConfig) -> float | None:
    """Share of the lungs inside the region of interest that the answers place; None where the lungs are not known.

    Raises:
        LungsNotFoundError: there is no landmark to place it by.
    """
    if case.lungs is None:
        return None
    region = roi_grid(case.volume.grid, {answer.found.landmark: answer.found for answer in answers}, config)
    lower, upper = region.bounds_mm()
    where = case.volume.grid.to_lps(np.argwhere(case.lungs).astype(np.float64))
    return float(np.mean(np.all((where >= lower) & (where <= upper), axis=1)))


def ask_pieces(case: Case, network: LandmarkNetwork) -> Iterator[Answer]:
    """Answers about the landmark that each piece of the scan was cut to be without."""
    for landmark in case.truth:
        for piece in pieces_without(case, landmark):
            yield from (answer for answer in ask(piece, network) if answer.found.landmark is landmark)


def summarise(landmark: Landmark, answers: Sequence[Answer]) -> Summary:
    """Counts over the answers about one landmark."""
    mine = [answer for answer in answers if answer.found.landmark is landmark]
    present = [answer for answer in mine if answer.truth_mm is not None]
    absent = [answer for answer in mine if answer.truth_mm is None]
    errors = [error for answer in present if (error := answer.error_mm) is not None]
    return Summary(
        landmark=landmark,
        present=len(present),
        found=len(errors),
        within_10_mm=sum(error <= GOOD_MM for error in errors),
        median_mm=float(np.median(errors)) if errors else float("nan"),
        worst_mm=max(errors, default=float("nan")),
        absent=len(absent),
        said_absent=sum(not answer.found.found for answer in absent),
    )


def pieces_without(case: Case, landmark: Landmark) -> Iterator[Case]:
    """What lies below and above a landmark, `GAP_MM` away from it; pieces shorter than `MIN_PIECE_MM` are left out."""
    grid = case.volume.grid
    spacing = grid.spacing_mm[0]
    at = float(grid.to_index(np.array(case.truth[landmark]))[0])
    first, last = int(at - GAP_MM / spacing), int(at + GAP_MM / spacing) + 1
    for name, start, stop in (("start", 0, first), ("end", last, grid.shape[0])):
        if (stop - start) * spacing >= MIN_PIECE_MM:
            volume = slab(case.volume, start, stop)
            inside = {mark: xyz for mark, xyz in case.truth.items() if volume.grid.contains(xyz)}
            yield Case(f"{case.name}, {name} without {landmark.value}", volume, inside)


def slab(volume: Volume, start: int, stop: int) -> Volume:
    """The slices from `start` to before `stop`."""
    x, y, z = (float(v) for v in volume.grid.to_lps(np.array([start, 0, 0], dtype=np.float64)))
    grid = Grid((stop - start, *volume.grid.shape[1:]), volume.grid.spacing_mm, (x, y, z), volume.grid.direction)
    return Volume(volume.hu[start:stop], grid)


def phantom_cases(count: int, fits: Sequence[Fit] = ("chest",)) -> Iterator[Case]:
    """Phantoms that no training has seen, which show `fits` in turn."""
    for number in range(count):
        recipe = PhantomRecipe(
            seed=FIRST_UNSEEN_SEED + number, spacing_mm=PHANTOM_SPACING_MM, fit=fits[number % len(fits)]
        )
        phantom = make_phantom(recipe)
        lungs = phantom.lobes.labels > 0 if recipe.fit == "chest" else None
        yield Case(f"phantom {recipe.seed} {recipe.fit}", phantom.volume, phantom.landmarks, lungs)


def real_cases(data: Path) -> Iterator[Case]:
    """The marked public scans that are in `data`."""
    for name, truth in read_marks().items():
        if (path := real_path(data, name)) is not None:
            mask = data / "lctsc" / f"{name}_lungs.nii.gz"
            lungs = sitk.GetArrayFromImage(sitk.ReadImage(str(mask))) > 0 if mask.exists() else None
            yield Case(name, read_ct(path).volume, truth, lungs)


def draw(case: Case, path: Path, answers: Sequence[Answer] = ()) -> None:
    """Three sections through each landmark with its mark (red) and the answer (green): to check marks by eye."""
    from matplotlib.figure import Figure  # only for development

    figure = Figure(figsize=(12, 4 * len(case.truth)), layout="constrained")
    panels = figure.subplots(len(case.truth), 3, squeeze=False)
    found = {answer.found.landmark: answer.found.position_mm for answer in answers}
    for row, (landmark, truth_mm) in zip(panels, case.truth.items(), strict=True):
        row[0].set_title(f"{case.name}: {landmark.value}")
        for axis, panel in enumerate(row):
            volume = case.volume
            index = round(float(volume.grid.to_index(np.array(truth_mm))[axis]))
            rows_mm, columns_mm = (mm for i, mm in enumerate(volume.grid.spacing_mm) if i != axis)
            section = np.take(volume.hu, index, axis=axis)
            origin = "upper" if axis == 0 else "lower"
            panel.imshow(section, cmap="gray", vmin=-1000, vmax=400, aspect=rows_mm / columns_mm, origin=origin)
            for position_mm, colour in ((truth_mm, "red"), (found.get(landmark), "lime")):
                if position_mm is not None:
                    at, across = np.delete(volume.grid.to_index(np.array(position_mm)), axis)
                    panel.plot(across, at, "+", color=colour, markersize=14)
    figure.savefig(path, dpi=80)


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m training.validation.landmarks`."""
    parser = argparse.ArgumentParser(description="Evaluate the landmark agents.")
    parser.add_argument("--phantoms", type=int, default=24, help="chests; half as many show something else")
    parser.add_argument("--data", type=Path, help="folder of the marked public scans")
    parser.add_argument("--weights", type=Path, help="folder of landmarks and lungs.safetensors; else the shipped ones")
    parser.add_argument("--pictures", type=Path, help="folder for a picture of each real case")
    options = parser.parse_args(arguments)
    network = LandmarkNetwork.load(load_weights("landmarks", options.weights), torch.device("cpu"))
    lungs = LungConfig.from_mapping(load_weights("lungs", options.weights).config)
    if options.data:
        _report("real", real_cases(options.data), network, lungs, options.pictures)
    _report("chest phantoms", phantom_cases(options.phantoms), network, lungs, None)
    _report("other phantoms", phantom_cases(options.phantoms // 2, OTHER_FITS), network, lungs, None)
    print("seconds a scan:", seconds_by_scale(phantom_cases(min(options.phantoms, 4)), network))


def _report(
    title: str, cases: Iterable[Case], network: LandmarkNetwork, lungs: LungConfig, pictures: Path | None
) -> None:
    """One row an answer, then the summaries."""
    whole: list[Answer] = []
    pieces: list[Answer] = []
    recalls: list[float] = []
    for case in cases:
        answers = ask(case, network)
        for answer in answers:
            print(_row(answer))
        whole += answers
        if (recall := region_recall(case, answers, lungs)) is not None:
            recalls.append(recall)
        pieces += ask_pieces(case, network)
        if pictures:
            pictures.mkdir(parents=True, exist_ok=True)
            draw(case, pictures / f"{case.name}.png", answers)
    for answer in pieces:
        if answer.found.found:
            print(f"wrongly found in a piece: {_row(answer)}")
    for landmark in network.landmarks:
        print(title, "whole ", summarise(landmark, whole))
        print(title, "pieces", summarise(landmark, pieces))
    if recalls:
        print(f"{title}: lung inside the region of interest, least {100 * min(recalls):.3f} % of {len(recalls)} scans")


def _row(answer: Answer) -> str:
    at = answer.found.position_mm
    said = "not in this scan" if at is None else "at " + ", ".join(f"{mm:.0f}" for mm in at)
    error = "" if answer.error_mm is None else f"{answer.error_mm:.1f} mm off"
    return f"{answer.case:28} {answer.found.landmark.value:12} {said} {error} ({answer.found.confidence:.2f})"


if __name__ == "__main__":
    main()

"""How far from the truth the agents end, and whether they know what is not in the scan.

    python -m lobewise.pipeline.evaluation.landmarks --phantoms 24 --data DATA --pictures OUT

Phantoms are drawn from seeds that training never uses. `DATA` holds the public scans that `landmark_marks.json` marks
(`lctsc/caseNN_ct.nii.gz`, `dicom/NAME.zip`, `fissures/ct-64.nrrd`); their marks are traced or read by eye, good to 3 mm
for the carina and to 8 mm for the sternum tip. Every scan is also asked in pieces that end 25 mm above or below a
landmark.
"""

import argparse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from lobewise.pipeline.anatomy import Landmark
from lobewise.pipeline.landmarks import LandmarkNetwork, LandmarkPosition, find_landmarks
from lobewise.pipeline.networks.weights import load_weights
from lobewise.pipeline.phantom import Fit, PhantomRecipe, make_phantom
from lobewise.pipeline.reading import read_ct
from lobewise.pipeline.training.landmark_bank import OTHER_FITS, PHANTOM_SPACING_MM, read_marks, real_path
from lobewise.pipeline.volume import Grid, Triple, Volume

FIRST_UNSEEN_SEED: Final = 1_000_000
GOOD_MM: Final = 10.0
GAP_MM: Final = 25.0
MIN_PIECE_MM: Final = 60.0


@dataclass(frozen=True, eq=False)
class Case:
    """A scan and where its landmarks are (LPS mm); those missing are not in it."""

    name: str
    volume: Volume
    truth: Mapping[Landmark, Triple]


@dataclass(frozen=True)
class Answer:
    """What the agent of a landmark said about a case."""

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
    """Answers in figures. `median_mm` is over the landmarks that are in their scan and were found."""

    landmark: Landmark
    present: int
    found: int
    within_10_mm: int
    median_mm: float
    absent: int
    said_absent: int


def ask(case: Case, network: LandmarkNetwork) -> list[Answer]:
    """One answer for each landmark of the network."""
    found = find_landmarks(case.volume, network)
    return [Answer(case.name, case.truth.get(mark), position) for mark, position in found.items()]


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
        yield Case(f"phantom {recipe.seed} {recipe.fit}", phantom.volume, phantom.landmarks)


def real_cases(data: Path) -> Iterator[Case]:
    """The marked public scans that are in `data`."""
    for name, truth in read_marks().items():
        if (path := real_path(data, name)) is not None:
            yield Case(name, read_ct(path).volume, truth)


def draw(case: Case, path: Path, answers: Sequence[Answer] = ()) -> None:
    """Three sections through each landmark with its mark (red) and the answer (green): to check marks by eye."""
    from matplotlib.figure import Figure  # only for development

    figure = Figure(figsize=(12, 4 * len(case.truth)), layout="constrained")
    panels = figure.subplots(len(case.truth), 3, squeeze=False)
    found = {answer.found.landmark: answer.found.position_mm for answer in answers}
    for row, (landmark, truth_mm) in zip(panels, case.truth.items(), strict=True):
        row[0].set_title(f"{case.name}: {landmark.value}")
        for axis, panel in enumerate(row):
            _draw_section(panel, case.volume, axis, truth_mm)
            _draw_cross(panel, case.volume.grid, axis, truth_mm, "red")
            if (position := found.get(landmark)) is not None:
                _draw_cross(panel, case.volume.grid, axis, position, "lime")
    figure.savefig(path, dpi=80)


def _draw_section(panel: Any, volume: Volume, axis: int, through_mm: Triple) -> None:
    index = round(float(volume.grid.to_index(np.array(through_mm))[axis]))
    rows_mm, columns_mm = (mm for i, mm in enumerate(volume.grid.spacing_mm) if i != axis)
    section = np.take(volume.hu, index, axis=axis)
    origin = "upper" if axis == 0 else "lower"
    panel.imshow(section, cmap="gray", vmin=-1000, vmax=400, aspect=rows_mm / columns_mm, origin=origin)


def _draw_cross(panel: Any, grid: Grid, axis: int, position_mm: Triple, colour: str) -> None:
    row, column = np.delete(grid.to_index(np.array(position_mm)), axis)
    panel.plot(column, row, "+", color=colour, markersize=14)


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m lobewise.pipeline.evaluation.landmarks`."""
    parser = argparse.ArgumentParser(description="Evaluate the landmark agents.")
    parser.add_argument("--phantoms", type=int, default=24, help="chests; half as many show something else")
    parser.add_argument("--data", type=Path, help="folder of the marked public scans")
    parser.add_argument("--weights", type=Path, help="folder of landmarks.safetensors; else the shipped ones")
    parser.add_argument("--pictures", type=Path, help="folder for a picture of each real case")
    options = parser.parse_args(arguments)
    network = LandmarkNetwork.load(load_weights("landmarks", options.weights), torch.device("cpu"))
    if options.data:
        _report("real", real_cases(options.data), network, options.pictures)
    _report("chest phantoms", phantom_cases(options.phantoms), network, None)
    _report("other phantoms", phantom_cases(options.phantoms // 2, OTHER_FITS), network, None)


def _report(title: str, cases: Iterable[Case], network: LandmarkNetwork, pictures: Path | None) -> None:
    """One row an answer, then the summaries."""
    whole: list[Answer] = []
    pieces: list[Answer] = []
    for case in cases:
        answers = ask(case, network)
        for answer in answers:
            print(_row(answer))
        whole += answers
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


def _row(answer: Answer) -> str:
    at = answer.found.position_mm
    said = "not in this scan" if at is None else "at " + ", ".join(f"{mm:.0f}" for mm in at)
    error = "" if answer.error_mm is None else f"{answer.error_mm:.1f} mm off"
    return f"{answer.case:28} {answer.found.landmark.value:12} {said} {error} ({answer.found.confidence:.2f})"


if __name__ == "__main__":
    main()

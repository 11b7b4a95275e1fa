"""How good the lesion stage is by itself, given the true lungs: `python -m training.validation.lesions DATASET`.

On the patients kept aside from training (`splits.json`): real lesions on the slices of a COVID-19 case, lesions pasted
into a real chest, false alarms in that chest as it is; then phantoms that no training saw. Beside it the baseline:
all of the lung above -700 HU.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from jaxtyping import Bool, Float32

from evaluation.overlap import dice
from pipeline.lesions import LIKELY, LesionNetwork, believe_wide, lesion_grid, prepare, window
from pipeline.networks.dense_unet import TOTAL_STRIDE, network_inputs
from pipeline.networks.device import choose_device
from pipeline.networks.weights import load_weights
from pipeline.phantom import PhantomRecipe, make_phantom
from pipeline.resampling import resample_labels
from training.data.lesion_batches import read_examples
from training.data.splits import FIRST_UNSEEN_SEED, Stage, patient_of, read_split

#: Aerated lung lies below it, most ground glass above.
BASELINE_HU: Final = -700.0
PHANTOM_SPACING_MM: Final = (3.0, 1.5, 1.5)

Mask = Bool[np.ndarray, "z y x"]


@dataclass(frozen=True)
class LesionResult:
    """One volume: Dice with the truth, and percent of the lung that is lesion."""

    name: str
    dice: float
    baseline_dice: float
    percent: float
    true_percent: float


def evaluate_dataset(dataset: Path, network: LesionNetwork, part: str) -> Iterator[LesionResult]:
    """The volumes of the patients kept aside for `part`: `validation` or `test`."""
    split = read_split(dataset, Stage.LESIONS)
    patients = split.validation if part == "validation" else split.test
    for example in read_examples(dataset, lambda path: patient_of(path) in patients):
        image = example.image.astype(np.float32) / 255
        yield compare(example.name, image, example.lungs, example.lesions & example.lungs, network)


def evaluate_phantoms(count: int, network: LesionNetwork) -> Iterator[LesionResult]:
    """Phantoms from seed 1 000 000 on, at the network's own grid."""
    for seed in range(FIRST_UNSEEN_SEED, FIRST_UNSEEN_SEED + count):
        phantom = make_phantom(PhantomRecipe(seed=seed, spacing_mm=PHANTOM_SPACING_MM))
        lungs = phantom.lobes.lungs()
        box = lesion_grid(lungs)
        image, mask, _ = prepare(phantom.volume, lungs, box)
        truth = resample_labels(phantom.lesions.mask, phantom.volume.grid, box) > 0
        yield compare(f"phantom-{seed}", image, mask > 0, truth & (mask > 0), network)


def compare(
    name: str, image: Float32[np.ndarray, "z y x"], lungs: Mask, truth: Mask, network: LesionNetwork
) -> LesionResult:
    """What the network and the baseline find in a prepared volume, its image in [0, 1], against the truth."""
    pads = [(0, -n % stride) for n, stride in zip(image.shape, TOTAL_STRIDE, strict=True)]
    padded = (torch.from_numpy(np.pad(field, pads)) for field in (image, lungs.astype(np.float32)))
    z, y, x = image.shape
    probability = network.probability(network_inputs(*padded).numpy())[:z, :y, :x]
    found = (believe_wide(probability, lungs) >= LIKELY) & lungs
    baseline = (image > window(np.array([BASELINE_HU]))[0]) & lungs
    percent, true_percent = (100.0 * int(mask.sum()) / max(int(lungs.sum()), 1) for mask in (found, truth))
    return LesionResult(name, dice(found, truth), dice(baseline, truth), percent, true_percent)


def table(results: list[LesionResult]) -> str:
    """Markdown, one row a volume. Where there is no lesion, Dice says nothing and the percentage all."""
    lines = ["| volume | Dice | baseline | percent | truth |", "|---|---|---|---|---|"]
    for r in results:
        shown, plain = (f"{d:.3f}" if r.true_percent > 0 else "-" for d in (r.dice, r.baseline_dice))
        lines.append(f"| {r.name} | {shown} | {plain} | {r.percent:.2f} | {r.true_percent:.2f} |")
    return "\n".join(lines)


def means(results: list[LesionResult]) -> str:
    """One line a kind of volume."""
    lines = []
    for kind in sorted({r.name.split("-")[0] for r in results}):
        mine = [r for r in results if r.name.startswith(kind)]
        with_lesion = [r for r in mine if r.true_percent > 0]
        error = np.mean([abs(r.percent - r.true_percent) for r in mine])
        ours = np.mean([r.dice for r in with_lesion] or [np.nan])
        plain = np.mean([r.baseline_dice for r in with_lesion] or [np.nan])
        scores = f"Dice {ours:.3f}, baseline {plain:.3f}, " if with_lesion else ""
        lines.append(f"{kind}: {scores}mean error {error:.2f} points of PO over {len(mine)} volumes")
    return "\n".join(lines)


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path, help="prepared by training.data.lesion_dataset")
    parser.add_argument("--part", choices=["validation", "test"], default="test")
    parser.add_argument("--phantoms", type=int, default=8)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--weights", type=Path, default=None)
    options = parser.parse_args()
    network = LesionNetwork.load(load_weights("lesions", options.weights), choose_device(options.device))
    results = [*evaluate_dataset(options.dataset, network, options.part), *evaluate_phantoms(options.phantoms, network)]
    sys.stdout.write(f"{table(results)}\n\n{means(results)}\n")


if __name__ == "__main__":
    main()

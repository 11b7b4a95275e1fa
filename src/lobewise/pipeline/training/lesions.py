"""Trains the lesion network on a prepared bank: `python -m lobewise.pipeline.training.lesions BANK RUN`.

The loss is 1 - Jaccard inside the lungs and the optimiser AdaBound, as in the paper (appendix E1). The patients in
`splits.json` are kept aside: some choose the model, some test it. Only torch and numpy are needed. A run that was ended
goes on from its last checkpoint when the same command is given again.
"""

import argparse
import csv
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lobewise.pipeline.networks.dense_unet import INPUTS, TOTAL_STRIDE, DenseUNet, DenseUNetConfig, network_inputs
from lobewise.pipeline.networks.device import choose_device, on_device
from lobewise.pipeline.networks.weights import ModelInfo, save_weights
from lobewise.pipeline.training.adabound import AdaBound
from lobewise.pipeline.training.lesion_crops import Crop, Example, Sampler, read_example, read_examples, read_split

MEASURED: Final = (
    "covid_dice",
    "grown_dice",
    "phantom_dice",
    "cohort_dice",
    "percent_error",
    "clean_false_share",
    "score",
)
COLUMNS: Final = ("step", "seconds", "loss", "learning_rate", *MEASURED)
JUDGING_SLICES: Final = 32
"""Validation looks at so many slices in the middle of a volume: no more than the product sees at once."""


@dataclass(frozen=True)
class LesionRecipe:
    """How the network is trained; stored in the weights.

    Attributes:
        steps: optimiser steps, one crop each.
        learning_rate: at the start; falls along a cosine to a fiftieth.
        optimiser: AdaBound is the paper's; Adam comes further in a few hundred steps.
        warmup_steps: over which the learning rate rises.
        gradient_norm: gradients are cut to this length.
        crop: voxels of a training crop, z-y-x.
        shift_hu: the scan is shifted by up to this much (paper: 20 HU).
        smoothing: voxels added above and below the Jaccard fraction, which steadies nearly empty crops.
        cross_entropy: weight of a cross entropy beside the Jaccard loss: it guides where a crop holds no lesion, where
            the Jaccard loss has no gradient to speak of.
        kinds: how often each kind of volume is drawn, of those that the bank holds.
        average: decay of the running mean of the weights, which is what is measured and exported.
    """

    seed: int = 0
    steps: int = 3000
    learning_rate: float = 6e-4
    warmup_steps: int = 30
    gradient_norm: float = 1.0
    optimiser: Literal["adabound", "adam"] = "adam"
    crop: tuple[int, int, int] = (16, 192, 224)
    shift_hu: float = 20.0
    smoothing: float = 200.0
    cross_entropy: float = 1.0
    kinds: Mapping[str, float] = field(
        default_factory=lambda: {
            "cohort": 0.4,
            "covid": 0.35,
            "clean": 0.35,
            "grown": 0.08,
            "phantom": 0.22,
        }
    )
    average: float = 0.995
    validate_every: int = 150
    bfloat16: bool = True
    network: DenseUNetConfig = field(default_factory=DenseUNetConfig)


def jaccard_loss(
    probability: Float[Tensor, "*size"],
    truth: Float[Tensor, "*size"],
    lungs: Float[Tensor, "*size"],
    smoothing: float,
) -> Float[Tensor, ""]:
    """1 - (p . y + s) / (|p|^2 + |y|^2 - p . y + s), inside the lungs alone."""
    inside = probability * lungs
    common = (inside * truth).sum()
    union = (inside * inside).sum() + (truth * truth).sum() - common
    return 1 - (common + smoothing) / (union + smoothing)


def lesion_loss(logits: Float[Tensor, "1 2 z y x"], crop: Crop, recipe: LesionRecipe) -> Float[Tensor, ""]:
    """The Jaccard loss and the cross entropy, both inside the lungs."""
    logits = logits.float()
    jaccard = jaccard_loss(logits.softmax(dim=1)[0, 1], crop.lesions, crop.lungs, recipe.smoothing)
    entropy = torch.nn.functional.cross_entropy(logits, crop.lesions.long()[None], reduction="none")[0]
    return jaccard + recipe.cross_entropy * (entropy * crop.lungs).sum() / crop.lungs.sum().clamp(min=1)


def middle(example: Example) -> Example:
    """The slices that validation looks at."""
    begin = max(0, (example.image.shape[0] - JUDGING_SLICES) // 2)
    return example.cut((slice(begin, begin + JUDGING_SLICES),))


def predict(
    network: DenseUNet, example: Example, recipe: LesionRecipe, device: torch.device
) -> Bool[np.ndarray, "z y x"]:
    """The lesions of a volume in one piece."""
    pads = [(0, -n % stride) for n, stride in zip(example.image.shape, TOTAL_STRIDE, strict=True)]
    image, lungs = (torch.from_numpy(np.pad(a.astype(np.float32), pads)) for a in (example.image, example.lungs))
    batch = network_inputs(image / 255, lungs)[None].to(device, memory_format=torch.channels_last_3d)
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=recipe.bfloat16):
        probability = network(batch).float().softmax(dim=1)[0, 1].cpu().numpy()
    z, y, x = example.image.shape
    return np.asarray((probability[:z, :y, :x] >= 0.5) & example.lungs)


def measure(
    network: DenseUNet, examples: list[Example], recipe: LesionRecipe, device: torch.device
) -> dict[str, float]:
    """Mean Dice by kind, mean error of the percentage that is lesion, and the share of clean lung called lesion."""
    network.eval()
    dices: dict[str, list[float]] = {"covid": [], "grown": [], "phantom": [], "cohort": []}
    errors, false_shares = [], []
    for example in examples:
        found, truth = predict(network, example, recipe, device), example.lesions & example.lungs
        found_share, true_share = (float(mask.sum() / example.lungs.sum()) for mask in (found, truth))
        errors.append(100 * abs(found_share - true_share))
        if truth.any():
            dices[example.kind].append(float(2 * (found & truth).sum() / (found.sum() + truth.sum())))
        else:
            false_shares.append(found_share)
    network.train()
    mean = {kind: float(np.mean(values)) for kind, values in dices.items() if values}
    false_share = float(np.mean(false_shares)) if false_shares else 0.0
    # A clean lung with 1 % called lesion costs as much as 0.1 Dice: the paper's controls stay below 1 %.
    score = float(np.mean(list(mean.values()) or [0.0])) - 10 * false_share
    by_kind = [mean.get(kind, 0.0) for kind in dices]
    values = (*by_kind, float(np.mean(errors or [0.0])), false_share, score)
    return dict(zip(MEASURED, values, strict=True))


def learning_rate_at(step: int, recipe: LesionRecipe) -> float:
    """A short rise, then a cosine from the wanted rate to a fiftieth of it."""
    rising = min(1.0, (step + 1) / max(recipe.warmup_steps, 1))
    falling = 0.5 * (1 + np.cos(np.pi * min(step / recipe.steps, 1.0)))
    return float(recipe.learning_rate * rising * (0.02 + 0.98 * falling))


def make_optimiser(network: DenseUNet, recipe: LesionRecipe) -> torch.optim.Optimizer:
    if recipe.optimiser == "adam":
        return torch.optim.Adam(network.parameters(), lr=recipe.learning_rate)
    return AdaBound(network.parameters(), lr=recipe.learning_rate)


def with_level(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights that may come from before the network was given the aerated level (0.2.0), as it is now.

    Kernels lose their mean before they are used; a new one that is the mean of the others leaves the answer as it was.
    """
    name = "stem.0.weight"
    kernels = tensors[name]
    if kernels.shape[1] == INPUTS:
        return tensors
    mean = kernels.mean(dim=(1, 2, 3, 4), keepdim=True).expand(-1, INPUTS - kernels.shape[1], *kernels.shape[2:])
    return {**tensors, name: torch.cat((kernels, mean), dim=1)}


def judges(bank: Path) -> list[Example]:
    """The volumes that choose the model, from mild to extensive: of each patient kept aside for it some."""
    wanted = read_split(bank)["validation_volumes"]
    return [read_example(bank / f"{name}.npz") for name in wanted if (bank / f"{name}.npz").exists()]


def train(recipe: LesionRecipe, bank: Path, run: Path, device_name: str = "auto", start: Path | None = None) -> Path:
    """Train, or go on training, in the folder `run`; returns the checkpoint that validation liked best.

    Where the bank keeps nobody aside to judge, that is the last one.

    Args:
        start: a checkpoint of an earlier run, whose averaged weights are where this one begins.
    """
    run.mkdir(parents=True, exist_ok=True)
    device = choose_device(device_name)
    torch.manual_seed(recipe.seed)
    split = read_split(bank)
    sampler_rng = np.random.default_rng(recipe.seed)
    seen = read_examples(bank, split["validation"] + split["test"], inverted=True)
    sampler = Sampler(seen, recipe.kinds, recipe.crop, recipe.shift_hu, sampler_rng, device)
    validation = [middle(example) for example in judges(bank)]
    network, averaged = (on_device(DenseUNet(recipe.network), device) for _ in range(2))
    if start is not None:
        network.load_state_dict(with_level(torch.load(start, weights_only=False)["averaged"]))
    averaged.load_state_dict(network.state_dict())
    optimiser = make_optimiser(network, recipe)
    step, best, began, loss_mean = 0, -np.inf, time.monotonic(), 1.0
    if (run / "last.pt").exists():
        last = torch.load(run / "last.pt", weights_only=False)  # our own file: it holds the random state too
        network.load_state_dict(last["network"])
        averaged.load_state_dict(last["averaged"])
        optimiser.load_state_dict(last["optimiser"])
        sampler_rng.bit_generator.state = last["rng"]
        step, best, loss_mean = last["step"], last["best"], last["loss"]

    while step < recipe.steps:
        for group in optimiser.param_groups:
            group["lr"] = learning_rate_at(step, recipe)
        crop = sampler.draw()
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.bfloat16):
            logits = network(crop.inputs()[None].contiguous(memory_format=torch.channels_last_3d))
        loss = lesion_loss(logits, crop, recipe)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch does not type it
        torch.nn.utils.clip_grad_norm_(network.parameters(), recipe.gradient_norm)
        optimiser.step()
        step += 1
        loss_mean = 0.97 * loss_mean + 0.03 * loss.item()
        with torch.no_grad():
            decay = min(recipe.average, step / (step + 10))
            for kept, new in zip(averaged.parameters(), network.parameters(), strict=True):
                kept.lerp_(new, 1 - decay)

        if step % recipe.validate_every == 0 or step == recipe.steps:
            measured = measure(averaged, validation, recipe, device)
            seconds, rate = round(time.monotonic() - began), learning_rate_at(step, recipe)
            _log(
                run / "log.csv",
                {"step": step, "seconds": seconds, "loss": loss_mean, "learning_rate": rate, **measured},
            )
            if measured["score"] > best or not validation:  # without judges the last is as good as it gets
                best = measured["score"]
                torch.save({"averaged": averaged.state_dict(), "step": step, **measured}, run / "best.pt")
            last = {"network": network.state_dict(), "averaged": averaged.state_dict(), "step": step, "best": best}
            last |= {"optimiser": optimiser.state_dict(), "rng": sampler_rng.bit_generator.state, "loss": loss_mean}
            torch.save(last, run / "last.partial")
            (run / "last.partial").replace(run / "last.pt")
    return run / "best.pt"


def export(run: Path, recipe: LesionRecipe, path: Path, version: str) -> ModelInfo:
    """The best checkpoint of a run as weights to ship."""
    best = torch.load(run / "best.pt", weights_only=True, map_location="cpu")
    kept = {"trained_steps": best["step"], "validation": {k: round(best[k], 4) for k in MEASURED if k in best}}
    return save_weights(
        path,
        version=version,
        config=asdict(recipe.network),
        recipe={**asdict(recipe), **kept},
        tensors=best["averaged"],
    )


def _log(path: Path, row: Mapping[str, Any]) -> None:
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if is_new:
            writer.writeheader()
        writer.writerow({key: round(value, 5) if isinstance(value, float) else value for key, value in row.items()})
    sys.stderr.write(" ".join(f"{key}={value:.4g}" for key, value in row.items()) + "\n")


def main() -> None:
    """Train from the command line, or export what a run has reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bank", type=Path, help="prepared by lobewise.pipeline.training.lesion_bank")
    parser.add_argument("run", type=Path, help="folder for checkpoints and log.csv")
    parser.add_argument("--steps", type=int, default=LesionRecipe.steps)
    parser.add_argument("--optimiser", choices=["adabound", "adam"], default=LesionRecipe.optimiser)
    parser.add_argument("--learning-rate", type=float, default=LesionRecipe.learning_rate)
    parser.add_argument("--start", type=Path, help="begin with the weights of this best.pt or last.pt")
    parser.add_argument("--kinds", type=json.loads, default={}, help="JSON: how often a kind is drawn")
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--export", type=Path, help="do not train: write the best checkpoint to this lesions.safetensors"
    )
    parser.add_argument("--version", default="0.1.0", help="of the exported weights")
    options = parser.parse_args()
    recipe = LesionRecipe(steps=options.steps, optimiser=options.optimiser, learning_rate=options.learning_rate)
    recipe = replace(recipe, kinds={**recipe.kinds, **options.kinds})
    if options.export:
        sys.stdout.write(f"{export(options.run, recipe, options.export, options.version)}\n")
    else:
        train(recipe, options.bank, options.run, options.device, options.start)


if __name__ == "__main__":
    main()

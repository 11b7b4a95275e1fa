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
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from lobewise.pipeline.networks.dense_unet import TOTAL_STRIDE, DenseUNet, DenseUNetConfig
from lobewise.pipeline.networks.device import choose_device, on_device
from lobewise.pipeline.networks.weights import ModelInfo, save_weights
from lobewise.pipeline.training.adabound import AdaBound

COLUMNS: Final = ("step", "seconds", "loss", "learning_rate", "covid_dice", "grown_dice", "clean_false_share", "score")


@dataclass(frozen=True)
class LesionRecipe:
    """How the network is trained; stored in the weights.

    Attributes:
        steps: optimiser steps, one crop each.
        learning_rate: at the start; falls along a cosine to a fiftieth.
        optimiser: AdaBound is the paper's; Adam comes further in a few hundred steps.
        crop: voxels of a training crop, z-y-x; large, since the normalisation sees a crop as it will see a scan.
        shift_hu: the scan is shifted by up to this much (paper: 20 HU).
        smoothing: voxels added above and below the Jaccard fraction, which steadies nearly empty crops.
        cross_entropy: weight of a cross entropy beside the Jaccard loss: it guides where a crop holds no lesion, where
            the Jaccard loss has no gradient to speak of.
        kinds: how often each kind of volume is drawn.
        average: decay of the running mean of the weights, which is what is measured and exported.
    """

    seed: int = 0
    steps: int = 2400
    learning_rate: float = 1e-3
    optimiser: Literal["adabound", "adam"] = "adabound"
    crop: tuple[int, int, int] = (16, 192, 224)
    shift_hu: float = 20.0
    smoothing: float = 200.0
    cross_entropy: float = 1.0
    kinds: Mapping[str, float] = field(
        default_factory=lambda: {"covid": 0.4, "grown": 0.33, "phantom": 0.15, "clean": 0.12}
    )
    average: float = 0.99
    validate_every: int = 150
    bfloat16: bool = True
    network: DenseUNetConfig = field(default_factory=DenseUNetConfig)


@dataclass(frozen=True, eq=False)
class Example:
    """A prepared volume: 8-bit image, lungs and lesions at 1 x 1 x 3 mm."""

    name: str
    image: UInt8[np.ndarray, "z y x"]
    lungs: Bool[np.ndarray, "z y x"]
    lesions: Bool[np.ndarray, "z y x"]

    @property
    def kind(self) -> str:
        return self.name.split("-")[0]

    def cut(self, box: tuple[slice, ...]) -> "Example":
        return Example(self.name, self.image[box], self.lungs[box], self.lesions[box])


def read_split(name: str) -> dict[str, list[str]]:
    """Which patients are kept aside: `validation` and `test`, by `KIND-PATIENT` or patient."""
    split: dict[str, list[str]] = json.loads((files("lobewise.pipeline.training") / "splits.json").read_text())[name]
    return split


def patient_of(path: Path) -> str:
    """`covid-2` of `covid-2-0.npz`; of what was made from a public scan the scan: `case05` of `grown-case05-3.npz`."""
    kind, patient, _ = path.stem.split("-")
    return patient if kind in ("grown", "clean") else f"{kind}-{patient}"


def read_examples(bank: Path, patients: list[str], *, inverted: bool = False) -> list[Example]:
    """The volumes of these patients; with `inverted`, of all others."""
    paths = [path for path in sorted(bank.glob("*.npz")) if (patient_of(path) in patients) != inverted]
    return [read_example(path) for path in paths]


def read_example(path: Path) -> Example:
    with np.load(path) as arrays:
        return Example(path.stem, arrays["image"], arrays["lungs"], arrays["lesions"])


class Sampler:
    """Draws training crops by kind, then by volume, with random intensities and flips."""

    def __init__(self, examples: list[Example], recipe: LesionRecipe, rng: np.random.Generator) -> None:
        self._recipe, self._rng = recipe, rng
        self._by_kind = {kind: [e for e in examples if e.kind == kind] for kind in recipe.kinds}
        self._kinds = [kind for kind, found in self._by_kind.items() if found]
        if not self._kinds:
            raise FileNotFoundError("the bank holds nothing to train on")
        shares = np.array([recipe.kinds[kind] for kind in self._kinds])
        self._shares = shares / shares.sum()

    def draw(self) -> tuple[Float[Tensor, "2 z y x"], Float[Tensor, "z y x"]]:
        """Inputs (image, lungs) and the lesions of a random crop."""
        examples = self._by_kind[self._kinds[int(self._rng.choice(len(self._kinds), p=self._shares))]]
        crop = self._flip(self._crop(examples[int(self._rng.integers(len(examples)))]))
        image = self._vary(crop.image)
        inputs = np.stack([image, crop.lungs.astype(np.float32)])
        return torch.from_numpy(inputs), torch.from_numpy((crop.lesions & crop.lungs).astype(np.float32))

    def _crop(self, example: Example) -> Example:
        """A crop with lung in it and, five times of six, with lesion if there is any."""
        wants_lesion = self._rng.random() < 5 / 6 and example.lesions.any()
        for _ in range(8):
            starts = [
                int(self._rng.integers(max(n - m, 0) + 1))
                for n, m in zip(example.image.shape, self._recipe.crop, strict=True)
            ]
            box = tuple(slice(start, start + m) for start, m in zip(starts, self._recipe.crop, strict=True))
            crop = example.cut(box)
            if crop.lungs.mean() > 0.05 and (crop.lesions.any() or not wants_lesion):
                break
        pads = [(0, m - n) for n, m in zip(crop.image.shape, self._recipe.crop, strict=True)]
        return Example(crop.name, np.pad(crop.image, pads), np.pad(crop.lungs, pads), np.pad(crop.lesions, pads))

    def _flip(self, crop: Example) -> Example:
        steps = tuple(slice(None, None, -1 if self._rng.random() < 0.5 else 1) for _ in range(3))
        return crop.cut(steps)

    def _vary(self, image: UInt8[np.ndarray, "z y x"]) -> np.ndarray:
        """A random monotone curve: people, scanners and the equalised slices differ by one."""
        rng, windowed = self._rng, image.astype(np.float32) / 255
        if rng.random() < 0.6:
            windowed = windowed ** np.float32(np.exp(rng.uniform(-0.25, 0.25)))
        contrast, brightness = rng.uniform(0.9, 1.1), rng.uniform(-0.04, 0.04)
        shift = rng.uniform(-self._recipe.shift_hu, self._recipe.shift_hu) / 1500
        varied = windowed * contrast + brightness + shift
        if rng.random() < 0.4:
            varied = varied + rng.normal(0, rng.uniform(0, 0.04), image.shape)
        return np.clip(varied, 0, 1).astype(np.float32)


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


def lesion_loss(
    logits: Float[Tensor, "1 2 z y x"],
    inputs: Float[Tensor, "2 z y x"],
    truth: Float[Tensor, "z y x"],
    recipe: LesionRecipe,
) -> Float[Tensor, ""]:
    """The Jaccard loss and the cross entropy, both inside the lungs."""
    lungs = inputs[1]
    jaccard = jaccard_loss(logits.float().softmax(dim=1)[0, 1], truth, lungs, recipe.smoothing)
    entropy = torch.nn.functional.cross_entropy(logits[0].float()[None], truth.long()[None], reduction="none")[0]
    return jaccard + recipe.cross_entropy * (entropy * lungs).sum() / lungs.sum().clamp(min=1)


def predict(
    network: DenseUNet, example: Example, recipe: LesionRecipe, device: torch.device
) -> Bool[np.ndarray, "z y x"]:
    """The lesions of a whole volume in one piece."""
    inputs = np.stack([example.image.astype(np.float32) / 255, example.lungs.astype(np.float32)])
    pads = [(0, 0), *((0, -n % stride) for n, stride in zip(example.image.shape, TOTAL_STRIDE, strict=True))]
    batch = torch.from_numpy(np.pad(inputs, pads))[None].to(device, memory_format=torch.channels_last_3d)
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=recipe.bfloat16):
        probability = network(batch).float().softmax(dim=1)[0, 1].cpu().numpy()
    z, y, x = example.image.shape
    return np.asarray((probability[:z, :y, :x] >= 0.5) & example.lungs)


def measure(
    network: DenseUNet, examples: list[Example], recipe: LesionRecipe, device: torch.device
) -> dict[str, float]:
    """Mean Dice by kind on whole volumes, and the share of clean lung called lesion."""
    network.eval()
    dices: dict[str, list[float]] = {"covid": [], "grown": [], "clean": []}
    for example in examples:
        found = predict(network, example, recipe, device)
        if example.kind == "clean":
            dices["clean"].append(float(found.sum() / example.lungs.sum()))
        else:
            truth = example.lesions & example.lungs
            dices[example.kind].append(float(2 * (found & truth).sum() / max(found.sum() + truth.sum(), 1)))
    network.train()
    mean = {kind: float(np.mean(values)) if values else 0.0 for kind, values in dices.items()}
    # A clean lung with 1 % called lesion costs as much as 0.1 Dice: the paper's controls stay below 1 %.
    score = (mean["covid"] + mean["grown"]) / 2 - 10 * mean["clean"]
    return {
        "covid_dice": mean["covid"],
        "grown_dice": mean["grown"],
        "clean_false_share": mean["clean"],
        "score": score,
    }


def learning_rate_at(step: int, recipe: LesionRecipe) -> float:
    """A cosine from the initial rate to a fiftieth of it."""
    falling = 0.5 * (1 + np.cos(np.pi * min(step / recipe.steps, 1.0)))
    return float(recipe.learning_rate * (0.02 + 0.98 * falling))


def make_optimiser(network: DenseUNet, recipe: LesionRecipe) -> torch.optim.Optimizer:
    if recipe.optimiser == "adam":
        return torch.optim.Adam(network.parameters(), lr=recipe.learning_rate)
    return AdaBound(network.parameters(), lr=recipe.learning_rate)


def train(recipe: LesionRecipe, bank: Path, run: Path, device_name: str = "auto", start: Path | None = None) -> Path:
    """Train, or go on training, in the folder `run`; returns the checkpoint that validation liked best.

    Args:
        start: the last checkpoint of an earlier run, whose weights are where this one begins.
    """
    run.mkdir(parents=True, exist_ok=True)
    device = choose_device(device_name)
    torch.manual_seed(recipe.seed)
    split = read_split("lesions")
    sampler_rng = np.random.default_rng(recipe.seed)
    sampler = Sampler(read_examples(bank, split["validation"] + split["test"], inverted=True), recipe, sampler_rng)
    validation = [e for e in read_examples(bank, split["validation"]) if e.name.endswith(("-0", "-5"))]
    network, averaged = (on_device(DenseUNet(recipe.network), device) for _ in range(2))
    if start is not None:
        network.load_state_dict(torch.load(start, weights_only=False)["averaged"])
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
        inputs, truth = (tensor.to(device) for tensor in sampler.draw())
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.bfloat16):
            logits = network(inputs[None].contiguous(memory_format=torch.channels_last_3d))
        loss = lesion_loss(logits, inputs, truth, recipe)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch does not type it
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
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
            if measured["score"] > best:
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
    kept = {"trained_steps": best["step"], "validation": {k: round(best[k], 4) for k in COLUMNS[4:]}}
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
    parser.add_argument("--optimiser", choices=["adabound", "adam"], default="adabound")
    parser.add_argument("--learning-rate", type=float, default=LesionRecipe.learning_rate)
    parser.add_argument("--start", type=Path, help="begin with the weights of this last.pt of an earlier run")
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--export", type=Path, help="do not train: write the best checkpoint to this lesions.safetensors"
    )
    parser.add_argument("--version", default="0.1.0", help="of the exported weights")
    options = parser.parse_args()
    recipe = LesionRecipe(steps=options.steps, optimiser=options.optimiser, learning_rate=options.learning_rate)
    if options.export:
        sys.stdout.write(f"{export(options.run, recipe, options.export, options.version)}\n")
    else:
        train(recipe, options.bank, options.run, options.device, options.start)


if __name__ == "__main__":
    main()

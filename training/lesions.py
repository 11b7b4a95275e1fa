"""Trains the lesion network on a prepared dataset: `python -m training.lesions DATASET RUN`.

The loss is 1 - Jaccard inside the lungs and the optimiser AdaBound, as in the paper (appendix E1). The patients in
`splits.json` are kept aside: some choose the model, some test it. A run that was ended goes on to the very same weights
when the same command is given again. With torchrun, several GPUs train together.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pipeline.networks.dense_unet import INPUTS, TOTAL_STRIDE, DenseUNet, network_inputs
from pipeline.networks.device import mixed_precision, on_device
from pipeline.networks.weights import ModelInfo, load_into, read_start, save_weights
from training.adabound import AdaBound
from training.config import keep_recipe, read_recipe
from training.data.lesion_batches import Crop, Example, LesionRecipe, Sampler, read_example, read_examples
from training.data.splits import Split, Stage, read_split
from training.loop import (
    ClippedStep,
    Picture,
    ProcessGroup,
    TrainingLogger,
    join_process_group,
    side_by_side,
    write_checkpoint,
)

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
#: Validation looks at so many slices in the middle of a volume: no more than the product sees at once.
VALIDATION_SLICES: Final = 32


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
    # Where a crop holds no lesion, the Jaccard loss has no gradient to speak of.
    entropy = torch.nn.functional.cross_entropy(logits, crop.lesions.long()[None], reduction="none")[0]
    return jaccard + recipe.cross_entropy * (entropy * crop.lungs).sum() / crop.lungs.sum().clamp(min=1)


def middle(example: Example) -> Example:
    """The slices that validation looks at."""
    begin = max(0, (example.image.shape[0] - VALIDATION_SLICES) // 2)
    return example.cut((slice(begin, begin + VALIDATION_SLICES),))


def predict(
    network: DenseUNet, example: Example, recipe: LesionRecipe, device: torch.device
) -> Bool[np.ndarray, "z y x"]:
    """The lesions of a volume in one piece."""
    pads = [(0, -n % stride) for n, stride in zip(example.image.shape, TOTAL_STRIDE, strict=True)]
    image, lungs = (torch.from_numpy(np.pad(a.astype(np.float32), pads)) for a in (example.image, example.lungs))
    batch = network_inputs(image / 255, lungs)[None].to(device, memory_format=torch.channels_last_3d)
    with torch.inference_mode(), mixed_precision(device, wanted=recipe.bfloat16):
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
    # Standardised weights diverge within some 60 steps at a high rate, hence the slow rise (decision 6).
    rising = min(1.0, (step + 1) / max(recipe.warmup_steps, 1))
    falling = 0.5 * (1 + np.cos(np.pi * min(step / recipe.steps, 1.0)))
    return float(recipe.learning_rate * rising * (0.02 + 0.98 * falling))


def make_optimiser(network: DenseUNet, recipe: LesionRecipe) -> torch.optim.Optimizer:
    if recipe.optimiser == "adam":
        return torch.optim.Adam(network.parameters(), lr=recipe.learning_rate)
    return AdaBound(network.parameters(), lr=recipe.learning_rate)


def with_level(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Weights that may come from before the network was given the aerated level (0.2.0), as it is now.

    Kernels lose their mean before they are used; a new one that is the mean of the others leaves the answer as it was.
    """
    name = "stem.0.weight"
    kernels = tensors[name]
    if kernels.shape[1] == INPUTS:
        return tensors
    # Any other value would change the answer of the earlier weights before the first step (decision 13).
    mean = kernels.mean(dim=(1, 2, 3, 4), keepdim=True).expand(-1, INPUTS - kernels.shape[1], *kernels.shape[2:])
    return {**tensors, name: torch.cat((kernels, mean), dim=1)}


def train(
    recipe: LesionRecipe,
    dataset: Path,
    folder: Path,
    group: ProcessGroup,
    start: Path | None = None,
    split: Split | None = None,
) -> Path:
    """Train, or go on training, in `folder`; returns the checkpoint that validation liked best.

    Where the dataset keeps nobody aside for validation, that is the last one.

    Args:
        start: weights, or a checkpoint of an earlier run, whose averaged weights are where this one begins.
        split: who is kept aside; by default as the dataset says.

    Raises:
        FileNotFoundError: the dataset holds nothing to train on.
        RecipeError: the run was begun with another recipe.
        WeightsError: `start` holds no weights of this network.
    """
    split = split or read_split(dataset, Stage.LESIONS)
    examples = read_examples(dataset, split.is_training)
    sampler = Sampler(examples, recipe, group.device)
    kept_aside = [middle(read_example(path)) for path in split.validation_paths(dataset)]
    folder.mkdir(parents=True, exist_ok=True)
    if group.is_first:
        keep_recipe(folder, recipe)
    run = Run.begin(folder, recipe, group, start)
    logger = TrainingLogger(folder / "log.csv", COLUMNS, run.step) if group.is_first else None
    began = time.monotonic()
    while run.step < recipe.steps:
        # What is drawn depends on seed, step and process alone, so that a resumed run reaches the very same weights.
        crop = sampler.draw(np.random.default_rng([recipe.seed, run.step, group.rank]))
        run.learn(crop)
        if logger is not None and (run.step % recipe.validate_every == 0 or run.step == recipe.steps):
            seconds = round(time.monotonic() - began)
            run.validate(kept_aside, logger, seconds)
            run.save()
    group.wait()
    return folder / "best.pt"


@dataclass(eq=False)
class Run:
    """A training in progress: the network, the running mean of its weights, and where it stands."""

    folder: Path
    recipe: LesionRecipe
    group: ProcessGroup
    network: DenseUNet
    averaged: DenseUNet
    optimiser: torch.optim.Optimizer
    step: int = 0
    best: float = -np.inf
    loss: float = 1.0

    def __post_init__(self) -> None:
        self._clipped_step = ClippedStep(self.network, self.optimiser, self.recipe.gradient_norm)

    @classmethod
    def begin(cls, folder: Path, recipe: LesionRecipe, group: ProcessGroup, start: Path | None = None) -> "Run":
        """A new run, or the one that `folder` holds a checkpoint of."""
        torch.manual_seed(recipe.seed)
        network, averaged = (on_device(DenseUNet(recipe.network), group.device) for _ in range(2))
        run = cls(folder, recipe, group, network, averaged, make_optimiser(network, recipe))
        if start is not None:
            earlier = read_start(start, "lesions", "averaged", group.device)
            load_into(network, with_level(earlier), "lesions")
        averaged.load_state_dict(network.state_dict())
        with suppress(FileNotFoundError):
            run.restore(torch.load(folder / "last.pt", weights_only=True, map_location=group.device))
        return run

    def learn(self, crop: Crop) -> None:
        """One step down the gradient of all crops of the group, and the running mean after it."""
        recipe, network = self.recipe, self.network
        for parameters in self.optimiser.param_groups:
            parameters["lr"] = learning_rate_at(self.step, recipe)
        with mixed_precision(self.group.device, wanted=recipe.bfloat16):
            logits = network(crop.inputs()[None].contiguous(memory_format=torch.channels_last_3d))
        loss = lesion_loss(logits, crop, recipe)
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch does not type it
        self.group.average_gradients(network)
        if self._clipped_step.take():
            self.loss = 0.97 * self.loss + 0.03 * loss.item()
        self.step += 1
        # A young mean forgets quickly, or the random weights of the start would stay in it for hundreds of steps.
        decay = min(recipe.average, self.step / (self.step + 10))
        with torch.no_grad():
            for kept, new in zip(self.averaged.parameters(), network.parameters(), strict=True):
                kept.lerp_(new, 1 - decay)

    def validate(self, examples: list[Example], logger: TrainingLogger, seconds: int) -> None:
        """Measure the averaged weights on the patients kept aside, and keep them if they are the best so far."""
        measured = measure(self.averaged, examples, self.recipe, self.group.device)
        rate = learning_rate_at(self.step, self.recipe)
        logger.add_row({"step": self.step, "seconds": seconds, "loss": self.loss, "learning_rate": rate, **measured})
        for example in examples:
            logger.add_picture(
                example.name, sample_picture(self.averaged, example, self.recipe, self.group.device), self.step
            )
        # Where nobody is kept aside nothing can be chosen: the last weights are taken.
        if measured["score"] > self.best or not examples:
            self.best = measured["score"]
            write_checkpoint(
                {"averaged": self.averaged.state_dict(), "step": self.step, **measured}, self.folder / "best.pt"
            )

    def save(self) -> None:
        """Everything that the next step depends on; what is drawn depends on the step alone."""
        state = {"network": self.network.state_dict(), "averaged": self.averaged.state_dict(), "step": self.step}
        state |= {"optimiser": self.optimiser.state_dict(), "best": self.best, "loss": self.loss}
        write_checkpoint(state, self.folder / "last.pt")

    def restore(self, state: Mapping[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.best, self.loss = state["step"], state["best"], state["loss"]


def sample_picture(network: DenseUNet, example: Example, recipe: LesionRecipe, device: torch.device) -> Picture:
    """The slice with the most lesion: as it is, with the truth, and with what is found."""
    slice_number = int(example.lesions.sum(axis=(1, 2)).argmax())
    found = predict(network, example, recipe, device)
    return side_by_side(example.image[slice_number], example.lesions[slice_number], found[slice_number])


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


def main(arguments: Sequence[str] | None = None) -> None:
    """Train from the command line, or export what a run has reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path, help="prepared by training.data.lesion_dataset")
    parser.add_argument("run", type=Path, help="folder for checkpoints, log and weights")
    parser.add_argument("--recipe", default="{}", help="fields of LesionRecipe: JSON, or a file of it")
    parser.add_argument("--steps", type=int, help="instead of the recipe's")
    parser.add_argument("--start", type=Path, help="begin with lesions.safetensors, or a run's best.pt or last.pt")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--version", default="0.0.0", help="of the exported weights")
    options = parser.parse_args(arguments)
    recipe = read_recipe(LesionRecipe, options.recipe)
    recipe = replace(recipe, steps=options.steps or recipe.steps)
    with join_process_group(options.device) as group:
        train(recipe, options.dataset, options.run, group, options.start)
        if group.is_first:
            info = export(options.run, recipe, options.run / "lesions.safetensors", options.version)
            sys.stdout.write(f"{info.name} {info.version} {info.sha256}\n")


if __name__ == "__main__":
    main()

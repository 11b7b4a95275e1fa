"""Trains the lesion network on a prepared dataset: `python -m training.lesions DATASET RUN`.

The loss is 1 - Jaccard inside the lungs and the optimiser AdaBound, as in the paper (appendix E1). The patients in
`splits.json` are kept aside: some choose the model, some test it. A run that was ended goes on to the very same weights
when the same command is given again. With torchrun, several GPUs train together.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from pipeline.networks.dense_unet import INPUTS, TOTAL_STRIDE, DenseUNet, network_inputs
from pipeline.networks.device import mixed_precision, on_device
from pipeline.networks.weights import ModelInfo, read_start, save_weights
from training.adabound import AdaBound
from training.config import keep_recipe, read_recipe
from training.data.lesion_batches import Crop, Example, LesionRecipe, Sampler, read_example, read_examples
from training.data.splits import Stage, read_split
from training.loop import (
    Picture,
    Plan,
    ProcessGroup,
    TrainingLoop,
    Validation,
    join_process_group,
    side_by_side,
    training_parser,
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
    entropy = nn.functional.cross_entropy(logits, crop.lesions.long()[None], reduction="none")[0]
    return jaccard + recipe.cross_entropy * (entropy * crop.lungs).sum() / crop.lungs.sum().clamp(min=1)


def predict(
    network: nn.Module, example: Example, recipe: LesionRecipe, device: torch.device
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
    network: nn.Module, examples: list[Example], recipe: LesionRecipe, device: torch.device
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


class LesionTraining(TrainingLoop[DenseUNet]):
    """Trains the network on crops of a dataset, one a step."""

    columns = COLUMNS
    averaged_key = "averaged"

    def __init__(
        self, dataset: Path, folder: Path, recipe: LesionRecipe, group: ProcessGroup, start: Path | None = None
    ) -> None:
        """A new run in `folder`, or the one that was ended there.

        Args:
            start: weights, or a checkpoint of another run, whose averaged weights are where a new run begins.

        Raises:
            FileNotFoundError: the dataset holds nothing to train on.
            RecipeError: the run was begun with another recipe.
            WeightsError: `start` holds no weights of this network.
        """
        split = read_split(dataset, Stage.LESIONS)
        self.sampler = Sampler(read_examples(dataset, split.is_training), recipe, group.device)
        self.kept_aside = []
        for example in map(read_example, split.validation_paths(dataset)):
            begin = max(0, (example.image.shape[0] - VALIDATION_SLICES) // 2)
            self.kept_aside.append(example.cut((slice(begin, begin + VALIDATION_SLICES),)))
        if group.is_first:
            keep_recipe(folder, recipe)
        self.recipe, self.smooth_loss = recipe, 1.0
        torch.manual_seed(recipe.seed)
        network = on_device(DenseUNet(recipe.network), group.device)
        optimisers = {"adam": torch.optim.Adam, "adabound": AdaBound}
        optimiser = optimisers[recipe.optimiser](network.parameters(), lr=recipe.learning_rate)
        files = folder / "last.pt", folder / "log.csv"
        plan = Plan(recipe.steps, recipe.validate_every, *files, recipe.gradient_norm)
        super().__init__(network, optimiser, group, plan)
        if not self.resume() and start is not None:
            self.begin_with(with_level(read_start(start, "lesions", self.averaged_key, group.device)), "lesions")

    def learning_rate(self) -> float:
        """A short rise, then a cosine from the wanted rate to a fiftieth of it."""
        # Standardised weights diverge within some 60 steps at a high rate, hence the slow rise (decision 6).
        rising = min(1.0, (self.step + 1) / max(self.recipe.warmup_steps, 1))
        falling = 0.5 * (1 + np.cos(np.pi * min(self.step / self.recipe.steps, 1.0)))
        return float(self.recipe.learning_rate * rising * (0.02 + 0.98 * falling))

    def decay(self) -> float:
        # A young mean forgets quickly, or the random weights of the start would stay in it for hundreds of steps.
        return min(self.recipe.average, (self.step + 1) / (self.step + 11))

    def loss(self) -> tuple[Float[Tensor, ""], Mapping[str, float]]:
        crop = self.sampler.draw(self.step_rng(self.recipe.seed))
        with mixed_precision(self.group.device, wanted=self.recipe.bfloat16):
            logits = self.network(crop.inputs()[None].contiguous(memory_format=torch.channels_last_3d))
        return lesion_loss(logits, crop, self.recipe), {}

    def take_step(self, loss: Float[Tensor, ""]) -> bool:
        """The step of the loop; the loss of one crop says little, so that their running mean is logged."""
        taken = super().take_step(loss)
        if taken:
            self.smooth_loss = 0.97 * self.smooth_loss + 0.03 * loss.item()
        return taken

    def row(self) -> Mapping[str, float | str]:
        return {"loss": self.smooth_loss, "learning_rate": self.learning_rate()}

    def validate(self) -> Validation:
        """Measure the averaged weights on the middle slices of the volumes kept aside."""
        assert self.averaged is not None  # noqa: S101 (there is a key for them)
        network, recipe, device = self.averaged.module, self.recipe, self.group.device
        measured = measure(network, self.kept_aside, recipe, device)
        pictures = ((example.name, sample_picture(network, example, recipe, device)) for example in self.kept_aside)
        return Validation(measured["score"], measured, pictures)

    def is_better(self, score: float) -> bool:
        # Where nobody is kept aside nothing can be chosen: the last weights are taken.
        return score > self.best or not self.kept_aside

    def state(self) -> Mapping[str, Any]:
        return {"loss": self.smooth_loss}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.smooth_loss = state["loss"]


def sample_picture(network: nn.Module, example: Example, recipe: LesionRecipe, device: torch.device) -> Picture:
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
    parser = training_parser(__doc__, LesionRecipe)
    parser.add_argument("--steps", type=int, help="instead of the recipe's")
    parser.add_argument("--start", type=Path, help="begin with lesions.safetensors, or a run's best.pt or last.pt")
    options = parser.parse_args(arguments)
    recipe = read_recipe(LesionRecipe, options.recipe)
    recipe = replace(recipe, steps=options.steps or recipe.steps)
    with join_process_group(options.device) as group:
        LesionTraining(options.dataset, options.run, recipe, group, options.start).run()
        if group.is_first:
            info = export(options.run, recipe, options.run / "lesions.safetensors", options.version)
            sys.stdout.write(f"{info.name} {info.version} {info.sha256}\n")


if __name__ == "__main__":
    main()

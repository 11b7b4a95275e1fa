"""Trains the lung network on a prepared dataset: `python -m training.lungs DATASET RUN`.

First the backbone, which draws at 4 mm and sees the whole region of interest; then the detail stage at 2 mm on crops,
the backbone held still. The patients in `splits.json` are kept aside: some choose the model, some test it.
A run that was ended goes on to the very same weights when the same command is given again.
With torchrun, several GPUs train together.
"""

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from pipeline.networks.device import mixed_precision, on_device
from pipeline.networks.di2in import CLASSES, Di2in, LungConfig
from pipeline.networks.weights import ModelInfo, read_start, save_weights
from training.config import keep_recipe, read_recipe
from training.data.lung_batches import (
    OPAQUE,
    UNKNOWN_LOBE,
    Image,
    LungDataset,
    LungRecipe,
    Sample,
    draw_sample,
    padding,
    read_volume,
)
from training.loop import (
    Picture,
    Plan,
    ProcessGroup,
    TrainingLoop,
    Validation,
    join_process_group,
    mean_of_known,
    side_by_side,
    training_parser,
)

#: Gradients are cut to this length.
GRADIENT_NORM: Final = 5.0
#: Steps between two checkpoints, each with a row of the log.
SAVE_EVERY: Final = 20
#: Steps between two looks at the Dice.
MEASURE_EVERY: Final = 10
#: On the patients kept aside.
MEASURED: Final = ("judged_lungs_dice", "judged_lobes_dice", "judged_opaque_recall", "score")
COLUMNS: Final = ("step", "stage", "seconds", "loss", "lungs_dice", "lobes_dice", "learning_rate", *MEASURED)
Targets = Float[Tensor, "b 7 z y x"]
Prepared = UInt8[np.ndarray, "z y x"]


def segmentation_loss(logits: Float[Tensor, "b 6 z y x"], targets: Targets, weights: Tensor) -> Tensor:
    """Weighted cross-entropy plus one minus the mean Dice of the lobes and of the lungs.

    Targets may be fractions. Lung of unknown lobe asks only that some lobe be likely there, and where a volume has
    such lung its lobes have no Dice.
    """
    log_p = logits.float().log_softmax(dim=1)
    log_lungs = log_p[:, 1:].logsumexp(dim=1, keepdim=True)
    likelihood = (targets[:, :CLASSES] * log_p).sum(dim=1, keepdim=True) + targets[:, CLASSES:] * log_lungs
    cross_entropy = -(weights * likelihood).sum() / weights.sum()
    lungs = _dice(log_lungs.exp(), targets[:, 1:].sum(dim=1, keepdim=True), weights)
    # Real COVID-19 slices come with lungs alone: guessed lobes would pull the borders to wrong places.
    if bool(targets[:, CLASSES].any()):
        return cross_entropy + 1.0 - lungs.mean()
    lobes = _dice(log_p[:, 1:].exp(), targets[:, 1:CLASSES], weights)
    # Of a lobe with a few voxels in the crop, Dice is noise.
    present = targets[:, 1:CLASSES].sum(dim=(0, 2, 3, 4)) > 8
    return cross_entropy + 1.0 - 0.5 * lungs.mean() - 0.5 * lobes[present].mean() if present.any() else cross_entropy


def trunk_loss(network: Di2in, sample: Sample, recipe: LungRecipe) -> tuple[Tensor, Tensor]:
    """Deep supervision: the losses at 4, 8 and 16 mm against averaged targets; also the 4 mm logits."""
    with mixed_precision(sample.image.device, wanted=recipe.bfloat16):
        _, logits = network.backbone(sample.image)
    loss = torch.zeros((), device=sample.image.device)
    targets, weights = sample.targets, sample.weights
    for weight, level in zip(recipe.level_weights, logits, strict=True):
        targets, weights = functional.avg_pool3d(targets, 2), functional.avg_pool3d(weights, 2)
        loss = loss + weight * segmentation_loss(level, targets, weights)
    return loss, logits[0]


def detail_loss(network: Di2in, sample: Sample, recipe: LungRecipe) -> tuple[Tensor, Tensor]:
    """The loss at 2 mm within the sample's window, which only the detail stage learns from; also its logits.

    The backbone sees the whole sample, since its normalisation depends on what it sees.
    """
    fine = (slice(None), slice(None), *sample.window)
    coarse = (slice(None), slice(None), *(slice(part.start // 2, part.stop // 2) for part in sample.window))
    with mixed_precision(sample.image.device, wanted=recipe.bfloat16):
        # The backbone is held still, so that 2 mm crops cannot undo what it learned from whole chests at 4 mm.
        with torch.no_grad():
            features, logits = network.backbone(sample.image)
        drawn = network.draw(sample.image[fine], features[coarse], logits[0][coarse])
    return segmentation_loss(drawn, sample.targets[fine], sample.weights[fine]), drawn


def dice_scores(logits: Float[Tensor, "b 6 z y x"], targets: Targets) -> tuple[float, float]:
    """Dice of the lungs, and the mean over the lobes that are present, of hard labels."""
    wanted = targets.argmax(dim=1)
    found = logits.argmax(dim=1)
    lungs = _overlap(found > 0, wanted > 0)
    lobes = [_overlap(found == lobe, wanted == lobe) for lobe in range(1, CLASSES) if (wanted == lobe).any()]
    return lungs, float(np.mean(lobes)) if lobes else float("nan")


class LungTraining(TrainingLoop[Di2in]):
    """Trains the network on the volumes of a dataset: first the backbone, then the detail stage."""

    columns = COLUMNS
    averaged_key, optimiser_key = "smooth", "optimizer"

    def __init__(
        self,
        dataset: Path,
        folder: Path,
        recipe: LungRecipe,
        group: ProcessGroup,
        config: LungConfig | None = None,
        start: Path | None = None,
    ) -> None:
        """A new run in `folder`, or the one that was ended there.

        Args:
            start: weights, or the checkpoint of another run, whose mean weights are where a new run begins.

        Raises:
            FileNotFoundError: the dataset holds no prepared volume.
            RecipeError: the run was begun with another recipe.
            WeightsError: `start` holds no weights of this network.
        """
        self.dataset = LungDataset(dataset, recipe, device=group.device)
        if group.is_first:
            keep_recipe(folder, recipe)
        self.folder, self.recipe, self.config = folder, recipe, config or LungConfig()
        self.best_in_detail = False
        torch.manual_seed(recipe.seed)
        network = on_device(Di2in(self.config), group.device)
        optimiser = torch.optim.AdamW(network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
        steps, checkpoint = recipe.trunk_steps + recipe.detail_steps, folder / "checkpoint.pt"
        plan = Plan(steps, SAVE_EVERY, checkpoint, folder / "log.csv", GRADIENT_NORM)
        super().__init__(network, optimiser, group, plan)
        if not self.resume() and start is not None:
            self.begin_with(read_start(start, "lungs", self.averaged_key, group.device), "lungs")

    def is_detail(self, step: int) -> bool:
        """Whether a step is of the detail stage."""
        return step >= self.recipe.trunk_steps and self.recipe.detail_steps > 0

    @property
    def steps_of_stage(self) -> int:
        """How many steps the present stage has taken."""
        return self.step - self.recipe.trunk_steps if self.is_detail(self.step) else self.step

    def learning_rate(self) -> float:
        """Warm-up and cosine, anew for each stage."""
        recipe, done, detail = self.recipe, self.steps_of_stage, self.is_detail(self.step)
        steps = recipe.detail_steps if detail else recipe.trunk_steps
        warm = min((done + 1) / max(recipe.warmup_steps, 1), 1.0)
        top = recipe.detail_learning_rate if detail else recipe.learning_rate
        return top * warm * (0.01 + 0.99 * 0.5 * (1 + float(np.cos(np.pi * done / max(steps, 1)))))

    def decay(self) -> float:
        # A young mean forgets quickly, or the random weights of the start would stay in it for hundreds of steps.
        return min(self.recipe.smoothing, self.steps_of_stage / (self.steps_of_stage + 20))

    def loss(self) -> tuple[Tensor, Mapping[str, float]]:
        """The mean over the volumes of a step; of the last volume now and then the Dice."""
        if self.step % self.plan.save_every == 0:
            self.dataset.refresh()
        rng, detail, losses = self.step_rng(self.recipe.seed), self.is_detail(self.step), []
        for _ in range(self.recipe.volumes_per_step):
            sample = draw_sample(self.dataset, self.recipe, self.config.stride, rng)
            loss, logits = (detail_loss if detail else trunk_loss)(self.network, sample, self.recipe)
            losses.append(loss)
        scores = (math.nan, math.nan)
        if (self.step + 1) % MEASURE_EVERY == 0:
            # At the resolution of the logits: the detail stage draws its window at 2 mm, the backbone all at 4 mm.
            fine = (slice(None), slice(None), *sample.window)
            targets = sample.targets[fine] if detail else functional.avg_pool3d(sample.targets, 2)
            scores = dice_scores(logits.detach(), targets)
        return torch.stack(losses).mean(), dict(zip(("lungs_dice", "lobes_dice"), scores, strict=True))

    def row(self) -> Mapping[str, float | str]:
        """The stage of the step that was taken, and the learning rate of the next."""
        return {"stage": "detail" if self.is_detail(self.step - 1) else "trunk", "learning_rate": self.learning_rate()}

    def validate(self) -> Validation | None:
        """Measure the mean weights on the volumes kept aside, every so many steps and at the end of either stage."""
        every, paths = self.plan.save_every, self.dataset.validation_paths()
        is_due = self.step % self.recipe.validate_every < every or self.step == self.plan.steps
        if not paths or not (is_due or 0 <= self.step - self.recipe.trunk_steps < every):
            return None
        network = self._with_weights(self.averaged_weights())
        measured = measure(network, paths)
        return Validation(measured["score"], measured, ((path.stem, sample_picture(network, path)) for path in paths))

    def is_better(self, score: float) -> bool:
        """Where one stage ends, what was best is forgotten."""
        # A score at 2 mm cannot be compared with one at 4 mm.
        return super().is_better(score) or self.is_detail(self.step) != self.best_in_detail

    def keep_best(self, row: Mapping[str, float]) -> None:
        self.best_in_detail = self.is_detail(self.step)
        super().keep_best(row)

    def state(self) -> Mapping[str, Any]:
        return {"best_in_detail": self.best_in_detail}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.best_in_detail = state["best_in_detail"]

    def chosen(self) -> tuple[dict[str, Tensor], int]:
        """The weights of the best validation score and their step; the last ones where there was no validation."""
        path = self.folder / "best.pt"
        if not path.exists():
            return self.averaged_weights(), self.step
        best = torch.load(path, map_location=self.group.device, weights_only=True)
        return dict(best["smooth"]), int(best["step"])

    def export(self, path: Path, version: str, volumes: int) -> ModelInfo:
        """The chosen weights as a weights file, with the background's offset that suits some volumes best."""
        chosen, step = self.chosen()
        draws = (self.dataset.draw(np.random.default_rng([self.recipe.seed, 1_000_000 + i])) for i in range(volumes))
        offset = best_background_offset(self._with_weights(chosen), draws) if volumes else 0.0
        tensors = {name: value.clone() for name, value in chosen.items()}
        tensors["heads.0.bias"][0] += offset
        recipe = {**asdict(self.recipe), "steps_done": step, "background_offset": offset}
        return save_weights(path, version=version, config=self.config.to_mapping(), recipe=recipe, tensors=tensors)

    def _with_weights(self, weights: Mapping[str, Tensor]) -> Di2in:
        network = Di2in(self.config).eval().to(self.group.device)
        network.load_state_dict(dict(weights))
        return network


def measure(network: Di2in, volumes: Sequence[Path]) -> dict[str, float]:
    """Mean Dice of lungs and lobes, recall of opaque lung; the model is chosen by the mean of those there are."""
    rows = []
    for path in volumes:
        image, labels = read_volume(path)
        found, lobes = draw(network, image), labels & (OPAQUE - 1)
        known = [label for label in range(1, CLASSES) if (lobes == label).any() and not (lobes == UNKNOWN_LOBE).any()]
        opaque = labels >= OPAQUE
        rows.append(
            (
                _overlap(torch.from_numpy(found > 0), torch.from_numpy(lobes > 0)),
                mean_of_known([_overlap(torch.from_numpy(found == n), torch.from_numpy(lobes == n)) for n in known]),
                float((found[opaque] > 0).mean()) if opaque.any() else float("nan"),
            )
        )
    means = [mean_of_known(values) for values in zip(*rows, strict=True)]
    return dict(zip(MEASURED, (*means, mean_of_known(means)), strict=True))


@torch.inference_mode()
def whole_logits(network: Di2in, image: Image) -> Float[Tensor, "6 zp yp xp"]:
    """The logits of a prepared volume in one piece, air added behind it to a multiple of the network's stride."""
    lifted = functional.pad(image.float() / 127.5 - 1.0, padding(image.shape, network.stride), value=-1.0)
    logits: Tensor = network(lifted[None, None].to(next(network.parameters()).device))[0]
    return logits


def draw(network: Di2in, image: Prepared) -> Prepared:
    """The lobes of a prepared volume."""
    z, y, x = image.shape
    labels = whole_logits(network, torch.from_numpy(image)).argmax(dim=0).byte().cpu().numpy()
    return np.asarray(labels[:z, :y, :x])


def sample_picture(network: Di2in, path: Path) -> Picture:
    """The coronal middle of a volume: as it is, with the true lungs, and with what is found."""
    image, labels = read_volume(path)
    middle = image.shape[1] // 2
    planes = (values[::-1, middle] for values in (image, labels > 0, draw(network, image) > 0))
    return side_by_side(*planes)


@torch.inference_mode()
def best_background_offset(network: Di2in, volumes: Iterable[tuple[Image, Image]]) -> float:
    """What to add to the logits of the background for the best Dice of the lungs, mean over whole volumes.

    Opaque lung that counts more than the rest makes all lungs a little too large; this takes it back.
    """
    # Only upwards: weighting opaque lung makes lungs too large, never too small.
    offsets = torch.arange(0.0, 4.01, 0.25)
    scores = []
    for image, labels in volumes:
        wanted = functional.pad(labels & (OPAQUE - 1), padding(image.shape, network.stride)).cpu() > 0
        logits = whole_logits(network, image).float().cpu()
        margin = logits[1:].amax(dim=0) - logits[0]
        scores.append([_overlap(margin > offset, wanted) for offset in offsets])
    return float(offsets[int(np.mean(scores, axis=0).argmax())])


def _dice(found: Tensor, wanted: Tensor, weights: Tensor) -> Float[Tensor, " c"]:
    shared = (weights * found * wanted).sum(dim=(0, 2, 3, 4))
    both = (weights * (found + wanted)).sum(dim=(0, 2, 3, 4))
    # One voxel added above and below keeps the fraction defined where a class is absent.
    return (2 * shared + 1.0) / (both + 1.0)


def _overlap(found: Tensor, wanted: Tensor) -> float:
    both = int(found.sum()) + int(wanted.sum())
    return 2 * int((found & wanted).sum()) / both if both else 1.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, or go on with a training that was ended, and write the weights."""
    parser = training_parser(__doc__, LungRecipe)
    parser.add_argument("--config", default="{}", help="fields of LungConfig: JSON, or a file of it")
    parser.add_argument("--start", type=Path, help="begin with lungs.safetensors, or a run's checkpoint.pt")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; all by default")
    parser.add_argument("--calibrate", type=int, default=12, help="volumes that the background's offset is fitted on")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    recipe, config = read_recipe(LungRecipe, options.recipe), read_recipe(LungConfig, options.config)
    with join_process_group(options.device) as group:
        training = LungTraining(options.dataset, options.run, recipe, group, config, options.start)
        training.run()
        if group.is_first:
            info = training.export(options.run / "lungs.safetensors", options.version, options.calibrate)
            sys.stdout.write(f"{info.name} {info.version} {info.sha256}\n")


if __name__ == "__main__":
    main()

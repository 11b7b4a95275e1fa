"""Trains the lung network on a prepared dataset: `python -m training.lungs DATASET RUN`.

First the backbone, which draws at 4 mm and sees the whole region of interest; then the detail stage at 2 mm on crops,
the backbone held still. The patients in `splits.json` are kept aside: some choose the model, some test it.
A run that was ended goes on to the very same weights when the same command is given again.
With torchrun, several GPUs train together.
"""

import argparse
import math
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from pipeline.networks.device import mixed_precision
from pipeline.networks.di2in import CLASSES, Di2in, LungConfig
from pipeline.networks.weights import ModelInfo, load_into, read_start, save_weights
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
    ClippedStep,
    Picture,
    ProcessGroup,
    TrainingLogger,
    join_process_group,
    side_by_side,
    write_checkpoint,
)

#: Gradients are cut to this length.
GRADIENT_NORM: Final = 5.0
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


@dataclass(eq=False)
class Run:
    """A training in progress: the network, the running mean of its weights, and where it stands."""

    folder: Path
    config: LungConfig
    recipe: LungRecipe
    network: Di2in
    smooth: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    group: ProcessGroup
    step: int = 0
    best: float = -math.inf
    best_in_detail: bool = False

    def __post_init__(self) -> None:
        self._clipped_step = ClippedStep(self.network, self.optimizer, GRADIENT_NORM)

    @classmethod
    def begin(cls, folder: Path, config: LungConfig, recipe: LungRecipe, group: ProcessGroup) -> "Run":
        """A new run, or the one that `folder` holds a checkpoint of."""
        torch.manual_seed(recipe.seed)
        network = Di2in(config).to(group.device)
        network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # missing from torch's stub
        optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
        smooth = {name: value.detach().clone() for name, value in network.state_dict().items()}
        run = cls(folder, config, recipe, network, smooth, optimizer, group)
        with suppress(FileNotFoundError):
            run.restore(torch.load(run.checkpoint, map_location=group.device, weights_only=True))
        return run

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    @property
    def in_detail(self) -> bool:
        return self.step >= self.recipe.trunk_steps and self.recipe.detail_steps > 0

    @property
    def steps_of_stage(self) -> int:
        """How many steps the present stage has taken."""
        return self.step - self.recipe.trunk_steps if self.in_detail else self.step

    @property
    def learning_rate(self) -> float:
        """Warm-up and cosine, anew for each stage."""
        recipe, done = self.recipe, self.steps_of_stage
        steps = recipe.detail_steps if self.in_detail else recipe.trunk_steps
        warm = min((done + 1) / max(recipe.warmup_steps, 1), 1.0)
        top = recipe.detail_learning_rate if self.in_detail else recipe.learning_rate
        return top * warm * (0.01 + 0.99 * 0.5 * (1 + float(np.cos(np.pi * done / max(steps, 1)))))

    def learn(self, loss: Tensor) -> None:
        """One step down the gradient, and the running mean after it."""
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = self.learning_rate
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self.group.average_gradients(self.network)
        self._clipped_step.take()
        # A young mean forgets quickly, or the random weights of the start would stay in it for hundreds of steps.
        decay = min(self.recipe.smoothing, self.steps_of_stage / (self.steps_of_stage + 20))
        self.step += 1
        for name, value in self.network.state_dict().items():
            self.smooth[name].lerp_(value, 1.0 - decay)

    def save(self) -> None:
        """Everything that the next step depends on; what is drawn depends on the step alone."""
        state = {"step": self.step, "network": self.network.state_dict(), "smooth": self.smooth}
        state |= {"optimizer": self.optimizer.state_dict(), "best": self.best, "best_in_detail": self.best_in_detail}
        write_checkpoint(state, self.checkpoint)

    def validate(self, volumes: Sequence[Path]) -> dict[str, float]:
        """Measure the mean weights on the volumes kept aside, and keep them in `best.pt` if they are the best so far.

        The two stages draw at different resolutions: where one ends, what was best is forgotten.
        """
        measured = measure(self.mean_network(), volumes)
        # Equal scores go to the later weights; a score at 2 mm cannot be compared with one at 4 mm.
        if measured["score"] >= self.best or self.in_detail != self.best_in_detail:
            self.best, self.best_in_detail = measured["score"], self.in_detail
            write_checkpoint({"smooth": self.smooth, "step": self.step, **measured}, self.folder / "best.pt")
        return measured

    def chosen(self) -> tuple[dict[str, Tensor], int]:
        """The weights of the best validation score and their step; the last ones where there was no validation."""
        path = self.folder / "best.pt"
        if not path.exists():
            return self.smooth, self.step
        best = torch.load(path, map_location=self.group.device, weights_only=True)
        return dict(best["smooth"]), int(best["step"])

    def mean_network(self) -> Di2in:
        """A network with the running mean of the weights."""
        network = Di2in(self.config).eval().to(self.group.device)
        network.load_state_dict(self.smooth)
        return network

    def restore(self, state: Mapping[str, Any]) -> None:
        self.step, self.best, self.best_in_detail = state["step"], state["best"], state["best_in_detail"]
        self.network.load_state_dict(state["network"])
        self.smooth = dict(state["smooth"])
        self.optimizer.load_state_dict(state["optimizer"])

    def start_with(self, weights: Mapping[str, Tensor]) -> None:
        """Begin with the weights of another run."""
        load_into(self.network, weights, "lungs")
        self.smooth = {name: value.detach().clone() for name, value in self.network.state_dict().items()}

    def calibrated(self, dataset: LungDataset, volumes: int) -> tuple[dict[str, Tensor], float]:
        """The chosen weights with the background's offset that suits some volumes, and the offset."""
        chosen, _ = self.chosen()
        network = Di2in(self.config).eval().to(self.group.device)
        network.load_state_dict(chosen)
        draws = (dataset.draw(np.random.default_rng([self.recipe.seed, 1_000_000 + i])) for i in range(volumes))
        offset = best_background_offset(network, draws) if volumes else 0.0
        tensors = {name: value.clone() for name, value in chosen.items()}
        tensors["heads.0.bias"][0] += offset
        return tensors, offset

    def export(self, path: Path, version: str, dataset: LungDataset, volumes: int) -> ModelInfo:
        """The calibrated weights as a weights file."""
        tensors, offset = self.calibrated(dataset, volumes)
        recipe = {**asdict(self.recipe), "steps_done": self.chosen()[1], "background_offset": offset}
        return save_weights(path, version=version, config=self.config.to_mapping(), recipe=recipe, tensors=tensors)


def train(run: Run, dataset: LungDataset, *, save_every: int = 20) -> Iterator[dict[str, float | str]]:
    """Take the steps that are left; yields a row of the log after each `save_every`, when a checkpoint is written."""
    total = run.recipe.trunk_steps + run.recipe.detail_steps
    rows: list[tuple[float, float, float]] = []
    unmeasured = (float("nan"), float("nan"))
    begin = time.perf_counter()
    while run.step < total:
        # What is drawn depends on seed, step and process alone, so that a resumed run reaches the very same weights.
        rng = np.random.default_rng([run.recipe.seed, run.step, run.group.rank])
        detail = run.in_detail
        losses = []
        for _ in range(run.recipe.volumes_per_step):
            sample = draw_sample(dataset, run.recipe, run.config.stride, rng)
            loss, logits = (detail_loss if detail else trunk_loss)(run.network, sample, run.recipe)
            losses.append(loss)
        loss = torch.stack(losses).mean()
        run.learn(loss)
        scores = unmeasured
        if run.step % MEASURE_EVERY == 0:
            # At the resolution of the logits: the detail stage draws its window at 2 mm, the backbone all at 4 mm.
            fine = (slice(None), slice(None), *sample.window)
            targets = sample.targets[fine] if detail else functional.avg_pool3d(sample.targets, 2)
            scores = dice_scores(logits.detach(), targets)
        rows.append((float(loss.detach()), *scores))
        if run.step % save_every == 0 or run.step == total:
            means = (round(_mean_of_known(values), 4) for values in zip(*rows, strict=True))
            seconds, stage = round(time.perf_counter() - begin, 1), "detail" if detail else "trunk"
            values: list[float | str] = [run.step, stage, seconds, *means, round(run.learning_rate, 6)]
            row = dict(zip(COLUMNS, values, strict=False))  # validation adds its own
            if run.group.is_first:
                # What validation says where it is due: every so many steps, and at the end of either stage.
                since = run.step % run.recipe.validate_every
                is_due = since < save_every or run.step == total or 0 <= run.step - run.recipe.trunk_steps < save_every
                volumes = dataset.validation_paths()
                row |= run.validate(volumes) if is_due and volumes else {}
                run.save()
            dataset.refresh()
            yield row
            rows.clear()


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
                _mean_of_known([_overlap(torch.from_numpy(found == n), torch.from_numpy(lobes == n)) for n in known]),
                float((found[opaque] > 0).mean()) if opaque.any() else float("nan"),
            )
        )
    means = [_mean_of_known(values) for values in zip(*rows, strict=True)]
    return dict(zip(MEASURED, (*means, _mean_of_known(means)), strict=True))


@torch.inference_mode()
def draw(network: Di2in, image: Prepared) -> Prepared:
    """The lobes of a prepared volume, in one piece."""
    pads = [(0, -n % network.stride) for n in image.shape]
    lifted = np.pad(image.astype(np.float32) / np.float32(127.5) - 1.0, pads, constant_values=-1.0)
    device = next(network.parameters()).device
    labels = network(torch.from_numpy(lifted)[None, None].to(device))[0].argmax(dim=0).byte().cpu().numpy()
    z, y, x = image.shape
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
        pads = padding(image.shape, network.stride)
        lifted = functional.pad(image.float() / 127.5 - 1.0, pads, value=-1.0)
        wanted = functional.pad(labels & (OPAQUE - 1), pads).cpu() > 0
        logits = network(lifted[None, None].to(next(network.parameters()).device))[0].float().cpu()
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


def _mean_of_known(values: Sequence[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def open_run(
    dataset: Path,
    folder: Path,
    recipe: LungRecipe,
    group: ProcessGroup,
    config: LungConfig | None = None,
    start: Path | None = None,
) -> tuple[Run, LungDataset]:
    """The run in `folder`, new or where it was ended, and what it learns from.

    Args:
        start: weights, or the checkpoint of another run, whose mean weights are where a new one begins.

    Raises:
        FileNotFoundError: the dataset holds no prepared volume.
        RecipeError: the run was begun with another recipe.
        WeightsError: `start` holds no weights of this network.
    """
    found = LungDataset(dataset, recipe, device=group.device)
    folder.mkdir(parents=True, exist_ok=True)
    if group.is_first:
        keep_recipe(folder, recipe)
    run = Run.begin(folder, config or LungConfig(), recipe, group)
    if start is not None and run.step == 0:
        run.start_with(read_start(start, "lungs", "smooth", group.device))
    return run, found


def follow(run: Run, dataset: LungDataset) -> None:
    """Take the steps that are left, and tell of them in `log.csv`."""
    logger = TrainingLogger(run.folder / "log.csv", COLUMNS, run.step) if run.group.is_first else None
    for row in train(run, dataset):
        if logger is not None:
            logger.add_row(row)
            if "score" in row:
                for path in dataset.validation_paths():
                    logger.add_picture(path.stem, sample_picture(run.mean_network(), path), run.step)
    run.group.wait()


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, or go on with a training that was ended, and write the weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("run", type=Path, help="folder of the checkpoint, the log and the weights")
    parser.add_argument("--recipe", default="{}", help="fields of LungRecipe: JSON, or a file of it")
    parser.add_argument("--config", default="{}", help="fields of LungConfig: JSON, or a file of it")
    parser.add_argument("--start", type=Path, help="begin with lungs.safetensors, or a run's checkpoint.pt")
    parser.add_argument("--version", default="0.0.0")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; all by default")
    parser.add_argument("--calibrate", type=int, default=12, help="volumes that the background's offset is fitted on")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    recipe, config = read_recipe(LungRecipe, options.recipe), read_recipe(LungConfig, options.config)
    with join_process_group(options.device) as group:
        run, dataset = open_run(options.dataset, options.run, recipe, group, config, options.start)
        follow(run, dataset)
        if group.is_first:
            info = run.export(options.run / "lungs.safetensors", options.version, dataset, options.calibrate)
            sys.stdout.write(f"{info.name} {info.version} {info.sha256}\n")


if __name__ == "__main__":
    main()

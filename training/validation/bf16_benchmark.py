"""How much faster bfloat16 is on this machine, and what it costs: `python -m training.validation.bf16_benchmark`.

The networks answer a phantom in float32 and in bfloat16, one after the other, several times; then they take gradients.
Times are ratios of medians within one run, since machines are noisy; answers are compared voxel by voxel.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.geometry import LungMask, resample
from pipeline.lesions import lesion_grid, prepare
from pipeline.networks.dense_unet import DenseUNet, DenseUNetConfig
from pipeline.networks.device import choose_device, on_device
from pipeline.networks.di2in import Di2in, LungConfig
from pipeline.networks.weights import load_into, load_weights
from pipeline.phantom import PhantomRecipe, make_phantom

SEED: Final = 1_000_003
"""An unseen phantom with wide lesions."""
LESION_SLICES: Final = 32
LUNG_CROP: Final = (112, 112, 160)


@dataclass(frozen=True)
class Comparison:
    """bfloat16 beside float32.

    Attributes:
        answers, gradients: how many times as fast.
        largest_difference: of a voxel's probabilities.
        differing_percent: of the voxels, how many get another label.
        gradients_cosine: 1 where both point the same way; not a number where one is none.
    """

    name: str
    answers: float
    gradients: float
    largest_difference: float
    differing_percent: float
    gradients_cosine: float


def compare(name: str, network: nn.Module, batch: Tensor, repeats: int) -> Comparison:
    """One network on one batch, in both precisions in turn."""
    seconds: dict[tuple[str, bool], list[float]] = {}
    answers: dict[bool, Tensor] = {}
    gradients: dict[bool, Tensor] = {}
    for _ in range(repeats):
        for quick in (False, True):
            answers[quick] = _timed(seconds, ("answer", quick), partial(_answer, network, batch, quick=quick))
            gradients[quick] = _timed(seconds, ("gradient", quick), partial(_gradient, network, batch, quick=quick))
    middle = {key: sorted(values)[len(values) // 2] for key, values in seconds.items()}
    return Comparison(
        name,
        middle["answer", False] / middle["answer", True],
        middle["gradient", False] / middle["gradient", True],
        float((answers[True] - answers[False]).abs().max()),
        100 * float((answers[True].argmax(dim=1) != answers[False].argmax(dim=1)).float().mean()),
        float(functional.cosine_similarity(gradients[True], gradients[False], dim=0)),
    )


def _timed(seconds: dict[tuple[str, bool], list[float]], key: tuple[str, bool], work: Callable[[], Tensor]) -> Tensor:
    begin = time.perf_counter()
    result = work()
    seconds.setdefault(key, []).append(time.perf_counter() - begin)
    return result


def _answer(network: nn.Module, batch: Tensor, *, quick: bool) -> Tensor:
    with torch.inference_mode(), _precision(batch, quick=quick):
        logits: Tensor = network(batch)
    return logits.float().softmax(dim=1)


def _gradient(network: nn.Module, batch: Tensor, *, quick: bool) -> Tensor:
    """Of the mean confidence, with respect to all weights."""
    network.zero_grad()
    with _precision(batch, quick=quick):
        logits = network(batch)
    logits.float().softmax(dim=1).square().mean().backward()
    return torch.cat([weight.grad.flatten() for weight in network.parameters() if weight.grad is not None])


def _precision(batch: Tensor, *, quick: bool) -> torch.autocast | nullcontext[None]:
    return torch.autocast(batch.device.type, torch.bfloat16) if quick else nullcontext()


def lesion_batch() -> Tensor:
    """The phantom's lungs as the lesion network sees them, the middle slices."""
    phantom = make_phantom(PhantomRecipe(seed=SEED))
    lungs = LungMask(phantom.lobes.labels > 0, phantom.volume.grid)
    inputs = prepare(phantom.volume, lungs, lesion_grid(lungs))
    begin = (inputs.shape[1] - LESION_SLICES) // 2
    return torch.from_numpy(inputs[None, :, begin : begin + LESION_SLICES])


def lung_batch() -> Tensor:
    """A part of the phantom's chest as the lung network sees it."""
    phantom, config = make_phantom(PhantomRecipe(seed=SEED)), LungConfig()
    grid = phantom.volume.grid.covering((config.spacing_mm,) * 3)
    low, high = config.window_hu
    image = torch.from_numpy(resample(phantom.volume.hu, phantom.volume.grid, grid).clip(low, high))
    lifted = ((image - low) * (2 / (high - low)) - 1).float()
    begins = [max((n - edge) // 2, 0) for n, edge in zip(lifted.shape, LUNG_CROP, strict=True)]
    part = lifted[tuple(slice(begin, begin + edge) for begin, edge in zip(begins, LUNG_CROP, strict=True))]
    pads = [value for n, edge in zip(reversed(part.shape), reversed(LUNG_CROP), strict=True) for value in (0, edge - n)]
    return functional.pad(part, pads, value=-1.0)[None, None]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args(arguments)
    device = choose_device(options.device)
    lesions, lungs = load_weights("lesions"), load_weights("lungs")
    networks: tuple[tuple[str, nn.Module, Tensor], ...] = (
        ("lesions", DenseUNet(DenseUNetConfig(**lesions.config)), lesion_batch()),
        ("lungs", Di2in(LungConfig.from_mapping(lungs.config)), lung_batch()),
    )
    sys.stdout.write("| network | answers | gradients | largest difference | other labels | gradients' cosine |\n")
    sys.stdout.write("|---" * 6 + "|\n")
    for (name, network, batch), weights in zip(networks, (lesions, lungs), strict=True):
        load_into(network, weights.tensors, name)
        given = batch.to(device, memory_format=torch.channels_last_3d)
        found = compare(name, on_device(network, device), given, options.repeats)
        sys.stdout.write(
            f"| {name} | {found.answers:.1f} x | {found.gradients:.1f} x | {found.largest_difference:.3f} | "
            f"{found.differing_percent:.3f} % | {found.gradients_cosine:.4f} |\n"
        )


if __name__ == "__main__":
    main()

"""Where the networks run."""

from typing import TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def choose_device(wanted: str = "auto") -> torch.device:
    """The device named, or for `auto` the first CUDA GPU, else Apple's, else the CPU.

    Raises:
        ValueError: the name is unknown, or this machine has no such device.
    """
    if wanted == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(wanted)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {wanted!r} is not usable on this machine: {error}") from error
    return device


def on_device(network: Network, device: torch.device) -> Network:
    """The network on the device, its weights laid out channels-last: twice as fast for 3D convolutions on a CPU."""
    moved: Network = network.to(device)
    return moved.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload, no-any-return]  # torch's stubs lack it


def is_faster_in_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    has = torch.cpu.get_capabilities()
    return device.type == "cpu" and any(has.get(unit, False) for unit in ("amx_bf16", "avx512_bf16"))


def mixed_precision(device: torch.device, *, wanted: bool = True) -> torch.autocast:
    """bfloat16 where the device is faster with it, float32 elsewhere: the networks were trained with both."""
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted and is_faster_in_bfloat16(device))

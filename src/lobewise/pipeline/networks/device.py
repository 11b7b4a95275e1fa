"""Where the networks run."""

import torch


def choose_device(wanted: str = "auto") -> torch.device:
    """The device named, or for `auto` the first CUDA GPU, else Apple's, else the CPU.

    Raises:
        ValueError: the name is unknown, or this machine has no such device.
    """
    if wanted == "auto":
        return torch.device(_best())
    try:
        device = torch.device(wanted)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {wanted!r} is not usable on this machine: {error}") from error
    return device


def _best() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"

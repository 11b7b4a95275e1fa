"""Several processes train together, one a GPU: `torchrun --nproc-per-node 4 -m training.lesions …`.

Every process draws volumes of its own, and the gradients are averaged before each step, so that four GPUs make a batch
of four. Started without torchrun, a process is a team of one.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import distributed, nn

from pipeline.networks.device import choose_device


@dataclass(frozen=True)
class Team:
    """The processes that train together, as one of them sees them."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that judges, logs and writes."""
        return self.rank == 0

    def average_gradients(self, network: nn.Module) -> None:
        """Give the gradients of all processes' losses their mean, in all of them: one message for all parameters."""
        if self.size == 1:
            return
        gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        message = torch.cat([gradient.reshape(-1) for gradient in gradients])
        distributed.all_reduce(message)
        parts = torch.split(message, [gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view(gradient.shape) / self.size)

    def wait(self) -> None:
        """Until all have come so far."""
        if self.size > 1:
            distributed.barrier()


@contextmanager
def join_team(device_name: str = "auto") -> Iterator[Team]:
    """The team that torchrun started this process in, or a team of one.

    Raises:
        ValueError: this machine has no such device.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Team(choose_device(device_name))
        return
    device = choose_device(device_name)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Team(device, int(os.environ["RANK"]), size)
    finally:
        distributed.destroy_process_group()

"""Tells when a fault means that the memory, or that of the GPU, did not suffice."""

import errno
from typing import Final

_SAYINGS: Final = ("can't allocate memory", "not enough memory", "out of memory", "cannot allocate memory", "bad_alloc")
"""How torch and ITK put it, which have no type for it on a CPU."""


def is_out_of_memory(fault: BaseException) -> bool:
    """Whether another process, or smaller pieces, may help."""
    if isinstance(fault, MemoryError) or type(fault).__name__ == "OutOfMemoryError":  # torch's, which need not be here
        return True
    if isinstance(fault, OSError):
        return fault.errno == errno.ENOMEM
    return isinstance(fault, RuntimeError) and any(saying in str(fault).lower() for saying in _SAYINGS)

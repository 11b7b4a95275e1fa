"""What is too much, checked before anything is allocated."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.errors import ScanTooLargeError


@dataclass(frozen=True)
class SizeLimits:
    """How large a scan may be.

    Attributes:
        max_voxels: of the volume.
        max_bytes: of the file, and again of what it unpacks to.
        max_files: in a zip or a folder, and slices of DICOM.
        is_noisy: it unpacks no further than a CT does; masks do.
    """

    max_voxels: int
    max_bytes: int
    max_files: int
    is_noisy: bool = True

    def check_voxels(self, sizes: Sequence[int]) -> None:
        voxels = math.prod(sizes)
        if voxels > self.max_voxels:
            shape = " x ".join(str(n) for n in sizes)
            raise ScanTooLargeError(
                f"The scan has {shape} voxels; this service reads up to {self.max_voxels}.",
                evidence={"size": list(sizes), "max_voxels": self.max_voxels},
            )

    def check_bytes(self, count: int) -> None:
        if count > self.max_bytes:
            raise ScanTooLargeError(
                f"The file holds {count} bytes or more; this service reads up to {self.max_bytes}.",
                evidence={"bytes": count, "max_bytes": self.max_bytes},
            )

    def check_files(self, count: int) -> None:
        if count > self.max_files:
            raise ScanTooLargeError(
                f"There are {count} files; this service reads up to {self.max_files}.",
                evidence={"files": count, "max_files": self.max_files},
            )

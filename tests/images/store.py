"""buildah with a store of its own, in which `make images` leaves nobody else's images untouched."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

KERNEL_FILE_SYSTEMS: Final = Path("/proc/filesystems")


@dataclass(frozen=True)
class Store:
    """A folder of images and of what is made from them."""

    folder: Path

    @property
    def driver(self) -> str:
        """Copies of whole trees (vfs) only where the kernel cannot lay one over the other."""
        return "overlay" if "overlay" in KERNEL_FILE_SYSTEMS.read_text() else "vfs"

    def buildah(self, *arguments: str | Path, shown: bool = False) -> str:
        """What it printed; with `shown` it prints to the terminal instead."""
        root, run = self.folder / "storage", self.folder / "run"
        command = ["buildah", "--root", root, "--runroot", run, "--storage-driver", self.driver, *arguments]
        temporary = self.folder / "tmp"  # what pip downloaded stays there, for the next build
        temporary.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            list(map(str, command)),
            check=True,
            text=True,
            stdout=None if shown else subprocess.PIPE,
            env={**os.environ, "TMPDIR": str(temporary)},
        )
        return (done.stdout or "").strip()

    def release(self) -> None:
        """buildah leaves its folder of overlays mounted upon itself; so mounted it cannot be deleted."""
        overlays = self.folder / "storage" / "overlay"
        if overlays.is_mount():
            subprocess.run(["umount", str(overlays)], check=False)

    def has(self, image: str) -> bool:
        """Whether it was made already."""
        names = json.loads(self.buildah("images", "--json") or "[]") or []
        return any(image in (entry.get("names") or []) for entry in names)

    def described(self, image: str) -> dict[str, Any]:
        """The image's configuration and history, as a registry would hold them."""
        described: dict[str, Any] = json.loads(self.buildah("inspect", "--type", "image", image))["Docker"]
        return described

    @contextmanager
    def mounted(self, image: str) -> Iterator[Path]:
        """The image's files, until the block ends."""
        container = self.buildah("from", "--pull-never", image)
        try:
            yield Path(self.buildah("mount", container))
        finally:
            self.buildah("rm", container)

"""`make images`: builds both images, looks into them, and scores a scan with them.

As root, with Debian's buildah, crun and debootstrap.
No registry of images is asked: the base is made from Debian's packages.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from bake import ROOT, build, make_base
from look import faults
from store import Store

PARTS: Final = ("api", "worker")
TOOLS: Final = ("buildah", "crun", "debootstrap", "unshare", "ip")
STORE: Final = ROOT / ".images"
Answer = TypeVar("Answer")


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=PARTS, help="build and look into one image; score nothing")
    arguments = parser.parse_args()
    if os.geteuid() or (missing := [tool for tool in TOOLS if not shutil.which(tool)]):
        print("images are built as root" if os.geteuid() else f"not installed: {', '.join(missing)}", file=sys.stderr)
        return 2
    store = Store(STORE)
    timed("base", lambda: make_base(store))
    found = [f"{part}: {fault}" for part in PARTS if arguments.only in (None, part) for fault in built(store, part)]
    if found:
        print(*found, sep="\n", file=sys.stderr)
        return 1
    return 0 if arguments.only else timed("scan", lambda: scan(store))


def built(store: Store, part: str) -> list[str]:
    """What is wrong with it."""
    timed(f"{part}, build", lambda: build(store, part))
    return timed(f"{part}, look", lambda: list(faults(store, part)))


def scan(store: Store) -> int:
    """In a network where there is nobody else, so that the gateway may listen everywhere."""
    script = Path(__file__).with_name("scan.py")
    command = ["unshare", "--net", sys.executable, str(script), str(store.folder)]
    return subprocess.run(command, check=False).returncode  # noqa: S603 (our own arguments)


def timed(what: str, act: Callable[[], Answer]) -> Answer:
    """Do it, and say how long it took."""
    begin = time.monotonic()
    try:
        return act()
    finally:
        print(f"-- {what}: {time.monotonic() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())

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
from typing import Final, TypeVar

from tests.images.bake import ROOT, build, image_of, make_base
from tests.images.look import faults
from tests.images.store import Store
from tests.supply import materials

PARTS: Final = ("api", "worker")
TOOLS: Final = ("buildah", "crun", "debootstrap", "unshare", "ip")
NAMESPACES: Final = ("unshare", "--mount", "--net", "--uts", "--ipc", "--pid", "--fork", "--mount-proc")
STORE: Final = ROOT / ".images"
Answer = TypeVar("Answer")


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=PARTS, help="build and look into one image; score nothing")
    parser.add_argument("--try", dest="only_try", action="store_true", help="say whether images can be built here")
    arguments = parser.parse_args()
    store = Store(STORE)
    try:
        return work(store, arguments)
    finally:
        store.release()


def work(store: Store, arguments: argparse.Namespace) -> int:
    """The exit code."""
    if hindrance := hindrance_of(store):
        print(f"images cannot be built here: {hindrance}", file=sys.stderr)
        return 2
    if arguments.only_try:
        return 0
    timed("base", lambda: make_base(store))
    found = [f"{part}: {fault}" for part in PARTS if arguments.only in (None, part) for fault in built(store, part)]
    if found:
        print(*found, sep="\n", file=sys.stderr)
        return 1
    return 0 if arguments.only else timed("scan", lambda: scan(store))


def hindrance_of(store: Store) -> str:
    """Why this machine cannot build and run images; empty if it can."""
    if os.geteuid():
        return "it takes root"
    if missing := [tool for tool in TOOLS if not shutil.which(tool)]:
        return f"{', '.join(missing)} not installed"
    try:
        subprocess.run([*NAMESPACES, "true"], check=True)
        store.buildah("rm", store.buildah("from", "scratch"))
    except subprocess.CalledProcessError as error:
        return str(error)
    return ""


def built(store: Store, part: str) -> list[str]:
    """What is wrong with it."""
    timed(f"{part}, build", lambda: build(store, part))
    with store.mounted(image_of(part)) as root:
        print(f"{part}: {materials.write(part, root).relative_to(ROOT)} is its bill of materials", flush=True)
    return timed(f"{part}, look", lambda: list(faults(store, part)))


def scan(store: Store) -> int:
    """In a network where there is nobody else, so that the gateway may listen everywhere. Its mounts end with it."""
    command = ["unshare", "--net", "--mount", sys.executable, "-m", "tests.images.scan", str(store.folder)]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


def timed(what: str, act: Callable[[], Answer]) -> Answer:
    """Do it, and say how long it took."""
    begin = time.monotonic()
    try:
        return act()
    finally:
        print(f"-- {what}: {time.monotonic() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())

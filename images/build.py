"""The base, as `mmdebstrap` makes it from Debian's packages, and the images on it, as their Dockerfiles say."""

import subprocess
from pathlib import Path
from typing import Final

import outside
from store import Store

ROOT: Final = Path(__file__).resolve().parents[1]
PIP: Final = ROOT / ".venv" / "bin" / "pip"
BASE: Final = "localhost/lobewise-base:bookworm"
STAGES: Final = ("product", None)
"""pip runs up to the first; the second has all of that from the cache, and is built without what was lent to it."""
SPARE: Final = ("doc", "man", "info", "locale")


def image_of(part: str) -> str:
    """Its name in the store."""
    return f"localhost/lobewise-{part}:built"


def make_base(store: Store) -> None:
    """A Debian with Python, unless there is one already. It stands for the official image of Python."""
    if store.has(BASE):
        return
    archive = store.folder / "base.tar"
    subprocess.run(["mmdebstrap", *_debian_options(), "bookworm", archive], check=True)  # noqa: S603, S607 (our own arguments)
    container = store.buildah("from", "scratch")
    store.buildah("add", "--quiet", container, archive, "/")
    store.buildah("commit", "--quiet", "--rm", container, BASE)
    archive.unlink()


def _debian_options() -> list[str]:
    options = ["--quiet", "--variant=minbase", "--include=usr-is-merged,ca-certificates,python3-venv"]
    options += [f"--dpkgopt=path-exclude=/usr/share/{folder}/*" for folder in SPARE]
    return [*options, "--dpkgopt=force-unsafe-io"]  # a disk that fails spoils a cache, no more


def build(store: Store, part: str) -> None:
    """The image of one part, as its Dockerfile says."""
    found = outside.settings(PIP)
    secret = store.folder / "pip.conf"
    secret.write_text(outside.as_file(found))
    for stage in STAGES:
        lent = [] if stage is None else ["--target", stage, *outside.volumes(outside.folders(found))]
        store.buildah("bud", *_options(part), *lent, f"--secret=id=pip,src={secret}", ROOT, shown=True)
    secret.unlink()


def _options(part: str) -> list[str]:
    """`docker` is the format that keeps health checks."""
    revision = subprocess.run(
        ["git", "rev-parse", "HEAD"],  # noqa: S607
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        check=False,
    ).stdout.strip()
    arguments = {"PYTHON_IMAGE": BASE, "REVISION": revision or "unknown"}
    options = ["--isolation", "chroot", "--layers", "--format", "docker", "--pull-never", "--quiet"]
    options += [f"--build-arg={name}={value}" for name, value in arguments.items()]
    return [*options, "--file", str(ROOT / f"Dockerfile.{part}"), "--tag", image_of(part)]

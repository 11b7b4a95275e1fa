"""The base, as debootstrap makes it from Debian's packages, and the images on it, as their Dockerfiles say."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import DEVNULL
from typing import Final

from tests.images import outside
from tests.images.store import Store

ROOT: Final = Path(__file__).resolve().parents[2]
PIP: Final = ROOT / ".venv" / "bin" / "pip"
BASE: Final = "localhost/lobewise-base:bookworm"

#: pip runs up to the first; the second has all of that from the cache, and is built without what was lent to it.
STAGES: Final = ("product", None)
PACKAGES: Final = ("ca-certificates", "python3-venv")

#: What the official image has not got either.
SPARE: Final = (
    "usr/share/doc",
    "usr/share/info",
    "usr/share/locale",
    "usr/share/man",
    "var/cache/apt",
    "var/lib/apt/lists",
    "var/log",
)


def image_of(part: str) -> str:
    """Its name in the store."""
    return f"localhost/lobewise-{part}:built"


def make_base(store: Store) -> None:
    """A Debian with Python, unless there is one already. It stands for the official image of Python."""
    if store.has(BASE):
        return
    archive = store.folder / "base.tar"
    with in_memory(store.folder / "base") as folder:
        run("debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", "bookworm", folder, stdout=DEVNULL)
        for spare in SPARE:
            run("find", folder / spare, "-mindepth", "1", "-delete")
        run("tar", "--create", "--file", archive, "--directory", folder, ".")
    container = store.buildah("from", "scratch")
    store.buildah("add", "--quiet", container, archive, "/")
    store.buildah("commit", "--quiet", "--rm", container, BASE)
    archive.unlink()


@contextmanager
def in_memory(folder: Path) -> Iterator[Path]:
    """dpkg waits for the disk after each file; here it need not."""
    folder.mkdir(exist_ok=True)
    run("mount", "-t", "tmpfs", "-o", "mode=755,size=2g", "lobewise-base", folder)
    try:
        yield folder
    finally:
        run("umount", "--lazy", folder)
        folder.rmdir()


def run(*command: str | Path, stdout: int | None = None) -> None:
    """Or fail."""
    subprocess.run(list(map(str, command)), check=True, stdout=stdout)


def build(store: Store, part: str) -> None:
    """The image of one part, as its Dockerfile says."""
    found = outside.settings(PIP)
    of_npm = outside.npm_settings()
    contents = {
        "pip": outside.as_file(found),
        "npm": "".join(f"{name}={value}\n" for name, value in of_npm.items()),
    }
    secrets = {name: store.folder / f"{name}.conf" for name in contents}
    try:
        for name, secret in secrets.items():
            secret.touch(mode=0o600)
            secret.write_text(contents[name])
        given = [f"--secret=id={name},src={secret}" for name, secret in secrets.items()]
        # The certificate of a registry's mirror is one file; of pip's folders it may lie in one.
        lendable = {*outside.folders(found), *(Path(of_npm[name]) for name in ("cafile",) if name in of_npm)}
        for stage in STAGES:
            lent = [] if stage is None else ["--target", stage, *outside.volumes(sorted(lendable))]
            store.buildah("bud", *_options(part), *lent, *given, ROOT, shown=True)
    finally:
        for secret in secrets.values():
            secret.unlink()


def _options(part: str) -> list[str]:
    """`docker` is the format that keeps health checks."""
    arguments = {"PYTHON_IMAGE": BASE, "REVISION": revision()}
    options = ["--isolation", "chroot", "--layers", "--format", "docker", "--pull-never", "--quiet"]
    options += [f"--build-arg={name}={value}" for name, value in arguments.items()]
    return [*options, "--file", str(ROOT / f"Dockerfile.{part}"), "--tag", image_of(part)]


def revision() -> str:
    """Of the sources, where git knows it."""
    asked = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, text=True, capture_output=True, check=False)
    return asked.stdout.strip() or "unknown"

"""What is in a built image, and what must not be."""

import json
import re
import stat
from collections.abc import Iterator
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any, Final

from packaging.utils import canonicalize_name

from tests.images import outside
from tests.images.bake import BASE, PIP, ROOT, image_of
from tests.images.store import Store

MB: Final = 1_000_000
MOST_MB: Final = {"api": 270}
SCIENCE: Final = {"torch", "numpy", "scipy", "simpleitk", "pydicom", "safetensors"}
OURS: Final = ("lobewise", "lobewise-client")
LABELS: Final = ("title", "description", "licenses", "version", "revision", "base.name")
FAMILY: Final = "10001:10001"
LEFT_BEHIND: Final = ("build", "var/cache/pip", "etc/pip.conf", "opt/pip", "opt/product", "run/secrets")
SECRET: Final = re.compile(r"(?i)password|passwd=|token|secret=|whsec_|aws_[a-z_]*key|://[^/\s]*:[^/\s]*@")


def faults(store: Store, part: str) -> Iterator[str]:
    """What is wrong with the image of that part; nothing, if it is as it should be."""
    described, lent = store.described(image_of(part)), outside.settings(PIP)
    with store.mounted(image_of(part)) as root, store.mounted(BASE) as base:
        yield from size(part, size_mb(root), size_mb(base))
        yield from files(root, base, outside.folders(lent))
        yield from distributions(part, root)
    yield from configuration(described["config"])
    yield from history(json.dumps(described), lent)


def size_mb(root: Path) -> float:
    """Of its files, unpacked; a file with several names counts once."""
    found = {(status.st_dev, status.st_ino): status.st_size for status in map(Path.lstat, _regular(root))}
    return sum(found.values()) / MB


def size(part: str, whole: float, base: float) -> Iterator[str]:
    """In MB; the base counts."""
    print(f"{part}: {whole:.0f} MB unpacked, {base:.0f} MB of it the base", flush=True)
    if whole >= MOST_MB.get(part, whole + 1):
        yield f"{whole:.0f} MB, and {MOST_MB[part]} are the most"


def _regular(root: Path) -> Iterator[Path]:
    return (path for path in root.rglob("*") if not path.is_symlink() and path.is_file())


def files(root: Path, base: Path, lent: list[Path]) -> Iterator[str]:
    """No program that makes root, nothing that the service could change, nothing that the build left.

    Args:
        lent: folders of the machine that built it.
    """
    for path in _regular(root):
        status, name = path.stat(), path.relative_to(root)
        if status.st_mode & (stat.S_ISUID | stat.S_ISGID):
            yield f"/{name} makes its caller somebody else"
        if status.st_mode & stat.S_IWOTH or status.st_uid != 0:
            yield f"/{name} may be changed by what runs"
    yield from (f"/{name} was left behind" for name in LEFT_BEHIND if (root / name).exists())
    for path in lent:
        name = path.relative_to("/")
        if (root / name).exists() and not (base / name).exists():
            yield f"{path}, of the machine that built it, is in it"


def distributions(part: str, root: Path) -> Iterator[str]:
    """Each is pinned; the gateway has no science, the worker has it."""
    (packages,) = root.glob("opt/lobewise/lib/python3.*/site-packages")
    distributions = Distribution.discover(path=[str(packages)])
    found = {canonicalize_name(one.metadata["Name"]): one.version for one in distributions}
    print(f"{part}: {len(found)} distributions", flush=True)
    if part == "api":
        yield from (f"{name} is in it" for name in sorted(SCIENCE & (found.keys() | _folders(packages))))
    if part == "worker" and not found.keys() >= SCIENCE:
        yield f"{sorted(SCIENCE - found.keys())} are not in it"
    yield from (f"{name} is in it, and serves nobody" for name in ("pip", "wheel") if name in found)
    pinned = dict(pins(ROOT / "constraints.txt"))
    for name, version in found.items():
        if name not in OURS and pinned.get(name) != version.partition("+")[0]:
            yield f"{name} {version} is in it; constraints.txt has {pinned.get(name)}"


def _folders(packages: Path) -> set[str]:
    return {path.name.lower() for path in packages.iterdir()}


def pins(path: Path) -> Iterator[tuple[str, str]]:
    """What constraints.txt pins."""
    for line in path.read_text().splitlines():
        name, _, version = line.partition("==")
        yield canonicalize_name(name), version


def configuration(config: dict[str, Any]) -> Iterator[str]:
    """Labels, user, health check and command."""
    labels = config.get("Labels") or {}
    for label in LABELS:
        if not labels.get(f"org.opencontainers.image.{label}"):
            yield f"the label {label} is missing"
    if config.get("User") != FAMILY:
        yield f"it runs as {config.get('User')!r}, and not as {FAMILY}"
    if (config.get("Healthcheck") or {}).get("Test", ["NONE"])[0] != "CMD":
        yield "it has no health check that needs no shell"
    if not config.get("Cmd") or config["Cmd"][0] != "python":
        yield f"it starts {config.get('Cmd')}"


def history(text: str, lent: dict[str, str]) -> Iterator[str]:
    """Neither what looks like a secret nor a setting of the pip that built it."""
    yield from (f"its history has {word!r}" for word in sorted(set(SECRET.findall(text))))
    values = {word for value in lent.values() for word in value.split() if len(word) > 5}
    yield from (f"its history has {value!r}, of the machine that built it" for value in sorted(values) if value in text)

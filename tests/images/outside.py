"""pip inside of a build finds packages as pip outside does: its settings, and the local folders that they name.

Both are lent to the build alone: settings as a secret, folders as volumes. Nothing of them is in the image, and look.py
looks for them there.
"""

import ast
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

SETTING: Final = re.compile(r"(?P<section>[\w:-]+?)\.(?P<name>[\w-]+)=(?P<value>'.*'|\".*\")")
ENVIRONMENT: Final = ":env:"
NOT_LENT: Final = {"cache-dir", "require-virtualenv", "user", "target", "prefix"}


def settings(pip: Path) -> dict[str, str]:
    """What holds for every command of this pip; its environment goes before its files."""
    lines = subprocess.run([pip, "config", "list"], check=True, text=True, stdout=subprocess.PIPE).stdout
    found = [match for match in map(SETTING.fullmatch, lines.splitlines()) if match]
    found.sort(key=lambda match: match["section"] == ENVIRONMENT)
    return {
        match["name"]: str(ast.literal_eval(match["value"]))
        for match in found
        if match["section"] in ("global", ENVIRONMENT) and match["name"] not in NOT_LENT
    }


def as_file(found: dict[str, str]) -> str:
    """The same as a pip.conf."""
    lines = (f"{name} = {' '.join(value.split())}" for name, value in found.items())
    return "\n".join(["[global]", *lines, ""])


def npm_settings() -> dict[str, str]:
    """What npm of this machine says of its registry, where there is npm; the image's own brings the rest."""
    npm = shutil.which("npm")
    if npm is None:
        return {}
    asked = {name: [npm, "config", "get", name] for name in ("registry", "cafile")}
    told = {
        name: subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout.strip()
        for name, command in asked.items()
    }
    return {name: value for name, value in told.items() if value not in ("", "null", "undefined")}


def folders(found: dict[str, str]) -> list[Path]:
    """Files and folders of this machine that the settings name, each once."""
    words = (word for value in found.values() for word in value.split())
    return sorted(set(filter(Path.exists, map(_lent, filter(_is_local, words)))))


def volumes(paths: list[Path]) -> Iterator[str]:
    """buildah's options that lend them."""
    for path in paths:
        yield from ("--volume", f"{path}:{path}:ro")


def _is_local(word: str) -> bool:
    return word.startswith(("/", "file:///"))


def _lent(word: str) -> Path:
    """An index in a folder names files that lie beside it."""
    return Path(word.removeprefix("file://")).parent if word.startswith("file:///") else Path(word)

"""The page about findings names every finding there is, with its severity, and no other."""

import re
from pathlib import Path

import pipeline

SOURCE = Path(pipeline.__file__).parent
PAGE = Path(__file__).parents[2] / "docs" / "quality.md"


def test_the_page_names_every_finding() -> None:
    source = "\n".join(path.read_text(encoding="utf-8") for path in SOURCE.rglob("*.py"))
    made = set(re.findall(r"Finding\(\s*\"([a-z-]+)\"", source))
    described = set(re.findall(r"^\| `([a-z-]+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    assert len(made) > 20
    assert described == made

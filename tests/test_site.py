"""The documentation's pages can become a site; `make docs` builds it."""

import re
from pathlib import Path

import pytest

from tests.support.site_check import faults

ROOT = Path(__file__).parents[1]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A page, its style sheet and its script."""
    (tmp_path / "style.css").write_text("a { background: url('icon.svg') }")
    (tmp_path / "icon.svg").write_text("<svg/>")
    (tmp_path / "llms.txt").write_text("# Us\n\n- [page](page.html): this\n")
    (tmp_path / "page.html").write_text(
        '<link rel="stylesheet" href="style.css"><link rel="canonical" href="https://us.example/">'
        '<p>See <a href="https://elsewhere.example">elsewhere</a>.</p>'
    )
    return tmp_path


def test_a_site_that_loads_its_own_files_alone_is_well(site: Path) -> None:
    assert list(faults(site)) == []


@pytest.mark.parametrize(
    ("added", "words"),
    [
        ('<script src="https://cdn.example/a.js"></script>', "loads https://cdn.example/a.js"),
        ('<link rel="stylesheet" href="//cdn.example/a.css">', "loads //cdn.example/a.css"),
        ('<img srcset="http://cdn.example/a.png 2x">', "loads http://cdn.example/a.png"),
        ("<style>@import 'https://cdn.example/f'; </style>", "loads https://cdn.example/f"),
        ('<p style="background: url(https://cdn.example/b)">', "loads https://cdn.example/b"),
        ('<img src="gone.png">', "gone.png is not there"),
        ("<p>There are:\n- one\n- two</p>", "a list that stayed text: '- one'"),
        ('<pre class="mermaid">', "a Mermaid diagram"),
    ],
)
def test_what_is_wrong_with_a_site_is_said(site: Path, added: str, words: str) -> None:
    with (site / "page.html").open("a") as page:
        page.write(added)
    (fault,) = faults(site)
    assert fault.startswith(f"page.html: {words}")


def test_llms_txt_leads_to_pages_that_there_are(site: Path) -> None:
    (site / "page.html").unlink()
    assert list(faults(site)) == ["llms.txt: page.html is not there"]
    text = (ROOT / "llms.txt").read_text(encoding="utf-8")
    links = set(re.findall(r"\]\(([^)#\s]+)", text)) - {"openapi.json"}  # that one is made with the site
    assert len(links) > 10
    assert [link for link in links if not (ROOT / link).is_file()] == []
    # https://llmstxt.org: a title, a summary, then sections that are lists of links
    assert re.match(r"# \S.*\n\n> \S.*\n\n", text)
    for section in text.split("\n## ")[1:]:
        assert all(re.match(r"- \[[^]]+\]\(\S+\)", line) for line in section.strip().splitlines()[2:])


def test_every_page_of_docs_is_in_its_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert {page for page in pages if f"]({page})" not in index} == set()

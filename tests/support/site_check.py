"""Looks through the built documentation: `python -m tests.support.site_check build/site`.

Nothing may be loaded from elsewhere, since hospitals reach no content delivery network; all that is loaded from here,
and all that llms.txt links to, must be there; and no list may have stayed text, as dialects of Markdown differ there.
"""

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

#: The attributes that a browser fetches as it opens a page; a `link` does so unless it names a place.
LOADED = {"src", "srcset", "poster", "data", "background"}
PLACES = {"canonical", "next", "prev", "alternate", "license"}


class Loads(HTMLParser):
    """Addresses that one page loads, and what of its text looks wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.wrong: list[str] = []
        self._tag = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._tag = tag
        given = {name: value or "" for name, value in attrs}
        self.addresses += [value.split()[0] for name, value in given.items() if name in LOADED and value]
        if tag == "link" and not PLACES & set(given.get("rel", "").split()):
            self.addresses.append(given["href"])
        self.addresses += styles(given.get("style", ""))
        if "mermaid" in given.get("class", "").split():
            self.wrong.append("a Mermaid diagram: the theme loads its code from a content delivery network")

    def handle_data(self, data: str) -> None:
        if self._tag == "style":
            self.addresses += styles(data)
        if self._tag == "p" and (item := re.search(r"\n[-*] .*", data)):
            self.wrong.append(f"a list that stayed text: {item[0].strip()[:60]!r}")


def styles(text: str) -> list[str]:
    """What a style sheet loads."""
    return re.findall(r"""url\(\s*["']?([^"')]+)""", text) + re.findall(r"""@import\s+["']([^"']+)""", text)


def faults(site: Path) -> Iterator[str]:
    """A sentence for each thing that is wrong with a built site."""
    for path in sorted(site.rglob("*")):
        addresses: list[str] = []
        if path.suffix == ".html":
            page = Loads()
            page.feed(path.read_text(encoding="utf-8"))
            addresses = page.addresses
            yield from (f"{path.relative_to(site)}: {words}" for words in page.wrong)
        elif path.suffix == ".css":
            addresses = styles(path.read_text(encoding="utf-8"))
        elif path.name == "llms.txt":
            addresses = re.findall(r"\]\(([^)#\s]+)", path.read_text(encoding="utf-8"))
        for address in addresses:
            parts = urlsplit(address)
            if parts.scheme == "data":
                continue
            if parts.scheme or parts.netloc:
                yield f"{path.relative_to(site)}: loads {address}"
            elif path.name != "404.html" and not (path.parent / unquote(parts.path)).is_file():
                yield f"{path.relative_to(site)}: {address} is not there"


if __name__ == "__main__":
    site = Path(sys.argv[1])
    found = list(faults(site))
    pages = sum(1 for _ in site.rglob("*.html"))
    print("\n".join([*found, f"{pages} pages, {len(found)} faults"]))
    sys.exit(bool(found) or not pages)

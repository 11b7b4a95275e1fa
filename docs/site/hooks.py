"""What MkDocs shows: the repository's own pages where they lie, in the order of docs/README.md, and the OpenAPI page.

The site mirrors the repository, so that a link that works on a git host works here, unchanged.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Final

import fastapi_offline
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from api.app import create_app

ROOT: Final = Path(__file__).parents[2]
INDEX: Final = "docs/README.md"
DECISIONS: Final = "docs/decisions/README.md"

#: What the page shows is in theme/openapi.html.
OPENAPI_PAGE: Final = "---\ntemplate: openapi.html\ntitle: OpenAPI\n---\n# OpenAPI\n"

#: The gateway shows its /docs with the same files.
SWAGGER_FILES: Final = ("swagger-ui-bundle.js", "swagger-ui.css")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The navigation: each section of docs/README.md and its links, with the OpenAPI page and each decision."""
    nav: list[dict[str, Any]] = [{"What it is": "README.md"}, {"All pages": INDEX}]
    for line in (ROOT / INDEX).read_text(encoding="utf-8").splitlines():
        if heading := re.fullmatch(r"\*\*(.+)\*\*", line):
            nav.append({heading[1]: []})
        for target in links_of(INDEX, line):
            (pages,) = nav[-1].values()
            if target == DECISIONS:
                records = sorted(str(path.relative_to(ROOT)) for path in (ROOT / DECISIONS).parent.glob("[0-9]*.md"))
                pages.append({"Decisions": [target, *records]})
            elif PurePosixPath(target).suffix in (".md", ".ipynb"):
                pages.append(target.replace(".ipynb", ".md"))
            if target == "docs/api.md":
                pages.append("openapi.md")
    config.nav = nav
    config.extra["openapi"] = create_app().openapi()
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Every page below docs, and whatever pages link to, at its place in the repository; then what is made here."""
    pages = ["README.md", "llms.txt", *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").rglob("*.md")))]
    paths = dict.fromkeys(pages)
    for page in pages:  # grows meanwhile
        for target in links_of(page, (ROOT / page).read_text(encoding="utf-8")):
            if target not in paths and (ROOT / target).is_file():
                paths[target] = None
                if target.endswith(".md"):
                    pages.append(target)
    made = [File.generated(config, path, abs_src_path=str(ROOT / path)) for path in paths]
    for path in paths:
        if path.endswith(".ipynb"):
            page = _notebook_as_page(ROOT / path)
            made.append(File.generated(config, path.replace(".ipynb", ".md"), content=page))
    static = Path(fastapi_offline.__path__[0]) / "static"
    made += [
        File.generated(config, "openapi.md", content=OPENAPI_PAGE),
        File.generated(config, "openapi.json", content=json.dumps(config.extra["openapi"], indent=1)),
        *(File.generated(config, f"assets/{name}", abs_src_path=str(static / name)) for name in SWAGGER_FILES),
        File.generated(config, "site.css", abs_src_path=str(Path(__file__).with_name("site.css"))),
    ]
    for file in list(files):  # what lies below docs has another place here; the theme's own files stay
        if file.src_dir == config.docs_dir:
            files.remove(file)
    for file in made:
        files.append(file)
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """A link to a notebook leads to its page."""
    return re.sub(r"\]\(([^)#\s:]+)\.ipynb\)", r"](\1.md)", markdown)


def on_post_build(config: MkDocsConfig) -> None:
    """Each page's own Markdown beside its HTML, where llms.txt leads."""
    for page in links_of("llms.txt", (ROOT / "llms.txt").read_text(encoding="utf-8")):
        if page.endswith(".md"):
            (Path(config.site_dir) / page).write_bytes((ROOT / page).read_bytes())


def links_of(page: str, text: str) -> Iterator[str]:
    """Where the relative links of a page's text lead, from the root of the repository."""
    for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if "://" not in link:
            yield os.path.normpath(os.path.join(os.path.dirname(page), link))


def _notebook_as_page(path: Path) -> str:
    """Text and code, without results: a notebook is kept without them."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    sources = [(cell["cell_type"], "".join(cell["source"])) for cell in cells]
    shown = [source if kind == "markdown" else f"```python\n{source}\n```" for kind, source in sources]
    return "\n\n".join([*shown, f"[The notebook itself]({path.name}?download)"])

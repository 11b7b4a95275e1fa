"""The library stands alone: nothing of the service, nothing but its two dependencies, and it is typed."""

import ast
import sys
from pathlib import Path

import lobewise_client
from lobewise_client import AsyncClient, Client

PACKAGE = Path(lobewise_client.__file__).parent


def test_it_imports_httpx_pydantic_and_the_standard_library_alone() -> None:
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found |= {name.partition(".")[0] for name in names}
    assert found - set(sys.stdlib_module_names) == {"httpx", "lobewise_client", "pydantic"}
    assert (PACKAGE / "py.typed").exists()


def test_both_clients_have_the_same_calls() -> None:
    def calls(kind: type) -> set[str]:
        return {name for name in vars(kind) if not name.startswith("_")}

    assert calls(Client) == calls(AsyncClient)

"""SECURITY.md names tests that exist, for every threat and every risk, or says that it is open."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
NODE = re.compile(r"`((?:tests|clients/python/tests)/[\w/]+\.py(?:::\w+)*)`")
OPEN = "**open**"


def fault_of(node: str) -> str:
    """Why pytest would not find it; empty if it would."""
    name, *inner = node.split("::")
    if not (ROOT / name).is_file():
        return f"there is no {name}"
    body = ast.parse((ROOT / name).read_text(encoding="utf-8")).body
    for part in inner:
        found = [
            one
            for one in body
            if isinstance(one, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and one.name == part
        ]
        if not found:
            return f"{name} has no {part}"
        body = found[0].body
    tests = [one for one in body if isinstance(one, ast.ClassDef | ast.FunctionDef) and one.name.lower()[:4] == "test"]
    is_test = inner[-1].startswith("test_") if inner else bool(tests)
    return "" if is_test else f"{node} is no test"


def rows(heading: str) -> list[list[str]]:
    """The cells of each row of the table below a heading, without its head."""
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


@pytest.mark.parametrize("node", sorted(set(NODE.findall(PAGE))))
def test_what_it_names_is_a_test(node: str) -> None:
    assert not fault_of(node)


@pytest.mark.parametrize("heading", ["Threats", "OWASP API Security Top 10, 2023"])
def test_each_row_has_a_test_or_says_that_it_is_open(heading: str) -> None:
    for row in rows(heading):
        assert len(row) == 4, row
        assert NODE.search(row[3]) or row[3] == OPEN, row[1]
        left = NODE.sub("", row[3]).replace(OPEN, "").strip()
        assert not left, f"{left!r} is neither a test nor open"


def test_all_kinds_of_threats_and_all_ten_risks_are_there() -> None:
    assert {row[0] for row in rows("Threats")} == set("STRIDE")
    assert [row[0] for row in rows("OWASP API Security Top 10, 2023")] == [f"API{number}" for number in range(1, 11)]


@pytest.mark.parametrize(
    "node",
    [
        "tests/test_security_page.py::test_that_was_renamed",
        "tests/test_that_is_gone.py",
        "tests/jobs/test_outbound.py::TestSources::test_that_was_renamed",
        "tests/jobs/test_outbound.py::TestThatWasRenamed::test_it",
        "tests/test_security_page.py::fault_of",
        "tests/support/certificates.py",
    ],
)
def test_a_test_that_was_renamed_or_is_none_is_seen(node: str) -> None:
    assert fault_of(node)

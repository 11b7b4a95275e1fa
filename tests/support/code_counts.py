"""Counts what CONTRIBUTING asks of the source: `python -m tests.support.code_counts [PATH ...]`.

- lines of Python;
- full-line comments, `#:` of constants included, as a share of the lines;
- private functions and methods that their file names once outside of their definition, as a share of all functions:
  each is a thought of its own, or should stand where it is called. With `--names` they are listed.
"""

import argparse
import ast
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOMS: Final = ("api", "jobs", "worker", "pipeline", "training", "evaluation", "cli")


@dataclass(frozen=True)
class Function:
    path: Path
    line: int
    name: str
    lines: int
    parameters: int
    is_named_once: bool


@dataclass(frozen=True)
class Counts:
    lines: int
    comments: int
    functions: tuple[Function, ...]

    @property
    def named_once(self) -> tuple[Function, ...]:
        return tuple(function for function in self.functions if function.is_named_once)


def functions_of(path: Path, source: str) -> Iterator[Function]:
    tree = ast.parse(source)
    named: Counter[str] = Counter()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            named[node.id] += 1
        elif isinstance(node, ast.Attribute):
            named[node.attr] += 1
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            is_private = node.name.startswith("_") and not node.name.startswith("__")
            given = node.args
            parameters = len(given.posonlyargs) + len(given.args) + len(given.kwonlyargs)
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            yield Function(path, node.lineno, node.name, length, parameters, is_private and named[node.name] <= 1)


def count(paths: list[Path]) -> Counts:
    lines, comments, functions = 0, 0, []
    for path in sorted(found for given in paths for found in ([given] if given.is_file() else given.rglob("*.py"))):
        source = path.read_text(encoding="utf-8")
        lines += len(source.splitlines())
        comments += sum(line.lstrip().startswith("#") for line in source.splitlines())
        functions += functions_of(path, source)
    return Counts(lines, comments, tuple(functions))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", type=Path, default=[Path(room) for room in ROOMS])
    parser.add_argument("--names", action="store_true", help="list the functions that are named once")
    options = parser.parse_args()
    for path in [*options.paths, None]:
        counts = count(options.paths if path is None else [path])
        once, total = len(counts.named_once), len(counts.functions) or 1
        print(
            f"{path or 'together'}: {counts.lines} lines, {counts.comments} comments "
            f"({100 * counts.comments / (counts.lines or 1):.1f} %), {total} functions, {once} private ones named once "
            f"({100 * once / total:.1f} %)"
        )
    if options.names:
        for function in counts.named_once:
            print(f"{function.path}:{function.line} {function.name}, {function.lines} lines")


if __name__ == "__main__":
    main()

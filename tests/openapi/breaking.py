"""`python -m tests.openapi.breaking`: writes the document and tells what would break clients of the last release.

Found are operations, answers, properties and words that are gone, types that changed, and fields or parameters that are
required by now. `released.json` is the document of the last release; `deliberate.toml` names what is meant to break.
"""

import json
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from api.app import create_app

FOLDER: Final = Path(__file__).parent
Document = dict[str, Any]


def breaks(old: Document, new: Document) -> Iterator[str]:
    """What a client of `old` would miss in `new`, a line each."""
    for path, methods in old["paths"].items():
        for method, operation in methods.items():
            name = f"{method.upper()} {path}"
            found = new["paths"].get(path, {}).get(method)
            if found is None:
                yield f"{name}: gone"
                continue
            if found["operationId"] != operation["operationId"]:
                yield f"{name}: operationId {operation['operationId']} is gone"
            for status, answer in operation["responses"].items():
                if status not in found["responses"]:
                    yield f"{name}: {status} is gone"
                    continue
                for kind in answer.get("content", {}).keys() - found["responses"][status].get("content", {}).keys():
                    yield f"{name}: {status} {kind} is gone"
            given = operation.get("requestBody", {}).get("content", {})
            taken = found.get("requestBody", {}).get("content", {})
            for kind in sorted(given.keys() - taken.keys()):
                yield f"{name}: body {kind} is gone"
            parameters = {(p["in"], p["name"]): p for p in operation.get("parameters", [])}
            wanted = {(p["in"], p["name"]): p for p in found.get("parameters", [])}
            for key in sorted(parameters.keys() - wanted.keys()):
                yield f"{name}: parameter {key[1]} is gone"
            for key, parameter in wanted.items():
                if parameter.get("required") and not parameters.get(key, {}).get("required"):
                    yield f"{name}: parameter {key[1]} is required"
    for name in sorted(old.get("webhooks", {}).keys() - new.get("webhooks", {}).keys()):
        yield f"webhook {name}: gone"
    olds, news = old["components"]["schemas"], new["components"]["schemas"]
    for name, schema in olds.items():
        if name not in news:
            yield f"{name}: gone"
            continue
        for word in schema.get("enum", []):
            if word not in news[name].get("enum", []):
                yield f"{name}: {word} is gone"
        properties, found = schema.get("properties", {}), news[name].get("properties", {})
        for field in sorted(properties.keys() - found.keys()):
            yield f"{name}.{field}: gone"
        for field in properties.keys() & found.keys():
            before, after = _types(properties[field], olds), _types(found[field], news)
            if before != after:
                yield f"{name}.{field}: was {' or '.join(sorted(before))}, is {' or '.join(sorted(after))}"
        # Only what clients send can ask too much of them; an answer may promise more than before.
        if name.endswith(("Submission", "Request")):
            for field in sorted(set(news[name].get("required", [])) - set(schema.get("required", []))):
                yield f"{name}.{field}: required"


def _types(schema: Any, schemas: Document) -> frozenset[str]:
    """JSON's own types that a schema allows, of integers and texts with their format."""
    if "$ref" in schema:
        return _types(schemas[schema["$ref"].rsplit("/", 1)[1]], schemas)
    if kinds := schema.get("anyOf") or schema.get("oneOf"):
        return frozenset().union(*(_types(kind, schemas) for kind in kinds))
    kinds = schema.get("type", "anything")
    return frozenset([kinds] if isinstance(kinds, str) else kinds)


def main() -> int:
    """1 if something breaks that is not meant to, or if something that is named does not break."""
    document = create_app().openapi()
    (FOLDER / "openapi.json").write_text(json.dumps(document, indent=1))
    found = set(breaks(json.loads((FOLDER / "released.json").read_text()), document))
    meant = tomllib.loads((FOLDER / "deliberate.toml").read_text())
    for line in sorted(found - meant.keys()):
        print(f"breaks clients of the last release: {line}")
    for line in sorted(meant.keys() - found):
        print(f"does not break: take it from deliberate.toml: {line}")
    return int(found != meant.keys())


if __name__ == "__main__":
    sys.exit(main())

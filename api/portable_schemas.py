"""Writes a schema as generators of clients take it.

What pydantic writes is right, and most generators make less of it than there is: `Any` of a null beside a type or of a
tuple, a text of a constant, a map of anything where the keys are known, a class for each use of a list of words.
"""

from typing import Any, Final

from jobs.live.feed import ChangeType
from jobs.models import DicomProduct, MaskName

#: Lists of words that pydantic writes anew wherever they are used. Each becomes a schema with this name.
NAMED_WORDS: Final = {
    ("left_upper", "left_lower", "right_upper", "right_middle", "right_lower"): "LobeName",
    ("info", "warning", "error"): "FindingSeverity",
    ("carina", "sternum_tip"): "LandmarkName",
    ("open", "complete"): "UploadStatus",
    ("succeeded", "failed", "cancelled"): "FinalStatus",
    ("lobewise.job.succeeded", "lobewise.job.failed", "lobewise.job.cancelled"): "JobEndedType",
    tuple(f"lobewise.job.{change}" for change in ChangeType): "ChangeType",
    ("oldest", "newest"): "FeedStart",
}
#: Maps whose keys are known, by their keys and whether they hold addresses.
NAMED_MAPS: Final = {
    (tuple(MaskName), True): ("MaskLinks", "Address of each mask."),
    (tuple(MaskName), False): ("LabelsByMask", "What the numbers of each mask stand for."),
    (tuple(DicomProduct), True): ("DicomLinks", "Address of each DICOM product that there is."),
    (("self", "report"), True): ("JobEndedLinks", "Addresses of the job, and of its report where it has one."),
    (("self",), True): ("BatchEndedLinks", "Address of the batch."),
}
#: Of these, those that may lack keys.
_INCOMPLETE: Final = frozenset({"DicomLinks"})
#: What clients send.
SENT: Final = frozenset(
    {"UploadSubmission", "SourceSubmission", "Source", "BatchSubmission", "BatchItemSubmission", "UploadRequest"}
)
_REF: Final = "#/components/schemas/"
_NULL: Final = {"type": "null"}
#: What an example holds is data, and no schema.
_DATA: Final = frozenset({"example", "examples", "default", "enum"})


def make_portable(document: dict[str, Any]) -> None:
    """Rewrite each schema of `document`; what it allows stays as it is."""
    schemas = document["components"]["schemas"]
    named: dict[str, Any] = {}
    for name, schema in schemas.items():
        # A schema that is a list of words has its name already.
        schemas[name] = schema if "enum" in schema else _portable(schema, schemas, named)
    for path in document["paths"].values():
        for method in path:
            path[method] = _portable(path[method], schemas, named)
    schemas.update(named)
    # Clients made today must understand a later version, which may answer more; what they send is held to its names.
    for name, schema in schemas.items():
        if name not in SENT and schema.get("additionalProperties") is False:
            del schema["additionalProperties"]


def _portable(node: Any, schemas: dict[str, Any], named: dict[str, Any]) -> Any:
    if isinstance(node, list):
        return [_portable(item, schemas, named) for item in node]
    if not isinstance(node, dict):
        return node
    node = {key: value if key in _DATA else _portable(value, schemas, named) for key, value in node.items()}
    # Each property has its own name for a title, of which some generators would make classes.
    if isinstance(node.get("title"), str) and "properties" not in node:
        del node["title"]
    if node.get("default", ...) is None:
        del node["default"]
    if "const" in node and not isinstance(node["const"], dict):
        node["enum"] = [node.pop("const")]
    words = tuple(node["enum"]) if isinstance(node.get("enum"), list) else ()
    if words in NAMED_WORDS:
        named[NAMED_WORDS[words]] = {"type": "string", "enum": list(words)}
        return _without(node, "enum", "type") | {"$ref": _REF + NAMED_WORDS[words]}
    if isinstance(node.get("propertyNames"), dict):
        return _with_known_keys(node, schemas, named)
    items = node.get("prefixItems")
    if isinstance(items, list) and all(item == items[0] for item in items):
        return _without(node, "prefixItems") | {"items": items[0]}
    kinds = node.get("anyOf")
    if isinstance(kinds, list) and len(kinds) == 2 and _NULL in kinds:
        (kind,) = (kind for kind in kinds if kind != _NULL)
        if isinstance(kind.get("type"), str) and "enum" not in kind:
            return kind | _without(node, "anyOf") | {"type": [kind["type"], "null"]}
    return node


def _with_known_keys(node: dict[str, Any], schemas: dict[str, Any], named: dict[str, Any]) -> dict[str, Any]:
    keys = node["propertyNames"]
    words = tuple(schemas[keys["$ref"].removeprefix(_REF)]["enum"] if "$ref" in keys else keys["enum"])
    value = node["additionalProperties"]
    holds_addresses = "string" in value.get("type", ())
    name, description = NAMED_MAPS[words, holds_addresses]
    if holds_addresses:
        value = {**value, "format": "uri"}
    named[name] = {
        "type": "object",
        "description": description,
        "properties": dict.fromkeys(words, value),
    } | ({} if name in _INCOMPLETE else {"required": list(words)})
    return _without(node, "propertyNames", "additionalProperties", "type") | {"$ref": _REF + name}


def _without(node: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in node.items() if key not in keys}

"""Entries of the audit trail as FHIR resources: AuditEvent of R4, one an entry, for an audit repository."""

from collections.abc import Mapping
from typing import Final

from jobs.audit.entries import Act, Fields

_DICOM: Final = "http://dicom.nema.org/resources/ontology/DCM"
_TYPES: Final = "http://terminology.hl7.org/CodeSystem/audit-event-type"
_INTERACTIONS: Final = "http://hl7.org/fhir/restful-interaction"
_ENTITIES: Final = "http://terminology.hl7.org/CodeSystem/audit-entity-type"
_ROLES: Final = "http://terminology.hl7.org/CodeSystem/object-role"
_SOURCES: Final = "http://terminology.hl7.org/CodeSystem/security-source-type"
#: Of an identifier that is a URI itself.
_URI: Final = "urn:ietf:rfc:3986"


def _coding(system: str, code: str, display: str) -> Fields:
    return {"system": system, "code": code, "display": display}


_REST: Final = _coding(_TYPES, "rest", "RESTful Operation")
_APPLICATION: Final = _coding(_DICOM, "110100", "Application Activity")
_EXPORT: Final = _coding(_DICOM, "110106", "Export")
_SECURITY: Final = _coding(_DICOM, "110113", "Security Alert")
_ATTRIBUTES: Final = _coding(_DICOM, "110137", "User Security Attributes Changed")
_START: Final = _coding(_DICOM, "110120", "Application Start")
_STOP: Final = _coding(_DICOM, "110121", "Application Stop")
_CREATE: Final = _coding(_INTERACTIONS, "create", "create")
_READ: Final = _coding(_INTERACTIONS, "read", "read")
_SEARCH: Final = _coding(_INTERACTIONS, "search-type", "search-type")
_DELETE: Final = _coding(_INTERACTIONS, "delete", "delete")
_OPERATION: Final = _coding(_INTERACTIONS, "operation", "operation")

#: Of each act its type, its subtype, and its action: create, read, update, delete or execute.
_ACTS: Final[Mapping[Act, tuple[Fields, Fields, str]]] = {
    Act.SUBMIT: (_REST, _CREATE, "C"),
    Act.CANCEL: (_REST, _OPERATION, "U"),
    Act.DELETE: (_REST, _DELETE, "D"),
    Act.PURGE: (_REST, _DELETE, "D"),
    Act.REDELIVER: (_REST, _OPERATION, "E"),
    Act.CREATE_KEY: (_SECURITY, _ATTRIBUTES, "C"),
    Act.REVOKE_KEY: (_SECURITY, _ATTRIBUTES, "U"),
    Act.READ: (_REST, _READ, "R"),
    Act.DOWNLOAD: (_REST, _READ, "R"),
    Act.LIST: (_REST, _SEARCH, "E"),
    Act.EXPORT: (_EXPORT, _SEARCH, "R"),
    Act.LOOK: (_REST, _READ, "R"),
    Act.BEGIN: (_APPLICATION, _START, "E"),
    Act.END: (_APPLICATION, _STOP, "E"),
    Act.EXPIRE: (_APPLICATION, _DELETE, "D"),
}
#: What has no place of its own in an AuditEvent.
_DETAILS: Final = ("tenant", "part", "operation", "status", "times", "request_id", "trace_id", "hash")


def audit_event(entry: Fields) -> Fields:
    """The AuditEvent of an entry, as `verification.entries` gives it. Raises ValueError: its act is none of ours."""
    act = Act(entry["act"])
    kind, subtype, action = _ACTS[act]
    subject, address = entry.get("subject"), entry.get("address")
    agent: Fields = {
        "who": {"identifier": {"value": subject}} if subject else {"display": "not known"},
        "requestor": address is not None,
    }
    if address is not None:
        agent["network"] = {"address": address, "type": "2"}
    role = ("3", "Report") if act in (Act.READ, Act.DOWNLOAD, Act.EXPORT) else ("4", "Domain Resource")
    entity: Fields = {
        "type": _coding(_ENTITIES, "2", "System Object"),
        "role": _coding(_ROLES, *role),
        "detail": [{"type": name, "valueString": str(entry[name])} for name in _DETAILS if name in entry],
    }
    if "id" in entry:
        is_uuid = entry["kind"] in ("job", "batch", "upload")
        named = {"system": _URI, "value": f"urn:uuid:{entry['id']}"} if is_uuid else {"value": entry["id"]}
        entity["what"] = {"identifier": named, "display": entry["kind"]}
    # A fault of the service, or a call that was refused or wrong.
    failure = "8" if entry.get("status", 0) >= 500 else "4"
    return {
        "resourceType": "AuditEvent",
        "id": f"{entry['chain']}-{entry['n']}",
        "type": kind,
        "subtype": [subtype],
        "action": action,
        "recorded": entry["at"],
        "outcome": "0" if entry["outcome"] == "done" else failure,
        "agent": [agent],
        "source": {
            "observer": {"display": f"Lobewise, process {entry['chain']}"},
            "type": [_coding(_SOURCES, "4", "Application Server")],
        },
        "entity": [entity],
    }

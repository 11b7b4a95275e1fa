"""Who calls: which tenant's work they see, and what they may do with it."""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

#: The tenant of every job that was made before there were tenants, and of callers that name none.
DEFAULT_TENANT: Final = "default"
#: What a tenant's name may be: it becomes a part of blobs' paths and of Redis' keys.
TENANT_NAME: Final = r"[a-z0-9][a-z0-9-]{0,62}"


def is_tenant(name: str) -> bool:
    """Whether this may be a tenant's name."""
    return re.fullmatch(TENANT_NAME, name) is not None


class Role(StrEnum):
    """What a caller may do; no role contains another."""

    #: Hand in scans: jobs, batches, uploads and what belongs to an upload. The answer shows one's own job.
    SUBMIT = "submit"
    #: See all of the tenant's jobs, batches, their changes, results and masks.
    READ = "read"
    #: End jobs and batches before they are done.
    CANCEL = "cancel"
    #: Delete what ended, and send callbacks again.
    ADMIN = "admin"
    #: Read /metrics, which counts all tenants' work.
    METRICS = "metrics"


@dataclass(frozen=True)
class Caller:
    """One request's caller, as its key or token says."""

    tenant: str
    #: The key's id, the hashed subject of a token, or `anonymous`.
    subject: str
    roles: frozenset[Role]


#: Everybody, where access is open.
ANONYMOUS: Final = Caller(DEFAULT_TENANT, "anonymous", frozenset(Role))
#: Whom a call comes from that has no valid key or token, where the doors are shut.
NOBODY: Final = Caller(DEFAULT_TENANT, "nobody", frozenset())

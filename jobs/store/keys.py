"""Where everything lies in the object store.

```
jobs/{id}/job.json                  created once: the job is accepted
jobs/{id}/input                     the upload, written before job.json
jobs/{id}/received                  in its place where scans are de-identified; gone once that is done, or the job ended
jobs/{id}/deidentified.json         created once: which of the attempts' `input` has taken its place (`inputs`)
jobs/{id}/attempts/{n}/claim.json   created once, before the work: attempt n has begun
jobs/{id}/attempts/{n}/ended.json   created once: attempt n ended without an outcome and may publish none
jobs/{id}/attempts/{n}/report.json  and the masks, named as in `MaskName`
jobs/{id}/attempts/{n}/images/      scan and pictures, named as in `ImageName`
jobs/{id}/attempts/{n}/input        the scan without what names the patient
jobs/{id}/manifest.json             created once: the outcome
jobs/{id}/callbacks/{round}/{n}.json        created once: an attempt to tell of it
jobs/{id}/callbacks/{round}/asked.json      a redelivery was asked for; round 1 needs no asking
jobs/{id}/cancel.json               someone asked to stop
jobs/{id}/purged.json               a tombstone; all other blobs are gone
callbacks/disabled/{sha256 of the url}.json the receiver answered 410 and wants no more
idempotency/{sha256 of the key}/{n}.json    the job that a request with this key means to make (`idempotency`)
idempotency-batches/{sha256 of the key}.json  the batch that a key made
batches/{id}/pending-{id}.json      the records of its jobs, until all are accepted
batches/{id}/batch.json             created once: many scans in one call (`batches`)
batches/{id}/ended.json             created once, where somebody wants to be told: no job of it is open any more
batches/{id}/callbacks/             as those of a job
audit/{day}/{chain}/                who did what, in segments (`audit.entries`); of all tenants
results/{task}/{sha256 of the scan}/{digest}/{id}  where the result of job {id} is found again (`results`)
uploads/{id}/upload.json            a scan that comes in parts, before there is a job
uploads/{id}/parts/{n}              in a folder; S3 keeps parts where no listing shows them
uploads/{id}/scan                   all parts, joined
uploads/{id}/completed.json         created once: a job may take the scan
access/keys/{id}/key.json           created once: a key to the API, hashed (`access.keys`)
access/keys/{id}/ends/{moment}      it ends at that time, in ms since 1970; at once where that is 0
access/session-secret               created once: seals the cookies of the pages (`access.sessions`)
tenants/{tenant}/tenant.json        created once, before anything else of a tenant but `default`
tenants/{tenant}/                   all of the above, of its own
```
"""

import hashlib
from typing import Final

from jobs.access.caller import DEFAULT_TENANT, is_tenant
from jobs.errors import JobNotFoundError
from jobs.states import is_id

JOBS: Final = "jobs/"
UPLOADS: Final = "uploads/"
BATCHES: Final = "batches/"
RESULTS: Final = "results/"
ACCESS_KEYS: Final = "access/keys/"
TENANTS: Final = "tenants/"


def job_key(job_id: str, name: str) -> str:
    """Raises JobNotFoundError: what a client sent as an id is none."""
    if not is_id(job_id):
        raise JobNotFoundError(job_id)
    return f"{JOBS}{job_id}/{name}"


def attempt_key(job_id: str, attempt: int, name: str) -> str:
    return job_key(job_id, f"attempts/{attempt}/{name}")


def upload_key(upload_id: str, name: str) -> str:
    return f"{UPLOADS}{upload_id}/{name}"


def batch_key(batch_id: str, name: str) -> str:
    return f"{BATCHES}{batch_id}/{name}"


def tenant_folder(tenant: str) -> str:
    """Where all that belongs to a tenant lies; that of `default` is the whole store. Raises ValueError: no name."""
    if not is_tenant(tenant):
        raise ValueError(f"{tenant!r} is no tenant's name")
    return "" if tenant == DEFAULT_TENANT else f"{TENANTS}{tenant}/"


def hashed(text: str) -> str:
    """What a client sent, as a part of a key."""
    return hashlib.sha256(text.encode()).hexdigest()

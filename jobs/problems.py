"""Every type of problem that a client can meet, in one table.

`docs/problems.md` and the pages under `/problems/` are made from it (`python -m api.problem_docs`). An error of `jobs`
or of the gateway names its type; one of the pipeline, which knows nothing of jobs, has the slug as its `code`.
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class ProblemType:
    """A stable kind of problem (RFC 9457). Slugs and titles never change: clients decide by them.

    Attributes:
        status: of the HTTP response; None for a type that only ever ends a job.
        meaning: what has happened, in Markdown.
        remedy: what the client can do, in Markdown.
        retryable: the same request, or the same scan, may succeed later.
        ends_job: a job may fail with it.
    """

    slug: str
    status: int | None
    title: str
    meaning: str
    remedy: str
    retryable: bool = False
    ends_job: bool = False

    @property
    def uri(self) -> str:
        return f"/problems/{self.slug}"


MALFORMED_REQUEST: Final = ProblemType(
    "malformed-request",
    400,
    "The request cannot be read",
    "The body is not the multipart form or the JSON that its Content-Type promises, or it ends before its end.",
    "Send a complete `multipart/form-data` body with its boundary, or a JSON object.",
)
INVALID_PARAMETERS: Final = ProblemType(
    "invalid-parameters",
    422,
    "A parameter is missing or not valid",
    "`errors` lists every parameter that was refused. Each `pointer` is a JSON pointer (RFC 6901) into the request: "
    "`/body/…`, `/query/…` or `/header/…`.",
    "Correct the parameters that `errors` names.",
)
REQUEST_TIMEOUT: Final = ProblemType(
    "request-timeout",
    408,
    "The upload stood still for too long",
    "No byte of the body arrived for the time that `evidence.idle_seconds` says, or for too long in all it came slower "
    "than `evidence.least_bytes_per_second`. Nothing was kept.",
    "Send the scan again over a steadier connection.",
    retryable=True,
)
HEAD_TIMEOUT: Final = ProblemType(
    "head-timeout",
    408,
    "The request's headers did not come in time",
    "The first line and the headers were not complete after `evidence.head_seconds`.",
    "Send the whole request at once.",
    retryable=True,
)
URL_TOO_LONG: Final = ProblemType(
    "url-too-long",
    414,
    "The request's address is too long",
    "The address has more bytes than `evidence.limit_bytes`.",
    "Send parameters of this interface alone; what is long belongs into the body. The operator sets the limit.",
)
HEADERS_TOO_LARGE: Final = ProblemType(
    "headers-too-large",
    431,
    "The request's headers are too large",
    "There are more headers than `evidence.limit`, or they have more bytes than `evidence.limit_bytes`.",
    "Send fewer or shorter headers, cookies above all. The operator sets the limit.",
)
HOST_NOT_ALLOWED: Final = ProblemType(
    "host-not-allowed",
    421,
    "The service does not go by this name",
    "The `Host` header names a host that the operator has not listed: another name may lead here by mistake or by "
    "deceit (DNS rebinding).",
    "Use the service's own address. The operator lists names in `LOBEWISE_ALLOWED_HOSTS`, or sets "
    "`LOBEWISE_API_PUBLIC_URL`.",
)
ORIGIN_NOT_ALLOWED: Final = ProblemType(
    "origin-not-allowed",
    403,
    "Another site's page may not do this",
    "A browser says (`Origin`, `Sec-Fetch-Site`) that a page of another site sends this request, which would change "
    "something.",
    "Call the service from a page of its own, or from a program. The operator lists other sites in "
    "`LOBEWISE_API_ALLOWED_ORIGINS`.",
)
UPLOAD_TOO_LARGE: Final = ProblemType(
    "upload-too-large",
    413,
    "The upload is larger than this service takes",
    "The body has more bytes than `evidence.limit_bytes`. Nothing was kept.",
    "Compress the scan, or crop it to the chest. The operator sets the limit.",
)
UNSUPPORTED_CONTENT_TYPE: Final = ProblemType(
    "unsupported-content-type",
    415,
    "The Content-Type is not supported",
    "Jobs are created from `multipart/form-data` with a part named `file`, or from `application/json` with a `source`; "
    "uploads are announced as `application/json`.",
    "Set the Content-Type, and for a form its boundary.",
)
UNSUPPORTED_FORMAT: Final = ProblemType(
    "unsupported-format",
    415,
    "The file format is not supported",
    "The file does not begin as a NIfTI, NRRD, MetaImage or zip file does, or what a zip or gzip file holds is none of "
    "these. A single DICOM file is one slice and cannot be scored.",
    "Send `.nii`, `.nii.gz`, `.nrrd`, `.mha`, or one zip file with all slices of one DICOM series.",
    ends_job=True,
)
UPLOAD_NOT_FOUND: Final = ProblemType(
    "upload-not-found",
    404,
    "There is no such upload",
    "No upload has this id, or no longer: it was aborted, it expired, its bytes were not those announced, or a job has "
    "taken its scan.",
    "Look whether the job was created; if not, begin a new upload.",
)
UPLOAD_INCOMPLETE: Final = ProblemType(
    "upload-incomplete",
    409,
    "Parts of the upload are missing",
    "`evidence.missing_parts` have not arrived, and `evidence.wrong_parts` have another size than they must have. If "
    "both are empty, all parts are there but the upload was not completed.",
    "Ask for the upload again, send the parts that are not `received` to their new addresses, and complete it.",
)
UPLOAD_CLOSED: Final = ProblemType(
    "upload-closed",
    409,
    "The upload takes no more parts",
    "The upload is complete: its size and its sha256 were checked, so nothing of it changes any more.",
    "Create a job from it, or begin a new upload for other bytes.",
)
UPLOAD_MISMATCH: Final = ProblemType(
    "upload-mismatch",
    422,
    "The upload is not the scan announced",
    "All parts together have another size or sha256 than was announced; `evidence` has both. The upload was deleted.",
    "Compute the sha256 of the file again, then begin a new upload.",
)
WRONG_PART_SIZE: Final = ProblemType(
    "wrong-part-size",
    422,
    "The part has the wrong size",
    "Every part has `part_bytes` bytes, but for the last, which has the rest. `evidence.expected_bytes` is the size of "
    "this one. Nothing of it was kept.",
    "Send exactly the bytes of this part.",
)
URL_NOT_VALID: Final = ProblemType(
    "url-not-valid",
    403,
    "The address is expired or was changed",
    "Addresses of parts are signed, each for one part and a short time.",
    "Ask for the upload again: it has new addresses for the parts that are missing.",
)
UNAUTHENTICATED: Final = ProblemType(
    "unauthenticated",
    401,
    "The call has no key or token that is valid",
    "There is neither an `Authorization: Bearer` nor an `X-API-Key` header, or what it has is wrong, expired or "
    "revoked; which of these is not told. A token must come from the operator's issuer and be meant for this service.",
    "Send a key that the operator has given you, or a new token.",
)
FORBIDDEN: Final = ProblemType(
    "forbidden",
    403,
    "The key or token does not allow this",
    "The caller is known, and lacks the role that `evidence.role` names; or its token names no tenant.",
    "Ask the operator for a key with that role.",
)
ISSUER_UNAVAILABLE: Final = ProblemType(
    "issuer-unavailable",
    503,
    "Tokens cannot be checked now",
    "The server that issues tokens does not answer, and its keys are not known here. API keys are not affected.",
    "Try again later, as `Retry-After` says.",
    retryable=True,
)
NOT_FOUND: Final = ProblemType(
    "not-found",
    404,
    "There is nothing at this address",
    "The path, or the name of the mask in it, is not one that this service has.",
    "See `/openapi.json` for all paths.",
)
METHOD_NOT_ALLOWED: Final = ProblemType(
    "method-not-allowed",
    405,
    "The address does not take this method",
    "The path exists, but not for this HTTP method. The `Allow` header names the methods it takes.",
    "Use one of the methods in `Allow`.",
)
JOB_NOT_FOUND: Final = ProblemType(
    "job-not-found",
    404,
    "There is no such job",
    "No job with this id was ever accepted here.",
    "Check the id; it stands in the answer to `POST /v1/jobs` and in its `Location` header.",
)
JOB_PURGED: Final = ProblemType(
    "job-purged",
    410,
    "The job was deleted",
    "The job was deleted with its scan, report and masks. They cannot be brought back.",
    "Submit the scan again if you still need its scores.",
)
CURSOR_EXPIRED: Final = ProblemType(
    "cursor-expired",
    410,
    "Changes after this cursor are no longer known",
    "The feed keeps so many changes and for so long as the operator decides, and none from before a loss of the "
    "broker's data. Some that followed this cursor are gone: what is left would look complete and is not.",
    "Get a new cursor with `GET /v1/events?start=newest`, then list all jobs with `GET /v1/jobs`, then follow the "
    "cursor.",
)
IMAGE_NOT_KEPT: Final = ProblemType(
    "image-not-kept",
    404,
    "The job has no such image",
    "Scan and pictures are stored when a job succeeds, where the operator keeps them (`LOBEWISE_KEEP_IMAGES`). This "
    "job was scored by a version that did not, or its operator keeps fewer.",
    "Masks and report are there all the same. To have the images, submit the scan again with `reuse=false`.",
)
WRONG_STATE: Final = ProblemType(
    "wrong-state",
    409,
    "The job's status does not allow this",
    "Reports and masks exist only once a job has succeeded; a finished job cannot be cancelled. "
    "`evidence.status` is the status that the job has.",
    "Look at the job's `status` first. While it is `queued` or `running`, wait as `Retry-After` says.",
)
IDEMPOTENCY_KEY_REUSED: Final = ProblemType(
    "idempotency-key-reused",
    422,
    "The Idempotency-Key belongs to another request",
    "The key was used before, with another scan (compared by sha256), priority or client reference.",
    "Use a new key for every new request; repeat a key only to repeat its request.",
)
IDEMPOTENCY_IN_FLIGHT: Final = ProblemType(
    "idempotency-in-flight",
    409,
    "The first request with this Idempotency-Key is not done",
    "Another request with the same key is being received at this moment.",
    "Repeat the request after `Retry-After`; it then gets the first one's answer.",
    retryable=True,
)
SOURCE_NOT_ALLOWED: Final = ProblemType(
    "source-not-allowed",
    422,
    "Scans may not be fetched from this address",
    "The operator lists the addresses that a `source` may name, and this one is not among them; or its server "
    "redirects to one that is not, or its host is in a network that this service connects to nobody in.",
    "Upload the file, or ask the operator to allow the address.",
    ends_job=True,
)
CALLBACK_NOT_ALLOWED: Final = ProblemType(
    "callback-not-allowed",
    422,
    "This address may not be called back",
    "The operator lists the addresses that a `callback_url` may name, and this one is not among them.",
    "Leave `callback_url` out and poll, or ask the operator to allow the address.",
)
BATCH_NOT_FOUND: Final = ProblemType(
    "batch-not-found",
    404,
    "There is no such batch",
    "No batch with this id was ever accepted here, or it is older than the operator keeps them.",
    "Check the id; it stands in the answer to `POST /v1/batches` and in its `Location` header.",
)
NO_CALLBACK: Final = ProblemType(
    "no-callback",
    409,
    "The job calls nobody back",
    "The job, or the batch, was posted without a `callback_url`.",
    "Give a `callback_url` when you post the scan, or the batch.",
)
RANGE_NOT_SATISFIABLE: Final = ProblemType(
    "range-not-satisfiable",
    416,
    "The range lies outside of the file",
    "The `Range` header asks for bytes after the end. `Content-Range` and `evidence.size_bytes` say how long the file "
    "is.",
    "Ask for a range that begins inside the file.",
)
BROKER_UNAVAILABLE: Final = ProblemType(
    "broker-unavailable",
    503,
    "New jobs cannot be queued now",
    "The broker does not answer. Nothing of this request was kept; jobs accepted before are safe and can be read.",
    "Send the request again after `Retry-After`, with the same Idempotency-Key.",
    retryable=True,
)
STORAGE_UNAVAILABLE: Final = ProblemType(
    "storage-unavailable",
    503,
    "The storage does not answer",
    "The store of scans and results cannot be reached now.",
    "Send the request again after `Retry-After`, with the same Idempotency-Key.",
    retryable=True,
)
NEWER_SCHEMA: Final = ProblemType(
    "newer-schema",
    503,
    "The job needs a newer gateway",
    "The service is being upgraded: a newer part of it has stored the job in a form that this gateway cannot read.",
    "Send the request again after `Retry-After`; another gateway may answer it.",
    retryable=True,
)
QUOTA_EXCEEDED: Final = ProblemType(
    "quota-exceeded",
    429,
    "A limit of your tenant or key is reached",
    "The operator limits what a tenant and a key may use. `evidence.quota` is what there is too much of, `evidence.of` "
    "whether the `tenant` or the `key` has the limit, and `evidence.limit` how much they may have. Nothing was kept.",
    "Repeat the request after `Retry-After`. `GET /v1/quota` lists all limits and what is used of them.",
    retryable=True,
)
TOO_MANY_STREAMS: Final = ProblemType(
    "too-many-streams",
    503,
    "Too many streams of events are open",
    "This gateway has `evidence.limit` streams open, and takes no more for now.",
    "Poll the job, or try again after `Retry-After`. The operator sets the limit.",
    retryable=True,
)
TOO_MANY_UPLOADS: Final = ProblemType(
    "too-many-uploads",
    503,
    "Too many scans are on their way in",
    "This gateway takes in `evidence.limit` scans, and no more for now. Nothing was read of this one.",
    "Send it again after `Retry-After`. The operator sets the limit.",
    retryable=True,
)
TOO_MANY_CONNECTIONS: Final = ProblemType(
    "too-many-connections",
    503,
    "Too many connections are open",
    "This gateway has `evidence.limit` connections open, and takes no more for now.",
    "Try again after `Retry-After`. The operator sets the limit.",
    retryable=True,
)
CLIENT_LIMIT: Final = ProblemType(
    "client-limit",
    429,
    "This client holds too much of the service at once",
    "This client has as many `evidence.of` (connections, streams or uploads) open as one may: `evidence.limit`.",
    "Close some, or wait for them to end, then try again after `Retry-After`. The operator sets the limit.",
    retryable=True,
)
NOT_READY: Final = ProblemType(
    "not-ready",
    503,
    "The service is not ready",
    "A part is missing that jobs need: `evidence` says whether the broker and the storage answer and how many workers "
    "have their models loaded.",
    "Wait; a worker needs some seconds to load its models. If it lasts, look at the part that `evidence` shows.",
    retryable=True,
)
INTERNAL_ERROR: Final = ProblemType(
    "internal-error",
    500,
    "Something went wrong on our side",
    "This is a fault of the service. Its log has the details under the `X-Request-ID` of the answer.",
    "Try again; if it lasts, tell the operator the `X-Request-ID`.",
    retryable=True,
)
DAMAGED_FILE: Final = ProblemType(
    "damaged-file",
    None,
    "The file is damaged",
    "The file has the right format, but it is truncated, contradicts itself or holds what no scanner writes.",
    "Export the scan again and compare its sha256 with the job's `input.sha256`.",
    ends_job=True,
)
SCAN_TOO_LARGE: Final = ProblemType(
    "scan-too-large",
    None,
    "The scan is larger than this service reads",
    "The unpacked scan has more voxels or bytes than the limits in `evidence`.",
    "Crop the scan to the chest or resample it.",
    ends_job=True,
)
NOT_CHEST_CT: Final = ProblemType(
    "not-chest-ct",
    None,
    "The scan is not a CT of the chest",
    "The file can be read, but its values are not Hounsfield units, or it does not show the chest. "
    "`evidence` says what was seen.",
    "Send a CT that covers the lungs, in Hounsfield units.",
    ends_job=True,
)
LUNGS_NOT_FOUND: Final = ProblemType(
    "lungs-not-found",
    None,
    "No lungs were found in the scan",
    "The scan looks like a CT of the chest, but no lungs could be segmented in it. `evidence` says what was seen.",
    "Check that the scan covers both lungs and that it is not a localizer.",
    ends_job=True,
)

SOURCE_NOT_FOUND: Final = ProblemType(
    "source-not-found",
    None,
    "There is no scan at this address",
    "The server that `source` names says that there is no such scan, or that this service may not have it. "
    "`evidence.http_status` is its answer.",
    "Check the address, and that the service may read it.",
    ends_job=True,
)
SOURCE_TOO_LARGE: Final = ProblemType(
    "source-too-large",
    None,
    "The scan is larger than this service fetches",
    "The scan at the `source` has more bytes than `evidence.limit_bytes`.",
    "Compress the scan, or crop it to the chest. The operator sets the limit.",
    ends_job=True,
)
SOURCE_MISMATCH: Final = ProblemType(
    "source-mismatch",
    None,
    "The scan at this address is not the one announced",
    "The bytes at the `source` have another sha256 than the one given with it; `evidence` has both.",
    "Check that the address still leads to the scan that you meant.",
    ends_job=True,
)
SOURCE_UNAVAILABLE: Final = ProblemType(
    "source-unavailable",
    None,
    "The scan could not be fetched",
    "The server that `source` names cannot be found or reached, does not answer, answers with a fault of its own, is "
    "too slow, or breaks off before the end of the scan.",
    "Look after that server, then submit the scan again; or upload the file.",
    retryable=True,
    ends_job=True,
)
OUT_OF_MEMORY: Final = ProblemType(
    "out-of-memory",
    None,
    "The scan needs more memory than a worker has",
    "The memory of a worker, or of its GPU, did not suffice, nor did it when another process tried in smaller pieces. "
    "`evidence.endings` has each attempt.",
    "Crop the scan to the chest, or send thicker slices; or ask the operator for workers with more memory.",
    ends_job=True,
)
POISON: Final = ProblemType(
    "poison",
    None,
    "Every worker that began the scan was lost",
    "Every worker that began this job died or fell silent, as often as the service tries. `evidence.endings` has each "
    "attempt. Either something about the scan ends workers, or they were lost for reasons of their own.",
    "Submit the scan again; if it lasts, tell the operator the job's id.",
    retryable=True,
    ends_job=True,
)
ATTEMPTS_EXHAUSTED: Final = ProblemType(
    "attempts-exhausted",
    None,
    "The work failed too often",
    "A fault of the service ended every attempt at this job. `evidence.endings` has each of them.",
    "Submit the scan again; if it lasts, tell the operator the job's id.",
    retryable=True,
    ends_job=True,
)
DEADLINE_PASSED: Final = ProblemType(
    "deadline-passed",
    None,
    "The job was not begun in time",
    "No worker had begun the job by its `not_after`, so that it was never computed.",
    "Submit the scan again with a later `not_after`, or without one, if its scores are still of use; a more urgent "
    "`priority` waits less.",
    retryable=True,
    ends_job=True,
)

PROBLEM_TYPES: Final[tuple[ProblemType, ...]] = tuple(
    value for value in list(globals().values()) if isinstance(value, ProblemType)
)
BY_SLUG: Final = {problem.slug: problem for problem in PROBLEM_TYPES}

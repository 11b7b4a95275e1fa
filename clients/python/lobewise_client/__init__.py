"""A client of Lobewise, the service that scores lung opacities on chest CT.

from lobewise_client import Client

with Client("https://lobewise.example") as client:
    result = client.score("scan.nii.gz", priority="stat")
    print(result.report.severity.percent_opacity)
    result.save("out")
"""

from lobewise_client.aio import AsyncClient, AsyncMask, AsyncResult
from lobewise_client.callbacks import verify_callback
from lobewise_client.calls import BatchScan, Filters, OnProgress, Options, Progress
from lobewise_client.client import Client, Mask, Result
from lobewise_client.errors import (
    BusyError,
    CallbackNotVerifiedError,
    ConnectionFailedError,
    DeletedError,
    DigestMismatchError,
    InvalidAddressError,
    InvalidRequestError,
    JobCancelledError,
    JobFailedError,
    KeyReusedError,
    LobewiseError,
    NotFinishedError,
    NotFoundError,
    ProblemError,
    ScanRefusedError,
    UnreadableAnswerError,
    WrongStateError,
)
from lobewise_client.models import (
    Batch,
    BatchItem,
    Callback,
    Inspection,
    Job,
    JobEnded,
    JobProblem,
    JobStatus,
    MaskName,
    NetworkInfo,
    Priority,
    Ready,
    Report,
    SeverityScores,
    Upload,
)
from lobewise_client.retries import Retry
from lobewise_client.scans import ScanLike
from lobewise_client.version import __version__

__all__ = [
    "AsyncClient",
    "AsyncMask",
    "AsyncResult",
    "Batch",
    "BatchItem",
    "BatchScan",
    "BusyError",
    "Callback",
    "CallbackNotVerifiedError",
    "Client",
    "ConnectionFailedError",
    "DeletedError",
    "DigestMismatchError",
    "Filters",
    "Inspection",
    "InvalidAddressError",
    "InvalidRequestError",
    "Job",
    "JobCancelledError",
    "JobEnded",
    "JobFailedError",
    "JobProblem",
    "JobStatus",
    "KeyReusedError",
    "LobewiseError",
    "Mask",
    "MaskName",
    "NetworkInfo",
    "NotFinishedError",
    "NotFoundError",
    "OnProgress",
    "Options",
    "Priority",
    "ProblemError",
    "Progress",
    "Ready",
    "Report",
    "Result",
    "Retry",
    "ScanLike",
    "ScanRefusedError",
    "SeverityScores",
    "UnreadableAnswerError",
    "Upload",
    "WrongStateError",
    "__version__",
    "verify_callback",
]

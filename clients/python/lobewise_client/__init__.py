"""A client of Lobewise, the service that scores lung opacities on chest CT.

from lobewise_client import Client

with Client("https://lobewise.example") as client:
    result = client.score("scan.nii.gz", priority="stat")
    print(result.report.severity.percent_opacity)
    result.save("out")
"""

from lobewise_client.aio import AsyncClient, AsyncMask, AsyncResult
from lobewise_client.callbacks import verify_batch_callback, verify_callback
from lobewise_client.calls import BatchFilters, BatchScan, Filters, OnProgress, Options, Progress, ReportFilters
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
    BatchEnded,
    BatchItem,
    Callback,
    ChangePage,
    ExportedReport,
    Inspection,
    Job,
    JobChange,
    JobEnded,
    JobProblem,
    JobStatus,
    MaskLabels,
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
    "BatchEnded",
    "BatchFilters",
    "BatchItem",
    "BatchScan",
    "BusyError",
    "Callback",
    "CallbackNotVerifiedError",
    "ChangePage",
    "Client",
    "ConnectionFailedError",
    "DeletedError",
    "DigestMismatchError",
    "ExportedReport",
    "Filters",
    "Inspection",
    "InvalidAddressError",
    "InvalidRequestError",
    "Job",
    "JobCancelledError",
    "JobChange",
    "JobEnded",
    "JobFailedError",
    "JobProblem",
    "JobStatus",
    "KeyReusedError",
    "LobewiseError",
    "Mask",
    "MaskLabels",
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
    "ReportFilters",
    "Result",
    "Retry",
    "ScanLike",
    "ScanRefusedError",
    "SeverityScores",
    "UnreadableAnswerError",
    "Upload",
    "WrongStateError",
    "__version__",
    "verify_batch_callback",
    "verify_callback",
]

"""What can be wrong with a scan.

PipelineError                   the scan cannot be scored; the job ends `failed`, never retried
├── UnreadableScanError         the bytes are no CT that can be read
│   ├── UnsupportedFormatError  not NIfTI, NRRD, MetaImage or a DICOM series
│   ├── DamagedFileError        the right format, but broken, truncated or refused by the sandbox
│   └── ScanTooLargeError       more voxels or bytes than the limits allow
├── NotChestCTError             readable, but not a CT of the chest
└── LungsNotFoundError          a chest CT in which no lungs could be segmented

Everything else that is raised is a fault of ours and is retried.
"""

from collections.abc import Mapping
from typing import ClassVar


class PipelineError(Exception):
    """A scan that cannot be scored, with a sentence for people and evidence as data.

    `code` is the slug of a row in the service's table of problems, which has its title.
    """

    code: ClassVar[str] = "pipeline-error"

    def __init__(self, detail: str, *, evidence: Mapping[str, object] | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.evidence: dict[str, object] = dict(evidence or {})


class UnreadableScanError(PipelineError):
    code = "unreadable-scan"


class UnsupportedFormatError(UnreadableScanError):
    code = "unsupported-format"


class DamagedFileError(UnreadableScanError):
    code = "damaged-file"


class ScanTooLargeError(UnreadableScanError):
    code = "scan-too-large"


class NotChestCTError(PipelineError):
    code = "not-chest-ct"


class LungsNotFoundError(PipelineError):
    code = "lungs-not-found"

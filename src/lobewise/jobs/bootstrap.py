"""Wires the parts together, in one function."""

from lobewise.jobs.service import Jobs
from lobewise.jobs.settings import JobsSettings


def connect(settings: JobsSettings | None = None) -> Jobs:
    """Jobs over the blob store and the broker that the settings name; starts or joins the embedded server if none.

    Works with an unreachable broker too: then only what needs it fails.

    Raises:
        BlobStoreUnavailableError: the blobs cannot be reached.
    """
    raise NotImplementedError(settings)

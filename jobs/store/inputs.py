"""The scan of a job in the store: as it came, or without what names the patient.

A scan that is to be de-identified arrives under another key, `received`, so that the keys alone tell what is left to
do. Whoever has read it writes the de-identified scan into the folder of the attempt, then `deidentified.json`, which
is created once and makes that one the input, then deletes what was received. After a crash between any two of these
steps the next attempt finds either what was received or a whole input. What was received never outlives its job's end.
"""

import hashlib
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from pathlib import Path

from jobs import states
from jobs.errors import StorageUnavailableError
from jobs.models import SCHEMA_VERSION, JobRecord, Model, SchemaVersion, Sha256
from jobs.settings import JobsSettings
from jobs.store.keys import attempt_key, job_key
from jobs.store.object_store import ObjectStore

RECEIVED = "received"


class DeidentifiedInput(Model):
    """`deidentified.json`: the scan that took the place of the one that came, whose digest is in the record."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    key: str
    sha256: Sha256
    size_bytes: int
    at: datetime


def input_key(job_id: str, settings: JobsSettings) -> str:
    """Where the scan of a job to come is written to."""
    return job_key(job_id, RECEIVED if settings.deidentify == "basic" else "input")


class InputKind(Enum):
    """What a stored scan is."""

    #: As it came, and stays so.
    KEPT = "kept"
    #: As it came, and shall not stay so.
    RECEIVED = "received"
    #: Without what names the patient.
    DEIDENTIFIED = "deidentified"


@dataclass(frozen=True)
class Inputs:
    """Every method raises StorageUnavailableError."""

    blobs: ObjectStore

    def read(self, record: JobRecord, path: Path) -> InputKind:
        """Copy the scan to `path`, checked against its sha256.

        Raises FileNotFoundError: there is none.
        """
        try:
            self.blobs.read_file(job_key(record.id, "input"), path)
        except FileNotFoundError:
            pass
        else:
            _check(path, record.input.sha256)
            return InputKind.KEPT
        if self._read_deidentified(record.id, path):
            return InputKind.DEIDENTIFIED
        try:
            self.blobs.read_file(job_key(record.id, RECEIVED), path)
        except FileNotFoundError:
            if self._read_deidentified(record.id, path):  # another attempt has just done it
                return InputKind.DEIDENTIFIED
            raise
        _check(path, record.input.sha256)
        return InputKind.RECEIVED

    def replace(self, job_id: str, attempt: int, path: Path) -> None:
        """Keep the scan at `path` in place of the one that came, unless another attempt did so before."""
        key = attempt_key(job_id, attempt, "input")
        sha256 = self.blobs.write_file(key, path)
        document = DeidentifiedInput(key=key, sha256=sha256, size_bytes=path.stat().st_size, at=states.now())
        if not self.blobs.create(job_key(job_id, "deidentified.json"), document.stored()):
            self.blobs.delete(key)
        self.delete_received(job_id)

    def delete_received(self, job_id: str) -> None:
        """Harmless where there is nothing."""
        self.blobs.delete(job_key(job_id, RECEIVED))

    def _read_deidentified(self, job_id: str, path: Path) -> bool:
        document = self.blobs.read_document(DeidentifiedInput, job_key(job_id, "deidentified.json"))
        if document is None:
            return False
        self.blobs.read_file(document.key, path)
        _check(path, document.sha256)
        self.delete_received(job_id)  # the attempt that made it may have died before
        return True


def _check(path: Path, sha256: str | None) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 not in (None, found):
        raise StorageUnavailableError("the blob store gave other bytes than it took")

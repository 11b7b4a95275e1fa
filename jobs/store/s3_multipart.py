"""What obstore does not do on S3: uploads in parts that clients send, and addresses signed with their parameters.

obstore 0.12 signs a method and a key alone, no query (`partNumber`, `uploadId`) and no header, so botocore does this.
Everything else goes through `ObjectStore`. Credentials come from the `AWS_*` variables, as obstore reads them, or from
where the AWS tools find them: a web identity, a container's role, the instance.
"""

import copy
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Self

import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from jobs.errors import StorageUnavailableError
from jobs.models import UploadRecord
from jobs.proxies import proxy_of, s3_endpoint
from jobs.states import ReceivedPart
from jobs.store.keys import upload_key
from jobs.store.object_store import Encryption

#: Of an upload that was completed or aborted: a call that is repeated after a crash meets it.
_GONE: Final = "NoSuchUpload"


@dataclass(frozen=True)
class PartUpload:
    """A multipart upload of S3 that has neither been completed nor aborted."""

    key: str
    multipart_id: str
    begun_at: datetime


class S3Bucket:
    """Keys are relative to the prefix of the store, as in `ObjectStore`. Raises StorageUnavailableError."""

    def __init__(
        self, bucket: str, prefix: str, public_endpoint: str | None = None, encryption: Encryption | None = None
    ) -> None:
        """`public_endpoint` is where clients reach the bucket, if not where we do."""
        self._encryption = {} if encryption is None else {"ServerSideEncryption": encryption.kind}
        if encryption is not None and encryption.key_id is not None:
            self._encryption["SSEKMSKeyId"] = encryption.key_id
        self._bucket = bucket
        self._prefix = prefix.strip("/") + "/" if prefix.strip("/") else ""
        self._client = _client(s3_endpoint())
        self._signer = _client(public_endpoint) if public_endpoint else self._client

    def within(self, prefix: str) -> Self:
        """What lies below a prefix, over the same connections."""
        bucket = copy.copy(self)
        bucket._prefix = self._prefix + prefix
        return bucket

    def create(self, upload_id: str) -> str:
        """Start an upload in parts; the result is its id at S3."""
        with _unavailable():
            at = self._at(upload_key(upload_id, "scan"))
            # Only here: S3 takes it from here for every part, whoever sends it.
            multipart_id: str = self._client.create_multipart_upload(**at, **self._encryption)["UploadId"]
        return multipart_id

    def received(self, upload: UploadRecord) -> dict[int, ReceivedPart]:
        """The parts that have arrived, by number; none if the upload was completed or aborted.

        Of one that was sent again some servers list both: the later one counts.
        """
        found: dict[int, ReceivedPart] = {}
        with _unavailable(ignore=_GONE):
            pages = self._client.get_paginator("list_parts").paginate(**self._of(upload))
            listed = [part for page in pages for part in page.get("Parts", ())]
            for part in sorted(listed, key=lambda part: part["LastModified"]):
                found[part["PartNumber"]] = ReceivedPart(part["Size"], part["ETag"])
        return found

    def url(self, upload: UploadRecord, number: int, seconds: int) -> str:
        """Where the client may PUT a part of exactly its size, for some seconds."""
        # With its length signed S3 itself refuses a longer one; else a client could store 5 GB at every address.
        part = {"PartNumber": number, "ContentLength": upload.part_sizes_bytes[number]}
        return self._signed("upload_part", {**self._of(upload), **part}, seconds)

    def join(self, upload: UploadRecord, parts: Mapping[int, ReceivedPart]) -> str:
        """Make one blob of the parts; the result is its key. Harmless when that was done before."""
        listed = [{"PartNumber": number, "ETag": part.tag} for number, part in sorted(parts.items())]
        with _unavailable(ignore=_GONE):
            self._client.complete_multipart_upload(**self._of(upload), MultipartUpload={"Parts": listed})
        return upload_key(upload.id, "scan")

    def delete(self, upload: UploadRecord) -> None:
        """Delete all parts; their addresses are worth nothing then."""
        self.abort(upload_key(upload.id, "scan"), upload.multipart_id or "")

    def abort(self, key: str, multipart_id: str) -> None:
        """As `delete`, for what `unfinished` has found."""
        with _unavailable(ignore=_GONE):
            self._client.abort_multipart_upload(**self._at(key), UploadId=multipart_id)

    def unfinished(self, folder: str) -> Iterator[PartUpload]:
        """Every upload in parts below `folder` that was begun and not ended, also those of writers that crashed."""
        with _unavailable():
            pages = self._client.get_paginator("list_multipart_uploads")
            for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix + folder):
                for item in page.get("Uploads", ()):
                    yield PartUpload(item["Key"].removeprefix(self._prefix), item["UploadId"], item["Initiated"])

    def file_url(self, key: str, file_name: str, seconds: int) -> str:
        """GET the blob here, to be saved under `file_name`."""
        shown = {
            "ResponseContentDisposition": f'attachment; filename="{file_name}"',
            "ResponseContentType": "application/octet-stream",
            "ResponseCacheControl": "no-store",
        }
        return self._signed("get_object", {**self._at(key), **shown}, seconds)

    def _signed(self, operation: str, parameters: Mapping[str, object], seconds: int) -> str:
        with _unavailable():
            url: str = self._signer.generate_presigned_url(operation, Params=parameters, ExpiresIn=seconds)
        return url

    def _at(self, key: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._prefix + key}

    def _of(self, upload: UploadRecord) -> dict[str, str]:
        return {**self._at(upload_key(upload.id, "scan")), "UploadId": upload.multipart_id or ""}


def _client(endpoint: str | None) -> Any:
    """One client; botocore's may be used by many threads."""
    virtual = os.environ.get("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "").lower() in ("1", "true")
    config = Config(
        signature_version="s3v4",
        s3={"addressing_style": "virtual" if virtual else "path"},
        retries={"total_max_attempts": 4, "mode": "standard"},
        connect_timeout=2,
        read_timeout=300,  # a store may take minutes to join the parts
        request_checksum_calculation="when_required",  # a signed address must not ask its user for a checksum
        response_checksum_validation="when_required",
        # botocore reads the environment itself, and would send what is meant for this machine to a proxy.
        proxies={} if endpoint is not None and proxy_of(endpoint) is None else None,
    )
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    return botocore.session.get_session().create_client(
        "s3", endpoint_url=endpoint or None, region_name=region, config=config
    )


@contextmanager
def _unavailable(ignore: str | None = None) -> Iterator[None]:
    """Raises StorageUnavailableError for every error of S3 but one code, which is no fault."""
    try:
        yield
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        if code != ignore:
            raise StorageUnavailableError(f"the blob store answers {code}") from error
    except BotoCoreError as error:
        raise StorageUnavailableError(f"the blob store does not answer: {type(error).__name__}") from error

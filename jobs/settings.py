"""What an operator decides, read from the environment: `LOBEWISE_<NAME>`, for the gateway `LOBEWISE_API_<NAME>`.

A secret may lie in a file named as its variable (`LOBEWISE_SIGNING_KEY`, in capitals or not) in the folder
`LOBEWISE_SECRETS_DIR`, by default `/run/secrets`: where Docker and Kubernetes put them. The environment goes first.
"""

import difflib
import os
import re
from base64 import b64decode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import (
    AliasChoices,
    Field,
    HttpUrl,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from jobs.allowlist import CALLBACK_SCHEMES, SOURCE_SCHEMES, checked, is_allowed
from jobs.audit.entries import AuditLevel
from jobs.errors import SettingsError
from jobs.logs import LogFormat, LogLevel
from jobs.proxies import is_loopback

MIB: Final = 1 << 20
GIB: Final = 1 << 30

SECRETS_VARIABLE: Final = "LOBEWISE_SECRETS_DIR"
SECRETS_DIR: Final = Path("/run/secrets")
#: Variables of ours that are no settings of a process: of the client, of the command line, of the tests.
OTHERS: Final = (
    SECRETS_VARIABLE,
    "LOBEWISE_SERVICE",
    "LOBEWISE_API_KEY",
    "LOBEWISE_SUPERVISOR_PID",
    "LOBEWISE_DATA",
)

#: What `LOBEWISE_ALLOWED_HOSTS` may have.
HOST_NAME: Final = re.compile(r"(?:\*\.)?[a-z0-9._-]+|\[?[0-9a-f:.]+\]?")
#: A prefix of paths, without a slash at its end.
PREFIX: Final = re.compile(r"(?:/(?!\.\.?(?:/|$))[A-Za-z0-9._~-]+)+")
ForwardedHeader = Literal["forwarded", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-forwarded-prefix"]

_SCHEMES: Final = {"redis_url": ("redis://", "rediss://", "unix://"), "blob_url": ("file:///", "s3://")}

Settings = TypeVar("Settings", bound=BaseSettings)


class JobsSettings(BaseSettings):
    """Where jobs live and how long things may take."""

    model_config = SettingsConfigDict(env_prefix="LOBEWISE_", extra="ignore", populate_by_name=True, frozen=True)

    data_dir: Path = Field(
        default=Path("lobewise-data"), description="folder of the embedded server and of the local blobs"
    )
    redis_url: str | None = Field(
        default=None,
        validation_alias=AliasChoices("LOBEWISE_REDIS_URL", "REDIS_URL"),
        description="a Redis or Valkey server; without it one is embedded in `data_dir`",
    )
    blob_url: str | None = Field(
        default=None,
        description="`file:///folder` or `s3://bucket/prefix` (credentials as the AWS tools read them); "
        "without it the folder `blobs` in `data_dir`",
    )
    # Scans and reports are of patients: neither the group nor the world of a machine may read them.
    umask: str = Field(
        default="077",
        pattern=r"^0?[0-7]{3}$",
        description="of the files of all processes, as umask(1) takes it; `027` where they run as several users of one "
        "group",
    )
    blob_encryption: Literal["AES256", "aws:kms", "aws:kms:dsse"] | None = Field(
        default=None,
        description="S3 is asked to encrypt what it keeps: `AES256` with keys of its own, `aws:kms` or `aws:kms:dsse` "
        "with one of KMS; without it the bucket's own default counts",
    )
    blob_encryption_key: str | None = Field(
        default=None, description="the key of KMS, by id or ARN; without it the one that the bucket has"
    )
    quota_requests_per_minute: NonNegativeInt = Field(
        default=0, description="requests that each tenant may make in a minute; 0 is no limit, here and below"
    )
    quota_upload_bytes_per_day: NonNegativeInt = Field(
        default=0, description="bytes of scans that each tenant may send in a day"
    )
    quota_waiting_jobs: NonNegativeInt = Field(default=0, description="queued jobs that each tenant may have")
    quota_running_jobs: NonNegativeInt = Field(
        default=0, description="jobs of each tenant that workers have at once; others wait for their turn"
    )
    quota_storage_bytes: NonNegativeInt = Field(
        default=0, description="bytes of scans and results that each tenant may have stored"
    )
    key_quota_requests_per_minute: NonNegativeInt = Field(
        default=0, description="requests that each key, or subject of a token, may make in a minute"
    )
    key_quota_upload_bytes_per_day: NonNegativeInt = Field(
        default=0, description="bytes of scans that each key may send in a day"
    )
    quotas_file: Path | None = Field(
        default=None,
        description="TOML with other limits of single tenants and keys (docs/operations.md), read anew when changed",
    )
    max_upload_bytes: PositiveInt = Field(default=2 * GIB, description="larger scans are refused")
    # Three heartbeats may be late or lost before a worker that lives loses its job.
    lease_seconds: PositiveFloat = Field(default=20.0, description="a worker silent for longer has lost its job")
    heartbeat_seconds: PositiveFloat = Field(default=5.0, description="how often a worker renews its lease")
    max_attempts: PositiveInt = Field(
        default=3, description="the last failed attempt ends the job; attempts that were requeued do not count"
    )
    retry_seconds: PositiveFloat = Field(default=5.0, description="pause before the second attempt, then doubled")
    deidentify: Literal["off", "basic"] = Field(
        default="off",
        description="`basic`: the worker that has read an uploaded scan replaces it in the store by one without what "
        "names the patient (DICOM PS3.15 Basic Profile; texts of other formats); what cannot be replaced is deleted "
        "when the job ends. `off`: scans are kept as they came",
    )
    deidentify_secret: SecretStr | None = Field(
        default=None,
        min_length=32,
        description="UIDs are mapped under it, the same for all workers. Without it one is made in `data_dir`",
    )
    reuse_results: bool = Field(
        default=True,
        description="whether a scan that was scored before, by the same software and weights, is given that result",
    )
    keep_images: Literal["all", "preview", "none"] = Field(
        default="all",
        description="what is stored beside report and masks to look at a result with: `all` has the CT on the masks' "
        "grid, a coarse one and pictures; `preview` leaves out the CT itself, which is the large one; `none` stores "
        "and answers none of them",
    )
    hard_limit_seconds: PositiveInt = Field(default=1800, description="an attempt that takes longer is killed")
    soft_limit_seconds: PositiveInt = Field(
        default=1500, description="an attempt that takes longer is interrupted and counts as failed"
    )
    # None: an attempt that is requeued is work done twice. Set it where nodes go before a scan could end.
    drain_seconds: PositiveFloat | None = Field(
        default=None,
        description="a worker that is told to stop (SIGTERM) requeues its job after that time; without it, it "
        "finishes the job",
    )
    deaf_seconds: PositiveFloat = Field(
        default=10.0, description="an idle worker that gets none of the messages in the queues for so long starts anew"
    )
    cancel_grace_seconds: PositiveFloat = Field(default=10.0, description="then a cancelled attempt is killed")
    reap_seconds: PositiveFloat = Field(default=10.0, description="how often lost jobs are looked for")
    in_flight_seconds: PositiveFloat = Field(
        default=120.0, description="then a retry may take over an idempotency key whose first request never ended"
    )
    # Short: a client waits for it at each call while the broker is down, and reads go on without it.
    broker_timeout_seconds: PositiveFloat = Field(default=1.0, description="then a silent broker counts as down")
    # Empty: a service that fetches any address for anybody reaches hosts that its clients cannot.
    source_allowlist: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="prefixes of addresses that `source` may name, separated by spaces; none are allowed by default",
    )
    # Empty: whoever answers for an allowed name in DNS could lead us to a machine that only we reach.
    outbound_networks: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="networks that are not public and have allowed hosts, such as `10.20.0.0/16 fd12:3456::/32`; "
        "without them sources and callbacks reach public addresses, and those that an allow-list has as a number",
    )
    max_source_bytes: PositiveInt = Field(default=2 * GIB, description="a larger `source` fails its job")
    source_seconds: PositiveFloat = Field(
        default=900.0, description="a `source` that takes longer fails its job, at most four fifths of the soft limit"
    )
    # Half a megabit: a server that drips would hold a worker until the time is over.
    source_bytes_per_second: NonNegativeInt = Field(
        default=64 << 10, description="a `source` that is slower, after its first minute, fails its job"
    )
    upload_part_bytes: int = Field(
        default=16 * MIB, ge=5 * MIB, description="size of the parts of an upload; S3 takes none below 5 MiB"
    )
    upload_seconds: PositiveInt = Field(
        default=24 * 3600, description="an upload that has not become a job by then is deleted"
    )
    # Whoever has such an address needs nothing else, and it stands in logs of proxies: so it is good for minutes.
    url_seconds: PositiveInt = Field(default=900, description="how long a signed address of a part or a mask is good")
    signing_key: SecretStr | None = Field(
        default=None,
        min_length=32,
        description="signs the addresses of parts in a local folder; the same for all gateways. "
        "Without it one is made in `data_dir`",
    )
    blob_public_endpoint: str | None = Field(
        default=None, description="the S3 endpoint as clients reach it, if not as this service does"
    )
    callback_allowlist: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="prefixes of addresses that `callback_url` may name, separated by spaces; none are allowed by "
        "default. `http://` only where a prefix says so",
    )
    callback_secrets: SecretStr | None = Field(
        default=None,
        description="`whsec_` and base64 of 24 to 64 bytes; several, separated by spaces, all sign, so that receivers "
        "can change over one by one. Without it one is made in `data_dir`",
    )
    callback_timeout_seconds: PositiveFloat = Field(default=15.0, description="then a silent receiver has not answered")
    callback_retry_seconds: Annotated[tuple[PositiveFloat, ...], NoDecode] = Field(
        default=(5.0, 300.0, 1800.0, 7200.0, 18000.0, 36000.0, 50400.0, 72000.0, 86400.0),
        description="pauses between the attempts at a callback, a fifth more or less; after the last it has failed",
    )
    callback_concurrency: PositiveInt = Field(
        default=32, description="callbacks that a sender has under way at once, at most a quarter of them to one host"
    )
    retention_seconds: PositiveInt | None = Field(
        default=None,
        description="a finished job is deleted after that time, with its scan; without it, or empty, jobs are kept",
    )
    max_tenants: PositiveInt = Field(
        default=100,
        description="how many tenants there may be beside `default`; a caller of one more is refused",
    )
    # Tombstones end too: in a busy service they would be most of what there is to list.
    tombstone_seconds: PositiveInt = Field(
        default=30 * 24 * 3600, description="how long a deleted job answers 410; then it is forgotten and answers 404"
    )
    # 100 bytes each in Redis.
    feed_events: PositiveInt = Field(
        default=100_000, description="how many changes `GET /v1/events` keeps, about; a job makes three or four"
    )
    feed_seconds: PositiveInt = Field(
        default=7 * 24 * 3600, description="how long it keeps them; a client that stays away for longer starts anew"
    )
    sweep_seconds: PositiveFloat = Field(
        default=600.0, description="how often expired uploads, what crashes left and jobs past retention are deleted"
    )
    audit: AuditLevel = Field(
        default=AuditLevel.READS,
        description="what the audit trail records: `off`, `changes` (submitted, cancelled, deleted, refused), `reads` "
        "(who was given results, ended jobs, lists and exports, too) or `all` (every poll)",
    )
    audit_seconds: PositiveFloat = Field(
        default=5.0, description="how long entries about reads wait for others; a process that is killed loses them"
    )
    audit_keys: SecretStr | None = Field(
        default=None,
        description="seals the audit trail against who can rewrite all of the storage: a text of 32 characters or "
        "more; several, separated by spaces, verify, and the first one seals",
    )
    audit_retention_days: PositiveInt | None = Field(
        default=None, description="older days of the audit trail are deleted; without it they are kept"
    )
    log_format: LogFormat = Field(
        default="auto", description="`json`, `text`, or `auto`: text on a terminal, JSON elsewhere"
    )
    log_level: LogLevel = Field(default="INFO", description="`DEBUG`, `INFO`, `WARNING` or `ERROR`")
    liveness_file: Path | None = Field(default=None, description="workers and senders touch it while they live")
    device: str = Field(default="auto", description="where the networks run: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`")
    concurrency: PositiveInt = Field(default=1, description="processes of a worker, each with models of its own")
    lung_stage: Literal["di2in", "lungmask"] = Field(
        default="di2in", description="who draws lungs and lobes; `lungmask` needs the extra of that name"
    )
    sandbox: Literal["auto", "required"] = Field(
        default="auto",
        description="`required`: a worker starts only where the kernel keeps the process that reads scans from other "
        "files, the network and other processes; `auto`: it starts, and warns of what is missing",
    )
    weights_dir: Path | None = Field(default=None, description="other weights than those that come with the package")

    @field_validator("retention_seconds", mode="before")
    @classmethod
    def _empty_is_none(cls, value: object) -> object:
        return None if value == "" else value

    @field_validator("redis_url", "blob_url")
    @classmethod
    def _require_scheme(cls, url: str | None, info: ValidationInfo) -> str | None:
        *others, last = schemes = _SCHEMES[info.field_name or ""]
        if url is not None and not url.startswith(schemes):
            raise ValueError(f"it must begin with {', '.join(others)} or {last}")
        return url

    @field_validator("callback_secrets")
    @classmethod
    def _require_secrets(cls, secrets: SecretStr | None) -> SecretStr | None:
        for text in (secrets.get_secret_value().split() or [""]) if secrets is not None else ():
            try:
                is_right = 24 <= len(b64decode(text.removeprefix("whsec_"), validate=True)) <= 64
            except ValueError:
                is_right = False
            if not is_right or not text.startswith("whsec_"):
                raise ValueError(
                    "each must be whsec_ and the base64 of 24 to 64 bytes, as `openssl rand -base64 32` gives"
                )
        return secrets

    @field_validator("audit_keys")
    @classmethod
    def _require_long_keys(cls, keys: SecretStr | None) -> SecretStr | None:
        if keys is not None and not all(len(text) >= 32 for text in keys.get_secret_value().split() or [""]):
            raise ValueError("each must have 32 characters or more, as `openssl rand -base64 32` gives")
        return keys

    @field_validator(
        "source_allowlist", "callback_allowlist", "callback_retry_seconds", "outbound_networks", mode="before"
    )
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(value.split()) if isinstance(value, str) else value

    @field_validator("source_allowlist", "callback_allowlist")
    @classmethod
    def _require_matchable(cls, entries: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        schemes = SOURCE_SCHEMES if info.field_name == "source_allowlist" else CALLBACK_SCHEMES
        return tuple(checked(entry, schemes) for entry in entries)

    @field_validator("outbound_networks")
    @classmethod
    def _require_networks(cls, entries: tuple[str, ...]) -> tuple[str, ...]:
        found = []
        for entry in entries:
            try:
                network = ip_network(entry, strict=False)
            except ValueError as error:
                raise ValueError(
                    f"{entry!r} is no network: each must be one such as 10.20.0.0/16, or an address"
                ) from error
            if network.prefixlen < (8 if network.version == 4 else 7):
                raise ValueError(f"{entry!r} is a large part of all addresses: name the networks that have your hosts")
            found.append(str(network))
        return tuple(found)

    @model_validator(mode="after")
    def _require_encryption(self) -> Self:
        # A switch that does nothing would be believed.
        if self.blob_encryption is not None and not (self.blob_url or "").startswith("s3://"):
            raise ValueError(
                "LOBEWISE_BLOB_ENCRYPTION is for a bucket (LOBEWISE_BLOB_URL=s3://...): a folder is encrypted by its "
                "file system (docs/patient-data.md)"
            )
        if self.blob_encryption_key is not None and self.blob_encryption in (None, "AES256"):
            raise ValueError("LOBEWISE_BLOB_ENCRYPTION_KEY needs LOBEWISE_BLOB_ENCRYPTION=aws:kms or aws:kms:dsse")
        return self

    @model_validator(mode="after")
    def _require_own_records_apart(self) -> Self:
        # A source there would be another's scan: the bucket's key is ours, whoever asks.
        own = (self.blob_url or "").rstrip("/")
        records = [own, *(f"{own}/{folder}" for folder in ("jobs", "tenants", "uploads"))]
        for entry in self.source_allowlist if own.startswith("s3:") else ():
            is_above = any(is_allowed(where, (entry,)) for where in records)
            if is_above or any(is_allowed(entry, (where,)) for where in records[1:]):
                raise ValueError(f"LOBEWISE_SOURCE_ALLOWLIST has {entry!r}, which allows records of LOBEWISE_BLOB_URL")
        return self

    @model_validator(mode="after")
    def _require_order(self) -> Self:
        if self.heartbeat_seconds >= self.lease_seconds:
            raise ValueError(
                f"LOBEWISE_HEARTBEAT_SECONDS ({self.heartbeat_seconds:g}) must be below LOBEWISE_LEASE_SECONDS "
                f"({self.lease_seconds:g}), or every worker loses its jobs"
            )
        if self.soft_limit_seconds >= self.hard_limit_seconds:
            raise ValueError(
                f"LOBEWISE_SOFT_LIMIT_SECONDS ({self.soft_limit_seconds}) must be below LOBEWISE_HARD_LIMIT_SECONDS "
                f"({self.hard_limit_seconds}), or no attempt is ever interrupted"
            )
        return self


class ApiSettings(BaseSettings):
    """Where the gateway listens and how long it lets things take."""

    model_config = SettingsConfigDict(env_prefix="LOBEWISE_API_", extra="ignore", populate_by_name=True, frozen=True)

    # The loopback address: there is no authentication in front of patients' scans until a proxy brings it.
    host: str = Field(default="127.0.0.1", description="address to listen on; 0.0.0.0 lets other machines in")
    port: int = Field(default=8000, ge=0, le=65535, description="port to listen on; 0 takes any free one")
    root_path: str = Field(
        default="",
        description="prefix of the path before a proxy, such as /lobewise, which that may strip or leave; without it "
        "the path of `LOBEWISE_API_PUBLIC_URL`",
    )
    public_url: HttpUrl | None = Field(
        default=None,
        description="what the links in answers begin with; without it they begin with the request's Host header",
    )
    forwarded_allow_ips: str = Field(
        default="127.0.0.1",
        description="addresses and networks of the proxies whose headers are believed, separated by commas; `*` is all",
    )
    # Few proxies take away what they do not set, so a header more would be the client's word.
    forwarded_headers: Annotated[tuple[ForwardedHeader, ...], NoDecode] = Field(
        default=("x-forwarded-for", "x-forwarded-proto"),
        description="which of their headers, separated by spaces; name those alone that the proxy writes itself, "
        "whatever its client sent: `x-forwarded-for`, `x-forwarded-proto`, `x-forwarded-host`, `x-forwarded-prefix`, "
        "or `forwarded` (RFC 7239) in place of the first three",
    )
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        validation_alias=AliasChoices("LOBEWISE_ALLOWED_HOSTS"),
        description="names that a request's Host header may have, without ports and separated by spaces, "
        "`*.example.org` for all below one; others get 421. `localhost`, the address that is called, and the hosts of "
        "`LOBEWISE_API_HOST` and `LOBEWISE_API_PUBLIC_URL` always may. Without it they alone may where the gateway "
        "listens on the loopback address, and any elsewhere",
    )
    allowed_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="origins of other sites (`https://viewer.example.org`), separated by spaces, whose pages may have "
        "a browser send what changes something; others get 403",
    )
    # What a request is taken for costs memory and time before anybody knows who sends it.
    max_header_bytes: PositiveInt = Field(
        default=64 << 10, description="the first line and all headers of a request; more gets 431"
    )
    max_headers: PositiveInt = Field(default=100, description="how many headers a request may have; more gets 431")
    max_url_bytes: PositiveInt = Field(default=8 << 10, description="length of a request's address; longer gets 414")
    head_seconds: PositiveFloat = Field(
        default=20.0,
        description="headers that are not complete by then end in 408, and a new connection without a byte is closed",
    )
    max_connections: PositiveInt = Field(
        default=2048, description="how many connections may be open at once; others get 503"
    )
    # Half of each, or a quarter of the connections, so that no client alone shuts the others out.
    max_connections_per_client: PositiveInt = Field(
        default=512,
        description="how many connections one address (of IPv6: one /64 network) may have open at once; others get "
        "429. Proxies, those of `LOBEWISE_API_FORWARDED_ALLOW_IPS`, have no such limit",
    )
    max_streams_per_client: PositiveInt = Field(
        default=256,
        description="how many streams of events one client may have open at once; others get 429. A client is its key "
        "or token, or where there is none its address, as a trusted proxy tells it",
    )
    max_waiting_per_client: PositiveInt = Field(
        default=32, description="how many requests of one client may wait at once; others get 202"
    )
    max_uploads_per_client: PositiveInt = Field(
        default=64, description="how many scans of one client may be on their way in at once; others get 429"
    )
    max_wait_seconds: NonNegativeInt = Field(
        default=60, description="the longest `Prefer: wait` that is granted; 0 grants none"
    )
    max_waiting: PositiveInt = Field(default=64, description="how many requests may wait at once; others get 202")
    max_streams: PositiveInt = Field(default=512, description="how many streams of events may be open at once")
    max_uploads: PositiveInt = Field(
        default=128,
        description="how many scans may be on their way in at once; others get 503. Each costs about 1 MiB of memory, "
        "and 16 MiB more where it goes to a bucket",
    )
    # Not for ever: a stream holds its gateway when that is replaced, and a proxy's connection.
    stream_seconds: PositiveFloat = Field(
        default=3600.0, description="a stream of events is ended then; its client comes back and misses nothing"
    )
    keep_alive_seconds: PositiveFloat = Field(
        default=15.0, description="a stream without events gets a comment that often, so that proxies keep it open"
    )
    poll_seconds: PositiveInt = Field(default=2, description="Retry-After of a job that is not finished")
    unavailable_seconds: PositiveInt = Field(default=5, description="Retry-After while a part is down")
    idle_seconds: PositiveFloat = Field(default=60.0, description="a body that stands still for longer ends in 408")
    least_bytes_per_second: NonNegativeInt = Field(
        default=1024,
        description="a body that has stayed behind this rate for `LOBEWISE_API_IDLE_SECONDS` in all ends in 408; for "
        "`LOBEWISE_API_CROWDED_SECONDS`, where another scan needs its place. Only time that its client took counts",
    )
    crowded_seconds: PositiveFloat = Field(
        default=5.0,
        description="when `LOBEWISE_API_MAX_UPLOADS` scans are on their way in, one whose client was too slow for so "
        "long gives its place to the next",
    )
    session_seconds: PositiveInt = Field(
        default=8 * 3600, description="how long who signs in to the pages stays so; what ends the key ends it earlier"
    )
    shutdown_seconds: PositiveInt = Field(default=10, description="how long requests may finish when the gateway stops")

    @property
    def prefix(self) -> str:
        """What stands before every path, without a slash at its end."""
        return self.root_path or ((self.public_url.path or "").rstrip("/") if self.public_url else "")

    @field_validator("allowed_hosts", "allowed_origins", mode="before")
    @classmethod
    def _split_words(cls, value: object) -> object:
        return tuple(value.lower().split()) if isinstance(value, str) else value

    @field_validator("allowed_hosts")
    @classmethod
    def _require_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if not HOST_NAME.fullmatch(name):
                raise ValueError("each must be a name or an address without port, or *. and a name")
        return names

    @field_validator("allowed_origins")
    @classmethod
    def _require_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            parts = urlsplit(origin)
            if (
                not parts.netloc
                or origin != f"{parts.scheme}://{parts.netloc}"
                or parts.scheme not in ("http", "https")
            ):
                raise ValueError(
                    "each must be as a browser sends it, such as https://viewer.example.org, without a path"
                )
        return origins

    @field_validator("root_path")
    @classmethod
    def _require_prefix(cls, root_path: str) -> str:
        root_path = root_path.rstrip("/")
        # With /v1 nobody could tell whether a proxy has stripped it.
        if root_path and (not PREFIX.fullmatch(root_path) or f"{root_path}/".startswith("/v1/")):
            raise ValueError("it must be a path such as /lobewise, of letters, digits and . _ ~ -, and not below /v1")
        return root_path

    @field_validator("forwarded_allow_ips")
    @classmethod
    def _require_addresses(cls, entries: str) -> str:
        for entry in filter(None, map(str.strip, entries.split(","))):
            try:
                _ = entry == "*" or ip_network(entry, strict=False)
            except ValueError as error:
                raise ValueError("each must be an address, a network such as 10.0.0.0/8, or *") from error
        return entries

    @field_validator("forwarded_headers", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(value.lower().split()) if isinstance(value, str) else value

    @field_validator("forwarded_headers")
    @classmethod
    def _require_one_family(cls, names: tuple[ForwardedHeader, ...]) -> tuple[ForwardedHeader, ...]:
        others = {"x-forwarded-for", "x-forwarded-proto", "x-forwarded-host"} & set(names)
        # Two that contradict each other: one of them would be the client's.
        if "forwarded" in names and others:
            raise ValueError("either forwarded or x-forwarded-for, x-forwarded-proto and x-forwarded-host")
        return names


#: Signed with a private key: with a shared secret, whoever checks tokens could make them, too.
SigningAlgorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]


class AccessSettings(BaseSettings):
    """Who may call the gateway. Nobody else reads these, though they are not below `LOBEWISE_API_`."""

    model_config = SettingsConfigDict(env_prefix="LOBEWISE_", extra="ignore", frozen=True)

    access: Literal["open", "required"] | None = Field(
        default=None,
        description="`required`: every call needs a key or a token; `open`: none does, for networks that are closed by "
        "other means. Without it: required as soon as there is a key or an issuer, and until then open to this machine "
        "alone",
    )
    # For machines that are set up by files and secrets: nobody is there to run a command and copy what it shows.
    first_key: SecretStr | None = Field(
        default=None,
        description="a key with every role for the tenant `default`, for as long as it is set; of 32 characters or "
        "more, as `openssl rand -hex 32` gives",
    )
    metrics_key: SecretStr | None = Field(
        default=None, description="the same for /metrics alone: what Prometheus sends as its bearer token"
    )
    # No `HttpUrl`: that would add a slash, and the claim is compared letter by letter.
    oidc_issuer: str | None = Field(
        default=None,
        description="whose tokens (JWT) are taken, as it stands in them; its keys are found by "
        "`/.well-known/openid-configuration` below it",
    )
    oidc_audience: str | None = Field(
        default=None, min_length=1, description="what a token must be meant for (`aud`); needed with an issuer"
    )
    oidc_algorithms: Annotated[tuple[SigningAlgorithm, ...], NoDecode] = Field(
        default=("RS256", "PS256", "ES256", "EdDSA"),
        min_length=1,
        description="how its tokens may be signed, separated by spaces; only signatures by a private key",
    )
    oidc_roles_claim: str = Field(
        default="roles",
        description="the claim that has the roles, as a list or separated by spaces: `scope`, or `realm_access.roles` "
        "for one inside another",
    )
    oidc_role_prefix: str = Field(
        default="", description="what stands before our roles there: `lobewise.` where the role is `lobewise.submit`"
    )
    oidc_tenant_claim: str | None = Field(
        default=None, min_length=1, description="the claim that has the tenant; without it, all are `default`"
    )
    oidc_leeway_seconds: NonNegativeInt = Field(default=30, le=300, description="how wrong a clock may be")

    @field_validator("first_key", "metrics_key")
    @classmethod
    def _require_long(cls, key: SecretStr | None) -> SecretStr | None:
        # Of the characters of a bearer token, so that it can be sent as it stands.
        if key is not None and not re.fullmatch(r"[A-Za-z0-9._~+/=-]{32,256}", key.get_secret_value()):
            raise ValueError("it must be 32 to 256 letters, digits and . _ ~ + / = -, as `openssl rand -hex 32` gives")
        return key

    @field_validator("oidc_issuer")
    @classmethod
    def _require_private_line(cls, issuer: str | None) -> str | None:
        if issuer is None:
            return None
        parts = urlsplit(issuer)
        if not parts.hostname or parts.query or parts.fragment or parts.username is not None:
            raise ValueError("it must be an address such as https://login.example/realms/clinic, as tokens have it")
        # Whoever is on the line could hand out keys of his own.
        if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(parts.hostname)):
            raise ValueError("it must begin with https://, but for one on this machine")
        return issuer

    @field_validator("oidc_algorithms", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(value.split()) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _require_whole(self) -> Self:
        if (self.oidc_issuer is None) is not (self.oidc_audience is None):
            raise ValueError(
                "LOBEWISE_OIDC_ISSUER and LOBEWISE_OIDC_AUDIENCE go together: an issuer's tokens for other services "
                "must not open this one"
            )
        return self


@dataclass(frozen=True)
class Variable:
    """A setting, as the table of all settings shows it."""

    name: str
    default: str
    description: str
    is_secret: bool


def read_settings(kind: type[Settings], **given: Any) -> Settings:
    """The settings of a process; `given` ones go before the environment, which goes before files.

    Raises SettingsError: a value is wrong; the sentence says which variable to set and to what.
    """
    folder = Path(os.environ.get(SECRETS_VARIABLE, SECRETS_DIR))
    if SECRETS_VARIABLE in os.environ and not folder.is_dir():
        raise SettingsError(f"{SECRETS_VARIABLE} is {str(folder)!r}: there is no such folder.")
    try:
        return kind(_secrets_dir=folder if folder.is_dir() else None, **given)
    except ValidationError as error:
        raise SettingsError(" ".join(_sentences(kind, error))) from error


def variables(kind: type[BaseSettings]) -> Iterator[Variable]:
    """Every variable that sets something of `kind`."""
    for name, field in kind.model_fields.items():
        default = "" if field.default is None else field.default
        yield Variable(
            name=next(iter(_aliases(field)), f"{kind.model_config.get('env_prefix', '')}{name}".upper()),
            default=" ".join(map(str, default)) if isinstance(default, tuple) else str(default),
            description=field.description or "",
            # A Redis address may hold a password.
            is_secret=field.annotation in (SecretStr, SecretStr | None) or name == "redis_url",
        )


def misspelt(kinds: tuple[type[BaseSettings], ...], environment: Mapping[str, str] = os.environ) -> list[str]:
    """A sentence about each variable that looks like one of ours and is none."""
    # Workers and senders may get the gateway's with the same image or ConfigMap: only who reads those complains.
    foreign = () if ApiSettings in kinds else ("LOBEWISE_API_",)
    read: list[type[BaseSettings]] = [*kinds, AccessSettings]
    known = [*OTHERS, *(variable.name for kind in read for variable in variables(kind))]
    sentences = []
    for name in sorted(environment):
        if name.startswith("LOBEWISE_") and name not in known and not name.startswith(foreign):
            near = difflib.get_close_matches(name, known, 1)
            sentences.append(f"{name} sets nothing." + (f" Do you mean {near[0]}?" if near else ""))
    return sentences


def _sentences(kind: type[BaseSettings], error: ValidationError) -> Iterator[str]:
    """What is wrong, without the value where it may be a secret."""
    # pydantic names a field or, where it has one, an alias.
    named = {
        location: variable
        for (name, field), variable in zip(kind.model_fields.items(), variables(kind), strict=True)
        for location in (name, *_aliases(field))
    }
    for fault in error.errors(include_url=False):
        message = fault["msg"].removeprefix("Value error, ")
        if not fault["loc"]:  # of several values together
            yield f"{message}."
            continue
        variable = named[str(fault["loc"][0])]
        value = "" if variable.is_secret else f" is {fault['input']!r}"
        meaning = f" ({variable.description})" if variable.description else ""
        yield f"{variable.name}{value}: {message[0].lower()}{message[1:]}{meaning}."


def _aliases(field: FieldInfo) -> list[str]:
    alias = field.validation_alias
    return [str(choice) for choice in alias.choices] if isinstance(alias, AliasChoices) else []

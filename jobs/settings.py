"""What an operator decides, read from the environment as `LOBEWISE_<NAME>`."""

from base64 import b64decode
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AliasChoices, Field, PositiveFloat, PositiveInt, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from jobs.logs import LogFormat, LogLevel

MIB = 1 << 20
GIB = 1 << 30


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
    max_upload_bytes: PositiveInt = Field(default=2 * GIB, description="larger scans are refused")
    lease_seconds: PositiveFloat = Field(default=20.0, description="a worker silent for longer has lost its job")
    heartbeat_seconds: PositiveFloat = Field(default=5.0, description="how often a worker renews its lease")
    max_attempts: PositiveInt = Field(
        default=3, description="the last failed attempt ends the job; attempts that were handed back do not count"
    )
    retry_seconds: PositiveFloat = Field(default=5.0, description="pause before the second attempt, then doubled")
    hard_limit_seconds: PositiveInt = Field(default=1800, description="an attempt that takes longer is killed")
    soft_limit_seconds: PositiveInt = Field(
        default=1500, description="an attempt that takes longer is interrupted and counts as failed"
    )
    drain_seconds: PositiveFloat | None = Field(
        default=None,
        description="a worker that is told to stop (SIGTERM) hands its job back after that time; without it, it "
        "finishes the job",
    )
    deaf_seconds: PositiveFloat = Field(
        default=10.0,
        description="an idle worker that gets none of the messages in the queues for so long starts anew",
    )
    cancel_grace_seconds: PositiveFloat = Field(default=10.0, description="then a cancelled attempt is killed")
    reap_seconds: PositiveFloat = Field(default=10.0, description="how often lost jobs are looked for")
    in_flight_seconds: PositiveFloat = Field(
        default=120.0, description="then a retry may take over an idempotency key whose first request never ended"
    )
    broker_timeout_seconds: PositiveFloat = Field(default=1.0, description="then a silent broker counts as down")
    source_allowlist: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="prefixes of addresses that `source` may name, separated by spaces; none are allowed by default",
    )
    max_source_bytes: PositiveInt = Field(default=2 * GIB, description="a larger `source` fails its job")
    upload_part_bytes: int = Field(
        default=16 * MIB, ge=5 * MIB, description="size of the parts of an upload; S3 takes none below 5 MiB"
    )
    upload_seconds: PositiveInt = Field(
        default=24 * 3600, description="an upload that has not become a job by then is deleted"
    )
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
        default=None, description="a finished job is deleted after that time; without it jobs are kept"
    )
    tombstone_seconds: PositiveInt = Field(
        default=30 * 24 * 3600, description="how long a deleted job answers 410; then it is forgotten and answers 404"
    )
    sweep_seconds: PositiveFloat = Field(
        default=600.0, description="how often expired uploads, what crashes left and jobs past retention are deleted"
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
    weights_dir: Path | None = Field(default=None, description="other weights than those that come with the package")

    @field_validator("redis_url")
    @classmethod
    def _is_redis(cls, url: str | None) -> str | None:
        if url is not None and not url.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("it must begin with redis://, rediss:// or unix://")
        return url

    @field_validator("blob_url")
    @classmethod
    def _is_store(cls, url: str | None) -> str | None:
        if url is not None and not url.startswith(("file:///", "s3://")):
            raise ValueError("it must begin with file:/// or s3://")
        return url

    @model_validator(mode="after")
    def _heartbeats_fit_the_lease(self) -> Self:
        if self.heartbeat_seconds >= self.lease_seconds:
            raise ValueError(
                f"LOBEWISE_HEARTBEAT_SECONDS ({self.heartbeat_seconds:g}) must be below LOBEWISE_LEASE_SECONDS "
                f"({self.lease_seconds:g}), or every worker loses its jobs"
            )
        return self

    @model_validator(mode="after")
    def _limits_are_in_order(self) -> Self:
        if self.soft_limit_seconds >= self.hard_limit_seconds:
            raise ValueError(
                f"LOBEWISE_SOFT_LIMIT_SECONDS ({self.soft_limit_seconds}) must be below LOBEWISE_HARD_LIMIT_SECONDS "
                f"({self.hard_limit_seconds}), or no attempt is ever interrupted"
            )
        return self

    @field_validator("callback_secrets")
    @classmethod
    def _are_secrets(cls, secrets: SecretStr | None) -> SecretStr | None:
        if secrets is not None and not all(map(_is_secret, secrets.get_secret_value().split() or [""])):
            raise ValueError("each must be whsec_ and the base64 of 24 to 64 bytes, as `openssl rand -base64 32` gives")
        return secrets

    @field_validator("source_allowlist", "callback_allowlist", "callback_retry_seconds", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(value.split()) if isinstance(value, str) else value


def _is_secret(text: str) -> bool:
    try:
        return text.startswith("whsec_") and 24 <= len(b64decode(text.removeprefix("whsec_"), validate=True)) <= 64
    except ValueError:
        return False

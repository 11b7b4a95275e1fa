"""What an operator decides about the gateway, read from the environment as `LOBEWISE_API_<NAME>`."""

from pydantic import Field, HttpUrl, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic_settings import BaseSettings, SettingsConfigDict


class ApiSettings(BaseSettings):
    """Where the gateway listens and how long it lets things take."""

    model_config = SettingsConfigDict(env_prefix="LOBEWISE_API_", extra="ignore", frozen=True)

    host: str = Field(default="127.0.0.1", description="address to listen on; 0.0.0.0 lets other machines in")
    port: int = Field(default=8000, ge=0, le=65535, description="port to listen on; 0 takes any free one")
    root_path: str = Field(default="", description="prefix that a proxy strips from the path, such as /lobewise")
    public_url: HttpUrl | None = Field(
        default=None,
        description="what the links in answers begin with; without it they begin with the request's Host header",
    )
    forwarded_allow_ips: str = Field(
        default="127.0.0.1", description="proxies whose X-Forwarded headers are believed, separated by commas"
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
    stream_seconds: PositiveFloat = Field(
        default=3600.0, description="a stream of events is ended then; its client comes back and misses nothing"
    )
    keep_alive_seconds: PositiveFloat = Field(
        default=15.0, description="a stream without events gets a comment that often, so that proxies keep it open"
    )
    poll_seconds: PositiveInt = Field(default=2, description="Retry-After of a job that is not finished")
    unavailable_seconds: PositiveInt = Field(default=5, description="Retry-After while a part is down")
    idle_seconds: PositiveFloat = Field(default=60.0, description="a body that stands still for longer ends in 408")
    shutdown_seconds: PositiveInt = Field(default=10, description="how long requests may finish when the gateway stops")

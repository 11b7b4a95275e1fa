"""What a tenant, and a key, may use: by default as the settings say, or as a file says for this one.

```toml
[tenants.clinic-a]
requests_per_minute = 600
running_jobs = 2

[keys.4f1c0a6b]
requests_per_minute = 60
```

What the file leaves out is as by default; 0 is no limit.
"""

import logging
import threading
import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, StringConstraints, ValidationError

from jobs.access.caller import TENANT_NAME
from jobs.errors import SettingsError
from jobs.settings import JobsSettings

log = logging.getLogger(__name__)

#: A changed file holds for all processes after so long.
REREAD_SECONDS: Final = 5.0
MINUTE_SECONDS: Final = 60
DAY_SECONDS: Final = 24 * 3600


class Quota(StrEnum):
    """What is limited."""

    REQUESTS = "requests_per_minute"
    UPLOAD_BYTES = "upload_bytes_per_day"
    WAITING_JOBS = "waiting_jobs"
    RUNNING_JOBS = "running_jobs"
    STORAGE_BYTES = "storage_bytes"

    @property
    def window_seconds(self) -> int | None:
        """For what is counted over a time; it begins with the first request, or upload, after the one before."""
        return {Quota.REQUESTS: MINUTE_SECONDS, Quota.UPLOAD_BYTES: DAY_SECONDS}.get(self)


#: What a key has limits for. Jobs and what is stored belong to the tenant, whichever key sent them.
OF_KEYS: Final = (Quota.REQUESTS, Quota.UPLOAD_BYTES)

Scope = Literal["tenant", "key"]


@dataclass(frozen=True)
class Owner:
    """Whose use is limited: a tenant, or a key by its id."""

    scope: Scope
    name: str


class _Limits(BaseModel):
    """A table of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    requests_per_minute: NonNegativeInt | None = None
    upload_bytes_per_day: NonNegativeInt | None = None


class _TenantLimits(_Limits):
    waiting_jobs: NonNegativeInt | None = None
    running_jobs: NonNegativeInt | None = None
    storage_bytes: NonNegativeInt | None = None


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    tenants: dict[Annotated[str, StringConstraints(pattern=rf"^{TENANT_NAME}$")], _TenantLimits] = Field(
        default_factory=dict
    )
    keys: dict[str, _Limits] = Field(default_factory=dict)


class Quotas:
    """The limits of one process. All calls are thread-safe.

    Raises SettingsError: the file cannot be read, or something in it is wrong. Once it was read, a later fault is
    logged, and what held goes on.
    """

    def __init__(self, settings: JobsSettings) -> None:
        self._path = settings.quotas_file
        self._defaults: Mapping[Scope, Mapping[Quota, int]] = {
            "tenant": {quota: getattr(settings, f"quota_{quota}") for quota in Quota},
            "key": {quota: getattr(settings, f"key_quota_{quota}") for quota in OF_KEYS},
        }
        self._lock = threading.Lock()
        self._looked_at = time.monotonic()
        self._modified = 0.0 if self._path is None else _modified_at(self._path)
        self._file = _File() if self._path is None else _read(self._path)

    def limit(self, owner: Owner, quota: Quota) -> int:
        """0: none."""
        file = self._current()
        own = (file.tenants if owner.scope == "tenant" else file.keys).get(owner.name)
        value = getattr(own, quota, None)
        return self._defaults[owner.scope].get(quota, 0) if value is None else value

    def _current(self) -> _File:
        if self._path is not None and time.monotonic() - self._looked_at > REREAD_SECONDS:
            with self._lock:
                self._looked_at = time.monotonic()
                try:
                    if (modified := _modified_at(self._path)) != self._modified:
                        self._modified, self._file = modified, _read(self._path)
                        log.info("the limits of tenants and keys were read anew")
                except SettingsError as error:
                    log.error("the limits stay as they were: %s", error)
        return self._file


@lru_cache
def quotas_of(settings: JobsSettings) -> Quotas:
    """Those of a process, once for all that ask. Raises SettingsError."""
    return Quotas(settings)


def _modified_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError as error:
        raise SettingsError(f"LOBEWISE_QUOTAS_FILE is {str(path)!r}: {error.strerror}.") from error


def _read(path: Path) -> _File:
    try:
        return _File.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise SettingsError(f"LOBEWISE_QUOTAS_FILE is {str(path)!r}: {error.strerror}.") from error
    except ValueError as error:
        if not isinstance(error, ValidationError):
            raise SettingsError(f"LOBEWISE_QUOTAS_FILE: {path} is not TOML: {error}.") from error
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg'].lower()}" for e in error.errors())
        raise SettingsError(
            f"LOBEWISE_QUOTAS_FILE: {path} has {faults}. A table is [tenants.NAME] or [keys.ID], with whole numbers "
            f"for {', '.join(Quota)} (a key: {', '.join(OF_KEYS)}); 0 is no limit."
        ) from error

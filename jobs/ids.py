"""Ids of jobs and uploads: UUIDv7 (RFC 9562), which sort by time and cannot be guessed."""

import re
import secrets
import time
import uuid
from datetime import UTC, datetime
from typing import Final

JOB_ID: Final = re.compile(r"^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$")


def new_id() -> str:
    """48 bits of milliseconds, then 74 random bits."""
    milliseconds = time.time_ns() // 1_000_000
    version_and_variant = (7 << 76) | (2 << 62)
    random_high, random_low = secrets.randbits(12) << 64, secrets.randbits(62)
    return str(uuid.UUID(int=(milliseconds << 80) | version_and_variant | random_high | random_low))


def made_at(job_id: str) -> datetime:
    """The moment in an id."""
    return datetime.fromtimestamp((uuid.UUID(job_id).int >> 80) / 1000, UTC)


def is_id(text: str) -> bool:
    """Whether this could be an id of ours. Nothing else may become part of a key."""
    return JOB_ID.fullmatch(text) is not None

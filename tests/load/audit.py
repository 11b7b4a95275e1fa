"""What the audit trail costs: `python -m tests.load.audit` compares its levels in one run, turn by turn.

Polls, reports and deletions are given to the gateway's application without a socket, and the processor time of the
whole process is taken, the trail's thread too: what a busy machine does beside changes that little.
"""

import asyncio
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from fastapi import FastAPI

from api.app import create_app
from jobs import states
from jobs.audit.entries import AuditLevel
from jobs.bootstrap import Connection, connect
from jobs.models import InputInfo, JobRecord
from jobs.settings import ApiSettings, JobsSettings

ROUNDS: Final = 30
#: How many in a turn; a deletion needs a job of its own.
REQUESTS: Final = {"poll": 200, "deletion": 5}


async def call(app: FastAPI, method: str, path: str) -> int:
    """The status of one request to the application."""
    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    scope: dict[str, Any] = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
        "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "headers": [(b"host", b"x")],
        "client": ("192.0.2.7", 1), "server": ("127.0.0.1", 80),
    }  # fmt: skip
    await app(scope, receive, send)
    return statuses[0]


def accepted(jobs: Connection, count: int) -> list[str]:
    made = []
    for _ in range(count):
        record = JobRecord(id=states.new_id(), created_at=states.now(), input=InputInfo(size_bytes=1, sha256="0" * 64))
        made.append(jobs.service.accept(record).id)
    return made


async def measure(app: FastAPI, jobs: Connection) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """Milliseconds of processor and of time for one request, by what it is and by the level, of each turn."""
    found: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    trail = jobs.backends.audit
    assert trail is not None
    (polled,) = accepted(jobs, 1)
    async with app.router.lifespan_context(app):
        for turn in range(ROUNDS + 1):
            for level in AuditLevel:
                trail.level = level
                for what, count in REQUESTS.items():
                    paths = [f"/v1/jobs/{job_id}" for job_id in ([polled] * count if what == "poll" else [])]
                    paths = paths or [f"/v1/jobs/{job_id}" for job_id in await asyncio.to_thread(accepted, jobs, count)]
                    cpu, began = time.process_time(), time.perf_counter()
                    for path in paths:
                        status = await call(app, "GET" if what == "poll" else "DELETE", path)
                        assert status in (200, 204), status
                    if turn:  # the first one warms up
                        spent = (time.process_time() - cpu, time.perf_counter() - began)
                        found[what, level].append((1000 * spent[0] / count, 1000 * spent[1] / count))
    return found


def rows(found: dict[tuple[str, str], list[tuple[float, float]]]) -> Iterator[str]:
    yield "| request | level | CPU ms | to `off` | time ms, median |"
    yield "|---|---|---|---|---|"
    for what in REQUESTS:
        off = statistics.median(cpu for cpu, _ in found[what, AuditLevel.OFF])
        for level in AuditLevel:
            cpu = statistics.median(cpu for cpu, _ in found[what, level])
            seconds = statistics.median(wall for _, wall in found[what, level])
            yield f"| {what} | `{level}` | {cpu:.3f} | {cpu / off:.2f} | {seconds:.2f} |"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        jobs = connect(JobsSettings(data_dir=Path(folder), audit_seconds=1.0))
        try:
            print("\n".join(rows(asyncio.run(measure(create_app(ApiSettings(), jobs), jobs)))))
        finally:
            jobs.close()


if __name__ == "__main__":
    main()

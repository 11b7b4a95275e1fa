"""Clients as they should be: they post with an idempotency key, try again what was not answered, and poll to the end.

All that they see is noted. Some cancel, some delete, some post the same again.
"""

import hashlib
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

import httpx

from tests.chaos.checker import FINAL
from tests.chaos.history import History
from tests.chaos.orders import Order, draw_order

#: Jobs of one campaign that are not finished, at most.
IN_FLIGHT: Final = 40
POST_TRIES: Final = 400


@dataclass
class Job:
    """An accepted scan."""

    order: Order
    id: str
    is_cancelled: bool = False
    is_purged: bool = False


@dataclass
class Clients:
    """Some posters, one poller, one who looks again at what is finished.

    Attributes:
        allowed: how many may be posted by now, so that the work lasts as long as the faults do.
        settled: finished jobs, which are looked at again and again.
    """

    ports: list[int]
    history: History
    seed: int
    jobs: int
    posters: int = 4
    allowed: float = 0.0
    open: dict[str, Job] = field(default_factory=dict)
    settled: list[Job] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _posted: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        tasks = [(self._post_all, number) for number in range(self.posters)]
        tasks += [(self._poll_all, 100), (self._look_again, 101)]
        for task, number in tasks:
            thread = threading.Thread(target=task, args=(Random(f"{self.seed}-{number}"),), daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    @property
    def is_done(self) -> bool:
        """Whether all is posted, and all that was accepted is finished."""
        with self._lock:
            return self._posted >= self.jobs and not self.open

    @property
    def finished(self) -> int:
        return len(self.settled)

    def has_finished(self, count: float) -> bool:
        return self.finished >= count

    def _post_all(self, rng: Random) -> None:
        with self._client(rng) as client:
            while not self._stop.is_set():
                with self._lock:
                    if self._posted >= self.jobs:
                        return
                    is_free = len(self.open) < IN_FLIGHT and self._posted < self.allowed
                    name = f"scan-{self.seed}-{self._posted}"
                    self._posted += is_free
                if not is_free:
                    time.sleep(0.02)
                    continue
                job = self._post(client, draw_order(name, rng), rng)
                if job is not None and rng.random() < 0.05:
                    self._post(client, job.order, rng)  # a client that lost the answer

    def _post(self, client: "Caller", order: Order, rng: Random) -> Job | None:
        """Until it is answered: an honest client gives up late."""
        for _ in range(POST_TRIES):
            if self._stop.is_set():
                return None
            answer = client.call(
                "POST",
                "/v1/jobs",
                headers={"Idempotency-Key": order.name},
                files={"file": ("ct.nrrd", order.to_scan())},
                data={"priority": order.priority},
            )
            body = _json(answer)
            status = answer.status_code if answer is not None else 0
            self.history.note("post", order.name, status=status, job=body.get("id"), order=order.__dict__)
            if status in (200, 202):
                job = Job(order, body["id"])
                with self._lock:
                    return self.open.setdefault(order.name, job) if not self._knows(order.name) else job
            time.sleep(rng.uniform(0.05, 0.4))
        return None

    def _knows(self, name: str) -> bool:
        return any(job.order.name == name for job in self.settled)

    def _poll_all(self, rng: Random) -> None:
        with self._client(rng) as client:
            while not self._stop.is_set():
                with self._lock:
                    waiting = list(self.open.values())
                for job in waiting:
                    if rng.random() < 0.003 and not job.is_cancelled:
                        self._cancel(client, job)
                    state = self.read(client, job)
                    if state.get("status") in FINAL or job.is_purged:
                        with self._lock:
                            self.settled.append(job)
                            self.open.pop(job.order.name, None)
                time.sleep(0.02)

    def _look_again(self, rng: Random) -> None:
        with self._client(rng) as client:
            while not self._stop.is_set():
                time.sleep(0.05)
                with self._lock:
                    job = rng.choice(self.settled) if self.settled else None
                if job is None or job.is_purged:
                    continue
                self.read(client, job)
                if rng.random() < 0.005:
                    self._purge(client, job)

    def read(self, client: "Caller", job: Job) -> dict[str, Any]:
        """Note the state, and report and mask of what succeeded."""
        answer = client.call("GET", f"/v1/jobs/{job.id}")
        body = _json(answer)
        if answer is None or answer.status_code != 200:
            status = answer.status_code if answer is not None else 0
            self.history.note("missed", job.order.name, http=status)
            if status == 404 or (status == 410 and not job.is_purged):
                self.history.note("read", job.order.name, status=f"http-{status}", attempt=0)
            return {}
        seen = {key: body.get(key) for key in ("status", "attempt", "stage", "cancel_requested")}
        seen["problem"] = (body.get("error") or {}).get("type")
        if body["status"] in FINAL:
            seen["revision"] = answer.headers.get("etag")
        if body["status"] == "succeeded":
            seen |= self._results(client, job)
        self.history.note("read", job.order.name, **seen)
        return body

    def _results(self, client: "Caller", job: Job) -> dict[str, Any]:
        found: dict[str, Any] = {}
        report = client.call("GET", f"/v1/jobs/{job.id}/report")
        if report is not None and report.status_code == 200:
            body = report.json()
            body.pop("masks")  # addresses name the gateway
            found["report_sha256"] = hashlib.sha256(repr(sorted(body.items())).encode()).hexdigest()
            found["opacity"] = round(body["severity"]["percent_opacity"])
        mask = client.call("GET", f"/v1/jobs/{job.id}/masks/lesions")
        if mask is not None and mask.status_code == 200:
            found["mask_sha256"] = hashlib.sha256(mask.content).hexdigest()
        return found

    def _cancel(self, client: "Caller", job: Job) -> None:
        answer = client.call("POST", f"/v1/jobs/{job.id}/cancel")
        status = answer.status_code if answer is not None else 0
        job.is_cancelled = job.is_cancelled or status in (0, 202)
        self.history.note("cancel", job.order.name, status=status, shown=_json(answer).get("status"))

    def _purge(self, client: "Caller", job: Job) -> None:
        job.is_purged = True
        answer = client.call("DELETE", f"/v1/jobs/{job.id}")
        self.history.note("purge", job.order.name, status=answer.status_code if answer is not None else 0)

    def _client(self, rng: Random) -> "Caller":
        return Caller(self.ports, rng)


class Caller:
    """Calls any of the gateways; None for an answer that did not come."""

    def __init__(self, ports: list[int], rng: Random) -> None:
        self._rng = rng
        self._clients = [
            httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=httpx.Timeout(10.0, connect=2.0))
            for port in ports
        ]

    def __enter__(self) -> "Caller":
        return self

    def __exit__(self, *_error: object) -> None:
        for client in self._clients:
            client.close()

    def call(self, method: str, path: str, **more: Any) -> httpx.Response | None:
        with suppress(httpx.HTTPError):
            return self._rng.choice(self._clients).request(method, path, **more)
        return None


def _json(answer: httpx.Response | None) -> dict[str, Any]:
    if answer is None or "json" not in answer.headers.get("content-type", ""):
        return {}
    with suppress(ValueError):
        body = answer.json()
        return body if isinstance(body, dict) else {}
    return {}

"""Both clients over a real gateway: every test runs with `Client` and with `AsyncClient`."""

import asyncio
import inspect
import threading
from asyncio import StreamWriter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from lobewise_client import AsyncClient, AsyncMask, AsyncResult, Client, Retry

from api import examples
from jobs.settings import ApiSettings
from tests.api.conftest import Service, running_service
from tests.support.processes import until
from tests.support.proxy import Proxy

MIB = 1 << 20
PART_BYTES = 5 * MIB
#: Impatient, as tests are.
QUICK = Retry(seconds=10, first_pause_seconds=0.02, longest_pause_seconds=0.1)

MakeClient = Callable[..., Any]
Handler = Callable[[httpx.Request], httpx.Response]


class Blocking:
    """An asynchronous client, result or mask, called as if it were the other one."""

    def __init__(self, target: Any, runner: asyncio.Runner) -> None:
        self._target, self._runner = target, runner

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        if not callable(value):
            return self._wrapped(value)

        def call(*arguments: Any, **options: Any) -> Any:
            called = value(*arguments, **options)
            if inspect.isasyncgen(called):
                return self._each(called)
            return self._wrapped(self._runner.run(called))

        return call

    def _each(self, generator: Any) -> Iterator[Any]:
        async def following() -> Any:
            return await anext(generator, StopIteration)

        try:
            while (item := self._runner.run(following())) is not StopIteration:
                yield item
        finally:
            self._runner.run(generator.aclose())

    def _wrapped(self, value: Any) -> Any:
        if isinstance(value, AsyncResult | AsyncMask):
            return Blocking(value, self._runner)
        if isinstance(value, dict):
            return {name: self._wrapped(one) for name, one in value.items()}
        return value


@pytest.fixture(params=["sync", "async"])
def make_client(request: pytest.FixtureRequest) -> Iterator[MakeClient]:
    """`make_client(address, ...)`, or with a handler in place of a service."""
    with ExitStack() as stack:
        runner = stack.enter_context(asyncio.Runner())

        def make(address: str = "http://service.example", handler: Handler | None = None, **options: Any) -> Any:
            options = {"retry": QUICK, **({"transport": httpx.MockTransport(handler)} if handler else {}), **options}
            if request.param == "sync":
                return stack.enter_context(Client(address, **options))
            client = AsyncClient(address, **options)
            stack.callback(lambda: runner.run(client.close()))
            return Blocking(client, runner)

        yield make


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """It takes parts, and scans as large as three of them."""
    settings = ApiSettings(keep_alive_seconds=0.2, poll_seconds=1)
    sizes = {"max_upload_bytes": 16 * MIB, "upload_part_bytes": PART_BYTES}
    with running_service(tmp_path_factory.mktemp("service"), settings, **sizes) as service:
        yield service


@pytest.fixture
def client(make_client: MakeClient, service: Service) -> Any:
    return make_client(service.address)


@dataclass
class Cut:
    """Breaks a connection once `after_bytes` of a request that `line` is in, or of its answer, have passed."""

    line: bytes
    where: str
    after_bytes: int


@dataclass
class _Exchange:
    line: bytes
    passed: dict[str, int] = field(default_factory=lambda: {"request": 0, "answer": 0})


class CuttingProxy(Proxy):
    """Each cut in `cuts` happens once; `lines` has the first line of all requests."""

    def __init__(self, target_port: int) -> None:
        self.cuts: list[Cut] = []
        self.lines: list[bytes] = []
        self._exchanges: dict[StreamWriter, _Exchange] = {}
        super().__init__(target_port)

    async def ask(self, data: bytes, server: StreamWriter, client: StreamWriter) -> bool:
        line = data.partition(b"\r\n")[0]
        if line.endswith(b" HTTP/1.1"):
            self.lines.append(line)
            self._exchanges[client] = _Exchange(line)
        return self._goes_on("request", data, client) and await super().ask(data, server, client)

    async def answer(self, data: bytes, client: StreamWriter) -> bool:
        return self._goes_on("answer", data, client) and await super().answer(data, client)

    def _goes_on(self, where: str, data: bytes, client: StreamWriter) -> bool:
        exchange = self._exchanges[client]
        exchange.passed[where] += len(data)
        for cut in self.cuts:
            is_meant = cut.line in exchange.line and cut.where == where
            if is_meant and exchange.passed[where] > cut.after_bytes:
                self.cuts.remove(cut)
                client.transport.abort()
                return False
        return True


@pytest.fixture
def proxy(service: Service) -> Iterator[CuttingProxy]:
    proxy = CuttingProxy(service.client.base_url.port or 0)
    yield proxy
    proxy.close()


@pytest.fixture
def cut_client(make_client: MakeClient, proxy: CuttingProxy) -> Any:
    return make_client(f"http://127.0.0.1:{proxy.port}", parts_above_bytes=PART_BYTES, parallel_parts=2)


def works(service: Service, end: Callable[[str], None]) -> Iterator[Callable[[int], None]]:
    """`work(count)` ends the next jobs, in a thread, as they come."""
    threads: list[threading.Thread] = []

    def work(count: int) -> None:
        def new() -> set[str]:
            page = service.client.get("/v1/jobs", params={"status": "queued", "limit": 200}).json()
            return {job["id"] for job in page["items"]} - known

        def run() -> None:
            for _ in range(count):
                assert until(new, 30)
                known.add(job_id := new().pop())
                end(job_id)

        known: set[str] = set()
        known |= new()
        threads.append(threading.Thread(target=run))
        threads[-1].start()

    yield work
    for thread in threads:
        thread.join()


@pytest.fixture
def worker(service: Service) -> Iterator[Callable[[int], None]]:
    yield from works(service, service.worker.succeed)


@pytest.fixture
def failing(service: Service) -> Iterator[Callable[[int], None]]:
    yield from works(service, service.worker.fail)


@pytest.fixture
def inspector(service: Service) -> Iterator[Callable[[int], None]]:
    def inspect(job_id: str) -> None:
        with service.jobs.worker.claim(job_id, "test") as lease:
            service.jobs.worker.succeed_inspected(lease, examples.INSPECTION, {})

    yield from works(service, inspect)

"""Scans on their way in take turns, and give way to whoever only asks."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st
from obstore.store import MemoryStore
from starlette.types import Message, Receive, Scope, Send

from api import upload_limits as rules
from api.errors import ApiError
from api.metrics import Metrics
from api.middleware import RequestEnvelope
from api.upload_limits import FIRST_RATE, LATE_SECONDS, LEAST_RATE, MOST_RATE, TURNS, Rate, UploadLimiter, UploadSlot
from jobs.access.doors import Doors
from jobs.access.keys import KeyRing
from jobs.settings import AccessSettings
from jobs.store.object_store import ObjectStore


class FixedRate(Rate):
    def adjust(self, late_seconds: float, now: float) -> None:
        """Stays as it is."""


async def pieces(count: int, size_bytes: int = 1, pause_seconds: float = 0.0) -> AsyncIterator[bytes]:
    for _ in range(count):
        await asyncio.sleep(pause_seconds)
        yield bytes(size_bytes)


async def swallow(slot: UploadSlot, chunks: AsyncIterator[bytes]) -> int:
    return sum([len(chunk) async for chunk in slot.in_turn(chunks)])


def test_all_of_a_scan_comes_in_its_order() -> None:
    async def run() -> list[bytes]:
        async def deliveries() -> AsyncIterator[bytes]:
            for delivery in (b"a", b"b", b"c"):
                yield delivery

        with UploadLimiter(1).take() as slot:
            return [chunk async for chunk in slot.in_turn(deliveries())]

    assert asyncio.run(run()) == [b"a", b"b", b"c"]


def test_few_pieces_are_under_way_at_once_and_every_scan_comes_through() -> None:
    under_way, most = 0, 0

    async def one(upload_limiter: UploadLimiter) -> int:
        nonlocal under_way, most
        come = 0
        with upload_limiter.take() as slot:
            async for chunk in slot.in_turn(pieces(3)):
                under_way += 1
                most = max(most, under_way)
                await asyncio.sleep(0.001)  # a piece that is stored
                under_way -= 1
                come += len(chunk)
        return come

    async def run() -> list[int]:
        upload_limiter = UploadLimiter(20)
        return await asyncio.gather(*(one(upload_limiter) for _ in range(20)))

    assert asyncio.run(run()) == [3] * 20
    assert most == TURNS


def test_clients_that_send_nothing_hold_nobody_up() -> None:
    async def run() -> int:
        upload_limiter = UploadLimiter(TURNS + 1)
        silent = asyncio.Event()

        async def nothing() -> AsyncIterator[bytes]:
            await silent.wait()
            yield b""

        async def hang() -> None:
            with upload_limiter.take() as slot:
                await swallow(slot, nothing())

        hanging = [asyncio.create_task(hang()) for _ in range(TURNS)]
        await asyncio.sleep(0)
        with upload_limiter.take() as slot:
            come = await asyncio.wait_for(swallow(slot, pieces(5)), 5)
        silent.set()
        await asyncio.gather(*hanging)
        return come

    assert asyncio.run(run()) == 5


@pytest.mark.parametrize("how", ["fails", "is cancelled", "is cancelled while it waits"])
def test_a_scan_that_ends_early_gives_its_turn_back(how: str) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"x"
        if how == "fails":
            raise ConnectionError
        await asyncio.sleep(60)

    async def run() -> int:
        upload_limiter = UploadLimiter(3 * TURNS)

        async def one() -> None:
            with upload_limiter.take() as slot:
                await swallow(slot, broken())

        tasks = [asyncio.create_task(one()) for _ in range(3 * TURNS)]
        await asyncio.sleep(0 if how == "is cancelled while it waits" else 0.1)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        async with asyncio.timeout(5):
            for _ in range(TURNS):
                await upload_limiter.acquire_turn()  # all are there
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await upload_limiter.acquire_turn()  # and no more than that
        return TURNS

    assert asyncio.run(run()) == TURNS


def test_past_the_limit_a_scan_is_refused_until_another_has_ended() -> None:
    async def run() -> None:
        upload_limiter = UploadLimiter(1)
        with upload_limiter.take(), pytest.raises(ApiError, match="on their way in"), upload_limiter.take():
            pass
        with upload_limiter.take():
            pass

    asyncio.run(run())


async def seconds_for(upload_limiter: UploadLimiter, count: int, size_bytes: int) -> float:
    now = asyncio.get_running_loop().time
    with upload_limiter.take() as slot:
        upload_limiter.defer_to_reader()
        began = now()
        await swallow(slot, pieces(count, size_bytes))
        return now() - began


def test_while_somebody_asks_scans_keep_to_the_rate() -> None:
    async def run() -> float:
        upload_limiter = UploadLimiter(1)
        upload_limiter.rate = FixedRate()
        upload_limiter.rate.bytes_per_second = 1000
        return await seconds_for(upload_limiter, count=6, size_bytes=20)

    assert asyncio.run(run()) >= 5 * 20 / 1000  # the first piece waits for nothing


def test_while_nobody_asks_scans_come_as_fast_as_they_can() -> None:
    async def run() -> int:
        upload_limiter = UploadLimiter(1)
        upload_limiter.rate = FixedRate()
        upload_limiter.rate.bytes_per_second = 0.001
        with upload_limiter.take() as slot:
            return await asyncio.wait_for(swallow(slot, pieces(6)), 60)

    assert asyncio.run(run()) == 6


def test_who_asks_while_no_scan_comes_is_not_remembered() -> None:
    async def run() -> bool:
        upload_limiter = UploadLimiter(1)
        upload_limiter.defer_to_reader()
        with upload_limiter.take():
            return upload_limiter.is_deferring

    assert not asyncio.run(run())


@pytest.mark.parametrize(
    ("path", "is_deferring"),
    [("/v1/jobs/x", True), ("/healthz", False), ("/readyz", False), ("/lobewise/metrics", False)],
)
def test_scans_give_way_to_who_asks_and_not_to_probes(path: str, is_deferring: bool) -> None:
    async def nothing(scope: Scope, receive: Receive, send: Send) -> None:
        pass

    async def no_message(*_: object) -> Message:
        return {}

    async def run() -> bool:
        upload_limiter = UploadLimiter(1)
        doors = Doors(AccessSettings(access="open"), KeyRing(ObjectStore(MemoryStore())))
        envelope, app = RequestEnvelope(nothing, Metrics(), upload_limiter), FastAPI()
        app.state.doors, app.state.audit = doors, None
        with upload_limiter.take():
            await envelope(
                {"type": "http", "method": "GET", "path": path, "headers": [], "app": app}, no_message, no_message
            )
            return upload_limiter.is_deferring

    assert asyncio.run(run()) is is_deferring


def test_a_late_event_loop_slows_scans_down_once_for_what_is_under_way() -> None:
    rate = Rate()
    before = rate.bytes_per_second
    rate.adjust(2 * LATE_SECONDS, now=1.0)
    rate.adjust(2 * LATE_SECONDS, now=1.0 + rules.CALM_SECONDS / 2)
    assert rate.bytes_per_second == pytest.approx(before * rules.FALL)
    rate.adjust(2 * LATE_SECONDS, now=1.0 + 2 * rules.CALM_SECONDS)
    assert rate.bytes_per_second == pytest.approx(before * rules.FALL**2)


def test_a_calm_event_loop_lets_scans_come_faster() -> None:
    rate = Rate()
    before = rate.bytes_per_second
    for beat in range(100):
        rate.adjust(0.0, now=beat * rules.BEAT_SECONDS)
    assert rate.bytes_per_second == pytest.approx(before + 100 * rules.BEAT_SECONDS * rules.RISE_PER_SECOND)


@given(st.lists(st.floats(min_value=0, max_value=1), max_size=300))
def test_the_rate_stays_within_its_bounds(late: list[float]) -> None:
    rate = Rate()
    for beat, seconds in enumerate(late):
        rate.adjust(seconds, now=float(beat))
        assert LEAST_RATE <= rate.bytes_per_second <= MOST_RATE


def test_the_heart_beats_only_while_scans_come() -> None:
    async def run() -> tuple[int, int]:
        def hearts() -> int:
            return len(asyncio.all_tasks()) - 1

        upload_limiter = UploadLimiter(1)
        with upload_limiter.take():
            await asyncio.sleep(0)
            beating = hearts()
        await asyncio.sleep(10 * rules.BEAT_SECONDS)
        return beating, hearts()

    assert asyncio.run(run()) == (1, 0)


def test_the_limit_is_told_while_somebody_asks() -> None:
    async def run() -> list[tuple[int, float]]:
        upload_limiter = UploadLimiter(2)
        told = [(upload_limiter.taken(), upload_limiter.bytes_per_second())]
        with upload_limiter.take():
            told.append((upload_limiter.taken(), upload_limiter.bytes_per_second()))
            upload_limiter.defer_to_reader()
            told.append((upload_limiter.taken(), upload_limiter.bytes_per_second()))
        return told

    assert asyncio.run(run()) == [(0, float("inf")), (1, float("inf")), (1, FIRST_RATE)]

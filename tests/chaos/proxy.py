"""Stands between the service and its object storage, and lets it fail: errors, slowness, answers that break off."""

import asyncio
import threading
from contextlib import suppress
from random import Random
from typing import Final, Literal

Mood = Literal["well", "errors", "slow", "cut", "gone"]
_ERROR: Final = (
    b"HTTP/1.1 500 Internal Server Error\r\nContent-Type: application/xml\r\nContent-Length: 0\r\n"
    b"Connection: close\r\n\r\n"
)
_CHUNK_BYTES: Final = 1 << 16


class Proxy:
    """Listens on a loopback port until `close`; `mood` may be set at any time, by any thread."""

    def __init__(self, target_port: int, rng: Random) -> None:
        self.mood: Mood = "well"
        self.port = 0
        self._target_port, self._rng = target_port, rng
        self._loop = asyncio.new_event_loop()
        self._is_ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._thread.start()
        self._is_ready.wait()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._is_ready.set()
        self._loop.run_forever()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.CancelledError):
            if self.mood == "gone":
                writer.transport.abort()
                return
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
            await asyncio.gather(self._ask(reader, there_writer, writer), self._answer(there_reader, writer))
        writer.close()

    async def _ask(self, reader: asyncio.StreamReader, there: asyncio.StreamWriter, back: asyncio.StreamWriter) -> None:
        while data := await reader.read(_CHUNK_BYTES):
            if self.mood == "errors" and self._rng.random() < 0.5:
                back.write(_ERROR)
                await back.drain()
                break
            there.write(data)
            await there.drain()
        there.close()
        back.close()

    async def _answer(self, there: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        while data := await there.read(_CHUNK_BYTES):
            if self.mood == "slow":
                await asyncio.sleep(self._rng.uniform(0.2, 1.5))
            if self.mood in ("cut", "gone") and (self.mood == "gone" or self._rng.random() < 0.3):
                back.write(data[: self._rng.randrange(len(data))])
                back.transport.abort()
                return
            back.write(data)
            await back.drain()
        back.close()

"""Stands between the service and its object storage, and lets it fail: errors, slowness, answers that break off."""

import asyncio
from asyncio import StreamWriter
from random import Random
from typing import Final, Literal

from tests.support.proxy import Proxy

Mood = Literal["well", "errors", "slow", "cut", "gone"]
ERROR: Final = (
    b"HTTP/1.1 500 Internal Server Error\r\nContent-Type: application/xml\r\nContent-Length: 0\r\n"
    b"Connection: close\r\n\r\n"
)


class FailingProxy(Proxy):
    """`mood` may be set at any time, by any thread."""

    def __init__(self, target_port: int, rng: Random) -> None:
        self.mood: Mood = "well"
        self._rng = rng
        super().__init__(target_port)

    def takes_connection(self) -> bool:
        return self.mood != "gone"

    async def ask(self, data: bytes, server: StreamWriter, client: StreamWriter) -> bool:
        if self.mood == "errors" and self._rng.random() < 0.5:
            client.write(ERROR)
            await client.drain()
            return False
        return await super().ask(data, server, client)

    async def answer(self, data: bytes, client: StreamWriter) -> bool:
        if self.mood == "slow":
            await asyncio.sleep(self._rng.uniform(0.2, 1.5))
        if self.mood == "gone" or (self.mood == "cut" and self._rng.random() < 0.3):
            client.write(data[: self._rng.randrange(len(data))])
            client.transport.abort()
            return False
        return await super().answer(data, client)

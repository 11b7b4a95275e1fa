"""A proxy on a loopback port, between a service and the server that it asks."""

import asyncio
import threading
from asyncio import StreamReader, StreamWriter
from contextlib import suppress
from typing import Final

CHUNK_BYTES: Final = 1 << 16


class Proxy:
    """Passes everything on until `close`. A subclass may look at what passes, change it, or break the connection."""

    def __init__(self, target_port: int) -> None:
        self.port = 0
        self._target_port = target_port
        self._loop = asyncio.new_event_loop()
        self._is_ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._thread.start()
        self._is_ready.wait()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        # What still passes is broken off, or asyncio would complain of it once it is collected.
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        if tasks:
            self._loop.run_until_complete(asyncio.wait(tasks))
        self._loop.close()

    def takes_connection(self) -> bool:
        """Whether a new connection is let through."""
        return True

    async def ask(self, data: bytes, server: StreamWriter, client: StreamWriter) -> bool:  # noqa: ARG002 (it may answer)
        """A piece of a request is on its way to the server. Returns whether the connection goes on."""
        server.write(data)
        await server.drain()
        return True

    async def answer(self, data: bytes, client: StreamWriter) -> bool:
        """A piece of an answer is on its way to the client. Returns whether the connection goes on."""
        client.write(data)
        await client.drain()
        return True

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._is_ready.set()
        self._loop.run_forever()

    async def _serve(self, reader: StreamReader, client: StreamWriter) -> None:
        with suppress(OSError, asyncio.CancelledError):
            if not self.takes_connection():
                client.transport.abort()
                return
            server_reader, server = await asyncio.open_connection("127.0.0.1", self._target_port)
            await asyncio.gather(self._ask_all(reader, server, client), self._answer_all(server_reader, client))
        client.close()

    async def _ask_all(self, reader: StreamReader, server: StreamWriter, client: StreamWriter) -> None:
        while (data := await reader.read(CHUNK_BYTES)) and await self.ask(data, server, client):
            pass
        server.close()
        client.close()

    async def _answer_all(self, reader: StreamReader, client: StreamWriter) -> None:
        while (data := await reader.read(CHUNK_BYTES)) and await self.answer(data, client):
            pass
        client.close()

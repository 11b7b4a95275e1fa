"""How the gateway reads what clients send: in pieces so small that 50 uploads at once fit into memory."""

import asyncio
from typing import Any, Final, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

PIECE_BYTES: Final = 128 << 10
"""An upload holds two at most: one that was read ahead, and one on its way to the blob store."""


class PiecewiseProtocol(asyncio.BufferedProtocol):
    """uvicorn's protocol, read through one buffer that all connections of an event loop share.

    Without it the loop reads up to 256 KB from each and every connection, in memory of its own. It stands before
    uvicorn's class and not below it, because the loop takes whatever is an `asyncio.Protocol` for one without a buffer.
    """

    _piece: Final = memoryview(bytearray(PIECE_BYTES))

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self._http = HttpToolsProtocol(*arguments, **named)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._http.connection_made(cast("asyncio.Transport", transport))

    def connection_lost(self, exc: Exception | None) -> None:
        self._http.connection_lost(exc)

    def get_buffer(self, _sizehint: int) -> memoryview:
        """The loop fills it and calls `buffer_updated` before it reads from another connection."""
        return self._piece

    def buffer_updated(self, nbytes: int) -> None:
        """Parsed at once, and what is kept of it is copied: the buffer is free again."""
        self._http.data_received(cast("bytes", self._piece[:nbytes]))

    def eof_received(self) -> None:
        self._http.eof_received()

    def pause_writing(self) -> None:
        self._http.pause_writing()

    def resume_writing(self) -> None:
        self._http.resume_writing()

"""uvicorn's protocol, read in small pieces; old clients, and those who still send, get their answer too."""

import asyncio
import re
import threading
from typing import Any, Final, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

#: An upload holds two at most: one that was read ahead, and one on its way to the blob store. Measured with 50 scans:
#: 22 MiB, where the loop's own 256 KB take 36; 64 and 96 KiB save no more and cost throughput.
PIECE_BYTES: Final = 128 << 10
#: So long what a client still sends is taken and dropped before its connection ends.
LINGER_SECONDS: Final = 5.0

_UPGRADE: Final = re.compile(rb"\r\nUpgrade:", re.IGNORECASE)


class _Cycle(RequestResponseCycle):
    is_unframed = False
    is_lingering = False

    async def send(self, message: Any) -> None:
        is_last = False
        if message["type"] == "http.response.start":
            # uvicorn would choose chunks, which HTTP/1.0 does not know: without a length, such an answer ends with its
            # connection (RFC 9112, section 6.1).
            if self.scope["http_version"] == "1.0" and all(
                name.lower() != b"content-length" for name, _ in message.get("headers", ())
            ):
                self.is_unframed, self.chunked_encoding = True, False
        else:
            is_last = not message.get("more_body", False)
            if self.is_unframed:
                self.expected_content_length = len(message.get("body", b""))
        # A socket that is closed with bytes unread in it resets the connection, and the other side, such as a proxy,
        # loses the answer that says why its body is not wanted. So only our half is closed until it has heard.
        self.is_lingering = is_last and self.more_body and not self.keep_alive
        self.keep_alive = self.keep_alive or self.is_lingering
        await super().send(message)
        if self.is_lingering and not self.transport.is_closing():
            self.transport.write_eof()
            asyncio.get_running_loop().call_later(LINGER_SECONDS, self.transport.close)


class _HttpProtocol(HttpToolsProtocol):
    def data_received(self, data: bytes) -> None:
        # Java's client asks for HTTP/2 in its first request without TLS, and the parser would then take what follows,
        # the body first, for another protocol. A server may ignore the wish (RFC 9110, section 7.8): no other is spoken
        # here, so the header is renamed before it is parsed.
        if self.cycle is None or not self.cycle.more_body:
            head, blank_line, rest = bytes(data).partition(b"\r\n\r\n")
            data = _UPGRADE.sub(b"\r\nIgnored:", head) + blank_line + rest
        super().data_received(data)

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        # Made there and then, and not begun yet: its task runs when this callback is over.
        self.cycle.__class__ = _Cycle

    def on_message_complete(self) -> None:
        super().on_message_complete()
        if cast("_Cycle", self.cycle).is_lingering:
            self.transport.close()


class _Buffers(threading.local):
    """One an event loop: two loops of one process would read into each other's bytes."""

    def __init__(self) -> None:
        self.piece: Final = memoryview(bytearray(PIECE_BYTES))


_BUFFERS: Final = _Buffers()


class PiecewiseProtocol(asyncio.BufferedProtocol):
    """uvicorn's protocol, read through one buffer that all connections of an event loop share.

    Without it the loop reads up to 256 KB from each and every connection, in memory of its own. It stands before
    uvicorn's class and not below it, because the loop takes whatever is an `asyncio.Protocol` for one without a buffer.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self._piece: Final = _BUFFERS.piece
        self._http = _HttpProtocol(*arguments, **named)

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

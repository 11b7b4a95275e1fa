"""uvicorn's protocol, in small pieces and within limits; old clients, and those who still send, get their answer."""

import asyncio
import logging
import re
import threading
from typing import Any, Final, cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from api.connection_limits import Connections, Refusal
from api.middleware import SAFE_HEADERS
from jobs import problems
from jobs.settings import ApiSettings

logger = logging.getLogger("lobewise.api")

#: An upload holds two at most: one that was read ahead, and one on its way to the blob store. Measured with 50 scans:
#: 22 MiB, where the loop's own 256 KB take 36; 64 and 96 KiB save no more and cost throughput.
PIECE_BYTES: Final = 128 << 10
#: So long what a client still sends is taken and dropped before its connection ends.
LINGER_SECONDS: Final = 5.0

#: Of one whose request was refused, so many bytes are; then it is read no more, and its connection ends.
LINGER_BYTES: Final = 1 << 20
LINGER_REFUSED_SECONDS: Final = 1.0

_UPGRADE: Final = re.compile(rb"\nUpgrade:", re.IGNORECASE)
_END_OF_HEAD: Final = b"\r\n\r\n"


class _RefusedError(Exception):
    """Ends the parsing. What is answered is in the protocol: the parser hides the cause."""


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
    """Knows where a head begins and ends, and ends the connection of a head, or of what is like one, without end."""

    def __init__(self, connections: Connections, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._all = connections
        self._limits = connections.settings
        self._is_in_head = True
        #: The last bytes of this head that were parsed, and the begin of a line that waits for its rest.
        self._parsed, self._held = b"", b""
        self._has_progressed = False
        self._without_progress_bytes = 0
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._refusal: Refusal | None = None
        self._is_refused = False
        self._is_told = False
        self._dropped_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast("asyncio.Transport", transport))
        refusal = self._all.enter(self._address)
        if refusal is None:
            self._watch_head()
        elif self._all.may_tell():
            self._is_told = True
            self._refuse(refusal)
        else:
            self._is_refused = True
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._all.leave(self._address)
        if self._is_told:
            self._all.has_told()
        self._unwatch_head()
        super().connection_lost(exc)

    @property
    def _address(self) -> str | None:
        return self.client[0] if self.client else None

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            self._dropped_bytes += len(data)
            if self._dropped_bytes > LINGER_BYTES and not self.transport.is_closing():
                self.transport.pause_reading()
            return
        self._has_progressed = False
        super().data_received(self.without_upgrade(bytes(data)) if self._is_in_head else data)
        if self._is_refused:
            return
        # A head, a line between two chunks or what follows the last: the parser keeps it all until it ends.
        self._without_progress_bytes = 0 if self._has_progressed else self._without_progress_bytes + len(data)
        if self._without_progress_bytes > self._limits.max_header_bytes:
            self._refuse(self._headers_too_large())
        elif self._is_in_head and not self._has_progressed and self._head_timer is None:
            self._watch_head()  # of a connection that is used again: empty lines, before a request that never comes

    def without_upgrade(self, data: bytes) -> bytes:
        """What to parse now of a head: without a wish for another protocol, whose name may come in two pieces.

        Java's client asks for HTTP/2 in its first request without TLS, and the parser would then take what follows, the
        body first, for another protocol. A server may ignore the wish (RFC 9110, section 7.8): no other is spoken here,
        so the header is renamed before it is parsed.
        """
        seen = self._parsed + self._held + data
        end = seen.find(_END_OF_HEAD)
        head, rest = (seen, b"") if end < 0 else (seen[:end], seen[end:])
        head = _UPGRADE.sub(b"\nIgnored:", head)
        self._held = b""
        if end < 0 and (line := head.rfind(b"\n") + 1):
            begun = head[line:]
            if 0 < len(begun) <= len("upgrade") and b"upgrade".startswith(begun.lower()):
                head, self._held = head[:line], begun
        fed = (head + rest)[len(self._parsed) :]
        self._parsed = head[-3:]
        return fed

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes = 0
        self._watch_head()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        limit_bytes = self._limits.max_url_bytes
        if len(self.url) > limit_bytes:
            self._refusal = Refusal(
                problems.URL_TOO_LONG, f"the limit is {limit_bytes} bytes", {"limit_bytes": limit_bytes}
            )
            raise _RefusedError
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        if len(self.headers) > self._limits.max_headers:
            limit = self._limits.max_headers
            self._refusal = Refusal(problems.HEADERS_TOO_LARGE, f"the limit is {limit} headers", {"limit": limit})
            raise _RefusedError
        self._count(len(name) + len(value))

    def _count(self, size_bytes: int) -> None:
        self._head_bytes += size_bytes
        if self._head_bytes > self._limits.max_header_bytes:
            self._refusal = self._headers_too_large()
            raise _RefusedError

    def _headers_too_large(self) -> Refusal:
        limit_bytes = self._limits.max_header_bytes
        evidence = {"limit_bytes": limit_bytes}
        return Refusal(problems.HEADERS_TOO_LARGE, f"the limit is {limit_bytes} bytes", dict(evidence))

    def on_headers_complete(self) -> None:
        self._has_progressed, self._is_in_head, self._parsed = True, False, b""
        self._unwatch_head()
        super().on_headers_complete()
        # Made there and then, and not begun yet: its task runs when this callback is over.
        self.cycle.__class__ = _Cycle

    def on_body(self, body: bytes) -> None:
        self._has_progressed = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._has_progressed, self._is_in_head = True, True
        super().on_message_complete()
        if cast("_Cycle", self.cycle).is_lingering:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Of what the parser does not take; and, as it hides why, of what was refused while it parsed."""
        self._refuse(self._refusal or Refusal(problems.MALFORMED_REQUEST, msg, {}))

    def _watch_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self._limits.head_seconds, self.on_late_head)

    def _unwatch_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def on_late_head(self) -> None:
        self._head_timer = None
        if self.cycle is not None and not self.cycle.response_complete:
            # It is not read on while the request before it is answered: its time begins then.
            self._watch_head()
        elif self.scope is None:  # not a byte of a request came
            self.transport.close()
        else:
            seconds = self._limits.head_seconds
            evidence = {"head_seconds": seconds}
            detail = f"the headers were not complete after {seconds:g} seconds"
            self._refuse(Refusal(problems.HEAD_TIMEOUT, detail, dict(evidence)))

    def _refuse(self, refusal: Refusal) -> None:
        """Answer in place of an application, and end the connection."""
        self._is_refused = True
        self._unwatch_head()
        self._unset_keepalive_if_required()
        has_begun = self.cycle is not None and not self.cycle.response_complete
        if has_begun:
            # Its application gets nothing more of the body, and has nobody to answer.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.transport.is_closing():
            return
        if has_begun and self.cycle.response_started:
            self.transport.close()
            return
        logger.info("a connection was refused", extra={"status": refusal.status, "problem": refusal.problem.slug})
        self._all.answered(refusal.status)
        status_line = STATUS_LINE[refusal.status]
        self.transport.write(refusal.written(status_line, self._limits.unavailable_seconds, SAFE_HEADERS))
        # As after a body that is not wanted: whoever still sends would lose the answer.
        self.transport.write_eof()
        self.loop.call_later(LINGER_REFUSED_SECONDS, self.transport.close)


class _Buffers(threading.local):
    """One an event loop: two loops of one process would read into each other's bytes."""

    def __init__(self) -> None:
        self.piece: Final = memoryview(bytearray(PIECE_BYTES))


_BUFFERS: Final = _Buffers()
_DEFAULTS: Final = ApiSettings.model_construct()


class PiecewiseProtocol(asyncio.BufferedProtocol):
    """uvicorn's protocol, read through one buffer that all connections of an event loop share.

    Without it the loop reads up to 256 KB from each and every connection, in memory of its own. It stands before
    uvicorn's class and not below it, because the loop takes whatever is an `asyncio.Protocol` for one without a buffer.
    """

    def __init__(self, *arguments: Any, connections: Connections | None = None, **named: Any) -> None:
        """`connections` are those of the server; without them this one has the limits that are set by default."""
        self._piece: Final = _BUFFERS.piece
        self._http = _HttpProtocol(connections or Connections(_DEFAULTS), *arguments, **named)

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

"""Servers of scans and receivers that mean no good: they redirect, drip, break off, and tell who was reached."""

import ssl
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import AF_INET, AF_INET6, IPPROTO_IPV6, IPV6_V6ONLY
from typing import Final

DATA: Final = bytes(range(256)) * 400


@dataclass
class Reached:
    """Who was connected to, with the names that the client gave: address, `Host`, TLS name, path."""

    got: list[tuple[str, str, str, str]] = field(default_factory=list)


class Handler(BaseHTTPRequestHandler):
    """The last part of a path says what happens; `to/HEX` redirects to the address that is written in hex."""

    reached: Reached
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        address = str(self.connection.getsockname()[0]).removeprefix("::ffff:")
        name = str(getattr(self.connection, "said", ""))
        self.reached.got.append((address, self.headers["host"], name, self.path))
        what, _, rest = self.path.removeprefix("/ct/").partition("/")
        with suppress(OSError):
            getattr(self, f"_{what.replace('-', '_')}")(rest)
        self.close_connection = True

    do_POST = do_GET  # noqa: N815 (the base looks for it)

    def _answer(self, status: int, size_bytes: int = 0, **headers: str) -> None:
        self.send_response(status)
        for header, value in headers.items():
            self.send_header(header, value)
        self.send_header("content-length", str(size_bytes))
        self.end_headers()

    def _scan(self, _rest: str) -> None:
        self._answer(200, len(DATA))
        self.wfile.write(DATA)

    def _to(self, rest: str) -> None:
        self._answer(302, location=bytes.fromhex(rest).decode())

    def _loop(self, _rest: str) -> None:
        self._answer(307, location="/ct/loop")

    def _failing(self, _rest: str) -> None:
        self._answer(503)

    def _cut(self, _rest: str) -> None:
        self._answer(200, len(DATA))
        self.wfile.write(DATA[:1000])
        self.wfile.flush()

    def _drip(self, _rest: str) -> None:
        self._answer(200, len(DATA))
        for _ in range(200):
            self.wfile.write(b"x")
            self.wfile.flush()
            time.sleep(0.05)

    def _drip_headers(self, _rest: str) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\n")
        for _ in range(200):
            self.wfile.write(b"x-more: x\r\n")
            self.wfile.flush()
            time.sleep(0.05)

    def log_message(self, *_: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    context: ssl.SSLContext | None = None

    def server_bind(self) -> None:
        if self.address_family == AF_INET6:
            self.socket.setsockopt(IPPROTO_IPV6, IPV6_V6ONLY, 1)
        super().server_bind()

    def finish_request(self, request, client_address) -> None:  # type: ignore[no-untyped-def]
        if self.context is not None:
            request.settimeout(10)
            try:
                request = self.context.wrap_socket(request, server_side=True)
            except (ssl.SSLError, OSError):
                return  # the client did not like the certificate
        super().finish_request(request, client_address)


class _Named(ssl.SSLSocket):
    """Remembers the name that the client said."""

    said = ""


def serve(address: str, port: int, reached: Reached, context: ssl.SSLContext | None = None) -> _Server:
    """A server at the address, with TLS if there is a context; `shutdown` ends it."""
    if context is not None:
        context.sslsocket_class = _Named

        def note(socket: ssl.SSLSocket, name: str | None, _: ssl.SSLContext) -> None:
            if isinstance(socket, _Named):
                socket.said = name or ""

        context.sni_callback = note  # type: ignore[assignment]
    handler = type("Bound", (Handler,), {"reached": reached})
    kind = type("Server", (_Server,), {"address_family": AF_INET6 if ":" in address else AF_INET, "context": context})
    server: _Server = kind((address, port), handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    return server

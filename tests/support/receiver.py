"""A receiver of callbacks, on the loopback interface."""

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Receiver:
    """Where callbacks may go, and the bodies that came."""

    url: str
    got: "queue.Queue[bytes]"


@contextmanager
def receiving() -> Iterator[Receiver]:
    """A receiver that takes whatever comes."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.put(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    got: queue.Queue[bytes] = queue.Queue()
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Receiver(f"http://127.0.0.1:{server.server_port}/ended", got)
        server.shutdown()

"""What access adds to a poll: `.venv/bin/python -m tests.access.polls [--polls 4000]`.

Two gateways over the same jobs, one open, one that wants a key or a token; the same connection polls the same job of
both by turns, so that whatever else the machine does hits all alike.
"""

import argparse
import http.client
import json
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import quantiles
from typing import Final

import httpx
from joserfc import jwt
from joserfc.jwk import KeySet, RSAKey

from jobs.access.caller import Role
from jobs.access.keys import Keys
from jobs.bootstrap import blobs_of
from jobs.settings import JobsSettings
from tests.support.processes import answers, free_ports, running, until

ROOT: Final = Path(__file__).resolve().parents[2]
NIFTI: Final = (b"\x5c\x01\0\0" + bytes(340) + b"n+1\0").ljust(1024, b"\0")
#: Of others, so that the gateway has something to look through.
OTHER_KEYS: Final = 200
WARM_UP: Final = 300


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--polls", type=int, default=4000, help="of each kind")
    polls = parser.parse_args().polls
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        issuer, token = stack.enter_context(_Issuer()).address_and_token()
        keys = Keys(blobs_of(JobsSettings(data_dir=folder)))
        for number in range(OTHER_KEYS):
            keys.create(f"other {number}", frozenset({Role.READ}))
        key, _ = keys.create("poller", frozenset({Role.READ}))
        ports = dict(zip(("open", "required"), free_ports(2), strict=True))
        oidc = {"LOBEWISE_OIDC_ISSUER": issuer, "LOBEWISE_OIDC_AUDIENCE": "lobewise"}
        for access, port in ports.items():
            environment = {"LOBEWISE_ACCESS": access, "LOBEWISE_API_PORT": str(port), "LOBEWISE_DATA_DIR": name}
            log = folder / f"{access}.log"
            stack.enter_context(running([sys.executable, "-m", "api"], environment | oidc, log, ROOT))
            if not until(lambda port=port: answers(f"http://127.0.0.1:{port}/healthz"), 60):  # type: ignore[misc]
                sys.exit(log.read_text())
        lines = {access: http.client.HTTPConnection("127.0.0.1", port, timeout=30) for access, port in ports.items()}
        posted = httpx.post(f"http://127.0.0.1:{ports['open']}/v1/jobs", files={"file": NIFTI}, trust_env=False).json()
        print(f"{OTHER_KEYS + 1} keys, {polls} polls of each kind, by turns")
        kinds = {
            "open": (lines["open"], {}),
            "a key": (lines["required"], {"Authorization": f"Bearer {key}"}),
            "a token": (lines["required"], {"Authorization": f"Bearer {token}"}),
        }
        seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
        for turn in range(WARM_UP + polls):
            for kind, (line, headers) in kinds.items():
                began = time.perf_counter()
                line.request("GET", f"/v1/jobs/{posted['id']}", headers=headers)
                answer = line.getresponse()
                answer.read()
                if answer.status != http.client.OK:
                    sys.exit(f"{kind}: {answer.status}")
                if turn >= WARM_UP:
                    seconds[kind].append(time.perf_counter() - began)
        base: list[float] = []
        print("| poll with | p50 ms | p99 ms | p50 to open | p99 to open |\n|---|---|---|---|---|")
        for kind, taken in seconds.items():
            cuts = quantiles(taken, n=100)
            found = [1000 * cuts[49], 1000 * cuts[98]]
            base = base or found
            ratios = " | ".join(f"{mine / other:.3f}" for mine, other in zip(found, base, strict=True))
            print(f"| {kind} | {found[0]:.3f} | {found[1]:.3f} | {ratios} |")


class _Issuer:
    """Publishes one key, and has signed one token with it."""

    def __enter__(self) -> "_Issuer":
        self._key = key = RSAKey.generate_key(2048, {"kid": "one"})

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                host, port = self.server.server_address[:2]
                address = f"http://{host!s}:{port}"
                document: object = {"issuer": address, "jwks_uri": f"{address}/jwks"}
                if self.path == "/jwks":
                    document = KeySet([key]).as_dict(private=False)
                body = json.dumps(document).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def address_and_token(self) -> tuple[str, str]:
        address = f"http://127.0.0.1:{self._server.server_address[1]}"
        claims = {"iss": address, "aud": "lobewise", "sub": "poller", "exp": int(time.time()) + 3600, "roles": ["read"]}
        return address, jwt.encode({"alg": "RS256", "kid": "one"}, claims, self._key)


if __name__ == "__main__":
    main()

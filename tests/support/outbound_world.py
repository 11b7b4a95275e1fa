"""A network of its own with hosts of every kind, a DNS server that changes its mind, and what is reached in it.

`unshare --map-root-user --net --mount python -m tests.support.outbound_world FOLDER` prints what came of each case as
JSON. All addresses are of the loopback interface of that network: no packet leaves it.
"""

import asyncio
import json
import os
import socket
import struct
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx

from api.callback_message import Message
from api.callback_sender import send
from jobs.errors import JobsError
from jobs.models import ScanSource
from jobs.outbound import AsyncPinnedBackend, OutboundRules
from jobs.proxies import AsyncRoutedTransport
from jobs.remote_sources import FetchLimits, fetch
from tests.support.certificates import make
from tests.support.outbound_servers import Reached, serve

PUBLIC, PUBLIC_6, PRIVATE, METADATA, METADATA_6 = "1.2.3.4", "2600::7", "10.9.8.7", "169.254.169.254", "fd00:ec2::254"
HERE: Final = (PUBLIC, PUBLIC_6, PRIVATE, METADATA, METADATA_6, "100.64.0.1", "fd00::7")
NAMESERVER: Final = "127.0.0.53"

#: Addresses by host; a list of lists is what it has at the first look-up, at the second and so on.
HOSTS: Final[dict[str, list[Any]]] = {
    "public": [PUBLIC],
    "other": [PUBLIC],
    "public6": [PUBLIC_6],
    "private": [PRIVATE],
    "private6": ["fd00::7"],
    "metadata": [METADATA],
    "metadata6": [METADATA_6],
    "loopback": ["127.0.0.1"],
    "loopback6": ["::1"],
    "mapped": ["::ffff:127.0.0.1"],
    "nat64": ["64:ff9b::7f00:1"],
    "sixtofour": ["2002:7f00:1::"],
    "compatible": ["::127.0.0.1"],
    "unspecified": ["0.0.0.0"],  # noqa: S104 (what a host may say of itself)
    "unspecified6": ["::"],
    "multicast": ["224.0.0.1"],
    "broadcast": ["255.255.255.255"],
    "linklocal6": ["fe80::1"],
    "shared": ["100.64.0.1"],
    "mixed": ["127.0.0.1", PUBLIC],
    "half-dead": ["1.2.3.5", PUBLIC],
    "rebinding": [[PUBLIC], ["127.0.0.1"]],
    "rebinding-unpinned": [[PUBLIC], ["127.0.0.1"]],
    "rebinding-receiver": [[PUBLIC], ["127.0.0.1"]],
    "rebinding-redirect": [[PUBLIC], ["127.0.0.1"]],
}
DOMAIN: Final = ".scans.example"


def answer_names(server: socket.socket) -> None:
    """Answer A and AAAA of HOSTS, for ever; any other name does not exist."""
    asked: Counter[tuple[str, int]] = Counter()
    while True:
        query, client = server.recvfrom(512)
        labels, at = [], 12
        while query[at]:
            labels.append(query[at + 1 : at + 1 + query[at]].decode())
            at += 1 + query[at]
        kind = int.from_bytes(query[at + 1 : at + 3])
        name = ".".join(labels).removesuffix(DOMAIN)
        found = HOSTS.get(name, [])
        if found and isinstance(found[0], list):
            found = found[min(asked[name, kind], len(found) - 1)]
        asked[name, kind] += 1
        wanted = {1: socket.AF_INET, 28: socket.AF_INET6}.get(kind)
        records = [
            socket.inet_pton(wanted, address)
            for address in found
            if wanted and (":" in address) == (wanted == socket.AF_INET6)
        ]
        flags = 0x8180 if name in HOSTS else 0x8183
        head = query[:2] + struct.pack(">HHHHH", flags, 1, len(records), 0, 0)
        rows = b"".join(b"\xc0\x0c" + struct.pack(">HHIH", kind, 1, 0, len(data)) + data for data in records)
        server.sendto(head + query[12 : at + 5] + rows, client)


def enter() -> None:
    """Make the network: stops where it is not one of loopback alone."""
    links = subprocess.run(["ip", "-o", "link"], check=True, text=True, capture_output=True).stdout.splitlines()
    if len(links) != 1 or " lo:" not in links[0]:
        sys.exit("this is no network of its own")
    run = [["ip", "link", "set", "lo", "up"]]
    run += [["ip", "address", "add", f"{a}/{128 if ':' in a else 32}", "dev", "lo"] for a in HERE]
    resolv = Path(sys.argv[1]) / "resolv.conf"
    resolv.write_text(f"nameserver {NAMESERVER}\n")
    run += [["mount", "--bind", str(resolv), "/etc/resolv.conf"]]
    for command in run:
        subprocess.run(command, check=True, capture_output=True)


@dataclass
class World:
    """What is asked of it, and who was reached meanwhile."""

    folder: Path
    reached: Reached

    def ask(self, act: Callable[[], str]) -> dict[str, Any]:
        self.reached.got.clear()
        try:
            outcome = act()
        except JobsError as error:
            outcome = type(error).__name__
        return {"outcome": outcome, "reached": list(self.reached.got)}

    def fetched(self, host: str, path: str = "scan", *networks: str, also: tuple[str, ...] = ()) -> dict[str, Any]:
        origin = f"https://{host}{DOMAIN if host[-1].isalnum() and not host[0].isdigit() else ''}"
        allowed = (f"{origin}/ct", *(f"https://{name}{DOMAIN}/ct" for name in also))
        limits = FetchLimits(1 << 20, networks, seconds=5.0)

        def act() -> str:
            info = fetch(ScanSource(url=f"{origin}/ct/{path}"), self.folder / "scan", allowlist=allowed, limits=limits)
            return f"{info.size_bytes} bytes"

        return self.ask(act)

    def called(self, host: str, *networks: str) -> dict[str, Any]:
        async def act() -> str:
            transport = AsyncRoutedTransport(httpx.Limits(), AsyncPinnedBackend(OutboundRules.of(networks)))
            async with httpx.AsyncClient(transport=transport) as client:
                answer = await send(client, f"http://{host}{DOMAIN}/ct/scan", Message("{}", {}), 3.0)
            return str(answer.http_status or answer.fault)

        return self.ask(lambda: asyncio.run(act()))


def to(url: str) -> str:
    return f"to/{url.encode().hex()}"


def main() -> None:
    enter()
    folder = Path(sys.argv[1])
    context, trusted = make(folder, f"DNS:*{DOMAIN}", f"IP:{PRIVATE}", "IP:fd00::7", f"IP:{METADATA}")
    os.environ["SSL_CERT_FILE"] = str(trusted)
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind((NAMESERVER, 53))
    threading.Thread(target=answer_names, args=(server,), daemon=True).start()
    reached = Reached()
    for address in ("0.0.0.0", "::"):  # noqa: S104 (nobody else is in this network)
        serve(address, 443, reached, context)
        serve(address, 80, reached)
    world = World(folder, reached)
    found: dict[str, Any] = {host: world.fetched(host) for host in HOSTS if not host.startswith("rebinding")}
    found["private, listed"] = world.fetched("private", "scan", "10.9.0.0/16")
    found["private6, listed"] = world.fetched("private6", "scan", "fd00::/32")
    found["private, by number"] = world.fetched(PRIVATE)
    found["private6, by number"] = world.fetched("[fd00::7]")
    found["metadata, its network listed"] = world.fetched("metadata", "scan", "169.254.0.0/16")
    found["metadata6, its network listed"] = world.fetched("metadata6", "scan", "fd00::/8")
    found["metadata, by number"] = world.fetched(METADATA)
    found["metadata, itself listed"] = world.fetched("metadata", "scan", METADATA)
    found["no such host"] = world.fetched("nowhere")
    found["another's certificate"] = world.ask(lambda: _stranger(folder))
    found["rebinding"] = world.fetched("rebinding")
    found["rebinding, again"] = world.fetched("rebinding")
    found["rebinding, unpinned"] = world.ask(_unpinned)
    target = f"https://other{DOMAIN}/ct/scan"
    found["redirect, allowed"] = world.fetched("public", to(target), also=("other",))
    found["redirect, not allowed"] = world.fetched("public", to(target))
    found["redirect, out of the prefix"] = world.fetched("public", to(f"https://public{DOMAIN}/ct/..%5cadmin"))
    found["redirect, plain"] = world.fetched("public", to(f"http://public{DOMAIN}/ct/scan"))
    found["redirect, to loopback"] = world.fetched(
        "public", to(f"https://loopback{DOMAIN}/ct/scan"), also=("loopback",)
    )
    found["redirect, to a number"] = world.fetched("public", to(f"https://{METADATA}/latest/meta-data"))
    found["redirect, rebinding"] = world.fetched(
        "rebinding-redirect", to(f"https://rebinding-redirect{DOMAIN}/ct/scan"), also=("rebinding-redirect",)
    )
    for host in ("public", "private", "loopback", "metadata", "mixed", "rebinding-receiver"):
        found[f"callback, {host}"] = world.called(host)
    found["callback, rebinding-receiver, again"] = world.called("rebinding-receiver")
    found["callback, private, listed"] = world.called("private", "10.9.0.0/16")
    print(json.dumps(found))


def _stranger(folder: Path) -> str:
    """A host whose name leads there, with the certificate of another."""
    HOSTS["a.stranger"] = [PUBLIC]  # one label more than the certificate's wildcard has
    url = f"https://a.stranger{DOMAIN}/ct/scan"
    fetch(ScanSource(url=url), folder / "scan", allowlist=(url,), limits=FetchLimits(1 << 20))
    return "fetched"


def _unpinned() -> str:
    """What the pin is for: the name is looked at, then httpx looks it up again."""
    name = f"rebinding-unpinned{DOMAIN}"
    OutboundRules.of(()).addresses(name, socket.getaddrinfo(name, 80, type=socket.SOCK_STREAM))
    return str(httpx.get(f"http://{name}/ct/scan", trust_env=False).status_code)


if __name__ == "__main__":
    main()

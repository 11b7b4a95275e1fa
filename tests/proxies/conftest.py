"""Real proxies on 127.0.0.1, with the files that operators begin with (`deploy/proxies`), before a real gateway."""

import os
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from jobs.settings import ApiSettings, ForwardedHeader
from tests.api.conftest import Service, running_service
from tests.support.processes import free_ports, running, until

CONFIGURATIONS = Path(__file__).parents[2] / "deploy" / "proxies"
PUBLIC = "https://ct.example.org/lobewise"
RECEIVER = "https://pacs.example/lobewise/finished"
MAX_UPLOAD_BYTES = 48 << 20
#: All of 127.0.0.0/8 is this machine, and the gateway trusts 127.0.0.1 alone: so this is the address of a stranger.
STRANGER = "127.0.0.2"

#: What the head of each file says that the gateway wants.
FORWARDED: dict[str, tuple[ForwardedHeader, ...]] = {
    "nginx": ("x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-forwarded-prefix"),
    "haproxy": ("forwarded", "x-forwarded-prefix"),
}
_NGINX = """
daemon off;
master_process off;
pid {folder}/pid;
error_log stderr warn;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/bodies;
    proxy_temp_path {folder}/answers;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/lobewise.conf;
}}
"""


@dataclass(frozen=True)
class Certificate:
    """Of a server on 127.0.0.1, signed by itself."""

    certificate: Path
    key: Path

    def trusting(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.certificate))


@dataclass
class Proxied:
    """A gateway and a client that reaches it through a proxy only."""

    service: Service
    client: httpx.Client
    process: "subprocess.Popen[bytes]"

    def path_of(self, link: str) -> str:
        """What to ask the proxy for, to follow a link; it is called by another name here."""
        assert link.startswith(f"{PUBLIC}/"), link
        return link.removeprefix("https://ct.example.org")


def program(name: str) -> Path:
    """Debian has them where only root looks by itself."""
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        pytest.skip(f"{name} is not installed")
    return Path(found)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    folder = tmp_path_factory.mktemp("certificate")
    made = Certificate(folder / "crt", folder / "key")
    command = [program("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=lobewise", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, "-keyout", made.key, "-out", made.certificate], check=True, capture_output=True)
    return made


@contextmanager
def proxying(
    name: str, service: Service, certificate: Certificate, folder: Path, changes: dict[str, str] | None = None
) -> Iterator[Proxied]:
    """The proxy of this name before `service`, its file changed by these replacements."""
    binary, (port,) = program(name), free_ports(1)
    (source,) = CONFIGURATIONS.glob(f"{name}.*")
    pem = folder / "pem"
    pem.write_text(certificate.certificate.read_text() + certificate.key.read_text())
    needed = {
        "127.0.0.1:8000": service.address.removeprefix("http://"),
        "listen 443": f"listen 127.0.0.1:{port}",
        "bind :443": f"bind 127.0.0.1:{port}",
        "/etc/nginx/lobewise.crt": str(certificate.certificate),
        "/etc/nginx/lobewise.key": str(certificate.key),
        "/etc/haproxy/lobewise.pem": str(pem),
    }
    text = source.read_text()
    for old, new in {**needed, **(changes or {})}.items():
        assert old in text or old in needed, f"{source.name} has no {old!r} any more"
        text = text.replace(old, new)
    (folder / "lobewise.conf").write_text(text)
    if name == "nginx":
        (folder / "nginx.conf").write_text(_NGINX.format(folder=folder))
        command = [binary, "-p", folder, "-c", folder / "nginx.conf"]
    else:
        command = [binary, "-db", "-f", folder / "lobewise.conf"]
    with running(command, {}, folder / "log") as process:
        transport = httpx.HTTPTransport(verify=certificate.trusting(), local_address=STRANGER)
        with httpx.Client(base_url=f"https://127.0.0.1:{port}", transport=transport, timeout=30) as client:

            def is_there() -> bool:
                assert process.poll() is None, (folder / "log").read_text()
                try:
                    return client.get("/lobewise/v1/jobs").status_code == 200
                except httpx.TransportError:
                    return False

            assert until(is_there, 10), (folder / "log").read_text()
            yield Proxied(service, client, process)


@contextmanager
def gateway(name: str, folder: Path, **settings: object) -> Iterator[Service]:
    """What the file of this proxy asks of the gateway."""
    api = ApiSettings(forwarded_headers=FORWARDED[name], keep_alive_seconds=0.2, **settings)  # type: ignore[arg-type]
    with running_service(
        folder, api, max_upload_bytes=MAX_UPLOAD_BYTES, callback_allowlist=(RECEIVER,), upload_part_bytes=5 << 20
    ) as service:
        yield service


@pytest.fixture(scope="module", params=["nginx", "haproxy"])
def proxied(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, certificate: Certificate
) -> Iterator[Proxied]:
    """Each proxy with its file as it is."""
    program(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    with (
        gateway(request.param, folder / "service") as service,
        proxying(request.param, service, certificate, folder) as proxied,
    ):
        yield proxied

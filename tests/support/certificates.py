"""A certificate of a server of tests, which is its own authority."""

import ssl
import subprocess
from pathlib import Path


def make(folder: Path, *names: str) -> tuple[ssl.SSLContext, Path]:
    """A context for a server that has these names (`DNS:...`, `IP:...`), and the file that a client must trust."""
    certificate, key = folder / "server.pem", folder / "server.key"
    kind = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    named = ["-subj", "/CN=lobewise tests", "-addext", f"subjectAltName={','.join(names)}"]
    command = ["openssl", *kind, *named, "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context, certificate

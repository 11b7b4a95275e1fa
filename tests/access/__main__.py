"""Tokens of a real issuer, the npm package `oidc-provider`, at a real gateway: `make test-issuer`."""

import os
import shutil
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import httpx

from tests.support.processes import answers, exit_on_sigterm, free_ports, running, until

FOLDER: Final = Path(__file__).parent
ROOT: Final = FOLDER.parents[1]
#: From one key of the issuer to the next, by a restart: what the gateway knows is out of date then.
KEYS: Final = (("RS256", "first"), ("ES256", "second"), ("PS256", "third"), ("EdDSA", "fourth"))
#: Above `FLOOR_SECONDS` of jobs/access/tokens.py.
PATIENCE_SECONDS: Final = 25.0


class WrongError(Exception):
    """Something was answered otherwise than it should be."""


def main() -> None:
    """Each algorithm in turn: a token of it is taken, those that are not for us are refused."""
    exit_on_sigterm()
    node = shutil.which("node") or sys.exit("this needs node")
    issuer_port, gateway_port = free_ports(2)
    issuer, gateway = f"http://127.0.0.1:{issuer_port}", f"http://127.0.0.1:{gateway_port}"
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        environment = {
            "LOBEWISE_DATA_DIR": name,
            "LOBEWISE_API_PORT": str(gateway_port),
            "LOBEWISE_OIDC_ISSUER": issuer,
            "LOBEWISE_OIDC_AUDIENCE": "lobewise",
            "LOBEWISE_OIDC_ROLES_CLAIM": "scope",
        }
        log = Path(name) / "gateway.log"
        command = [sys.executable, "-m", "api"]
        stack.enter_context(running(command, {**os.environ, **environment}, log, ROOT))
        require(until(lambda: answers(f"{gateway}/healthz"), 60), log.read_text())
        for algorithm, kid in KEYS:
            output = Path(name) / f"{kid}.log"
            serve = [node, FOLDER / "issuer.mjs", str(issuer_port), algorithm, kid]
            with running(serve, {}, output, FOLDER):
                found = f"{issuer}/.well-known/openid-configuration"
                require(until(lambda found=found: answers(found), 30), output.read_text())  # type: ignore[misc]
                examine(issuer, gateway, algorithm)


def examine(issuer: str, gateway: str, algorithm: str) -> None:
    """Raises WrongError."""
    good = token(issuer, "http://lobewise", "read")
    # The first with this key: the gateway knows the one before, and asks for keys no more often than its floor says.
    until(lambda: status(gateway, good) == httpx.codes.OK, PATIENCE_SECONDS, 0.5)
    wanted = {"read": (200, 403), "admin": (403, 404), "submit read": (200, 403)}
    for scope, expected in wanted.items():
        given = token(issuer, "http://lobewise", scope)
        found = (status(gateway, given), status(gateway, given, "DELETE", f"/v1/jobs/{'0' * 32}"))
        require(found == expected, f"{algorithm}, scope {scope}: {found}")
    other = token(issuer, "http://another-service", "read")
    require(status(gateway, other) == httpx.codes.UNAUTHORIZED, f"{algorithm}: a token for another service was taken")
    head, body, signature = good.split(".")
    turned = signature[:10] + ("A" if signature[10] != "A" else "B") + signature[11:]
    forged = f"{head}.{body}.{turned}"
    require(status(gateway, forged) == httpx.codes.UNAUTHORIZED, f"{algorithm}: a forged token was taken")
    print(f"{algorithm}: taken for us with its roles; refused for another service, and forged", flush=True)


def token(issuer: str, resource: str, scope: str) -> str:
    """As a program gets one."""
    form = {"grant_type": "client_credentials", "resource": resource, "scope": scope}
    answer = httpx.post(f"{issuer}/token", data=form, auth=("reader", "of-the-tests"), trust_env=False)
    require(answer.status_code == httpx.codes.OK, f"the issuer: {answer.text}")
    return str(answer.json()["access_token"])


def status(gateway: str, given: str, method: str = "GET", path: str = "/v1/jobs") -> int:
    headers = {"Authorization": f"Bearer {given}"}
    return httpx.request(method, gateway + path, headers=headers, trust_env=False).status_code


def require(is_so: bool, otherwise: str) -> None:
    """Raises WrongError."""
    if not is_so:
        raise WrongError(otherwise)


if __name__ == "__main__":
    main()

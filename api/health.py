"""`python -m api.health`: the health check of the gateway's image, 0 if the process lives.

It asks `/healthz`, at the address and port of the settings. A sender, which runs in the same image, has no port: where
`LOBEWISE_LIVENESS_FILE` is set, that file is looked at.
"""

import sys
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from typing import Final

from api.listening import ANY_ADDRESS
from jobs.liveness import is_alive, named_file
from jobs.settings import ApiSettings

TIMEOUT_SECONDS: Final = 3.0


def main() -> int:
    """The exit code of a health check."""
    path = named_file()
    alive = is_alive(path) if path else answers(ApiSettings())
    return 0 if alive else 1


def answers(settings: ApiSettings) -> bool:
    """Whether the gateway says that it lives. No proxy of the environment is asked."""
    host = ANY_ADDRESS.get(settings.host, settings.host)
    connection = HTTPConnection(host, settings.port, timeout=TIMEOUT_SECONDS)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == HTTPStatus.OK
    except (OSError, HTTPException) as error:
        print(f"{host}:{settings.port}: {error}", file=sys.stderr)
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main())

"""What both Python drivers share: the world, one line for each operation, and waiting."""

import json
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

WORLD = json.loads(Path(sys.argv[1]).read_text(), object_hook=lambda fields: SimpleNamespace(**fields))
SCAN = Path(WORLD.scan)
UPLOAD = Path(WORLD.upload)
WAIT_SECONDS = 60.0


def step(operation: str, run: Callable[[], object]) -> Any:
    """Print how it went. What went wrong is no reason to leave out the others."""
    try:
        result = run()
    except Exception as error:  # whatever it was, it belongs into the matrix
        words = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        print(json.dumps({"operation": operation, "ok": False, "detail": words}), flush=True)
        return None
    print(json.dumps({"operation": operation, "ok": True, "detail": ""}), flush=True)
    return result


def until(found: Callable[[], Any]) -> Any:
    """The first answer that is something."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not (answer := found()):
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.3)
    return answer


def put(url: str, data: bytes) -> None:
    """A part goes to its address, which on S3 is none of the service's: no generated client is asked."""
    with urllib.request.urlopen(urllib.request.Request(url, data, method="PUT"), timeout=60) as answer:  # noqa: S310
        assert answer.status in (200, 204)

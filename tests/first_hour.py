"""A newcomer's first hour with a service: the notebook, then the collection: `python -m tests.first_hour`.

One service and one scan for both. The service allows callbacks to a receiver here, and no sources.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from cli.local import free_port, local_service
from tests.support.receiver import receiving

ROOT: Final = Path(__file__).parents[1]
COLLECTION: Final = ROOT / "clients" / "postman"
COLLECTION_FILE: Final = "lobewise.postman_collection.json"
NOTEBOOK: Final = ROOT / "docs" / "notebooks" / "first-scan.ipynb"


def main() -> int:
    """0 when both went well."""
    with tempfile.TemporaryDirectory(prefix="lobewise-first-hour-") as name, receiving() as receiver:
        folder = Path(name)
        os.environ["LOBEWISE_CALLBACK_ALLOWLIST"] = receiver.url
        with local_service("127.0.0.1", free_port(), folder / "data", "cpu", logs=folder) as service:
            started = time.monotonic()
            environment = {**os.environ, "LOBEWISE_ADDRESS": service.address, "LOBEWISE_OUT": str(folder / "notebook")}
            command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "--nbmake", str(NOTEBOOK)]
            notebook = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
            if notebook:
                return notebook
            noted = time.monotonic()
            scan = folder / "scan.nii.gz"
            scan.write_bytes((folder / "notebook" / "phantom" / "ct.nii.gz").read_bytes())
            given = {
                "base_url": service.address,
                "callback_url": receiver.url,
                "scan_size_bytes": scan.stat().st_size,
                "scan_sha256": hashlib.sha256(scan.read_bytes()).hexdigest(),
            }
            newman = str(COLLECTION / "node_modules" / ".bin" / "newman")
            command = [newman, "run", COLLECTION_FILE, "--bail", "failure", "--working-dir", name]
            for key, value in given.items():
                command += ["--env-var", f"{key}={value}"]
            collection = subprocess.run(command, cwd=COLLECTION, check=False).returncode
            ended = time.monotonic()
        calls = receiver.got.qsize()
    print(f"notebook {noted - started:.0f} s, collection {ended - noted:.0f} s, {calls} callbacks")
    return collection or not calls


if __name__ == "__main__":
    sys.exit(main())

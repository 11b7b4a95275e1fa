"""Runs an image as Kubernetes does: crun, a root that is read-only, its own user, no capabilities, PID 1."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.images.store import Store

UID: Final = 10001
STOP_SECONDS: Final = 60.0
TMPFS: Final = ("nosuid", "nodev", "mode=1777", "size=1g")


@dataclass(frozen=True)
class Order:
    """What to run.

    Attributes:
        volumes: folders and files of ours by where they are in the container; it may write to those that it owns.
        command: in place of the image's.
    """

    name: str
    image: str
    environment: dict[str, str] = field(default_factory=dict)
    volumes: dict[str, Path] = field(default_factory=dict)
    command: Sequence[str] = ()


@dataclass
class Container:
    """One that runs."""

    name: str
    health: list[str]
    log: Path
    _state: Path
    _runs: dict[str, Any]
    _process: "subprocess.Popen[bytes]"

    def call(self, *command: str) -> "subprocess.CompletedProcess[str]":
        """Run a command in it, as its user and with its environment."""
        asked = self.log.with_name("exec.json")
        asked.write_text(json.dumps(self._runs | {"args": command}))
        line = [*crun(self._state), "exec", "--process", str(asked), self.name]
        return subprocess.run(line, text=True, capture_output=True, check=False, timeout=120)

    def is_well(self) -> bool:
        """What the image's own health check says."""
        return self.call(*self.health).returncode == 0

    def is_running(self) -> bool:
        """Whether its process has not ended."""
        return self._process.poll() is None

    def stop(self) -> int:
        """Ask it to end, as an orchestrator does; the answer is its exit code."""
        if self.is_running():
            self._kill("TERM")
        return self._process.wait(STOP_SECONDS)

    def end(self) -> None:
        """However it is, it is gone then."""
        if self.is_running():
            self._kill("KILL")
            self._process.wait()

    def _kill(self, name: str) -> None:
        subprocess.run([*crun(self._state), "kill", self.name, name], check=False)


def crun(state: Path) -> list[str]:
    """Without control groups: they are the orchestrator's."""
    return ["crun", "--root", str(state), "--cgroup-manager=disabled"]


@contextmanager
def running(store: Store, order: Order) -> Iterator[Container]:
    """The container, until the block ends."""
    folder = store.folder / "containers" / order.name
    folder.mkdir(parents=True, exist_ok=True)
    config = store.described(order.image)["config"]
    with store.mounted(order.image) as root:
        (folder / "hosts").write_text("127.0.0.1 localhost\n")
        bundle = _bundle(order, config, root, folder)
        (folder / "config.json").write_text(json.dumps(bundle))
        state, log = store.folder / "crun", folder / "log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [*crun(state), "run", "--bundle", str(folder), order.name], stdout=stream, stderr=stream
            )
        container = Container(order.name, config["Healthcheck"]["Test"][1:], log, state, bundle["process"], process)
        try:
            yield container
        finally:
            container.end()


def _bundle(order: Order, config: dict[str, Any], root: Path, folder: Path) -> dict[str, Any]:
    (folder / "config.json").unlink(missing_ok=True)
    subprocess.run(["crun", "spec", "--bundle", folder], check=True)
    spec: dict[str, Any] = json.loads((folder / "config.json").read_text())
    spec["root"] = {"path": str(root), "readonly": True}
    spec["hostname"] = order.name
    user, _, group = config["User"].partition(":")
    given = [f"{name}={value}" for name, value in order.environment.items()]
    spec["process"] |= {
        "terminal": False,
        "args": list(order.command or config["Cmd"]),
        "cwd": config["WorkingDir"],
        "user": {"uid": int(user), "gid": int(group)},
        "env": [*config["Env"], f"HOME={config['WorkingDir']}", *given],
        "capabilities": {},
        "noNewPrivileges": True,
        "rlimits": [],
    }
    ours = {"/etc/hosts": folder / "hosts", **order.volumes}
    spec["mounts"] = [mount for mount in spec["mounts"] if mount["type"] != "cgroup"]
    spec["mounts"] += [_tmpfs("/tmp"), *(_bound(where, path) for where, path in ours.items())]  # noqa: S108 (the container's)
    # The network is that of the caller: one of loopback alone.
    spec["linux"]["namespaces"] = [kind for kind in spec["linux"]["namespaces"] if kind["type"] != "network"]
    del spec["linux"]["resources"]
    return spec


def _tmpfs(where: str) -> dict[str, Any]:
    return {"destination": where, "type": "tmpfs", "source": "tmpfs", "options": list(TMPFS)}


def _bound(where: str, path: Path) -> dict[str, Any]:
    options = ["rbind", "nosuid", "nodev", "rw" if path.stat().st_uid == UID else "ro"]
    return {"destination": where, "type": "bind", "source": str(path.resolve()), "options": options}


def owned(path: Path) -> Path:
    """A folder that containers may write to."""
    path.mkdir(parents=True)
    os.chown(path, UID, UID)
    return path


def ended_cleanly(code: int) -> bool:
    """0, or the signal that it was sent."""
    return code in (0, 128 + signal.SIGTERM)

"""What can happen to a service. Each fault is drawn, done, and healed; none leaves anything behind."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

import redis

from tests.chaos.cluster import Cluster, Process
from tests.chaos.history import History
from tests.chaos.proxy import FailingProxy, Mood
from tests.support.processes import until

QUEUES: Final = ("lobewise.stat", "lobewise.routine", "lobewise.batch")


@dataclass
class Scene:
    """What a fault may touch.

    Attributes:
        lease_seconds: a process that is stopped for longer loses its job.
        ballast: a file that fills the disk of the blobs, where they have one of their own.
        proxy: in front of the bucket, where the blobs lie in one.
        clock: the file that says by how many seconds the wall clock of gateways and workers is off.
    """

    cluster: Cluster
    history: History
    rng: Random
    lease_seconds: float
    ballast: Path | None = None
    proxy: FailingProxy | None = None
    clock: Path | None = None


#: Does it and heals it; answers what it did to whom.
Fault = Callable[[Scene], str]


def kill_worker(scene: Scene) -> str:
    return _kill(scene.rng.choice(scene.cluster.workers))


def kill_gateway(scene: Scene) -> str:
    return _kill(scene.rng.choice(scene.cluster.gateways))


def kill_redis(scene: Scene) -> str:
    """It comes back with its data, which it has on the disk."""
    return _kill(scene.cluster.redis_process)


def kill_worker_child(scene: Scene) -> str:
    worker = scene.rng.choice(scene.cluster.workers)
    children = worker.children()
    for pid in children:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return f"{worker.name}: {len(children)} children"


def stop_worker(scene: Scene) -> str:
    """Longer than its lease, now and then: it wakes up and finds its job in other hands."""
    worker = scene.rng.choice(scene.cluster.workers)
    return _freeze([worker.pid, *worker.children()], scene.rng.uniform(0.2, 2.5) * scene.lease_seconds, worker.name)


def stop_worker_child(scene: Scene) -> str:
    """The parent lives and takes no more; the child's heartbeat falls silent."""
    worker = scene.rng.choice(scene.cluster.workers)
    return _freeze(list(worker.children()), scene.rng.uniform(0.2, 2.5) * scene.lease_seconds, worker.name)


def stop_gateway(scene: Scene) -> str:
    gateway = scene.rng.choice(scene.cluster.gateways)
    return _freeze([gateway.pid], scene.rng.uniform(0.5, 4.0), gateway.name)


def stop_redis(scene: Scene) -> str:
    """It takes connections, and answers nothing."""
    return _freeze([scene.cluster.redis_process.pid], scene.rng.uniform(0.5, 5.0), "redis")


def restart_worker(scene: Scene) -> str:
    """As a rolling upgrade does."""
    return _ask_to_stop(scene.rng.choice(scene.cluster.workers))


def restart_gateway(scene: Scene) -> str:
    return _ask_to_stop(scene.rng.choice(scene.cluster.gateways))


def restart_redis_empty(scene: Scene) -> str:
    """Its disk is gone."""
    process = scene.cluster.redis_process
    with process.lock:
        process.send(signal.SIGKILL)
        if process.handle is not None:
            process.handle.wait()
        shutil.rmtree(scene.cluster.folder / "redis")
        (scene.cluster.folder / "redis").mkdir()
        process.start()
    return "redis, without its data"


def wipe_redis(scene: Scene) -> str:
    with suppress(redis.RedisError), scene.cluster.redis() as server:
        server.flushall()
    return "redis"


def drop_messages(scene: Scene) -> str:
    """All that wait in the queues: their jobs know nothing of it."""
    with suppress(redis.RedisError), scene.cluster.redis() as server:
        return f"{sum(int(server.delete(queue)) for queue in QUEUES)} queues"
    return "nothing"


def double_messages(scene: Scene) -> str:
    """Every message that waits, and every one that is being worked on, once more."""
    count = 0
    with suppress(redis.RedisError), scene.cluster.redis() as server:
        for queue in QUEUES:
            for message in server.lrange(queue, 0, -1):
                count += bool(server.lpush(queue, message))
        for message in server.hvals("unacked"):
            count += bool(server.lpush(QUEUES[1], json.dumps(json.loads(message)[0])))
    return f"{count} messages"


def break_storage(scene: Scene) -> str:
    moods: list[Mood] = ["errors", "slow", "cut", "gone"]
    mood = scene.rng.choice(moods)
    if scene.proxy is None:
        return "no bucket"
    scene.proxy.mood = mood
    time.sleep(scene.rng.uniform(1.0, 6.0))
    scene.proxy.mood = "well"
    return mood


def fill_disk(scene: Scene) -> str:
    if scene.ballast is None:
        return "no disk of its own"
    with suppress(OSError), scene.ballast.open("wb") as file:
        while True:
            file.write(bytes(1 << 20))
            file.flush()
    time.sleep(scene.rng.uniform(1.0, 5.0))
    scene.ballast.unlink(missing_ok=True)
    return "the blobs' disk"


def jump_clock(scene: Scene) -> str:
    """The wall clock of gateways and workers, for a while."""
    if scene.clock is None:
        return "no clock of its own"
    jump_seconds = scene.rng.choice((3600, -3600, 86400))
    set_clock(scene.clock, jump_seconds)
    time.sleep(scene.rng.uniform(1.0, 5.0))
    set_clock(scene.clock, 0)
    return f"{jump_seconds:+d} s"


def set_clock(path: Path, shift_seconds: int) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(f"{shift_seconds}\n")
    partial.replace(path)


KILLS: Final[Mapping[str, Fault]] = {
    "kill -9 worker": kill_worker,
    "kill -9 worker's child": kill_worker_child,
    "kill -9 gateway": kill_gateway,
    "kill -9 redis": kill_redis,
}
OTHERS: Final[Mapping[str, Fault]] = {
    "SIGSTOP worker": stop_worker,
    "SIGSTOP worker's child": stop_worker_child,
    "SIGSTOP gateway": stop_gateway,
    "SIGSTOP redis": stop_redis,
    "SIGTERM worker": restart_worker,
    "SIGTERM gateway": restart_gateway,
    "redis without its data": restart_redis_empty,
    "redis wiped": wipe_redis,
    "messages deleted": drop_messages,
    "messages doubled": double_messages,
    "storage fails": break_storage,
    "disk full": fill_disk,
    "clock jumps": jump_clock,
}


def fitting(scene: Scene) -> dict[str, Fault]:
    """The other faults that this scene has the means for."""
    lacking = {
        "storage fails": scene.proxy is None,
        "disk full": scene.ballast is None,
        "clock jumps": scene.clock is None,
    }
    return {name: fault for name, fault in OTHERS.items() if not lacking.get(name)}


def _kill(process: Process) -> str:
    return f"{process.name}{'' if process.send(signal.SIGKILL) else ' was down'}"


def _freeze(pids: list[int | None], seconds: float, name: str) -> str:
    found = [pid for pid in pids if pid is not None]
    for pid in found:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    time.sleep(seconds)
    for pid in found:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    return f"{name} for {seconds:.1f} s"


def _ask_to_stop(process: Process) -> str:
    handle = process.handle
    if handle is None or not process.send(signal.SIGTERM):
        return f"{process.name} was down"
    ended = until(lambda: handle.poll() is not None, 30)
    return f"{process.name}{'' if ended else ' did not stop'}"

"""Each tenant's messages lie in lists of its own, which workers' consumers find, and which all others see too."""

import threading
from collections.abc import Iterator
from typing import Any

import kombu
import pytest
import redis

from jobs import states
from jobs.bootstrap import Connection, connect
from jobs.live.keys import LISTS
from jobs.live.recovery_view import LIST_SECONDS
from jobs.models import Priority
from jobs.queue import LOOK_SECONDS, QUEUES, JobQueue, celery_config, queue_name
from jobs.settings import JobsSettings
from tests.load.turns import Taken, consume, run
from tests.support.processes import until


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connection]:
    connection = connect(JobsSettings(data_dir=tmp_path_factory.mktemp("turns"), redis_url=None))
    yield connection
    connection.close()


@pytest.fixture
def jobs(service: Connection, server: redis.Redis) -> Connection:
    server.flushall()
    return service


@pytest.fixture(scope="module")
def server(service: Connection) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(service.settings.redis_url or "", decode_responses=True) as client:
        yield client


def test_a_flood_of_one_tenant_leaves_another_its_share(jobs: Connection) -> None:
    seconds, owners = run(jobs, flood=300, few=10, consumers=2, work_seconds=0.02, other="clinic")
    # From its first turn on every second job is the other's, give or take one for each consumer.
    first = owners.index("other")
    last = len(owners) - owners[::-1].index("other")
    assert last - first <= 2 * 10 + 2
    assert max(seconds) < LOOK_SECONDS + 2  # a new list is seen within a second or two


def test_messages_of_every_tenant_are_seen_until_they_are_taken(jobs: Connection, server: redis.Redis) -> None:
    sent = {states.new_id(): tenant for tenant in ("default", "clinic-a", "clinic-b")}
    for job_id, tenant in sent.items():
        jobs.tenants.of(tenant).backends.queue.publish(job_id, Priority.STAT)
    assert [server.llen(queue_name(Priority.STAT, tenant)) for tenant in sent.values()] == [1, 1, 1]
    assert jobs.backends.queue.present(10) == set(sent)
    server.delete(*QUEUES)
    assert jobs.backends.queue.has_messages()
    taken, stop = Taken(), threading.Event()
    thread = threading.Thread(target=consume, args=(jobs.settings, 0.0, taken, stop))
    thread.start()
    assert until(lambda: len(taken.jobs) == 2, 10)
    stop.set()
    thread.join()
    assert not jobs.backends.queue.has_messages()


def test_a_tenant_that_begins_while_workers_wait_is_seen_within_two_seconds(jobs: Connection) -> None:
    taken, stop = Taken(), threading.Event()
    thread = threading.Thread(target=consume, args=(jobs.settings, 0.0, taken, stop))
    thread.start()
    try:
        jobs.backends.queue.publish(states.new_id(), Priority.ROUTINE)
        assert until(lambda: len(taken.jobs) == 1, 10)
        jobs.tenants.of("newcomer").backends.queue.publish(states.new_id(), Priority.ROUTINE)
        assert until(lambda: len(taken.jobs) == 2, 2 * LOOK_SECONDS + 1)
    finally:
        stop.set()
        thread.join()


def test_what_is_delivered_again_lies_in_its_own_list(jobs: Connection, server: redis.Redis) -> None:
    job_id = states.new_id()
    jobs.tenants.of("clinic").backends.queue.publish(job_id, Priority.BATCH)
    options = celery_config(jobs.settings)
    got: list[Any] = []
    with kombu.Connection(
        jobs.settings.redis_url,
        transport=options["broker_transport"],
        transport_options=options["broker_transport_options"] | {"visibility_timeout": 0},
    ) as connection:
        queues = [kombu.Queue(name, routing_key=name) for name in QUEUES]
        consumer = kombu.Consumer(connection, queues, on_message=got.append, prefetch_count=1)
        with consumer:
            connection.drain_events(timeout=5)
            assert server.llen(queue_name(Priority.BATCH, "clinic")) == 0
            assert jobs.backends.queue.present(10) == {job_id}
            consumer.channel.qos.restore_visible()  # as any worker does, once it has been away for too long
    assert got[0].delivery_info["routing_key"] == queue_name(Priority.BATCH, "clinic")
    assert server.llen(queue_name(Priority.BATCH, "clinic")) == 1
    assert server.hlen("unacked") == 0


def test_a_list_is_dropped_once_it_has_been_empty_for_long(jobs: Connection, server: redis.Redis) -> None:
    for tenant in ("gone", "waiting", "new"):
        jobs.tenants.of(tenant).backends.queue.publish(states.new_id(), Priority.ROUTINE)
    names = {tenant: queue_name(Priority.ROUTINE, tenant) for tenant in ("gone", "waiting", "new")}
    server.delete(names["gone"], names["new"])
    for tenant in ("gone", "waiting"):
        server.zincrby(LISTS, -LIST_SECONDS - 1, names[tenant])
    assert jobs.backends.live.messages.drop_lists() == 1
    assert sorted(jobs.backends.live.messages.lists()) == sorted([names["waiting"], names["new"]])


def test_running_jobs_of_a_tenant_are_limited_and_the_others_wait_in_their_list(
    jobs: Connection, server: redis.Redis
) -> None:
    settings = jobs.settings.model_copy(update={"quota_running_jobs": 2})
    prefix, name = "lobewise:tenant:clinic:", queue_name(Priority.ROUTINE, "clinic")
    job_ids = [states.new_id() for _ in range(5)]
    for job_id in job_ids:
        server.hset(f"{prefix}job:{job_id}", "status", "queued")
        jobs.tenants.of("clinic").backends.queue.publish(job_id, Priority.ROUTINE)
    taken, stop = Taken(), threading.Event()
    threads = [threading.Thread(target=consume, args=(settings, 0.0, taken, stop)) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        assert until(lambda: len(taken.jobs) == 2, 10)
        # What begins to run still counts; and another tenant's are taken meanwhile.
        running = taken.jobs[0][0]
        server.zadd(f"{prefix}index:running:*", {running: 0})
        server.hset(f"{prefix}job:{running}", "status", "running")
        jobs.tenants.of("other").backends.queue.publish(states.new_id(), Priority.ROUTINE)
        assert until(lambda: len(taken.jobs) == 3, 10)
        assert not until(lambda: len(taken.jobs) > 3, 2 * LOOK_SECONDS)
        assert until(lambda: server.llen(name) == 3, 5)
        # One that ends lets one of the others in.
        server.hset(f"{prefix}job:{running}", "status", "succeeded")
        server.zrem(f"{prefix}index:running:*", running)
        assert until(lambda: len(taken.jobs) == 4, 10)
        assert taken.jobs[3][0] in set(job_ids) - {taken.jobs[0][0], taken.jobs[1][0]}
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_what_waits_for_its_own_tenant_is_no_work_for_a_worker(jobs: Connection, server: redis.Redis) -> None:
    queue = JobQueue(jobs.settings.model_copy(update={"quota_running_jobs": 1}), jobs.backends.live)
    try:
        jobs.tenants.of("clinic").backends.queue.publish(states.new_id(), Priority.ROUTINE)
        assert queue.has_messages()
        server.zadd("lobewise:tenant:clinic:index:running:*", {states.new_id(): 0})
        # Else the watchdog would restart every worker that is idle.
        assert not queue.has_messages()
    finally:
        queue.close()

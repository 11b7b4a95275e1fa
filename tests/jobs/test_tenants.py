"""Tenants: each has jobs of its own over one store and one Redis, and all are looked after."""

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
import redis

from jobs import embedded_redis, states, tenants
from jobs.bootstrap import Connection, connect
from jobs.errors import (
    BatchNotFoundError,
    CursorExpiredError,
    JobNotFoundError,
    StorageUnavailableError,
    TooManyTenantsError,
    UploadNotFoundError,
    UrlNotValidError,
)
from jobs.live.keys import PREFIX
from jobs.models import JobStatus, MaskName, Priority
from jobs.queue import QUEUES
from jobs.settings import JobsSettings
from jobs.states import UrlSignature, new_id
from jobs.store.job_store import JobFiles
from jobs.store.multipart_uploads import MultipartUploads
from jobs.store.object_store import open_object_store
from jobs.tenants import TenantJobs
from tests.support.seaweed import S3Server

from .conftest import report_for

Post = Callable[..., str]
Succeed = Callable[..., None]


@dataclass
class Pair:
    """Two tenants of one service, and the one that has no prefix."""

    jobs: Connection
    left: TenantJobs
    right: TenantJobs

    @property
    def all(self) -> list[TenantJobs]:
        return [self.jobs.tenants.default, self.left, self.right]


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One for all of these tests: its address."""
    server = embedded_redis.join(tmp_path_factory.mktemp("broker"))
    yield server.url
    server.close()


@pytest.fixture
def jobs(tmp_path: Path, broker: str) -> Iterator[Connection]:
    """Over an empty folder and an empty Redis."""
    with redis.Redis.from_url(broker) as client:
        client.flushall()
    jobs = connect(
        JobsSettings(
            data_dir=tmp_path / "data",
            redis_url=broker,
            reap_seconds=0.1,
            lease_seconds=2,
            heartbeat_seconds=0.5,
            retry_seconds=0.05,
        )
    )
    jobs.reconciler.rebuild()
    yield jobs
    jobs.close()


@pytest.fixture
def pair(jobs: Connection) -> Pair:
    return Pair(jobs, jobs.tenants.of("left"), jobs.tenants.of("right"))


@pytest.fixture
def other(jobs: Connection) -> Iterator[Connection]:
    """Another process on the same store and Redis."""
    other = connect(jobs.settings)
    yield other
    other.close()


def test_old_keys_and_folders_are_those_of_default(jobs: Connection, server: redis.Redis, post: Post) -> None:
    job_id = post(jobs)
    assert jobs.tenants.of("default").service.get(job_id) == jobs.service.get(job_id)
    assert not [key for key in server.scan_iter("*") if "tenant" in key]
    assert not list(jobs.backends.store.blobs.keys("tenants/"))


def test_all_that_is_stored_of_a_tenant_lies_below_its_prefix(
    pair: Pair, server: redis.Redis, post: Post, succeed: Succeed
) -> None:
    root = pair.jobs.backends.store.blobs
    before, keys_before = set(root.keys("")), set(server.scan_iter("*"))
    job_id = post(pair.left, client_reference="mine", callback_url="https://example.org/", priority="stat")
    with pair.left.worker.claim(job_id, "one") as lease:
        succeed(pair.left, lease)
    pair.left.service.uploads.create(10)
    assert set(root.keys("")) - before
    assert all(key.startswith("tenants/left/") for key in set(root.keys("")) - before)
    shared = {PREFIX + "figures", PREFIX + "recent", PREFIX + "lists", *QUEUES}
    added = set(server.scan_iter("*")) - keys_before
    of_broker = {key for key in added if key.startswith(("_kombu", "lobewise.", "unacked"))}
    assert any(f"{PREFIX}tenant:left:" in key for key in added)
    assert not {key for key in added - of_broker - shared if not key.startswith(f"{PREFIX}tenant:left:")}


def test_what_one_has_the_others_do_not_know(pair: Pair, post: Post, succeed: Succeed) -> None:
    job_id = post(pair.left, client_reference="mine")
    with pair.left.worker.claim(job_id, "one") as lease:
        succeed(pair.left, lease)
    upload_id = pair.left.service.uploads.create(10).record.id
    for one in (pair.jobs.tenants.default, pair.right):
        for call in (
            one.service.get, one.service.cancel, one.service.purge, one.service.report, one.service.labels,
            one.service.inspection, one.service.events, one.service.callbacks.get, one.service.callbacks.redeliver,
            lambda job_id, one=one: one.service.mask(job_id, MaskName.LUNGS),
            lambda job_id, one=one: one.service.wait(job_id, 0),
            lambda job_id, one=one: one.worker.claim(job_id, "two"),
        ):  # fmt: skip
            with pytest.raises(JobNotFoundError):
                call(job_id)
        for call in (one.service.uploads.get, one.service.uploads.complete, one.service.uploads.abort):
            with pytest.raises(UploadNotFoundError):
                call(upload_id)
        with pytest.raises(UploadNotFoundError):
            one.service.uploads.copy_input(upload_id, new_id())
        with pytest.raises(BatchNotFoundError):
            one.service.batches.get(upload_id)
        assert one.service.list(limit=9).items == ()
        assert one.service.changes(None, limit=9)[0].items == ()
    assert pair.left.service.get(job_id).status is JobStatus.SUCCEEDED


def test_a_cursor_of_the_feed_leads_to_its_own_tenant_alone(pair: Pair, post: Post) -> None:
    post(pair.left)
    cursor = pair.left.service.changes(None, limit=9)[0].next_cursor
    with pytest.raises(CursorExpiredError):
        pair.right.service.changes(cursor, limit=9)


def test_a_new_tenants_feed_is_there_at_once(pair: Pair, post: Post) -> None:
    job_id = post(pair.left)
    assert [change.job_id for change in pair.left.service.changes(None, limit=9)[0].items] == [job_id]


def test_an_idempotency_key_is_a_tenants_own(pair: Pair, post: Post) -> None:
    first = new_id()
    assert pair.left.service.idempotency.begin("key", first) is None
    assert pair.right.service.idempotency.begin("key", new_id()) is None
    assert pair.jobs.service.idempotency.begin("key", new_id()) is None


def test_a_result_is_reused_inside_its_tenant_alone(jobs: Connection, post: Post, tmp_path: Path) -> None:
    reusing = connect(jobs.settings.model_copy(update={"reuse_results": True}))
    try:
        left, right = reusing.tenants.of("left"), reusing.tenants.of("right")
        (tmp_path / "mask").write_bytes(b"a mask")
        job_id = post(left, b"the same")
        with left.worker.claim(job_id, "one") as lease:
            left.worker.fetch_input(lease, tmp_path)
            left.worker.succeed(lease, report_for(job_id), dict.fromkeys(MaskName, tmp_path / "mask"), digest="d")
        again, elsewhere = post(left, b"the same"), post(right, b"the same")
        assert left.worker.reuse(left.worker.claim(again, "two"), "d")
        assert not right.worker.reuse(right.worker.claim(elsewhere, "two"), "d")
    finally:
        reusing.close()


def test_addresses_of_parts_are_signed_for_their_tenant(jobs: Connection) -> None:
    left, right = jobs.tenants.of("left"), jobs.tenants.of("right")
    for one, others in ((left, (right, jobs.tenants.default)), (jobs.tenants.default, (left, right))):
        upload = one.service.uploads.create(10)
        signed = upload.parts[0].url
        assert isinstance(signed, UrlSignature)
        assert signed.tenant == one.tenant
        one.service.uploads.open_part(upload.record.id, 1, signed)
        for another in others:
            with pytest.raises(UrlNotValidError):
                another.service.uploads.open_part(upload.record.id, 1, signed)


def test_in_a_bucket_a_tenant_is_a_prefix_too(s3_server: S3Server, tmp_path: Path) -> None:
    blobs = open_object_store("s3://lobewise/of-tenants")
    own = blobs.within("tenants/left/")
    assert blobs.create("tenants/left/tenant.json", b"{}")
    assert own.create("jobs/1/job.json", b"1")
    assert not blobs.create("tenants/left/jobs/1/job.json", b"2")
    own.copy("jobs/1/job.json", "jobs/2/job.json")
    assert {*own.keys("jobs/")} == {"jobs/1/job.json", "jobs/2/job.json"}
    assert own.read("jobs/2/job.json") == b"1"
    assert blobs.read("jobs/2/job.json") is None
    assert blobs.folders("tenants/") == ["left"]
    uploads = MultipartUploads(own, JobsSettings(data_dir=tmp_path), "left")
    upload = uploads.create(3)
    (address,) = [part.url for part in upload.parts]
    assert isinstance(address, str)
    assert "of-tenants/tenants/left/uploads/" in address
    httpx.put(address, content=b"abc").raise_for_status()
    assert uploads.complete(upload.record.id).completion is not None
    assert not list(blobs.keys("uploads/"))
    assert own.bucket is not None
    assert not list(own.bucket.unfinished("uploads/"))


class TestRegistry:
    def test_a_tenant_outlives_its_processes_and_its_redis(
        self, jobs: Connection, server: redis.Redis, post: Post, other: Connection
    ) -> None:
        job_id = post(jobs.tenants.of("left"))
        server.flushall()
        assert [known.tenant for known in other.tenants.known()] == ["default", "left"]
        assert other.reconciler.reconcile() >= 1, "the job is back in the view, and in its queue"
        found = other.tenants.find("left")
        assert found is not None
        assert found.backends.live.get(job_id) is not None
        assert job_id in other.backends.queue.present(60)

    def test_others_learn_of_it_in_seconds(
        self, jobs: Connection, other: Connection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tenants, "LISTED_SECONDS", 0.1)
        other.tenants.known()
        jobs.tenants.of("left")
        time.sleep(0.2)
        assert [known.tenant for known in other.tenants.known()] == ["default", "left"]

    def test_there_are_no_more_than_the_operator_allows(self, jobs: Connection) -> None:
        small = connect(jobs.settings.model_copy(update={"max_tenants": 2}))
        try:
            small.tenants.of("one")
            small.tenants.of("two")
            with pytest.raises(TooManyTenantsError):
                small.tenants.of("three")
            assert small.tenants.of("one").tenant == "one"
            assert small.tenants.find("three") is None
        finally:
            small.close()

    @pytest.mark.parametrize("name", ["", "A", "a/b", "../a", "a:b", "-a", "a" * 64, "a\n"])
    def test_what_is_no_name_becomes_no_prefix(self, jobs: Connection, name: str) -> None:
        for call in (jobs.tenants.of, jobs.tenants.find, jobs.backends.of):
            with pytest.raises(ValueError, match="no tenant's name"):
                call(name)

    def test_while_the_store_is_away_those_that_are_known_go_on(
        self, jobs: Connection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        jobs.tenants.of("left")

        def gone(*_: object) -> None:
            raise StorageUnavailableError("away")

        monkeypatch.setattr(type(jobs.backends.store.blobs), "folders", gone)
        monkeypatch.setattr(type(jobs.backends.store.blobs), "exists", gone)
        assert [known.tenant for known in jobs.tenants.known()] == ["default", "left"]
        assert jobs.tenants.of("left").tenant == "left"
        with pytest.raises(StorageUnavailableError):
            jobs.tenants.of("right")


class TestAllAreLookedAfter:
    def test_a_lost_worker_and_a_lost_message_are_found(self, pair: Pair, server: redis.Redis, post: Post) -> None:
        pair.jobs.reconciler.reconcile()
        lost = {one.tenant: post(one) for one in pair.all}
        for one in pair.all:
            one.worker.claim(lost[one.tenant], "killed").drop()
        waiting = {one.tenant: post(one) for one in pair.all}
        server.delete(*QUEUES, *(f"{queue}:{one.tenant}" for queue in QUEUES for one in pair.all))
        time.sleep(2 * pair.jobs.settings.reap_seconds)
        pair.jobs.reconciler.reconcile()
        present = pair.jobs.backends.queue.present(60)
        for one in pair.all:
            assert one.service.get(lost[one.tenant]).status is JobStatus.QUEUED
            assert {lost[one.tenant], waiting[one.tenant]} <= present

    def test_one_whose_deadline_is_over_ends(self, pair: Pair, post: Post) -> None:
        soon = states.now() + timedelta(seconds=0.1)
        late = {one.tenant: post(one, not_after=soon) for one in pair.all}
        time.sleep(0.3)
        pair.jobs.reconciler.reconcile()
        for one in pair.all:
            assert one.service.get(late[one.tenant]).status is JobStatus.FAILED

    def test_what_is_past_retention_is_deleted_with_its_uploads(
        self, jobs: Connection, post: Post, succeed: Succeed
    ) -> None:
        short = connect(jobs.settings.model_copy(update={"retention_seconds": 1, "upload_seconds": 60}))
        try:
            known = [short.tenants.default, short.tenants.of("left"), short.tenants.of("right")]
            ids = {}
            for one in known:
                ids[one.tenant] = job_id = post(one)
                with one.worker.claim(job_id, "one") as lease:
                    succeed(one, lease)
                one.service.uploads.create(10)
            for one in known:
                one.cleanup.clean_up(states.now() + timedelta(days=1))
                files: JobFiles = one.backends.store.files(ids[one.tenant])
                assert files.names == {"purged.json"}
                assert not list(one.backends.store.blobs.keys("uploads/"))
        finally:
            short.close()

    def test_one_that_stumbles_keeps_none_of_the_others_from_it(
        self, pair: Pair, post: Post, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pair.jobs.reconciler.reconcile()
        job_id = post(pair.right)
        pair.right.worker.claim(job_id, "killed").drop()

        def stumble() -> bool:
            raise RuntimeError("a fault of ours")

        monkeypatch.setattr(pair.left.backends.live.recovery, "has_whole_lists", stumble)
        with suppress(RuntimeError):
            pair.jobs.reconciler.reconcile()
        assert pair.right.service.get(job_id).status is JobStatus.QUEUED


class TestPlaces:
    def places(self, one: TenantJobs, *job_ids: str) -> list[int | None]:
        return [one.service.get(job_id).queue_position for job_id in job_ids]

    def test_tenants_take_turns_and_each_begins_with_its_oldest(self, pair: Pair, post: Post) -> None:
        many = [post(pair.left) for _ in range(4)]
        one, two = post(pair.right), post(pair.right)
        old = post(pair.jobs)
        # left, right, default, left, right, left, left
        assert self.places(pair.left, *many) == [1, 4, 6, 7]
        assert self.places(pair.right, one, two) == [2, 5]
        assert self.places(pair.jobs.tenants.default, old) == [3]

    def test_among_very_many_tenants_a_place_is_never_promised_too_early(self, pair: Pair, post: Post) -> None:
        first = post(pair.left)
        for n in range(20):
            post(pair.jobs.tenants.of(f"t{n:02}"))
        last = post(pair.right)
        assert self.places(pair.right, last) == [22]
        # Sixteen others are looked at (`default`, right, t00 to t13); the rest may have come before, for all it knows.
        assert self.places(pair.left, first) == [7]

    def test_what_is_more_urgent_comes_first_whoever_sent_it(self, pair: Pair, post: Post) -> None:
        routine = post(pair.left)
        urgent = [post(pair.right, priority=Priority.STAT) for _ in range(3)]
        assert self.places(pair.right, *urgent) == [1, 2, 3]
        assert self.places(pair.left, routine) == [4]
        for job_id in urgent:
            pair.right.service.cancel(job_id)
        assert self.places(pair.left, routine) == [1]

    def test_the_estimate_counts_what_runs_of_all(self, pair: Pair, server: redis.Redis, post: Post) -> None:
        pair.jobs.worker.workers.announce("one", 60)
        server.lpush(PREFIX + "recent", 10_000)
        pair.right.worker.claim(post(pair.right), "one")
        state = pair.left.service.get(post(pair.left))
        assert state.estimated_start_at is not None
        assert (state.estimated_start_at - states.now()).total_seconds() == pytest.approx(10, abs=2)

    def test_only_tenants_with_open_jobs_are_asked(
        self, pair: Pair, server: redis.Redis, post: Post, succeed: Succeed
    ) -> None:
        job_id = post(pair.left)
        assert server.smembers(PREFIX + "at-work") == {f"{PREFIX}tenant:left:"}
        with pair.left.worker.claim(job_id, "one") as lease:
            assert server.smembers(PREFIX + "at-work") == {f"{PREFIX}tenant:left:"}
            succeed(pair.left, lease)
        assert server.smembers(PREFIX + "at-work") == set()

"""Old and new side by side: records of the first version, and of versions to come (docs/decisions/0019)."""

import json
import shutil
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis

from jobs import states
from jobs.bootstrap import Connection, connect
from jobs.errors import JobPurgedError, NewerSchemaError, WrongStateError
from jobs.live.pagination import Query
from jobs.models import JobStatus, MaskName, Priority, Stage
from jobs.queue import QUEUES, TASK_NAME
from jobs.settings import JobsSettings

Post = Callable[..., str]
Succeed = Callable[..., None]
FIRST = Path(__file__).with_name("records-0")
IDS: dict[str, str] = json.loads((FIRST / "jobs.json").read_text())
STATUS = {
    "succeeded": "succeeded",
    "failed": "failed",
    "exhausted": "failed",
    "cancelled": "cancelled",
    "queued": "queued",
    "retried": "queued",
    "keyed": "queued",
    "running": "running",
}


@pytest.fixture
def first(tmp_path: Path) -> Iterator[Connection]:
    """Today's code on the blobs of then, with an empty Redis."""
    folder = tmp_path / "blobs"
    shutil.copytree(FIRST / "blobs", folder)
    times = {"lease_seconds": 0.4, "heartbeat_seconds": 0.1, "reap_seconds": 0.1, "retry_seconds": 0.05}
    settings = JobsSettings(data_dir=tmp_path / "data", redis_url=None, blob_url=folder.as_uri(), **times)
    jobs = connect(settings)
    jobs.reconciler.rebuild()
    yield jobs
    jobs.close()


def rewrite(jobs: Connection, change: Callable[[dict[str, Any]], None], *names: str) -> None:
    """Change stored documents, as another version would have written them."""
    folder = jobs.backends.store.blobs.folder
    assert folder is not None
    for path in [path for name in names for path in folder.glob(f"jobs/*/{name}")]:
        document = json.loads(path.read_bytes())
        change(document)
        path.write_text(json.dumps(document))


class TestRecordsOfTheFirstVersion:
    def test_are_shown_and_listed(self, first: Connection) -> None:
        found = {name: first.service.get(IDS[name]).status for name in STATUS}
        assert found == STATUS
        assert {state.id for state in first.service.list(limit=99).items} == {IDS[name] for name in STATUS}
        assert [state.id for state in first.service.list(Query("severity"), limit=9).items] == [IDS["succeeded"]]
        with pytest.raises(JobPurgedError):
            first.service.get(IDS["purged"])

    def test_keep_their_results(self, first: Connection) -> None:
        assert first.service.report(IDS["succeeded"]).severity.percent_opacity == 12.5
        assert b"".join(first.service.mask(IDS["succeeded"], MaskName.LUNGS).read()) == b"a mask"
        error = first.service.get(IDS["exhausted"]).error
        assert error is not None
        assert len(error.evidence["endings"]) == 3

    @pytest.mark.parametrize(("name", "attempt"), [("queued", 1), ("retried", 2), ("keyed", 1), ("running", 2)])
    def test_are_finished(self, first: Connection, succeed: Succeed, name: str, attempt: int) -> None:
        first.backends.live.drop_lease(IDS[name], "1:rebuilt")
        succeed(first, first.worker.claim(IDS[name], "today"))
        state = first.service.get(IDS[name])
        assert (state.status, state.attempt) == (JobStatus.SUCCEEDED, attempt)

    def test_are_cancelled(self, first: Connection) -> None:
        assert first.service.cancel(IDS["queued"]).status == JobStatus.CANCELLED
        with pytest.raises(WrongStateError):
            first.service.cancel(IDS["failed"])

    @pytest.mark.parametrize("name", STATUS)
    def test_are_deleted(self, first: Connection, name: str) -> None:
        first.service.purge(IDS[name])
        assert list(first.backends.store.blobs.keys(f"jobs/{IDS[name]}/")) == [f"jobs/{IDS[name]}/purged.json"]

    def test_answer_to_their_idempotency_key(self, first: Connection) -> None:
        answer = first.service.idempotency.begin("a key of then", states.new_id())
        assert answer is not None
        assert answer.job_id == IDS["keyed"]


class TestRecordsOfALaterVersionOfTheSameSchema:
    """Fields that we do not know are passed over."""

    def test_are_read_as_far_as_we_know_them(
        self, first: Connection, server_of: Callable[[Connection], redis.Redis]
    ) -> None:
        before = {name: first.service.get(IDS[name]) for name in STATUS}
        names = ("job.json", "attempts/*/*.json", "manifest.json")

        def change(document: dict[str, Any]) -> None:
            document |= {"schema_version": "1.7", "of_tomorrow": {"a": [1]}}
            for name in {"input", "severity", "error", "provenance"} & set(document):
                document[name]["of_tomorrow"] = 1

        rewrite(first, change, *names)
        server_of(first).flushall()
        first.reconciler.rebuild()
        assert {name: first.service.get(IDS[name]) for name in STATUS} == before
        report = first.service.report(IDS["succeeded"])
        assert (report.schema_version, report.severity.percent_opacity) == ("1.0", 12.5)

    def test_so_is_what_newer_workers_show(
        self, first: Connection, server_of: Callable[[Connection], redis.Redis]
    ) -> None:
        key = f"lobewise:job:{IDS['running']}"
        server = server_of(first)
        shown = json.loads(server.hget(key, "state") or "")
        server.hset(key, "state", json.dumps(shown | {"stage": "of-tomorrow", "of_tomorrow": 1, "progress": 0.4}))
        state = first.service.get(IDS["running"])
        assert (state.status, state.stage, state.progress) == (JobStatus.RUNNING, None, 0.4)
        server.hset(key, "state", json.dumps(shown | {"stage": "lungs"}))
        assert first.service.get(IDS["running"]).stage == Stage.LUNGS


class TestRecordsOfANewerSchema:
    """They are left to those who can read them, and stop nobody."""

    @pytest.fixture
    def newer(self, first: Connection) -> Connection:
        def change(document: dict[str, Any]) -> None:
            if document.get("id") in (IDS["queued"], IDS["running"]) or document.get("job_id") == IDS["succeeded"]:
                document |= {"schema_version": "2.0", "input": "somewhere else"}

        rewrite(first, change, "job.json", "manifest.json")
        return first

    def test_are_no_attempt(self, newer: Connection) -> None:
        with pytest.raises(NewerSchemaError, match=r"2\.0"):
            newer.worker.claim(IDS["queued"], "old")
        assert newer.backends.store.files(IDS["queued"]).attempt == 0

    def test_are_sent_again_for_others(self, newer: Connection, server_of: Callable[[Connection], redis.Redis]) -> None:
        server = server_of(newer)
        server.delete(*QUEUES)
        server.hset(f"lobewise:job:{IDS['queued']}", "published_ms", 1)
        newer.reconciler.reconcile()
        assert IDS["queued"] in newer.backends.queue.present(0)

    def test_are_not_ended_for_others(self, newer: Connection, server_of: Callable[[Connection], redis.Redis]) -> None:
        server_of(newer).delete(f"lobewise:lease:{IDS['running']}")
        newer.reconciler.reconcile()
        assert not newer.backends.store.files(IDS["running"]).has_ended(1)
        assert newer.service.get(IDS["running"]).status == JobStatus.RUNNING

    def test_stop_neither_lists_nor_rebuilds_nor_sweeps(
        self, newer: Connection, server_of: Callable[[Connection], redis.Redis]
    ) -> None:
        server_of(newer).flushall()
        known = {IDS[name] for name in STATUS} - {IDS[name] for name in ("queued", "running", "succeeded")}
        assert {state.id for state in newer.service.list(limit=99).items} == known
        newer.reconciler.rebuild()
        assert {state.id for state in newer.service.list(limit=99).items} == known
        forgetful = newer.cleanup.backends.settings.model_copy(update={"retention_seconds": 1})
        object.__setattr__(newer.cleanup.backends, "settings", forgetful)
        newer.cleanup.clean_up(states.now() + timedelta(days=900))
        assert newer.backends.store.files(IDS["succeeded"]).is_final
        assert newer.backends.store.files(IDS["failed"]).is_purged
        with pytest.raises(NewerSchemaError):
            newer.service.get(IDS["succeeded"])
        with pytest.raises(NewerSchemaError):
            newer.service.report(IDS["succeeded"])


@pytest.fixture
def server_of() -> Iterator[Callable[[Connection], redis.Redis]]:
    clients: list[redis.Redis] = []

    def server_of(jobs: Connection) -> redis.Redis:
        clients.append(redis.Redis.from_url(jobs.settings.redis_url or "", decode_responses=True))
        return clients[-1]

    yield server_of
    for client in clients:
        client.close()


def test_a_message_is_what_it_always_was(
    first: Connection, post: Post, server_of: Callable[[Connection], redis.Redis]
) -> None:
    then = json.loads((FIRST / "message.json").read_text())
    post(first, priority=Priority.BATCH)
    raw = server_of(first).lindex(QUEUES[2], 0)
    now = json.loads(raw or "")
    assert (then["headers"]["task"], now["headers"]["task"]) == (TASK_NAME, TASK_NAME)
    for name in ("content-type", "content-encoding"):
        assert then[name] == now[name]
    assert set(then["headers"]) <= set(now["headers"])

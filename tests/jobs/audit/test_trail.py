"""What the audit trail stores, and that it stores it: many writers, crashes, days, a store that refuses."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from obstore.store import MemoryStore

from jobs.audit import trail as trail_module
from jobs.audit.entries import AUDIT, Act, AuditLevel, Entry, Head
from jobs.audit.trail import AuditTrail, audit_keys, delete_expired, stored_heads
from jobs.audit.verification import entries, verify
from jobs.bootstrap import Connection, assemble
from jobs.errors import BrokerUnavailableError, StorageUnavailableError
from jobs.settings import JobsSettings
from jobs.store.object_store import ObjectStore, open_object_store

KEY = "k" * 32


def settings(**given: object) -> JobsSettings:
    return JobsSettings(**{"audit": "all", "audit_seconds": 0.05, **given})  # type: ignore[arg-type]


@pytest.fixture
def blobs() -> ObjectStore:
    return ObjectStore(MemoryStore())


def until(is_so: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Refusing(ObjectStore):
    """A store that is full for as long as it is told to be."""

    is_full = True

    def create(self, key: str, data: bytes) -> bool:
        if self.is_full:
            raise StorageUnavailableError("no space left")
        return super().create(key, data)


def test_what_is_recorded_is_stored_in_its_order_and_found_right(blobs: ObjectStore) -> None:
    trail = AuditTrail(blobs, settings(audit_keys=KEY))
    for n in range(2500):
        trail.record(Entry(Act.DOWNLOAD, tenant="default", subject="s", kind="job", id=f"job {n}", part="lungs"))
    trail.close()
    found = list(entries(blobs))
    assert [entry["act"] for entry in found] == ["begin", *["download"] * 2500, "end"]
    assert [entry["id"] for entry in found[1:-1]] == [f"job {n}" for n in range(2500)]
    seen = verify(blobs, audit_keys(settings(audit_keys=KEY)))
    assert (seen.faults, seen.notes, seen.chains, seen.entries) == ([], [], 1, 2502)
    assert 3 <= seen.segments <= 10, "many entries share a blob"


def test_a_change_is_in_the_store_at_once_and_a_read_within_its_seconds(blobs: ObjectStore) -> None:
    trail = AuditTrail(blobs, settings(audit_seconds=60.0))
    trail.record(Entry(Act.READ, id="read"))
    time.sleep(0.1)
    assert list(blobs.keys(AUDIT)) == []
    assert trail.behind_seconds() > 0.09
    trail.record_stored(Entry(Act.DELETE, id="deleted"))
    assert [entry.get("id") for entry in entries(blobs)] == [None, "read", "deleted"]
    until(lambda: trail.behind_seconds() == 0.0)
    trail.close()


def test_a_trail_that_recorded_nothing_stores_nothing(blobs: ObjectStore) -> None:
    AuditTrail(blobs, settings()).close()
    trail = AuditTrail(blobs, settings(audit="off"))
    assert trail.record(Entry(Act.DELETE)) is None
    trail.close()
    assert list(blobs.keys(AUDIT)) == []


@pytest.mark.parametrize(
    ("level", "wanted"),
    [
        ("off", set()),
        ("changes", {"submit", "delete", "refused list"}),
        ("reads", {"submit", "delete", "refused list", "read", "export"}),
        ("all", {"submit", "delete", "refused list", "read", "export", "look"}),
    ],
)
def test_the_level_says_what_is_recorded(level: str, wanted: set[str]) -> None:
    tried = {act.value: Entry(act) for act in (Act.SUBMIT, Act.DELETE, Act.READ, Act.EXPORT, Act.LOOK)}
    tried["refused list"] = Entry(Act.LIST, "refused")
    assert {name for name, entry in tried.items() if entry.is_wanted(AuditLevel(level))} == wanted


def test_polls_and_refusals_that_are_the_same_are_one_entry(blobs: ObjectStore) -> None:
    trail = AuditTrail(blobs, settings(audit_seconds=60.0))
    for address in ("10.0.0.1", "10.0.0.2"):
        for _ in range(500):
            trail.record(Entry(Act.LOOK, tenant="t", subject="s", address=address, id="job"))
            trail.record(Entry(Act.DELETE, "refused", address=address, status=401))
    trail.close()
    found = [(entry["act"], entry["address"], entry["times"]) for entry in entries(blobs) if "address" in entry]
    assert sorted(found) == [
        *[("delete", address, 500) for address in ("10.0.0.1", "10.0.0.2")],
        *[("look", address, 500) for address in ("10.0.0.1", "10.0.0.2")],
    ]


def test_many_chains_and_threads_write_at_once_and_lose_nothing(blobs: ObjectStore) -> None:
    trails = [AuditTrail(blobs, settings()) for _ in range(4)]

    def write(trail: AuditTrail, name: str) -> None:
        for n in range(100):
            if n % 25 == 0:
                trail.record_stored(Entry(Act.SUBMIT, id=f"{name} {n}"))
            else:
                trail.record(Entry(Act.READ, id=f"{name} {n}"))

    threads = [threading.Thread(target=write, args=(trail, f"{i} {k}")) for i, trail in enumerate(trails) for k in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for trail in trails:
        trail.close()
    wanted = {f"{i} {k} {n}" for i in range(4) for k in "ab" for n in range(100)}
    found = [entry["id"] for entry in entries(blobs) if "id" in entry]
    assert sorted(found) == sorted(wanted)
    seen = verify(blobs)
    assert (seen.faults, seen.notes, seen.chains) == ([], [], 4)


def test_a_day_has_chains_of_its_own_and_each_names_those_before(blobs: ObjectStore) -> None:
    trail, first = AuditTrail(blobs, settings()), datetime(2026, 3, 1, 23, 59, 59, tzinfo=UTC)
    for hours in (0, 1, 2, 24, 25, 0):  # the last one: a clock that was set back
        trail.record_stored(Entry(Act.DELETE, at=first + timedelta(hours=hours), id=str(hours)))
    trail.close()
    assert sorted(blobs.folders(AUDIT)) == ["2026-03-01", "2026-03-02", "2026-03-03"]
    seen = verify(blobs)
    assert (seen.faults, seen.notes, seen.chains, seen.days) == ([], [], 3, 3)
    begun = [entry for entry in entries(blobs) if entry["act"] == "begin"]
    heads = {head.chain: head.fields() for head in stored_heads(blobs, blobs.folders(AUDIT))}
    assert [[head["day"] for head in entry["heads"]] for entry in begun] == [[], ["2026-03-01"], ["2026-03-02"]]
    assert all(heads[head["chain"]] == head for entry in begun for head in entry["heads"])


def test_a_full_store_stops_nobody_at_once_then_reads_before_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trail_module, "WAITING_LIMIT", 10)
    monkeypatch.setattr(trail_module, "CHANGES_RESERVE", 5)
    monkeypatch.setattr(trail_module, "RETRY_SECONDS", 0.05)
    store = Refusing(MemoryStore())
    trail = AuditTrail(store, settings())
    read, change = Entry(Act.READ), Entry(Act.DELETE)
    assert not trail.refuses(read)
    with pytest.raises(StorageUnavailableError):
        trail.record_stored(change, seconds=0.2)
    for n in range(9):
        trail.record(Entry(Act.READ, id=str(n)))
    assert (trail.waiting, trail.is_full, trail.refuses(read), trail.refuses(change)) == (10, True, True, False)
    for n in range(5):
        trail.record(Entry(Act.DELETE, id=str(n)))
    assert trail.refuses(change)
    trail.record(Entry(Act.LIST, "refused", status=401))
    assert (trail.dropped, trail.waiting) == (1, 15)
    assert trail.behind_seconds() > 0.1
    store.is_full = False
    until(lambda: trail.waiting == 0)
    assert not trail.refuses(read)
    trail.close()
    assert len([entry for entry in entries(store) if entry["act"] in ("read", "delete")]) == 15
    assert verify(store).faults == []


def test_a_process_that_ends_says_what_the_store_did_not_take(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(trail_module, "CLOSE_SECONDS", 0.2)
    trail = AuditTrail(Refusing(MemoryStore()), settings())
    trail.record(Entry(Act.DELETE))
    trail.close()
    assert "1 entries of the audit trail are lost" in caplog.text


def test_an_answer_of_the_store_that_was_lost_makes_no_second_segment() -> None:
    class Forgetful(ObjectStore):
        answers_lost = 0

        def create(self, key: str, data: bytes) -> bool:
            made = super().create(key, data)
            if self.answers_lost < 2:
                self.answers_lost += 1
                raise StorageUnavailableError("timed out")
            return made

    store = Forgetful(MemoryStore())
    trail = AuditTrail(store, settings())
    for n in range(3):
        trail.record_stored(Entry(Act.DELETE, id=str(n)))
    trail.close()
    assert [entry["id"] for entry in entries(store) if "id" in entry] == ["0", "1", "2"]
    assert verify(store).faults == []


def test_a_segment_that_somebody_put_in_the_way_is_found_and_nothing_is_lost(blobs: ObjectStore) -> None:
    trail = AuditTrail(blobs, settings())
    trail.record_stored(Entry(Act.DELETE, id="first"))
    (key,) = blobs.keys(AUDIT)
    now = datetime.now(UTC)
    for second in range(60):
        moment = f"{now + timedelta(seconds=second):%H%M%S}"
        blobs.write(key[: key.rindex("/")] + f"/000002-{moment}.jsonl", b"{}\n")
    trail.record_stored(Entry(Act.DELETE, id="second"))
    trail.close()
    assert verify(blobs).faults != []
    assert len({key.split("/")[2] for key in blobs.keys(AUDIT)}) == 2


SCRIPT = """
import sys
from pathlib import Path
from jobs.audit.entries import Act, Entry
from jobs.audit.trail import AuditTrail
from jobs.settings import JobsSettings
from jobs.store.object_store import open_object_store
trail = AuditTrail(open_object_store(Path(sys.argv[1]).as_uri()), JobsSettings(audit="all", audit_seconds=60))
for n in range(10**6):
    if n % 5 == 4:
        trail.record_stored(Entry(Act.DELETE, id=str(n)))
        print(n, flush=True)
    else:
        trail.record(Entry(Act.READ, id=str(n)))
"""


def test_a_process_that_is_killed_loses_no_change_that_was_answered(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    answered = [int(process.stdout.readline()) for _ in range(20)]
    process.send_signal(signal.SIGKILL)
    answered += [int(line) for line in process.stdout.read().split()]
    process.wait()
    store = open_object_store(tmp_path.as_uri())
    found = [int(entry["id"]) for entry in entries(store) if "id" in entry]
    assert found == list(range(len(found))), "what was read before a change is stored with it"
    assert set(answered) <= set(found)
    seen = verify(store)
    assert (seen.faults, [note.n for note in seen.notes]) == ([], [seen.entries])
    # Another process goes on beside it, and pins what the killed one had stored.
    trail = AuditTrail(store, settings())
    trail.record_stored(Entry(Act.DELETE))
    trail.close()
    assert len([entry for entry in entries(store) if entry["act"] == "begin" and entry["heads"]]) == 1


def test_days_past_their_retention_go_and_that_is_recorded(blobs: ObjectStore) -> None:
    trail = AuditTrail(blobs, settings())
    for day in (1, 2, 3):
        trail.record_stored(Entry(Act.DELETE, at=datetime(2026, 3, day, 12, tzinfo=UTC), id=str(day)))
    assert delete_expired(trail, 1, date(2026, 3, 4)) == 2
    assert delete_expired(trail, 1, date(2026, 3, 4)) == 0
    trail.close()
    assert [entry["id"] for entry in entries(blobs) if entry["act"] == "expire"] == ["2026-03-01", "2026-03-02"]
    assert verify(blobs).faults == []
    # Without the record of it, the same is a fault.
    other = ObjectStore(MemoryStore())
    trail = AuditTrail(other, settings())
    for day in (1, 2, 3):
        trail.record_stored(Entry(Act.DELETE, at=datetime(2026, 3, day, 12, tzinfo=UTC), id=str(day)))
    trail.close()
    other.delete_all(f"{AUDIT}2026-03-02/")
    assert [fault.why.partition(":")[0] for fault in verify(other).faults] == ["the chain is missing"]


def test_a_job_past_its_retention_is_recorded_as_purged_whichever_tenants_it_is(
    jobs: Connection, finished: Callable[..., str], settings: JobsSettings
) -> None:
    trail = AuditTrail(jobs.backends.store.blobs, settings, jobs.backends.live.audit_heads)
    short = settings.model_copy(update={"retention_seconds": 1, "audit_retention_days": 1})
    other = assemble(replace(jobs.backends, settings=short, audit=trail))
    radiology = other.tenants.of("radiology")
    purged = [(finished(other), "default"), (finished(radiology), "radiology")]
    for each in (other, radiology):
        each.cleanup.clean_up(datetime.now(UTC) + timedelta(seconds=5))
    trail.close()
    found = [entry for entry in entries(jobs.backends.store.blobs) if entry["act"] == "purge"]
    assert [(entry["id"], entry["tenant"], entry["subject"]) for entry in found] == [
        (job_id, tenant, "retention") for job_id, tenant in purged
    ]
    # One trail for all: nothing of it lies in a tenant's folder, or under its keys.
    assert list(radiology.backends.store.blobs.keys(AUDIT)) == []
    heads = [("redis", head) for head in radiology.backends.live.audit_heads.all()]
    assert len(heads) == 1
    assert verify(jobs.backends.store.blobs, known=heads).faults == []


def test_a_redis_that_is_silent_holds_up_no_change(blobs: ObjectStore) -> None:
    class Silent:
        asked = 0

        def show(self, _head: Head) -> None:
            self.asked += 1
            time.sleep(0.5)
            raise BrokerUnavailableError("silent")

    silent = Silent()
    trail = AuditTrail(blobs, settings(), silent)  # type: ignore[arg-type]
    began = time.monotonic()
    for n in range(20):
        trail.record_stored(Entry(Act.DELETE, id=str(n)))
    assert time.monotonic() - began < 3
    assert silent.asked == 1
    trail.close()
    assert verify(blobs).faults == []

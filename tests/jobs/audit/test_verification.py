"""Every kind of change to a stored trail is found, or is one that the documentation names as not to be found."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fhir.resources.R4B.auditevent import AuditEvent
from hypothesis import given, settings
from hypothesis import strategies as st
from obstore.store import MemoryStore

from jobs.audit.entries import (
    AUDIT,
    Act,
    AuditKey,
    Entry,
    Head,
    SegmentKey,
    canonical,
    chained,
    first_previous,
    read_segment,
    sealed,
)
from jobs.audit.fhir import audit_event
from jobs.audit.trail import AuditTrail
from jobs.audit.verification import Verification, entries, verify
from jobs.settings import JobsSettings
from jobs.store.object_store import ObjectStore

KEY = AuditKey(b"k" * 32)
FIRST = datetime(2026, 3, 1, 10, tzinfo=UTC)


@dataclass(frozen=True)
class Stored:
    """A trail of three chains in two days, as it was written, and what others know of it."""

    blobs: Mapping[str, bytes]
    heads: list[Head]

    @property
    def keys(self) -> list[str]:
        return sorted(self.blobs, key=lambda key: (SegmentKey.parse(key) or SegmentKey("", "", 0, ""),))


def written() -> Stored:
    store = ObjectStore(MemoryStore())
    given_settings = JobsSettings(audit="all", audit_seconds=0.01, audit_keys=KEY.secret.decode())
    first, second = AuditTrail(store, given_settings), AuditTrail(store, given_settings)
    for day in range(2):
        for n in range(4):
            at = FIRST + timedelta(days=day, minutes=n)
            first.record(Entry(Act.READ, at=at, tenant="default", subject="a", kind="job", id=f"{day}-{n}"))
            first.record_stored(Entry(Act.DELETE, at=at, tenant="default", subject="b", kind="job", id=f"{day}-{n}"))
    for n in range(3):
        second.record_stored(Entry(Act.SUBMIT, at=FIRST + timedelta(days=1, hours=1 + n), subject="c", id=str(n)))
    first.close()
    second.close()
    blobs = {key: store.read(key) or b"" for key in store.keys(AUDIT)}
    return Stored(blobs, verify(store, [KEY]).heads)


STORED = written()


def looked_at(blobs: Mapping[str, bytes], keys: tuple[AuditKey, ...] = (KEY,), heads: bool = True) -> Verification:
    store = ObjectStore(MemoryStore())
    for key, data in blobs.items():
        store.write(key, data)
    return verify(store, keys, [("the test", head) for head in STORED.heads] if heads else [])


def lines_of(data: bytes) -> list[bytes]:
    return data.splitlines()


def joined(lines: list[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)


def rewritten(
    blobs: Mapping[str, bytes], change: Callable[[list[dict[str, Any]]], None], chain: str, by: AuditKey | None
) -> dict[str, bytes]:
    """The whole chain made anew, with right hashes, after a change of its entries: what who knows the format can do."""
    keys = sorted(key for key in map(SegmentKey.parse, blobs) if key is not None and key.chain == chain)
    segments = [read_segment(key, blobs[str(key)]).entries for key in keys]
    change([entry for segment in segments for entry in segment])
    n, previous, made = 0, first_previous(keys[0].day, chain), dict(blobs)
    for key, segment in zip(keys, segments, strict=True):
        lines = []
        for entry in segment:
            n += 1
            fields = {name: value for name, value in entry.items() if name not in ("n", "previous", "hash")}
            line, previous = chained(fields, n, previous)
            lines.append(line)
        made[str(key)] = sealed(lines, key, Head(key.day, chain, n, previous), by)
    return made


def test_what_was_written_is_right() -> None:
    seen = looked_at(STORED.blobs)
    assert (seen.faults, seen.notes, seen.chains, seen.days) == ([], [], 3, 2)
    assert seen.entries == 8 * 2 + 3 + 6
    assert len(STORED.keys) >= 13


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_changed_byte_is_found_where_it_is(data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(STORED.keys))
    blob = bytearray(STORED.blobs[key])
    at = data.draw(st.integers(0, len(blob) - 1))
    blob[at] ^= data.draw(st.integers(1, 255))
    seen = looked_at({**STORED.blobs, key: bytes(blob)}, heads=False)
    chain = key.split("/")[2]
    assert [fault for fault in seen.faults if chain in fault.where]
    # The entry is the one that was changed, or the one whose seal was.
    number = bytes(blob[:at]).count(b"\n")
    numbers = [json.loads(line).get("n", 0) for line in lines_of(STORED.blobs[key])]
    first = next(fault for fault in seen.faults if chain in fault.where)
    assert first.n in {numbers[number], numbers[max(number - 1, 0)], numbers[0], *numbers[number : number + 2]}


MUTATIONS = (
    "cut line", "swap lines", "repeat line", "cut segment", "swap segments", "repeat segment", "move segment",
    "cut end", "cut chain", "cut day", "rename day", "foreign blob", "empty",
)  # fmt: skip


def mutated(blobs: Mapping[str, bytes], kind: str, data: st.DataObject) -> dict[str, bytes]:
    keys = STORED.keys
    made, key = dict(blobs), data.draw(st.sampled_from(keys), label="segment")
    parsed = SegmentKey.parse(key)
    assert parsed is not None
    chain = [other for other in keys if f"/{parsed.chain}/" in other]
    lines = lines_of(made[key])
    line = data.draw(st.integers(0, len(lines) - 1), label="line")
    if kind == "cut line":
        made[key] = joined(lines[:line] + lines[line + 1 :])
    elif kind == "swap lines":
        lines[line], lines[line - 1] = lines[line - 1], lines[line]
        made[key] = joined(lines)
    elif kind == "repeat line":
        made[key] = joined([*lines[:line], lines[line], *lines[line:]])
    elif kind == "cut segment":
        del made[key]
    elif kind == "swap segments":
        other = data.draw(st.sampled_from([other for other in keys if other != key]), label="other")
        made[key], made[other] = made[other], made[key]
    elif kind == "repeat segment":
        made[str(SegmentKey(parsed.day, parsed.chain, len(chain) + 1, parsed.time))] = made[key]
    elif kind == "move segment":
        made[str(SegmentKey(parsed.day, parsed.chain, parsed.number + 1000, parsed.time))] = made.pop(key)
    elif kind == "cut end":
        for other in chain[data.draw(st.integers(1, len(chain) - 1), label="kept") :]:
            del made[other]
    elif kind == "cut chain":
        for other in chain:
            del made[other]
    elif kind == "cut day":
        made = {other: blob for other, blob in made.items() if f"/{parsed.day}/" not in other}
    elif kind == "rename day":
        for other in chain:
            made[other.replace(f"/{parsed.day}/", "/2026-02-01/")] = made.pop(other)
    elif kind == "foreign blob":
        made[f"{AUDIT}{parsed.day}/note.txt"] = b"x"
    else:
        made[key] = b""
    return made


@pytest.mark.parametrize("kind", MUTATIONS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_what_is_cut_moved_or_repeated_is_found(kind: str, data: st.DataObject) -> None:
    made = mutated(STORED.blobs, kind, data)
    if made != STORED.blobs:
        assert looked_at(made).faults != []


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_a_chain_that_was_made_anew_is_found_by_its_seal_or_by_who_knew_it(data: st.DataObject) -> None:
    chain = data.draw(st.sampled_from(sorted({key.split("/")[2] for key in STORED.keys})))

    def change(found: list[dict[str, Any]]) -> None:
        at = data.draw(st.integers(1, len(found) - 2))
        if data.draw(st.booleans()):
            found[at]["subject"] = "somebody else"
        else:
            found[at]["at"] = "2026-03-01T00:00:00.000000+00:00"

    # Right in itself. Without a right seal: found by the key. With one: by those who knew where it stood.
    for by in (None, AuditKey(b"x" * 32)):
        assert looked_at(rewritten(STORED.blobs, change, chain, by), heads=False).faults != []
    assert looked_at(rewritten(STORED.blobs, change, chain, KEY), heads=True).faults != []


def test_the_first_days_chain_is_pinned_by_the_store_alone() -> None:
    first = STORED.keys[0].split("/")[2]
    made = rewritten(STORED.blobs, lambda found: found[1].update(subject="x"), first, KEY)
    faults = looked_at(made, heads=False).faults
    assert [fault.why.partition(":")[0] for fault in faults] == ["it is another one"] * 2  # by both of the next day
    last = [key for key in STORED.keys if f"/{first}/" in key][-1]
    faults = looked_at({key: data for key, data in STORED.blobs.items() if key != last}, heads=False).faults
    assert [fault.why.partition(":")[0] for fault in faults] == ["its end was cut off"] * 2


def test_what_cannot_be_found_without_a_key_or_heads_from_elsewhere() -> None:
    """As docs/audit.md says: the end of the newest chain, and all of it made anew, if nobody else knew it."""
    last = STORED.keys[-1]
    cut = {key: data for key, data in STORED.blobs.items() if key != last}
    seen = looked_at(cut, heads=False)
    assert seen.faults == []
    assert [note.why.partition(":")[0] for note in seen.notes] == ["the chain has no end"]
    assert looked_at(cut, heads=True).faults != []
    plain = dict(STORED.blobs)
    for chain in sorted({key.split("/")[2] for key in plain}):
        plain = rewritten(plain, lambda _: None, chain, None)
    assert looked_at(plain, keys=(), heads=False).faults == []
    assert looked_at(plain, keys=(), heads=True).faults == []
    newest = last.split("/")[2]
    forged = rewritten(plain, lambda found: found[1].update(subject="x"), newest, None)
    assert looked_at(forged, keys=(), heads=False).faults == []
    assert looked_at(forged, keys=(), heads=True).faults != []


def test_keys_that_are_not_given_are_said_and_given_ones_are_wanted() -> None:
    assert [note.where for note in looked_at(STORED.blobs, keys=()).notes] == ["trail"]
    other = AuditKey(b"o" * 32)
    faults = looked_at(STORED.blobs, keys=(other,)).faults
    assert KEY.id in faults[0].why
    assert looked_at(STORED.blobs, keys=(other, KEY)).faults == []


def test_entries_come_in_the_order_of_their_times_and_of_one_tenant_if_asked() -> None:
    store = ObjectStore(MemoryStore())
    for key, data in STORED.blobs.items():
        store.write(key, data)
    every = list(entries(store))
    assert len(every) == 25
    every = [entry for entry in every if entry["act"] != "end"]  # which are of now, in chains of long ago
    assert [entry["at"] for entry in every] == sorted(entry["at"] for entry in every)
    for since, until in ((1, 3), (24 * 60 + 2, 24 * 60 + 120), (24 * 60 + 2, 10**5)):
        begin, end = FIRST + timedelta(minutes=since), FIRST + timedelta(minutes=until)
        wanted = [entry for entry in every if begin <= datetime.fromisoformat(entry["at"]) < end]
        assert [entry for entry in entries(store, begin, end) if entry["act"] != "end"] == wanted
        assert wanted
    assert {entry["tenant"] for entry in entries(store, tenant="default")} == {"default"}
    assert list(entries(store, tenant="other")) == []


def test_an_entry_is_the_same_text_everywhere() -> None:
    """The format, written down: whoever verifies with another program can begin here."""
    line, digest = chained({"act": "delete", "at": "2026-03-01T10:00:00.000000+00:00"}, 1, "0" * 64)
    assert canonical({"b": 1, "a": "ü"}) == b'{"a":"\\u00fc","b":1}'
    assert digest == "ae23b2d80d4297f3bf312c31388ea69fbb8acbcf27a99daf24e28546807a1219"
    assert line == canonical(json.loads(line))
    assert first_previous("2026-03-01", "chain") == "ad98e29c721a831d18014bdefdb33c6ae1815916240d5b319f49caed00c53b61"


@pytest.mark.parametrize("act", list(Act))
@pytest.mark.parametrize(
    ("outcome", "status", "code"), [("done", 200, "0"), ("refused", 403, "4"), ("failed", 500, "8")]
)
def test_each_entry_is_an_audit_event_of_fhir(act: Act, outcome: Any, status: int, code: str) -> None:
    entry = Entry(
        act, outcome, tenant="t", subject="s", address="192.0.2.7", kind="job",
        id="0197a3c0-0000-7000-8000-000000000000", part="lungs", status=status, request_id="r", times=3,
    )  # fmt: skip
    fields = entry.fields() | {"n": 7, "chain": "0197a3c0-0000-7000-8000-000000000001", "hash": "0" * 64}
    event = AuditEvent.model_validate_json(json.dumps(audit_event(fields)))
    assert (event.outcome, event.recorded, event.id) == (code, entry.at, f"{fields['chain']}-7")
    assert event.agent[0].network.address == "192.0.2.7"
    assert event.entity[0].what.identifier.value == f"urn:uuid:{entry.id}"
    # And what is barely there: of the trail itself, or of a caller who is not known.
    bare = Entry(act, outcome).fields() | {"n": 1, "chain": fields["chain"], "hash": "0" * 64}
    AuditEvent.model_validate_json(json.dumps(audit_event(bare)))

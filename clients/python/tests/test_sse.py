"""Streams of events come in pieces that end anywhere."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lobewise_client.sse import MOST_BYTES, Event, EventParser

LINE = st.text("a :\ufeffé€😀", max_size=6)


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, list[Event]]:
    """A stream, and what it says."""
    text, events, id_ = draw(st.sampled_from(["", "\ufeff"])), [], None
    end = draw(st.sampled_from(["\n", "\r\n", "\r"]))
    for _ in range(draw(st.integers(0, 5))):
        if draw(st.booleans()):
            comment = draw(LINE)
            text += f": {comment}" + end
            events.append(Event("", comment, id_, is_comment=True))
        name, data = draw(st.sampled_from(["", "job", "other"])), draw(st.lists(LINE, max_size=3))
        if draw(st.booleans()):
            id_ = draw(LINE)
            text += f"id: {id_}" + end
        if name:
            text += f"event: {name}" + end
        for line in data:
            text += f"data: {line}" + end
        text += end
        if data:
            events.append(Event(name or "message", "\n".join(data), id_))
    return text.encode(), events


@given(streams(), st.data())
def test_however_a_stream_is_cut_it_says_the_same(stream: tuple[bytes, list[Event]], data: st.DataObject) -> None:
    content, expected = stream
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=8)))
    for places in ([0, *cuts, len(content)], range(len(content) + 1)):
        parser = EventParser()
        pieces = [content[begin:end] for begin, end in zip(places, [*places[1:], len(content)], strict=True)]
        assert [event for piece in pieces for event in parser.feed(piece)] == expected


@given(st.binary(max_size=300))
def test_no_bytes_break_it(content: bytes) -> None:
    whole, single = EventParser(), EventParser()
    assert whole.feed(content) == [event for byte in content for event in single.feed(bytes([byte]))]


def test_an_unfinished_event_is_none_and_retry_is_kept() -> None:
    parser = EventParser()
    assert parser.feed(b"retry: 1500\nretry: soon\ndata: half") == []
    assert parser.feed(b"\n") == []
    assert parser.retry_seconds == 1.5
    assert parser.feed(b"\n") == [Event("message", "half", None)]


def test_a_line_without_end_is_refused() -> None:
    parser = EventParser()
    parser.feed(b"x" * MOST_BYTES)
    with pytest.raises(ValueError, match="too long"):
        parser.feed(b"x")

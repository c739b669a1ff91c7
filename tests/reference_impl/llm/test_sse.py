"""Events are the same however the network cuts the bytes."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference_impl.llm.sse import EventTooLong, SseFramer, split_events

STREAM = (
    b'event: message_start\ndata: {"a":1}\n\n'
    b": a comment\n\n"
    b"event: ping\ndata: {}\n\n"
    b"data: no name\ndata:second line\n\n"
    b"event:error\ndata:x\n\n"
)
EVENTS = [
    ("message_start", b'{"a":1}'),
    ("ping", b"{}"),
    ("message", b"no name\nsecond line"),
    ("error", b"x"),
]


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[a:b] for a, b in itertools.pairwise(edges)]


def events_of(pieces: list[bytes]) -> tuple[list[tuple[str, bytes]], list[bytes], bytes]:
    """Names and data of all events, the blocks they came in, and what was left."""
    framer = SseFramer()
    blocks = [block for piece in pieces if (block := framer.feed(piece))]
    events = [(event.name, event.data) for block in blocks for event in split_events(block)]
    return events, blocks, framer.rest


def test_events_are_named_and_their_data_lines_joined() -> None:
    events, blocks, rest = events_of([STREAM])
    assert events == EVENTS
    assert blocks == [STREAM]
    assert rest == b""


@given(st.lists(st.integers(0, 10_000), max_size=20), st.sampled_from([b"\n", b"\r\n", b"\r"]))
def test_any_cutting_gives_the_same_events_and_bytes(places: list[int], line_end: bytes) -> None:
    stream = STREAM.replace(b"\n", line_end)
    events, blocks, rest = events_of(cut(stream, places))
    assert events == EVENTS
    assert b"".join(blocks) + rest == stream


line = st.sampled_from([b"event: a", b"data: b", b"data", b":c", b"id: 1", b"", b"x"])
line_end = st.sampled_from([b"\n", b"\r\n", b"\r"])


@given(
    st.lists(st.tuples(line, line_end), max_size=30),
    st.lists(st.integers(0, 10_000), max_size=10),
)
def test_any_mixture_of_lines_and_line_ends_is_cut_alike(
    lines: list[tuple[bytes, bytes]], places: list[int]
) -> None:
    stream = b"".join(text + end for text, end in lines) + b"data: last\n\n"
    whole, _, _ = events_of([stream])
    pieces, blocks, rest = events_of(cut(stream, places))
    assert pieces == whole
    assert b"".join(blocks) + rest == stream


@given(st.binary(max_size=300), st.lists(st.integers(0, 10_000), max_size=10))
def test_arbitrary_bytes_pass_unchanged(stream: bytes, places: list[int]) -> None:
    _, blocks, rest = events_of(cut(stream, places))
    assert b"".join(blocks) + rest == stream


def test_what_is_complete_passes_and_what_is_not_waits() -> None:
    framer = SseFramer()
    assert framer.feed(b"data: 1\n\ndata: 2\n") == b"data: 1\n\n"
    assert framer.rest == b"data: 2\n"
    assert framer.feed(b"\n") == b"data: 2\n\n"


def test_whole_events_pass_without_being_copied() -> None:
    block = b"data: 1\n\ndata: 2\n\n"
    assert SseFramer().feed(block) is block


def test_events_know_their_place_in_the_block() -> None:
    block = b"data: 1\n\nevent: error\ndata: 2\n\n"
    first, second = split_events(block)
    assert block[first.start : first.end] == b"data: 1\n\n"
    assert block[: second.start] == b"data: 1\n\n"


def test_an_event_without_end_is_refused_at_the_bound() -> None:
    framer = SseFramer(max_event_bytes=100)
    framer.feed(b"data: " + b"x" * 94)
    with pytest.raises(EventTooLong, match="101 bytes"):
        framer.feed(b"x")
